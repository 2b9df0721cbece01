"""How many channels does ReLU6 leave active, and can a block's expansion be inverted? (Fig. 7, Appendix A)

Question: what fraction of the channels is positive after each ReLU6, before and after training, and are these enough
          to invert the expansion?
Command:  python experiments/activation_patterns.py
          python experiments/activation_patterns.py --weights runs/STUDY/checkpoints/ARM-SEED --dataset DATASET
Cost:     65 CPU-seconds, about a minute on 2 CPU cores with compilation.
Expect:   on digits (test accuracy 0.96), half of the channels are positive before and after training, with the same
          spread (in the paper's ImageNet network the spread grows); no expansion is below the threshold, so all can be
          inverted.

Without --weights the script trains a network like the linear arm of ablate_bottleneck.py and keeps it under --out.
Repeating the command resumes the training; once everything is computed it only redraws the figure.

"Before" is the same network initialised with --seed. The initial batch-norm statistics (mean 0, variance 1) describe no
layer, so they are replaced by statistics of the images, taken in one pass in which each batch is normalised by its own
statistics, as in training.

An expansion can be inverted at a position where at least as many channels keep their value (0 < y < 6) as the
bottleneck has channels, and their rows are independent (Lemma 2). The paper counts positive channels (0 < y). The rank
is computed at one position of each of the first 64 images: of the positions where enough channels keep their value, the
one where the fewest do.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mnv2_jax import cli
from mnv2_jax.ablation.design import RECIPE
from mnv2_jax.data.catalog import ResidentName
from mnv2_jax.errors import UserError
from mnv2_jax.results import command_line, name_results, open_results, write_results
from mnv2_jax.settings import check_size
from mnv2_jax.training.config import Execution, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table

    from mnv2_jax.analysis.patterns import Patterns
    from mnv2_jax.data.batch import Batch
    from mnv2_jax.data.stream import StreamedDataset
    from mnv2_jax.network import Network

TRAINING = "training"
BATCH = 32
"""Batch size. It bounds memory for any number of images."""

_SPREAD = {"minimum": float, "mean": float, "maximum": float, "deviation": float}
_SHARE = {"positions": float, "images": float}
_PATTERNS = {
    "layers": {str: {"channels": int, "positive": _SPREAD, "positive_fraction": _SPREAD}},
    "blocks": {
        str: {
            **{"bottleneck": int, "channels": int, "rank": {"checked": int, "full": int}},
            **{"invertible": _SHARE, "invertible_by_positive": _SHARE},
        }
    },
}
SHAPE = {
    **{"test_accuracy": (float, type(None)), "before": _PATTERNS, "after": _PATTERNS},
    "findings": [{"statement": str, "agrees": bool, "measured": object}],
}
"""Expected types of the summary fields that are shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line flags."""

    weights: str | None = None
    """A trained MobileNetV2: a study's checkpoints/ARM-SEED, a run's folder, a file or a reference; by default one is
    trained here."""
    dataset: str | None = None
    """The data set whose test images are used; by default that of the given weights, or digits without --weights."""
    data_files: Path | None = None
    """Folder with your copy of the data set's files, if it cannot be downloaded; with --dataset folder, your images."""
    images: int = 256
    """Number of test images; the first ones are used."""
    seed: int = 0
    """Random seed of the initial network and of the training."""
    width_multiplier: float = 0.35
    """Scales the channels of every layer, if a network is trained here."""
    epochs: int = RECIPE.epochs
    """Passes over the training images, if a network is trained here."""
    out: Path = Path("runs/activation_patterns")
    """Output folder for the network, the figure and the summary."""
    overwrite: bool = False
    """Recompute, and replace the results in the folder."""


# --- The network and the images ---------------------------------------------------------------------------


def create_run(options: Options, dataset: str) -> Run:
    """Return the linear arm of ablate_bottleneck.py as a single run."""
    return Run(
        dataset,
        {"name": "mobilenet_v2", "width_multiplier": options.width_multiplier, "expansion": 6.0},
        dataclasses.replace(RECIPE, epochs=options.epochs, evaluations=2),
        seed=options.seed,
        data_files=options.data_files,
    )


def open_images(options: Options, dataset: str, given: "Network | None") -> "StreamedDataset":
    """Open the test images, preprocessed as the network expects.

    Raises:
        UserError: if there are fewer than --images.
    """
    from mnv2_jax.data.prepare import check_images
    from mnv2_jax.data.stream import load_stream

    data = load_stream(dataset, options.data_files, resolution=given.resolution if given else None)
    check_images("--images", options.images, len(data.sources["test"]), f"{dataset} test")
    return data if given is None else data.prepared_as(given.preprocessing, given.image_channels)


