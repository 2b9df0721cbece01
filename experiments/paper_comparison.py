"""Compare published tables with recomputed ones, and render them for the terminal, as Markdown and as CSV.

`paper_tables.py` creates the tables.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from paper_numbers import EXPLANATIONS, NONE, Entry
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

NOT_RECOMPUTED = "not recomputed"
READING = (
    "≠ marks a recomputed entry that equals the published one neither rounded nor truncated to the published digits "
    "(memory: two digits). The paper truncates parameters to 3.4 million, the slim table multiply-adds to whole "
    "millions.",
    "Parameters exclude batch norm, as in the paper and the slim table; multiply-adds are those of the kernels only. "
    "Networks have 1000 classes and, unless stated otherwise, width 1.0 and 224 pixels.",
    "Memory is that of activations in fp16, for one image; 1 KB is 1000 B.",
)


class Cell(NamedTuple):
    """A published entry, the recomputed one, and whether the two differ."""

    published: str = NONE
    recomputed: str = NONE
    differs: bool = False

    @property
    def compared(self) -> bool:
        """Whether there are both a published and a recomputed entry."""
        return self.published != NONE and self.recomputed not in (NONE, NOT_RECOMPUTED)


class Column(NamedTuple):
    """A quantity, with whether it is `published` and `recomputed`, and whether its entries are `words`, not numbers."""

    title: str
    published: bool = True
    recomputed: bool = True
    words: bool = False


class Row(NamedTuple):
    """The row's name, and one cell per column."""

    name: str
    cells: tuple[Cell, ...]


class Heading(NamedTuple):
    """Heading of a rendered column; the first column of a group carries the group's name."""

    group: str
    title: str
    words: bool


@dataclasses.dataclass(frozen=True)
class Table:
    """A published table and its recomputation.

    Attributes:
        name: stem of its CSV file.
        title: what it shows.
        source: where it was published.
        row_title: heading of the column of row names.
        columns: the quantities.
        rows: the cells of all columns, row by row.
        remarks: sentences about the table as a whole.
    """

    name: str
    title: str
    source: str
    row_title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()

    def explanations(self, row: Row) -> list[str]:
        """Return, for each column, the sentence on why the row's two entries differ; empty if they do not differ."""
        return [
            EXPLANATIONS[Entry(self.name, row.name, column.title)] if cell.differs else ""
            for column, cell in zip(self.columns, row.cells, strict=True)
        ]

    def letters(self) -> dict[str, str]:
        """Return the letter that marks each explanation."""
        sentences = dict.fromkeys(sentence for row in self.rows for sentence in self.explanations(row) if sentence)
        return dict(zip(sentences, "abcdefghijklmnopqrstuvwxyz", strict=False))

    def headings(self) -> list[Heading]:
        """Return the headings of the columns of `lines`."""
        headings = [Heading("", self.row_title, True)]
        for group, shown in (
            ("as published", [column for column in self.columns if column.published]),
            ("recomputed", [column for column in self.columns if column.recomputed]),
        ):
            headings += [Heading("" if index else group, kind.title, kind.words) for index, kind in enumerate(shown)]
        return headings

    def lines(self) -> list[list[str]]:
        """Return the rows as text: name, all published entries, then all recomputed entries with marks."""
        letters = self.letters()
        lines = []
        for row in self.rows:
            published, recomputed = [], []
            for column, cell, sentence in zip(self.columns, row.cells, self.explanations(row), strict=True):
                published += [cell.published] if column.published else []
                mark = f" ≠{letters[sentence]}" if sentence else ""
                recomputed += [cell.recomputed + mark] if column.recomputed else []
            lines.append([row.name, *published, *recomputed])
        return lines

    def notes(self) -> Iterator[str]:
        """Yield the notes below the table: source, explanations, remarks."""
        yield f"Published: {self.source}."
        for sentence, letter in self.letters().items():
            yield f"≠{letter} {sentence}"
        yield from self.remarks


# --- Entries --------------------------------------------------------------------------------------------


def quote(published: str) -> Cell:
    """Return an entry that is not recomputed: a measurement, or a number of another network."""
    return Cell(published, NOT_RECOMPUTED)


