"""How does the work of each chip per step change with the number of chips? (compiled for TPUs, without having any)

Question: do operations, memory traffic and bytes sent per chip stay the same from 1 chip to 256?
Command:  python experiments/plan_scaling.py
Cost:     four compilations, some 10 minutes on 2 busy CPU cores; no TPU, but its compiler (pip install -e '.[plan]').
Expect:   operations and memory traffic stay the same; bytes sent approach twice the size of the gradients.

The number of images per chip and step is fixed, so total work grows with the slice (weak scaling). All figures are the
compiler's counts for the trainer's step. Images per second are an upper bound, as in `python -m mnv2_jax plan`. Each
plan is saved once compiled: repeating the command resumes there, and only redraws if all plans are done.
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
BOUND = "Images per second: upper bound, not measured"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line flags."""

    topologies: tuple[str, ...] = ("v5e:1x1", "v5e:2x4", "v5e:8x8", "v5e:16x16")
    """Slices from the smallest to the largest, as CHIP:SHAPE or by the name they are rented under (v5litepod-8)."""
    batch_per_device: int = 128
    """Images per chip and step."""
    width_multiplier: float = 1.0
    """Scales the channels of every layer."""
    resolution: int = 224
    """Side of the square images, in pixels."""
    out: Path = Path("runs/plan_scaling")
    """Output folder for the plans, the figure and the summary."""
    overwrite: bool = False
    """Recompile, and replace the plans in the folder."""


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a plan that the table and the figure show."""
    chip = found["per_chip"]
    return {
        "chips": found["chips"],
        "operations, GFLOP": chip["flops"] / 1e9,
        "bytes to and from HBM, GB": chip["hbm_traffic_bytes"] / 1e9,
        "bytes to other chips, MB": chip["sent_bytes"] / 1e6,
        "images per second, at most": found["images_per_second_upper_bound"],
        "bound by": found["bound_by"],
    }


def finding(rows: Sequence[dict[str, Any]]) -> str:
    """Return the answer as one sentence."""
    first, last = rows[0], rows[-1]
    sent = f"{last['bytes to other chips, MB']:.1f} MB per step"
    if first is last:
        return f"Among {last['chips']} chips, a chip sends {sent}"
    change = max(abs(last[name] / first[name] - 1) for name in list(first)[1:3])
    same = "is the same" if change < 0.01 else f"changes by {100 * change:.0f} %"
    chips = f"{first['chips']} to {last['chips']} chips"
    return f"From {chips}, the work of each chip {same}; what it sends reaches {sent}"


def draw(plans: Sequence[dict[str, Any]]) -> Figure:
    """Draw one panel per quantity, against the number of chips."""
    from mnv2_jax.analysis.drawing import headline, tidy

    rows = [figures(found) for found in plans]
    chips = [row["chips"] for row in rows]
    figure, panels = plt.subplots(2, 2, figsize=(11, 7.6), layout="constrained")
    titles = ("Operations per chip and step", "Memory traffic per chip and step", "Sent per chip and step", BOUND)
    for axes, name, title in zip(panels.flat, list(rows[0])[1:5], titles, strict=True):
        values, bound = [row[name] for row in rows], title == BOUND
        axes.plot(chips, values, "o:" if bound else "o-", color="#0072B2", markerfacecolor="white" if bound else None)
        for x, y in zip(chips, values, strict=True):
            text = f"{y:,.0f}" if y >= 1000 else f"{y:.3g}"
            # Labels: left of the rising bound, above flat lines, below bytes sent, which approach their limit.
            offset = (-16, 8) if bound else (0, 9) if y == 0 or not name.startswith("bytes to other") else (12, -16)
            axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", ha="center", fontsize=9.5)
        axes.set_xscale("log", base=2)
        axes.set_xticks(chips, [str(chip) for chip in chips])
        axes.margins(x=0.2, y=0.25)
        axes.set_title(title, fontsize=11)
        axes.set(xlabel="chips", ylabel=f"{name}, of all chips" if bound else name)
        if bound:
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, 1.25 * max(*values, 1e-9))
        tidy(axes)
    # In an all-reduce, each of n chips sends 2 (n - 1) / n times the reduced bytes.
    limit = 2 * sum(each["bytes"] for each in plans[-1]["collectives"]) / 1e6
    if limit:
        label = f"limit: twice gradients\nand batch statistics, {limit:.1f} MB"
        panels[1, 0].axhline(limit, color="0.4", linewidth=1, linestyle="--", label=label)
        panels[1, 0].legend(loc="center right", frameon=False)
    chip = plans[0]["topology"].partition(":")[0]
    details = f"{plans[0]['title']}; compiled for TPU {chip} without one: counts of the compiler, nothing was measured."
    headline(figure, finding(rows), details)
    return figure


def main(options: Options) -> None:
    """Compile for each slice, and show the work per chip."""
    if not options.topologies:
        raise UserError("--topologies must name at least one slice")
    if options.batch_per_device < 1:
        raise UserError(f"--batch-per-device must be 1 or more, got {options.batch_per_device}")
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
    settings.pop("topologies")  # a folder's plans can be extended by more slices
    check_folder(settings, options.out, options.overwrite, "computation")
    topologies = [open_topology(name) for name in options.topologies]
    known = open_results(settings, options.out, options.overwrite, [PLANS])

    console = create_console()
    file = options.out / PLANS
    try:
        done: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        for found in done.values():
            figures(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is damaged or from another version ({error!r}); use --overwrite to start over"
        ) from error
    for each, topology in zip(wanted, topologies, strict=True):
        if topology.name not in done:
            with timed(console, f"compiling for {topology.name} (one to four minutes)"):
                found = plan.plan(each, topology)
            if not found.fits:
                raise UserError(plan.advice(found))
            done[topology.name] = found.to_json()
            write_json(file, done)
    plans = [done[topology.name] for topology in topologies]
    rows = [figures(found) for found in plans]
    found = {"experiment": "plan_scaling", "plans": rows}
    if known is not None and known.get("plans") == rows:
        found = known
    write_results(options.out, found, draw(plans))
    table = Table(*rows[0], box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*(f"{value:,.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    for name in (FIGURES[0], SUMMARY, PLANS):
        console.print(str(options.out / name), markup=False)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
