"""List the known data sets and where they are prepared; `datasets prepare NAME` prepares one.

A data set is prepared once, in TFDS's folder (the environment variable TFDS_DATA_DIR, else ~/tensorflow_datasets).
Your own images need no preparation: train and evaluate take --dataset folder --data-files DIR.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mnv2_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this command. The string below each field is its help text."""

    action: Annotated[Literal["list", "prepare"], tyro.conf.Positional] = "list"
    """Action."""
    name: Annotated[str | None, tyro.conf.Positional] = None
    """Data set to prepare."""
    data_files: Path | None = None
    """Folder with your copy of the data set's files, if it cannot be downloaded (fashion_mnist: the 4 IDX files)."""


def main(options: Options) -> None:
    """List the data sets, or prepare one."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from mnv2_jax.data.catalog import CATALOG, FOLDER
    from mnv2_jax.data.prepare import check_data_dir, make_builder, prepared_builder

    if options.action == "prepare":
        if options.name is None:
            raise UserError(
                f"datasets prepare NAME: NAME is missing; choose from {', '.join(CATALOG)}, or another TFDS data set"
            )
        builder = prepared_builder(options.name, options.data_files, progress=True)
        sizes = ", ".join(f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items())
        print(f"{options.name} is prepared in {builder.data_dir}: {sizes}")
        return
    if options.name is not None or options.data_files is not None:
        raise UserError("datasets list takes no other arguments; use datasets prepare NAME to prepare a data set")
    check_data_dir()
    table = Table(
        "name", "description", "pixels", "loading", "prepared in", box=SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    for name, entry in CATALOG.items():
        try:
            builder = make_builder(name)
            where = str(builder.data_dir) if builder.is_prepared() else "not prepared"
        except UserError:
            where = "in a file format other than array_record"
        how = "resident" if entry.resident else "streamed"
        table.add_row(name, entry.title, str(entry.image_size), how, where)
    table.add_row(FOLDER, "your own images: --data-files DIR, one subfolder per class", "224", "streamed", "")
    console = Console(highlight=False, width=max(160, Console().width))
    console.print(table)
    console.print("\nAny other TFDS classification data set that is prepared there can be used as well.")
