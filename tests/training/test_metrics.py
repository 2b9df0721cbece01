"""Records: one JSON object per line, which readers see complete or not at all."""

import dataclasses
import json

import pytest

from mnv2_jax.errors import UserError
from mnv2_jax.training.metrics import Record, from_line, read_records, to_line, write_records

RECORD = Record("linear", 0, 10, "train", 1.5, {"loss": 0.25, "accuracy": 0.75}, 160, 99.0)


def test_records_survive_the_file_and_a_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == []
    write_records(path, [RECORD, dataclasses.replace(RECORD, seed=1)])
    with path.open("a") as file:
        file.write(to_line(RECORD)[:20])
    assert read_records(path) == [RECORD, dataclasses.replace(RECORD, seed=1)]


def test_a_line_that_is_no_record_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(to_line(RECORD) + "{}\n")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2, is not a record"):
        read_records(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"step": "10"}, 'step is "10", expected a whole number'),
        ({"loss": None}, "loss is null, expected a number"),
        ({"accuracy": [1]}, r"accuracy is \[1\], expected a number"),
        ({"images_per_second": "fast"}, "images_per_second is"),
    ],
)
def test_a_field_of_another_type_is_named(change, says, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({**json.loads(to_line(RECORD)), **change}) + "\n")
    with pytest.raises(UserError, match=f"metrics.jsonl, line 1, is not a record of a run .{says}"):
        read_records(path)


def test_a_record_without_the_metric_that_is_asked_for_is_named(tmp_path):
    write_records(tmp_path / "x", [RECORD])
    with pytest.raises(UserError, match="line 1, is not a record of a run .distance is missing"):
        read_records(tmp_path / "x", "distance")


def test_metrics_are_the_task_s_whatever_they_are_called():
    record = dataclasses.replace(RECORD, metrics={"loss": 1.0, "distance": 2.5, "ap": 0.3})
    assert from_line(to_line(record)) == record
