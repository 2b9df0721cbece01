"""Folders of results: checks before they are used, locks, and how their files are written.

A run, a study and a computation each have a folder with a `config.json` of their settings. The same settings continue
in it; other settings are refused. Every file is written under a temporary name and then renamed, so that readers and
interruptions find either the old or the new file, complete.
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
"""What a folder holds: a training run, a study of several runs, or what a script computed without training."""

CONFIG, SUMMARY, METRICS = "config.json", "summary.json", "metrics.jsonl"
FIGURES = ("figure.png", "figure.svg")
LOCK = ".lock"
"""Lock file of the process that writes to a folder, whose PID and host it holds; removed when that process ends."""

ANEW = "restore it from a copy, or use --overwrite to start over"
"""The default remedy for a damaged file."""

CHANGED = {
    "data_sha256": "the images differ from those it was made with",
    "weights_sha256": "the trained weights it starts from differ from those it was made with",
}
"""Messages for settings that are digests, if they differ."""

NAMES: dict[type, str] = {
    **{dict: "an object", list: "a list", str: "a string", type(None): "null"},
    **{int: "a whole number", float: "a number", bool: "true or false"},
}
"""Names of the JSON types in messages."""


# --- Files -----------------------------------------------------------------------------------------------


def write_atomically(path: Path, text: str) -> None:
    """Replace a file atomically."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def misfit(content: Any, shape: Any, where: str = "it") -> str | None:
    """Return a message about the first part of a file's content that does not have the expected shape, or None.

    Args:
        content: parsed JSON.
        shape: a type (`float` accepts integers too); [shape] for a list; a tuple of alternative shapes; or
            {name: shape, str: shape} for an object, with its required names, and under `str` the shape of all others.
        where: the content's name in the message.
    """
    if isinstance(shape, tuple):
        each = [misfit(content, one, where) for one in shape]
        return None if None in each else each[0]
    kind: Any = type(shape) if isinstance(shape, (dict, list)) else shape
    fits = isinstance(content, (int, float)) if kind is float else isinstance(content, kind)
    # In Python, True and False are ints.
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
    """Parse JSON and check its shape, see `misfit`.

    Raises:
        ValueError: if it is no JSON or has another shape; says what is wrong.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if problem := misfit(content, shape):
        raise ValueError(problem)
    return content


def read_text(path: Path, remedy: str = ANEW) -> str:
    """Read a UTF-8 text file.

    Raises:
        UserError: if it is missing, cannot be read, or is no UTF-8 file; the last message ends with the remedy.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file; move it away, or choose another folder")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged (it is not UTF-8); {remedy}") from error


def read_json(path: Path, shape: Any, remedy: str = ANEW) -> Any:
    """Read a JSON file and check its shape, see `misfit`.

    Raises:
        UserError: says what is wrong with the file, and ends with the remedy.
    """
    try:
        return parse_json(read_text(path, remedy), shape)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from error


def read_lines(path: Path, shape: Any, remedy: str = ANEW) -> list[dict[str, Any]]:
    """Read a file of JSON lines and check their shape, see `misfit`; return [] if there is no file.

    A last line without a newline, cut short by an interruption, is ignored.

    Raises:
        UserError: says what is wrong with any other line, and ends with the remedy.
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
    """Append one JSON line by replacing the file atomically; an incomplete last line is dropped."""
    whole = read_text(path) if path.exists() else ""
    write_atomically(path, whole[: whole.rfind("\n") + 1] + json.dumps(content) + "\n")


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as they read back from JSON, with lists for tuples."""
    return json.loads(json.dumps(settings))


# --- The folder ------------------------------------------------------------------------------------------


