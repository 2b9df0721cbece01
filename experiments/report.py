"""Draw finished studies again from their records, and join several on one page. Nothing is trained.

Question: what do all claims look like together?
Command:  python experiments/report.py experiments/results/*_digits
Cost:     seconds.
Expect:   summary.json, figure.png, figure.svg and report.html of every folder made again, with the same numbers; of several
          folders, one page with the table of all claims.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from mnv2_jax import cli


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of this script."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of finished studies."""
    out: Path | None = None
    """The joined page, of several studies; report.html if not given."""


def main(options: Options) -> None:
    """Make every study's files again, then the page of all."""
    from mnv2_jax.ablation.report import read_study, write_files, write_joined
    from mnv2_jax.errors import UserError
    from mnv2_jax.results import write_atomically

    if not options.folders:
        raise UserError("name the folder of a finished study, or several")
    page = options.out or Path("report.html")
    if options.out is not None and len(options.folders) == 1:
        raise UserError("--out is the page of several studies; that of one is in its folder")
    if page.is_dir() or not page.parent.is_dir():
        raise UserError(f"--out {page} must be a file, in a folder that there is")
    studies = [(folder, *read_study(folder)) for folder in options.folders]
    for folder, summary, records in studies:
        write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        write_files(summary, records, folder)
        print(folder / "report.html")
    if len(options.folders) > 1:
        write_joined(options.folders, page)
        print(page)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
