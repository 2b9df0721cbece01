"""Cases of bad input: a command, its flags, and what the one error line must say.

Every flag of every command is given values that its type rules out (`wrong_values`), so new flags and commands are
covered without further work. Cases that require knowledge of a flag are in `campaign.table`. `{world}` is the folder of
`campaign.world`.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import NamedTuple

from experiments.scripts import EXPERIMENTS, STUDIES

from campaign.conftest import module_of
from campaign.table import CONVERSIONS, OTHERS, RUNS, STUDIES_AND_REPORTS, TRAINED
from mnv2_jax.ablation.design import StudyOptions


class Case(NamedTuple):
    """Flags of a command, and words that the error line must contain."""

    command: str
    flags: tuple[str, ...]
    says: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.command, *self.flags)).replace("{world}/", "")


SCRIPTS = sorted(path.stem for path in EXPERIMENTS.glob("*.py") if "class Options" in path.read_text())

STUDY = "--seeds 2 --epochs 1 --train-images 64 --batch-size 32 --evaluations 1 --resolution 12 --width-multiplier 0.1"
VALID = {
    "train": "--epochs 1 --train-images 64 --batch-size 32 --evaluations 1 --resolution 12 --width-multiplier 0.1",
    "predict": "--weights {world}/network --image {world}/photo.jpg",
    "evaluate": "--weights {world}/run",
    "convert": "--input {world}/published.safetensors --output out",
    "summary": "--width-multiplier 0.1",
    "plan": "",
    **dict.fromkeys(STUDIES, STUDY),
}
"""Flags with which a command would work; a case adds what is wrong."""

UNLIKE_OTHERS = {("datasets", "action")}
"""Positional arguments, which have no flag name."""


# --- What a flag's type rules out --------------------------------------------------------------------------


def flags_of(options: type) -> Iterator[tuple[str, object]]:
    """Yield (name, type) of every field, including those of nested groups."""
    hints = typing.get_type_hints(options, include_extras=False)
    for field in dataclasses.fields(options):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from flags_of(kind)
        else:
            yield field.name, kind


def wrong_values(kind: object) -> tuple[str, ...]:
    """Return values that are invalid for any flag of a type; for numbers, those that no count, size or fraction has."""
    inner = [each for each in typing.get_args(kind) if each not in (type(None), Ellipsis)]
    if typing.get_origin(kind) in (typing.Union, types.UnionType, tuple):
        return wrong_values(inner[0]) if len(set(inner)) == 1 else ()
    if typing.get_origin(kind) is typing.Literal:
        return ("foo", "")
    return {int: ("one", "1.5", "-1", ""), float: ("much", "nan", "-inf", "")}.get(kind, ())  # type: ignore[call-overload]


def generated(command: str) -> Iterator[Case]:
    """Yield a case for each flag of a command and each value that its type rules out."""
    options = module_of(command).Options
    # All studies share flags, so those are tried on one study only.
    shared = {name for name, _ in flags_of(StudyOptions)} if command in STUDIES[1:] else set()
    for name, kind in flags_of(options):
        flag = f"--{name.replace('_', '-')}"
        for value in wrong_values(kind) if name not in shared else ():
            if (command, name) not in UNLIKE_OTHERS:
                yield Case(command, (*VALID.get(command, "").split(), f"{flag}={value}"), (flag,))
    yield Case(command, ("--no-such-flag",), ("--no-such-flag",))
    yield Case(command, ("--no-such-flag=3",), ("--no-such-flag",))


# --- All of it ---------------------------------------------------------------------------------------------


def table() -> Iterator[Case]:
    """Yield the handwritten cases."""
    for command, flags, *says in (*RUNS, *TRAINED, *CONVERSIONS, *STUDIES_AND_REPORTS, *OTHERS):
        valid = "" if flags.startswith("! ") else VALID.get(command, "")
        yield Case(command, (*valid.split(), *flags.removeprefix("! ").split()), tuple(says))


def cases(commands: typing.Iterable[str]) -> list[Case]:
    """Return all cases of some commands, each once."""
    found = [case for command in commands for case in generated(command)]
    chosen = [case for case in (*found, *table()) if case.command in set(commands)]
    return list(dict.fromkeys(chosen))
