"""Runs and their folders: a stopped and resumed run is bitwise the run that was never stopped."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from mnv2_jax.errors import Preempted, UserError
from mnv2_jax.network import open_network, tree_digest
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.training.checkpoint import RunCheckpoints
from mnv2_jax.training.evaluation import evaluate_network
from mnv2_jax.training.finetune import open_trained
from mnv2_jax.training.metrics import read_records
from mnv2_jax.training.run import too_short
from mnv2_jax.training.trainer import Trainer
from training.runs import LONG, STEPS, open_once, results, run_tiny, tiny_run

HERE = Path(__file__).parent
UNRAISABLE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _data(digits):
    """Make sure that digits are prepared."""


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """Train a run without a stop; return (folder, summary, printed text)."""
    folder, log = tmp_path_factory.mktemp("whole") / "run", io.StringIO()
    return folder, run_tiny(folder, log=log, drawn=True), log.getvalue()


@pytest.fixture(scope="module")
def stopped(digits, tmp_path_factory):
    """Return the folder of a run that was ended early, with checkpoints of steps 8 and 16."""
    folder = tmp_path_factory.mktemp("stopped") / "run"

    class Stop(BaseException):
        pass

    evaluate = Trainer.evaluate

    def stop(self, state, split):
        if int(state.step[0]) == STEPS:
            raise Stop
        return evaluate(self, state, split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "evaluate", stop)
        with pytest.raises(Stop):
            run_tiny(folder)
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"8", "16"}
    return folder


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "copy")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results_in(folder):
    return results(read_records(folder / "metrics.jsonl"))


# --- What a run leaves -----------------------------------------------------------------------------------


def test_a_run_leaves_its_files(whole):
    folder, summary, _ = whole
    names = {"config.json", "metrics.jsonl", "checkpoints", "network", "best_network", "summary.json", "tensorboard"}
    assert {path.name for path in folder.iterdir()} == names | {"figure.png"}
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["settings"] == json.loads((folder / "config.json").read_text())
    assert summary["settings"].items() >= json.loads(json.dumps(tiny_run().settings())).items()
    assert (summary["steps"], summary["train_images"], summary["test"]["examples"]) == (STEPS, 96, 454)
    records = read_records(folder / "metrics.jsonl")
    assert [(r.step, r.split) for r in records if r.split != "train"] == [
        *((step, "validation") for step in (8, 16, 24)),
        (24, "test"),
    ]
    assert [r.step for r in records if r.split == "train"] == [7, 8, 14, 16, 21, 24]
    assert {"loss", "accuracy", "top5_accuracy", "learning_rate"} == set(records[0].metrics)
    assert records[-1].metrics == {name: value for name, value in summary["test"].items() if name != "examples"}


def test_a_run_learns(whole):
    losses = [record.metrics["loss"] for record in read_records(whole[0] / "metrics.jsonl") if record.split == "train"]
    assert losses[-1] < 0.8 * losses[0]


def test_the_network_that_a_run_leaves_is_the_average(whole):
    network = open_network(whole[0] / "network")
    checkpoints = RunCheckpoints(whole[0] / "checkpoints", read_only=True)
    state = checkpoints.restore().state
    checkpoints.close()
    own = jax.tree.map(lambda leaf: leaf[0], state)
    assert tree_digest(network.variables["params"]) == tree_digest(own["ema"]) != tree_digest(own["params"])
    assert tree_digest(network.variables["batch_stats"]) == tree_digest(own["batch_stats"])
    assert (network.preprocessing, network.resolution, network.image_channels) == ("keras", 12, 1)


def test_a_run_keeps_the_network_that_was_best_on_the_validation_split(whole):
    """The first of equally good ones. It is a network like any other, and knows the run's data."""
    folder, summary, log = whole
    scores = {r.step: r.metrics for r in read_records(folder / "metrics.jsonl") if r.split == "validation"}
    step = max(scores, key=lambda step: (scores[step]["accuracy"], -step))
    best = {name: value for name, value in summary["best"]["validation"].items() if name != "examples"}
    assert (summary["best"]["step"], best) == (step, scores[step])
    assert f"best on the validation split: accuracy {100 * best['accuracy']:.2f} % at step {step}" in log
    network, settings, _ = open_trained(folder / "best_network")
    assert settings["train_images"] == 96
    dataset = open_once(tiny_run())
    assert evaluate_network(network, dataset, "validation")["accuracy"] == pytest.approx(best["accuracy"])