def kind_of(config: Any) -> Kind | None:
    """Return what a folder holds, from the content of its `config.json`; None if that is not one of ours."""
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
    """Refuse a folder that holds something else. Nothing is written.

    Args:
        settings: the settings that identify a run, study or computation.
        folder: the folder given on the command line.
        overwrite: whether other results of the same kind may be replaced.
        kind: the kind of results.
        extends: prefix or prefixes of settings that may be missing on either side.
        changes: settings that may differ.

    Raises:
        UserError: says what differs, or what is in the way.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file, not a folder")
    config_file = folder / CONFIG
    if not config_file.exists():
        # A lock, and a settings file that an interruption left unfinished, are ours.
        ours = (LOCK, f".{CONFIG}.new")
        foreign = [path.name for path in folder.iterdir() if path.name not in ours] if folder.exists() else []
        if foreign:
            raise UserError(f"--out {folder} contains other files ({foreign[0]}); choose a new or empty folder")
        return
    try:
        known = read_json(config_file, object)
    except UserError:
        if overwrite and config_file.is_file():
            return
        raise
    if kind_of(known) != kind:
        raise UserError(
            f"--out {folder} contains no {kind}: its {CONFIG} belongs to something else; choose another folder"
        )
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
            f"--out {folder} contains another {kind}: {'; '.join(differences)}; choose another --out or use "
            "--overwrite to start over"
        )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock an existing folder against other processes; the lock of a killed process does not count.

    Raises:
        UserError: if another process holds the lock; the message names it.
    """
    file = folder / LOCK
    lock = filelock.FileLock(file, timeout=0, thread_local=False)
    holder = _holder(file)  # read first, since some versions of filelock truncate the file that they try to lock
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(
            f"--out {folder} is in use by {holder}; wait for it to end, stop it, or choose another folder"
        ) from None
    try:
        mine = f"{os.getpid()}\n{socket.gethostname()}\n"
        # On a file system without locks, filelock has written this already, and more.
        if not file.read_text(errors="replace").startswith(mine):
            file.write_text(mine)
        yield
    finally:
        with contextlib.suppress(OSError):  # a lock file that stays does no harm
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
    """Create, check and lock a folder, and write its settings; it stays locked while the context is open.

    Args:
        settings, folder: as in `check_folder`.
        overwrite: start over: remove `contents` first.
        contents: names of the files and folders that such a folder holds besides its settings.
        extends: prefix or prefixes of settings that are kept if only the folder has them.
        notes: stored with the settings, but do not identify the results. `extends` must cover their names.
        changes: settings that may differ; the new ones replace those in the folder.

    Raises:
        UserError: as in `check_folder`, or if the folder cannot be written, or another process has locked it.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder))
            # Check again under the lock: another process may have changed the folder.
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
            raise UserError(f"--out {folder} cannot be written ({error.strerror}); choose another folder") from error
        yield


def command_line() -> str:
    """Return the command that started this process, quoted for a shell."""
    if Path(sys.argv[0]).name == "__main__.py":
        return shlex.join(["python", "-m", "mnv2_jax", *sys.argv[1:]])
    return shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])


# --- What a computation leaves ---------------------------------------------------------------------------


def settings_of(options: Any, experiment: str) -> dict[str, Any]:
    """Return a computation's settings for config.json: its name, and all flags but --out and --overwrite."""
    flags = {name: value for name, value in dataclasses.asdict(options).items() if name not in ("out", "overwrite")}
    return {"experiment": experiment, **flags}


_computation = contextlib.ExitStack()
"""Keeps the folder of this process's computation locked."""
atexit.register(_computation.close)


def open_results(
    settings: Mapping[str, Any],
    folder: Path,
    overwrite: bool,
    others: Iterable[str] = (),
    shape: Any = MappingProxyType({}),
) -> dict[str, Any] | None:
    """Check and lock a folder for a computation, until its results are written.

    Args:
        settings, folder, overwrite: as in `check_folder`.
        others: names of what the folder holds besides summary and figure.
        shape: expected shape of the summary, as in `misfit`.

    Returns:
        The summary if the computation is finished, so that only the figure has to be drawn again; else None.

    Raises:
        UserError: if the folder holds something else or a damaged summary, or cannot be written.
    """
    _computation.close()
    check_folder(settings, folder, overwrite, "computation")
    _computation.enter_context(claim_folder(settings, folder, overwrite, (SUMMARY, *FIGURES, *others)))
    file = folder / SUMMARY
    return read_json(file, dict(shape)) if file.exists() else None


def write_results(folder: Path, found: Mapping[str, Any], figure: "Figure") -> None:
    """Write a computation's summary and figure, and unlock its folder.

    The command and the environment are added to the summary, unless it was read back and has them.
    """
    if "environment" not in found:
        from mnv2_jax.environment import environment

        found = {**found, "command": command_line(), "environment": environment()}
    write_json(folder / SUMMARY, found)
    save_figure(figure, folder)
    _computation.close()


def name_results(console: "Console", folder: Path, known: object = None) -> None:
    """Print the paths of the results, and whether the summary was `known` before."""
    if known is not None:
        console.print("Already computed: only the figure is redrawn. Use --overwrite to start over.", markup=False)
    for name in (FIGURES[0], SUMMARY):
        console.print(str(folder / name), markup=False)


def save_figure(figure: "Figure", folder: Path, formats: Iterable[str] = ("png", "svg"), name: str = "figure") -> None:
    """Write figure.png and figure.svg, or files of another name or format; the same figure gives the same bytes."""
    import matplotlib
    import matplotlib.pyplot as plt

    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    # SVG ids and dates would otherwise change from run to run.
    with matplotlib.rc_context({"svg.hashsalt": "mnv2_jax"}):
        for suffix in formats:
            temporary = folder / f".{name}.new.{suffix}"
            figure.savefig(temporary, dpi=150, metadata=metadata[suffix])
            temporary.replace(folder / f"{name}.{suffix}")
    plt.close(figure)
