"""What does an inverted residual need of memory, and what does splitting it save? (MobileNetV2, Sec. 5.1 and Table 3)

Question: if a block is computed in parts of its inner channels, one after the other, how much memory and time does it
          take, and are 2 to 5 parts the right number?
Command:  python experiments/memory_split.py
          with --topology v5e:1x1 for a TPU that is not here as well (pip install -e '.[plan]')
Cost:     25 s on 2 CPU cores.
Expect:   the largest block in 5 parts holds 0.21 of what it held between input and output, in some twice the time.

`model.apply(variables, images, split=5)` computes every block of MobileNetV2 so. Memory is what XLA's compiler lays out (the
input, the output, and what is held between them; weights are left out), of one image in float32. Times are medians of
alternating rounds on this machine.
"""

import dataclasses
import math
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
"""Parts that the paper takes; with more, it finds, caches are missed."""
PUBLISHED_KB = {"MobileNetV1": 1600, "MobileNetV2": 400}
"""Table 3's last row, for 16-bit values, at width 1 and 224 pixels."""
TPU_IMAGES = 128
"""Side by side on a TPU: what a block holds of one image fits into the chip's fast memory, and takes none of HBM."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this script."""

    width_multiplier: float = 1.0
    """Scales the channels of every layer."""
    resolution: int = 224
    """Side of the square images, in pixels."""
    splits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 12, 24, 48, 96)
    """Numbers of parts that the largest block is computed in."""
    network_splits: tuple[int, ...] = (1, 2, 5)
    """Numbers of parts that all blocks of the whole network are computed in."""
    rounds: int = 15
    """How often each program is timed."""
    topology: str | None = None
    """A TPU slice of one chip to compile the largest block for as well, with 128 images; v5e:1x1 for instance."""
    out: Path = Path("runs/memory_split")
    """Folder for the figure and the summary."""
    overwrite: bool = False
    """Begin anew in a folder that holds other results."""


