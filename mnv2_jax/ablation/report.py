"""HTML reports of studies and training runs, one or several on a page; a page needs no other files or network."""

import base64
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import jinja2

from mnv2_jax.ablation import figures
from mnv2_jax.ablation.design import FigureKind
from mnv2_jax.ablation.statistics import seeds_needed
from mnv2_jax.ablation.summary import DESCRIBED, TIMING, comparison_count, metric_of, speeds, summarize
from mnv2_jax.ablation.verdicts import difference, failures, interval, p_value, paper_difference, sentences, verdict_in
from mnv2_jax.ablation.views import judged_by
from mnv2_jax.errors import UserError
from mnv2_jax.results import FIGURES, METRICS, SUMMARY, misfit, read_json, read_lines, save_figure, write_atomically
from mnv2_jax.tasks.task import TASKS
from mnv2_jax.training.metrics import Record, read_records

CLAIMS = "The claims of MobileNetV2, revisited"
"""Title of a page of several studies."""
RUN = {"dataset": str, "steps": int, "test": {"loss": float, str: float}, "settings": dict}
"""Fields of a training run's summary that its section shows."""


def read_study(folder: Path, metric: str | None = None) -> tuple[dict[str, Any], list[Record]]:
    """Read a finished study; returns its summary, recomputed from its records, and the records.

    Args:
        folder: of the study.
        metric: name of another recorded metric to judge it by; None for the task's own.

    Raises:
        UserError: if the folder holds no finished study, one that another version wrote, or one without that metric.
    """
    again = "run its experiment again"
    if not (folder / SUMMARY).exists():
        raise UserError(f"{folder} is not a finished study; run its experiment to the end first")
    described = read_json(folder / SUMMARY, {}, again)
    if "comparisons" not in described:
        raise UserError(f"{folder} is not a study: its {SUMMARY} belongs to something else")
    problem: object = misfit(described, DESCRIBED)
    if not problem:
        arms, seeds = described["arms"], described["seeds"]
        try:
            if described["figure"] not in get_args(FigureKind):
                raise ValueError(f"unknown figure {described['figure']!r}")
            found = read_records(folder / METRICS, metric_of(described).name)
            records = [record for record in found if record.arm in arms and record.seed in seeds]
            summary = summarize(described, records)
            return (judged_by(summary, records, metric) if metric is not None else summary), records
        except (KeyError, ValueError, TypeError) as error:  # for example an unknown baseline or task
            problem = repr(error)
    raise UserError(f"{folder / SUMMARY} is damaged or from another version ({problem}); {again}")


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a finished training run."""
    path = folder / SUMMARY
    return path.exists() and not misfit(read_json(path, {}, "train it again"), {"test": dict, "settings": dict})


def write_files(summary: Mapping[str, Any], records: Sequence[Record], folder: Path) -> None:
    """Write figure.png, figure.svg and report.html."""
    draw_study(summary, records, folder)
    write_page([study_section(summary, records, folder, folder)], folder / "report.html", summary["question"])


def draw_study(summary: Mapping[str, Any], records: Sequence[Record], folder: Path) -> None:
    """Write figure.png and figure.svg."""
    save_figure(figures.draw(summary, records), folder)


def write_page(sections: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Write a page of sections from `study_section` and `run_section`; several studies also get a common table."""
    sections = [{**section, "id": f"section-{index}"} for index, section in enumerate(sections)]
    studies = [section for section in sections if "comparisons" in section["summary"]]
    page = _template("report.html.jinja").render(sections=sections, studies=studies, title=title)
    write_atomically(path, page)


def study_section(summary: Mapping[str, Any], records: Sequence[Record], folder: Path, drawn: Path) -> dict[str, Any]:
    """Return the section of a study, for `write_page`.

    Args:
        summary, records: of the study.
        folder: of the study.
        drawn: the folder with its figure.svg.
    """
    svg = (drawn / FIGURES[1]).read_text()
    timings = read_lines(folder / "timings.jsonl", TIMING, "remove it: it contains only compile times")
    return {
        "summary": summary,
        "metric": metric_of(summary),
        "sentences": sentences(summary),
        "svg": svg[svg.index("<svg") :],
        "speeds": speeds(records, timings),
        "compared": comparison_count(summary),
        "needed": seeds_needed(comparison_count(summary)),
        "failed": any(failures(comparison) for comparison in summary["comparisons"]),
    }


def run_section(folder: Path) -> dict[str, Any]:
    """Return the section of a training run, for `write_page`: its curves and its summary.

    Raises:
        UserError: if its summary or its figure is damaged or missing.
    """
    again = "train it again"
    summary = read_json(folder / SUMMARY, RUN, again)
    picture = folder / FIGURES[0]
    if not picture.is_file():
        raise UserError(f"{picture} is missing; restore it from a copy, or {again}")
    task = TASKS.get(summary["settings"].get("task", "classification"))
    metrics = {metric.name: metric for metric in (task.metric, *task.others)} if task else {}
    tested = [
        (
            metrics[name].title if name in metrics else name,
            metrics[name].format(value) if name in metrics else f"{value:g}",
        )
        for name, value in summary["test"].items()
    ]
    return {
        "summary": summary,
        "network": summary["settings"].get("name") or "mobilenet_v2",
        "folder": folder,
        "tested": tested,
        "png": base64.b64encode(picture.read_bytes()).decode(),
    }


def _unique(svg: str, name: str) -> str:
    """Prefix all ids of an SVG with `name`, since a page holds several SVGs."""
    for mark in (' id="', 'href="#', "url(#"):
        svg = svg.replace(mark, f"{mark}{name}-")
    return svg


def _template(name: str) -> jinja2.Template:
    source = resources.files("mnv2_jax.ablation").joinpath(name).read_text()
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    words = (difference, interval, p_value, paper_difference, verdict_in)
    environment.globals |= {function.__name__: function for function in words} | {"mean": fmean, "unique_ids": _unique}
    return environment.from_string(source)
