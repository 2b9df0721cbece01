"""Groups of runs: the same side by side as alone, bitwise resume, and any task."""

import dataclasses
import functools
import io
import shutil
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import MedianDistance, Pointing, pointing_dataset, pointing_stream

from mnv2_jax.errors import Diverged, Preempted, UserError
from mnv2_jax.models.layers import BatchNorm, find_activation
from mnv2_jax.network import tree_digest
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.training import trainer as trainer_module
from mnv2_jax.training.config import Recipe
from mnv2_jax.training.devices import Devices
from mnv2_jax.training.finetune import Start
from mnv2_jax.training.programs import Member
from training.runs import NEVER, compile_programs, results, train

RECIPE = Recipe(epochs=1, batch_size=16, learning_rate=0.02, evaluations=2)
LOG = {"log_every": 2}
# Four steps, evaluated after the second and fourth.
PAIR = (Member("a", 3), Member("b", 5))


class Small(nn.Module):
    """A user-defined network that is not a `Backbone` and knows nothing of classes."""

    outputs: int
    batch_norm_axis: str | None = None
    bottleneck_activation: Any = "linear"

    @nn.compact
    def __call__(self, images, train=False, index=None):
        x = nn.Conv(4, (3, 3), (2, 2), use_bias=False)(images)
        x = BatchNorm(momentum=0.9, axis_name=self.batch_norm_axis)(x, train)
        x = find_activation(self.bottleneck_activation)(x)
        return nn.Dense(self.outputs)(x.reshape(len(x), -1))


@dataclasses.dataclass(frozen=True)
class Watched(Classification):
    """Classification with a sum over pixels that differs if any pixel of any image does."""

    def zeros(self):
        return {**super().zeros(), "pixels": np.zeros((), np.float32)}

    def sums(self, outputs, batch, train):
        weights = jnp.arange(batch.images[0].size).reshape(batch.images.shape[1:])
        pixels = jnp.sum(batch.images * weights, axis=(1, 2, 3)) * batch.weights
        return {**super().sums(outputs, batch, train), "pixels": jnp.sum(pixels)}

    def metrics(self, sums):
        return {**super().metrics(sums), "pixels": float(sums["pixels"])}


@pytest.fixture(scope="module")
def compiled(tiny):
    """Return a cached function that compiles programs for a number of runs, one device each."""

    @functools.cache
    def of(runs, activation="linear", **learner):
        recipe = dataclasses.replace(RECIPE, learning_rate=learner.pop("learning_rate", RECIPE.learning_rate))
        network = Small(10, bottleneck_activation=activation)
        return compile_programs(network, Watched(10), tiny, recipe, Devices.create(runs, 1), **learner)

    return of


@pytest.fixture(scope="module")
def whole(compiled, tiny, tmp_path_factory):
    """Train the pair of runs without a stop."""
    return train(compiled(2), tiny, RECIPE, PAIR, tmp_path_factory.mktemp("pair"), LOG, tested=True)


# --- Runs side by side -----------------------------------------------------------------------------------


def test_runs_side_by_side_are_what_they_are_alone(compiled, tiny, whole, tmp_path):
    for member in PAIR:
        folder = tmp_path / member.arm
        alone = train(compiled(1), tiny, RECIPE, [member], folder, LOG, tested=True, save_seconds=NEVER)
        together = [record for record in whole.records if record.arm == member.arm]
        for one, other in zip(alone.records, together, strict=True):
            assert (one.step, one.split, one.images) == (other.step, other.split, other.images)
            assert one.metrics == pytest.approx(other.metrics, rel=1e-5)
    losses = {record.arm: record.metrics["loss"] for record in whole.records}
    assert losses["a"] != losses["b"]


def test_all_that_is_measured_is_recorded_in_order(whole):
    expected = [(2, "train", 32), (2, "validation", 30), (4, "train", 32), (4, "validation", 30), (4, "test", 50)]
    for member in PAIR:
        own = [record for record in whole.records if (record.arm, record.seed) == member[:2]]
        assert [(record.step, record.split, record.images) for record in own] == expected
        assert {"loss", "accuracy", "top5_accuracy", "pixels"} == set(own[0].metrics)
        seconds = [record.wall_seconds for record in own]
        assert seconds == sorted(seconds)
        assert [record.images_per_second is not None for record in own] == [True, False, True, False, False]