@pytest.mark.parametrize(
    ("steps", "accuracy", "classes", "said"),
    [
        (18, 0.2, 10, True),
        (18, 0.9, 10, False),
        (5000, 0.11, 10, True),
        (5000, 0.3, 10, False),
        (5000, 0.01, 1000, False),
        (5000, 0.52, 2, True),
    ],
)
def test_a_run_that_is_too_short_to_learn_is_called_a_smoke_test(steps, accuracy, classes, said):
    line = too_short(steps, Classification.metric, accuracy, classes)
    assert (line is not None) == said
    if line is not None:
        assert line.startswith(f"{steps:,} steps are only a smoke test: test accuracy {100 * accuracy:.2f} % (chance: ")


def test_what_is_printed_is_a_line_each(whole):
    lines = whole[2].splitlines()
    assert lines[0] == "compiling for 2 devices (cpu)"
    assert lines[1].startswith("compiled in ")
    assert [line.split(":")[0] for line in lines if " validation: " in line or line.startswith("step 24 test")] == [
        "step 8 validation",
        "step 16 validation",
        "step 24 validation",
        "step 24 test",
    ]


def test_a_finished_run_is_not_repeated(whole):
    log, before = io.StringIO(), contents(whole[0])
    assert run_tiny(whole[0], log=log) == whole[1]
    assert "already finished" in log.getvalue()
    assert contents(whole[0]) == before


def test_a_finished_run_s_damaged_summary_is_named(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "x")
    (folder / "summary.json").write_text('{"steps": 24, "test": {"loss": 1}}')
    with pytest.raises(
        UserError, match=r"summary.json is damaged \(accuracy is missing in test\); remove it and run the"
    ):
        run_tiny(folder)


# --- Stopped ---------------------------------------------------------------------------------------------


