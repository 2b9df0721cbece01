"""A table as published beside itself recomputed: when two entries agree, and how all are shown.

Shown in the terminal, as Markdown and as CSV; `paper_tables.py` makes the tables.
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
    "≠ marks a recomputed entry that gives the published one neither rounded nor cut off to the digits published "
    "(memory: two digits). The paper cuts parameters off to 3.4 million, the slim table multiply-adds to whole "
    "millions.",
    "Parameters are without batch norm, as the paper and the slim table count them; multiply-adds are the kernels' "
    "alone. Networks have 1000 classes and, where nothing else is said, width 1.0 and 224 pixels.",
    "Memory is that of activations in fp16, for one image; 1 KB is 1000 B.",
)


class Cell(NamedTuple):
    """What was published, what comes out of the modules, and whether the two differ."""

    published: str = NONE
    recomputed: str = NONE
    differs: bool = False

    @property
    def compared(self) -> bool:
        """Whether there are two entries to compare."""
        return self.published != NONE and self.recomputed not in (NONE, NOT_RECOMPUTED)


class Column(NamedTuple):
    """A quantity. One that is not recomputed is a quote, one that is not published is ours alone."""

    title: str
    published: bool = True
    recomputed: bool = True
    words: bool = False


class Row(NamedTuple):
    """A name, and a cell for every column."""

    name: str
    cells: tuple[Cell, ...]


class Heading(NamedTuple):
    """Of a column as it is shown: a group begins where it is named."""

    group: str
    title: str
    words: bool


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as published beside itself recomputed.

    Attributes:
        name: of its CSV file.
        title, source: what it is and where it was published.
        row_title: what the rows' names are.
        columns, rows: the quantities and their cells.
        remarks: sentences that belong to no single cell.
    """

    name: str
    title: str
    source: str
    row_title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()

    def explanations(self, row: Row) -> list[str]:
        """For every column the sentence on why the row's two entries differ; empty where they do not."""
        return [
            EXPLANATIONS[Entry(self.name, row.name, column.title)] if cell.differs else ""
            for column, cell in zip(self.columns, row.cells, strict=True)
        ]

    def letters(self) -> dict[str, str]:
        """The letter of each explanation."""
        sentences = dict.fromkeys(sentence for row in self.rows for sentence in self.explanations(row) if sentence)
        return dict(zip(sentences, "abcdefghijklmnopqrstuvwxyz", strict=False))

    def headings(self) -> list[Heading]:
        """Of the columns of `lines`."""
        headings = [Heading("", self.row_title, True)]
        for group, shown in (
            ("as published", [column for column in self.columns if column.published]),
            ("recomputed", [column for column in self.columns if column.recomputed]),
        ):
            headings += [Heading("" if index else group, kind.title, kind.words) for index, kind in enumerate(shown)]
        return headings

    def lines(self) -> list[list[str]]:
        """The rows: name, all entries as published, then all recomputed, with marks."""
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
        """What stands below: the source, why entries differ, remarks."""
        yield f"Published: {self.source}."
        for sentence, letter in self.letters().items():
            yield f"≠{letter} {sentence}"
        yield from self.remarks


# --- Entries --------------------------------------------------------------------------------------------


def quote(published: str) -> Cell:
    """An entry that is not ours to recompute: a measurement, or another network."""
    return Cell(published, NOT_RECOMPUTED)


def number(published: str, exact: float, shown: int = 0, places: int | None = None) -> Cell:
    """Compare a published number with the exact one, both rounded and cut off.

    Args:
        published: as it was printed; "–" compares with nothing.
        exact: ours.
        shown: decimals to show of it.
        places: decimals to compare, those of `published` if not given; negative for tens and hundreds.
    """
    shown_text = f"{exact:.{shown}f}"
    if published == NONE:
        return Cell(published, shown_text)
    scale = 10.0 ** (len(published.partition(".")[2]) if places is None else places)
    agreeing = (round(exact * scale) / scale, math.floor(exact * scale) / scale)
    return Cell(published, shown_text, not any(math.isclose(float(published), value) for value in agreeing))


def kilobytes(published: str, size: int) -> Cell:
    """Compare memory: the paper prints two digits (1600 for 1605.6) and no fractions of a kilobyte."""
    exact = size / 1000
    return number(published, exact, shown=1, places=min(0, 1 - math.floor(math.log10(exact))))


def word(published: str, ours: str) -> Cell:
    """Compare words. What the paper leaves open agrees, and so does "conv2d" with "conv2d 3x3"."""
    return Cell(published, ours, published != NONE and published != ours and not ours.startswith(f"{published} "))


# --- Rendering ------------------------------------------------------------------------------------------


def summary(tables: Sequence[Table]) -> str:
    """How many entries were compared, and how many differ."""
    cells = [cell for table in tables for row in table.rows for cell in row.cells]
    compared, differ = sum(cell.compared for cell in cells), sum(cell.differs for cell in cells)
    return f"{compared} published entries recomputed, {differ} of them differ."


def print_table(console: Console, table: Table) -> None:
    """To the terminal."""
    headings, lines = table.headings(), table.lines()
    grid = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for heading in headings:
        justify = "left" if heading.words else "right"
        grid.add_column(Text(f"{heading.group}\n{heading.title}"), justify=justify, no_wrap=True)
    for index, heading in enumerate(headings):
        # Digits stay below digits where only some of them have a mark behind.
        if not heading.words and any("≠" in line[index] for line in lines):
            for line in lines:
                line[index] += "" if "≠" in line[index] else "   "
    for line in lines:
        grid.add_row(*(Text(entry, style="bold yellow" if "≠" in entry else "") for entry in line))
    console.print(Text(f"\n{table.title}", style="bold"))
    console.print(grid)
    print_sentences(console, table.notes())


def print_sentences(console: Console, sentences: Iterable[str]) -> None:
    """To the terminal, broken where it is too narrow."""
    for sentence in sentences:
        console.print(Text(sentence), soft_wrap=False)


def to_markdown(tables: Sequence[Table]) -> str:
    """All tables as one document."""

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
    """One table: published, recomputed and whether they differ side by side, and the explanations last."""

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
