"""How many channels does ReLU6 leave active, and could a block's expansion be inverted? (MobileNetV2, Fig. 7, Appendix A)

Question: what share of the channels is positive after each ReLU6, before and after training, and is it enough?
Command:  python experiments/activation_patterns.py
          python experiments/activation_patterns.py --weights runs/STUDY/checkpoints/ARM-SEED --dataset DATASET
Cost:     43 s on 2 CPU cores, from an empty compilation cache.
Expect:   on digits (0.92 on the test digits) half of the channels positive before and after, and the spread as before (the
          paper's ImageNet network has a larger one after training); no expansion below the threshold: all can be inverted.

Without --weights a network is trained here as the linear arm of ablate_bottleneck.py is, and kept under --out: the same
command goes on from what is there. "Before" is the same network initialised with --seed; its batch norm has the statistics of
the images, taken in one pass with every batch normalised by its own, as in training: those that it is initialised with are no
layer's. An expansion can be inverted at a position where at least as many of its channels keep their value (0 < y < 6) as its
bottleneck has, and their rows are independent (Lemma 2); the paper counts positive channels (0 < y). The rank is computed at
one position of each of the first 64 images: where the fewest channels keep their value, of all positions where enough do.
"""

import dataclasses
import itertools
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mnv2_jax import cli
from mnv2_jax.analysis.results import name_results, open_results, write_results
from mnv2_jax.data.names import ResidentName
from mnv2_jax.errors import UserError
from mnv2_jax.training.config import TrainConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table

    from mnv2_jax.analysis.patterns import Finding, Patterns
    from mnv2_jax.data.batch import Batch
    from mnv2_jax.data.stream import StreamedDataset
    from mnv2_jax.training.run import Run
    from mnv2_jax.weights.load import Weights

TRAINING = "training"
BATCH = 32
"""Images at a time, so that memory is bounded whatever their number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this script."""

    weights: Path | None = None
    """A trained MobileNetV2: a study's checkpoints/ARM-SEED, a run's folder, or a file of weights; trained here if not given."""
    dataset: str | None = None
    """Whose test images are looked at; the run's own if not given, and digits where a network is trained here."""
    data_files: Path | None = None
    """Folder with your copy of the data set's files, where it cannot be downloaded; for folder, your images."""
    images: int = 256
    """Test images to look at, the first ones."""
    seed: int = 0
    """Of the network before training, and of the training."""
    width_multiplier: float = 0.35
    """Scales the channels of every layer of the network that is trained here."""
    epochs: int = 2
    """Passes over the training images where a network is trained here."""
    out: Path = Path("runs/activation_patterns")
    """Folder for the network, the figure and the summary."""
    overwrite: bool = False
    """Begin anew in a folder that holds something else of this script's."""


# --- The network and the images ---------------------------------------------------------------------------


def create_run(options: Options, dataset: str) -> "Run":
    """The linear arm of ablate_bottleneck.py, as a single run."""
    from mnv2_jax.training.run import Run

    return Run(
        dataset,
        {"name": "mobilenet_v2", "width_multiplier": options.width_multiplier, "expansion": 6.0},
        TrainConfig(epochs=options.epochs, batch_size=16, learning_rate=0.02, evaluations=2),
        seed=options.seed,
        data_files=options.data_files,
    )


def open_images(options: Options, dataset: str, weights: "Weights | None") -> "StreamedDataset":
    """The test images as the network takes them.

    Raises:
        UserError: if there are fewer, or they are of another size than the network's.
    """
    from mnv2_jax.data.catalog import CATALOG
    from mnv2_jax.data.resident import check_images
    from mnv2_jax.data.stream import load_stream

    entry = CATALOG.get(dataset)
    if weights is not None and entry is not None and entry.source_size and entry.image_size != weights.resolution:
        raise UserError(
            f"the images of {dataset} have {entry.image_size} pixels a side and the network's {weights.resolution}; "
            "name the data set that it was trained on"
        )
    data = load_stream(dataset, options.data_files, resolution=weights.resolution if weights else None)
    check_images("--images", options.images, len(data.sources["test"]), f"{dataset} test")
    if weights is None:
        return data
    shape = (*data.image_shape[:2], weights.image_channels)
    return dataclasses.replace(data, preprocessing=weights.preprocessing, image_shape=shape)