def batches(data: "StreamedDataset", images: int) -> "Iterator[Batch]":
    """Yield the first `images` images in batches of equal size; padding in the last batch has weight 0."""
    size = min(BATCH, images)
    for index, batch in enumerate(itertools.islice(data.evaluation("test", size), -(-images // size))):
        batch.weights[max(0, images - index * size) :] = 0
        yield batch


def watched(stream: "Iterator[Batch]", total: int, what: str, console: "Console") -> "Iterator[Batch]":
    """Yield the batches, with a progress bar if the console is a terminal."""
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


# --- Figure and table ----------------------------------------------------------------------------------------


def draw(found: Mapping[str, Any], model: Any) -> "Figure":
    """Draw fractions and numbers of positive channels, and what can be inverted, before and after training.

    The last row is left out if every expansion can be inverted at every position.

    Args:
        found: the summary.
        model: the network, described in the title.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import PercentFormatter

    from mnv2_jax.analysis.drawing import headline, tidy

    columns = [(f"before training (seed {found['seed']})", found["before"]), ("after training", found["after"])]
    rows = 2 if _all_invertible(found) else 3
    figure, panels = plt.subplots(rows, 2, figsize=(13, 1.2 + 3.5 * rows), layout="constrained", sharey="row")
    kept = kept_values(model.activation)
    for column, (name, patterns) in zip(panels.T, columns, strict=True):
        column[0].set_title(name, fontsize=11)
        _draw_layers(column[0], patterns, relative=True)
        _draw_layers(column[1], patterns, relative=False)
        if rows == 3:
            _draw_blocks(column[2], patterns, kept)
    labels = (
        "fraction of channels that are positive",
        "positive channels (logarithmic above 10)",
        "fraction that can be inverted",
    )
    for row, label in zip(panels, labels, strict=False):
        row[0].set_ylabel(label)
        handles, names = row[0].get_legend_handles_labels()
        row[1].legend(handles, names, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9.5)
    for axes in (*panels[0], *panels[2:].flat):
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes in panels.flat:
        tidy(axes)
    headline(figure, finding(found), details(found, model))
    return figure


def kept_values(activation: str) -> str:
    """Return the range of y that the activation leaves unchanged."""
    return "0 < y < 6" if activation == "relu6" else "0 < y"


def _all_invertible(found: Mapping[str, Any]) -> bool:
    blocks = [block for state in ("before", "after") for block in found[state]["blocks"].values()]
    return all(block["invertible"]["positions"] == 1 and _full_rank(block) for block in blocks)


def _full_rank(block: Mapping[str, Any]) -> bool:
    return block["rank"]["full"] == block["rank"]["checked"]


def _mean_of_layers(patterns: Mapping[str, Any], measure: str) -> float:
    """Return the mean over layers of a statistic of the fraction of positive channels."""
    return statistics.fmean(layer["positive_fraction"][measure] for layer in patterns["layers"].values())


def finding(found: Mapping[str, Any]) -> str:
    """Return the answer as one sentence."""
    before, after = (_mean_of_layers(found[state], "mean") for state in ("before", "after"))
    blocks = found["after"]["blocks"].values()
    whole = sum(block["invertible"]["positions"] == 1 and _full_rank(block) for block in blocks)
    every = "all" if whole == len(blocks) else f"{whole} of"
    return (
        f"{100 * before:.0f} % of the channels are positive before training and {100 * after:.0f} % after it; "
        f"{every} {len(blocks)} expansions can be inverted everywhere"
    )


def details(found: Mapping[str, Any], model: Any) -> str:
    """Describe what is shown and what the paper finds."""
    accuracy = f", test accuracy {100 * found['test_accuracy']:.1f} %" if found["test_accuracy"] is not None else ""
    before, after = (_mean_of_layers(found[state], "deviation") for state in ("before", "after"))
    return (
        f"MobileNetV2 {model.width_multiplier:g} on {found['images']} test images of {found['dataset']}{accuracy}. "
        f"Counted after each {model.activation.replace('relu', 'ReLU')}, at all positions. Above the threshold 1/t, an "
        "expansion has as many positive channels as its bottleneck has channels. The paper (Fig. 7, ImageNet) finds a much "
        f"larger spread after training; here the standard deviation is {100 * before:.1f} % before and {100 * after:.1f} % "
        "after."
    )


def _place(name: str, blocks: int) -> float:
    """Return the x of a layer: the stem before the blocks, the head after them, a block's two layers side by side."""
    if not name.startswith("block_"):
        return -1 if name == "stem" else blocks
    block, layer = name.removeprefix("block_").split("/")
    return int(block) + (-0.18 if layer == "expand" else 0.18)


def _count_blocks(patterns: Mapping[str, Any]) -> int:
    return 1 + max(int(name[6:].split("/")[0]) for name in patterns["layers"] if name.startswith("block_"))


def _draw_layers(axes: "Axes", patterns: Mapping[str, Any], relative: bool) -> None:
    """Draw mean and range of each layer's positive channels."""
    from mnv2_jax.ablation.figures import COLORS, MARKERS

    count, every = _count_blocks(patterns), patterns["layers"]
    measure = "positive_fraction" if relative else "positive"
    kinds = (("expand", "expansion"), ("depthwise", "depthwise"), ("", "first and last layer"))
    for index, (kind, label) in enumerate(kinds):
        layers = {name: layer[measure] for name, layer in every.items() if name.partition("/")[2] == kind}
        places = [_place(name, count) for name in layers]
        color, marker = COLORS[index if kind else -1], MARKERS[index]
        low, mean, high = ([layer[value] for layer in layers.values()] for value in ("minimum", "mean", "maximum"))
        axes.vlines(places, low, high, color=color, linewidth=5, alpha=0.35)
        axes.plot(places, mean, linestyle="none", marker=marker, color=color, markersize=5, label=f"{label}: mean")
    axes.vlines([], [], [], color="0.5", linewidth=5, alpha=0.5, label="minimum to maximum")
    if relative:
        blocks = patterns["blocks"]
        place = [_place(f"{name}/expand", count) for name in blocks]
        level = [block["bottleneck"] / block["channels"] for block in blocks.values()]
        axes.plot(place, level, color="black", linewidth=1.2, linestyle="--", label="threshold, 1/t")
        axes.axhline(0.5, color="0.5", linewidth=0.8, linestyle=":")
    else:
        place = [_place(name, count) for name in every]
        total = [layer["channels"] for layer in every.values()]
        axes.plot(place, total, color="black", linestyle="none", marker="_", markersize=8, label="all channels")
        axes.set_yscale("symlog", linthresh=10)
        axes.set_yticks([0, 10, 100, 1000], ["0", "10", "100", "1000"])
        axes.minorticks_off()
        axes.set_ylim(-0.5, 2 * max(total))
    _label_blocks(axes, count)


def _draw_blocks(axes: "Axes", patterns: Mapping[str, Any], kept: str) -> None:
    """Draw the fractions of positions and of images where each block can be inverted, by both counts."""
    from mnv2_jax.ablation.figures import COLORS, MARKERS

    blocks = patterns["blocks"]
    for index, unit in enumerate(("positions", "images")):
        for measure, label in (("invertible", kept), ("invertible_by_positive", "0 < y")):
            own = measure == "invertible"
            axes.plot(
                [int(name[6:]) + (-0.12 if unit == "positions" else 0.12) for name in blocks],
                [block[measure][unit] for block in blocks.values()],
                color=COLORS[index],
                linestyle="-" if own else "none",
                linewidth=1,
                marker=MARKERS[index],
                markerfacecolor=COLORS[index] if own else "white",
                markersize=5 if own else 9,
                zorder=3 if own else 2,
                label=f"{unit if unit == 'positions' else 'whole images'}, {label}",
            )
    _label_blocks(axes, _count_blocks(patterns))


def _label_blocks(axes: "Axes", count: int) -> None:
    axes.set_xticks(range(-1, count + 1), ["first", *map(str, range(count)), "last"])
    axes.tick_params(axis="x", labelsize=8.5)
    axes.set_xlim(-1.6, count + 0.8)
    axes.set_xlabel("block")


def layers_table(before: Mapping[str, Any], after: Mapping[str, Any]) -> "Table":
    """Return a table of all layers: positive channels and, for expansions, where they can be inverted."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("layer")
    titles = ["channels", "1/t", "positive before", "after", "invertible before", "after", "rank n"]
    for title in titles:
        table.add_column(title, justify="right")
    for name, layer in before["layers"].items():
        blocks = [state["blocks"].get(name.removesuffix("/expand")) for state in (before, after)]
        if blocks[0] is None or not name.endswith("/expand"):
            blocks = []
        cells = [name, str(layer["channels"]), ""]
        if blocks:
            cells[2] = f"{blocks[0]['bottleneck'] / layer['channels']:.0%}"
        for state in (before, after):
            share = state["layers"][name]["positive_fraction"]
            cells.append(f"{share['minimum']:.0%} {share['mean']:.0%} {share['maximum']:.0%}")
        cells += [f"{block['invertible']['positions']:.1%} {block['invertible']['images']:.1%}" for block in blocks]
        if blocks:
            full, checked = (sum(block["rank"][count] for block in blocks) for count in ("full", "checked"))
            cells.append(f"{full} of {checked}")
        table.add_row(*cells)
    return table


def _said(finding: Mapping[str, Any]) -> str:
    parts = []
    for name, value in finding["measured"].items():
        if isinstance(value, list):
            value = ", ".join(value) or "none"
        parts.append(
            f"{name.replace('_', ' ')} {value:.2f}"
            if isinstance(value, float)
            else f"{name.replace('_', ' ')}: {value}"
        )
    verdict = "agrees" if finding["agrees"] else "disagrees"
    return f"{verdict}: {finding['statement']} ({'; '.join(parts)})"


# --- The command ------------------------------------------------------------------------------------------


def check(options: Options) -> None:
    """Check the flags.

    Raises:
        UserError: for a value out of range; the message names the flag.
    """
    if options.images < 1:
        raise UserError(f"--images must be 1 or more, got {options.images}")
    if not 0 <= options.seed < 2**31:
        raise UserError(f"--seed must be from 0 to 2^31 - 1, got {options.seed}")
    check_size("width_multiplier", options.width_multiplier)


def open_given(options: Options, console: "Console") -> "tuple[Network | None, str, dict[str, Any]]":
    """Return (the network of --weights or None, the data set, the settings that the results depend on).

    Raises:
        UserError: if the network or its data cannot be used.
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
            raise UserError(f"{options.weights} does not record what it was trained on; specify --dataset")
        return given, dataset, {**settings, "dataset": dataset, "weights_sha256": tree_digest(given.variables)}
    dataset = options.dataset or "digits"
    if dataset not in get_args(ResidentName):
        known_sets = ", ".join(get_args(ResidentName))
        raise UserError(
            f"this script cannot train a network on {dataset}; choose from {known_sets} or specify --weights"
        )
    trained = {"dataset": dataset, "width_multiplier": options.width_multiplier, "epochs": options.epochs}
    return None, dataset, {**settings, **trained}


def measure(
    options: Options, given: "Network | None", run: Run, data: "StreamedDataset", console: "Console"
) -> "tuple[dict[str, Any], Patterns, Patterns]":
    """Return (summary of the training, empty if --weights is given; patterns before training; patterns after it)."""
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
    return trained, before, after


def main(options: Options) -> None:
    """Measure a network before and after training."""
    check(options)
    # Slow imports, after the flags are checked.
    from mnv2_jax.analysis.findings import compare
    from mnv2_jax.models.create import create_model
    from mnv2_jax.training.devices import Devices
    from mnv2_jax.training.progress import create_console
    from mnv2_jax.training.run import NETWORK

    console = create_console()
    given, dataset, settings = open_given(options, console)
    run = create_run(options, dataset)
    if given is None:
        Devices.create().check_divides(run.training.batch_size, 1)
    data = open_images(options, dataset, given)
    known = found = open_results(settings, options.out, options.overwrite, [TRAINING], SHAPE)
    if found is None:
        trained, before, after = measure(options, given, run, data, console)
        found = {
            **settings,
            "weights": str(options.weights or options.out / TRAINING / NETWORK),
            "test_accuracy": trained["test"]["accuracy"] if trained else None,
            "findings": [finding._asdict() for finding in compare(before, after)],
            "before": before.to_json(),
            "after": after.to_json(),
        }
    model: Any = create_model(**run.model) if given is None else given.model
    write_results(options.out, found, draw(found, model))
    console.print()
    console.print(
        f"{details(found, model)}\nPositive: minimum, mean, maximum; invertible ({kept_values(model.activation)}): "
        "positions, images",
        markup=False,
    )
    console.print(layers_table(found["before"], found["after"]))
    for each in found["findings"]:
        console.print(_said(each), markup=False)
    name_results(console, options.out, known)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
