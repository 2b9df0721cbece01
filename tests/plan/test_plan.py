"""Plans: bounds and sweeps on handmade figures, and (marked tests) small networks compiled for TPUs."""

import contextlib
import dataclasses
import math
import os
import re
import subprocess
import sys

import jax
import pytest

from mnv2_jax.ablation.design import Arm, Study
from mnv2_jax.models.cost import count_parameters, layer_costs
from mnv2_jax.plan import plan
from mnv2_jax.plan.chips import CHIPS, Topology, open_topology
from mnv2_jax.plan.compiled import Collective
from mnv2_jax.plan.plan import Plan, activation_bytes, imagenet_like, largest_batch, plan_run, plan_study
from mnv2_jax.training.config import RECIPES, Recipe, Run
from mnv2_jax.training.create import create_learner, create_network

V5E = CHIPS["v5e"]


def by_hand(batch=128, fits=True, **changes):
    figures = dict(
        title="by hand",
        topology=Topology(V5E, "2x4", []),
        chips=8,
        images=8 * batch,
        memory={"activations": batch * 10_000_000, "temporary": 0, "batch": 0} if fits else {},
        hbm_bytes=batch * 10_000_000,
        flops=1.97e12 if fits else None,
        bytes_accessed=2e10,
        traffic_bytes=8_190_000_000 if fits else None,
        collectives=(Collective("all-reduce", 14_000_000, 8),),
        compile_seconds=1.0,
    )
    return Plan(**{**figures, **changes})


def test_the_bound_is_that_of_what_takes_longest():
    found = by_hand()
    assert found.seconds() == pytest.approx({"compute": 0.01, "memory": 0.01, "links": 24.5e6 / 2e11})
    assert by_hand(flops=3e12).bound_by == "compute"
    slow = by_hand(traffic_bytes=81_900_000_000)
    assert slow.bound_by == "memory"
    assert slow.images_per_second == pytest.approx(8 * 128 / 0.1)
    assert by_hand(collectives=(Collective("all-reduce", 10**10, 8),)).bound_by == "links"
    assert by_hand(fits=False).images_per_second is None


@pytest.mark.parametrize("start", [1, 128, 1000, 1024, 8192])
@pytest.mark.parametrize("largest", [1, 64, 1024, 4096])
def test_the_largest_batch_is_found_with_few_compilations(start, largest):
    asked = []

    def plan_of(batch):
        asked.append(batch)
        return by_hand(batch, batch <= largest)

    plans = largest_batch(plan_of, start)
    fitting = [batch for batch in asked if batch <= largest and batch & (batch - 1) == 0]
    assert max(fitting) == largest
    assert largest * 2 in asked
    assert len(asked) == len(set(asked))
    sizes = [found.images for found in plans]
    assert sizes == sorted(sizes)


