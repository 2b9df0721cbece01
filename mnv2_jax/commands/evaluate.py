"""Evaluate a trained network on a whole split, every image counted once: loss, accuracy, and per-class accuracy.

--weights takes a run's folder (its newest checkpoint if unfinished), a network written by `convert` or a study, any
weights file that `convert` reads, or published weights (hf://OWNER/NAME, torchvision://FILE). By default a run is
evaluated on the data set that it was trained on. --out writes evaluation.json and a figure of the confusion matrix.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mnv2_jax.data.catalog import FOLDER, ExifOrientation, OnBadImage
from mnv2_jax.data.folder import printable
from mnv2_jax.errors import UserError
from mnv2_jax.results import command_line, save_figure, write_json
from mnv2_jax.settings import check_resolution
from mnv2_jax.wording import counted

if TYPE_CHECKING:
    from rich.table import Table

    from mnv2_jax.training.evaluation import Evaluation

EVALUATION, CONFUSION = "evaluation.json", "confusion"
FILES = (EVALUATION, f"{CONFUSION}.png", f"{CONFUSION}.svg")
"""Files written to --out."""

FEW_CLASSES, WORST = 10, 5
"""Up to `FEW_CLASSES` classes are all shown; of more, only the `WORST` with the lowest accuracy."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this command. The string below each field is its help text."""

    weights: str
    """Run folder, network folder, weights file, hf://OWNER/NAME or torchvision://FILE."""
    dataset: str | None = None
    """Data set, as for train; the run's own if not given."""
    data_files: Path | None = None
    """Folder of images, as for train; the run's own if not given."""
    split: Literal["train", "validation", "test", "all"] = "test"
    """Split to evaluate on, without augmentation; all for the whole data set."""
    resolution: int | None = None
    """Side of the square images in pixels; the network's own if not given."""
    ema: bool = True
    """For a run with a moving average of its parameters: use the average, or with --no-ema the latest parameters."""
    on_bad_image: OnBadImage = "stop"
    """What to do about a damaged image; skipped images are not counted."""
    exif_orientation: ExifOrientation | None = None
    """Rotate photographs as their EXIF says (apply), or not (ignore); if not given, as in the run."""
    out: Path | None = None
    """Folder for evaluation.json (all numbers) and confusion.png and .svg (the confusion matrix)."""
    overwrite: bool = False
    """Replace the evaluation in --out."""
    json: bool = False
    """Print one JSON object; only --out has the confusion matrix."""


def main(options: Options) -> None:
    """Evaluate the network."""
    check_resolution(options.resolution)
    if options.out is not None:
        check_out(options.out, options.overwrite)

    from mnv2_jax.analysis.confusion import by_class, largest_confusions
    from mnv2_jax.data.preprocessing import describe_preprocessing
    from mnv2_jax.training.evaluation import evaluate_on
    from mnv2_jax.training.finetune import open_trained

    network, settings, said = open_trained(options.weights, options.ema)
    for line in said:
        print(line, file=sys.stderr)
    name, data_files = find_images(options, settings)
    own = name == FOLDER and data_files is not None and str(data_files.resolve()) == settings.get("data_files")
    limited = settings.get("train_images") is not None or settings.get("validation_images") is not None
    found = evaluate_on(
        network,
        name,
        options.split,
        data_files=data_files,
        resolution=options.resolution,
        on_bad_image=options.on_bad_image,
        exif_orientation=options.exif_orientation or settings.get("exif_orientation", "apply"),
        trained_on=settings.get("data_sha256") if own and not limited else None,
        named=options.data_files is not None,
    )
    how = describe_preprocessing(network.preprocessing, options.resolution or network.resolution)
    for line in found.said:
        print(line, file=sys.stderr if options.json else sys.stdout)
    content: dict[str, Any] = {"weights": options.weights, "dataset": name, "split": options.split, **found.metrics}
    if found.confusion is not None:
        content["classes"] = by_class(found.confusion, found.class_names)
        content["largest_confusions"] = largest_confusions(found.confusion, found.class_names)
    content["skipped"] = found.skipped
    if options.json:
        print(json.dumps(content))
    else:
        print_evaluation(content, found.metrics, [f"preprocessing {how}", *network.notes])
    if options.out is not None:
        if data_files is not None:
            content["data_files"] = printable(data_files.resolve())
        content |= {"preprocessing": how, "notes": network.notes}
        for path in write_evaluation(options.out, content, found):
            print(path, file=sys.stderr if options.json else sys.stdout)