def test_runs_that_share_a_program_are_those_that_have_their_own(compiled, tiny, whole, tmp_path):
    """Two activations and learning rates in one program, compared with each network compiled alone."""
    shared = compiled(2, activations=("linear", "relu6"), rated=True)
    members = (Member("linear", 3), Member("relu6", 3, rate=0.5, choice=1))
    rates = np.array([0.1, 0.2, 0.3, 0.4])
    together = train(shared, tiny, RECIPE, members, tmp_path / "both", LOG, rates=rates, save_seconds=NEVER)
    of_relu6 = compiled(1, "relu6", learning_rate=RECIPE.learning_rate / 2)
    alone = train(of_relu6, tiny, RECIPE, [Member("relu6", 3)], tmp_path / "alone", LOG, save_seconds=NEVER)
    for arm, expected in (("linear", whole.records), ("relu6", alone.records)):
        own = [record for record in together.records if record.arm == arm]
        for record in own:
            (other,) = (e for e in expected if (e.seed, e.step, e.split) == (3, record.step, record.split))
            metrics = {name: value for name, value in record.metrics.items() if name != "learning_rate"}
            assert metrics == pytest.approx(other.metrics, rel=1e-5)
        factor = {"linear": 1, "relu6": 0.5}[arm]
        logged = [record.metrics["learning_rate"] for record in own if record.split == "train"]
        assert logged == pytest.approx([factor * 0.2, factor * 0.4])
    assert len({record.metrics["loss"] for record in together.records if record.step == 4}) == 4


def test_arms_are_paired_by_seed(compiled, tiny, tmp_path):
    """Another activation does not change the initial weights and images of a seed."""
    shared = compiled(2, activations=("linear", "relu6"), rated=True)
    members = (Member("linear", 7), Member("relu6", 7, choice=1))
    state = jax.device_get(shared.start(members))
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf[0], leaf[1]), (state.params, state.batch_stats))
    found = train(shared, tiny, RECIPE, members, tmp_path, {"log_every": 1}, save_seconds=NEVER).records
    pixels = {arm: [r.metrics["pixels"] for r in found if r.arm == arm and r.split == "train"] for arm, *_ in members}
    assert pixels["linear"] == pixels["relu6"]
    assert len(set(pixels["linear"])) == 4


def test_a_run_that_fills_up_the_group_is_recorded_once(compiled, tiny, whole, tmp_path):
    found = train(compiled(2), tiny, RECIPE, PAIR[:1] * 2, tmp_path, LOG, tested=True, save_seconds=NEVER)
    assert results(found.records) == [result for result in results(whole.records) if result[0] == "a"]


# --- The loop --------------------------------------------------------------------------------------------


def wrapped(programs, before=lambda: None, after=lambda state, totals: totals):
    """Return programs whose training step calls `before` and `after`."""

    def step(state, totals, value):
        before()
        state, totals, token = programs.train(state, totals, value)
        return state, after(state, totals), token

    return dataclasses.replace(programs, train=step)


def test_a_loss_that_is_no_number_stops_the_runs_and_names_the_step(compiled, tiny, whole, tmp_path):
    """Here in the second run's third step; records of the first two steps are written before."""

    def broken(state, totals):
        bad = (np.asarray(state.step) >= 3) & np.array([False, True])
        return {**totals, "finite_steps": totals["finite_steps"] - bad.astype(np.float32)}

    says = "the loss of step 3 is not finite; use a smaller --learning-rate"
    with pytest.raises(Diverged, match=says) as error:
        train(wrapped(compiled(2), after=broken), tiny, RECIPE, PAIR, tmp_path, LOG, save_seconds=NEVER)
    assert error.value.runs == (1,)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len([record for record in whole.records if record.step == 2])


def test_one_compilation_a_run(compiled, tiny, tmp_path):
    """Nothing is compiled once the steps begin."""
    began, heard = [], []
    programs = wrapped(compiled(2), before=lambda: began.append(True))
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: heard.append(name) if began and "compile" in name else None
    )
    try:
        train(programs, tiny, RECIPE, PAIR, tmp_path, {"log_every": 1}, save_seconds=NEVER)
    finally:
        jax.monitoring.clear_event_listeners()
    assert len(began) == 4
    assert heard == []