def number(published: str, exact: float, shown: int = 0, places: int | None = None) -> Cell:
    """Compare a published number with the exact one; it may be rounded or truncated.

    Args:
        published: the number as printed; "–" is not compared.
        exact: the recomputed number.
        shown: decimals of `exact` to show.
        places: decimals to compare, by default those of `published`; negative for tens and hundreds.
    """
    shown_text = f"{exact:.{shown}f}"
    if published == NONE:
        return Cell(published, shown_text)
    scale = 10.0 ** (len(published.partition(".")[2]) if places is None else places)
    agreeing = (round(exact * scale) / scale, math.floor(exact * scale) / scale)
    return Cell(published, shown_text, not any(math.isclose(float(published), value) for value in agreeing))


def kilobytes(published: str, size: int) -> Cell:
    """Compare memory in KB; the paper prints two digits (1600 for 1605.6) and no fractions. `size` is in bytes."""
    exact = size / 1000
    return number(published, exact, shown=1, places=min(0, 1 - math.floor(math.log10(exact))))


def word(published: str, ours: str) -> Cell:
    """Compare words. An entry that the paper leaves open agrees with any, and "conv2d" agrees with "conv2d 3x3"."""
    return Cell(published, ours, published != NONE and published != ours and not ours.startswith(f"{published} "))


# --- Rendering ------------------------------------------------------------------------------------------


def summary(tables: Sequence[Table]) -> str:
    """Return a sentence with the numbers of compared and of differing entries."""
    cells = [cell for table in tables for row in table.rows for cell in row.cells]
    compared, differ = sum(cell.compared for cell in cells), sum(cell.differs for cell in cells)
    return f"{compared} published entries recomputed, {differ} of them differ."


def print_table(console: Console, table: Table) -> None:
    """Print a table with its notes."""
    headings, lines = table.headings(), table.lines()
    grid = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for heading in headings:
        justify = "left" if heading.words else "right"
        grid.add_column(Text(f"{heading.group}\n{heading.title}"), justify=justify, no_wrap=True)
    for index, heading in enumerate(headings):
        # Pad entries without a mark, so that digits align.
        if not heading.words and any("≠" in line[index] for line in lines):
            for line in lines:
                line[index] += "" if "≠" in line[index] else "   "
    for line in lines:
        grid.add_row(*(Text(entry, style="bold yellow" if "≠" in entry else "") for entry in line))
    console.print(Text(f"\n{table.title}", style="bold"))
    console.print(grid)
    print_sentences(console, table.notes())


def print_sentences(console: Console, sentences: Iterable[str]) -> None:
    """Print sentences, wrapped to the width of the terminal."""
    for sentence in sentences:
        console.print(Text(sentence), soft_wrap=False)


def to_markdown(tables: Sequence[Table]) -> str:
    """Return all tables as one document."""

    def line(words: Iterable[str]) -> str:
        return f"| {' | '.join(words)} |"

    parts = ["# The tables of the MobileNetV2 paper, as published and recomputed", *READING, summary(tables)]
    for table in tables:
        headings = table.headings()
        titles = [f"{heading.group}<br>{heading.title}" if heading.group else heading.title for heading in headings]
        rules = ["---" if heading.words else "---:" for heading in headings]
        parts += [f"## {table.title}", "\n".join(map(line, (titles, rules, *table.lines()))), *table.notes()]
    parts += ["## Layer by layer", "![Channels and memory of both networks, layer by layer](figure.png)"]
    return "\n\n".join(parts) + "\n"


def to_csv(table: Table) -> str:
    """Return a table as CSV: for each quantity published, recomputed and differs; then the explanations."""

    def shown(column: Column, published: str, recomputed: str, differs: str) -> list[str]:
        wanted = (column.published, column.recomputed, column.published and column.recomputed)
        return [entry for entry, keep in zip((published, recomputed, differs), wanted, strict=True) if keep]

    def differs(cell: Cell) -> str:
        return ("yes" if cell.differs else "no") if cell.compared else ""

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    titles = [
        title
        for column in table.columns
        for title in shown(column, f"{column.title} published", f"{column.title} recomputed", f"{column.title} differs")
    ]
    writer.writerow([table.row_title, *titles, "explanation"])
    for row in table.rows:
        values = [
            "" if value == NONE else value
            for column, cell in zip(table.columns, row.cells, strict=True)
            for value in shown(column, cell.published, cell.recomputed, differs(cell))
        ]
        sentences = dict.fromkeys(filter(None, table.explanations(row)))
        writer.writerow([row.name, *values, " ".join(sentences)])
    return stream.getvalue()
