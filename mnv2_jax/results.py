"""A folder of results: whose it is, what may be done to it, and how its files are written.

A run, a study and a computation each have a folder with `config.json`, which says what was asked for. The same
settings continue in it, other settings are refused. Every file is written beside its place and then renamed, so
that a reader or an interruption meets the old or the new one, whole.
"""

import atexit
import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import filelock

from mnv2_jax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

Kind = Literal["run", "study", "computation"]
"""What a folder holds: a training run, a study of several, or what a script computed without training."""

CONFIG, SUMMARY, METRICS = "config.json", "summary.json", "metrics.jsonl"
FIGURES = ("figure.png", "figure.svg")
LOCK = ".lock"
"""Held by the command that writes to a folder, and gone with it; says which process that is."""

ANEW = "put back a copy of it, or --overwrite starts anew"
"""What helps where a file is damaged that nothing else tells."""

CHANGED = {
    "data_sha256": "the images are not those that it was made with",
    "weights_sha256": "the trained weights that it starts from are not those that it was made with",
}
"""What to say where settings differ that are digests."""

NAMES: dict[type, str] = {
    **{dict: "an object", list: "a list", str: "a text", type(None): "null"},
    **{int: "a whole number", float: "a number", bool: "true or false"},
}
"""What the types of JSON are called."""


# --- Files -----------------------------------------------------------------------------------------------


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one go."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file of JSON in one go."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def misfit(content: Any, shape: Any, where: str = "it") -> str | None:
    """What of a file's content is not as it has to be, in words; None if all is.

    Args:
        content: as it came from JSON.
        shape: a type (`float` takes whole numbers too); {name: shape, str: shape} for an object: what it has to hold, and
            all else; [shape] for a list; a tuple of shapes of which one has to fit.
        where: what to call the content.
    """
    if isinstance(shape, tuple):
        each = [misfit(content, one, where) for one in shape]
        return None if None in each else each[0]
    kind: Any = type(shape) if isinstance(shape, (dict, list)) else shape
    fits = isinstance(content, (int, float)) if kind is float else isinstance(content, kind)
    # To Python, true and false are whole numbers.
    if not fits or (kind in (int, float) and isinstance(content, bool)):
        return f"{where} is {json.dumps(content)[:40]}, expected {NAMES[kind]}"
    parts: list[tuple[Any, Any, str]] = []
    if isinstance(shape, list):
        parts = [(one, shape[0], f"{where}[{index}]") for index, one in enumerate(content)]
    elif isinstance(shape, dict):
        named = {name: one for name, one in shape.items() if name is not str}
        missing = [name for name in named if name not in content]
        if missing:
            return f"{missing[0]} is missing" + ("" if where == "it" else f" in {where}")
        rest = shape.get(str, object)  # type: ignore[call-overload]
        parts = [(one, named.get(name, rest), name) for name, one in content.items()]
    return next((problem for part in parts if (problem := misfit(*part)) is not None), None)


def parse_json(text: str, shape: Any) -> Any:
    """What a text of JSON holds.

    Raises:
        ValueError: says what of it is not as `misfit` has it.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if problem := misfit(content, shape):
        raise ValueError(problem)
    return content


def read_text(path: Path, remedy: str = ANEW) -> str:
    """A text file of ours.

    Raises:
        UserError: if there is none, or it is none; ends with the remedy.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file; move it away, or name another folder")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged (it is not UTF-8); {remedy}") from error


def read_json(path: Path, shape: Any, remedy: str = ANEW) -> Any:
    """A file of JSON that is as `misfit` has it.

    Raises:
        UserError: says what is wrong with it, and ends with the remedy.
    """
    try:
        return parse_json(read_text(path, remedy), shape)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from error


