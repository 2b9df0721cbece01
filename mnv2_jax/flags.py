"""Parse a command line into a frozen dataclass of options, with errors of one sentence."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from mnv2_jax.errors import UserError

Options = TypeVar("Options")

HEADER_LINE = re.compile(r"(?<!\n)\n(?=(?:Command|Cost|Expect):)")
"""Line break before a header in a script's docstring. tyro joins lines; it keeps them apart at blank lines."""


def parse(
    options: type[Options],
    description: str,
    arguments: list[str] | None = None,
    program: str | None = None,
    default: Callable[[list[str]], Options] | None = None,
) -> Options:
    """Parse the command line into a frozen dataclass; each field is a flag, and its docstring is the help.

    Args:
        options: the dataclass.
        description: the first lines of the help.
        arguments: parsed instead of the process's own arguments.
        program: the program's name in the help.
        default: returns the default options for given arguments, for commands in which one flag sets others.

    Raises:
        UserError: for any error that tyro would report in a box of several lines.
        SystemExit: after --help.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    description = HEADER_LINE.sub("\n\n", description)
    start = None if default is None else default(arguments)
    extra: dict[str, Any] = {} if start is None else {"default": start}
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return expand_paths(tyro.cli(options, description=description, args=arguments, prog=program, **extra))
    except SystemExit as stop:
        if not stop.code:
            raise
        fields = () if extra else dataclasses.fields(options)  # type: ignore[arg-type]
        required = [_flag(each.name) for each in fields if _is_required(each)]
        sentence = _sentence(output.getvalue(), arguments, flag_types(options), required)
        raise UserError(f"{sentence}; see --help") from None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def flag_types(options: type) -> dict[str, Any]:
    """Return the type of each flag's value."""
    flags: dict[str, Any] = {"--help": bool}
    for name, hint in get_type_hints(options).items():
        if dataclasses.is_dataclass(hint):
            flags |= flag_types(hint)  # type: ignore[arg-type]
        else:
            flags[_flag(name)] = hint
            if hint is bool:
                flags[_flag(f"no_{name}")] = hint
    return flags


def _sentence(box: str, arguments: list[str], flags: Mapping[str, Any], required: Sequence[str]) -> str:
    """Return one sentence that says what is wrong with the arguments, from tyro's box of several lines."""
    given: dict[str, list[str]] = {}
    values: list[str] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            values = given[_flag(name.strip("-"))] = [value] if equals else []
        else:
            values.append(argument)
    unknown = next((flag for flag in given if flag not in flags), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, flags, 1, cutoff=0.7)
        return f"unrecognized option {unknown}" + "".join(f" (did you mean {flag}?)" for flag in near)
    missing = [flag for flag in required if flag not in given]
    if missing:
        return f"{' and '.join(missing)} must be given"
    # The first paragraph; hints follow after a rule. In an ASCII terminal the box is drawn with - and spaces.
    rows = [line.strip("│| ") for line in box.splitlines()[1:]]
    paragraphs = (
        list(group) for is_text, group in itertools.groupby(rows, lambda row: bool(row.strip("─-╰╯+"))) if is_text
    )
    said = " ".join(next(paragraphs, [])).rstrip(".")
    kind, _, stray = said.partition(": ")
    if kind.startswith("Unrecognized"):
        return f"unrecognized argument {stray}"
    flag = next((flag for flag in re.findall(r"--[\w-]+", said) if flag in given), "")
    got = " ".join(given.get(flag, ()))
    choices, types = _leaves(flags.get(flag))
    if flag and not got:
        return f"{flag} needs a value"
    if choices:
        return f"unknown {flag} {got}; choose from {', '.join(map(str, choices))}"
    if int in types or float in types:
        return f"{flag} takes {'numbers' if float in types else 'whole numbers'}, got {got}"
    return said


def _leaves(hint: Any) -> tuple[list[Any], list[Any]]:
    """Return (the values of a type's Literals, the other types that it consists of)."""
    if get_origin(hint) is Literal:
        return list(get_args(hint)), []
    parts = [_leaves(part) for part in get_args(hint)]
    return [value for values, _ in parts for value in values], [hint, *(kind for _, kinds in parts for kind in kinds)]


def expand_paths(options: Options) -> Options:
    """Expand `~` and `$VARIABLE` in every path, since a shell expands `~` only at the start of a word.

    Raises:
        UserError: for gs://BUCKET and other URLs, and for a home folder or variable that does not exist.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = expand_paths(value)
        elif isinstance(value, Path):
            changes[field.name] = _expanded(value)
        elif isinstance(value, tuple) and any(isinstance(each, Path) for each in value):
            changes[field.name] = tuple(_expanded(each) for each in value)
        elif isinstance(value, str) and field.name in ("weights", "input"):  # a path, or the name of a model on a hub
            changes[field.name] = str(_expanded(Path(value))) if value[:1] == "~" or "$" in value else value
    return dataclasses.replace(options, **changes)  # type: ignore[type-var]


def _expanded(path: Path) -> Path:
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
        url = str(path).replace(":/", "://", 1)
        raise UserError(f"{url} is not a local path; mount it and use the folder where it is mounted")
    found = os.path.expandvars(os.path.expanduser(path))
    if found.startswith("~"):
        raise UserError(f"{path}: there is no home folder of that name; write the full path")
    if unset := re.search(r"\$\{?([A-Za-z_]\w*)", found):
        raise UserError(f"{path}: the environment variable {unset[1]} is not set; set it, or write the full path")
    return Path(found)
