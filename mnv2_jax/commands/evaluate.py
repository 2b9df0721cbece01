"""Loss, top-1 and top-5 accuracy of a trained network over a whole split, every image counted once.

--weights takes a run's folder (its newest checkpoint if it is not finished), a network of `convert` or of a study, any
file of weights that `convert` takes, or published weights (hf://OWNER/NAME, torchvision://FILE).
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Literal

from mnv2_jax.data.catalog import FOLDER, ExifOrientation, OnBadImage
from mnv2_jax.errors import UserError
from mnv2_jax.settings import check_resolution


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this command. What follows a field is its help."""

    weights: str
    """A run's folder, a network's folder, a file of weights, hf://OWNER/NAME, torchvision://FILE."""
    dataset: str | None = None
    """As for train; the run's own if not given."""
    data_files: Path | None = None
    """As for train; the run's own if not given."""
    split: Literal["train", "validation", "test", "all"] = "test"
    """The images; all for the whole set, train is evaluated without variation."""
    resolution: int | None = None
    """Side of the square images in pixels; the network's own if not given."""
    ema: bool = True
    """Of a run that keeps a moving average of its parameters: take the average, or with --no-ema the last ones."""
    on_bad_image: OnBadImage = "stop"
    """What to do about a damaged image; skipped ones are not counted."""
    exif_orientation: ExifOrientation | None = None
    """Turn photographs upright as their EXIF says (apply), or not (ignore); as the run did if not given."""
    json: bool = False
    """Print one JSON object."""


def main(options: Options) -> None:
    """Evaluate what the flags name."""
    check_resolution(options.resolution)

    from mnv2_jax.data.preprocessing import describe_preprocessing
    from mnv2_jax.training.evaluation import evaluate_on
    from mnv2_jax.training.finetune import open_trained

    network, settings, said = open_trained(options.weights, options.ema)
    for line in said:
        print(line, file=sys.stderr)
    name = options.dataset or settings.get("dataset")
    if name is None:
        raise UserError(f"{options.weights} does not say what it was trained on; name the images with --dataset")
    data_files = options.data_files
    if name == FOLDER and data_files is None:
        if "data_files" not in settings:
            raise UserError(f"{options.weights} was trained on a folder of images; name one with --data-files")
        data_files = Path(settings["data_files"])
    own = name == FOLDER and data_files is not None and str(data_files.resolve()) == settings.get("data_files")
    limited = settings.get("train_images") is not None or settings.get("validation_images") is not None
    metrics, skipped, said = evaluate_on(
        network,
        name,
        options.split,
        data_files=data_files,
        resolution=options.resolution,
        on_bad_image=options.on_bad_image,
        exif_orientation=options.exif_orientation or settings.get("exif_orientation", "apply"),
        trained_on=settings.get("data_sha256") if own and not limited else None,
    )
    for line in said:
        print(line, file=sys.stderr if options.json else sys.stdout)
    if options.json:
        content = {"weights": options.weights, "dataset": name, "split": options.split, **metrics, "skipped": skipped}
        print(json.dumps(content))
        return
    images = metrics.pop("examples")
    how = describe_preprocessing(network.preprocessing, options.resolution or network.resolution)
    print(f"{name} {options.split}, {images} images, preprocessing {how}")
    for note in network.notes:
        print(note)
    for line in skipped:
        print(f"skipped: {line}")
    if network.model.num_classes <= 5:
        metrics.pop("top5_accuracy", None)  # all of them are right
    for metric, value in metrics.items():
        print(
            f"{metric.replace('_', ' '):14} {value:.4f}"
            if metric == "loss"
            else f"{metric.replace('_', ' '):14} {value:.2%}"
        )
