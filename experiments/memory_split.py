"""How much memory does an inverted residual need, and how much does splitting it save? (Sec. 5.1 and Table 3)

Question: if the inner channels of a block are computed in parts, one after the other, how much memory and time does it
          take, and are 2 to 5 parts the right number?
Command:  python experiments/memory_split.py
          with --topology v5e:1x1 to also compile for a TPU, without having one (pip install -e '.[plan]')
Cost:     25 s on 2 CPU cores.
Expect:   in 5 parts the largest block takes 3.1 MB instead of 10.8 MB, and about twice the time.

`model.apply(variables, images, split=5)` computes every block of MobileNetV2 in this way. Memory is what XLA's compiler
allocates for one image in float32: the input, the output and temporaries, without weights. Times are medians of
alternating rounds on this machine, with their range.
"""

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from rich.box import SIMPLE_HEAD
from rich.table import Table

from mnv2_jax import cli
from mnv2_jax.errors import UserError
from mnv2_jax.results import name_results, open_results, settings_of, write_results
from mnv2_jax.settings import check_resolution, check_size
from mnv2_jax.training.progress import create_console

RECOMMENDED = (2, 5)
"""Numbers of parts that the paper recommends; it finds that more cause cache misses."""
PUBLISHED_KB = {"MobileNetV1": 1600, "MobileNetV2": 400}
"""Table 3's last row, for 16-bit values, at width 1 and 224 pixels."""
TPU_IMAGES = 128
"""Batch size on a TPU. The temporaries of one image alone fit into the chip's fast memory and take no HBM."""

WHOLE, IN_PARTS, TPU = "#0072B2", "#56B4E9", "#009E73"
"""Colours of what is computed whole, in parts, and on a TPU, from Okabe and Ito's palette."""

_ROW = {"split": int, "formula_bytes": int, "activation_bytes": int, "inner_ratio": float}
_BLOCK = {"block": str, "activation_bytes": int, "in_5_parts": int}
_NETWORK = {"formula_layers_bytes": int, "formula_blocks_bytes": int, "measured_bytes": {str: int}}
SHAPE = {
    **{"findings": [str], "block": str, "inner_channels": int, "blocks": [_BLOCK]},
    "sweep": [{**_ROW, "milliseconds": float, "time_ratio": float}],
    "networks": {str: {**_NETWORK, "published_bytes": (int, type(None))}},
}
"""Expected types of the summary fields that are drawn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line flags."""

    width_multiplier: float = 1.0
    """Scales the channels of every layer."""
    resolution: int = 224
    """Side of the square images, in pixels."""
    splits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 12, 24, 48, 96)
    """Numbers of parts to compute the largest block in."""
    network_splits: tuple[int, ...] = (1, 2, 5)
    """Numbers of parts to compute all blocks of the whole network in."""
    rounds: int = 15
    """Number of times that each program is timed."""
    topology: str | None = None
    """TPU slice of one chip, such as v5e:1x1; the largest block is compiled for it too, with 128 images."""
    out: Path = Path("runs/memory_split")
    """Output folder for the figure and the summary."""
    overwrite: bool = False
    """Recompute, and replace the results in the folder."""