def find_images(options: Options, settings: Mapping[str, Any]) -> tuple[str, Path | None]:
    """Return (data set, the user's files) from the flags, else from the settings of the run.

    Raises:
        UserError: if neither names them, or the run's folder of images no longer exists.
    """
    name = options.dataset or settings.get("dataset")
    if name is None:
        raise UserError(f"{options.weights} does not record what it was trained on; specify --dataset")
    if name != FOLDER or options.data_files is not None:
        return name, options.data_files
    if "data_files" not in settings:
        raise UserError(f"{options.weights} does not record which folder it was trained on; specify --data-files")
    data_files = Path(settings["data_files"])
    if not data_files.is_dir():
        raise UserError(
            f"{options.weights} was trained on the images in {printable(data_files)}, a folder that no longer "
            "exists; specify its location with --data-files"
        )
    return name, data_files


def print_evaluation(content: Mapping[str, Any], metrics: Mapping[str, float], notes: Sequence[str]) -> None:
    """Print the metrics and a table of the classes, of only the worst if there are many."""
    from rich.console import Console

    images = counted(content["examples"], "image")
    print(f"{content['dataset']} {content['split']}, {images}, {notes[0]}")
    for note in notes[1:]:
        print(note)
    for line in content["skipped"]:
        print(f"skipped: {line}")
    classes = content.get("classes", [])
    for metric, value in metrics.items():
        if metric == "examples":
            continue
        print(f"{metric.replace('_', ' '):14} {f'{value:.4f}' if metric == 'loss' else f'{value:.2%}'}")
    if classes:
        shown = with_images = [each for each in classes if each["images"]]
        print()
        if len(with_images) > FEW_CLASSES:
            shown = sorted(with_images, key=lambda each: each["accuracy"])[:WORST]
            print(f"the {WORST} of {len(with_images)} classes with the lowest accuracy:")
        Console(highlight=False, width=max(120, Console().width)).print(class_table(shown))
        if len(with_images) < len(classes):
            print(f"{counted(len(classes) - len(with_images), 'class')} without images in this split")


def class_table(classes: Sequence[Mapping[str, Any]]) -> "Table":
    """Create the table of the classes, one per row."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table("class", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("images", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("most often mistaken for")
    for each in classes:
        other = f"{each['taken_for']} ({each['taken_for_images']:,})" if each["taken_for"] else ""
        table.add_row(Text(each["name"]), f"{each['images']:,}", f"{each['accuracy']:.2%}", Text(other))
    return table


def check_out(folder: Path, overwrite: bool) -> None:
    """Check that the evaluation can be written to a folder, before it starts.

    Raises:
        UserError: if not; says why.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file, not a folder")
    there = [name for name in FILES if (folder / name).exists()]
    if there and not overwrite:
        raise UserError(
            f"--out {folder} already contains {', '.join(there)}; choose another or use --overwrite to replace them"
        )
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryDirectory(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written ({error.strerror}); choose another folder") from error


def write_evaluation(folder: Path, content: Mapping[str, Any], found: "Evaluation") -> list[Path]:
    """Write evaluation.json, with the command and the environment, and the confusion matrix; returns the files."""
    from mnv2_jax.analysis.confusion import draw_confusion
    from mnv2_jax.environment import environment

    folder.mkdir(parents=True, exist_ok=True)
    if found.confusion is None:
        for name in FILES[1:]:
            (folder / name).unlink(missing_ok=True)
    else:
        data = Path(content.get("data_files", content["dataset"])).name
        scores = f"{counted(content['examples'], 'image')}, accuracy {100 * content['accuracy']:.2f} %"
        title = f"Confusion matrix\n{Path(content['weights']).name} on {data} ({content['split']}): {scores}"
        save_figure(draw_confusion(found.confusion, found.class_names, title), folder, name=CONFUSION)
        content = {**content, "confusion": found.confusion.astype(int).tolist()}
    write_json(folder / EVALUATION, {**content, "command": command_line(), "environment": environment()})
    return [folder / name for name in FILES if (folder / name).exists()]