def measure(options: Options, chip: Any, say: Any) -> dict[str, Any]:
    """All that the figure shows; `chip` is a device of --topology, or None."""
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
    say(f"{largest.name}: {inner(largest)} channels inside, in {', '.join(map(str, splits))} parts")
    programs = [block_program(largest, split) for split in splits]
    seconds: list[list[float]] = [[] for _ in splits]
    for _ in range(options.rounds + 1):
        for times, (program, arguments) in zip(seconds, programs, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(program.run(*arguments))
            times.append(time.perf_counter() - began)
    sweep = []
    for split, times, (program, _) in zip(splits, seconds, programs, strict=True):
        # The first round also warms up; each round's ratio is to the whole block in that round.
        ratios = [mine / whole for mine, whole in zip(times[1:], seconds[0][1:], strict=True)]
        row = {
            "split": split,
            "formula_bytes": part_bytes(largest, split),
            "activation_bytes": program.activation_bytes,
            "inner_bytes": program.inner_bytes,
            "inner_ratio": program.inner_bytes / programs[0][0].inner_bytes,
            "milliseconds": 1000 * statistics.median(times[1:]),
            "time_ratio": statistics.median(ratios),
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
    """Whether the paper has figures for such a network."""
    return options.width_multiplier == 1 and options.resolution == 224


def findings(found: dict[str, Any]) -> list[str]:
    """What the numbers say, in sentences."""
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
        # From where on every one is.
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
        lines.append(f"On the TPU, MB of HBM an image, {TPU_IMAGES} side by side: {tpu} parts.")
    return lines


def draw(found: dict[str, Any], title: str) -> Figure:
    """Memory and time against the split; every block; whole networks."""
    from mnv2_jax.ablation.figures import COLORS

    figure, panels = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    sweep = found["sweep"]
    splits = [row["split"] for row in sweep]

    memory: Axes = panels[0, 0]
    lines = [
        ("activation_bytes", "as compiled for the CPU", "o-", 0),
        ("formula_bytes", "input, output and one part", "s--", 1),
    ]
    if "tpu_activation_bytes" in sweep[0]:
        lines.append(("tpu_activation_bytes", "as compiled for the TPU, HBM", "D-.", 2))
    for key, label, style, color in lines:
        memory.plot(splits, [row[key] / 1e6 for row in sweep], style, color=COLORS[color], label=label)
    memory.set(ylabel="memory, MB", title=f"{found['block']}, {found['inner_channels']} channels inside")
    memory.set_ylim(bottom=0)
    memory.legend(frameon=False)

    duration: Axes = panels[0, 1]
    duration.plot(splits, [row["time_ratio"] for row in sweep], "o-", color=COLORS[0])
    duration.axhline(1, color="0.6", linewidth=0.8)
    duration.set(ylabel="time, of the whole block's", title="Time of the same")
    duration.set_ylim(bottom=0)
    for axes in (memory, duration):
        axes.set_xscale("log")
        axes.set_xticks(splits, [str(split) for split in splits])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(axis="x", labelsize=8)
        axes.set_xlabel("parts")
        axes.axvspan(*RECOMMENDED, color="0.92", zorder=0)
    top = duration.get_ylim()[1]
    duration.text(
        math.sqrt(RECOMMENDED[0] * RECOMMENDED[1]), 0.04 * top, "the paper's\n2 to 5", ha="center", fontsize=9
    )

    each: Axes = panels[1, 0]
    places = range(len(found["blocks"]))
    for shift, key, label, color in ((-0.2, "activation_bytes", "whole", 0), (0.2, "in_5_parts", "in 5 parts", 1)):
        each.bar(
            [place + shift for place in places],
            [block[key] / 1e6 for block in found["blocks"]],
            0.4,
            color=COLORS[color],
            hatch="" if shift < 0 else "//",
            edgecolor="white",
            label=label,
        )
    each.set_xticks(list(places), [block["block"].removeprefix("block_") for block in found["blocks"]])
    each.set(xlabel="block", ylabel="memory, MB", title="Every block, as compiled for the CPU")
    each.legend(frameon=False)

    networks: Axes = panels[1, 1]
    rows: list[tuple[str, float | None, int]] = []
    for index, (name, network) in enumerate(found["networks"].items()):
        short = name.replace("MobileNet", "")
        published = network["published_bytes"]
        rows.append((f"{short}, Table 3, at 4 bytes a value", published, index))
        rows.append((f"{short}, formula, blocks as operators", network["formula_blocks_bytes"], index))
        rows.append((f"{short}, formula, layers as operators", network["formula_layers_bytes"], index))
        for split, size in network["measured_bytes"].items():
            label = f"{short}, compiled" + (f", {split} parts" if split != "1" else "")
            rows.append((label, size, index))
    rows = [row for row in rows if row[1] is not None]
    for place, (_, size, index) in enumerate(rows):
        networks.barh(place, size / 1e6, color=COLORS[index], hatch="//" if index else "", edgecolor="white")  # type: ignore[operator]
        networks.annotate(
            f"{size / 1e6:.1f}", (size / 1e6, place), xytext=(4, 0), textcoords="offset points", va="center"
        )  # type: ignore[operator]
    networks.set_yticks(range(len(rows)), [label for label, *_ in rows])
    networks.invert_yaxis()
    networks.margins(x=0.12)
    networks.set(xlabel="memory at the peak, MB", title="Whole networks")
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    figure.suptitle(title, fontsize=12)
    return figure


def main(options: Options) -> None:
    """Measure, draw, and say what was found."""
    check_resolution(options.resolution)
    check_size("width_multiplier", options.width_multiplier)
    for flag, splits in (("--splits", options.splits), ("--network-splits", options.network_splits)):
        if not splits or min(splits) < 1:
            raise UserError(f"{flag} must be numbers of parts from 1 on, got {' '.join(map(str, splits)) or 'none'}")
    if options.rounds < 1:
        raise UserError(f"--rounds must be 1 or more, got {options.rounds}")
    from mnv2_jax.plan.chips import open_topology

    chip = None if options.topology is None else open_topology(options.topology).devices[0]
    open_results(settings_of(options, "memory_split"), options.out, options.overwrite)
    console = create_console()
    found = measure(options, chip, lambda line: console.print(line, markup=False))
    title = (
        f"Memory of inference, one image of {options.resolution} pixels, width {options.width_multiplier:g}, float32"
    )
    summary = {"experiment": "memory_split", "findings": findings(found), **found}
    write_results(options.out, summary, draw(found, title))
    table = Table("parts", "memory, MB", "formula, MB", "between, of whole", "ms", "time, of whole", box=SIMPLE_HEAD)
    for row in found["sweep"]:
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
    name_results(console, options.out)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