def measure(options: Options, chip: Any, say: Any) -> dict[str, Any]:
    """Return all numbers that the figure shows; `chip` is a device of --topology, or None."""
    import jax
    import jax.numpy as jnp

    from mnv2_jax.analysis.memory import BYTES, compile_inference, part_bytes
    from mnv2_jax.models.blocks import InvertedResidual
    from mnv2_jax.models.cost import layer_costs, units
    from mnv2_jax.models.create import create_model

    image_shape = (options.resolution, options.resolution, 3)
    networks = {
        title: create_model(name, width_multiplier=options.width_multiplier)
        for title, name in (("MobileNetV1", "mobilenet_v1"), ("MobileNetV2", "mobilenet_v2"))
    }
    blocks = [unit for unit in units(layer_costs(networks["MobileNetV2"], image_shape)) if len(unit.layers) > 1]

    def block_program(unit: Any, split: int, device: Any = None, count: int = 1) -> tuple[Any, tuple[Any, Any]]:
        depthwise, project = unit.layers[-2:]
        block = InvertedResidual(
            project.output_shape[-1], project.kernel_shape[2] / unit.input_shape[-1], depthwise.stride
        )
        images = jnp.ones((1, *unit.input_shape))
        shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), images, False))
        variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1, leaf.dtype), shapes)

        def apply(variables: Any, images: Any) -> Any:
            return block.apply(variables, images, False, split)

        shape = jax.ShapeDtypeStruct((count, *unit.input_shape), images.dtype)
        return compile_inference(apply, shapes, shape, device), (variables, images)

    def inner(unit: Any) -> int:
        return unit.layers[-1].kernel_shape[2]

    largest = max(blocks, key=lambda unit: part_bytes(unit, 1))
    splits = sorted({1, *(min(split, inner(largest)) for split in options.splits)})
    say(f"{largest.name}: {inner(largest)} inner channels, in {', '.join(map(str, splits))} parts")
    programs = [block_program(largest, split) for split in splits]
    seconds: list[list[float]] = [[] for _ in splits]
    for _ in range(options.rounds + 1):
        for times, (program, arguments) in zip(seconds, programs, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(program.run(*arguments))
            times.append(time.perf_counter() - began)
    sweep = []
    for split, times, (program, _) in zip(splits, seconds, programs, strict=True):
        # The first round is a warm-up. Each ratio is to the whole block's time in the same round.
        ratios = [mine / whole for mine, whole in zip(times[1:], seconds[0][1:], strict=True)]
        row = {
            "split": split,
            "formula_bytes": part_bytes(largest, split),
            "activation_bytes": program.activation_bytes,
            "inner_bytes": program.inner_bytes,
            "inner_ratio": program.inner_bytes / programs[0][0].inner_bytes,
            "milliseconds": 1000 * statistics.median(times[1:]),
            "time_ratio": statistics.median(ratios),
            "time_ratio_range": [min(ratios), max(ratios)],
        }
        if chip is not None:
            say(f"{largest.name} in {split} parts for {options.topology}")
            found = block_program(largest, split, chip, TPU_IMAGES)[0]
            row["tpu_activation_bytes"] = found.activation_bytes / TPU_IMAGES
        sweep.append(row)

    say("every block, whole and in 5 parts")
    each, known = [], {}
    for unit in blocks:
        key = (unit.input_shape, unit.output_shape, inner(unit))
        if key not in known:
            known[key] = [block_program(unit, split)[0].activation_bytes for split in (1, 5)]
        each.append({"block": unit.name, "activation_bytes": known[key][0], "in_5_parts": known[key][1]})

    whole: dict[str, Any] = {}
    for title, network in networks.items():
        costs = layer_costs(network, image_shape)
        shapes = jax.eval_shape(lambda network=network: network.init(jax.random.key(0), jnp.zeros((1, *image_shape))))
        measured = {}
        for split in options.network_splits if title == "MobileNetV2" else (1,):
            say(f"{title}{f' in {split} parts' if split > 1 else ''}")
            extra = {"split": split} if split > 1 else {}

            def apply(variables: Any, images: Any, network: Any = network, extra: Any = extra) -> Any:
                return network.apply(variables, images, **extra)

            shape = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
            measured[str(split)] = compile_inference(apply, shapes, shape).activation_bytes
        whole[title] = {
            "published_bytes": PUBLISHED_KB[title] * 1000 * BYTES // 2 if is_published(options) else None,
            "formula_layers_bytes": max(layer.activation_bytes(BYTES) for layer in costs),
            "formula_blocks_bytes": max(unit.activation_bytes(BYTES) for unit in units(costs)),
            "measured_bytes": measured,
        }
    return {"block": largest.name, "inner_channels": inner(largest), "sweep": sweep, "blocks": each, "networks": whole}


def is_published(options: Options) -> bool:
    """Return whether the paper has numbers for this width and resolution."""
    return options.width_multiplier == 1 and options.resolution == 224


def findings(found: dict[str, Any]) -> list[str]:
    """Return the findings as sentences."""
    sweep = found["sweep"]
    whole, finest = sweep[0], sweep[-1]
    recommended = [row for row in sweep if RECOMMENDED[0] <= row["split"] <= RECOMMENDED[1]]
    lines = []
    if recommended:
        most = recommended[-1]
        saved = (whole["activation_bytes"] - most["activation_bytes"]) / (
            whole["activation_bytes"] - min(row["activation_bytes"] for row in sweep)
        )
        lines.append(
            f"In {most['split']} parts {found['block']} holds {most['inner_ratio']:.2f} of what it held between input and "
            f"output, in {most['time_ratio']:.1f} times the time; that is {saved:.0%} of all that splitting can save."
        )
        fastest = min(sweep[1:], key=lambda row: row["time_ratio"])
        # The longest run of splits, up to the finest, that are all slower.
        slower: list[dict[str, Any]] = []
        for row in reversed(sweep):
            if row["split"] <= RECOMMENDED[1] or row["time_ratio"] <= 1.1 * most["time_ratio"]:
                break
            slower.insert(0, row)
        lines.append(
            f"The fastest split is into {fastest['split']} parts ({fastest['time_ratio']:.1f} times the whole block's time)"
            + (
                f"; from {slower[0]['split']} parts on it takes over a tenth longer than in {most['split']}, as the paper says "
                "of more than 5."
                if slower
                else "."
            )
        )
    lines.append(f"In {finest['split']} parts it takes {finest['time_ratio']:.1f} times the whole block's time.")
    first, second = (found["networks"][name] for name in PUBLISHED_KB)
    split, size = min(second["measured_bytes"].items(), key=lambda item: item[1])
    v1, v2 = (next(iter(network["measured_bytes"].values())) for network in (first, second))
    parts = f"; MobileNetV2 in {split} parts {size / 1e6:.1f} MB" if split != "1" else ""
    lines.append(f"The whole networks: MobileNetV1 {v1 / 1e6:.1f} MB, MobileNetV2 {v2 / 1e6:.1f} MB{parts}.")
    if "tpu_activation_bytes" in whole:
        tpu = ", ".join(f"{row['tpu_activation_bytes'] / 1e6:.2f} in {row['split']}" for row in sweep)
        lines.append(f"On the TPU, MB of HBM per image, {TPU_IMAGES} side by side: {tpu} parts.")
    return lines


def draw(found: dict[str, Any], options: Options) -> Figure:
    """Draw memory and time of the largest block against the split, and memory of all blocks and of whole networks."""
    from mnv2_jax.analysis.drawing import headline, tidy

    figure = plt.figure(figsize=(12, 9.2), layout="constrained")
    # A subfigure per row, since the labels of the networks are long.
    upper, lower = figure.subfigures(2, 1)
    memory, duration = upper.subplots(1, 2)
    each, networks = lower.subplots(1, 2, width_ratios=(1, 1.15))
    sweep, block = found["sweep"], f"{found['block']}, the largest block ({found['inner_channels']} channels inside)"
    _draw_memory(memory, sweep)
    memory.set_title(f"Memory of {block}", fontsize=11)
    _draw_time(duration, sweep)
    rounds = f"median of {options.rounds} rounds" + (", smallest to largest" if "time_ratio_range" in sweep[0] else "")
    duration.set_title(f"Its time on this CPU ({rounds})", fontsize=11)
    for axes in (memory, duration):
        splits = [row["split"] for row in sweep]
        axes.set_xscale("log")
        axes.set_xticks(splits, [str(split) for split in splits])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="number of parts that the inner channels are split into", ylim=(0, None))
        axes.axvspan(*RECOMMENDED, color="0.92", zorder=0, label="the paper: 2 to 5 parts (Sec. 5.1)")
        axes.legend(frameon=False, fontsize=9.5)
    _draw_blocks(each, found["blocks"])
    _draw_networks(networks, found["networks"])
    for axes in (memory, duration, each, networks):
        tidy(axes, "x" if axes is networks else "y")
    size = f"One image of {options.resolution} pixels, width {options.width_multiplier:g}, float32, without weights."
    headline(figure, finding(sweep), f"{size} Memory is what XLA's compiler lays out; times were measured.")
    return figure