def batches(data: "StreamedDataset", images: int) -> "Iterator[Batch]":
    """The first images in batches of one size, read anew every time."""
    size = min(BATCH, images)
    for index, batch in enumerate(itertools.islice(data.evaluation("test", size), -(-images // size))):
        batch.weights[max(0, images - index * size) :] = 0
        yield batch


def watched(stream: "Iterator[Batch]", total: int, what: str, console: "Console") -> "Iterator[Batch]":
    """The same batches, with a bar in a terminal."""
    from mnv2_jax.training.progress import create_bar

    if not console.is_terminal:
        console.print(what, markup=False)
        yield from stream
        return
    with create_bar(console) as bar:
        task = bar.add_task(what, total=total, status="")
        for batch in stream:
            yield batch
            bar.advance(task)


# --- What is shown ----------------------------------------------------------------------------------------


def draw(columns: "Sequence[tuple[str, Patterns]]", title: str, kept: str) -> "Figure":
    """A column for each state of the network: numbers of positive channels, fractions, and what can be inverted.

    `kept` says of which values of y a channel keeps its own.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import PercentFormatter

    figure, panels = plt.subplots(3, len(columns), figsize=(14, 10), layout="constrained", sharey="row", squeeze=False)
    for column, (name, patterns) in enumerate(columns):
        numbers, fractions, inverted = panels[:, column]
        numbers.set_title(name)
        _draw_layers(numbers, patterns, relative=False)
        _draw_layers(fractions, patterns, relative=True)
        _draw_blocks(inverted, patterns, kept)
    panels[0, 0].set_ylabel("positive channels (logarithmic above 10)")
    panels[1, 0].set_ylabel("share of the layer's channels")
    panels[2, 0].set_ylabel("share that can be inverted")
    for axes in panels[1:].flat:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for row in panels:
        handles, labels = row[0].get_legend_handles_labels()
        row[-1].legend(handles, labels, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="y", color="0.9", linewidth=0.7)
    figure.suptitle(title, fontsize=12)
    return figure


def _place(name: str, blocks: int) -> float:
    """Where a layer stands: the stem before the blocks, the head behind, a block's two layers side by side."""
    if not name.startswith("block_"):
        return -1 if name == "stem" else blocks
    block, layer = name.removeprefix("block_").split("/")
    return int(block) + (-0.18 if layer == "expand" else 0.18)


def _draw_layers(axes: "Axes", patterns: "Patterns", relative: bool) -> None:
    """Mean, and range from minimum to maximum, of every layer's positive channels."""
    from mnv2_jax.ablation import plots
    from mnv2_jax.analysis.patterns import Spread

    count = 1 + max(int(layer.name[6:].split("/")[0]) for layer in patterns.layers if layer.name.startswith("block_"))
    kinds = (("expand", "expansion"), ("depthwise", "depthwise"), ("", "stem and head"))
    for index, (kind, label) in enumerate(kinds):
        layers = [layer for layer in patterns.layers if (layer.name.partition("/")[2] or "") == kind]
        places = [_place(layer.name, count) for layer in layers]
        scales = [layer.channels if relative else 1 for layer in layers]
        spreads = [Spread.of(layer.positive) for layer in layers]
        color, marker = plots.COLORS[index if kind else -1], plots.MARKERS[index]
        low, mean, high = (
            [getattr(spread, name) / scale for spread, scale in zip(spreads, scales, strict=True)]
            for name in ("minimum", "mean", "maximum")
        )
        axes.vlines(places, low, high, color=color, linewidth=5, alpha=0.35)
        axes.plot(places, mean, linestyle="none", marker=marker, color=color, markersize=5, label=f"{label}: mean")
    axes.vlines([], [], [], color="0.5", linewidth=5, alpha=0.5, label="minimum to maximum")
    if relative:
        place = [_place(layer.name, count) for _, layer in patterns.expansions()]
        level = [block.bottleneck / layer.channels for block, layer in patterns.expansions()]
        axes.plot(place, level, color="black", linewidth=1.2, linestyle="--", label="threshold, 1/t")
        axes.axhline(0.5, color="0.5", linewidth=0.8, linestyle=":")
    else:
        place = [_place(layer.name, count) for layer in patterns.layers]
        total = [layer.channels for layer in patterns.layers]
        axes.plot(place, total, color="black", linestyle="none", marker="_", markersize=8, label="all channels")
        axes.set_yscale("symlog", linthresh=10)
        axes.set_yticks([0, 10, 100, 1000], ["0", "10", "100", "1000"])
        axes.minorticks_off()
        axes.set_ylim(-0.5, 2 * max(total))
    _label_blocks(axes, count)


def _draw_blocks(axes: "Axes", patterns: "Patterns", kept: str) -> None:
    """Shares of positions and of images, by both ways to count."""
    from mnv2_jax.ablation import plots

    places = [int(block.name[6:]) for block in patterns.blocks]
    kinds = (("kept", kept), ("positive", "0 < y"))
    for index, unit in enumerate(("positions", "images")):
        for kind, label in kinds:
            face = plots.COLORS[index] if kind == "kept" else "white"
            axes.plot(
                [place + (-0.12 if unit == "positions" else 0.12) for place in places],
                [getattr(block.share(kind), unit) for block in patterns.blocks],
                color=plots.COLORS[index],
                linestyle="-" if kind == "kept" else "none",
                linewidth=1,
                marker=plots.MARKERS[index],
                markerfacecolor=face,
                markersize=5 if kind == "kept" else 9,
                zorder=3 if kind == "kept" else 2,
                label=f"{unit if unit == 'positions' else 'whole images'}, {label}",
            )
    count = 1 + max(int(layer.name[6:].split("/")[0]) for layer in patterns.layers if layer.name.startswith("block_"))
    _label_blocks(axes, count)


def _label_blocks(axes: "Axes", count: int) -> None:
    axes.set_xticks(range(-1, count + 1), ["stem", *map(str, range(count)), "head"])
    axes.tick_params(axis="x", labelsize=8.5)
    axes.set_xlim(-1.6, count + 0.8)
    axes.set_xlabel("block")


def layers_table(before: "Patterns", after: "Patterns") -> "Table":
    """Every layer: positive channels, and for expansions where they can be inverted."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from mnv2_jax.analysis.patterns import Spread

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("layer")
    titles = ["channels", "1/t", "positive before", "after", "invertible before", "after", "rank n"]
    for title in titles:
        table.add_column(title, justify="right")
    blocks = {f"{block.name}/expand": (block, then) for block, then in zip(before.blocks, after.blocks, strict=True)}
    for layer, then in zip(before.layers, after.layers, strict=True):
        cells = [layer.name, str(layer.channels), ""]
        if layer.name in blocks:
            cells[2] = f"{blocks[layer.name][0].bottleneck / layer.channels:.0%}"
        for each in (layer, then):
            spread = Spread.of(each.positive)
            low, mean, high = (value / each.channels for value in spread[:3])
            cells.append(f"{low:.0%} {mean:.0%} {high:.0%}")
        for block in blocks.get(layer.name, ()):
            cells.append("{:.1%} {:.1%}".format(*block.share()))
        if layer.name in blocks:
            checked, full = map(sum, zip(*(block.ranks for block in blocks[layer.name]), strict=True))
            cells.append(f"{full} of {checked}")
        table.add_row(*cells)
    return table


def _said(finding: "Finding") -> str:
    parts = []
    for name, value in finding.measured.items():
        if isinstance(value, list):
            value = ", ".join(value) or "none"
        parts.append(
            f"{name.replace('_', ' ')} {value:.2f}"
            if isinstance(value, float)
            else f"{name.replace('_', ' ')}: {value}"
        )
    return f"{'agrees' if finding.agrees else 'does not agree'}: {finding.statement} ({'; '.join(parts)})"


# --- The command ------------------------------------------------------------------------------------------


def main(options: Options) -> None:
    """Look at a network before and after it was trained."""
    if options.images < 1:
        raise UserError(f"--images must be 1 or more, got {options.images}")
    if not 0 <= options.seed < 2**31:
        raise UserError(f"--seed must be from 0 to below 2^31, got {options.seed}")
    if not 0 < options.width_multiplier < 100:
        raise UserError(f"--width-multiplier must be greater than 0 and below 100, got {options.width_multiplier:g}")
    # Only now the slow imports.
    import optax

    from mnv2_jax.analysis import patterns
    from mnv2_jax.environment import environment
    from mnv2_jax.tasks.classification import Classification
    from mnv2_jax.training.checkpoint import tree_digest
    from mnv2_jax.training.evaluation import open_weights
    from mnv2_jax.training.parallel import check_divides, create_mesh
    from mnv2_jax.training.progress import RunReporter, create_console
    from mnv2_jax.training.run import NETWORK, Execution, create_learner, execute
    from mnv2_jax.training.step import Learner
    from mnv2_jax.weights.load import load_weights

    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    console = create_console()
    settings: dict[str, Any] = {"experiment": "activation_patterns", "seed": options.seed, "images": options.images}
    given = None
    if options.weights is not None:
        given, known, said = open_weights(options.weights)
        for line in said:
            console.print(line, markup=False)
        patterns.check_network(given.model)
        dataset = options.dataset or known.get("dataset")
        if dataset is None:
            raise UserError(f"{options.weights} does not say what it was trained on; name the images with --dataset")
        settings |= {"dataset": dataset, "weights_sha256": tree_digest(given.variables)}
    else:
        dataset = options.dataset or "digits"
        if dataset not in get_args(ResidentName):
            known_sets = ", ".join(get_args(ResidentName))
            raise UserError(f"a network is trained here on one of {known_sets}, not on {dataset}; or name --weights")
        settings |= {"dataset": dataset, "width_multiplier": options.width_multiplier, "epochs": options.epochs}
    run = create_run(options, dataset)
    if given is None:
        check_divides(run.training.batch_size, 1, create_mesh())
    data = open_images(options, dataset, given)
    open_results(settings, options.out, options.overwrite, [TRAINING])

    trained: dict[str, Any] = {}
    if given is None:
        folder = options.out / TRAINING
        trained = execute(run, Execution(), folder, RunReporter(console), command=command, environment=environment())
        weights, learner = load_weights(folder / NETWORK), create_learner(run, data, create_mesh().size)
    else:
        weights = given
        learner = Learner(weights.model, Classification(weights.model.num_classes), optax.identity())
    model, shape, count = weights.model, data.image_shape, -(-options.images // min(BATCH, options.images))

    def stream(what: str) -> Iterator["Batch"]:
        return watched(batches(data, options.images), count, what, console)

    initial = patterns.initial_variables(learner, options.seed, shape)
    initial = patterns.with_statistics(model, initial, stream("batch statistics before training"))
    counter = patterns.create_counter(model)
    before = patterns.measure(model, initial, stream("counting before training"), counter)
    after = patterns.measure(model, weights.variables, stream("counting after training"), counter)
    findings = patterns.compare(before, after)

    network = f"MobileNetV2 {model.width_multiplier:g}, {options.images} test images of {dataset}"
    kept = "0 < y < 6" if model.activation == "relu6" else "0 < y"
    title = (
        f"Positive channels after each {model.activation.replace('relu', 'ReLU')} (as Fig. 7 of the paper): {network}"
    )
    columns = [(f"before training (seed {options.seed})", before), ("after training", after)]
    found = {
        **settings,
        "weights": str(options.weights or options.out / TRAINING / NETWORK),
        "test_accuracy": trained["test"]["accuracy"] if trained else None,
        "findings": [finding._asdict() for finding in findings],
        "before": before.to_json(),
        "after": after.to_json(),
    }
    write_results(options.out, found, draw(columns, title, kept))
    console.print()
    console.print(f"{network}; positive: minimum, mean, maximum; invertible ({kept}): positions, images", markup=False)
    console.print(layers_table(before, after))
    for finding in findings:
        console.print(_said(finding), markup=False)
    name_results(console, options.out)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
