"""Lists the images of a folder by class and split, and reports what is left out."""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mnv2_jax.errors import UserError
from mnv2_jax.results import CONFIG, kind_of
from mnv2_jax.wording import counted

File = tuple[Path, int]
"""The path of an image and its class index."""

Images = Mapping[str, list[list[Path]]]
"""Image paths by class index, for each split; "classes" is the only key of a folder without splits."""

SPLITS = {
    "train": ("train", "training", "training_set"),
    "validation": ("val", "valid", "validation", "validation_set", "dev", "eval"),
    "test": ("test", "testing", "test_set"),
}
"""Common names for the splits of a data set, in upper or lower case."""

PHOTOGRAPHS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Pillow's names for photograph formats; its other formats are icons, documents and films."""

UNREADABLE = (".avif", ".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".raw", ".rw2")
"""Suffixes of photographs that some or all versions of Pillow cannot read."""

CLUTTER = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "lost+found", "$recycle.bin", "system volume information"}
"""Files and folders that operating systems create, besides those whose name starts with a dot."""


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of the photographs that the installed Pillow can read."""
    # An MPO file, several JPEGs in one, is opened as JPEG.
    opened = {*Image.registered_extensions().values()} & {*Image.OPEN, "MPO"}
    return frozenset(
        suffix for suffix, kind in Image.registered_extensions().items() if kind in PHOTOGRAPHS and kind in opened
    )


def printable(path: str | os.PathLike) -> str:
    r"""Return a path as printable text: bytes that are not UTF-8 become \xNN."""
    return os.fspath(path).encode(errors="surrogateescape").decode(errors="backslashreplace")


def spelled(path: str | os.PathLike) -> str:
    """Return a name in Unicode NFC for comparison: systems differ in whether é is one character or two."""
    return unicodedata.normalize("NFC", printable(path))


@dataclasses.dataclass
class LeftOut:
    """What was left out of a folder.

    Attributes:
        counts: numbers of files and links by kind.
        folders: folders beside the splits, with their number of images.
        results: folders that hold the results of runs, studies or computations.
    """

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    folders: list[str] = dataclasses.field(default_factory=list)
    results: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{count:,} {what}" for what, count in sorted(self.counts.items())] + self.folders
        if self.results:
            more = f" and {len(self.results) - 1} more" if len(self.results) > 1 else ""
            parts.append(f"the results in {self.results[0]}{more}")
        return ", ".join(parts)

    def add(self, other: "LeftOut") -> None:
        """Add what was left out of a subfolder."""
        self.counts += other.counts
        self.folders += other.folders
        self.results += other.results


def list_folder(folder: Path, left: LeftOut) -> tuple[list[Path], list[Path]]:
    """Return (subfolders, images) of a folder, sorted by name. Links are followed; everything else is added to `left`.

    Raises:
        UserError: if the folder cannot be read.
    """
    folders, images = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path, suffix = folder / entry.name, Path(entry.name).suffix.lower()
                if entry.name.startswith(".") or entry.name.casefold() in CLUTTER:
                    left.counts["hidden or system"] += 1
                elif entry.is_dir():
                    folders.append(path)
                elif not entry.is_file():  # opening a pipe would block
                    left.counts["linking to nothing" if entry.is_symlink() else "special (pipe, socket or device)"] += 1
                elif suffix in image_suffixes():
                    images.append(path)
                else:
                    left.counts[printable(suffix) or "without a suffix"] += 1
    except OSError as error:
        raise UserError(f"{printable(folder)} cannot be read ({error.strerror})") from error
    results = [path for path in folders if _holds_results(path)]
    left.results += [printable(path) for path in results]
    return [path for path in folders if path not in results], images


def _holds_results(folder: Path) -> bool:
    """Return whether this folder holds the results of a run, a study or a computation."""
    try:
        return kind_of(json.loads((folder / CONFIG).read_text())) is not None
    except (OSError, ValueError):
        return False


def images_below(folder: Path, left: LeftOut, around: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the images in a folder and its subfolders. Links are followed; everything else is added to `left`.

    `around` holds the folders on the way here, to recognise links that lead back to one of them.

    Raises:
        UserError: if a folder cannot be read.
    """
    around |= {folder.resolve()}
    folders, images = list_folder(folder, left)
    yield from images
    for path in folders:
        if path.is_symlink() and any(above.is_relative_to(path.resolve()) for above in around):
            left.counts["linking to a parent folder"] += 1
        else:
            yield from images_below(path, left, around)