def finding(sweep: list[dict[str, Any]]) -> str:
    """Return the answer as one sentence."""
    whole, *others = sweep
    size = f"{whole['activation_bytes'] / 1e6:.1f}"
    split = [row for row in others if row["split"] <= RECOMMENDED[1]] or others
    if not split:
        return f"MobileNetV2's largest block takes {size} MB"
    most = split[-1]
    return (
        f"In {most['split']} parts MobileNetV2's largest block takes {most['activation_bytes'] / 1e6:.1f} MB "
        f"instead of {size}, and {most['time_ratio']:.1f} times the time"
    )


def _draw_memory(axes: Axes, sweep: list[dict[str, Any]]) -> None:
    lines = [
        ("activation_bytes", "compiled for the CPU", WHOLE, "o-"),
        ("formula_bytes", "the paper's formula: input, output and one part", "black", "s--"),
    ]
    if "tpu_activation_bytes" in sweep[0]:
        # Bytes on the chip divided by the batch size.
        lines.append(
            ("tpu_activation_bytes", f"compiled for a TPU: HBM of {TPU_IMAGES} images / {TPU_IMAGES}", TPU, "D-.")
        )
    for key, label, color, style in lines:
        axes.plot([row["split"] for row in sweep], [row[key] / 1e6 for row in sweep], style, color=color, label=label)
    axes.set(ylabel="memory, MB per image")


