"""Predict the classes of images, with the preprocessing of the weights.

--weights takes a run's folder, a network (of `convert`, or of a study: runs/.../checkpoints/ARM-SEED), any file that
`convert` reads, or published weights (hf://OWNER/NAME, torchvision://FILE). --array takes a preprocessed batch.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnv2_jax.data.catalog import ExifOrientation
from mnv2_jax.data.folder import LeftOut, images_below, printable
from mnv2_jax.errors import UserError
from mnv2_jax.settings import check_resolution

if TYPE_CHECKING:
    from mnv2_jax.data.preprocessing import Preprocessing
    from mnv2_jax.network import Network

BATCH_PIXELS = 32 * 224 * 224
"""Maximum number of pixels in memory at once, unless a single image has more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this command. The string below each field is its help text."""

    weights: str
    """Run folder, network folder, weights file, hf://OWNER/NAME or torchvision://FILE."""
    image: tuple[Path, ...] = ()
    """Images, or folders that are searched for images recursively."""
    array: Path | None = None
    """NumPy file with a preprocessed batch: (images, height, width, channels), float32."""
    top: int = 5
    """Number of most probable classes to show."""
    json: bool = False
    """Print one JSON object, which includes the logits."""
    resolution: int | None = None
    """Side of the network's input in pixels; the weights' own if not given."""
    exif_orientation: ExifOrientation = "apply"
    """Rotate photographs as their EXIF says (apply), or use them as stored (ignore)."""


def main(options: Options) -> None:
    """Predict the classes of the images or of the batch."""
    if bool(options.image) == (options.array is not None):
        raise UserError("specify either images (--image) or a preprocessed batch (--array)")
    if options.top < 1:
        raise UserError(f"--top must be 1 or more, got {options.top}")
    check_resolution(options.resolution)
    files, left_out = find_images(options.image)
    for line in left_out:
        print(line, file=sys.stderr)

    import jax

    from mnv2_jax.data.preprocessing import describe_preprocessing, find_preprocessing
    from mnv2_jax.tasks.classification import SIGMOIDS
    from mnv2_jax.weights.load import load_weights

    network = load_weights(options.weights)
    check_predicts(options.weights, network)
    task: Any = network.task
    sigmoids = [SIGMOIDS] if task.outputs == "sigmoid" else []
    channels = network.image_channels
    damaged: list[str] = []
    if options.array is not None:
        batch = read_array(options.array, channels)
        name = printable(options.array)
        batches = iter([([f"{name}[{index}]" for index in range(len(batch))], batch)])
        said = "none: --array is used as is"
    else:
        how, resolution = find_preprocessing(network.preprocessing), options.resolution or network.resolution
        upright = options.exif_orientation == "apply"
        batches = read_batches(files, how, resolution, channels, upright, damaged)
        turned = "rotated upright by EXIF" if upright else "as stored, EXIF orientation ignored"
        said = f"{describe_preprocessing(network.preprocessing, resolution)}, {turned}"
    apply = jax.jit(network.model.apply)
    predictions: list[dict] = []
    for names, batch in batches:
        logits = np.asarray(apply(network.variables, batch))
        if not predictions:
            for line in (f"preprocessing {said}", *network.notes, *sigmoids):
                print(line, file=sys.stderr if options.json else sys.stdout)
        for name, row in zip(names, logits, strict=True):
            predictions.append(prediction(name, row, task.probabilities(row), network.class_names, options.top))
            if not options.json:
                print(as_text(predictions[-1]), flush=True)
    if options.json:
        print(json.dumps({"predictions": predictions, "damaged": damaged}, indent=2))
    if damaged:
        raise UserError(f"{len(damaged)} of {len(files)} images could not be read; see the messages above")


def as_text(entry: dict) -> str:
    """Format one image's name and its classes, one per line."""
    lines = [f"{guess['probability']:8.2%}  {guess['label'] or guess['class']}" for guess in entry["top"]]
    return "\n".join(["", entry["input"], *lines])


