"""The folder of a run or a study: whose it is, and what may be done to it."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mnv2_jax.errors import UserError
from mnv2_jax.training.metrics import write_atomically

CONFIG = "config.json"
"""What is asked, flat; a folder is that of a run or study if it has one."""

MARKS = {"run": {"dataset", "seed"}, "study": {"dataset", "experiment"}}
"""Settings by which a run's folder is known, and a study's."""


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they read back from JSON: lists for tuples."""
    return json.loads(json.dumps(settings))


def check_folder(
    settings: Mapping[str, Any], folder: Path, overwrite: bool, kind: str, extends: str | None = None
) -> None:
    """Refuse a folder that holds something else. Writes nothing.

    Args:
        settings: what makes two runs, or studies, the same one.
        folder: of the command line.
        overwrite: whether another one's files may be replaced.
        kind: "run" or "study".
        extends: settings whose names begin with this may be there or here alone.

    Raises:
        UserError: says what differs, or what is in the way.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder")
    config_file = folder / CONFIG
    if not config_file.exists():
        # What an interruption left of the settings' own file is ours.
        foreign = [path.name for path in folder.iterdir() if path.name != f".{CONFIG}.new"] if folder.exists() else []
        if foreign:
            raise UserError(f"--out {folder} holds files of something else ({foreign[0]}); name a new or empty folder")
        return
    wanted = plain(settings)
    try:
        known = json.loads(config_file.read_text())
        if not isinstance(known, dict) or not MARKS[kind] <= known.keys():
            raise UserError(f"--out {folder} holds no {kind}: its {CONFIG} is of something else; name another folder")
        if overwrite:
            return
        differences = [
            f"{name} is {known.get(name)!r} there and {wanted.get(name)!r} here"
            for name in {**wanted, **known}
            if known.get(name) != wanted.get(name)
            and not (extends and name.startswith(extends) and (name in wanted) != (name in known))
        ]
    except ValueError as error:
        if overwrite:
            return
        raise UserError(f"{config_file} is not a {kind}'s ({error}); name another --out or --overwrite it") from error
    if differences:
        raise UserError(
            f"--out {folder} holds another {kind}: {'; '.join(differences)}; name another --out, or --overwrite it"
        )


def claim_folder(
    settings: Mapping[str, Any], folder: Path, overwrite: bool, contents: Iterable[str], extends: str | None = None
) -> None:
    """Make a folder that was checked the run's, or the study's.

    Args:
        settings, folder: as in `check_folder`.
        overwrite: begin anew: remove `contents`.
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
        write_atomically(config_file, json.dumps({**plain(settings), **kept}, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written ({error.strerror}); name another folder") from error
