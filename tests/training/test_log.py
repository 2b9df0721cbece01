"""Where records go: JSON lines, which a resumed run truncates after its checkpoint, TensorBoard, and the terminal."""

import contextlib
import dataclasses
import io

import pytest
from rich.console import Console

from mnv2_jax.tasks.classification import Classification
from mnv2_jax.training.log import Log
from mnv2_jax.training.metrics import Record, read_records, write_records
from mnv2_jax.training.progress import Reporter

METRICS = {"loss": 0.25, "accuracy": 0.75}


def record(arm, step, split="train", seed=0):
    return Record(arm, seed, step, split, 1.5, METRICS, 160, 99.0 if split == "train" else None)


@pytest.fixture
def reporter():
    found = Reporter(Console(file=io.StringIO(), width=200))
    found.expect(20, Classification.metric)
    found.begin("a seed 0", 20, 0)
    return found


@contextlib.contextmanager
def opened(path, reporter, step, runs=("a", "b"), board=None):
    log = Log(path, {(arm, 0): board and board / arm for arm in runs}, reporter)
    with contextlib.closing(log):
        log.start_from(step)
        yield log


def test_records_behind_the_step_are_made_again_and_those_of_other_runs_stay(tmp_path, reporter):
    path = tmp_path / "metrics.jsonl"
    known = [record("a", 5), record("c", 20), record("b", 5, "validation"), record("a", 10), record("a", 5, "test")]
    write_records(path, [*known, record("a", 20, seed=1)])
    with opened(path, reporter, 5) as log:
        assert log.has("validation", 5)
        assert not log.has("validation", 10)
        log.write(record("a", 11))
        # Records of other runs are not the group's.
        assert log.records == [known[0], known[2], record("a", 11)]
    assert read_records(path) == [known[1], record("a", 20, seed=1), known[0], known[2], record("a", 11)]


def test_a_record_is_on_disk_as_soon_as_it_is_written(tmp_path, reporter):
    with opened(tmp_path / "metrics.jsonl", reporter, 0) as log:
        log.write(record("a", 5))
        assert read_records(tmp_path / "metrics.jsonl") == [record("a", 5)]


def test_tensorboard_has_every_number_of_every_run(tmp_path, reporter):
    runs = {(arm, 0): tmp_path / arm for arm in "ab"}
    log = Log(tmp_path / "metrics.jsonl", {**runs, ("c", 0): None}, reporter)
    with contextlib.closing(log):
        log.start_from(0)
        for arm in "abc":
            log.write(record(arm, 5))
        log.write(record("a", 5, "validation"))
    contents = {}
    for name in "ab":
        (file,) = (tmp_path / name).iterdir()
        contents[name] = file.read_bytes()
    for name in (b"train/loss", b"train/accuracy", b"train/images_per_second"):
        assert name in contents["a"]
        assert name in contents["b"]
    assert b"validation/accuracy" in contents["a"]
    assert b"validation" not in contents["b"]
    assert not (tmp_path / "c").exists()


def test_the_terminal_gets_a_line_a_record(tmp_path, reporter):
    with opened(tmp_path / "metrics.jsonl", reporter, 0) as log:
        log.write(dataclasses.replace(record("a", 5), metrics={**METRICS, "learning_rate": 0.05}))
        log.write(record("a", 10, "validation"))
    train, validation = reporter.console.file.getvalue().splitlines()
    assert train.startswith("step 5/20: loss 0.250  learning rate 5.00e-02  ")
    assert validation == "step 10 validation: loss 0.2500, accuracy 0.7500 (160 images)"
