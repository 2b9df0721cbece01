"""Do the tables of the paper follow from the networks? (MobileNetV2, Tables 1 to 4, Sec. 4 and 5.1)

Question: which published sizes, multiply-adds and memory figures do our modules reproduce, and which not?
Command:  python experiments/paper_tables.py
Cost:     no training and no data; about 12 s on 2 CPU cores.
Expect:   Tables 1 and 2 and all 22 released checkpoints agree; 18 other entries differ, each with an explanation.

All recomputed numbers are counted on the modules, evaluated on abstract shapes. The published numbers are
in `paper_numbers.py`. The script prints the tables and writes them to runs/paper_tables (or --out DIR), with a figure
of both networks layer by layer.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import paper_figure
import paper_numbers as paper
from paper_comparison import (
    READING,
    Cell,
    Column,
    Row,
    Table,
    kilobytes,
    number,
    print_sentences,
    print_table,
    quote,
    summary,
    to_csv,
    to_markdown,
    word,
)
from paper_numbers import NONE, V1, V2

from mnv2_jax import cli
from mnv2_jax.errors import UserError
from mnv2_jax.models.cost import LayerCost, TableRow, Unit, layer_costs, table_rows, units
from mnv2_jax.models.create import create_model
from mnv2_jax.models.layers import ConvNorm
from mnv2_jax.results import save_figure, write_atomically
from mnv2_jax.training.progress import create_console

FP16 = 2  # bytes per value in Sec. 5.1 and Table 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line flags."""

    out: Path = Path("runs/paper_tables")
    """Output folder for the tables and the figure; files of the same names are replaced."""


# --- Numbers of the modules --------------------------------------------------------------------------------


def layers(name: str, width: float = 1.0, resolution: int = 224) -> tuple[LayerCost, ...]:
    """Return the layers of a network."""
    return layer_costs(create_model(name, width_multiplier=width), (resolution, resolution, 3))


def parameters(name: str, width: float = 1.0) -> float:
    """Return millions of parameters, without batch norm. They do not depend on the resolution."""
    return sum(layer.parameters for layer in layers(name, width)) / 1e6


def multiply_adds(name: str, width: float = 1.0, resolution: int = 224) -> float:
    """Return millions of multiply-adds."""
    return sum(layer.multiply_adds for layer in layers(name, width, resolution)) / 1e6


