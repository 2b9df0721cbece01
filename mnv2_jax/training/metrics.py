"""Metrics as JSON lines, one record per line: appended during training, read back on resume."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from mnv2_jax.errors import UserError
from mnv2_jax.results import ANEW, misfit, parse_json, read_text, write_atomically


@dataclasses.dataclass(frozen=True)
class Record:
    """The metrics of one run at one step.

    Attributes:
        arm, seed: the run.
        step: number of steps done.
        split: "train" (mean over the steps since the last record), "validation" or "test" (the whole split).
        wall_seconds: since the run began, with evaluation, without compilation.
        metrics: the task's metrics by name, including "loss".
        images: number of images the metrics are computed over.
        images_per_second: training speed since the last record; None for evaluations.
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
"""Fields that a line must have besides its metrics."""


def to_line(record: Record) -> str:
    """Return the record as a line of JSON, with its metrics among its fields."""
    fields = dataclasses.asdict(record)
    return json.dumps({**fields.pop("metrics"), **fields}) + "\n"


def from_line(line: str) -> Record:
    """Parse a record written by `to_line`.

    Raises:
        ValueError: if the line is not a record; says why.
    """
    content = parse_json(line, SHAPE)
    speed = content.get("images_per_second")
    fields = {name: content.pop(name) for name in FIELDS & content.keys()}
    problem = misfit(speed, (float, type(None)), "images_per_second") or misfit(content, {"loss": float, str: float})
    if problem:
        raise ValueError(problem)
    return Record(metrics=content, **fields)


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a file of records, replacing an existing one."""
    write_atomically(path, "".join(map(to_line, records)))


def read_records(path: Path, metric: str = "loss") -> list[Record]:
    """Read all records of a file, or none if it does not exist. An incomplete last line is ignored.

    Args:
        path: the file.
        metric: name of a metric that every record must have.

    Raises:
        UserError: if any other line is not a record.
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
            raise UserError(f"{path}, line {number}, is not a record of a run ({error}); {ANEW}") from error
        records.append(record)
    return records
