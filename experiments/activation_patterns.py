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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mnv2_jax import cli
from mnv2_jax.data.catalog import ResidentName
from mnv2_jax.errors import UserError
from mnv2_jax.results import command_line, name_results, open_results, write_results
from mnv2_jax.settings import check_size
from mnv2_jax.training.config import Execution, Recipe, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table

    from mnv2_jax.analysis.findings import Finding
    from mnv2_jax.analysis.patterns import Patterns
    from mnv2_jax.data.batch import Batch
    from mnv2_jax.data.stream import StreamedDataset
    from mnv2_jax.network import Network

TRAINING = "training"
BATCH = 32
"""Images at a time, so that memory is bounded whatever their number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this script."""

    weights: str | None = None
    """A trained MobileNetV2: a study's checkpoints/ARM-SEED, a run's folder, a file or a reference; trained here if not given."""
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


def create_run(options: Options, dataset: str) -> Run:
    """The linear arm of ablate_bottleneck.py, as a single run."""
    return Run(
        dataset,
        {"name": "mobilenet_v2", "width_multiplier": options.width_multiplier, "expansion": 6.0},
        Recipe(epochs=options.epochs, batch_size=16, learning_rate=0.02, evaluations=2),
        seed=options.seed,
        data_files=options.data_files,
    )


