"""Full and read-only disks, damaged files: existing files stay, and repeating the command gives the same result."""

import contextlib
import gc
import json
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from ablation import studies
from training.runs import run_tiny

from mnv2_jax.errors import UserError
from mnv2_jax.network import open_network
from mnv2_jax.results import SUMMARY

pytestmark = pytest.mark.campaign


class Disk:
    """A file system in memory that can be made full or read-only."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        if self._mount("-t", "tmpfs", "-o", "size=64m", "tmpfs").returncode:
            pytest.skip("no disk can be mounted here")

    def _mount(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(["mount", *arguments, self.folder], capture_output=True)

    def remount(self, options: str) -> None:
        assert self._mount("-o", f"remount,{options}").returncode == 0

    def used(self) -> int:
        return shutil.disk_usage(self.folder).used

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path / "disk")
    yield made
    made.unmount()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def train_run(folder: Path):
    """Train a run; return what must be the same: its parameters and results."""
    summary = run_tiny(folder, execution={"checkpoint_every": 4})
    return summary["parameters_sha256"], summary["test"]


@pytest.fixture(scope="module")
def train_study(digits):
    """Return a function that trains a study and returns its summary."""
    from samples import tiny_of

    def train(folder: Path):
        with studies.quick(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(studies.study_module, "SAVE_SECONDS", -1)
            return studies.run(tiny_of(digits), folder).summary

    return train


@pytest.fixture(params=["run", "study"])
def train(request):
    """Return a function that trains a run or a study."""
    return train_run if request.param == "run" else request.getfixturevalue("train_study")


# --- Full and write-protected disks ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("share", [0.02, 0.2, 0.4, 0.6, 0.8, 0.95])
def test_a_full_disk_loses_nothing_and_the_same_command_ends_the_same(disk, train, share):
    """The disk fills up after a fraction of what is needed: in records, checkpoints, networks, figures."""
    folder = disk.folder / "whole"
    whole, needed = train(folder), disk.used()
    shutil.rmtree(folder)

    other = disk.folder / "others"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    disk.remount(f"size={max(16, int(needed * share) // 1024)}k")
    folder = disk.folder / "run"
    with pytest.raises(UserError, match=r"No space left|cannot be written") as stop:
        train(folder)
    assert "\n" not in str(stop.value)
    records = (folder / "metrics.jsonl").read_text() if (folder / "metrics.jsonl").exists() else ""
    assert all(isinstance(json.loads(line), dict) for line in records.splitlines())
    assert not (folder / SUMMARY).exists()

    del stop
    gc.collect()  # collects files that TensorBoard's writer could not close
    disk.remount("size=64m")
    assert train(folder) == whole
    assert (other / "thesis.tex").read_text() == "years of work"


def test_a_finished_one_stays_as_it_is_on_a_full_disk(disk, train):
    """Files made from the records are made again, which takes space."""
    folder = disk.folder / "run"
    whole = train(folder)
    before = contents(folder)
    disk.remount(f"size={disk.used() // 1024}k")
    with contextlib.suppress(UserError):
        assert train(folder) == whole
    assert contents(folder) == before


def test_a_write_protected_disk_is_one_line_and_what_is_there_can_be_used(disk, train):
    folder = disk.folder / "run"
    train(folder)
    before = contents(folder)
    disk.remount("ro")
    try:
        with pytest.raises(UserError, match=r"Read-only|cannot be written"):
            train(disk.folder / "another")
        network = next(path.parent for path in folder.rglob("description") if "running" not in path.parts)
        assert open_network(network).variables
        assert contents(folder) == before
    finally:
        disk.remount("rw")


# --- Damaged files -----------------------------------------------------------------------------------------


def damages(content: bytes):
    """Yield what a fault may leave of a file: nothing, a part, zeros for what had not reached the disk."""
    half = len(content) // 2
    yield "empty", b""
    yield "cut", content[:half]
    yield "zeroed", bytes(len(content))
    if half:
        yield "half zeroed", content[:half] + bytes(len(content) - half)
    yield "gone", None


def flipped_bits(content: bytes):
    """Yield the content with one bit flipped, at about a dozen positions."""
    for bit in range(0, 8 * len(content), max(1, 8 * len(content) // 12)):
        yield f"bit {bit}", bytes(byte ^ (1 << bit % 8) * (bit // 8 == at) for at, byte in enumerate(content))


@contextlib.contextmanager
def damaged(path: Path, content: bytes | None):
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(whole)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("damaged") / "run"
    return folder, train_run(folder)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def test_a_damaged_network_is_refused_or_the_same(whole_run):
    """Some of Orbax's files hold nothing that is needed; a network that can be read is bitwise the same."""
    network = whole_run[0] / "network"
    variables, refused = open_network(network).variables, 0
    for path in files_of(network):
        whole = path.read_bytes()
        # A description with a changed letter may describe another valid network.
        for name, content in (*damages(whole), *(flipped_bits(whole) if "variables" in path.parts else ())):
            with damaged(path, content):
                try:
                    found = open_network(network).variables
                except UserError as error:
                    assert "\n" not in str(error)  # noqa: PT017 (either is right)
                    refused += 1
                else:
                    equal = jax.tree.map(np.array_equal, variables, found)
                    assert all(jax.tree.leaves(equal)), (path.name, name)
    assert refused >= 8


def test_a_damaged_checkpoint_is_left_out_or_refused_and_the_run_ends_the_same(whole_run, tmp_path):
    """For each file of the newest checkpoint, the run resumes from the one before, or one line says why not."""
    folder, whole = whole_run
    copy = tmp_path / "run"
    newest = max(
        (path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name)
    )
    ended = 0
    for index, path in enumerate(files_of(newest)):
        for name, content in list(damages(path.read_bytes()))[1 + index % 2 :][:1]:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
            for made in (SUMMARY, "network"):
                (shutil.rmtree if (copy / made).is_dir() else Path.unlink)(copy / made)
            (copy / path.relative_to(folder)).write_bytes(content)
            try:
                assert train_run(copy) == whole, (path.name, name)
                ended += 1
            except UserError as error:
                assert "\n" not in str(error)  # noqa: PT017 (either is right)
    assert ended >= 2
