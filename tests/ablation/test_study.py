"""Studies from settings to files, stopped and resumed, each in its own folder."""

import dataclasses
import gc
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from samples import write_folder

from ablation.studies import ALONE, STUDY, interrupt, measured, run, stopping, terminate
from mnv2_jax import network
from mnv2_jax.ablation import study as study_module
from mnv2_jax.ablation.design import Arm
from mnv2_jax.ablation.statistics import compare_paired
from mnv2_jax.data.stream import load_stream
from mnv2_jax.errors import Preempted, UserError
from mnv2_jax.network import open_network
from mnv2_jax.training import checkpoint
from mnv2_jax.training.create import create_dataset
from mnv2_jax.training.devices import Devices
from mnv2_jax.training.metrics import read_records
from mnv2_jax.training.progress import duration

MORE = dataclasses.replace(STUDY, arms=(STUDY.arms[0], Arm("relu", {"bottleneck_activation": "relu"}), STUDY.arms[1]))
"""The study with an arm between the two."""


@pytest.fixture
def saved_often(monkeypatch):
    """Save state at every evaluation, however recently it was saved."""
    monkeypatch.setattr(study_module, "SAVE_SECONDS", -1)


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- What it says and leaves -----------------------------------------------------------------------------


def test_plain_lines_with_the_loss_of_each_run_where_there_is_no_terminal(finished):
    lines = finished.log.splitlines()
    assert "\x1b" not in finished.log
    assert lines[0] == "linear, relu6: compiling"
    assert lines[1].startswith("linear, relu6: compiled in ")
    assert lines[-1].startswith("4 runs trained in ")
    # Per run a line for each of two evaluations and for the test, not for every logged step.
    assert len(lines) == 3 + 4 * (2 + 1)
    losses = set()
    for record in finished.records:
        loss, who = record.metrics["loss"], f"{record.arm} seed {record.seed}"
        if record.split == "train" and record.step in (2, 4):
            (line,) = [line for line in lines if line.startswith(f"{who} step {record.step}/4: loss {loss:.3f}, validation accuracy ")]  # fmt: skip
            assert line.endswith(" left")
            losses.add(f"{loss:.3f}")
        if record.split == "test":
            assert f"{who}: test accuracy {record.metrics['accuracy']:.2%}".replace("%", " %") in finished.log
    assert len(losses) == 8


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (65.4, "1:05"), (3725, "1:02:05")])
def test_the_time_left_is_in_minutes_and_hours(seconds, text):
    assert duration(seconds) == text


def test_every_run_has_tensorboards_files(finished_folder):
    from tensorboardX.proto.event_pb2 import Event

    folder, finished = finished_folder
    assert {path.name for path in (folder / "tensorboard").iterdir()} == {"linear-0", "linear-1", "relu6-0", "relu6-1"}
    (file,) = (folder / "tensorboard" / "relu6-1").iterdir()
    # Each event is preceded by its length (8 bytes) and a checksum (4), and followed by a checksum.
    content, found, at = file.read_bytes(), {}, 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 8], "little")
        event = Event.FromString(content[at + 12 : at + 12 + size])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        at += 16 + size
    for record in finished.records:
        if (record.arm, record.seed) == ("relu6", 1):
            assert found[f"{record.split}/loss", record.step] == pytest.approx(record.metrics["loss"])


def test_trained_networks_are_kept(finished_folder):
    network = open_network(finished_folder[0] / "checkpoints" / "relu6-1")
    assert network.model.bottleneck_activation == "relu6"
    assert network.class_names == tuple("0123456789")
    assert (network.resolution, network.image_channels, network.source) == (12, 1, "test")
    assert set(network.variables) == {"params", "batch_stats"}
    assert network.variables["params"]["classifier"]["bias"].shape == (10,)


def test_the_same_study_elsewhere_gives_the_same_numbers(finished, tiny, tmp_path):
    again = run(tiny, tmp_path / "again")
    assert again.summary == finished.summary
    assert measured(again.records) == measured(finished.records)


def test_arms_are_compiled_once_for_all_of_their_runs(tiny, tmp_path, monkeypatch):
    """Six runs, two at a time, are three groups, but both arms share one program."""
    calls, trace = [], study_module.trace_programs
    monkeypatch.setattr(study_module, "trace_programs", lambda *given: calls.append(given) or trace(*given))
    assert run(tiny, tmp_path / "out", dataclasses.replace(STUDY, seeds=3)).runs == 6
    assert len(calls) == 1