def test_the_devices_are_waited_for_at_the_end_of_an_interval_only(compiled, tiny, monkeypatch, tmp_path):
    """Metrics of an interval are fetched after the next interval has been dispatched."""
    happened = []
    fetch = trainer_module.fetch
    monkeypatch.setattr(trainer_module, "fetch", lambda totals: happened.append("fetch") or fetch(totals))
    wait = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda tree: happened.append("wait") or wait(tree))
    programs = wrapped(compiled(2), before=lambda: happened.append("step"))
    recipe = dataclasses.replace(RECIPE, epochs=2, evaluations=1)
    train(programs, tiny, recipe, PAIR, tmp_path, {"log_every": 3}, save_seconds=NEVER)
    # Steps 1-3 are fetched after step 6; 4-6 and 7-8 at the end. "wait" is for the initial states, before step 1.
    assert happened == ["wait"] + ["step"] * 6 + ["fetch"] + ["step"] * 2 + ["fetch"] * 2


# --- Stopped and continued -------------------------------------------------------------------------------


def at(step):
    return lambda done: done == step


@pytest.mark.parametrize("step", [2, 3])
def test_a_group_that_was_stopped_is_the_one_that_was_not(compiled, tiny, whole, tmp_path, step):
    """If stopped at a step with an evaluation, the state is saved first, and evaluated on resume."""
    with pytest.raises(Preempted, match=f"saved after step {step}; run the same command to resume"):
        train(compiled(2), tiny, RECIPE, PAIR, tmp_path, LOG, should_stop=at(step))
    said = io.StringIO()
    found = train(compiled(2), tiny, RECIPE, PAIR, tmp_path, LOG, tested=True, said=said)
    assert f"resuming from step {step}" in said.getvalue()
    assert tree_digest(found.state) == tree_digest(whole.state)
    evaluated = [result for result in results(whole.records) if result[3] != "train"]
    assert [result for result in results(found.records) if result[3] != "train"] == evaluated


def test_where_results_come_soon_the_state_is_saved_seldom(compiled, tiny, tmp_path):
    """Each evaluation saves a checkpoint unless the last is more recent than `save_seconds`; then the end has none."""
    for folder, seconds, expected in (("often", 0.0, {2, 4}), ("seldom", 1e-6, {2}), ("never", NEVER, set())):
        train(compiled(2), tiny, RECIPE, PAIR, tmp_path / folder, LOG, save_seconds=seconds)
        assert {int(path.name) for path in (tmp_path / folder / "checkpoints").iterdir()} == expected


def damage(checkpoints):
    for path in checkpoints.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def test_runs_whose_checkpoint_cannot_be_read_start_from_their_beginning(compiled, tiny, whole, tmp_path):
    """This holds if checkpoints are disposable, as in studies. Otherwise it raises, and nothing is lost."""
    with pytest.raises(Preempted):
        train(compiled(2), tiny, RECIPE, PAIR, tmp_path / "runs", LOG, should_stop=at(3))
    damage(tmp_path / "runs" / "checkpoints" / "3")
    shutil.copytree(tmp_path / "runs", tmp_path / "kept")
    damage(tmp_path / "kept" / "checkpoints" / "2")
    with pytest.raises(UserError, match=r"none of the checkpoints in .* \(steps 3, 2\) can be read") as error:
        train(compiled(2), tiny, RECIPE, PAIR, tmp_path / "kept", LOG)
    assert "\n" not in str(error.value)
    assert {path.name for path in (tmp_path / "kept" / "checkpoints").iterdir()} == {"2", "3"}

    said = io.StringIO()
    found = train(compiled(2), tiny, RECIPE, PAIR, tmp_path / "kept", LOG, disposable=True, tested=True, said=said)
    words = " ".join(said.getvalue().split())  # without the console's line breaks
    assert "can be read" in words
    assert "these runs start over" in words
    assert "resuming" not in words
    assert results(found.records) == results(whole.records)
    assert tree_digest(found.state) == tree_digest(whole.state)
    names = {path.name for path in (tmp_path / "kept" / "checkpoints").iterdir()}
    assert names == {"2", "4", "damaged-2", "damaged-3"}


def test_one_damaged_checkpoint_is_no_beginning_where_another_can_be_read(compiled, tiny, whole, tmp_path):
    with pytest.raises(Preempted):
        train(compiled(2), tiny, RECIPE, PAIR, tmp_path, LOG, should_stop=at(3))
    damage(tmp_path / "checkpoints" / "3")
    said = io.StringIO()
    found = train(compiled(2), tiny, RECIPE, PAIR, tmp_path, LOG, disposable=True, said=said)
    assert "the checkpoint of step 3 cannot be read" in said.getvalue()
    assert "resuming from step 2" in said.getvalue()
    assert tree_digest(found.state) == tree_digest(whole.state)


