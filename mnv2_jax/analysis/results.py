"""What a script leaves that computes and trains no study: config.json, figure.png, figure.svg and summary.json."""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnv2_jax.training.folder import check_folder, claim_folder
from mnv2_jax.training.metrics import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

SUMMARY = "summary.json"
CONTENTS = (SUMMARY, "figure.png", "figure.svg")


def settings_of(options: Any, experiment: str, dataset: str) -> dict[str, Any]:
    """The flags that results follow from, as config.json keeps them; not where they go."""
    flags = {name: value for name, value in dataclasses.asdict(options).items() if name not in ("out", "overwrite")}
    return {"experiment": experiment, "dataset": dataset, **flags}


def open_results(settings: Mapping[str, Any], folder: Path, overwrite: bool, others: Sequence[str] = ()) -> None:
    """Make a folder that of the results of these settings; `others` are what it holds besides `CONTENTS`.

    Raises:
        UserError: if it holds something else, or cannot be written.
    """
    check_folder(settings, folder, overwrite, "study")
    claim_folder(settings, folder, overwrite, (*CONTENTS, *others))


def write_results(folder: Path, found: Mapping[str, Any], figure: "Figure") -> None:
    """Write figure and summary, with the command and the environment that they come from."""
    from mnv2_jax.ablation import plots
    from mnv2_jax.environment import environment

    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    write_atomically(
        folder / SUMMARY, json.dumps({**found, "command": command, "environment": environment()}, indent=2) + "\n"
    )
    plots.save(figure, folder)


def name_results(console: "Console", folder: Path) -> None:
    """Say where to look."""
    for name in ("figure.png", SUMMARY):
        console.print(str(folder / name), markup=False)