def test_arms_of_another_resolution_see_the_same_images_smaller(tiny, tmp_path):
    study = dataclasses.replace(ALONE, arms=(Arm("12"), Arm("6", resolution=6)))
    arms = run(tiny, tmp_path / "out", study).summary["arms"]
    assert [arm["resolution"] for arm in arms.values()] == [12, 6]
    assert tiny.at(6).augmentation.shift == 1
    assert arms["6"]["multiply_adds"] < arms["12"]["multiply_adds"]
    assert arms["6"]["parameters"] == arms["12"]["parameters"]
    assert open_network(tmp_path / "out" / "checkpoints" / "6-0").resolution == 6


def test_a_null_study_is_inconclusive(tiny, tmp_path):
    """Compare the baseline with itself at six other seeds."""
    trained = run(tiny, tmp_path / "null", dataclasses.replace(ALONE, seeds=12))
    accuracy = trained.summary["arms"]["base"]["test_accuracy"]
    assert len(set(accuracy)) > 1
    assert compare_paired(accuracy[:6], accuracy[6:]).verdict == "inconclusive"
    assert trained.summary["comparisons"] == []


# --- Stopped and continued -------------------------------------------------------------------------------


def test_a_finished_study_trains_nothing_and_gives_the_same_summary(copy, tiny):
    before = {name: (copy / name).read_bytes() for name in ("summary.json", "metrics.jsonl", "config.json")}
    assert run(tiny, copy).runs == 0
    assert before == {name: (copy / name).read_bytes() for name in before}


def test_an_interrupted_study_continues_with_what_is_missing(finished, copy, tiny):
    """One run is finished, one cut off in the middle of a line: the finished one is kept, three are trained."""
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    whole = [line for line in lines if '"arm": "linear", "seed": 1' in line]
    part = [line for line in lines if '"arm": "linear", "seed": 0' in line][:2]
    (copy / "metrics.jsonl").write_text("".join([*whole, *part, lines[0][:30]]))
    (copy / "summary.json").unlink()
    again = run(tiny, copy)
    assert again.runs == 3
    assert "1 of 4 runs are already finished" in again.log
    assert again.summary == finished.summary
    assert len(read_records(copy / "metrics.jsonl")) == len(lines)


def end(folder, *numbers):
    """Run `killed_study.py`."""
    script = Path(__file__).parent / "killed_study.py"
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}
    command = [sys.executable, script, folder, *map(str, numbers)]
    return subprocess.run(command, env=environment, timeout=600, stdout=subprocess.PIPE, text=True, check=False)


@pytest.mark.slow
def test_a_study_killed_inside_a_run_continues_there_and_ends_the_same(finished_folder, tiny, tmp_path):
    """The study is killed in the second half of its first runs, whose state was saved halfway."""
    out = tmp_path / "out"
    assert end(out, 3).returncode == -signal.SIGKILL
    assert not (out / "summary.json").exists()
    again = run(tiny, out)
    assert "resuming from step 2" in again.log
    assert again.runs == 4
    folder, finished = finished_folder
    assert (out / "summary.json").read_bytes() == (folder / "summary.json").read_bytes()
    # Every record is there exactly once, including those from before the kill.
    assert measured(again.records) == measured(finished.records)
    assert not (out / "running").exists()


def images_and_loss(records):
    """Return (number of images, sum of their losses) of the training of each run."""
    found = {}
    for record in records:
        if record.split == "train":
            images, loss = found.get((record.arm, record.seed), (0, 0.0))
            found[record.arm, record.seed] = images + record.images, loss + record.images * record.metrics["loss"]
    return found


@pytest.mark.slow
def test_a_study_ended_at_random_moments_ends_the_same(tmp_path):
    """Three SIGKILLs and one SIGTERM."""
    seed = random.randrange(1 << 16)
    print("random seed", seed)
    whole = end(tmp_path / "whole" / "out", 0, 0, 0)
    assert whole.returncode == 0, whole.stdout
    tries = [json.loads(line) for line in end(tmp_path / "ended" / "out", seed, 3, 1).stdout.splitlines()]
    # On a fast machine it may finish before the signal.
    ways = {signal.SIGKILL: (-signal.SIGKILL, 0), signal.SIGTERM: (os.EX_TEMPFAIL, -signal.SIGTERM, 0), None: (0,)}
    assert [found for found in tries if found["code"] not in ways[found["signal"]]] == []
    assert len(tries) == 5
    assert tries[0]["code"] != 0
    folders = [tmp_path / name / "out" for name in ("whole", "ended")]
    assert len({(folder / "summary.json").read_bytes() for folder in folders}) == 1
    # SIGTERM between two training records splits the later one in two. Otherwise the records are the same.
    records = [read_records(folder / "metrics.jsonl") for folder in folders]
    whole, again = ([each for each in measured(found) if each[3] != "train"] for found in records)
    assert again == whole
    whole, again = (images_and_loss(found) for found in records)
    assert again.keys() == whole.keys()
    for run_of, (images, loss) in whole.items():
        assert again[run_of] == (images, pytest.approx(loss, rel=1e-5))
    assert {path.name for path in folders[1].iterdir()} == {path.name for path in folders[0].iterdir()}


