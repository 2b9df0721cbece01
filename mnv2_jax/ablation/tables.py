"""Tables of studies: for the terminal, and in Markdown for pages that show committed records."""

import functools
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from mnv2_jax.ablation.summary import comparison_count, metric_of
from mnv2_jax.ablation.verdicts import difference, interval, p_value, paper_difference, verdict_in
from mnv2_jax.errors import UserError

WORDS = ("arm", "claim", "data", "verdict")
"""Text columns; the others hold numbers and are right-aligned."""

BEGIN, END = "<!-- report.py --markdown ", "<!-- end -->"
MARKED = re.compile(rf"^{BEGIN}(?P<studies>.+?) -->\n(?P<table>.*?)^{END}$", re.MULTILINE | re.DOTALL)
"""A table on a page, with the folders of its studies relative to the repository's root."""

Rows = tuple[list[str], list[list[str]]]
"""(column names, rows)."""


def arm_rows(summary: Mapping[str, Any]) -> Rows:
    """Return the study's numbers, one row per arm."""
    metric = metric_of(summary)
    p = "p (Holm)" if comparison_count(summary) > 1 else "p"
    columns = [
        "arm",
        "parameters",
        "multiply-adds",
        f"test {metric.title}",
        "difference",
        "95 % interval",
        p,
        "verdict",
    ]
    comparisons = {comparison["arm"]: comparison for comparison in summary["comparisons"]}
    rows = []
    for name, arm in summary["arms"].items():
        row = [name, f"{arm['parameters']:,}", f"{arm['multiply_adds'] / 1e6:.2f} M", metric.format(arm["mean"])]
        if name in comparisons:
            comparison = comparisons[name]
            numbers = f"{difference(comparison, metric):+.2f}", interval(comparison, metric), p_value(comparison)
            row += [*numbers, verdict_in(summary, comparison)]
        else:
            row += ["", "", "", "baseline"]
        rows.append(row)
    return columns, rows


def claim_rows(summaries: Sequence[Mapping[str, Any]]) -> Rows:
    """Return the paper's results beside ours, one row per comparison."""
    titles = list(dict.fromkeys(summary["title"] for summary in summaries))
    units = " or ".join(dict.fromkeys(metric_of(summary).difference_unit for summary in summaries))
    ours = f"ours on {titles[0]}" if len(titles) == 1 else "ours"
    columns = ["claim", "paper on ImageNet", f"{ours}, {units}", "verdict"]
    rows = []
    for summary in summaries:
        metric, topic = metric_of(summary), summary["experiment"].removeprefix("ablate_").replace("_", " ")
        for comparison in summary["comparisons"]:
            claim = f"{topic}: {comparison['arm']} vs {comparison['baseline']}"
            ours = f"{difference(comparison, metric):+.2f} ({interval(comparison, metric)})"
            rows.append([claim, paper_difference(comparison, metric), ours, verdict_in(summary, comparison)])
            if len(titles) > 1:
                rows[-1].insert(1, summary["title"])
    if len(titles) > 1:
        columns.insert(1, "data")
    return columns, rows


def arms_table(summary: Mapping[str, Any]) -> Table:
    """Create the table of a study's arms for the terminal."""
    table = Table(title=summary["question"], title_justify="left")
    columns, rows = arm_rows(summary)
    for column in columns:
        table.add_column(column, justify="left" if column in WORDS else "right")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of one study's arms, or of several studies' claims, in Markdown."""
    columns, rows = arm_rows(summaries[0]) if len(summaries) == 1 else claim_rows(summaries)
    rule = [":--" if column in WORDS else "--:" for column in columns]
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (columns, rule, *rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def refresh(page: str, root: Path) -> str:
    """Return a Markdown page with the tables between its markers remade from the records.

    A table stands between the lines `<!-- report.py --markdown FOLDERS -->` and `<!-- end -->`. Folders may contain
    `*`; a trailing `--arms ARMS` selects arms.

    Args:
        page: text of the page.
        root: folder that the studies' folders are relative to.

    Raises:
        UserError: for a marker without an end, or a folder that holds no finished study.
    """
    from mnv2_jax.ablation.report import read_study
    from mnv2_jax.ablation.views import with_arms

    read = functools.cache(read_study)

    def again(found: re.Match[str]) -> str:
        if BEGIN in found["table"]:
            raise UserError(f"{BEGIN}{found['studies']} --> has no {END} before the next table")
        words = shlex.split(found["studies"])
        end = words.index("--arms") if "--arms" in words else len(words)
        names, arms = words[:end], words[end + 1 :]
        folders: list[Path] = []
        for name in names:
            folders += sorted(root.glob(name)) if "*" in name else [root / name]
        if not folders:
            raise UserError(f"{BEGIN}{found['studies']} --> matches no existing folder")
        summaries = [read(folder)[0] for folder in folders]
        table = markdown([with_arms(summary, arms) for summary in summaries] if arms else summaries)
        return f"{BEGIN}{found['studies']} -->\n\n{table}\n{END}"

    made = MARKED.sub(again, page)
    begun, ended = (len(re.findall(rf"^{mark}", page, re.MULTILINE)) for mark in (BEGIN, rf"{END}$"))
    if begun != ended:
        raise UserError(f"there are {begun} lines {BEGIN}... --> and {ended} lines {END}; each table needs both")
    return made
