"""Parsers on arbitrary bytes and values: they return what was meant or refuse in one line."""

import dataclasses
import gzip
import hashlib
import io
import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from mnv2_jax.data.builders.fashion_mnist import IdxFile, read_idx
from mnv2_jax.data.jpeg import decode, read_frame
from mnv2_jax.data.sources import Example
from mnv2_jax.errors import UserError
from mnv2_jax.network import describe, from_description
from mnv2_jax.results import append_line, read_lines
from mnv2_jax.training.config import RECIPES, Execution, Recipe, evaluation_steps
from mnv2_jax.training.metrics import Record, read_records, write_records

pytestmark = pytest.mark.campaign

# Each example writes its file again, so a fixture per function is fine.
settings.register_profile("campaign", deadline=None, max_examples=200, derandomize=True,
                          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip
settings.load_profile("campaign")

NUMBERS = st.integers(-(2**70), 2**70) | st.floats()
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
"""Everything that JSON can hold."""


def or_one_line(function, *arguments, **named):
    """Return what a function returns; None if it raises a `UserError`."""
    try:
        return function(*arguments, **named)
    except UserError as error:
        assert str(error).strip()  # noqa: PT017 (either is right)
        return None


# --- IDX ---------------------------------------------------------------------------------------------------


def idx_of(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


ARRAYS = st.integers(0, 2**32 - 1).flatmap(
    lambda seed: st.lists(st.integers(1, 5), min_size=1, max_size=3).map(
        lambda shape: np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    )
)


@given(array=ARRAYS, zipped=st.booleans(), data=st.data())
def test_idx_gives_what_was_written_or_one_line(tmp_path, array, zipped, data):
    content = idx_of(array)
    file, path = IdxFile("name", array.shape, hashlib.sha256(content).hexdigest()), tmp_path / "idx"
    stored = gzip.compress(content) if zipped else content
    path.write_bytes(stored)
    np.testing.assert_array_equal(read_idx(path, file), array)

    position = data.draw(st.integers(0, len(stored) - 1))
    damaged = data.draw(st.sampled_from(["cut", "changed", "longer"]))
    if damaged == "changed":
        change = data.draw(st.integers(1, 255))
        stored = stored[:position] + bytes([stored[position] ^ change]) + stored[position + 1 :]
    else:
        stored = stored[:position] if damaged == "cut" else stored + data.draw(st.binary(min_size=1, max_size=9))
    path.write_bytes(stored)
    found = or_one_line(read_idx, path, file)
    # A changed gzip header may leave the content intact.
    if found is not None:
        np.testing.assert_array_equal(found, array)


@given(content=st.binary(max_size=200), zipped=st.booleans())
def test_any_bytes_are_no_idx(tmp_path, content, zipped):
    path = tmp_path / "idx"
    path.write_bytes(gzip.compress(content) if zipped else content)
    assert or_one_line(read_idx, path, IdxFile("name", (3,), "0" * 64)) is None


# --- JPEG --------------------------------------------------------------------------------------------------


def jpeg_of(seed, height, width, grey, **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 1 if grey else 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


JPEGS = st.builds(jpeg_of, st.integers(0, 99), st.integers(1, 70), st.integers(1, 70), st.booleans(),
                  quality=st.sampled_from([30, 90]), progressive=st.booleans(), optimize=st.booleans())  # fmt: skip


@given(content=JPEGS, comment=st.binary(max_size=30))
def test_a_jpegs_header_says_its_size(content, comment):
    size = Image.open(io.BytesIO(content)).size
    with_comment = content[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + content[2:]
    for each in (content, with_comment):
        frame = read_frame(each)
        assert (frame.width, frame.height) == size
        assert int.from_bytes(each[frame.position : frame.position + 2], "big") == frame.height


@given(content=st.binary(max_size=300) | st.binary(max_size=300).map(lambda content: b"\xff\xd8\xff" + content))
def test_any_bytes_are_no_jpeg(content):
    assert or_one_line(decode, Example(content, 0, "bytes"), 3) is None
    read_frame(content)


def changed(content, position, change):
    """Change one byte."""
    at = int(position * len(content))
    return content[:at] + bytes([content[at] ^ change]) + content[at + 1 :]


def stretched(content, position, change):
    """Insert stray bytes before one of the segments."""
    segments = [match.start() for match in re.finditer(rb"\xff[\xc0-\xc4\xda\xdb\xe0]", content)]
    at = segments[int(position * len(segments))]
    return content[:at] + bytes([change]) * (change % 9 + 1) + content[at:]


@given(content=JPEGS, damage=st.sampled_from([changed, stretched]), position=st.floats(0, 1, exclude_max=True),
       change=st.integers(1, 255), share=st.floats(0.05, 1))  # fmt: skip
def test_a_damaged_jpeg_is_the_same_whatever_was_decoded_before_or_refused(content, damage, position, change, share):
    """The decoder's memory then holds another image."""
    damaged = damage(content, position, change)
    frame = read_frame(damaged)
    assume(frame is None or frame.height * frame.width < 1 << 16)
    rows = None if frame is None else max(1, int(share * frame.height))
    seen = []
    for before in (0, 255):
        buffer = io.BytesIO()
        Image.fromarray(np.full((80, 80, 3), before, np.uint8)).save(buffer, "JPEG")
        decode(Example(buffer.getvalue(), 0, "before"), 3)
        found = or_one_line(decode, Example(damaged, 0, "damaged"), 3, 1, rows)
        seen.append(None if found is None else found[:rows].copy())
    assert (seen[0] is None) == (seen[1] is None)
    if seen[0] is not None:
        np.testing.assert_array_equal(seen[0], seen[1])


# --- Records -----------------------------------------------------------------------------------------------

FINITE = st.floats(allow_nan=False, allow_infinity=False)
RECORDS = st.lists(
    st.builds(Record, st.text(max_size=5), st.integers(0, 9), st.integers(0, 99), st.sampled_from(["train", "test"]), FINITE,
              st.fixed_dictionaries({"loss": FINITE}, optional={"accuracy": FINITE}), st.integers(0, 99),
              st.none() | FINITE),
    max_size=4,
)  # fmt: skip


@given(records=RECORDS, share=st.floats(0, 1))
def test_records_come_back_and_a_cut_file_loses_its_last_alone(tmp_path, records, share):
    path = tmp_path / "metrics.jsonl"
    write_records(path, records)
    assert read_records(path) == records
    content = path.read_bytes()
    cut = content[: int(share * len(content))]
    path.write_bytes(cut)
    assert read_records(path) == records[: cut.count(b"\n")]


@given(content=st.binary(max_size=100) | st.lists(VALUES, max_size=4).map(
    lambda values: "".join(json.dumps(value) + "\n" for value in values).encode()))  # fmt: skip
def test_any_bytes_are_records_or_one_line(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    for record in or_one_line(read_records, path) or ():
        assert isinstance(record.step, int)
        assert all(isinstance(value, (int, float)) for value in record.metrics.values())
    or_one_line(read_lines, path, {})


@given(lines=st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), max_size=4), rest=st.binary(max_size=9))
def test_a_line_is_appended_behind_whole_lines(tmp_path, lines, rest):
    path = tmp_path / "lines.jsonl"
    path.unlink(missing_ok=True)
    for line in lines[:-1]:
        append_line(path, line)
    if path.exists():
        path.write_bytes(path.read_bytes() + rest.replace(b"\n", b" "))
    if lines and or_one_line(append_line, path, lines[-1]) is None:
        assert json.dumps(or_one_line(read_lines, path, {}) or lines) == json.dumps(lines)


# --- Configurations ----------------------------------------------------------------------------------------

WHOLE, REAL = (
    [field.name for field in dataclasses.fields(Recipe) if field.type in (kind, kind | None)] for kind in (int, float)
)


@given(data=st.data(), name=st.sampled_from(WHOLE + REAL))
def test_a_recipe_has_a_length_and_rates_or_is_refused(data, name):
    whole, real = st.integers(-(2**40), 2**40) | st.integers(-3, 300), st.floats() | st.floats(-2, 2)
    value = data.draw(whole if name in WHOLE else real)
    recipe = or_one_line(Recipe, **{**vars(RECIPES["small"]), name: value})
    steps = recipe and or_one_line(recipe.steps, 1343)
    if steps:
        assert 0 < recipe.peak_learning_rate() < float("inf")
        assert 0 <= recipe.norm_momentum(steps) < 1
        assert steps in evaluation_steps(steps, recipe.evaluations)


@given(text=st.text(max_size=9))
def test_a_profile_is_two_steps_or_refused(text):
    execution = or_one_line(Execution, profile=text)
    if execution:
        first, last = execution.profiled
        assert 1 <= first <= last


@given(data=st.data())
def test_a_changed_description_of_a_network_is_a_network_or_refused(small_network, data):
    description = json.loads(json.dumps(describe(small_network)))
    part = data.draw(st.sampled_from([description, description["model"], description["task"]]))
    name = data.draw(st.sampled_from(sorted(part)))
    if data.draw(st.booleans()):
        part[name] = data.draw(VALUES)
    else:
        del part[name]
    found = or_one_line(from_description, description)
    if found is not None:
        assert json.loads(json.dumps(describe(found))).keys() == describe(small_network).keys()


@given(value=st.dictionaries(st.text(max_size=5), VALUES, max_size=3))
def test_any_json_is_no_description(value):
    assert or_one_line(from_description, value) is None


@pytest.fixture(scope="module")
def small_network():
    from commands.conftest import random_network

    from mnv2_jax import MobileNetV2

    return random_network(MobileNetV2(3, 0.1))