def test_a_run_continues_where_it_stopped(copy, whole):
    log = io.StringIO()
    found = run_tiny(copy, log=log)
    assert "resuming from step 16" in log.getvalue()
    assert found["parameters_sha256"] == whole[1]["parameters_sha256"]
    assert found["test"] == whole[1]["test"]
    assert found["best"] == whole[1]["best"]
    assert results_in(copy) == results_in(whole[0])


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_the_step_and_ends(whole, tmp_path):
    """The signal comes during training. Settings of execution for the rest change no result."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="SIGTERM: saved after step 1; run the same command to resume"):
        run_tiny(tmp_path / "run", on_start=terminate)
    assert signal.getsignal(signal.SIGTERM) == before
    log = io.StringIO()
    seldom = {"log_every": 24, "checkpoint_every": 5, "keep": 1, "keep_every": 10}
    found = run_tiny(tmp_path / "run", log=log, execution=seldom)
    assert "resuming from step 1" in log.getvalue()
    assert found["parameters_sha256"] == whole[1]["parameters_sha256"]
    assert results_in(tmp_path / "run")[-1] == results_in(whole[0])[-1]
    assert {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()} == {10, 20, 24}


def test_overwrite_starts_from_the_beginning(copy):
    log = io.StringIO()
    with pytest.raises(Preempted, match="saved after step 1"):
        run_tiny(copy, on_start=terminate, log=log, overwrite=True)
    assert "resuming" not in log.getvalue()
    assert {path.name for path in copy.iterdir()} == {"config.json", "metrics.jsonl", "checkpoints", "tensorboard"}
    assert {path.name for path in (copy / "checkpoints").iterdir()} == {"1"}
    assert [result[2] for result in results_in(copy)] == [1]


def test_an_interrupted_run_says_where_the_same_command_resumes(copy, monkeypatch):
    def interrupt(self, state, split):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "evaluate", interrupt)
    log = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        run_tiny(copy, log=log)
    assert log.getvalue().splitlines()[-1] == "interrupted; run the same command to resume from step 16"


# --- Trained longer --------------------------------------------------------------------------------------

MORE = {"epochs": 8}
"""48 steps."""


@pytest.fixture(scope="module")
def longer(whole, tmp_path_factory):
    """Train the finished run longer without a stop; return (folder, summary, printed text)."""
    folder, log = shutil.copytree(whole[0], tmp_path_factory.mktemp("longer") / "run"), io.StringIO()
    return folder, run_tiny(folder, log=log, training=MORE), log.getvalue()


def test_a_finished_run_is_trained_longer_from_its_weights(whole, longer):
    folder, summary, log = longer
    assert (
        "training longer: the finished run of 24 steps resumes from its weights, up to step 48; the learning rate"
        in log
    )
    assert "resuming from step 24" in log
    (before,) = summary["shorter_runs"]
    expected = {"epochs": 4, "images": None, **{name: whole[1][name] for name in ("steps", "test", "best")}}
    assert before == {**expected, "parameters_sha256": whole[1]["parameters_sha256"]}
    assert (summary["steps"], summary["settings"]["epochs"]) == (48, 8)
    records = results_in(folder)
    # Earlier records stay, except those of the test split, which is evaluated again at the end.
    assert [r for r in records if r[2] <= 24] == [r for r in results_in(whole[0]) if r[3] != "test"]
    assert [r[2] for r in records if r[3] != "train"] == [8, 16, 24, 32, 48, 48]
    rates = {r[2]: r[4]["learning_rate"] for r in records if r[3] == "train"}
    assert rates[28] > 50 * rates[24]
    assert rates[48] < rates[28]
    # It counts as finished, and no longer as the shorter run.
    assert run_tiny(folder, training=MORE) == summary
    with pytest.raises(UserError, match="contains another run: epochs is 8 there and 4 here"):
        run_tiny(folder)


def test_a_longer_run_that_was_stopped_is_the_one_that_was_not(whole, longer, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    with pytest.raises(Preempted, match="saved after step 25"):
        run_tiny(folder, on_start=terminate, training=MORE)
    # Until it ends, it is not finished and cannot be extended further.
    with pytest.raises(UserError, match="contains another run: epochs is 8 there and 12 here"):
        run_tiny(folder, training={"epochs": 12})
    log = io.StringIO()
    found = run_tiny(folder, log=log, training=MORE)
    assert "resuming from step 25" in log.getvalue()
    assert "training longer" not in log.getvalue()
    for name in ("parameters_sha256", "test", "best", "shorter_runs"):
        assert found[name] == longer[1][name]


def test_a_longer_run_never_resumes_from_before_the_end_of_the_shorter_one(longer, tmp_path):
    """Its earlier steps had another schedule."""
    folder = shutil.copytree(longer[0], tmp_path / "run")
    (folder / "summary.json").unlink()
    for checkpoint in (folder / "checkpoints").iterdir():
        checkpoint.rename(folder / "checkpoints" / "8") if checkpoint.name == "48" else shutil.rmtree(checkpoint)
    with pytest.raises(
        UserError, match="has no checkpoint of step 24 or later to train .*; use --overwrite to start over"
    ):
        run_tiny(folder, training=MORE)


def test_only_a_finished_run_is_trained_longer_and_in_nothing_else_another(copy, whole, tmp_path):
    with pytest.raises(UserError, match="contains another run: epochs is 4 there and 8 here"):
        run_tiny(copy, training=MORE)
    for change in ({**MORE, "learning_rate": 0.1}, {"epochs": 2}):
        with pytest.raises(UserError, match="contains another run: "):
            run_tiny(whole[0], training=change)
    folder = shutil.copytree(whole[0], tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "24")
    before = contents(folder)
    with pytest.raises(UserError, match="has no checkpoint of step 24 to train its finished run longer from"):
        run_tiny(folder, training=MORE)
    assert contents(folder) == before


# --- Damaged ---------------------------------------------------------------------------------------------


def largest(checkpoint):
    """Return the largest file, which holds the arrays."""
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@UNRAISABLE
def test_a_damaged_checkpoint_falls_back_to_the_one_before(copy, whole):
    victim = largest(copy / "checkpoints" / "16")
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    log = io.StringIO()
    found = run_tiny(copy, log=log)
    assert (copy / "checkpoints" / "damaged-16").is_dir()
    assert "the checkpoint of step 16 cannot be read" in log.getvalue()
    assert "resuming from the one of step 8" in log.getvalue()
    assert found["parameters_sha256"] == whole[1]["parameters_sha256"]
    assert results_in(copy) == results_in(whole[0])


@UNRAISABLE
def test_where_no_checkpoint_can_be_read_nothing_is_trained_anew(copy):
    for step in ("8", "16"):
        largest(copy / "checkpoints" / step).write_bytes(b"")
    before = contents(copy)
    with pytest.raises(UserError, match=r"none of the checkpoints in .* \(steps 16, 8\) can be read .*--overwrite"):
        run_tiny(copy)
    assert contents(copy) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
@pytest.mark.parametrize("size", [1400, 3000])
def test_a_full_disk_ends_clearly_and_the_last_checkpoint_stays_readable(whole, tmp_path, size):
    """The disk is full at the first checkpoint, or later."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(UserError, match=r"a checkpoint cannot be written to .* MB are free") as error:
            run_tiny(disk / "run", execution={"checkpoint_every": 5, "keep": 10})
        assert "\n" not in str(error.value)
        saved = shutil.copytree(disk / "run", tmp_path / "saved")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert (saved / "checkpoints" / "5").exists() == (size > 1400)
    if size > 1400:
        log = io.StringIO()
        found = run_tiny(saved, log=log)
        assert "resuming from step" in log.getvalue()
        assert found["parameters_sha256"] == whole[1]["parameters_sha256"]


