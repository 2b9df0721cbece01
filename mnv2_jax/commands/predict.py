"""The classes of images, with the preprocessing that belongs to the weights.

--weights takes a run's folder, a network (of `convert`, or of a study: runs/.../checkpoints/ARM-SEED), any file that
`convert` takes, or published weights (hf://OWNER/NAME, torchvision://FILE). --array takes a preprocessed batch.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnv2_jax.errors import UserError
from mnv2_jax.settings import check_resolution

if TYPE_CHECKING:
    from mnv2_jax.network import Network

BATCH_PIXELS = 32 * 224 * 224
"""Of the images that are in memory at once, unless a single one has more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this command. What follows a field is its help."""

    weights: str
    """A run's folder, a network's folder, a file of weights, hf://OWNER/NAME, torchvision://FILE."""
    image: tuple[Path, ...] = ()
    """Images, or folders of images."""
    array: Path | None = None
    """A NumPy file with a preprocessed batch: (images, height, width, channels), float32."""
    top: int = 5
    """How many of the most probable classes to name."""
    json: bool = False
    """Print one JSON object; the logits are in it."""
    resolution: int | None = None
    """Side of the network's input in pixels; the weights' own if not given."""


def main(options: Options) -> None:
    """Predict what the flags name."""
    if bool(options.image) == (options.array is not None):
        raise UserError("name the images with --image, or a preprocessed batch with --array, one of the two")
    if options.top < 1:
        raise UserError(f"--top must be 1 or more, got {options.top}")
    check_resolution(options.resolution)
    files = list(find_images(options.image))

    import jax

    from mnv2_jax.data.preprocessing import describe_preprocessing, find_preprocessing, preprocess, read_image
    from mnv2_jax.tasks.classification import SIGMOIDS
    from mnv2_jax.weights.load import load_weights

    network = load_weights(options.weights)
    check_predicts(options.weights, network)
    task: Any = network.task
    sigmoids = [SIGMOIDS] if task.outputs == "sigmoid" else []
    channels = network.image_channels
    if options.array is not None:
        batch = read_array(options.array, channels)
        batches = iter([([f"{options.array}[{index}]" for index in range(len(batch))], batch)])
        said = "none: --array is taken as it is"
    else:
        how, resolution = find_preprocessing(network.preprocessing), options.resolution or network.resolution
        size = max(1, BATCH_PIXELS // resolution**2)
        groups = [files[start : start + size] for start in range(0, len(files), size)]

        def read(file: Path) -> np.ndarray:
            return preprocess(read_image(file, channels), how, resolution)

        batches = (([str(file) for file in group], np.stack([read(file) for file in group])) for group in groups)
        said = describe_preprocessing(network.preprocessing, resolution)
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
        print(json.dumps({"predictions": predictions}, indent=2))


def as_text(entry: dict) -> str:
    """One image's classes, a line each, below its name."""
    lines = [f"{guess['probability']:8.2%}  {guess['label'] or guess['class']}" for guess in entry["top"]]
    return "\n".join(["", entry["input"], *lines])


def find_images(paths: tuple[Path, ...]) -> Iterator[Path]:
    """The images that paths name; a folder stands for those in it, in alphabetical order.

    Raises:
        UserError: for a path that is not there, and a folder without images.
    """
    from mnv2_jax.data.preprocessing import IMAGE_SUFFIXES

    for path in paths:
        if not path.exists():
            raise UserError(f"--image {path} does not exist")
        if not path.is_dir():
            yield path
            continue
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not inside:
            raise UserError(f"--image {path} is a folder without images ({', '.join(IMAGE_SUFFIXES)})")
        yield from inside


def read_array(path: Path, channels: int) -> np.ndarray:
    """A batch from a NumPy file.

    Raises:
        UserError: if it is none, or none that fits the network.
    """
    expected = f"(images, height, width, {channels}) of float32"
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise UserError(f"--array {path} cannot be read as a NumPy file{reason}; expected {expected}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 4 or array.shape[-1] != channels or 0 in array.shape:
        raise UserError(f"--array {path} holds {getattr(array, 'shape', 'several arrays')}, expected {expected}")
    if array.dtype != np.float32:
        raise UserError(f"--array {path} holds {array.dtype}, expected {expected}")
    if not np.isfinite(array).all():
        raise UserError(f"--array {path} holds values that are not finite numbers")
    return np.asarray(array)


def check_predicts(weights: str, network: "Network") -> None:
    """Refuse a network whose outputs are no classes.

    Raises:
        UserError: says what they are.
    """
    notes = "; ".join(network.notes)
    if not network.model.num_classes:
        raise UserError(f"{weights} has no classifier, so it predicts no classes{notes and f' ({notes})'}")
    if network.model.num_classes == 1:
        raise UserError(
            f"{weights} has one output, of which nothing says what it means: if a sigmoid of it is the probability of the "
            "second of two classes, convert it with --outputs sigmoid"
        )


def prediction(
    name: str, logits: np.ndarray, probabilities: np.ndarray, class_names: tuple[str, ...] | None, top: int
) -> dict:
    """What is said of one image."""
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