def test_of_two_runs_one_starts_from_weights(compiled, tiny, whole, tmp_path):
    """The other run is not affected, and both resume correctly."""
    given = jax.tree.map(lambda leaf: leaf[0] + 0.25, jax.device_get(whole.state.variables()))
    start = Start(given, ())
    members = (PAIR[0]._replace(started=True), PAIR[1]._replace(started=False))
    before = tree_digest(start.variables)
    found = train(compiled(2), tiny, RECIPE, members, tmp_path / "whole", LOG, start=start)
    assert tree_digest(start.variables) == before
    own = [[result for result in results(records) if result[0] == "b"] for records in (found.records, whole.records)]
    assert own[0] == [result for result in own[1] if result[3] != "test"]

    state = start.overlay(compiled(2).start(members), compiled(2).learner, compiled(2).devices, [True, False])
    fresh = jax.device_get(compiled(2).start(members))
    for index, expected in enumerate([given, jax.tree.map(lambda leaf: leaf[1], fresh.variables())]):
        jax.tree.map(lambda leaf, e, i=index: np.testing.assert_array_equal(leaf[i], e), state.variables(), expected)

    with pytest.raises(Preempted):
        train(compiled(2), tiny, RECIPE, members, tmp_path / "stopped", LOG, start=start, should_stop=at(1))
    again = train(compiled(2), tiny, RECIPE, members, tmp_path / "stopped", LOG, start=start)
    assert tree_digest(again.state) == tree_digest(found.state)


def test_weights_are_there_for_the_next_runs_too(compiled, tiny, whole, tmp_path):
    """A step reuses the memory of the state, but not that of the initial weights."""
    start = Start(jax.tree.map(lambda leaf: np.asarray(leaf[0]), whole.state.variables()), ())
    before = tree_digest(start.variables)
    states = [
        train(compiled(1), tiny, RECIPE, PAIR[:1], tmp_path / name, LOG, start=start, save_seconds=NEVER).state
        for name in "xy"
    ]
    assert tree_digest(states[0]) == tree_digest(states[1])
    assert tree_digest(start.variables) == before


def test_steps_are_profiled_as_asked(compiled, tiny, tmp_path):
    execution = {**LOG, "profile": "2:3"}
    train(compiled(2), tiny, RECIPE, PAIR, tmp_path, execution, trace=tmp_path / "trace", save_seconds=NEVER)
    assert [path for path in (tmp_path / "trace").rglob("*") if path.is_file()]


# --- Any task --------------------------------------------------------------------------------------------


class Recording(MedianDistance):
    """Keeps the batches that it is given."""

    def __init__(self):
        self.batches = []

    def metrics(self, batches):
        self.batches = list(batches)
        return super().metrics(self.batches)


@dataclasses.dataclass(frozen=True)
class PointingAndMoments(Pointing):
    """Pointing with a matrix among its sums: the products of the coordinates' errors."""

    evaluator: Recording = dataclasses.field(default_factory=Recording)

    def zeros(self):
        return {**super().zeros(), "moments": np.zeros((2, 2), np.float32)}

    def sums(self, outputs, batch, train):
        errors = (outputs - batch.targets) * batch.weights[:, None]
        return {**super().sums(outputs, batch, train), "moments": errors.T @ errors}

    def metrics(self, sums):
        moments = np.asarray(sums["moments"]) / sums["examples"]
        return {**super().metrics(sums), "trace": float(np.trace(moments)), "mixed": float(moments[0, 1])}


POINT = (Member("p", 1),)
POINTING = dataclasses.replace(RECIPE, epochs=2, learning_rate=0.002, batch_size=16)


@pytest.fixture(scope="module")
def pointing():
    return pointing_dataset()


@pytest.fixture(scope="module")
def pointer(pointing):
    """Return programs for a number of devices."""

    @functools.cache
    def of(count, parallel="jit"):
        devices = Devices.create(1, count, parallel)
        return compile_programs(Small(2, "data", "relu6"), PointingAndMoments(), pointing, POINTING, devices)

    return of


@pytest.fixture(scope="module")
def pointed(pointing, pointer, tmp_path_factory):
    """Return a cached function that trains on given devices; its evaluator's test batches come second."""

    @functools.cache
    def of(*on):
        folder = tmp_path_factory.mktemp("pointing")
        found = train(pointer(*on), pointing, POINTING, POINT, folder, tested=True, save_seconds=NEVER)
        return found, pointer(*on).learner.task.evaluator.batches

    return of


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_a_task_that_is_no_classification_whatever_the_devices(pointed, parallel):
    """Parameters agree, and metrics from sums, from a matrix, and from the evaluator."""
    (one, _), (eight, _) = pointed(1), pointed(8, parallel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), one.state.params, eight.state.params)
    assert [record[:4] for record in results(one.records)] == [record[:4] for record in results(eight.records)]
    for ours, theirs in zip(one.records, eight.records, strict=True):
        assert theirs.metrics == pytest.approx(ours.metrics, rel=1e-4)
    assert one.records[0].metrics["loss"] > one.records[-1].metrics["loss"]


