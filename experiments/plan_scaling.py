"""What does a chip do in a step when there are more chips? (compiled for TPUs that are not here)

Question: do operations, bytes moved and bytes sent a chip stay the same from one chip to 256?
Command:  python experiments/plan_scaling.py
Cost:     four compilations, some 10 minutes on 2 busy CPU cores; no TPU, but its compiler (pip install -e '.[plan]').
Expect:   operations and bytes of memory are the same; what is sent approaches twice the size of the gradients.

Every chip has the same images in a step, so the work of all grows with the slice (weak scaling). The figures are the
compiler's own for the training engine's step; the images a second are an upper bound, as in `python -m mnv2_jax plan`.
What has been compiled is kept, and the same command resumes after it.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from mnv2_jax import cli
from mnv2_jax.commands import plan
from mnv2_jax.errors import UserError
from mnv2_jax.plan.chips import count_chips, find_slice, open_topology
from mnv2_jax.results import FIGURES, SUMMARY, check_folder, open_results, settings_of, write_json, write_results
from mnv2_jax.settings import NetworkSettings
from mnv2_jax.training.progress import create_console, timed

PLANS = "plans.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this script."""

    topologies: tuple[str, ...] = ("v5e:1x1", "v5e:2x4", "v5e:8x8", "v5e:16x16")
    """Slices, from the smallest to the largest, as CHIP:SHAPE or as they are rented (v5litepod-8)."""
    batch_per_device: int = 128
    """Images a chip and step."""
    width_multiplier: float = 1.0
    """Scales the channels of every layer."""
    resolution: int = 224
    """Side of the square images, in pixels."""
    out: Path = Path("runs/plan_scaling")
    """Folder for the plans, the figure and the summary."""
    overwrite: bool = False
    """Start over in a folder that holds other plans."""


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """What the table and the figure show of a plan."""
    chip = found["per_chip"]
    return {
        "chips": found["chips"],
        "operations, GFLOP": chip["flops"] / 1e9,
        "bytes to and from HBM, GB": chip["hbm_traffic_bytes"] / 1e9,
        "bytes to other chips, MB": chip["sent_bytes"] / 1e6,
        "images a second, at most": found["images_per_second_upper_bound"],
        "bound by": found["bound_by"],
    }


def draw(plans: Sequence[dict[str, Any]], title: str) -> Figure:
    """A panel a figure, against the number of chips."""
    rows = [figures(found) for found in plans]
    chips = [row["chips"] for row in rows]
    figure, panels = plt.subplots(2, 2, figsize=(10, 6.5), layout="constrained", sharex=True)
    for axes, name in zip(panels.flat, list(rows[0])[1:5], strict=True):
        values = [row[name] for row in rows]
        axes.plot(chips, values, marker="o", color="#0072B2")
        for x, y in zip(chips, values, strict=True):
            text = f"{y:,.0f}" if y >= 1000 else f"{y:.3g}"
            # Beside a line that rises, above one that does not.
            offset = (-16, 8) if name.startswith("images") else (0, 9)
            axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", ha="center", fontsize=9)
        axes.set_xscale("log", base=2)
        axes.set_xticks(chips, [str(chip) for chip in chips])
        axes.margins(x=0.2, y=0.25)
        if name.startswith("images"):
            axes.set_yscale("log")
            axes.set_ylabel(f"{name}, of all chips")
        else:
            axes.set_ylim(0, 1.25 * max(*values, 1e-9))
            axes.set_ylabel(name)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.7)
    for axes in panels[1]:
        axes.set_xlabel("chips")
    figure.suptitle(title, fontsize=12)
    return figure


def main(options: Options) -> None:
    """Compile for each slice, and show what a chip does."""
    if not options.topologies:
        raise UserError("--topologies must name one slice at least")
    wanted = [
        plan.Options(
            topology=topology,
            batch_size=options.batch_per_device * count_chips(find_slice(topology)[1]),
            network=NetworkSettings(width_multiplier=options.width_multiplier, dtype="bfloat16"),
            resolution=options.resolution,
        )
        for topology in options.topologies
    ]
    for each in wanted:
        plan.check(each)
    settings = settings_of(options, "plan_scaling")
    settings.pop("topologies")  # more of them extend what is there
    check_folder(settings, options.out, options.overwrite, "computation")
    topologies = [open_topology(name) for name in options.topologies]
    open_results(settings, options.out, options.overwrite, [PLANS])

    console = create_console()
    file = options.out / PLANS
    try:
        done: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        for found in done.values():
            figures(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is damaged, or of another version ({error!r}); --overwrite starts from nothing"
        ) from error
    for each, topology in zip(wanted, topologies, strict=True):
        if topology.name not in done:
            with timed(console, f"compiling for {topology.name}, one to four minutes"):
                found = plan.plan(each, topology)
            if not found.fits:
                raise UserError(plan.advice(found))
            done[topology.name] = found.to_json()
            write_json(file, done)
    plans = [done[topology.name] for topology in topologies]
    title = f"What a chip does in a step: {plans[0]['title']}"
    rows = [figures(found) for found in plans]
    write_results(options.out, {"experiment": "plan_scaling", "plans": rows}, draw(plans, title))
    table = Table(*rows[0], box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*(f"{value:,.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    for name in (FIGURES[0], SUMMARY, PLANS):
        console.print(str(options.out / name), markup=False)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
