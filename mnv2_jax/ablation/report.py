"""A study in words: `report.html`, one file that opens without a network, and the table that ends the run."""

from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
from rich.table import Table

from mnv2_jax.training.metrics import write_atomically


def sentence(comparison: dict[str, Any]) -> str:
    """One comparison in plain words, with its certainty."""
    points = 100 * comparison["mean_difference"]
    low, high = (100 * bound for bound in comparison["ci95"])
    arm, baseline, n = comparison["arm"], comparison["baseline"], comparison["n"]
    numbers = (
        f"over {n} pairs of runs {arm} scored {points:+.2f} percentage points against {baseline} "
        f"(95 % interval {low:+.2f} to {high:+.2f}, p = {comparison['p_value']:.3g})"
    )
    if comparison["verdict"] == "inconclusive":
        few = " Fewer than 6 seeds cannot reach p < 0.05." if n < 6 else ""
        text = f"Inconclusive: {numbers}; chance alone can do that.{few}"
    else:
        text = f"{arm} is {comparison['verdict']} than {baseline}: {numbers}."
    paper = comparison["paper"]
    if paper is not None:
        text += f" The paper's difference on ImageNet is {100 * paper['difference']:+.1f} ({paper['where']}, {paper['how']})."
        if comparison["verdict"] != "inconclusive":
            same = (points < 0) == (paper["difference"] < 0)
            text += " The direction is the same." if same else " The direction is the opposite."
    return text


def write_report(summary: dict[str, Any], folder: Path, title: str) -> None:
    """Write report.html beside the figure that it shows."""
    source = resources.files("mnv2_jax.ablation").joinpath("report.html.jinja").read_text()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    svg = (folder / "figure.svg").read_text()
    page = environment.from_string(source).render(
        summary=summary,
        sentences=[sentence(comparison) for comparison in summary["comparisons"]],
        svg=svg[svg.index("<svg") :],
        mean=fmean,
        title=title,
    )
    write_atomically(folder / "report.html", page)


def arms_table(summary: dict[str, Any]) -> Table:
    """The study's numbers, an arm a row."""
    table = Table(title=summary["question"], title_justify="left")
    for column in (
        "arm",
        "test accuracy",
        "smallest to largest",
        "difference",
        "95 % interval",
        "p",
        "verdict",
    ):
        table.add_column(column, justify="left" if column in ("arm", "verdict") else "right")
    comparisons = {comparison["arm"]: comparison for comparison in summary["comparisons"]}
    for name, arm in summary["arms"].items():
        accuracy = [100 * value for value in arm["test_accuracy"]]
        row = [name, f"{fmean(accuracy):.2f} %", f"{min(accuracy):.2f} to {max(accuracy):.2f}"]
        if name in comparisons:
            comparison = comparisons[name]
            low, high = (100 * bound for bound in comparison["ci95"])
            row += [
                f"{100 * comparison['mean_difference']:+.2f}",
                f"{low:+.2f} to {high:+.2f}",
                f"{comparison['p_value']:.3g}",
                comparison["verdict"],
            ]
        else:
            row += ["", "", "", "baseline"]
        table.add_row(*row)
    return table