class Folder(NamedTuple):
    """The images of a folder.

    Attributes:
        class_names: by class index.
        files: files of each split, "train", "validation" and "test", or of "all".
        said: lines for the user: what was found and what was left out.
    """

    class_names: tuple[str, ...]
    files: dict[str, list[File]]
    said: tuple[str, ...]


def read_folder(folder: Path, whole: bool = False) -> Folder:
    """Read the classes of a folder of images, and the images of each split.

    A class is a subfolder; its images are those in it and below it. The class folders may lie in one folder per split
    (named as in `SPLITS`). Otherwise every class is split: its images are sorted by a hash of their names, and of every
    ten the first is a test image and the second a validation image. If only one of the test and validation splits
    exists, it becomes the test split, and every tenth training image is held out for validation.

    Args:
        folder: the folder of images.
        whole: return all images as one split, "all".

    Raises:
        UserError: for a folder without class folders, a class without images, splits whose classes differ, and other
            layouts that are surely a mistake.
    """
    if not folder.is_dir():
        raise UserError(
            f"--data-files {printable(folder)} is not a folder; expected a folder with one "
            "subfolder of images per class"
        )
    left = LeftOut()
    parts = _find_parts(folder, left)
    read = {split: _read_classes(path, left) for split, path in parts.items()}
    (first, (classes, _)), *others = read.items()
    for split, (names, _) in others:
        if names != classes:
            odd = ", ".join(sorted(set(names) ^ set(classes))[:5])
            raise UserError(f"{printable(parts[split])} and {printable(parts[first])} have different classes: {odd}")
    images = {split: inside for split, (_, inside) in read.items()}
    if whole:
        merged = [list(itertools.chain(*paths)) for paths in zip(*images.values(), strict=True)]
        files = {"all": _flat(merged)}
    else:
        files = _split(images)
    return Folder(classes, files, _describe(folder, classes, images, files, left))


def _describe(
    folder: Path, classes: Sequence[str], images: Images, files: Mapping[str, Sequence[File]], left: LeftOut
) -> tuple[str, ...]:
    """Return lines that say what was found and what was left out."""
    counts = [sum(len(inside[label]) for inside in images.values()) for label in range(len(classes))]
    each = ", ".join(f"{name} {count:,}" for name, count in zip(classes, counts, strict=True))
    if len(classes) > 10:
        each = f"{min(counts):,} to {max(counts):,} each"
    line = f"{printable(folder)}: {counted(sum(counts), 'image')} of {counted(len(classes), 'class')} ({each})"
    if "all" not in files:
        line += ": " + ", ".join(f"{split} {len(inside):,}" for split, inside in files.items())
        if files["train"]:
            line += {1: ", split by their names", 2: ", the validation images taken from train"}.get(len(images), "")
    return (line, f"left out of {printable(folder)}: {left}") if str(left) else (line,)


def _find_parts(folder: Path, left: LeftOut) -> dict[str, Path]:
    """Return the folder of each split; without splits, `folder` itself as "classes".

    Raises:
        UserError: if it is unclear which folders are splits and which are classes.
    """
    own = LeftOut()
    subfolders, images = list_folder(folder, own)
    split_of = {name: split for split, names in SPLITS.items() for name in names}
    named: dict[str, list[Path]] = {}
    others = []
    for path in subfolders:
        split = split_of.get(path.name.casefold())
        # A folder with a split's name but no subfolders may be a class, such as trains.
        if split and list_folder(path, LeftOut())[0]:
            named.setdefault(split, []).append(path)
        else:
            others.append(path)
    if not named:
        if len(subfolders) == 1 and len(list_folder(subfolders[0], LeftOut())[0]) > 1:
            inner = printable(subfolders[0])
            raise UserError(
                f"{printable(folder)} contains a single folder, {inner}, which contains the classes; use that one"
            )
        return {"classes": folder}
    twice = next((paths for paths in named.values() if len(paths) > 1), None)
    if twice:
        raise UserError(
            f"{printable(folder)} has {' and '.join(path.name for path in twice)}; expected only one of them"
        )
    parts = {split: named[split][0] for split in SPLITS if split in named}
    beside = {path: sum(1 for _ in images_below(path, LeftOut())) for path in others}
    odd = [path for path, count in beside.items() if count and ("train" not in parts or len(parts) == 1)]
    odd += [path for path, count in beside.items() if count and path.name.casefold() in split_of]
    if odd or images:
        stray = printable((odd or images)[0])
        known = ", ".join(printable(path.name) for path in parts.values())
        raise UserError(
            f"{printable(folder)} has classes in {known}, but also images in {stray}; expected all classes directly "
            "in it, or all of them in each of train, val and test; or use the folder that contains only the classes"
        )
    left.add(own)
    left.folders += [f"{printable(path)} ({counted(count, 'image')})" for path, count in beside.items()]
    return parts


