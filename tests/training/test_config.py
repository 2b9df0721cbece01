"""Configuration of runs: values are checked where they are given, and lengths are counted in whole batches."""

import dataclasses
import json
import subprocess
import sys

import pytest

from mnv2_jax.errors import UserError
from mnv2_jax.training.config import (
    RECIPES,
    Execution,
    Recipe,
    Run,
    batch_norm_momentum,
    evaluation_steps,
    log_interval,
)

RECIPE = Recipe(epochs=1, batch_size=16, learning_rate=0.02, evaluations=2)


@pytest.mark.parametrize("name", ["epochs", "batch_size", "learning_rate", "evaluations", "accumulation"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(name, value):
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} must be greater than 0, got {value}"):
        dataclasses.replace(RECIPE, **{name: value})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"momentum": 1.0}, "--momentum must be from 0 to below 1, got 1.0"),
        ({"ema_decay": -0.1}, "--ema-decay must be from 0 to below 1, got -0.1"),
        ({"batch_norm_momentum": 1.0}, "--batch-norm-momentum must be from 0 to below 1"),
        ({"weight_decay": -1.0}, "--weight-decay must be 0 or more"),
        ({"smallest_crop": 0.0}, "--smallest-crop must be above 0 and at most 1"),
        ({"learning_rate_images": 0}, "--learning-rate-images must be greater than 0"),
        ({"learning_rate": 1e-320}, "--learning-rate must be from 1e-30 to 1e\\+30, got 1e-320"),
        ({"rmsprop_epsilon": 0.1}, "--rmsprop-epsilon requires --optimizer rmsprop, got sgd"),
        ({"epoch_decay": 0.9}, "--epoch-decay requires --schedule exponential, got cosine"),
        ({"mixup": -0.1}, "--mixup must be 0 \\(none\\) or from 1e-30 to 1e\\+30, got -0.1"),
        ({"rand_augment": 17}, "--rand-augment must be from 0 to 16, got 17"),
        (
            {"rand_augment": 2, "rand_augment_magnitude": 31.0},
            "--rand-augment-magnitude must be from 0 to 30, got 31.0",
        ),
        ({"rand_augment_magnitude": 5.0}, "--rand-augment-magnitude requires --rand-augment 1 or more, got 0"),
        ({"images": 15}, "--images 15 is less than one batch of 16; use 16 or more"),
        ({"backbone_learning_rate": 0.0}, "--backbone-learning-rate must be greater than 0"),
        (
            {"freeze": "backbone", "backbone_learning_rate": 0.1},
            "--freeze backbone does not train the backbone; remove --backbone-learning-rate",
        ),
    ],
)
def test_values_that_no_run_has(change, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(RECIPE, **change)


def test_a_batch_must_fit_the_training_set():
    assert Recipe(3, 16, 0.1).steps(70) == 12
    with pytest.raises(UserError, match="--batch-size 16 exceeds the 15 images"):
        Recipe(3, 16, 0.1).steps(15)


def test_a_run_that_never_ends_is_refused():
    with pytest.raises(
        UserError, match="^--epochs 10000000000 is 40,000,000,000 steps, but a run has at most 50,000,000$"
    ):
        Recipe(10**10, 16, 0.1).steps(70)
    with pytest.raises(UserError, match="^--images 10000000000000 is 625,000,000,000 steps, but a run has"):
        dataclasses.replace(RECIPE, images=10**13).steps(70)


def test_a_length_may_be_given_in_images():
    assert dataclasses.replace(RECIPE, images=100).steps(70) == 6


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.5), (100, 0.9), (1000, 0.99), (10**6, 0.999)])
def test_batch_norm_momentum_suits_the_length_of_the_run(steps, momentum):
    assert batch_norm_momentum(steps) == pytest.approx(momentum)
    assert RECIPE.norm_momentum(steps) == batch_norm_momentum(steps)
    assert RECIPES["paper"].norm_momentum(steps) == 0.997


@pytest.mark.parametrize(
    ("steps", "evaluations", "expected"),
    [(60, 3, {20, 40, 60}), (7, 2, {4, 7}), (2, 5, {1, 2}), (2, 10**9, {1, 2}), (5, 1, {5})],
)
def test_a_run_is_evaluated_at_equal_distances_and_at_its_end(steps, evaluations, expected):
    assert evaluation_steps(steps, evaluations) == expected


def test_some_fifty_records_a_run():
    assert [log_interval(steps) for steps in (1, 99, 100, 5000)] == [1, 1, 2, 100]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": 0}, "--keep must be 1 or more, got 0"),
        ({"log_every": 0}, "--log-every must be 1 or more"),
        ({"checkpoint_every": -1}, "--checkpoint-every must be 1 or more"),
        ({"profile": "3"}, "--profile must be two steps, FIRST:LAST, got '3'"),
        ({"profile": "5:4"}, "--profile must be FIRST:LAST with 1 <= FIRST <= LAST, got 5:4"),
    ],
)
def test_executions_that_there_are_none_of(options, says):
    with pytest.raises(UserError, match=says):
        Execution(**options)


# --- Runs ------------------------------------------------------------------------------------------------


def run_of(**changes):
    return Run(**{"dataset": "digits", "model": {"name": "mobilenet_v2"}, "training": RECIPE, **changes})


def test_runs_with_the_same_settings_are_the_same_run():
    settings = run_of(seed=3).settings()
    assert json.loads(json.dumps(settings)) == settings
    assert {"dataset": "digits", "seed": 3, "name": "mobilenet_v2", "batch_size": 16, "weights": None}.items() <= (
        settings.items()
    )
    assert run_of(seed=3, weights="x").settings() != settings
    with pytest.raises(UserError, match=r"--seed must be from 0 to 2\^31 - 1, got -1"):
        run_of(seed=-1)


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"freeze": "backbone"}, "--freeze"),
        ({"backbone_learning_rate": 0.1}, "--backbone-learning-rate"),
        ({"frozen_batch_norm": True}, "--frozen-batch-norm"),
    ],
)
def test_what_is_done_to_trained_weights_needs_some(change, flag):
    training = dataclasses.replace(RECIPE, **change)
    assert run_of(training=training, weights="x").training == training
    with pytest.raises(UserError, match=f"{flag} requires trained weights; set --weights"):
        run_of(training=training)


def test_flags_are_listed_without_jax():
    code = "import sys; import mnv2_jax.training.config; assert not {'jax', 'numpy', 'flax'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_newer_settings_are_those_of_a_run_where_they_are_not_the_default():
    """This lets runs of earlier versions resume."""
    newer = {"mixup", "rand_augment", "rand_augment_magnitude"}
    assert RECIPE.settings().keys() == {field.name for field in dataclasses.fields(Recipe)} - newer
    training = dataclasses.replace(RECIPE, mixup=0.2, rand_augment=2)
    settings = run_of(training=training).settings()
    assert (settings["mixup"], settings["rand_augment"], "rand_augment_magnitude" in settings) == (0.2, 2, False)


def test_whether_photographs_are_turned_is_a_setting_of_a_run_where_they_are_not():
    """Settings of earlier versions do not have it."""
    applied, ignored = (Run("x", {}, RECIPES["small"], exif_orientation=how).settings() for how in ("apply", "ignore"))
    assert "exif_orientation" not in applied
    assert ignored["exif_orientation"] == "ignore"
