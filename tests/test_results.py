"""Folders of results: what they belong to, and what may change in them."""

import dataclasses
import json
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest

from mnv2_jax import results
from mnv2_jax.errors import UserError
from mnv2_jax.results import (
    append_line,
    check_folder,
    claim_folder,
    command_line,
    kind_of,
    misfit,
    open_results,
    read_json,
    read_lines,
    save_figure,
    settings_of,
    write_atomically,
    write_results,
)

RUN = {"dataset": "digits", "seed": 0, "stages": ((1, 16, 1, 1),)}
STUDY = {"experiment": "ablate", "baseline": "linear", "arm linear": {}}
COMPUTATION = {"experiment": "count"}
KINDS = {"run": RUN, "study": STUDY, "computation": COMPUTATION}


def refusal(*arguments, **options):
    with pytest.raises(UserError) as error:
        check_folder(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def claim(*arguments, **options):
    with claim_folder(*arguments, **options):
        pass


def claimed(folder, kind, contents=()):
    claim(KINDS[kind], folder, False, contents)
    return folder


# --- What a folder belongs to ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_told_from_the_settings(kind):
    assert kind_of(KINDS[kind]) == kind


@pytest.mark.parametrize("content", [{}, {"compilerOptions": {}}, {"seed": 0}, ["dataset", "seed"], "run", None])
def test_a_config_of_something_else_has_no_kind(content):
    assert kind_of(content) is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_settings_continue_and_nothing_is_written(kind, tmp_path):
    check_folder(KINDS[kind], tmp_path / "new", False, kind)
    assert list(tmp_path.iterdir()) == []
    folder = claimed(tmp_path / "new", kind)
    before = (folder / "config.json").read_bytes()
    check_folder(KINDS[kind], folder, False, kind)
    claim(KINDS[kind], folder, False, ())
    assert (folder / "config.json").read_bytes() == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_results_of_another_kind_are_never_replaced(kind, there, overwrite, tmp_path):
    folder = claimed(tmp_path / "x", there)
    if kind == there:
        check_folder(KINDS[kind], folder, overwrite, kind)
    else:
        assert f"contains no {kind}: its config.json belongs to something else" in refusal(
            KINDS[kind], folder, overwrite, kind
        )


def test_other_settings_are_named_and_replaced_if_asked(tmp_path):
    folder = claimed(tmp_path / "x", "run")
    other = {**RUN, "seed": 1, "weights": "x"}
    message = refusal(other, folder, False, "run")
    assert (
        "contains another run: seed is 0 there and 1 here; weights is None there and 'x' here; choose another"
        in message
    )
    assert "seed is 1 there" not in message
    check_folder(other, folder, True, "run")


def test_images_that_changed_are_said_in_words_and_not_by_their_digest(tmp_path):
    folder = claimed(tmp_path / "x", "run")
    claim({**RUN, "data_sha256": "1"}, folder, True, ())
    message = refusal({**RUN, "data_sha256": "2"}, folder, False, "run")
    assert "contains another run: the images differ from those it was made with; choose another --out" in message


def test_settings_that_may_change_take_the_place_of_those_that_are_there(tmp_path):
    folder = claimed(tmp_path / "x", "run")
    more = {**RUN, "seed": 1}
    check_folder(more, folder, False, "run", changes=("seed",))
    with claim_folder(more, folder, False, (), changes=("seed",)):
        assert json.loads((folder / "config.json").read_text())["seed"] == 1


def test_arms_of_a_study_may_be_there_or_here_alone(tmp_path):
    folder = claimed(tmp_path / "x", "study")
    both = {**STUDY, "arm relu6": {"seeds": 2}}
    assert "contains another study: arm relu6 is None there" in refusal(both, folder, False, "study")
    check_folder(both, folder, False, "study", extends="arm ")
    claim(both, folder, False, (), extends="arm ")
    # The arm that this study leaves out stays.
    check_folder(STUDY, folder, False, "study", extends="arm ")
    claim(STUDY, folder, False, (), extends="arm ")
    assert json.loads((folder / "config.json").read_text()) == both
    # Settings in both have to agree.
    changed = {**both, "arm relu6": {"seeds": 3}}
    assert "arm relu6 is {'seeds': 2} there" in refusal(changed, folder, False, "study", extends="arm ")
    claim(STUDY, folder, True, (), extends="arm ")
    assert json.loads((folder / "config.json").read_text()) == STUDY


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_something_else_are_left_alone(overwrite, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    assert "contains other files (thesis.tex)" in refusal(RUN, tmp_path, overwrite, "run")
    assert f"--out {tmp_path / 'thesis.tex'} is a file" in refusal(RUN, tmp_path / "thesis.tex", overwrite, "run")


def test_an_empty_folder_and_one_that_an_interruption_left_are_taken(tmp_path):
    check_folder(RUN, tmp_path, False, "run")
    (tmp_path / ".config.json.new").write_text('{"data')
    check_folder(RUN, tmp_path, False, "run")


def test_a_damaged_config_is_only_overwritten(tmp_path):
    (tmp_path / "config.json").write_text('{"dataset": ')
    assert "config.json is damaged" in refusal(RUN, tmp_path, False, "run")
    check_folder(RUN, tmp_path, True, "run")


def test_overwriting_removes_what_such_a_folder_holds_and_nothing_else(tmp_path):
    folder, elsewhere = claimed(tmp_path / "x", "run"), tmp_path / "elsewhere"
    (folder / "checkpoints" / "3").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("")
    (folder / "network").symlink_to(elsewhere)
    for name in ("summary.json", "notes.txt"):
        (folder / name).write_text("x")
    claim({**RUN, "seed": 1}, folder, True, ("checkpoints", "network", "summary.json", "figure.png"))
    assert {path.name for path in folder.iterdir()} == {"config.json", "notes.txt"}
    assert (elsewhere / "kept").exists()
    assert json.loads((folder / "config.json").read_text())["seed"] == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out .*/file/x cannot be written"):
        claim(RUN, tmp_path / "file" / "x", False, ())


# --- One process at a time ---------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from mnv2_jax.results import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_one_process_s_until_that_ends_however_it_ends(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        # The message names the other process every time, not only the first.
        for _ in range(2):
            with pytest.raises(
                UserError,
                match=f"--out .* is in use by process {other.pid} on .*; wait for it to end, stop it, or choose another",
            ) as error:
                claim(RUN, tmp_path, False, ())
            assert "\n" not in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    finally:
        other.kill()
        other.communicate()
    assert (tmp_path / ".lock").exists()
    claim(RUN, tmp_path, False, ())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_what_another_process_made_since_the_check_is_not_replaced(tmp_path):
    check_folder(RUN, tmp_path, False, "run")
    claim(STUDY, tmp_path, False, ())
    with pytest.raises(UserError, match="contains no run"):
        claim(RUN, tmp_path, True, ())


# --- Files -----------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomically(tmp_path / "x", "old")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(results.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old"


def test_lines_survive_one_that_was_cut_short(tmp_path):
    path = tmp_path / "x.jsonl"
    assert read_lines(path, {"step": int}) == []
    append_line(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_lines(path, {"step": int}) == [{"step": 1}]
    append_line(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"x.jsonl is damaged \(line 1: .* use --overwrite to start over"):
        read_lines(path, {"step": int})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "it is [], expected an object"),
        ({"a": 1}, "b is missing"),
        ({"a": 1, "b": {}}, "c is missing in b"),
        ({"a": True, "b": {"c": []}}, "a is true, expected a number"),
        ({"a": "1", "b": {"c": []}}, 'a is "1", expected a number'),
        ({"a": None, "b": {"c": [1, 2.5]}}, "c[1] is 2.5, expected a whole number"),
        ({"a": 2, "b": {"c": [1]}, "d": 3}, "d is 3, expected a string"),
        ({"a": float("nan"), "b": {"c": []}, "d": "x"}, None),
    ],
)
def test_what_a_file_has_to_hold_is_said_by_name(content, says):
    shape = {"a": (float, type(None)), "b": {"c": [int]}, str: str}
    assert misfit(content, shape) == says


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\0\0\0", b'{"a": "\xff"}', b"[" * 100_000, b"[]", None])
def test_a_damaged_file_is_one_line_that_names_it(content, tmp_path):
    path = tmp_path / "x.json"
    path.mkdir() if content is None else path.write_bytes(content)
    for read in (lambda: read_json(path, {}), lambda: read_json(path, {"a": int}, "remove it")):
        with pytest.raises(UserError, match=r"x\.json is (damaged|not a file)") as error:
            read()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["/x/mnv2_jax/__main__.py", "train", "--out", "a b"], "python -m mnv2_jax train --out 'a b'"),
        (["experiments/ablate.py", "--seeds", "2"], "python experiments/ablate.py --seeds 2"),
    ],
)
def test_the_command_can_be_typed_again(arguments, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", arguments)
    assert command_line() == command


# --- Computations ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Options:
    resolution: int = 32
    out: str = "runs/x"
    overwrite: bool = False


def figure():
    drawn, axes = plt.subplots(figsize=(1, 1))
    axes.plot([1, 2])
    return drawn


def test_a_computation_leaves_its_settings_summary_and_figure(tmp_path):
    folder = tmp_path / "x"
    settings = settings_of(Options(), "count")
    assert settings == {"experiment": "count", "resolution": 32}
    assert open_results(settings, folder, False) is None
    write_results(folder, {"layers": 3}, figure())
    assert {path.name for path in folder.iterdir()} == {"config.json", "summary.json", "figure.png", "figure.svg"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["layers"] == 3
    assert {"command", "environment"} < summary.keys()
    with pytest.raises(UserError, match="contains another computation: resolution is 32 there and 64 here"):
        open_results(settings_of(Options(64), "count"), folder, False)
    (folder / "plans.json").write_text("{}")
    open_results(settings_of(Options(64), "count"), folder, True, ["plans.json"])
    # It is not finished yet.
    assert {path.name for path in folder.iterdir()} == {"config.json", ".lock"}


def test_a_finished_computation_is_handed_back_and_keeps_its_summary_to_the_byte(tmp_path, monkeypatch):
    settings = settings_of(Options(), "count")
    open_results(settings, tmp_path, False)
    write_results(tmp_path, {"layers": 3}, figure())
    before = (tmp_path / "summary.json").read_bytes()
    (tmp_path / "figure.png").unlink()
    monkeypatch.setattr(sys, "argv", ["experiments/another.py"])
    known = open_results(settings, tmp_path, False, shape={"layers": int})
    write_results(tmp_path, known, figure())
    assert known["layers"] == 3
    assert (tmp_path / "summary.json").read_bytes() == before
    assert (tmp_path / "figure.png").exists()
    with pytest.raises(
        UserError, match="summary.json is damaged \\(width is missing\\); .*use --overwrite to start over"
    ):
        open_results(settings, tmp_path, False, shape={"width": int})
    assert open_results(settings, tmp_path, True, shape={"width": int}) is None


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_figure(figure(), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["figure.png", "figure.svg"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert plt.get_fignums() == []
