"""A study in words: `report.html`, one file that opens without a network, several joined, and the table that ends a run."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import jinja2
from rich.table import Table

from mnv2_jax.ablation import figures
from mnv2_jax.ablation.design import FigureKind
from mnv2_jax.ablation.statistics import seeds_needed
from mnv2_jax.ablation.summary import DESCRIBED, TIMING, metric_of, speeds, summarize
from mnv2_jax.errors import UserError
from mnv2_jax.results import METRICS, SUMMARY, misfit, read_json, read_lines, save_figure, write_atomically
from mnv2_jax.tasks.task import Metric
from mnv2_jax.training.metrics import Record, read_records
from mnv2_jax.wording import counted


def interval(comparison: Mapping[str, Any], metric: Metric) -> str:
    """ "-5.00 to -2.06", "-2.62 to 0", or that there are no bounds."""
    if comparison["ci95"] is None:
        return f"no bound with {counted(comparison['n'], 'seed')}"
    return " to ".join(f"{metric.scale * bound:+.2f}" if bound else "0" for bound in comparison["ci95"])


def difference(comparison: Mapping[str, Any], metric: Metric) -> float:
    """The one that the verdict is about, as people read it."""
    return metric.scale * comparison[f"{comparison['estimand']}_difference"]


def failures(comparison: Mapping[str, Any]) -> str:
    """ "1 of 8 runs of t=3 and 2 of 8 runs of t=6"; nothing where none failed."""
    failed = ((comparison[which], comparison["failed"][which]) for which in ("arm", "baseline"))
    return " and ".join(f"{count} of {comparison['n']} runs of {name}" for name, count in failed if count)


def sentence(comparison: Mapping[str, Any], metric: Metric, comparisons: int = 1) -> str:
    """One comparison of so many in plain words, with its certainty."""
    scale = metric.scale
    points = difference(comparison, metric)
    arm, baseline, n = comparison["arm"], comparison["baseline"], comparison["n"]
    p = f"p = {comparison['p_holm']:.3g}" + (" after Holm's correction" if comparisons > 1 else "")
    spread = scale * comparison["baseline_spread"]
    failed = failures(comparison)
    numbers = (
        f"over {n} pairs of runs {arm} scored {points:+.2f} {metric.difference_unit} against {baseline} "
        f"{'in the median ' if failed else ''}(95 % interval: {interval(comparison, metric)}, {p}; seeds alone spread {baseline} by {spread:.2f})"
    )
    if comparison["verdict"] == "inconclusive":
        needed = seeds_needed(comparisons)
        few = f" Fewer than {needed} seeds cannot reach p < 0.05 here." if n < needed else ""
        text = f"Inconclusive: {numbers}; chance alone can do that.{few}"
    else:
        text = f"{arm} is {comparison['verdict']} than {baseline}: {numbers}."
    if failed:
        decided = comparison["verdict"] != "inconclusive"
        text = (
            f"{failed} failed: nearer to chance than to the median of the arm. {'Typically, ' if decided else ''}{text}"
        )
    paper = comparison["paper"]
    if paper is not None:
        text += f" The paper's difference on ImageNet is {scale * paper['difference']:+.1f} ({paper['where']}, {paper['how']})."
        if comparison["verdict"] != "inconclusive":
            same = (points < 0) == (paper["difference"] < 0)
            text += " The direction is the same." if same else " The direction is the opposite."
    return text


def read_study(folder: Path) -> tuple[dict[str, Any], list[Record]]:
    """A finished study's summary, made again from the records beside it, and the records that it is made of.

    Raises:
        UserError: if the folder holds no finished study, or one that another version wrote.
    """
    again = "run its experiment to the end first, or again"
    if not (folder / SUMMARY).exists():
        raise UserError(f"{folder} holds no finished study; {again}")
    described = read_json(folder / SUMMARY, {}, again)
    if "comparisons" not in described:
        raise UserError(f"{folder} holds no study: its {SUMMARY} is of something else")
    problem: object = misfit(described, DESCRIBED)
    if not problem:
        arms, seeds = described["arms"], described["seeds"]
        try:
            if described["figure"] not in get_args(FigureKind):
                raise ValueError(f"there is no figure {described['figure']!r}")
            found = read_records(folder / METRICS, metric_of(described).name)
            records = [record for record in found if record.arm in arms and record.seed in seeds]
            return summarize(described, records), records
        except (KeyError, ValueError, TypeError) as error:  # a baseline that is no arm, a task that is none
            problem = repr(error)
    raise UserError(f"{folder / SUMMARY} is damaged, or was written by another version ({problem}); {again}")


def write_files(summary: Mapping[str, Any], records: Sequence[Record], folder: Path) -> None:
    """Write figure.png, figure.svg and report.html."""
    save_figure(figures.draw(dict(summary), list(records)), folder)
    page = _template("report.html.jinja").render(
        studies=[_study(summary, records, folder, 0)], title=summary["question"]
    )
    write_atomically(folder / "report.html", page)


def write_joined(folders: Sequence[Path], path: Path) -> None:
    """One page of several studies whose figures are drawn, with a table of all claims at its top."""
    studies = [_study(*read_study(folder), folder, index) for index, folder in enumerate(folders)]
    page = _template("report.html.jinja").render(studies=studies, title="The claims of MobileNetV2, tried again")
    write_atomically(path, page)


def _study(summary: Mapping[str, Any], records: Sequence[Record], folder: Path, index: int) -> dict[str, Any]:
    svg = (folder / "figure.svg").read_text()
    comparisons, metric = summary["comparisons"], metric_of(summary)
    return {
        "summary": summary,
        "metric": metric,
        "sentences": [sentence(comparison, metric, len(comparisons)) for comparison in comparisons],
        # A page holds several figures, whose parts are told apart by their names.
        "svg": _unique(svg[svg.index("<svg") :], f"study-{index}"),
        "speeds": speeds(records, read_lines(folder / "timings.jsonl", TIMING, "remove it: it holds times alone")),
        "needed": seeds_needed(len(comparisons)),
        "failed": any(failures(comparison) for comparison in comparisons),
    }


def _unique(svg: str, name: str) -> str:
    for mark in (' id="', 'href="#', "url(#"):
        svg = svg.replace(mark, f"{mark}{name}-")
    return svg


def _verdict(comparison: Mapping[str, Any]) -> str:
    """In a table: with what it is about, where that is not the mean."""
    failed = failures(comparison)
    return f"{comparison['verdict']} (median; failed: {failed})" if failed else comparison["verdict"]


def _template(name: str) -> jinja2.Template:
    source = resources.files("mnv2_jax.ablation").joinpath(name).read_text()
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals |= {"mean": fmean, "interval": interval, "difference": difference, "verdict": _verdict}
    return environment.from_string(source)


def arms_table(summary: Mapping[str, Any]) -> Table:
    """The study's numbers, an arm a row."""
    several, metric = len(summary["comparisons"]) > 1, metric_of(summary)
    table = Table(title=summary["question"], title_justify="left")
    for column in (
        "arm",
        "parameters",
        "multiply-adds",
        f"test {metric.title}",
        "difference",
        "95 % interval",
        "p (Holm)" if several else "p",
        "verdict",
    ):
        table.add_column(column, justify="left" if column in ("arm", "verdict") else "right")
    comparisons = {comparison["arm"]: comparison for comparison in summary["comparisons"]}
    for name, arm in summary["arms"].items():
        row = [name, f"{arm['parameters']:,}", f"{arm['multiply_adds'] / 1e6:.2f} M", metric.format(arm["mean"])]
        if name in comparisons:
            comparison = comparisons[name]
            row += [
                f"{difference(comparison, metric):+.2f}",
                interval(comparison, metric),
                f"{comparison['p_holm']:.3g}",
                _verdict(comparison),
            ]
        else:
            row += ["", "", "", "baseline"]
        table.add_row(*row)
    return table
