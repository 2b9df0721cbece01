"""The same run on one device, on eight, compiled by `jit` and by `pmap`."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from mnv2_jax import MobileNetV2
from mnv2_jax.errors import UserError
from mnv2_jax.models.mobilenet_v2 import Stage
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.training import parallel
from mnv2_jax.training.config import TrainConfig
from mnv2_jax.training.loop import Pause, compile_programs, train
from mnv2_jax.training.optimizer import create_optimizer
from mnv2_jax.training.parallel import check_divides, create_mesh
from mnv2_jax.training.step import DATA_AXIS, Learner

# Small steps: with large ones the first five multiply a difference of rounding a thousandfold.
CONFIG = TrainConfig(5, 64, learning_rate=0.002, warmup=0.0, label_smoothing=0.1, ema_decay=0.9, evaluations=1)
NETWORK = MobileNetV2(10, 0.1, unit_strides=1, stages=(Stage(1, 16, 1, 1), Stage(2, 24, 2, 2)), dropout_rate=0.2)
STEPS = 5


def learner_of(config, devices):
    axis = DATA_AXIS if config.batch_norm == "global" and devices > 1 else None
    return Learner(
        NETWORK.clone(batch_norm_axis=axis),
        Classification(10, config.label_smoothing),
        create_optimizer(config, 64),
        config.accumulation,
        config.ema_decay,
    )


@pytest.fixture(scope="module")
def run(tiny):
    """(step, params, batch_stats and ema after the last of five steps), for settings and devices."""
    done = {}

    def of(devices, compiled="jit", **changes):
        key = (devices, compiled, *changes.items())
        if key not in done:
            config = dataclasses.replace(CONFIG, **changes)
            programs = compile_programs(learner_of(config, devices), tiny, config, create_mesh(1, devices), compiled)
            (pause,) = [
                event
                for event in train(programs, programs.start([3]), 3, range(STEPS), 5, ())
                if isinstance(event, Pause)
            ]
            done[key] = jax.device_get((pause.state.params, pause.state.batch_stats, pause.state.ema))
        return done[key]

    return of


def difference(one, other):
    """The largest difference of parameters, statistics and averages, relative to the norm of each of the three."""

    def flat(tree):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    return max(np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b)) for a, b in zip(one, other, strict=True))


def test_one_run_whatever_the_devices_and_the_compilation(run):
    """Batch norm over all devices, augmentation, dropout, label smoothing and moving average included."""
    alone = run(1)
    for devices, compiled in ((8, "jit"), (8, "pmap"), (2, "jit")):
        assert difference(run(devices, compiled), alone) < 1e-5, (devices, compiled)


def test_batch_norm_of_each_device_is_another_run_the_same_under_both(run):
    replica = run(8, batch_norm="replica")
    assert difference(run(8, "pmap", batch_norm="replica"), replica) < 1e-5
    assert difference(replica, run(1)) > 1e-4
    # One device has the whole batch.
    assert difference(run(1, batch_norm="replica"), run(1)) == 0


def test_accumulated_parts_are_what_devices_are(run):
    """Four parts of 16 on one device are four devices with 16 images each, and statistics of their own."""
    assert difference(run(1, accumulation=4), run(4, batch_norm="replica")) < 1e-5
    assert difference(run(2, accumulation=2, batch_norm="replica"), run(4, batch_norm="replica")) < 1e-5
    # With statistics over all devices, the parts are the same on any number of them.
    assert difference(run(8, accumulation=4), run(1, accumulation=4)) < 1e-5


def test_the_comparison_would_see_a_difference(run):
    again = run(8, label_smoothing=0.10001)
    assert 0 < difference(again, run(8)) < 1e-4


# --- The compiled program --------------------------------------------------------------------------------


@pytest.fixture
def compiled_text(tiny, monkeypatch):
    """The program of a training step on eight devices, as XLA compiled it."""

    def of(compiled="jit", **changes):
        texts = []
        lower = parallel.lower_program

        def kept(function, *rest, **options):
            lowered = lower(function, *rest, **options)
            texts.append((function.__name__, lowered))
            return lowered

        monkeypatch.setattr(parallel, "lower_program", kept)
        config = dataclasses.replace(CONFIG, **changes)
        compile_programs(learner_of(config, 8), tiny, config, create_mesh(1, 8), compiled)
        return dict(texts)["train"].compile().as_text()

    return of


@pytest.mark.parametrize("compiled", ["jit", "pmap"])
def test_devices_wait_for_each_other_once_a_step(compiled_text, compiled):
    text = compiled_text(compiled, batch_norm="replica")
    assert "all-gather" not in text
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == 1


def test_batch_norm_over_all_devices_costs_two_more_a_layer(compiled_text):
    """Eleven norms: in the stem, one block of two and two of three layers, and the head. Forward and backward each."""
    text = compiled_text()
    assert "all-gather" not in text
    norms = 1 + 2 + 3 + 3 + 1
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == 1 + 2 * norms


# --- Settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "says"),
    [
        (20, 1, "--batch-size 20 does not divide by 8 devices; take 16"),
        (24, 2, "does not divide by 8 devices with 2 accumulated parts each; take 32"),
        (4, 1, "take 8"),
    ],
)
def test_a_batch_that_does_not_divide(batch_size, accumulation, says):
    with pytest.raises(UserError, match=says):
        check_divides(batch_size, accumulation, create_mesh(1, 8))


def test_one_compilation_a_run(tiny):
    """Each program once, and nothing in the steps between."""
    programs = compile_programs(learner_of(CONFIG, 8), tiny, CONFIG, create_mesh(1, 8))
    state = programs.start([0])
    events = train(programs, state, 0, range(STEPS), 1, {2})
    next(events)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "compile" in name else None
    )
    try:
        assert len(list(events)) == 4 + 2
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []


def test_the_devices_are_waited_for_at_the_end_of_an_interval_only(tiny, monkeypatch):
    """Metrics of an interval are fetched when the next one has been given to the devices."""
    from mnv2_jax.training import loop

    programs = compile_programs(learner_of(CONFIG, 8), tiny, CONFIG, create_mesh(1, 8))
    happened = []

    def counted(state, totals, value):
        happened.append("step")
        return programs.train(state, totals, value)

    fetch = loop.fetch
    monkeypatch.setattr(loop, "fetch", lambda totals: happened.append("fetch") or fetch(totals))
    monkeypatch.setattr(jax, "block_until_ready", lambda tree: happened.append("wait"))
    state = programs.start([0])
    list(train(dataclasses.replace(programs, train=counted), state, 0, range(6), 2, ()))
    # Of steps 1-2 after step 4; of 3-4 and 5-6 at the end.
    assert happened == ["step"] * 4 + ["fetch"] + ["step"] * 2 + ["fetch"] * 2