def activations(name: str) -> dict[str, str]:
    """Return the activation after each convolution and norm, by layer name."""
    found = {}

    def record(next_call, args, kwargs, context):
        if isinstance(context.module, ConvNorm):
            found["/".join(context.module.path)] = context.module.activation
        return next_call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(create_model(name).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return found


def blocks(name: str) -> list[Unit]:
    """Return the blocks of a network, without the layers before and after them."""
    return [unit for unit in units(layers(name)) if len(unit.layers) > 1]


def channels_between_blocks(name: str) -> dict[int, int]:
    """Return the largest number of output channels of a block, by resolution; at 1 pixel, of the pooled features."""
    most: dict[int, int] = {}
    for block in blocks(name):
        resolution, _, channels = block.output_shape
        most[resolution] = max(channels, most.get(resolution, 0))
    return {**most, 1: layers(name)[-1].input_shape[-1]}


def tensor_bytes(resolution: int, channels: int) -> int:
    """Return the bytes of one feature map."""
    return resolution**2 * channels * FP16


# --- The tables --------------------------------------------------------------------------------------------


def entries(table: str) -> list[list[str]]:
    """Split a table that is written with bars into its entries."""
    return [[entry.strip() for entry in line.split("|")] for line in table.strip().splitlines()]


def table_1() -> Table:
    """Return Table 1, the bottleneck block. It is published in symbols; one block of the network gives their values."""
    block = next(unit for unit in blocks(V2) if len(unit.layers) == 3)
    height, width, inputs = block.input_shape
    _, _, expansion, *_ = entries(paper.TABLE_2)[2]  # t of the first block that expands
    stride, outputs = block.layers[1].stride, block.output_shape[-1]
    sizes = {"h": height, "w": width, "h/s": height // stride, "w/s": width // stride}
    sizes |= {"k": inputs, "tk": int(expansion) * inputs, "k'": outputs}
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
        source=f"{paper.PAPER}, Table 1",
        row_title="row",
        columns=tuple(Column(title, words=True) for title in ("input", "operator", "output")),
        rows=tuple(
            Row(name, (shape(before, layer.input_shape), operator(how, layer), shape(after, layer.output_shape)))
            for name, (before, how, after), layer in zip("123", entries(paper.TABLE_1), block.layers, strict=True)
        ),
        remarks=(
            f"Recomputed is {block.name}, with k = {inputs}, t = {expansion}, s = {stride}, k' = {outputs}. "
            "The first block (t = 1) has no first row.",
        ),
    )


def as_published(row: TableRow) -> tuple[str, ...]:
    """Return a row's entries in the notation of Table 2."""
    height, width, channels = row.input_shape
    size = f"{height}²" if height == width > 1 else f"{height} × {width}"
    numbers = (row.expansion, row.channels, row.repeats, row.stride)
    return f"{size} × {channels}", row.operator, *(NONE if value is None else f"{value:g}" for value in numbers)


def table_2() -> Table:
    """Return Table 2, the network."""
    classes = create_model(V2).num_classes

    def compare(published: str, ours: str) -> Cell:
        return Cell("k", ours, ours != str(classes)) if published == "k" else word(published, ours)

    pairs = zip(entries(paper.TABLE_2), map(as_published, table_rows(layers(V2))), strict=True)
    return Table(
        name="table2",
        title="Table 2: MobileNetV2",
        source=f"{paper.PAPER}, Table 2",
        row_title="row",
        columns=(Column("input", words=True), Column("operator", words=True), *map(Column, "tcns")),
        rows=tuple(
            Row(str(position), tuple(map(compare, published, ours)))
            for position, (published, ours) in enumerate(pairs, start=1)
        ),
        remarks=(
            f"What the paper leaves open ({NONE}) is not compared. The 3x3 of the first row is in its caption; k is "
            "the number of classes.",
        ),
    )


def text() -> Table:
    """Return the sizes of networks that the text of Sec. 4 gives."""
    sizes = [parameters(V2, checkpoint.width) for checkpoint in paper.RELEASED]
    costs = [multiply_adds(V2, checkpoint.width, checkpoint.resolution) for checkpoint in paper.RELEASED]
    ours: dict[str, tuple[float, int]] = {  # (value, decimals to show)
        "residual bottleneck layers": (len(blocks(V2)), 0),
        "multiply-adds, M": (multiply_adds(V2), 1),
        "params, M": (parameters(V2), 2),
        "fewest multiply-adds, M": (min(costs), 1),
        "most multiply-adds, M": (max(costs), 1),
        "fewest params, M": (min(sizes), 2),
        "most params, M": (max(sizes), 2),
    }
    return Table(
        name="text",
        title="Sec. 4: sizes in the text",
        source=f"{paper.PAPER}, Sec. 4",
        row_title="what",
        columns=(Column("size"),),
        rows=tuple(Row(name, (number(published, *ours[name]),)) for name, published in paper.TEXT.items()),
        remarks=("Fewest and most: widths from 0.35 to 1.4 and resolutions from 96 to 224, as released.",),
    )


def table_3() -> Table:
    """Return Table 3, the largest tensors to be kept between operators, by resolution."""
    *resolutions, maxima = entries(paper.TABLE_3)
    most = {name: channels_between_blocks(name) for name in (V1, V2)}
    rows = []
    for pixels, v1_channels, v1_memory, v2_channels, v2_memory, *shufflenet in resolutions:
        cells: list[Cell] = []
        for name, channels, memory in ((V1, v1_channels, v1_memory), (V2, v2_channels, v2_memory)):
            ours = most[name][int(pixels)]
            cells += [number(channels, ours), kilobytes(memory, tensor_bytes(int(pixels), ours))]
        rows.append(Row(pixels, (*cells, *map(quote, shufflenet))))
    largest = [max(tensor_bytes(*item) for item in most[name].items()) for name in (V1, V2)]
    # ShuffleNet is not recomputed, but its last row can be checked against the published entries above it.
    shufflenet_largest = max(int(row[6]) for row in resolutions)
    last = (kilobytes(maxima[2], largest[0]), kilobytes(maxima[4], largest[1]), number(maxima[6], shufflenet_largest))
    rows.append(Row("max", tuple(cell for memory in last for cell in (Cell(), memory))))
    stem, head = layers(V2)[0].output_shape, layers(V2)[-2].output_shape
    return Table(
        name="table3",
        title="Table 3: maximum channels and KB to be kept at each resolution",
        source=f"{paper.PAPER}, Table 3 (earlier versions differ in the first and the last row)",
        row_title="pixels",
        columns=(
            *(Column("V1 ch."), Column("V1 KB"), Column("V2 ch."), Column("V2 KB")),
            *(Column("SN ch.", recomputed=False), Column("SN KB")),
        ),
        rows=tuple(rows),
        remarks=(
            "V1 and V2 are MobileNets; the recomputed entries are the tensors between their blocks and, at 1 pixel, "
            "the pooled features. As in the paper, the first and the last convolution of V2 are left out "
            f"({stem[-1]} channels at {stem[0]} pixels, {tensor_bytes(stem[0], stem[-1]) / 1000:.1f} KB; {head[-1]} at {head[0]}, "
            f"{tensor_bytes(head[0], head[-1]) / 1000:.1f} KB): each can be one operator with its neighbour.",
            "SN is ShuffleNet (2x, g = 3), which is not recomputed; only its last row is, from the published entries "
            "above it.",
        ),
    )


def memory() -> Table:
    """Return peak memory for four ways to divide a network into operators (Sec. 5.1)."""

    def tensors(name: str) -> list[tuple[str, int]]:
        return [(f"{c} ch. at {r}", tensor_bytes(r, c)) for r, c in channels_between_blocks(name).items()]

    def held(operators: Iterable[LayerCost | Unit]) -> list[tuple[str, int]]:
        return [(operator.name, operator.activation_bytes(FP16)) for operator in operators]

    def stem_joined(name: str) -> list[Unit]:
        stem, first, *others = units(layers(name))
        return [Unit(f"{stem.name} + {first.name}", stem.layers + first.layers), *others]

    ways: dict[str, Callable[[str], list[tuple[str, int]]]] = {
        "largest tensor between blocks": tensors,
        "each block as one operator": lambda name: held(units(layers(name))),
        "the same, stem in the first block": lambda name: held(stem_joined(name)),
        "each layer as one operator": lambda name: held(layers(name)),
    }
    rows = []
    for way, measure in ways.items():
        cells: list[Cell] = []
        for name, known in zip((V1, V2), paper.PEAK_MEMORY.get(way, (NONE, NONE)), strict=True):
            where, size = max(measure(name), key=lambda item: item[1])
            cells += [kilobytes(known, size), Cell(recomputed=where)]
        rows.append(Row(way, tuple(cells)))
    return Table(
        name="memory",
        title="Sec. 5.1: peak memory of inference",
        source=f"{paper.PAPER}, last row of Table 3",
        row_title="operators",
        columns=(
            *(Column("V1 KB"), Column("V1 at", published=False, words=True)),
            *(Column("V2 KB"), Column("V2 at", published=False, words=True)),
        ),
        rows=tuple(rows),
        remarks=(
            "An operator holds its input and its output (eq. 2); weights are not counted. A block that is one operator "
            "never holds whole inner tensors, only some of their channels at a time.",
            "Shortcuts do not raise these peaks: no layer inside a block with a shortcut comes near them.",
        ),
    )


def table_4() -> Table:
    """Return Table 4, networks on ImageNet."""
    rows = []
    for network in paper.TABLE_4:
        size, cost = quote(network.parameters), quote(network.multiply_adds)
        if network.ours:
            size = number(network.parameters, parameters(*network.ours), shown=2)
            cost = number(network.multiply_adds, multiply_adds(*network.ours), shown=1)
        rows.append(Row(network.name, (quote(network.top1), quote(network.milliseconds), size, cost)))
    top1 = {checkpoint.width: checkpoint.top1 for checkpoint in paper.RELEASED if checkpoint.resolution == 224}
    return Table(
        name="table4",
        title="Table 4: networks on ImageNet",
        source=f"{paper.PAPER}, Table 4",
        row_title="network",
        columns=(*map(_quoted, ("top 1, %", "Pixel 1, ms")), Column("params, M"), Column("multiply-adds, M")),
        rows=tuple(rows),
        remarks=(
            "Accuracies and times are quoted. The released checkpoints have different accuracies (slim README): "
            f"{top1[1.0]} % at width 1.0 and {top1[1.4]} % at 1.4.",
        ),
    )


def _quoted(title: str) -> Column:
    return Column(title, recomputed=False)


def released() -> Table:
    """Return the table of released checkpoints."""
    return Table(
        name="released",
        title="The 22 released checkpoints",
        source=paper.SLIM,
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
            for checkpoint in paper.RELEASED
        ),
        remarks=(
            "Accuracies and times are quoted. The checkpoints have a 1001st class (background), which changes nothing "
            "at the published digits.",
        ),
    )


TABLES = (table_1, table_2, text, table_3, memory, table_4, released)


def write(folder: Path, tables: Sequence[Table]) -> list[Path]:
    """Write all files and return their paths; the same tables give the same bytes."""
    texts = {"paper_tables.md": to_markdown(tables), **{f"{table.name}.csv": to_csv(table) for table in tables}}
    for name, content in texts.items():
        write_atomically(folder / name, content)
    save_figure(paper_figure.draw(layers(V1), layers(V2), FP16), folder)
    return [folder / name for name in (*texts, "figure.png", "figure.svg")]


def main(options: Options) -> None:
    """Print every table, then write the files."""
    folder = options.out
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file, not a folder")
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
