"""Redraw finished studies from their records, put studies and training runs on one page, or write tables of them.

Question: what do the results for all claims look like together?
Command:  python experiments/report.py experiments/results/*_digits
          with --arms, --metric or --title for another view, --markdown - for a table
Cost:     seconds.
Expect:   summary.json, figure.png, figure.svg and report.html of every folder remade with the same numbers; for
          several folders, also one page with the table of all claims. Nothing is trained.
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import tyro

from mnv2_jax import cli
from mnv2_jax.errors import UserError

ROOT = Path(__file__).parents[1]
"""Folders named in a page's markers are relative to this one."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Command-line flags."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of finished studies and training runs."""
    title: str | None = None
    """Heading of the page, and of the figure if there is only one study; by default the study's question."""
    arms: tuple[str, ...] = ()
    """Show only these arms and the baseline; p-values and intervals stay corrected for all comparisons of a study."""
    metric: str | None = None
    """Recorded metric to judge studies by, such as loss; by default the task's."""
    markdown: Path | None = None
    """Write only a Markdown table to this file, or to the terminal (-): the arms of one study, or claims of several."""
    refresh: tuple[Path, ...] = ()
    """Update in place the tables of these pages between <!-- report.py --markdown FOLDERS --> and <!-- end -->."""
    out: Path | None = None
    """File for the page of several folders, of runs, or of another view; by default report.html."""

    @property
    def view(self) -> bool:
        """Whether the flags change what is shown, so that the studies' own files are left alone."""
        return bool(self.title is not None or self.arms or self.metric is not None)


def main(options: Options) -> None:
    """Remake the files of every study and the page of all; or write a page of another view, or tables."""
    if options.refresh:
        refresh_pages(options)
        return
    if not options.folders:
        raise UserError("specify one or more folders of finished studies or training runs")
    for flag, path in (("out", options.out), ("markdown", options.markdown)):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise UserError(f"--{flag} {path} must be a file in an existing folder")
    from mnv2_jax.ablation.report import is_run

    runs = [folder for folder in options.folders if is_run(folder)]
    if options.markdown is not None:
        write_markdown(options, runs)
        return
    if options.out is not None and len(options.folders) == 1 and not runs and not options.view:
        raise UserError("--out is for the page of several studies; that of a single study is in its folder")
    write_pages(options, runs)


def open_studies(options: Options, runs: list[Path]) -> dict[Path, tuple[dict[str, Any], list[Any]]]:
    """Return summary and records of each study, with the arms, metric and title of the flags.

    Raises:
        UserError: for arms or a metric that the studies do not have.
    """
    from mnv2_jax.ablation.report import read_study
    from mnv2_jax.ablation.views import with_arms

    studies = {folder: read_study(folder, options.metric) for folder in options.folders if folder not in runs}
    if not studies and (options.arms or options.metric is not None):
        raise UserError("--arms and --metric are for studies, but there are only training runs")
    known = list(dict.fromkeys(name for summary, _ in studies.values() for name in summary["arms"]))
    unknown = [name for name in options.arms if name not in known]
    if unknown:
        raise UserError(f"unknown arm {unknown[0]!r} in --arms; choose from {', '.join(known)}")
    if options.arms:
        studies = {folder: (with_arms(summary, options.arms), found) for folder, (summary, found) in studies.items()}
    if options.title is not None and len(options.folders) == 1:
        studies = {
            folder: ({**summary, "question": options.title}, found) for folder, (summary, found) in studies.items()
        }
    return studies


def write_pages(options: Options, runs: list[Path]) -> None:
    """Write the files of each study and the page of all; for another view, only the page and its figures."""
    from mnv2_jax.ablation.report import CLAIMS, draw_study, run_section, study_section, write_files, write_page
    from mnv2_jax.results import FIGURES, write_atomically

    page, studies, sections = options.out or Path("report.html"), open_studies(options, runs), []
    trained = {folder: run_section(folder) for folder in runs}
    for index, folder in enumerate(options.folders, start=1):
        if folder in runs:
            sections.append(trained[folder])
            continue
        summary, records = studies[folder]
        if not options.view:
            write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
            write_files(summary, records, folder)
            sections.append(study_section(summary, records, folder, folder))
            print(folder / "report.html")
            continue
        with tempfile.TemporaryDirectory(dir=page.parent, prefix=".figure-") as drawn:
            draw_study(summary, records, Path(drawn))
            sections.append(study_section(summary, records, folder, Path(drawn)))
            number = "" if len(options.folders) == 1 else f"-{index}"
            print((Path(drawn) / FIGURES[0]).replace(page.with_name(f"{page.stem}{number}.png")))
    if len(options.folders) > 1 or runs or options.view:
        own = studies[options.folders[0]][0]["question"] if len(studies) == len(options.folders) == 1 else CLAIMS
        write_page(sections, page, options.title or ("Training runs" if not studies else own))
        print(page)


def write_markdown(options: Options, runs: list[Path]) -> None:
    """Write the table of one study, or of several."""
    from mnv2_jax.ablation.tables import markdown
    from mnv2_jax.results import write_atomically

    if runs:
        raise UserError(f"--markdown writes tables of studies, but {runs[0]} contains a training run")
    table = markdown([summary for summary, _ in open_studies(options, runs).values()])
    if str(options.markdown) == "-":
        print(table, end="")
    elif options.markdown is not None:
        write_atomically(options.markdown, table)


def refresh_pages(options: Options) -> None:
    """Update the tables of pages from the committed records."""
    from mnv2_jax.ablation.tables import refresh
    from mnv2_jax.results import read_text, write_atomically

    if options != Options(refresh=options.refresh):
        raise UserError("--refresh takes only pages; their markers name the folders")
    pages = {page: read_text(page) for page in options.refresh}
    made = {page: refresh(text, ROOT) for page, text in pages.items()}
    for page, text in made.items():
        if text != pages[page]:
            write_atomically(page, text)
            print(page)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