def _read_classes(folder: Path, left: LeftOut) -> tuple[tuple[str, ...], list[list[Path]]]:
    """Return the class names of one split, sorted, and the images of each class, sorted by a hash of their names."""
    subfolders, stray = list_folder(folder, left)
    found: dict[str, tuple[Path, list[Path]]] = {}
    for path in subfolders:
        inside = LeftOut()
        images = list(images_below(path, inside))
        left.add(inside)
        if inside.results and (not images or path.name == "runs"):
            continue
        _check_readable(path, images, inside)
        if spelled(path.name) in found:
            raise UserError(
                f"{printable(folder)} has two class folders {spelled(path.name)} that look alike, one of them spelled "
                "with combining accents (Unicode NFD); merge the two, or rename one"
            )
        found[spelled(path.name)] = path, sorted(images, key=functools.partial(_order, inside=path))
    if len(found) < 2:
        there = f" and {counted(len(stray), 'image')}" if stray else ""
        raise UserError(
            f"{printable(folder)} has {counted(len(found), 'subfolder')}{there}; expected one per class, and two "
            "classes or more"
        )
    if stray:
        raise UserError(
            f"{printable(folder)} has {counted(len(stray), 'image')} next to its class folders "
            f"({printable(stray[0].name)}); move them into a class folder or elsewhere"
        )
    classes = tuple(sorted(found))
    return classes, [found[name][1] for name in classes]


def _order(file: Path, inside: Path) -> tuple[str, str]:
    name = spelled(file.relative_to(inside).as_posix())
    return hashlib.sha256(name.encode()).hexdigest(), str(file)


def _check_readable(folder: Path, images: Sequence[Path], left: LeftOut) -> None:
    """Check that a class has images, and no more unreadable ones than readable ones."""
    unreadable = {suffix: left.counts[suffix] for suffix in UNREADABLE if left.counts[suffix]}
    if sum(unreadable.values()) > len(images):
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in unreadable.items())
        raise UserError(
            f"the class folder {printable(folder)} contains {kinds} that cannot be read here, and only "
            f"{counted(len(images), 'image')} that can; convert them to JPEG or PNG, or move them elsewhere"
        )
    if not images:
        there = f"only {left}" if str(left) else "nor any other files"
        raise UserError(
            f"the class folder {printable(folder)} contains no images, {there}; expected .jpg, .png, .webp, .tif, .bmp "
            "or another photo format that Pillow reads"
        )


def _flat(images: Sequence[Sequence[Path]]) -> list[File]:
    """Interleave the classes, so that the first images cover all of them."""
    longest = max(map(len, images), default=0)
    return [
        (paths[index], label) for index in range(longest) for label, paths in enumerate(images) if index < len(paths)
    ]


def _split(images: Images) -> dict[str, list[File]]:
    """Make the three splits from those that exist."""
    if len(images) == 1:
        ((part, inside),) = images.items()
        # A folder with only a held-out split is there to be evaluated on.
        return (
            _tenths(inside) if part in ("classes", "train") else {"train": [], "validation": [], "test": _flat(inside)}
        )
    test, validation = images.get("test"), images.get("validation")
    train = images.get("train", [])
    if test is None or validation is None:
        return {**_tenths(train, test=False), "test": _flat(test or validation or [])}
    return {"train": _flat(train), "validation": _flat(validation), "test": _flat(test)}


def _tenths(images: list[list[Path]], test: bool = True) -> dict[str, list[File]]:
    """Hold out every tenth image of each class for validation, and if `test` another tenth for testing."""
    needed = 3 if test else 2
    small = next((paths for paths in images if len(paths) < needed), None)
    if small is not None:
        raise UserError(
            f"the class folder {printable(small[0].parent)} contains {counted(len(small), 'image')}; expected "
            f"{needed} or more, to train, validate and test on"
        )
    first = ["test" if test else "train", "validation"]
    names = [*first, *["train"] * 8]
    return {
        split: _flat([[path for index, path in enumerate(paths) if names[index % 10] == split] for paths in images])
        for split in ("train", "validation", "test")
    }