def test_where_nothing_fits_the_sweep_ends():
    plans = largest_batch(lambda batch: by_hand(batch, False), 4)
    assert [found.images // 8 for found in plans] == [1, 2, 4]


# --- What is compiled ------------------------------------------------------------------------------------

SIDE, BATCH = 32, 16
HERE = Topology(V5E, "2x4", jax.devices())
"""Eight CPU devices in place of eight chips."""


def small_run(**training):
    """Return a run of a network with each kind of block, compiled in seconds."""
    model = {"name": "mobilenet_v2", "stages": [(1, 16, 1, 1), (6, 24, 1, 2)], "dtype": "bfloat16", "unit_strides": 0}
    return Run("plan", model, dataclasses.replace(RECIPES["cosine"], **training), resolution=SIDE)


def test_activations_are_what_the_backward_pass_needs():
    """For the paper's layers at 224 pixels, 6.68 million values of two bytes."""
    training = dataclasses.replace(RECIPES["cosine"], batch_size=16, batch_norm="replica")
    run = Run("plan", {"name": "mobilenet_v2", "dtype": "bfloat16", "unit_strides": 0}, training, resolution=224)
    dataset = imagenet_like(224, 1000, training, "tensorflow")
    learner = create_learner(run, dataset, 8)
    outputs = sum(math.prod(layer.output_shape) for layer in layer_costs(learner.model, (224, 224, 3)))
    assert activation_bytes(learner, dataset, training, 8, "train") == 2 * 2 * outputs
    largest = (112 * 112 + 56 * 56) * 96  # the first depthwise convolution with stride 2
    assert activation_bytes(learner, dataset, training, 8, "eval") == 2 * 2 * largest
    parts = dataclasses.replace(training, accumulation=2)
    assert activation_bytes(learner, dataset, parts, 8, "train") == 2 * outputs


def test_a_plan_is_of_the_trainer_s_own_programs():
    run = small_run(batch_size=BATCH * 8)
    run = dataclasses.replace(run, model={**run.model, "stages": [(2, 8, 1, 2)], "dtype": "float32"})
    dataset = imagenet_like(SIDE, 10, run.training, "tensorflow")
    found = plan_run(run, dataset, HERE, "train", "jit", "small")
    assert found.fits
    assert (found.title, found.chips, found.images) == ("small", 8, 8 * BATCH)
    # Gradients, statistics and metrics are summed, and nothing else is exchanged.
    assert set(found.by_kind()) == {"all-reduce"}
    assert {collective.group for collective in found.collectives} == {8}
    parameters = count_parameters(create_network(run, dataset), (SIDE, SIDE, 3))
    assert found.memory["params"] == 4 * parameters
    assert found.memory["opt_state"] == pytest.approx(4 * parameters, abs=16)
    assert found.memory["batch"] == BATCH * (SIDE * SIDE * 3 + 4)  # images in bytes, and labels
    assert sum(found.memory.values()) == found.hbm_bytes
    evaluation = plan_run(run, dataset, HERE, "eval", "jit", "small")
    assert evaluation.flops < 0.5 * found.flops
    assert evaluation.memory["params"] == found.memory["params"]


def test_the_programs_of_a_study_are_planned_with_its_runs_side_by_side(monkeypatch, digits):
    asked = []

    def plan_programs(learner, dataset, training, topology, devices, step, title):
        asked.append((title, devices.runs, learner.model.width_multiplier, dataset.image_shape, training.epochs, step))
        return by_hand(title=title)

    monkeypatch.setattr(plan, "plan_programs", plan_programs)
    arms = (
        Arm("linear"),
        Arm("relu6", {"bottleneck_activation": "relu6"}),
        Arm("wide", {"width_multiplier": 0.2}),
        Arm("small", resolution=14),
    )
    recipe = Recipe(epochs=3, batch_size=16, learning_rate=0.02)
    study = Study("test", "?", "Yes.", "digits", arms, model={"width_multiplier": 0.1}, training=recipe, seeds=2)
    compiled = []
    plan_study(study, HERE, lambda words: contextlib.nullcontext(compiled.append(words)))
    assert compiled[0] == "compiling program 1 of 3 for v5e:2x4 (linear, relu6; about a minute)"
    # Two seeds of two arms that share a program, then two seeds of each other arm.
    assert asked == [
        ("linear, relu6", 4, 0.1, (20, 20, 1), 3, "train"),
        ("wide", 2, 0.2, (20, 20, 1), 3, "train"),
        ("small", 2, 0.1, (14, 14, 1), 3, "train"),
    ]


# --- Compiled for TPUs -----------------------------------------------------------------------------------


def planned(topology, monkeypatch, parallel="jit", step="train", **training):
    """Return the plan and the compiled program's text."""
    texts = []
    real = plan.collectives
    monkeypatch.setattr(plan, "collectives", lambda text, devices: texts.append(text) or real(text, devices))
    opened = open_topology(topology)
    run = small_run(batch_size=BATCH * len(opened.devices), **training)
    dataset = imagenet_like(SIDE, 10, run.training, "tensorflow")
    return plan_run(run, dataset, opened, step, parallel, "small"), texts[0]


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("topology", ["v5e:2x4", "v6e:2x2"])
def test_a_training_step_for_a_slice(topology, monkeypatch):
    found, text = planned(topology, monkeypatch)
    assert found.fits
    # Gradients, statistics and metrics are summed together, possibly in pieces; nothing else is exchanged.
    kinds = found.by_kind()
    assert set(kinds) == {"all-reduce"}
    assert kinds["all-reduce"]["count"] <= 3
    run = small_run()
    network = create_network(run, imagenet_like(SIDE, 10, run.training, "tensorflow"))
    parameters = count_parameters(network, (SIDE, SIDE, 3))
    assert kinds["all-reduce"]["bytes"] == pytest.approx(4 * parameters, rel=0.2)
    assert {collective.group for collective in found.collectives} == {found.chips}
    # TPUs get the native depthwise convolution; the CPU form is shifts and products.
    depthwise = [line for line in text.splitlines() if re.search(r" convolution\(.*depthwise", line)]
    assert depthwise
    assert all("feature_group_count" in line or "batch_group_count" in line for line in depthwise)
    forward = [line for line in depthwise if "feature_group_count" in line and "transpose" not in line]
    assert len(forward) == 2
    # Convolutions and values between layers are bfloat16, as requested; parameters stay float32.
    image = f"{BATCH},{SIDE // 2},{SIDE // 2},32"
    entry = text.split("ENTRY")[1]
    assert f"bf16[{image}]" in entry
    assert f"f32[{image}]" not in entry
    assert "f32[1,1,1,32,16]" in entry
    # The memory counted from shapes agrees with the compiler's.
    counted = sum(size for part, size in found.memory.items() if part != "padding")
    assert counted == pytest.approx(found.hbm_bytes, rel=0.1)
    assert found.memory["params"] == 4 * parameters
    assert found.memory["opt_state"] == pytest.approx(4 * parameters, abs=16)
    assert min(found.memory.values()) >= 0
    assert 0 < found.traffic_bytes < found.bytes_accessed


@pytest.mark.tpu_compiler
def test_ways_of_compiling_and_one_chip(monkeypatch):
    by_pmap, _ = planned("v5e:2x2", monkeypatch, "pmap")
    by_jit, _ = planned("v5e:2x2", monkeypatch)
    assert by_pmap.flops == pytest.approx(by_jit.flops, rel=0.01)
    assert by_pmap.by_kind().keys() == by_jit.by_kind().keys() == {"all-reduce"}
    alone, _ = planned("v5e:1x1", monkeypatch, batch_norm="global")
    assert alone.collectives == ()
    assert alone.flops == pytest.approx(by_jit.flops, rel=0.05)
    # Evaluation has no backward pass.
    evaluation, _ = planned("v5e:2x2", monkeypatch, step="eval")
    assert evaluation.flops < 0.5 * by_jit.flops
    # The whole state is on the chip, although evaluation uses only a part.
    assert evaluation.memory["opt_state"] == by_jit.memory["opt_state"]
    assert min(evaluation.memory.values()) >= 0


@pytest.mark.tpu_compiler
def test_what_does_not_fit_is_said_with_its_size(monkeypatch):
    opened = open_topology("v5e:1x1")
    run = small_run(batch_size=1 << 20)
    found = plan_run(run, imagenet_like(SIDE, 10, run.training, "tensorflow"), opened, "train", "jit", "large")
    assert not found.fits
    assert found.hbm_bytes > V5E.usable_bytes
    assert found.to_json()["bound_by"] is None


@pytest.mark.tpu_compiler
def test_the_compiler_alone_is_no_reason_to_start_a_tpu():
    """JAX would try to start one, and print long errors when it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-m", "mnv2_jax", "summary", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