# TensorBoard's writer leaves a file open if it cannot flush it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_full_disk_ends_in_one_line_and_the_same_command_ends_the_same(
    finished_folder, tiny, tmp_path, saved_often, monkeypatch
):
    """The disk is full before the first step, while a state is saved, and while a second network is saved."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(disk)]).returncode:
        pytest.skip("no file system can be mounted here")
    folder, finished = finished_folder
    try:
        # As if others fill the disk after the check.
        monkeypatch.setattr(network, "check_room", lambda *given: None)
        monkeypatch.setattr(checkpoint, "check_room", lambda *given: None)
        for size in (12, 180, 760):
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
            with pytest.raises(
                UserError, match=r"cannot be (read or )?written .*[Nn]o space .*(make room|free some space|fix this)"
            ) as error:
                run(tiny, disk / "out")
            assert "\n" not in str(error.value)
            del error  # it references the writer; the warning about it must come in this test, not in a later one
            gc.collect()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        again = run(tiny, disk / "out")
        assert (disk / "out" / "summary.json").read_bytes() == (folder / "summary.json").read_bytes()
        assert measured(again.records) == measured(finished.records)
        assert {path.name for path in (disk / "out" / "checkpoints").iterdir()} == {
            path.name for path in (folder / "checkpoints").iterdir()
        }
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_sigterm_saves_and_the_same_command_ends_the_same(finished_folder, tiny, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="SIGTERM: saved after step 3; run the same command to resume"):
        run(tiny, tmp_path / "out", reporter=stopping(2, terminate))
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (tmp_path / "out" / "summary.json").exists()
    again = run(tiny, tmp_path / "out")
    assert "resuming from step 3" in again.log
    folder, finished = finished_folder
    assert (tmp_path / "out" / "summary.json").read_bytes() == (folder / "summary.json").read_bytes()
    assert measured(again.records) == measured(finished.records)


def test_a_damaged_state_is_named_in_one_line_and_its_runs_start_from_their_beginning(
    finished, tiny, tmp_path, saved_often
):
    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path / "out", reporter=stopping(3, interrupt))
    (state,) = (tmp_path / "out" / "running").glob("*/state")
    for path in state.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    again = run(tiny, tmp_path / "out")
    (line,) = [line for line in again.log.splitlines() if "these runs start over" in line]
    assert "(steps 2) can be read" in line
    assert again.summary == finished.summary
    assert measured(again.records) == measured(finished.records)


def test_a_state_is_only_its_own_runs(copy, tiny, tmp_path, saved_often):
    """In a study of more arms, the same runs have other indices in the program and do not resume from the state."""
    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path / "out", reporter=stopping(3, interrupt))
    # As if the arm in between had been trained.
    records = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    of_relu = "".join(line.replace('"relu6"', '"relu"') for line in records if '"relu6"' in line)
    metrics = tmp_path / "out" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + of_relu)
    again = run(tiny, tmp_path / "out", MORE)
    assert again.runs == 4
    assert "resuming" not in again.log
    assert not (tmp_path / "out" / "running").exists()


def test_more_arms_extend_a_study_and_fewer_leave_the_others_alone(copy, finished, tiny):
    extended = run(tiny, copy, MORE)
    assert extended.runs == 2
    assert list(extended.summary["arms"]) == ["linear", "relu", "relu6"]
    assert extended.summary["arms"]["relu6"]["test_loss"] == finished.summary["arms"]["relu6"]["test_loss"]
    assert {comparison["p_holm"] for comparison in extended.summary["comparisons"]} == {1.0}
    fewer = run(tiny, copy, MORE.with_arms(["relu"]))
    assert (fewer.runs, list(fewer.summary["arms"])) == (0, ["linear", "relu"])
    assert run(tiny, copy).runs == 0
    other = dataclasses.replace(STUDY, arms=(STUDY.arms[0], Arm("relu", {"bottleneck_activation": "elu"})))
    with pytest.raises(UserError, match="arm relu is .*'relu'.* there and .*'elu'.* here"):
        run(tiny, copy, other)


def test_more_seeds_extend_a_study(copy, finished, tiny):
    extended = run(tiny, copy, dataclasses.replace(STUDY, seeds=3))
    assert extended.runs == 2
    for name, arm in extended.summary["arms"].items():
        assert arm["test_accuracy"][:2] == finished.summary["arms"][name]["test_accuracy"]
        assert len(arm["test_accuracy"]) == 3


# --- On streamed data ------------------------------------------------------------------------------------


def test_a_study_of_streamed_data_trains_and_resumes(digits, data_dir, tmp_path, saved_often, monkeypatch):
    """Train one run at a time over all devices, here two."""
    meshes, create = [], Devices.create
    two = lambda *given: meshes.append(create(*given, devices=jax.devices()[:2])) or meshes[-1]  # noqa: E731
    monkeypatch.setattr(study_module.Devices, "create", two)
    stream = load_stream("digits", data_dir=data_dir, train_images=64, validation_images=20, resolution=12)
    study = dataclasses.replace(ALONE, streamed=True)
    whole = run(stream, tmp_path / "whole", study)
    assert whole.runs == 2
    assert (meshes[0].runs, meshes[0].per_run) == (1, 2)
    assert "base seed 1 step 4/4: loss" in whole.log
    with pytest.raises(KeyboardInterrupt):
        run(stream, tmp_path / "out", study, stopping(3, interrupt))
    again = run(stream, tmp_path / "out", study)
    assert "resuming from step 2" in again.log
    assert (tmp_path / "out" / "summary.json").read_bytes() == (tmp_path / "whole" / "summary.json").read_bytes()
    assert measured(again.records) == measured(whole.records)
    assert open_network(tmp_path / "out" / "checkpoints" / "base-1").resolution == 12


def test_a_study_of_a_folder_of_photographs_is_of_its_content(tmp_path):
    photos = write_folder(tmp_path / "pets", classes=("cat", "dog", "hen"), images=30)
    study = dataclasses.replace(ALONE, dataset="folder", data_files=photos, resolution=12)
    trained = run(create_dataset(study.run(study.baseline)), tmp_path / "out", study)
    assert trained.runs == 2
    summary = trained.summary
    assert (summary["dataset"], summary["title"]) == ("folder", "pets")
    assert summary["chance"] == pytest.approx(1 / 3)
    network = open_network(tmp_path / "out" / "checkpoints" / "base-0")
    assert (network.class_names, network.resolution, network.image_channels) == (("cat", "dog", "hen"), 12, 3)
    # The same images in another folder are the same study; other images are not.
    moved = dataclasses.replace(study, data_files=photos.rename(tmp_path / "animals"))
    again = run(create_dataset(moved.run(moved.baseline)), tmp_path / "out", moved)
    assert (again.runs, again.summary["data_sha256"]) == (0, summary["data_sha256"])
    (tmp_path / "animals" / "cat" / "000.jpg").unlink()
    with pytest.raises(UserError, match="contains another study"):
        run(create_dataset(moved.run(moved.baseline)), tmp_path / "out", moved)


# --- In its own folder -----------------------------------------------------------------------------------


def test_another_study_is_not_overwritten_unless_asked(copy, tiny):
    other = dataclasses.replace(STUDY, training=dataclasses.replace(STUDY.training, learning_rate=0.03))
    before = files_of(copy)
    with pytest.raises(
        UserError, match=r"contains another study: learning_rate is 0.02 there and 0.03 here; .*--overwrite"
    ):
        run(tiny, copy, other)
    assert files_of(copy) == before
    # Nothing is left of the old study.
    assert run(tiny, copy, ALONE, overwrite=True).runs == 2
    assert {path.name for path in (copy / "checkpoints").iterdir()} == {"base-0", "base-1"}
    assert {record.arm for record in read_records(copy / "metrics.jsonl")} == {"base"}
    assert not (copy / "figure.png").exists()


def test_a_folder_of_another_version_is_named_and_kept(copy, tiny):
    config = json.loads((copy / "config.json").read_text())
    del config["format"]
    (copy / "config.json").write_text(json.dumps(config))
    before = files_of(copy)
    with pytest.raises(UserError, match="format is None there and 3 here"):
        run(tiny, copy)
    assert files_of(copy) == before


def test_a_folder_of_something_else_is_never_touched(tiny, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"contains other files \(thesis.tex\)"):
            run(tiny, tmp_path / "mine", overwrite=overwrite)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_damaged_config_is_named(copy, tiny):
    (copy / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is damaged .*--overwrite"):
        run(tiny, copy)


def test_out_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        run(tiny, tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        run(tiny, tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": 1}, "--seeds must be 2 or more"),
        ({"arms": (Arm("a"), Arm("b", {"bottleneck_activation": "linear"}))}, "the arms a and b are the same network"),
        (
            {"training": dataclasses.replace(STUDY.training, batch_size=71)},
            "--batch-size 71 exceeds the 70 images",
        ),
        (
            {
                "training": dataclasses.replace(STUDY.training, batch_size=1),
                "arms": (Arm("a"), Arm("b", resolution=1)),
            },
            "over one image of one pixel",
        ),
    ],
)
def test_a_study_that_cannot_tell_anything_is_refused_before_anything_is_written(tiny, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        run(tiny, tmp_path / "out", dataclasses.replace(STUDY, **changes))
    assert not (tmp_path / "out").exists()
