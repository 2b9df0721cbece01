"""Parsing and checks of README.md and docs/; each check returns one line per problem."""

import functools
import pydoc
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from markdown_it import MarkdownIt

from mnv2_jax.ablation.tables import MARKED

ROOT = Path(__file__).parents[1]
WIDTH = 120
SHELL = {"bash", "sh"}
INERT = {"text", "json", "bibtex"}
"""Languages of blocks that are not checked: output, file trees, formulas."""

MARKDOWN = MarkdownIt("commonmark").enable("table")


class Block(NamedTuple):
    """A fenced code block; `title` is the name of the file that it shows, which the site prints above it."""

    line: int
    language: str
    title: str
    text: str


class Page:
    """A Markdown page below `root`, parsed."""

    def __init__(self, path: Path, root: Path = ROOT):
        self.path, self.root, self.text = path, root, path.read_text()
        self.tokens = MARKDOWN.parse(self.text)

    def __str__(self) -> str:
        return self.path.relative_to(self.root).as_posix()

    @functools.cached_property
    def blocks(self) -> list[Block]:
        """All code blocks, in order; blocks indented by four spaces have the language "indented"."""
        found = []
        for token in self.tokens:
            if token.type in ("fence", "code_block"):
                info = token.info if token.type == "fence" else "indented"
                title = re.search(r'title="([^"]+)"', info)
                language = info.split()[0] if info.split() else ""
                found.append(Block(token.map[0] + 1, language, title[1] if title else "", token.content))
        return found

    def inline(self) -> Iterator[tuple[int, list]]:
        """Yield (line, tokens) of every paragraph, heading and cell."""
        for token in self.tokens:
            if token.type == "inline":
                yield token.map[0] + 1, token.children

    @functools.cached_property
    def prose(self) -> str:
        """The text outside of code blocks."""
        return "\n".join(_words(children) for _, children in self.inline())

    @functools.cached_property
    def code(self) -> list[tuple[int, str]]:
        """(line, text) of all inline code."""
        return [(line, each.content) for line, tokens in self.inline() for each in tokens if each.type == "code_inline"]

    @functools.cached_property
    def anchors(self) -> set[str]:
        """Anchors of the headings, as GitHub makes them."""
        found: list[str] = []
        for before, token in zip(self.tokens, self.tokens[1:], strict=False):
            if before.type == "heading_open":
                slug = re.sub(r"[^\w\- ]", "", _words(token.children).lower()).replace(" ", "-")
                found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
        return set(found)


def _words(tokens: list) -> str:
    return "".join(each.content or "\n" for each in tokens if each.type in ("text", "code_inline", "softbreak"))


def pages(root: Path = ROOT) -> list[Page]:
    """Return README.md and the pages of docs/."""
    return [Page(path, root) for path in (root / "README.md", *sorted((root / "docs").rglob("*.md")))]


# --- What is wrong with a page -----------------------------------------------------------------------------


def wide_lines(page: Page) -> list[str]:
    """Return lines over 120 characters, outside of code, comments and tables of docs/ that are made from records.

    The targets of links and pictures are not counted.
    """
    lines = {number: re.sub(r"\]\([^)]*\)", "]", line) for number, line in enumerate(page.text.splitlines(), 1)}
    for token in page.tokens:
        if token.map is None:
            continue
        inside = range(token.map[0] + 1, token.map[1] + 1)
        if token.type in ("fence", "code_block") or token.content.startswith("<!--"):
            lines.update(dict.fromkeys(inside, ""))
    if page.path.parent.name == "docs":
        for found in MARKED.finditer(page.text):
            first = page.text.count("\n", 0, found.start()) + 1
            lines.update(dict.fromkeys(range(first, first + found[0].count("\n")), ""))
    return [f"{page}:{number} has {len(line)} characters" for number, line in lines.items() if len(line) > WIDTH]


def broken_links(page: Page) -> list[str]:
    """Return links and pictures whose file or heading does not exist."""
    found = []
    for token in page.tokens:
        if token.type == "html_block" and re.search(r"\b(src|href)=", token.content):
            found.append(f"{page}:{token.map[0] + 1} has a link in HTML, which the site does not follow")
    for line, tokens in page.inline():
        for each in tokens:
            if each.type == "html_inline" and re.search(r"\b(src|href)=", each.content):
                found.append(f"{page}:{line} has a link in HTML, which the site does not follow")
            target = unquote(each.attrs.get("href") or each.attrs.get("src") or "")
            if target and not re.match(r"\w+:", target) and not _is_there(page, target):
                found.append(f"{page}:{line} links to {target}, which is not there")
    return found


def _is_there(page: Page, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = page.path.parent / path if path else page.path
    if not file.exists() or not file.resolve().is_relative_to(page.root.resolve()):
        return False
    if not anchor:
        return True
    # The site generates the pages of docs/api from docstrings; their anchors are names of objects.
    return file.suffix == ".md" and (anchor in Page(file, page.root).anchors or pydoc.locate(anchor) is not None)


def unknown_languages(page: Page) -> list[str]:
    """Return blocks that are not checked because their language is unknown."""
    known = {"python", *SHELL, *INERT}
    return [
        f"{page}:{block.line} is a block of {block.language or 'no language'}; known are {', '.join(sorted(known))}"
        for block in page.blocks
        if block.language not in known
    ]


UNFINISHED = re.compile(r"\b(TODO|TBD|FIXME|XXX|lorem ipsum|path/to|your[-_]\w+)\b|<[a-z]+ [a-z ]+>", re.IGNORECASE)


def placeholders(page: Page) -> list[str]:
    """Return unfilled placeholders, and names in capitals in commands that no sentence of the page explains."""
    found = [f"{page} says {match[0]}" for match in UNFINISHED.finditer(re.sub(r"<!--.*?-->", "", page.text))]
    for line, words in commands(page):
        # `NAME=value` sets a variable and $NAME reads one; neither is a placeholder.
        text = " ".join(re.sub(r"^\w+=|\$\{?\w+", "", word) for word in words)
        for name in re.findall(r"(?<![\w.])[A-Z][A-Z_]+(?![\w.])", text):
            if not re.search(rf"\b{name}\b", page.prose):
                found.append(f"{page}:{line} names {name}, which no sentence explains")
    return found


# --- Commands ----------------------------------------------------------------------------------------------


def commands(page: Page) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, words) of every command in shell blocks, and of inline code that starts with "python "."""
    for block in page.blocks:
        if block.language in SHELL:
            for line, words in split(block.text):
                yield block.line + line, words
    for line, text in page.code:
        if text.startswith("python "):
            for _, words in split(text):
                yield line, words


def split(text: str, inner: bool = True) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, words) of the commands in a shell text; `inner` includes those that another takes as --command."""
    begun = ""
    for number, line in enumerate(text.splitlines(), 1):
        begun += line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        for words in _split_line(re.sub(r"\d?>&\d", "", begun)):
            yield number, words
            for word in words if inner else ():
                if word.startswith("--command="):
                    yield from ((number, found) for _, found in split(word.removeprefix("--command=")))
        begun = ""


def _split_line(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    words: list[str] = []
    is_file = False
    for token in [*lexer, ";"]:
        if is_file:
            is_file = False
        elif set(token) <= set("<>"):
            is_file = True  # the next token is a file, not part of the command
        elif set(token) <= set("();|&"):
            if words:
                yield words
            words = []
        else:
            words.append(token)
