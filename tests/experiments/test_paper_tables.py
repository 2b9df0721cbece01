"""The numbers that paper_tables.py recomputes, its marks, and its files."""

import csv
import importlib.util
import itertools
import math
import re
import sys
import unicodedata
from pathlib import Path

import pytest

from mnv2_jax import cli

SCRIPT = Path(__file__).parents[2] / "experiments" / "paper_tables.py"

# Released checkpoints, exact to 0.01 million.
MULTIPLY_ADDS = {
    "1.4_224": 582.20, "1.3_224": 509.37,
    "1.0_224": 300.77, "1.0_192": 221.32, "1.0_160": 154.08, "1.0_128": 99.07, "1.0_96": 56.29,
    "0.75_224": 209.07, "0.75_192": 153.94, "0.75_160": 107.30, "0.75_128": 69.13, "0.75_96": 39.45,
    "0.5_224": 97.13, "0.5_192": 71.70, "0.5_160": 50.18, "0.5_128": 32.58, "0.5_96": 18.89,
    "0.35_224": 59.29, "0.35_192": 43.90, "0.35_160": 30.87, "0.35_128": 20.22, "0.35_96": 11.93,
}  # fmt: skip


@pytest.fixture(scope="module")
def script():
    """Load the script as a module, so that each network is counted once for all tests."""
    # Like Python when it runs the script, so that its sibling modules are found.
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("paper_tables", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # dataclasses looks up the module of a class here.
    sys.modules["paper_tables"] = module
    spec.loader.exec_module(module)
    sys.path.remove(str(SCRIPT.parent))
    yield module
    del sys.modules["paper_tables"]


@pytest.fixture(scope="module")
def tables(script):
    return {table.name: table for table in (make() for make in script.TABLES)}


@pytest.fixture
def run(script, monkeypatch):
    """Run the command in this process; return its exit code, 0 if it returns normally."""
    # These would change this process permanently.
    monkeypatch.setattr(cli, "silence_libraries", lambda: None)
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)

    def command(*flags):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, flags)])
        try:
            cli.run(script.main, script.Options, script.__doc__)
        except SystemExit as stop:
            return stop.code
        return 0

    return command


def cells(table, column):
    """Return the cells of a column, by row."""
    place = [column.title for column in table.columns].index(column)
    return {row.name: row.cells[place] for row in table.rows}


def differences(tables):
    return {
        (table.name, row.name, column.title)
        for table in tables.values()
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
        if cell.differs
    }


def test_all_released_checkpoints_agree_exactly(script, tables):
    assert {f"{row.width}_{row.resolution}" for row in script.paper.RELEASED} == MULTIPLY_ADDS.keys()
    for row in script.paper.RELEASED:
        cost = script.multiply_adds(script.V2, row.width, row.resolution)
        size = script.parameters(script.V2, row.width)
        assert math.floor(cost) == int(row.multiply_adds)
        assert round(cost, 2) == MULTIPLY_ADDS[f"{row.width}_{row.resolution}"]
        assert f"{size:.2f}" == row.parameters
        # The released networks have one more class, hence one more classifier column, which changes neither number.
        features = script.layers(script.V2, row.width, row.resolution)[-1].input_shape[-1]
        assert math.floor(cost + features / 1e6) == int(row.multiply_adds)
        assert f"{size + (features + 1) / 1e6:.2f}" == row.parameters
    assert not any(cell.differs for row in tables["released"].rows for cell in row.cells)


def test_tables_1_and_2_agree_row_by_row(tables):
    for name, rows in (("table1", 3), ("table2", 11)):
        assert len(tables[name].rows) == rows
        assert not any(cell.differs for row in tables[name].rows for cell in row.cells)
    assert [cell.recomputed for cell in tables["table2"].rows[3].cells] == [
        "56² × 24",
        "bottleneck",
        "6",
        "32",
        "3",
        "2",
    ]
    assert [cell.recomputed for cell in tables["table1"].rows[2].cells] == [
        "56 × 56 × 96", "linear 1x1 conv2d", "56 × 56 × 24",
    ]  # fmt: skip


def test_table_3_recomputed(tables):
    table = tables["table3"]
    rows = ("112", "56", "28", "14", "7", "1")
    expected = {
        "V1 ch.": ["64", "128", "256", "512", "1024", "1024"],
        "V1 KB": ["1605.6", "802.8", "401.4", "200.7", "100.4", "2.0"],
        "V2 ch.": ["16", "24", "32", "96", "320", "1280"],
        "V2 KB": ["401.4", "150.5", "50.2", "37.6", "31.4", "2.6"],
    }
    for column, values in expected.items():
        assert [cells(table, column)[row].recomputed for row in rows] == values
    assert [cells(table, column)["max"].recomputed for column in ("V1 KB", "V2 KB", "SN KB")] == [
        "1605.6",
        "401.4",
        "800",
    ]


def test_table_3_pairs_widths_with_the_resolution_before_their_stride(script, tables):
    published = cells(tables["table3"], "V2 ch.")
    for before, row in itertools.pairwise(script.table_rows(script.layers(script.V2))):
        if row.operator == "bottleneck" and row.stride == 2 and before.channels != 16:
            assert published[str(row.input_shape[0])].published == str(row.channels)


def test_peak_memory(script, tables):
    layers = script.layers(script.V2)
    peak = max(layer.activation_bytes(script.FP16) for layer in layers)
    assert peak == 3_010_560
    assert max(unit.activation_bytes(script.FP16) for unit in script.units(layers)) == 1_204_224
    assert [cell.recomputed for cell in cells(tables["memory"], "V2 KB").values()] == [
        "401.4",
        "1204.2",
        "702.5",
        "3010.6",
    ]
    # The remark holds: a shortcut's input, kept while the block runs, does not raise the peak.
    shortcuts = [block for block in script.blocks(script.V2) if block.input_shape == block.output_shape]
    held = [
        layer.activation_bytes(script.FP16) + math.prod(block.input_shape) * script.FP16
        for block in shortcuts
        for layer in block.layers
    ]
    assert max(held) < peak