def _draw_time(axes: Axes, sweep: list[dict[str, Any]]) -> None:
    ratios = [row["time_ratio"] for row in sweep]
    bars = None
    if "time_ratio_range" in sweep[0]:
        ranges = [row["time_ratio_range"] for row in sweep]
        bars = [[abs(pair[end] - ratio) for ratio, pair in zip(ratios, ranges, strict=True)] for end in (0, 1)]
    axes.errorbar([row["split"] for row in sweep], ratios, yerr=bars, fmt="o-", color=WHOLE, capsize=3)
    axes.axhline(1, color="0.6", linewidth=0.8)
    axes.set(ylabel="time relative to the whole block")


def _draw_blocks(axes: Axes, blocks: list[dict[str, Any]]) -> None:
    for shift, key, label, color, hatch in (
        (-0.2, "activation_bytes", "whole", WHOLE, ""),
        (0.2, "in_5_parts", "in 5 parts", IN_PARTS, "///"),
    ):
        heights = [block[key] / 1e6 for block in blocks]
        index = [place + shift for place in range(len(blocks))]
        axes.bar(index, heights, 0.4, color=color, hatch=hatch, edgecolor="white", label=label)
    axes.set_xticks(range(len(blocks)), [block["block"].removeprefix("block_") for block in blocks])
    axes.set_title("Every block, compiled for the CPU", fontsize=11)
    axes.set(xlabel="block", ylabel="memory, MB per image")
    axes.legend(frameon=False, fontsize=9.5)


def _draw_networks(axes: Axes, networks: dict[str, Any]) -> None:
    """Draw the memory of whole networks: hollow bars are the paper's and its formula's, filled ones compiled."""
    rows: list[tuple[str, float, dict[str, Any]]] = []
    for name, network in networks.items():
        short, color = name.replace("MobileNet", ""), WHOLE if name == "MobileNetV2" else "0.55"
        hollow = {"facecolor": "white", "edgecolor": color, "linewidth": 1.5}
        if network["published_bytes"] is not None:
            rows.append((f"{short}: the paper's Table 3, at 4 bytes a value", network["published_bytes"], hollow))
        rows.append((f"{short}: formula, a block at a time", network["formula_blocks_bytes"], hollow))
        rows.append((f"{short}: formula, a layer at a time", network["formula_layers_bytes"], hollow))
        for split, size in network["measured_bytes"].items():
            filled = {"facecolor": color} if split == "1" else {"facecolor": IN_PARTS, "hatch": "///"}
            parts = "" if split == "1" else f", in {split} parts"
            rows.append((f"{short}: compiled{parts}", size, {"edgecolor": "white", **filled}))
    for place, (_, size, style) in enumerate(rows):
        axes.barh(place, size / 1e6, **style)
        offset: Any = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{size / 1e6:.1f}", (size / 1e6, place), **offset)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title("Whole networks (hollow: as the paper counts)", fontsize=11)
    axes.set(xlabel="peak memory, MB per image")


def main(options: Options) -> None:
    """Measure, draw, and print the findings."""
    check_resolution(options.resolution)
    check_size("width_multiplier", options.width_multiplier)
    for flag, splits in (("--splits", options.splits), ("--network-splits", options.network_splits)):
        if not splits or min(splits) < 1:
            raise UserError(f"{flag} must be numbers of parts, 1 or more, got {' '.join(map(str, splits)) or 'none'}")
    if options.rounds < 1:
        raise UserError(f"--rounds must be 1 or more, got {options.rounds}")
    from mnv2_jax.plan.chips import open_topology

    chip = None if options.topology is None else open_topology(options.topology).devices[0]
    known = open_results(settings_of(options, "memory_split"), options.out, options.overwrite, shape=SHAPE)
    console = create_console()
    summary = known
    if summary is None:
        found = measure(options, chip, lambda line: console.print(line, markup=False))
        summary = {"experiment": "memory_split", "findings": findings(found), **found}
    write_results(options.out, summary, draw(summary, options))
    table = Table(
        "parts", "memory, MB", "formula, MB", "inner tensors, of whole", "ms", "time, of whole", box=SIMPLE_HEAD
    )
    for row in summary["sweep"]:
        table.add_row(
            str(row["split"]),
            f"{row['activation_bytes'] / 1e6:.2f}",
            f"{row['formula_bytes'] / 1e6:.2f}",
            f"{row['inner_ratio']:.2f}",
            f"{row['milliseconds']:.1f}",
            f"{row['time_ratio']:.2f}",
        )
    console.print(table)
    for line in summary["findings"]:
        console.print(line, markup=False)
    name_results(console, options.out, known)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