def test_mixup_is_the_same_whatever_the_devices(pointing, tmp_path):
    """For any task, here with two numbers as target."""
    recipe = dataclasses.replace(POINTING, epochs=1, mixup=1.0)
    runs = []
    for count in (1, 8):
        devices = Devices.create(1, count)
        programs = compile_programs(Small(2, "data", "relu6"), Pointing(), pointing, recipe, devices, mixup=1.0)
        runs.append(train(programs, pointing, recipe, POINT, tmp_path / str(count), save_seconds=NEVER))
    one, eight = runs
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), one.state.params, eight.state.params)
    for ours, theirs in zip(one.records, eight.records, strict=True):
        assert (ours.step, ours.split, ours.images) == (theirs.step, theirs.split, theirs.images)
        assert theirs.metrics == pytest.approx(ours.metrics, rel=1e-4)


@pytest.mark.parametrize("devices", [1, 8])
def test_metrics_of_any_task_are_those_computed_by_hand(pointed, pointing, devices):
    found, batches = pointed(devices)
    images, points = pointing.normalization(pointing.test.images), pointing.test.targets
    variables = jax.tree.map(lambda leaf: np.asarray(leaf)[0], found.state.variables())
    errors = np.asarray(Small(2, bottleneck_activation="relu6").apply(variables, images)) - points
    distances = np.linalg.norm(errors, axis=1)
    moments = errors.T @ errors / 30
    (test,) = (record for record in found.records if record.split == "test")
    assert test.images == 30
    expected = {
        "loss": (errors**2).mean(),
        "distance": distances.mean(),
        "row_error": np.abs(errors[:, 0]).mean(),
        "column_error": np.abs(errors[:, 1]).mean(),
        "trace": np.trace(moments),
        "mixed": moments[0, 1],
        "median_distance": np.median(distances),
    }
    assert test.metrics == pytest.approx(expected, rel=1e-4)
    # The evaluator gets each example once, in order, and can tell padding by its weights.
    outputs, targets, weights = (np.concatenate(leaves) for leaves in zip(*batches, strict=True))
    np.testing.assert_array_equal(targets[weights == 1], points)
    np.testing.assert_allclose(outputs[weights == 1], errors + points, atol=1e-4)
    assert len(weights) == 256 > weights.sum() == 30
    # Training records have no metrics of an evaluator.
    assert not [record for record in found.records if record.split == "train" and "median_distance" in record.metrics]


def test_another_number_of_devices_continues(pointed, pointing, pointer, tmp_path):
    """Eight devices with `pmap`, then one, then eight with `jit`: the same run up to the order of sums."""
    for step, on in ((3, (8, "pmap")), (6, (1,))):
        with pytest.raises(Preempted, match=f"saved after step {step}"):
            train(pointer(*on), pointing, POINTING, POINT, tmp_path, should_stop=at(step))
    found = train(pointer(8), pointing, POINTING, POINT, tmp_path, tested=True)
    whole, _ = pointed(1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found.state.params, whole.state.params
    )
    assert found.records[-1].metrics == pytest.approx(whole.records[-1].metrics, rel=1e-4)


def test_a_stream_continues_where_it_was(tmp_path):
    """The data position is saved with the state, so no image is repeated or skipped."""
    dataset = pointing_stream(tmp_path / "images")
    recipe = dataclasses.replace(POINTING, batch_size=8)
    programs = compile_programs(Small(2, "data", "relu6"), Pointing(), dataset, recipe, Devices.create(1, 2))
    whole = train(programs, dataset, recipe, POINT, tmp_path / "whole", tested=True)
    with pytest.raises(Preempted):
        train(programs, dataset, recipe, POINT, tmp_path / "run", should_stop=at(5))
    found = train(programs, dataset, recipe, POINT, tmp_path / "run", tested=True)
    assert tree_digest(found.state) == tree_digest(whole.state)
    assert results(found.records) == results(whole.records)


# --- Refused ---------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_traced(tiny):
    with pytest.raises(UserError, match="--batch-size 16 is not divisible by 3 devices; use 15"):
        compile_programs(Small(10), Watched(10), tiny, RECIPE, Devices.create(1, 3))
