"""A folder of results: whose it is, what may be done to it, and how its files are written.

A run, a study and a computation each have a folder with `config.json`, which says what was asked for. The same
settings continue in it, other settings are refused. Every file is written beside its place and then renamed, so
that a reader or an interruption meets the old or the new one, whole.
"""

import dataclasses
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mnv2_jax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

Kind = Literal["run", "study", "computation"]
"""What a folder holds: a training run, a study of several, or what a script computed without training."""

CONFIG, SUMMARY, METRICS = "config.json", "summary.json", "metrics.jsonl"
FIGURES = ("figure.png", "figure.svg")


# --- Files -----------------------------------------------------------------------------------------------


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one go."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file of JSON in one go."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; a last line cut short by an interruption is left out.

    Raises:
        UserError: if another line is not JSON.
    """
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); --overwrite starts anew") from error


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append one JSON line, on disk before this returns."""
    whole = path.read_text() if path.exists() else ""
    write_atomically(path, whole[: whole.rfind("\n") + 1] + json.dumps(content) + "\n")


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they read back from JSON: lists for tuples."""
    return json.loads(json.dumps(settings))


# --- The folder ------------------------------------------------------------------------------------------


def kind_of(config: Any) -> Kind | None:
    """What the folder of a `config.json` holds; None if the file is something else's."""
    if not isinstance(config, dict):
        return None
    if "experiment" in config:
        return "study" if "baseline" in config else "computation"
    return "run" if {"dataset", "seed"} <= config.keys() else None


def check_folder(
    settings: Mapping[str, Any], folder: Path, overwrite: bool, kind: Kind, extends: str | None = None
) -> None:
    """Refuse a folder that holds something else. Writes nothing.

    Args:
        settings: what makes two runs, or studies, the same one.
        folder: of the command line.
        overwrite: whether other results of the same kind may be replaced.
        kind: what `settings` are of.
        extends: settings whose names begin with this may be there or here alone.

    Raises:
        UserError: says what differs, or what is in the way.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder")
    config_file = folder / CONFIG
    if not config_file.exists():
        # A settings file that an interruption left unfinished is ours.
        foreign = [path.name for path in folder.iterdir() if path.name != f".{CONFIG}.new"] if folder.exists() else []
        if foreign:
            raise UserError(f"--out {folder} holds files of something else ({foreign[0]}); name a new or empty folder")
        return
    try:
        known = json.loads(config_file.read_text())
    except ValueError as error:
        if overwrite:
            return
        raise UserError(f"{config_file} is not a {kind}'s ({error}); name another --out or --overwrite it") from error
    if kind_of(known) != kind:
        raise UserError(f"--out {folder} holds no {kind}: its {CONFIG} is of something else; name another folder")
    wanted = plain(settings)
    differences = [
        f"{name} is {known.get(name)!r} there and {wanted.get(name)!r} here"
        for name in {**wanted, **known}
        if known.get(name) != wanted.get(name)
        and not (extends and name.startswith(extends) and (name in wanted) != (name in known))
    ]
    if differences and not overwrite:
        raise UserError(
            f"--out {folder} holds another {kind}: {'; '.join(differences)}; name another --out, or --overwrite it"
        )


def claim_folder(
    settings: Mapping[str, Any], folder: Path, overwrite: bool, contents: Iterable[str], extends: str | None = None
) -> None:
    """Make a checked folder the results' own.

    Args:
        settings, folder: as in `check_folder`.
        overwrite: start from nothing: remove `contents`.
        contents: names of files and folders that such a folder holds besides its settings.
        extends: settings whose names begin with this stay, where they are there alone.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        if overwrite and folder.exists():
            for name in contents:
                path = folder / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        config_file = folder / CONFIG
        kept = {}
        if extends and config_file.exists() and not overwrite:
            known = json.loads(config_file.read_text())
            kept = {name: value for name, value in known.items() if name.startswith(extends)}
        write_json(config_file, {**plain(settings), **kept})
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written ({error.strerror}); name another folder") from error


def command_line() -> str:
    """The command that this process was started by, to be typed again."""
    if Path(sys.argv[0]).name == "__main__.py":
        return shlex.join(["python", "-m", "mnv2_jax", *sys.argv[1:]])
    return shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])


# --- What a computation leaves ---------------------------------------------------------------------------


def settings_of(options: Any, experiment: str) -> dict[str, Any]:
    """The flags that a computation's results follow from, as config.json keeps them; not where they go."""
    flags = {name: value for name, value in dataclasses.asdict(options).items() if name not in ("out", "overwrite")}
    return {"experiment": experiment, **flags}


def open_results(settings: Mapping[str, Any], folder: Path, overwrite: bool, others: Iterable[str] = ()) -> None:
    """Check and claim a folder for a computation; `others` are what it holds besides summary and figure.

    Raises:
        UserError: if it holds something else, or cannot be written.
    """
    check_folder(settings, folder, overwrite, "computation")
    claim_folder(settings, folder, overwrite, (SUMMARY, *FIGURES, *others))


def write_results(folder: Path, found: Mapping[str, Any], figure: "Figure") -> None:
    """Write a computation's summary and figure, with the command and the environment that they come from."""
    from mnv2_jax.environment import environment

    write_json(folder / SUMMARY, {**found, "command": command_line(), "environment": environment()})
    save_figure(figure, folder)


def name_results(console: "Console", folder: Path) -> None:
    """Say where to look."""
    for name in (FIGURES[0], SUMMARY):
        console.print(str(folder / name), markup=False)


def save_figure(figure: "Figure", folder: Path, formats: Iterable[str] = ("png", "svg")) -> None:
    """Write figure.png and figure.svg; the same figure gives the same bytes."""
    import matplotlib
    import matplotlib.pyplot as plt

    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    # SVG ids and dates would otherwise change from one time to the next.
    with matplotlib.rc_context({"svg.hashsalt": "mnv2_jax"}):
        for suffix in formats:
            temporary = folder / f".figure.new.{suffix}"
            figure.savefig(temporary, dpi=150, metadata=metadata[suffix])
            temporary.replace(folder / f"figure.{suffix}")
    plt.close(figure)
