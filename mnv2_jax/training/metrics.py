"""Metrics as records: one JSON object a line, written as they come, read back to continue."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from mnv2_jax.errors import UserError
from mnv2_jax.results import ANEW, misfit, parse_json, read_text, write_atomically


@dataclasses.dataclass(frozen=True)
class Record:
    """What one run measured at one step.

    Attributes:
        arm, seed: the run.
        step: steps done.
        split: "train" (mean over the steps since the last record), "validation" or "test" (all of it).
        wall_seconds: since the run began, evaluation included, compilation not.
        metrics: by name, those of the task; "loss" is one of them.
        images: how many images they are means over.
        images_per_second: in training, since the last record; None for evaluations.
    """

    arm: str
    seed: int
    step: int
    split: str
    wall_seconds: float
    metrics: Mapping[str, float]
    images: int
    images_per_second: float | None = None


FIELDS = {field.name for field in dataclasses.fields(Record)} - {"metrics"}
SHAPE = {"arm": str, "seed": int, "step": int, "split": str, "wall_seconds": float, "images": int}
"""What a line has to hold besides its metrics."""


def to_line(record: Record) -> str:
    """The record as a line of JSON, its metrics among its fields."""
    fields = dataclasses.asdict(record)
    return json.dumps({**fields.pop("metrics"), **fields}) + "\n"


def from_line(line: str) -> Record:
    """The record that `to_line` wrote.

    Raises:
        ValueError: says what of it is no record.
    """
    content = parse_json(line, SHAPE)
    speed = content.get("images_per_second")
    fields = {name: content.pop(name) for name in FIELDS & content.keys()}
    problem = misfit(speed, (float, type(None)), "images_per_second") or misfit(content, {"loss": float, str: float})
    if problem:
        raise ValueError(problem)
    return Record(metrics=content, **fields)


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a whole file of records."""
    write_atomically(path, "".join(map(to_line, records)))


def read_records(path: Path, metric: str = "loss") -> list[Record]:
    """All records of a file; none if there is no file. A last line cut short by an interruption is left out.

    Args:
        path: the file.
        metric: what each of them has to have.

    Raises:
        UserError: if another line is no record.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(read_text(path).split("\n")[:-1], start=1):
        try:
            record = from_line(line)
            if metric not in record.metrics:
                raise ValueError(f"{metric} is missing")
        except ValueError as error:
            raise UserError(f"{path}, line {number}, is no record of a run ({error}); {ANEW}") from error
        records.append(record)
    return records
