"""Do the tables of the paper follow from the networks? (MobileNetV2, Tables 1 to 4, Sec. 4 and 5.1)

Question: which published sizes, multiply-adds and memory figures come out of the modules, and which do not?
Command:  python experiments/paper_tables.py
Cost:     no training and no data; about 12 s on 2 CPU cores.
Expect:   Tables 1 and 2 and all 22 released checkpoints agree; 18 other entries differ, each with a sentence on why.

Nothing is looked up: what is recomputed is counted on the modules, which run on abstract shapes. The tables go to the
terminal and, with a figure of both networks layer by layer, to runs/paper_tables (or --out DIR).
"""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from mnv2_jax import cli
from mnv2_jax.ablation import plots
from mnv2_jax.ablation.progress import create_console
from mnv2_jax.errors import UserError
from mnv2_jax.models.blocks import ConvNorm
from mnv2_jax.models.cost import LayerCost, TableRow, Unit, layer_costs, table_rows, units
from mnv2_jax.models.create import create_model
from mnv2_jax.training.metrics import write_atomically

V1, V2 = "mobilenet_v1", "mobilenet_v2"
FP16 = 2  # bytes a value, as Sec. 5.1 and Table 3 count
PAPER = "Sandler et al., arXiv:1801.04381v4"
SLIM = "tensorflow/models, research/slim/nets/mobilenet/README.md"
NONE = "–"
NOT_RECOMPUTED = "not recomputed"
READING = (
    "≠ marks a recomputed entry that gives the published one neither rounded nor cut off to the digits published "
    "(memory: two digits). The paper cuts parameters off to 3.4 million, the slim table multiply-adds to whole millions.",
    "Parameters are without batch norm, as the paper and the slim table count them; multiply-adds are the kernels' alone. "
    "Networks have 1000 classes and, where nothing else is said, width 1.0 and 224 pixels.",
    "Memory is that of activations in fp16, for one image; 1 KB is 1000 B.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this script."""

    out: Path = Path("runs/paper_tables")
    """Folder for the tables and the figure; files of the same names are replaced."""


# --- A table, whatever it is rendered to -------------------------------------------------------------------


class Cell(NamedTuple):
    """What was published, what comes out of the modules, and whether the two differ."""

    published: str = NONE
    recomputed: str = NONE
    differs: bool = False

    @property
    def compared(self) -> bool:
        """Whether there are two entries to compare."""
        return self.published != NONE and self.recomputed not in (NONE, NOT_RECOMPUTED)


class Column(NamedTuple):
    """A quantity. One that is not recomputed is a quote, one that is not published is ours alone."""

    title: str
    published: bool = True
    recomputed: bool = True
    words: bool = False


class Row(NamedTuple):
    """A name, and a cell for every column."""

    name: str
    cells: tuple[Cell, ...]


class Entry(NamedTuple):
    """Where a cell is."""

    table: str
    row: str
    column: str


class Heading(NamedTuple):
    """Of a column as it is shown: a group begins where it is named."""

    group: str
    title: str
    words: bool


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as published beside itself recomputed.

    Attributes:
        name: of its CSV file.
        title, source: what it is and where it was published.
        row_title: what the rows' names are.
        columns, rows: the quantities and their cells.
        remarks: sentences that belong to no single cell.
    """

    name: str
    title: str
    source: str
    row_title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()

    def explanations(self, row: Row) -> list[str]:
        """For every column the sentence on why the row's two entries differ; empty where they do not."""
        return [
            EXPLANATIONS[Entry(self.name, row.name, column.title)] if cell.differs else ""
            for column, cell in zip(self.columns, row.cells, strict=True)
        ]

    def letters(self) -> dict[str, str]:
        """The letter of each explanation."""
        sentences = dict.fromkeys(sentence for row in self.rows for sentence in self.explanations(row) if sentence)
        return dict(zip(sentences, "abcdefghijklmnopqrstuvwxyz", strict=False))

    def headings(self) -> list[Heading]:
        """Of the columns of `lines`."""
        headings = [Heading("", self.row_title, True)]
        for group, shown in (
            ("as published", [column for column in self.columns if column.published]),
            ("recomputed", [column for column in self.columns if column.recomputed]),
        ):
            headings += [Heading("" if index else group, kind.title, kind.words) for index, kind in enumerate(shown)]
        return headings

    def lines(self) -> list[list[str]]:
        """The rows: name, all entries as published, then all recomputed, with marks."""
        letters = self.letters()
        lines = []
        for row in self.rows:
            published, recomputed = [], []
            for column, cell, sentence in zip(self.columns, row.cells, self.explanations(row), strict=True):
                published += [cell.published] if column.published else []
                mark = f" ≠{letters[sentence]}" if sentence else ""
                recomputed += [cell.recomputed + mark] if column.recomputed else []
            lines.append([row.name, *published, *recomputed])
        return lines

    def notes(self) -> Iterator[str]:
        """What stands below: the source, why entries differ, remarks."""
        yield f"Published: {self.source}."
        for sentence, letter in self.letters().items():
            yield f"≠{letter} {sentence}"
        yield from self.remarks


def quote(published: str) -> Cell:
    """An entry that is not ours to recompute: a measurement, or another network."""
    return Cell(published, NOT_RECOMPUTED)


def number(published: str, exact: float, shown: int = 0, places: int | None = None) -> Cell:
    """Compare a published number with the exact one, both rounded and cut off.

    Args:
        published: as it was printed; "–" compares with nothing.
        exact: ours.
        shown: decimals to show of it.
        places: decimals to compare, those of `published` if not given; negative for tens and hundreds.
    """
    shown_text = f"{exact:.{shown}f}"
    if published == NONE:
        return Cell(published, shown_text)
    scale = 10.0 ** (len(published.partition(".")[2]) if places is None else places)
    agreeing = (round(exact * scale) / scale, math.floor(exact * scale) / scale)
    return Cell(published, shown_text, not any(math.isclose(float(published), value) for value in agreeing))


def kilobytes(published: str, size: int) -> Cell:
    """Compare memory: the paper prints two digits (1600 for 1605.6) and no fractions of a kilobyte."""
    exact = size / 1000
    return number(published, exact, shown=1, places=min(0, 1 - math.floor(math.log10(exact))))


def word(published: str, ours: str) -> Cell:
    """Compare words. What the paper leaves open agrees, and so does "conv2d" with "conv2d 3x3"."""
    return Cell(published, ours, published != NONE and published != ours and not ours.startswith(f"{published} "))


def entries(table: str) -> list[list[str]]:
    """The entries of a table that is written with bars."""
    return [[entry.strip() for entry in line.split("|")] for line in table.strip().splitlines()]


# --- What the modules say ----------------------------------------------------------------------------------


def layers(name: str, width: float = 1.0, resolution: int = 224) -> tuple[LayerCost, ...]:
    """The layers of a network."""
    return layer_costs(create_model(name, width_multiplier=width), (resolution, resolution, 3))


def parameters(name: str, width: float = 1.0) -> float:
    """Millions, without batch norm. They do not depend on the resolution."""
    return sum(layer.parameters for layer in layers(name, width)) / 1e6


def multiply_adds(name: str, width: float = 1.0, resolution: int = 224) -> float:
    """Millions."""
    return sum(layer.multiply_adds for layer in layers(name, width, resolution)) / 1e6


def activations(name: str) -> dict[str, str]:
    """What follows each convolution and its norm, by the name of the layer."""
    found = {}

    def record(next_call, args, kwargs, context):
        if isinstance(context.module, ConvNorm):
            found["/".join(context.module.path)] = context.module.activation
        return next_call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(create_model(name).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return found


def blocks(name: str) -> list[Unit]:
    """The blocks of a network, without the layers before and after them."""
    return [unit for unit in units(layers(name)) if len(unit.layers) > 1]


def channels_between_blocks(name: str) -> dict[int, int]:
    """The most channels that leave a block, by resolution; at 1 pixel the pooled features."""
    most: dict[int, int] = {}
    for block in blocks(name):
        resolution, _, channels = block.output_shape
        most[resolution] = max(channels, most.get(resolution, 0))
    return {**most, 1: layers(name)[-1].input_shape[-1]}


def tensor_bytes(resolution: int, channels: int) -> int:
    """Of one feature map."""
    return resolution**2 * channels * FP16


# --- The tables --------------------------------------------------------------------------------------------

TABLE_1 = """
h × w × k      | 1x1 conv2d, ReLU6    | h × w × tk
h × w × tk     | 3x3 dwise s=s, ReLU6 | h/s × w/s × tk
h/s × w/s × tk | linear 1x1 conv2d    | h/s × w/s × k'
"""


def table_1() -> Table:
    """The bottleneck block. Published in symbols, which one block of the network gives values."""
    block = next(unit for unit in blocks(V2) if len(unit.layers) == 3)
    height, width, inputs = block.input_shape
    expansion, stride, outputs = create_model(V2).expansion, block.layers[1].stride, block.output_shape[-1]
    sizes = {"h": height, "w": width, "h/s": height // stride, "w/s": width // stride}
    sizes |= {"k": inputs, "tk": int(expansion * inputs), "k'": outputs}
    activation = activations(V2)

    def shape(published: str, ours: tuple[int, ...]) -> Cell:
        meant = tuple(sizes[symbol] for symbol in published.split(" × "))
        return Cell(published, " × ".join(map(str, ours)), meant != ours)

    def operator(published: str, layer: LayerCost) -> Cell:
        kind, kernel = layer.operator.split()
        words = f"{kernel} {kind}" + (f" s={layer.stride}" if layer.stride > 1 else "")
        ours = {"linear": f"linear {words}", "relu6": f"{words}, ReLU6"}[activation[layer.name]]
        return Cell(published, ours, published.replace("s=s", f"s={stride}") != ours)

    return Table(
        name="table1",
        title="Table 1: the bottleneck residual block",
        source=f"{PAPER}, Table 1",
        row_title="row",
        columns=tuple(Column(title, words=True) for title in ("input", "operator", "output")),
        rows=tuple(
            Row(name, (shape(before, layer.input_shape), operator(how, layer), shape(after, layer.output_shape)))
            for name, (before, how, after), layer in zip("123", entries(TABLE_1), block.layers, strict=True)
        ),
        remarks=(
            f"Recomputed is {block.name}, with k = {inputs}, t = {expansion:g}, s = {stride}, k' = {outputs}. "
            "The first block (t = 1) has no first row.",
        ),
    )


TABLE_2 = """
224² × 3     | conv2d      | – | 32   | 1 | 2
112² × 32    | bottleneck  | 1 | 16   | 1 | 1
112² × 16    | bottleneck  | 6 | 24   | 2 | 2
56² × 24     | bottleneck  | 6 | 32   | 3 | 2
28² × 32     | bottleneck  | 6 | 64   | 4 | 2
14² × 64     | bottleneck  | 6 | 96   | 3 | 1
14² × 96     | bottleneck  | 6 | 160  | 3 | 2
7² × 160     | bottleneck  | 6 | 320  | 1 | 1
7² × 320     | conv2d 1x1  | – | 1280 | 1 | 1
7² × 1280    | avgpool 7x7 | – | –    | 1 | –
1 × 1 × 1280 | conv2d 1x1  | – | k    | – | –
"""


def as_published(row: TableRow) -> tuple[str, ...]:
    """A row's entries as Table 2 writes them."""
    height, width, channels = row.input_shape
    size = f"{height}²" if height == width > 1 else f"{height} × {width}"
    numbers = (row.expansion, row.channels, row.repeats, row.stride)
    return f"{size} × {channels}", row.operator, *(NONE if value is None else f"{value:g}" for value in numbers)


def table_2() -> Table:
    """The network."""
    classes = create_model(V2).num_classes

    def compare(published: str, ours: str) -> Cell:
        return Cell("k", ours, ours != str(classes)) if published == "k" else word(published, ours)

    pairs = zip(entries(TABLE_2), map(as_published, table_rows(layers(V2))), strict=True)
    return Table(
        name="table2",
        title="Table 2: MobileNetV2",
        source=f"{PAPER}, Table 2",
        row_title="row",
        columns=(Column("input", words=True), Column("operator", words=True), *map(Column, "tcns")),
        rows=tuple(
            Row(str(place), tuple(map(compare, published, ours)))
            for place, (published, ours) in enumerate(pairs, start=1)
        ),
        remarks=(
            f"What the paper leaves open ({NONE}) is not compared. The 3x3 of the first row is in its caption; k is the "
            "number of classes.",
        ),
    )


def text() -> Table:
    """What the text says of the networks' sizes."""
    sizes = [parameters(V2, checkpoint.width) for checkpoint in RELEASED]
    costs = [multiply_adds(V2, checkpoint.width, checkpoint.resolution) for checkpoint in RELEASED]
    cells = {
        "residual bottleneck layers": number("19", len(blocks(V2))),
        "multiply-adds, M": number("300", multiply_adds(V2), shown=1),
        "params, M": number("3.4", parameters(V2), shown=2),
        "fewest multiply-adds, M": number("7", min(costs), shown=1),
        "most multiply-adds, M": number("585", max(costs), shown=1),
        "fewest params, M": number("1.7", min(sizes), shown=2),
        "most params, M": number("6.9", max(sizes), shown=2),
    }
    return Table(
        name="text",
        title="Sec. 4: sizes in the text",
        source=f"{PAPER}, Sec. 4",
        row_title="what",
        columns=(Column("size"),),
        rows=tuple(Row(name, (cell,)) for name, cell in cells.items()),
        remarks=("Fewest and most: widths from 0.35 to 1.4 and resolutions from 96 to 224, as they were released.",),
    )


TABLE_3 = """
112 | 64   | 1600 | 16   | 400 | 32   | 800
56  | 128  | 800  | 32   | 200 | 48   | 300
28  | 256  | 400  | 64   | 100 | 400  | 600
14  | 512  | 200  | 160  | 62  | 800  | 310
7   | 1024 | 199  | 320  | 32  | 1600 | 156
1   | 1024 | 2    | 1280 | 2   | 1600 | 3
max | –    | 1600 | –    | 400 | –    | 600
"""
"""Pixels; then channels and KB of MobileNetV1, MobileNetV2 and ShuffleNet (2x, g = 3)."""


def table_3() -> Table:
    """What has to be kept between operators, by resolution."""
    *resolutions, maxima = entries(TABLE_3)
    most = {name: channels_between_blocks(name) for name in (V1, V2)}
    rows = []
    for pixels, v1_channels, v1_memory, v2_channels, v2_memory, *shufflenet in resolutions:
        cells: list[Cell] = []
        for name, channels, memory in ((V1, v1_channels, v1_memory), (V2, v2_channels, v2_memory)):
            ours = most[name][int(pixels)]
            cells += [number(channels, ours), kilobytes(memory, tensor_bytes(int(pixels), ours))]
        rows.append(Row(pixels, (*cells, *map(quote, shufflenet))))
    largest = [max(tensor_bytes(*item) for item in most[name].items()) for name in (V1, V2)]
    # ShuffleNet is not ours, but whether the last row is the largest entry above it can be seen.
    shufflenet_largest = max(int(row[6]) for row in resolutions)
    last = (kilobytes(maxima[2], largest[0]), kilobytes(maxima[4], largest[1]), number(maxima[6], shufflenet_largest))
    rows.append(Row("max", tuple(cell for memory in last for cell in (Cell(), memory))))
    stem, head = layers(V2)[0].output_shape, layers(V2)[-2].output_shape
    return Table(
        name="table3",
        title="Table 3: the most channels and KB to be kept at each resolution",
        source=f"{PAPER}, Table 3 (earlier versions differ in the first and the last row)",
        row_title="pixels",
        columns=(
            *(Column("V1 ch."), Column("V1 KB"), Column("V2 ch."), Column("V2 KB")),
            *(Column("SN ch.", recomputed=False), Column("SN KB")),
        ),
        rows=tuple(rows),
        remarks=(
            "V1 and V2 are MobileNets: recomputed are the tensors between their blocks, and at 1 pixel the pooled "
            f"features. As in the paper, the first and the last convolution of V2 are left out ({stem[-1]} channels at "
            f"{stem[0]} pixels, {tensor_bytes(stem[0], stem[-1]) / 1000:.1f} KB; {head[-1]} at {head[0]}, "
            f"{tensor_bytes(head[0], head[-1]) / 1000:.1f} KB): each can be one operator with its neighbour.",
            "SN is ShuffleNet (2x, g = 3), which is not recomputed; only its last row is, from the published entries "
            "above it.",
        ),
    )


def memory() -> Table:
    """Peak memory under four ways to cut a network into operators."""

    def tensors(name: str) -> list[tuple[str, int]]:
        return [(f"{c} ch. at {r}", tensor_bytes(r, c)) for r, c in channels_between_blocks(name).items()]

    def held(operators: Iterable[LayerCost | Unit]) -> list[tuple[str, int]]:
        return [(operator.name, operator.activation_bytes(FP16)) for operator in operators]

    def stem_joined(name: str) -> list[Unit]:
        stem, first, *others = units(layers(name))
        return [Unit(f"{stem.name} + {first.name}", stem.layers + first.layers), *others]

    ways: dict[str, tuple[tuple[str, str], Callable[[str], list[tuple[str, int]]]]] = {
        "largest tensor between blocks": (("1600", "400"), tensors),
        "each block an operator": (("1600", "400"), lambda name: held(units(layers(name)))),
        "the same, stem in the first block": ((NONE, NONE), lambda name: held(stem_joined(name))),
        "each layer an operator": ((NONE, NONE), lambda name: held(layers(name))),
    }
    rows = []
    for way, (published, measure) in ways.items():
        cells: list[Cell] = []
        for name, known in zip((V1, V2), published, strict=True):
            where, size = max(measure(name), key=lambda item: item[1])
            cells += [kilobytes(known, size), Cell(NONE, where)]
        rows.append(Row(way, tuple(cells)))
    return Table(
        name="memory",
        title="Sec. 5.1: peak memory of inference",
        source=f"{PAPER}, last row of Table 3",
        row_title="operators",
        columns=(
            *(Column("V1 KB"), Column("V1 at", published=False, words=True)),
            *(Column("V2 KB"), Column("V2 at", published=False, words=True)),
        ),
        rows=tuple(rows),
        remarks=(
            "An operator holds its input and its output (eq. 2); weights are left out. A block that is one operator never "
            "holds its inner tensors whole, but a part of their channels at a time.",
            "Shortcuts do not raise these peaks: no layer inside a block that has one comes near them.",
        ),
    )


class PublishedNetwork(NamedTuple):
    """A row of Table 4, and the name and width of our network if it is one."""

    name: str
    top1: str
    parameters: str
    multiply_adds: str
    milliseconds: str
    ours: tuple[str, float] | None = None


TABLE_4 = (
    PublishedNetwork("MobileNetV1", "70.6", "4.2", "575", "113", (V1, 1.0)),
    PublishedNetwork("ShuffleNet (1.5)", "71.5", "3.4", "292", NONE),
    PublishedNetwork("ShuffleNet (x2)", "73.7", "5.4", "524", NONE),
    PublishedNetwork("NasNet-A", "74.0", "5.3", "564", "183"),
    PublishedNetwork("MobileNetV2", "72.0", "3.4", "300", "75", (V2, 1.0)),
    PublishedNetwork("MobileNetV2 (1.4)", "74.7", "6.9", "585", "143", (V2, 1.4)),
)


def table_4() -> Table:
    """Networks on ImageNet."""
    rows = []
    for network in TABLE_4:
        size, cost = quote(network.parameters), quote(network.multiply_adds)
        if network.ours:
            size = number(network.parameters, parameters(*network.ours), shown=2)
            cost = number(network.multiply_adds, multiply_adds(*network.ours), shown=1)
        rows.append(Row(network.name, (quote(network.top1), quote(network.milliseconds), size, cost)))
    top1 = {checkpoint.width: checkpoint.top1 for checkpoint in RELEASED if checkpoint.resolution == 224}
    return Table(
        name="table4",
        title="Table 4: networks on ImageNet",
        source=f"{PAPER}, Table 4",
        row_title="network",
        columns=(*map(_quoted, ("top 1, %", "Pixel 1, ms")), Column("params, M"), Column("multiply-adds, M")),
        rows=tuple(rows),
        remarks=(
            "Accuracies and times are quotes. The checkpoints that were released have other accuracies (slim README): "
            f"{top1[1.0]} % at width 1.0 and {top1[1.4]} % at 1.4.",
        ),
    )


def _quoted(title: str) -> Column:
    return Column(title, recomputed=False)


class ReleasedCheckpoint(NamedTuple):
    """A row of the slim README."""

    width: float
    resolution: int
    multiply_adds: str
    parameters: str
    top1: str
    top5: str
    milliseconds: str


RELEASED = (
    ReleasedCheckpoint(1.4, 224, "582", "6.06", "75.0", "92.5", "138.0"),
    ReleasedCheckpoint(1.3, 224, "509", "5.34", "74.4", "92.1", "123.0"),
    ReleasedCheckpoint(1.0, 224, "300", "3.47", "71.8", "91.0", "73.8"),
    ReleasedCheckpoint(1.0, 192, "221", "3.47", "70.7", "90.1", "55.1"),
    ReleasedCheckpoint(1.0, 160, "154", "3.47", "68.8", "89.0", "40.2"),
    ReleasedCheckpoint(1.0, 128, "99", "3.47", "65.3", "86.9", "27.6"),
    ReleasedCheckpoint(1.0, 96, "56", "3.47", "60.3", "83.2", "17.6"),
    ReleasedCheckpoint(0.75, 224, "209", "2.61", "69.8", "89.6", "55.8"),
    ReleasedCheckpoint(0.75, 192, "153", "2.61", "68.7", "88.9", "41.6"),
    ReleasedCheckpoint(0.75, 160, "107", "2.61", "66.4", "87.3", "30.4"),
    ReleasedCheckpoint(0.75, 128, "69", "2.61", "63.2", "85.3", "21.9"),
    ReleasedCheckpoint(0.75, 96, "39", "2.61", "58.8", "81.6", "14.2"),
    ReleasedCheckpoint(0.5, 224, "97", "1.95", "65.4", "86.4", "28.7"),
    ReleasedCheckpoint(0.5, 192, "71", "1.95", "63.9", "85.4", "21.1"),
    ReleasedCheckpoint(0.5, 160, "50", "1.95", "61.0", "83.2", "14.9"),
    ReleasedCheckpoint(0.5, 128, "32", "1.95", "57.7", "80.8", "9.9"),
    ReleasedCheckpoint(0.5, 96, "18", "1.95", "51.2", "75.8", "6.4"),
    ReleasedCheckpoint(0.35, 224, "59", "1.66", "60.3", "82.9", "19.7"),
    ReleasedCheckpoint(0.35, 192, "43", "1.66", "58.2", "81.2", "14.6"),
    ReleasedCheckpoint(0.35, 160, "30", "1.66", "55.7", "79.1", "10.5"),
    ReleasedCheckpoint(0.35, 128, "20", "1.66", "50.8", "75.0", "6.9"),
    ReleasedCheckpoint(0.35, 96, "11", "1.66", "45.5", "70.4", "4.5"),
)


def released() -> Table:
    """The released checkpoints."""
    return Table(
        name="released",
        title="The 22 released checkpoints",
        source=SLIM,
        row_title="width_pixels",
        columns=(
            *map(_quoted, ("top 1, %", "top 5, %", "Pixel 1, ms")),
            *(Column("params, M"), Column("multiply-adds, M")),
        ),
        rows=tuple(
            Row(
                f"{checkpoint.width}_{checkpoint.resolution}",
                (
                    *map(quote, (checkpoint.top1, checkpoint.top5, checkpoint.milliseconds)),
                    number(checkpoint.parameters, parameters(V2, checkpoint.width), shown=3),
                    number(
                        checkpoint.multiply_adds, multiply_adds(V2, checkpoint.width, checkpoint.resolution), shown=2
                    ),
                ),
            )
            for checkpoint in RELEASED
        ),
        remarks=(
            "Accuracies and times are quotes. The checkpoints have a 1001st class (background), which changes nothing at "
            "the digits published.",
        ),
    )


TABLES = (table_1, table_2, text, table_3, memory, table_4, released)


# --- Why entries differ ------------------------------------------------------------------------------------

MOST_PARAMETERS = (
    "The checkpoint released at width 1.4 is listed with 6.06 (6.11 with batch norm); the paper does not say where 6.9 "
    "is from."
)
MOST_MULTIPLY_ADDS = (
    "The checkpoint released at width 1.4 is listed with 582; the paper does not say where 585 is from."
)
ONE_STRIDE_EARLY = (
    "Published is what leaves the stride-2 block that this resolution enters, and exists only at half of it: in Table 2, "
    "56² × 24 goes in and 28² × 32 comes out."
)
INPUT_AND_OUTPUT = "Published is the largest single tensor between blocks; eq. 2 counts an operator's input and output."

EXPLANATIONS: dict[Entry, str] = {
    Entry("text", "residual bottleneck layers", "size"): (
        "Table 2 adds up to 17 bottlenecks; with the first and the last convolution they are 19."
    ),
    Entry("text", "fewest multiply-adds, M", "size"): (
        "The smallest checkpoint, width 0.35 at 96 pixels, is listed with 11; nothing in the ranges is smaller."
    ),
    Entry("text", "most multiply-adds, M", "size"): MOST_MULTIPLY_ADDS,
    Entry("text", "most params, M", "size"): MOST_PARAMETERS,
    **{
        Entry("table3", pixels, f"V2 {what}"): ONE_STRIDE_EARLY
        for pixels in ("56", "28", "14")
        for what in ("ch.", "KB")
    },
    Entry("table3", "7", "V1 KB"): "Published is about twice what 1024 channels take.",
    Entry("table3", "7", "V2 KB"): "Published is more than 320 channels take (30.6 if 1 KB is 1024 B).",
    Entry("table3", "max", "SN KB"): "Published is the largest entry but for the first row, which is larger.",
    Entry("memory", "each block an operator", "V1 KB"): INPUT_AND_OUTPUT,
    Entry("memory", "each block an operator", "V2 KB"): INPUT_AND_OUTPUT,
    Entry("table4", "MobileNetV1", "multiply-adds, M"): (
        "The checkpoint of MobileNetV1 is listed with 569 (research/slim/nets/mobilenet_v1.md); the paper does not say "
        "where 575 is from."
    ),
    Entry("table4", "MobileNetV2 (1.4)", "params, M"): MOST_PARAMETERS,
    Entry("table4", "MobileNetV2 (1.4)", "multiply-adds, M"): MOST_MULTIPLY_ADDS,
}


def summary(tables: Sequence[Table]) -> str:
    """How many entries were compared, and how many differ."""
    cells = [cell for table in tables for row in table.rows for cell in row.cells]
    compared, differ = sum(cell.compared for cell in cells), sum(cell.differs for cell in cells)
    return f"{compared} published entries recomputed, {differ} of them differ."


# --- Rendering ---------------------------------------------------------------------------------------------


def print_table(console: Console, table: Table) -> None:
    """To the terminal."""
    headings, lines = table.headings(), table.lines()
    grid = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for heading in headings:
        justify = "left" if heading.words else "right"
        grid.add_column(Text(f"{heading.group}\n{heading.title}"), justify=justify, no_wrap=True)
    for place, heading in enumerate(headings):
        # Digits stay below digits where only some of them have a mark behind.
        if not heading.words and any("≠" in line[place] for line in lines):
            for line in lines:
                line[place] += "" if "≠" in line[place] else "   "
    for line in lines:
        grid.add_row(*(Text(entry, style="bold yellow" if "≠" in entry else "") for entry in line))
    console.print(Text(f"\n{table.title}", style="bold"))
    console.print(grid)
    print_sentences(console, table.notes())


def print_sentences(console: Console, sentences: Iterable[str]) -> None:
    """To the terminal, broken where it is too narrow."""
    for sentence in sentences:
        console.print(Text(sentence), soft_wrap=False)


def to_markdown(tables: Sequence[Table]) -> str:
    """All tables as one document."""

    def line(words: Iterable[str]) -> str:
        return f"| {' | '.join(words)} |"

    parts = ["# The tables of the MobileNetV2 paper, as published and recomputed", *READING, summary(tables)]
    for table in tables:
        headings = table.headings()
        titles = [f"{heading.group}<br>{heading.title}" if heading.group else heading.title for heading in headings]
        rules = ["---" if heading.words else "---:" for heading in headings]
        parts += [f"## {table.title}", "\n".join(map(line, (titles, rules, *table.lines()))), *table.notes()]
    parts += ["## Layer by layer", "![Channels and memory of both networks, layer by layer](figure.png)"]
    return "\n\n".join(parts) + "\n"


def to_csv(table: Table) -> str:
    """One table: published, recomputed and whether they differ side by side, and the explanations last."""

    def shown(column: Column, published: str, recomputed: str, differs: str) -> list[str]:
        wanted = (column.published, column.recomputed, column.published and column.recomputed)
        return [entry for entry, keep in zip((published, recomputed, differs), wanted, strict=True) if keep]

    def differs(cell: Cell) -> str:
        return ("yes" if cell.differs else "no") if cell.compared else ""

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    titles = [
        title
        for column in table.columns
        for title in shown(column, f"{column.title} published", f"{column.title} recomputed", f"{column.title} differs")
    ]
    writer.writerow([table.row_title, *titles, "explanation"])
    for row in table.rows:
        values = [
            "" if value == NONE else value
            for column, cell in zip(table.columns, row.cells, strict=True)
            for value in shown(column, cell.published, cell.recomputed, differs(cell))
        ]
        sentences = dict.fromkeys(filter(None, table.explanations(row)))
        writer.writerow([row.name, *values, " ".join(sentences)])
    return stream.getvalue()


def draw() -> Figure:
    """Channels and memory of what each convolution puts out, in running order."""
    figure, (channels, sizes) = plt.subplots(2, 1, figsize=(11, 8), sharex=True, layout="constrained")
    draw_outputs(channels, lambda layer: layer.output_shape[-1], legend="upper left")
    draw_outputs(sizes, lambda layer: tensor_bytes(layer.output_shape[0], layer.output_shape[-1]) / 1000, "upper right")
    channels.set_title("Channels that each convolution puts out (width 1.0)", loc="left")
    channels.set_ylabel("channels")
    sizes.set_title("Memory that they take (fp16, one image of 224 pixels)", loc="left")
    sizes.set(ylabel="KB", xlabel="convolution, in running order")
    return figure


def draw_outputs(panel: Axes, measure: Callable[[LayerCost], float], legend: str) -> None:
    """Draw a measure of every convolution's output: V1 as one line, V2 by what an output is to its block."""
    blue, orange = plots.COLORS[:2]
    leaving = {block.layers[-1].name for block in blocks(V2)}
    inside = {layer.name for block in blocks(V2) for layer in block.layers} - leaving
    outside = {unit.name for unit in units(layers(V2))}

    def points(name: str, chosen: Container[str] | None = None) -> tuple[list[int], list[float]]:
        places, values = [], []
        for place, layer in enumerate(layers(name)[:-1], start=1):  # the classifier is no convolution
            if chosen is None or layer.name in chosen:
                places.append(place)
                values.append(measure(layer))
        return places, values

    panel.plot(*points(V2), color=orange, linewidth=0.8, alpha=0.45)
    for label, (places, values), form, style in (
        ("MobileNetV1", points(V1), "-s", {"color": blue, "markersize": 4.5}),
        ("MobileNetV2, bottlenecks", points(V2, leaving), "-o", {"color": orange, "linewidth": 2.2}),
        ("MobileNetV2, inside the blocks", points(V2, inside), "o", {"color": orange, "markerfacecolor": "white"}),
        ("MobileNetV2, first and last convolution", points(V2, outside), "D", {"color": "black", "markersize": 4.5}),
    ):
        panel.plot(places, values, form, label=f"{label}: at most {max(values):.0f}", **style)
    panel.set(xlim=(0, None), ylim=(0, None))
    panel.legend(loc=legend, framealpha=1, edgecolor="none")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="0.9", linewidth=0.7)
    panel.set_axisbelow(True)


def write(folder: Path, tables: Sequence[Table]) -> list[Path]:
    """Write all files; the same tables give the same bytes."""
    texts = {"paper_tables.md": to_markdown(tables), **{f"{table.name}.csv": to_csv(table) for table in tables}}
    for name, content in texts.items():
        write_atomically(folder / name, content)
    plots.save(draw(), folder)
    return [folder / name for name in (*texts, "figure.png", "figure.svg")]


def main(options: Options) -> None:
    """Print every table, then write the files."""
    folder = options.out
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder")
    console = create_console()
    tables = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for make in TABLES:
            tables.append(make())
            print_table(console, tables[-1])
        paths = write(folder, tables)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror or error}") from error
    console.print()
    print_sentences(console, (*READING, summary(tables)))
    for path in paths:
        console.print(str(path), markup=False)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
