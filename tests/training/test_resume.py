"""A run that was stopped is, to the bit, the run that was never stopped."""

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
from training.runs import LONG, STEPS, run_tiny

from mnv2_jax.errors import Preempted, UserError
from mnv2_jax.training.metrics import read_records

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _data(data_dir, digits, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


@pytest.fixture(scope="module")
def whole(data_dir, digits, tmp_path_factory):
    """A run that was never stopped, on one device, resident or streamed, short or long."""
    done = {}

    def of(streamed, training=None):
        key = streamed, training is None
        if key not in done:
            folder = tmp_path_factory.mktemp("whole")
            arguments = f"Path({str(folder)!r}), {streamed}, training={training}"
            code = f"from training.runs import run_tiny; from pathlib import Path; run_tiny({arguments})"
            result = in_a_process(code)
            assert result.returncode == 0, result.stderr
            done[key] = folder, json.loads((folder / "summary.json").read_text())
        return done[key]

    return of


def in_a_process(code):
    """With one device."""
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(HERE.parent)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def without_times(path):
    return [(r.step, r.split, r.metrics, r.images) for r in read_records(path)]


@pytest.mark.slow
@pytest.mark.parametrize(("streamed", "kills"), [(False, 12), (True, 8)], ids=["resident", "stream"])
def test_killed_at_twenty_moments(whole, streamed, kills, tmp_path):
    """Augmentation, dropout, moving average and accumulation on; a checkpoint every step, so that many are cut off."""
    environment = {**os.environ, "XLA_FLAGS": ""}
    command = [
        sys.executable,
        str(HERE / "killed.py"),
        str(tmp_path),
        "stream" if streamed else "resident",
        "0",
        str(kills),
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    tries = [json.loads(line) for line in result.stdout.splitlines()]
    assert [entry["code"] for entry in tries] == [-signal.SIGKILL] * kills + [0], (tries, result.stderr[-2000:])
    assert sum(entry.get("saving", False) for entry in tries) >= 2
    folder, summary = whole(streamed, LONG)
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["parameters_sha256"] == summary["parameters_sha256"]
    assert found["test"] == summary["test"]
    logged = {(record[0], record[1]): record for record in without_times(tmp_path / "run" / "metrics.jsonl")}
    for record in without_times(folder / "metrics.jsonl"):
        if record[1] != "train":
            assert logged[record[0], record[1]] == record


def test_sigterm_saves_the_step_and_ends(tmp_path):
    log = io.StringIO()
    expected = run_tiny(tmp_path / "whole")

    # After the training has begun, and so in the midst of it.
    def terminate():
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted, match="SIGTERM: saved after step 1; the same command goes on from there"):
        run_tiny(tmp_path / "run", on_start=terminate)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    found = run_tiny(tmp_path / "run", log=log)
    assert "going on from step 1" in log.getvalue()
    assert found["parameters_sha256"] == expected["parameters_sha256"]
    assert (
        without_times(tmp_path / "run" / "metrics.jsonl")[-1] == without_times(tmp_path / "whole" / "metrics.jsonl")[-1]
    )


@pytest.fixture(scope="module")
def stopped(data_dir, digits, tmp_path_factory):
    """A run that stopped after step 41, with checkpoints of steps 20 and 40; and the same run whole."""
    folder = tmp_path_factory.mktemp("stopped")
    patch = pytest.MonkeyPatch()

    class Stop(BaseException):
        pass

    from mnv2_jax.training import run as module

    trainer = module._Trainer.evaluate

    def evaluate(self, state, split, step):
        if step == STEPS:
            raise Stop
        return trainer(self, state, split, step)

    patch.setattr(module._Trainer, "evaluate", evaluate)
    with pytest.raises(Stop):
        run_tiny(folder / "run")
    patch.undo()
    summary = run_tiny(folder / "whole")
    assert {path.name for path in (folder / "run" / "checkpoints").iterdir()} == {"20", "40"}
    return folder / "run", summary


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped[0], tmp_path / "copy")


def test_a_run_goes_on_where_it_stopped(copy, stopped):
    log = io.StringIO()
    found = run_tiny(copy, log=log)
    assert "going on from step 40" in log.getvalue()
    assert found["parameters_sha256"] == stopped[1]["parameters_sha256"]
    assert found["test"] == stopped[1]["test"]
    assert run_tiny(copy, log=log) == json.loads(json.dumps(found))
    assert "finished before" in log.getvalue()