def find_images(paths: tuple[Path, ...]) -> tuple[list[Path], list[str]]:
    """Return the images at these paths, and a line for each folder from which files were left out.

    Folders are searched recursively, in alphabetical order.

    Raises:
        UserError: for a path that is neither a file nor a folder, or a folder without images.
    """
    found: list[Path] = []
    said = []
    for path in paths:
        if path.is_file():
            found.append(path)
            continue
        if not path.exists():
            raise UserError(f"--image {printable(path)} does not exist")
        if not path.is_dir():
            raise UserError(f"--image {printable(path)} is a pipe or a device; expected a file or a folder")
        left = LeftOut()
        images = sorted(images_below(path, left))
        if not images:
            there = f"; left out: {left}" if str(left) else ""
            raise UserError(f"--image {printable(path)} contains no images, directly or in subfolders{there}")
        found += images
        if str(left):
            said.append(f"left out of {printable(path)}: {left}")
    return found, said


def read_batches(
    files: Sequence[Path], how: "Preprocessing", resolution: int, channels: int, upright: bool, damaged: list[str]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield (names, inputs) of batches of images. Unreadable images are printed and appended to `damaged`.

    Raises:
        UserError: if the only image cannot be read.
    """
    from mnv2_jax.data.preprocessing import preprocess, read_image

    names: list[str] = []
    inputs: list[np.ndarray] = []
    for file in files:
        try:
            inputs.append(preprocess(read_image(file, channels, upright=upright), how, resolution))
        except UserError as error:
            if len(files) == 1:
                raise
            print(f"skipped: {error}", file=sys.stderr)
            damaged.append(printable(file))
            continue
        names.append(printable(file))
        if len(names) == max(1, BATCH_PIXELS // resolution**2):
            yield names, np.stack(inputs)
            names, inputs = [], []
    if names:
        yield names, np.stack(inputs)


def read_array(path: Path, channels: int) -> np.ndarray:
    """Read a batch from a NumPy file.

    Raises:
        UserError: if it cannot be read, has the wrong shape or dtype, or values that are not finite.
    """
    expected = f"(images, height, width, {channels}) of float32"
    if path.exists() and not path.is_file():  # opening a pipe would block
        raise UserError(f"--array {printable(path)} is not a file; expected {expected}")
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise UserError(f"--array {path} cannot be read as a NumPy file{reason}; expected {expected}") from error
    if isinstance(array, np.lib.npyio.NpzFile):
        array.close()
    if not isinstance(array, np.ndarray) or array.ndim != 4 or array.shape[-1] != channels or 0 in array.shape:
        raise UserError(f"--array {path} contains {getattr(array, 'shape', 'several arrays')}, expected {expected}")
    if array.dtype != np.float32:
        raise UserError(f"--array {path} contains {array.dtype}, expected {expected}")
    if not np.isfinite(array).all():
        raise UserError(f"--array {path} contains values that are not finite")
    return np.asarray(array)


def check_predicts(weights: str, network: "Network") -> None:
    """Check that the network's outputs are classes.

    Raises:
        UserError: if it has no classifier or a single output.
    """
    notes = "; ".join(network.notes)
    if not network.model.num_classes:
        raise UserError(f"{weights} has no classifier, so it cannot predict classes{notes and f' ({notes})'}")
    if network.model.num_classes == 1:
        raise UserError(
            f"{weights} has a single output of unknown meaning; if its sigmoid is the probability of the second of two "
            "classes, convert it with --outputs sigmoid"
        )


def prediction(
    name: str, logits: np.ndarray, probabilities: np.ndarray, class_names: tuple[str, ...] | None, top: int
) -> dict:
    """Return the logits and the most probable classes of one image, for JSON."""
    best = np.argsort(-probabilities, kind="stable")[:top]
    return {
        "input": name,
        "logits": logits.tolist(),
        "top": [
            {
                "class": int(index),
                "label": class_names[index] if class_names else None,
                "probability": float(probabilities[index]),
            }
            for index in best
        ],
    }