def read_lines(path: Path, shape: Any, remedy: str = ANEW) -> list[dict[str, Any]]:
    """JSON lines that are as `misfit` has them; none if there is no file. A last line cut short by an interruption is left out.

    Raises:
        UserError: says what is wrong with another line, and ends with the remedy.
    """
    lines = read_text(path, remedy).split("\n")[:-1] if path.exists() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(parse_json(line, shape))
        except ValueError as error:
            raise UserError(f"{path} is damaged (line {number}: {error}); {remedy}") from error
    return found


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append one JSON line, on disk before this returns."""
    whole = read_text(path) if path.exists() else ""
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
    settings: Mapping[str, Any],
    folder: Path,
    overwrite: bool,
    kind: Kind,
    extends: str | tuple[str, ...] | None = None,
    changes: Collection[str] = (),
) -> None:
    """Refuse a folder that holds something else. Writes nothing.

    Args:
        settings: what makes two runs, or studies, the same one.
        folder: of the command line.
        overwrite: whether other results of the same kind may be replaced.
        kind: what `settings` are of.
        extends: settings whose names begin with this, or one of these, may be there or here alone.
        changes: settings that may differ.

    Raises:
        UserError: says what differs, or what is in the way.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder")
    config_file = folder / CONFIG
    if not config_file.exists():
        # Ours are a lock, and a settings file that an interruption left unfinished.
        ours = (LOCK, f".{CONFIG}.new")
        foreign = [path.name for path in folder.iterdir() if path.name not in ours] if folder.exists() else []
        if foreign:
            raise UserError(f"--out {folder} holds files of something else ({foreign[0]}); name a new or empty folder")
        return
    try:
        known = read_json(config_file, object)
    except UserError:
        if overwrite and config_file.is_file():
            return
        raise
    if kind_of(known) != kind:
        raise UserError(f"--out {folder} holds no {kind}: its {CONFIG} is of something else; name another folder")
    wanted = plain(settings)
    differences = [
        CHANGED[name]
        if name in CHANGED and name in known and name in wanted
        else f"{name} is {known.get(name)!r} there and {wanted.get(name)!r} here"
        for name in {**wanted, **known}
        if known.get(name) != wanted.get(name)
        and name not in changes
        and not (extends and name.startswith(extends) and (name in wanted) != (name in known))
    ]
    if differences and not overwrite:
        raise UserError(
            f"--out {folder} holds another {kind}: {'; '.join(differences)}; name another --out, or --overwrite it"
        )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder that is there; a lock of one that was killed is none.

    Raises:
        UserError: names the process that has it.
    """
    file = folder / LOCK
    lock = filelock.FileLock(file, timeout=0, thread_local=False)
    holder = _holder(file)  # read first, since some versions of the library empty what they try to lock
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(
            f"--out {folder} is in use by {holder}; wait until that has ended, stop it, or name another folder"
        ) from None
    try:
        mine = f"{os.getpid()}\n{socket.gethostname()}\n"
        # Where a file system has no locks, the library has written it, and more.
        if not file.read_text(errors="replace").startswith(mine):
            file.write_text(mine)
        yield
    finally:
        with contextlib.suppress(OSError):  # no results are lost by it
            file.unlink()
        lock.release()


def _holder(file: Path) -> str:
    try:
        process, host = file.read_text(errors="replace").splitlines()[:2]
    except (OSError, ValueError):
        return "another process"
    return f"process {process} on {host}"


@contextlib.contextmanager
def claim_folder(
    settings: Mapping[str, Any],
    folder: Path,
    overwrite: bool,
    contents: Iterable[str],
    extends: str | tuple[str, ...] | None = None,
    notes: Mapping[str, Any] = MappingProxyType({}),
    changes: Collection[str] = (),
) -> Iterator[None]:
    """Make a checked folder the results' own; as long as the context is open, no other process may.

    Args:
        settings, folder: as in `check_folder`.
        overwrite: start from nothing: remove `contents`.
        contents: names of files and folders that such a folder holds besides its settings.
        extends: settings whose names begin with this, or one of these, stay where they are there alone.
        notes: kept beside the settings; other ones are no other results. `extends` has to cover their names.
        changes: settings that may differ, and then take the place of those that are there.

    Raises:
        UserError: if it cannot be written, or another process does so.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder))
            # What was true before may be so no longer.
            check_folder(settings, folder, overwrite, kind_of(settings) or "run", extends, changes)
            if overwrite:
                for name in contents:
                    path = folder / name
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)
            config_file = folder / CONFIG
            kept = {}
            if extends and config_file.exists() and not overwrite:
                known = read_json(config_file, {})
                kept = {name: value for name, value in known.items() if name.startswith(extends)}
            content = {**plain(settings), **kept, **notes}
            if overwrite or not config_file.exists() or read_json(config_file, {}) != content:
                write_json(config_file, content)
        except OSError as error:
            raise UserError(f"--out {folder} cannot be written ({error.strerror}); name another folder") from error
        yield


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


_computation = contextlib.ExitStack()
"""Holds the folder of the computation that this process does."""
atexit.register(_computation.close)


def open_results(
    settings: Mapping[str, Any],
    folder: Path,
    overwrite: bool,
    others: Iterable[str] = (),
    shape: Any = MappingProxyType({}),
) -> dict[str, Any] | None:
    """Check and claim a folder for a computation, until its results are written.

    Args:
        settings, folder, overwrite: as in `check_folder`.
        others: what the folder holds besides summary and figure.
        shape: of the summary, as in `misfit`.

    Returns:
        The summary if the computation is finished: what is left to do is to draw it again.

    Raises:
        UserError: if the folder holds something else or a damaged summary, or cannot be written.
    """
    _computation.close()
    check_folder(settings, folder, overwrite, "computation")
    _computation.enter_context(claim_folder(settings, folder, overwrite, (SUMMARY, *FIGURES, *others)))
    file = folder / SUMMARY
    return read_json(file, dict(shape)) if file.exists() else None


def write_results(folder: Path, found: Mapping[str, Any], figure: "Figure") -> None:
    """Write a computation's summary and figure; its folder is free then.

    The summary also says which command computed it, and in which environment; one that was read back keeps both.
    """
    if "environment" not in found:
        from mnv2_jax.environment import environment

        found = {**found, "command": command_line(), "environment": environment()}
    write_json(folder / SUMMARY, found)
    save_figure(figure, folder)
    _computation.close()


def name_results(console: "Console", folder: Path, known: object = None) -> None:
    """Say where to look, and whether the summary was `known` before."""
    if known is not None:
        console.print("Computed before: only the figure is drawn again. --overwrite computes it anew.", markup=False)
    for name in (FIGURES[0], SUMMARY):
        console.print(str(folder / name), markup=False)


def save_figure(figure: "Figure", folder: Path, formats: Iterable[str] = ("png", "svg"), name: str = "figure") -> None:
    """Write figure.png and figure.svg, or of another name; the same figure gives the same bytes."""
    import matplotlib
    import matplotlib.pyplot as plt

    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    # SVG ids and dates would otherwise change from one time to the next.
    with matplotlib.rc_context({"svg.hashsalt": "mnv2_jax"}):
        for suffix in formats:
            temporary = folder / f".{name}.new.{suffix}"
            figure.savefig(temporary, dpi=150, metadata=metadata[suffix])
            temporary.replace(folder / f"{name}.{suffix}")
    plt.close(figure)