def test_table_4_recomputes_only_our_networks(tables):
    sizes, costs = cells(tables["table4"], "params, M"), cells(tables["table4"], "multiply-adds, M")
    assert {name: cell.recomputed for name, cell in sizes.items()} == {
        "MobileNetV1": "4.21", "ShuffleNet (1.5)": "not recomputed", "ShuffleNet (x2)": "not recomputed",
        "NasNet-A": "not recomputed", "MobileNetV2": "3.47", "MobileNetV2 (1.4)": "6.06",
    }  # fmt: skip
    assert [costs[name].recomputed for name in ("MobileNetV1", "MobileNetV2", "MobileNetV2 (1.4)")] == [
        "568.7", "300.8", "582.2",
    ]  # fmt: skip


def test_marks(script, tables):
    assert differences(tables) == {
        ("text", "residual bottleneck layers", "size"),
        ("text", "fewest multiply-adds, M", "size"),
        ("text", "most multiply-adds, M", "size"),
        ("text", "most params, M", "size"),
        *(("table3", pixels, f"V2 {what}") for pixels in ("56", "28", "14") for what in ("ch.", "KB")),
        ("table3", "7", "V1 KB"),
        ("table3", "7", "V2 KB"),
        ("table3", "max", "SN KB"),
        ("memory", "each block as one operator", "V1 KB"),
        ("memory", "each block as one operator", "V2 KB"),
        ("table4", "MobileNetV1", "multiply-adds, M"),
        ("table4", "MobileNetV2 (1.4)", "params, M"),
        ("table4", "MobileNetV2 (1.4)", "multiply-adds, M"),
    }
    count = len(differences(tables))
    assert script.summary(list(tables.values())).endswith(f", {count} of them differ.")
    assert f"{count} other entries differ" in script.__doc__


def test_every_difference_has_a_sentence_and_every_sentence_a_difference(script, tables):
    assert differences(tables) == set(script.paper.EXPLANATIONS)


@pytest.mark.parametrize(
    ("published", "exact", "differs"),
    [("3.47", 3.47076, False), ("3.4", 3.47076, False), ("3.5", 3.47076, False), ("3.3", 3.47076, True), ("300", 300.77, False),
     ("300", 301.0, True), ("–", 7.0, False)],
)  # fmt: skip
def test_numbers_agree_rounded_or_cut_off(script, published, exact, differs):
    assert script.number(published, exact).differs is differs


@pytest.mark.parametrize(
    ("published", "size", "differs"),
    [
        ("1600", 1_605_632, False),
        ("62", 62_720, False),
        ("2", 2_560, False),
        ("32", 31_360, True),
        ("199", 100_352, True),
    ],
)
def test_memory_agrees_at_two_digits(script, published, size, differs):
    assert script.kilobytes(published, size).differs is differs


@pytest.mark.parametrize(
    ("published", "ours", "differs"),
    [("conv2d", "conv2d 3x3", False), ("–", "1280", False), ("16", "160", True), ("conv2d 1x1", "conv2d 3x3", True)],
)
def test_words_agree_where_the_paper_says_no_more(script, published, ours, differs):
    assert script.word(published, ours).differs is differs


def test_files_and_terminal(run, script, tmp_path, capsys):
    assert run("--out", tmp_path / "one") == 0
    output = capsys.readouterr().out
    written = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert written.keys() == {
        "paper_tables.md", "table1.csv", "table2.csv", "table3.csv", "table4.csv", "memory.csv", "released.csv", "text.csv",
        "figure.png", "figure.svg",
    }  # fmt: skip

    assert run("--out", tmp_path / "two") == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()} == written

    grids = [line for line in output.splitlines() if str(tmp_path) not in line]
    assert max(map(len, grids)) <= 120
    assert "…" not in output
    for part in ("as published", "recomputed", "Table 3", "3010.6", "6.06 ≠b", "not recomputed", "1.4_224"):
        assert part in output

    document = written["paper_tables.md"].decode()
    assert unicodedata.is_normalized("NFC", document)
    assert all(
        f"## {title}" in document for title in ("Table 1", "Table 2", "Sec. 4", "Table 3", "Sec. 5.1", "Table 4")
    )
    # In every table, each mark has an explanation below, and each explanation a mark.
    for section in document.split("\n## ")[1:]:
        marks = set(re.findall(r"≠([a-z]) \|", section))
        assert marks == set(re.findall(r"^≠([a-z]) ", section, re.MULTILINE))

    rows = list(csv.DictReader(written["table4.csv"].decode().splitlines()))
    assert rows[0]["multiply-adds, M differs"] == "yes"
    assert rows[1]["multiply-adds, M differs"] == ""
    assert rows[4]["params, M differs"] == "no"
    assert "569" in rows[0]["explanation"]
    assert len(list(csv.DictReader(written["released.csv"].decode().splitlines()))) == 22


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("taken", "is a file, not a folder"),
        ("taken/below", "cannot be written: Not a directory"),
        ("/proc/mine", "--out /proc/mine cannot be written"),
    ],
)
def test_a_bad_folder_is_one_line_and_exit_2(run, tmp_path, monkeypatch, capfd, out, says):
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("mine")
    assert run("--out", out) == 2
    output, errors = capfd.readouterr()
    assert output == ""
    assert errors.startswith("error: ")
    assert says in errors
    assert errors.count("\n") == 1
    assert Path("taken").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]
