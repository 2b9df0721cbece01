"""Parsing a command line into options, and the messages for errors in it."""

import dataclasses
import io
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from mnv2_jax.errors import UserError
from mnv2_jax.flags import expand_paths, parse


@dataclasses.dataclass(frozen=True)
class Shape:
    """Flags in a group without a name."""

    width: float = 1.0
    """A width."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nested:
    """Flags of every kind, some of them required."""

    shape: Annotated[Shape, tyro.conf.arg(name="")] = Shape()
    """Flags of another."""
    source_file: str
    """Must be given."""
    target: Path
    """Must be given."""
    count: int | None = None
    """A whole number."""
    sizes: tuple[int, ...] = ()
    """Several."""
    color: Literal["red", "green"] | None = None
    """A choice."""
    is_open: bool = True
    """Yes or no."""


@pytest.mark.parametrize(
    ("columns", "encoding"), [("20", "utf-8"), ("200", "ascii")]
)  # however tyro draws and folds it
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--width wide", "--width takes numbers, got wide"),
        ("--count 1.5", "--count takes whole numbers, got 1.5"),
        ("--sizes 1 two 3", "--sizes takes whole numbers, got 1 two 3"),
        ("--color blue", "unknown --color blue; choose from red, green"),
        ("--color=blue", "unknown --color blue; choose from red, green"),
        ("--count", "--count needs a value"),
        ("--widht 2", "unrecognized option --widht (did you mean --width?)"),
        ("--sorce_file=a", "unrecognized option --sorce-file (did you mean --source-file?)"),
        ("--nothing-like-it", "unrecognized option --nothing-like-it"),
        ("red", "unrecognized argument red"),
        ("--no-is-open red", "unrecognized argument red"),
    ],
)
def test_what_is_wrong_with_flags_is_one_sentence(monkeypatch, arguments, says, columns, encoding):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    with pytest.raises(UserError) as error:
        parse(Nested, "A command.", ["--source-file", "a", "--target", "b", *arguments.split()], "command")
    assert str(error.value) == f"{says}; see --help"


def test_flags_that_must_be_given_are_named():
    with pytest.raises(UserError, match="^--source-file and --target must be given; see --help$"):
        parse(Nested, "A command.", ["--is-open"], "command")


DESCRIPTION = """Which shape is best?

Question: is red
          better than green?
Command:  python shapes.py
          with --width for other shapes
Cost:     2 s.
Expect:   about the same.

Shapes are drawn
with care.
"""


def test_the_header_lines_of_a_description_are_kept_apart(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse(Shape, DESCRIPTION, ["--help"], "shapes")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    starts = ("Question: is red", "Command:  python shapes.py", "Cost:     2 s.", "Expect:   about the same.")
    assert [line for line in lines if line.startswith(("Question", "Command", "Cost", "Expect"))] == list(starts)
    assert "          with --width for other shapes" in lines
    assert "Shapes are drawn with care." in lines


@dataclasses.dataclass(frozen=True)
class Files:
    """Flags that name files."""

    out: Path | None = None
    """One."""
    more: tuple[Path, ...] = ()
    """Several."""
    weights: str = ""
    """A path, or a reference."""


@dataclasses.dataclass(frozen=True)
class Grouped:
    """Flags in groups."""

    files: Files = Files()
    """The group."""


def test_home_and_variables_are_replaced_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("RUNS", "/scratch")
    flags = ["--files.out", "~/a", "--files.more", "$RUNS/b", "c$", "--files.weights", "~/w"]
    files = parse(Grouped, "", flags).files
    assert files == Files(Path("/home/me/a"), (Path("/scratch/b"), Path("c$")), "/home/me/w")
    kept = Files(weights="hf://timm/x")
    assert expand_paths(kept) == kept


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("gs://bucket/run", "gs://bucket/run is not a local path; mount it and use the folder"),
        ("~nobody-here/run", "there is no home folder of that name; write"),
        ("$NOT_SET_HERE/run", "the environment variable NOT_SET_HERE is not set"),
        ("a/${NOT_SET_HERE}", "the environment variable NOT_SET_HERE is not set"),
    ],
)
def test_what_is_no_path_of_this_machine_is_refused(path, says):
    with pytest.raises(UserError) as error:
        parse(Files, "", ["--out", path])
    assert says in str(error.value)