def open_images(options: Options, dataset: str, given: "Network | None") -> "StreamedDataset":
    """The test images as the network takes them.

    Raises:
        UserError: if there are fewer, or they are of another size than the network's.
    """
    from mnv2_jax.data.catalog import CATALOG
    from mnv2_jax.data.prepare import check_images
    from mnv2_jax.data.stream import load_stream

    entry = CATALOG.get(dataset)
    if given is not None and entry is not None and entry.source_size and entry.image_size != given.resolution:
        raise UserError(
            f"the images of {dataset} have {entry.image_size} pixels a side and the network's {given.resolution}; "
            "name the data set that it was trained on"
        )
    data = load_stream(dataset, options.data_files, resolution=given.resolution if given else None)
    check_images("--images", options.images, len(data.sources["test"]), f"{dataset} test")
    return data if given is None else data.prepared_as(given.preprocessing, given.image_channels)


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
    from mnv2_jax.ablation.figures import COLORS, MARKERS
    from mnv2_jax.analysis.patterns import Spread

    count = 1 + max(int(layer.name[6:].split("/")[0]) for layer in patterns.layers if layer.name.startswith("block_"))
    kinds = (("expand", "expansion"), ("depthwise", "depthwise"), ("", "stem and head"))
    for index, (kind, label) in enumerate(kinds):
        layers = [layer for layer in patterns.layers if (layer.name.partition("/")[2] or "") == kind]
        places = [_place(layer.name, count) for layer in layers]
        scales = [layer.channels if relative else 1 for layer in layers]
        spreads = [Spread.of(layer.positive) for layer in layers]
        color, marker = COLORS[index if kind else -1], MARKERS[index]
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
    from mnv2_jax.ablation.figures import COLORS, MARKERS

    places = [int(block.name[6:]) for block in patterns.blocks]
    kinds = (("kept", kept), ("positive", "0 < y"))
    for index, unit in enumerate(("positions", "images")):
        for kind, label in kinds:
            face = COLORS[index] if kind == "kept" else "white"
            axes.plot(
                [place + (-0.12 if unit == "positions" else 0.12) for place in places],
                [getattr(block.share(kind), unit) for block in patterns.blocks],
                color=COLORS[index],
                linestyle="-" if kind == "kept" else "none",
                linewidth=1,
                marker=MARKERS[index],
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


def check(options: Options) -> None:
    """Refuse numbers that no run has.

    Raises:
        UserError: names the flag.
    """
    if options.images < 1:
        raise UserError(f"--images must be 1 or more, got {options.images}")
    if not 0 <= options.seed < 2**31:
        raise UserError(f"--seed must be from 0 to below 2^31, got {options.seed}")
    check_size("width_multiplier", options.width_multiplier)


def open_given(options: Options, console: "Console") -> "tuple[Network | None, str, dict[str, Any]]":
    """(the network of --weights, the data set, what the results follow from).

    Raises:
        UserError: if the network or its data cannot be looked at.
    """
    from mnv2_jax.analysis import patterns
    from mnv2_jax.network import tree_digest
    from mnv2_jax.training.finetune import open_trained

    settings: dict[str, Any] = {"experiment": "activation_patterns", "seed": options.seed, "images": options.images}
    if options.weights is not None:
        given, known, said = open_trained(options.weights)
        for line in said:
            console.print(line, markup=False)
        patterns.check_network(given.model)
        dataset = options.dataset or known.get("dataset")
        if dataset is None:
            raise UserError(f"{options.weights} does not say what it was trained on; name the images with --dataset")
        return given, dataset, {**settings, "dataset": dataset, "weights_sha256": tree_digest(given.variables)}
    dataset = options.dataset or "digits"
    if dataset not in get_args(ResidentName):
        known_sets = ", ".join(get_args(ResidentName))
        raise UserError(f"a network is trained here on one of {known_sets}, not on {dataset}; or name --weights")
    trained = {"dataset": dataset, "width_multiplier": options.width_multiplier, "epochs": options.epochs}
    return None, dataset, {**settings, **trained}


def measure(
    options: Options, given: "Network | None", run: Run, data: "StreamedDataset", console: "Console"
) -> "tuple[Network, dict[str, Any], Patterns, Patterns]":
    """(network, summary of its training if it was trained here, patterns before and after training)."""
    import optax

    from mnv2_jax.analysis import patterns
    from mnv2_jax.environment import environment
    from mnv2_jax.training.create import create_learner
    from mnv2_jax.training.devices import Devices
    from mnv2_jax.training.progress import Reporter
    from mnv2_jax.training.run import NETWORK, train_run
    from mnv2_jax.training.step import Learner
    from mnv2_jax.weights.load import load_weights

    trained: dict[str, Any] = {}
    if given is None:
        folder = options.out / TRAINING
        trained = train_run(
            run, Execution(), folder, Reporter(console), command=command_line(), environment=environment()
        )
        network, learner = load_weights(folder / NETWORK), create_learner(run, data, Devices.create().per_run)
    else:
        network, learner = given, Learner(given.model, given.task, optax.identity())
    count = -(-options.images // min(BATCH, options.images))

    def stream(what: str) -> Iterator["Batch"]:
        return watched(batches(data, options.images), count, what, console)

    initial = patterns.initial_variables(learner, options.seed, data.image_shape)
    initial = patterns.with_statistics(network.model, initial, stream("batch statistics before training"))
    counter = patterns.create_counter(network.model)
    before = patterns.measure(network.model, initial, stream("counting before training"), counter)
    after = patterns.measure(network.model, network.variables, stream("counting after training"), counter)
    return network, trained, before, after


def main(options: Options) -> None:
    """Look at a network before and after it was trained."""
    check(options)
    # Only now the slow imports.
    from mnv2_jax.analysis.findings import compare
    from mnv2_jax.training.devices import Devices
    from mnv2_jax.training.progress import create_console
    from mnv2_jax.training.run import NETWORK

    console = create_console()
    given, dataset, settings = open_given(options, console)
    run = create_run(options, dataset)
    if given is None:
        Devices.create().check_divides(run.training.batch_size, 1)
    data = open_images(options, dataset, given)
    open_results(settings, options.out, options.overwrite, [TRAINING])
    network, trained, before, after = measure(options, given, run, data, console)
    findings = compare(before, after)

    model: Any = network.model
    title = f"MobileNetV2 {model.width_multiplier:g}, {options.images} test images of {dataset}"
    kept = "0 < y < 6" if model.activation == "relu6" else "0 < y"
    activation = model.activation.replace("relu", "ReLU")
    columns = [(f"before training (seed {options.seed})", before), ("after training", after)]
    found = {
        **settings,
        "weights": str(options.weights or options.out / TRAINING / NETWORK),
        "test_accuracy": trained["test"]["accuracy"] if trained else None,
        "findings": [finding._asdict() for finding in findings],
        "before": before.to_json(),
        "after": after.to_json(),
    }
    figure = draw(columns, f"Positive channels after each {activation} (as Fig. 7 of the paper): {title}", kept)
    write_results(options.out, found, figure)
    console.print()
    console.print(f"{title}; positive: minimum, mean, maximum; invertible ({kept}): positions, images", markup=False)
    console.print(layers_table(before, after))
    for finding in findings:
        console.print(_said(finding), markup=False)
    name_results(console, options.out)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