# --- Refused ---------------------------------------------------------------------------------------------


def test_other_data_are_another_run(copy, monkeypatch):
    from mnv2_jax.data.resident import Dataset

    monkeypatch.setattr(Dataset, "fingerprint", lambda self: "other")
    with pytest.raises(UserError, match="contains another run: the images differ from those it was made with; choose"):
        run_tiny(copy)


def test_another_configuration_is_refused_and_nothing_is_lost(copy):
    before = contents(copy)
    with pytest.raises(UserError, match=r"contains another run: learning_rate is 0.05 there and 0.1 here"):
        run_tiny(copy, training={"learning_rate": 0.1})
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"training": {"batch_size": 18}}, "--batch-size 18 is not divisible by 2 devices with 2 microbatches each"),
        ({"training": {"batch_size": 256}}, "--batch-size 256 exceeds the 96 images of the training split"),
        ({"train_images": 9999}, "--train-images must be from 1 to 1209, the number of images"),
        ({"dataset": "nothing"}, "unknown data set 'nothing'"),
        ({"training": {"batch_size": 4, "batch_norm": "replica"}, "resolution": 2}, "over one image of one pixel"),
        (
            {"training": {"epochs": 10**10}},
            "--epochs 10000000000 is 60,000,000,000 steps, but a run has at most 50,000,000",
        ),
        ({"execution": {"profile": "3:25"}}, "--profile ends at step 25, but the run has only 24 steps"),
    ],
)
def test_what_no_run_can_be_is_refused_before_anything_is_written(tmp_path, settings, says):
    with pytest.raises(UserError, match=says):
        run_tiny(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match="--out /proc/mine cannot be written"):
        run_tiny(Path("/proc/mine"))


# --- Killed ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("streamed", "kills"), [(False, 12), (True, 8)], ids=["resident", "stream"])
def test_killed_at_twenty_moments(streamed, kills, tmp_path):
    """With augmentation, dropout, moving average and accumulation; checkpoints at every step, so many are cut off."""
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PYTHONPATH": str(HERE.parent),
    }
    code = "from training.runs import *; run_tiny(Path({!r}), devices=1, streamed={}, training=LONG)"
    once = [sys.executable, "-c", code.format(str(tmp_path / "whole"), streamed)]
    command = [sys.executable, str(HERE / "killed.py"), str(tmp_path), "stream" if streamed else "resident", "0"]
    result = subprocess.run([*command, str(kills)], env=environment, capture_output=True, text=True)
    tries = [json.loads(line) for line in result.stdout.splitlines()]
    assert [entry["code"] for entry in tries] == [-signal.SIGKILL] * kills + [0], (tries, result.stderr[-2000:])
    assert sum(entry.get("saving", False) for entry in tries) >= 2
    result = subprocess.run(once, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found, summary = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "whole"))
    assert found["parameters_sha256"] == summary["parameters_sha256"]
    assert found["test"] == summary["test"]
    logged = {record[2:4]: record for record in results_in(tmp_path / "run")}
    for record in results_in(tmp_path / "whole"):
        if record[3] != "train":
            assert logged[record[2:4]] == record
    assert LONG["epochs"] * 6 == found["steps"]