def damaged_files(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size > 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["truncated", "deleted"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(copy, stopped, damage):
    """The largest file is where the arrays are."""
    victim = max(damaged_files(copy / "checkpoints" / "40"), key=lambda path: path.stat().st_size)
    if damage == "deleted":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    log = io.StringIO()
    found = run_tiny(copy, log=log)
    assert (copy / "checkpoints" / "damaged-40").is_dir()
    assert "the checkpoint of step 40 cannot be read" in log.getvalue()
    assert "going on from the one of step 20" in log.getvalue()
    assert found["parameters_sha256"] == stopped[1]["parameters_sha256"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_any_file_of_a_checkpoint_may_be_deleted(copy, stopped, tmp_path):
    """Whatever file is gone: the state is the one that was saved, or the one before is taken."""
    from mnv2_jax.training.checkpoint import RunCheckpoints

    files = [path.relative_to(copy) for path in damaged_files(copy / "checkpoints" / "40")]
    assert len(files) >= 4
    good = RunCheckpoints(copy / "checkpoints")
    saved = good.restore()
    good.close()
    assert saved is not None
    for file in files:
        trial = shutil.copytree(copy / "checkpoints", tmp_path / "trial")
        (trial / file.relative_to("checkpoints")).unlink()
        checkpoints = RunCheckpoints(trial)
        found = checkpoints.restore()
        checkpoints.close()
        assert found is not None, file
        step = int(found.state["step"][0])
        assert step in (20, 40), file
        if step == 40:
            assert jax.tree.all(jax.tree.map(lambda one, other: (one == other).all(), found.state, saved.state)), file
        shutil.rmtree(trial)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_no_checkpoint_can_be_read_nothing_is_begun_anew(copy):
    for step in ("20", "40"):
        victim = max(damaged_files(copy / "checkpoints" / step), key=lambda path: path.stat().st_size)
        victim.write_bytes(b"")
    before = {path: path.read_bytes() for path in (copy / "checkpoints").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"none of the checkpoints in .* \(of steps 40, 20\) can be read .*--overwrite"):
        run_tiny(copy)
    assert before == {path: path.read_bytes() for path in (copy / "checkpoints").rglob("*") if path.is_file()}


def test_other_data_are_another_run(copy, monkeypatch):
    from mnv2_jax.data.resident import Dataset

    monkeypatch.setattr(Dataset, "fingerprint", lambda self: "other")
    with pytest.raises(UserError, match="holds another run: data_sha256 is"):
        run_tiny(copy)


def test_another_number_of_devices_goes_on(stopped, copy, tmp_path):
    """Eight devices here; one in the process that goes on."""
    result = in_a_process(
        "from training.runs import run_tiny; from pathlib import Path; import sys\n"
        f"run_tiny(Path({str(copy)!r}), log=sys.stdout)\n"
        "import jax; assert jax.device_count() == 1"
    )
    assert result.returncode == 0, result.stderr
    assert "going on from step 40" in result.stdout
    found = json.loads((copy / "summary.json").read_text())
    # Rounding: another order of sums.
    assert found["test"]["loss"] == pytest.approx(stopped[1]["test"]["loss"], rel=0.02)


def test_another_configuration_is_refused_and_nothing_is_lost(copy):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"holds another run: learning_rate is 0.05 there and 0.1 here"):
        run_tiny(copy, training={"learning_rate": 0.1})
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def test_overwrite_begins_anew(copy, stopped):
    log = io.StringIO()
    found = run_tiny(copy, log=log, overwrite=True)
    assert "going on" not in log.getvalue()
    assert found["parameters_sha256"] == stopped[1]["parameters_sha256"]


def test_checkpoints_that_are_kept(data_dir, tmp_path):
    run_tiny(tmp_path / "run", checkpoint_every=7, keep=1, keep_every=21)
    assert {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()} == {21, 42, 60}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
@pytest.mark.parametrize("size", [1400, 4000])
def test_a_full_disk_ends_clearly_and_the_last_checkpoint_stays_readable(whole, tmp_path, size):
    """Full at the first checkpoint, or later."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]).returncode:
        pytest.skip("no file system can be mounted here")
    code = (
        "import dataclasses, pathlib\n"
        "from training.runs import run_tiny\n"
        "from mnv2_jax import cli\n"
        "Options = dataclasses.make_dataclass('Options', [], frozen=True)\n"
        f"run = lambda options: run_tiny(pathlib.Path({str(disk / 'run')!r}), checkpoint_every=5, keep=10)\n"
        "cli.run(run, Options, '', [])"
    )
    try:
        result = in_a_process(code)
        assert result.returncode == 2, result.stderr
        assert result.stderr.startswith("error: ")
        assert "a checkpoint cannot be written to" in result.stderr
        assert "MB are free" in result.stderr
        assert result.stderr.count("\n") == 1
        saved = shutil.copytree(disk / "run", tmp_path / "saved")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    result = in_a_process(
        f"from training.runs import run_tiny; from pathlib import Path; import sys; run_tiny(Path({str(saved)!r}), log=sys.stdout)"
    )
    assert result.returncode == 0, result.stderr
    assert ("going on from step" in result.stdout) == (size > 1400)
    found = json.loads((saved / "summary.json").read_text())
    assert found["parameters_sha256"] == whole(False)[1]["parameters_sha256"]
