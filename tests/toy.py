"""Toy tasks whose targets move with the image: the position of the brightest pixel, and a value per pixel."""

import dataclasses
import io

import jax.numpy as jnp
import numpy as np
from PIL import Image

from mnv2_jax.data.batch import Examples
from mnv2_jax.data.resident import Augmentation, Dataset
from mnv2_jax.data.sources import FolderSource
from mnv2_jax.data.stream import StreamedDataset
from mnv2_jax.data.transforms import RandomShift
from mnv2_jax.errors import UserError
from mnv2_jax.tasks.metric import LOSS, Metric


@dataclasses.dataclass(frozen=True)
class PointTargets:
    """Center of a pixel as (row, column) in input pixels; the annotation is the pixel's two indices."""

    def encode(self, annotation, view):
        return view.move_points(np.asarray(annotation) + 0.5).astype(np.float32)

    def move(self, targets, move, resolution):
        return move.move_points(targets, resolution)

    def empty(self):
        return np.zeros(2, np.float32)


@dataclasses.dataclass(frozen=True)
class MaskTargets:
    """A number for every pixel of a `side` x `side` input, in a dictionary, as in tasks with several targets."""

    side: int

    def encode(self, annotation, view):
        return {"mask": view.move_mask(annotation, outside=-1)}

    def move(self, targets, move, resolution):
        return {"mask": move.move_mask(targets["mask"], outside=-1)}

    def empty(self):
        return {"mask": np.full((self.side, self.side), -1, np.int32)}


class MedianDistance:
    """A metric that is not a ratio of sums."""

    def predictions(self, outputs):
        return outputs

    def metrics(self, batches):
        distances = [np.linalg.norm(outputs - targets, axis=-1)[weights > 0] for outputs, targets, weights in batches]
        return {"median_distance": float(np.median(np.concatenate(distances)))}


@dataclasses.dataclass(frozen=True)
class Pointing:
    """Point at the brightest pixel with two outputs. The loss is a mean over coordinates."""

    name = "pointing"
    targets = PointTargets()
    normalizer = "coordinates"
    metric = Metric("distance", "distance in pixels", higher_is_better=False, percent=False)
    others = (LOSS,)
    evaluator = MedianDistance()

    def zeros(self):
        scalars = {name: np.zeros((), np.float32) for name in ("examples", "coordinates", "loss", "distance")}
        return {**scalars, "errors": np.zeros(2, np.float32)}

    def sums(self, outputs, batch, train):
        errors = jnp.abs(outputs - batch.targets) * batch.weights[:, None]
        return {
            "examples": jnp.sum(batch.weights),
            "coordinates": 2 * jnp.sum(batch.weights),
            "loss": jnp.sum(errors**2),
            "distance": jnp.sum(jnp.sqrt(jnp.sum(errors**2, axis=-1))),
            "errors": jnp.sum(errors, axis=0),
        }

    def metrics(self, sums):
        if not sums["examples"]:
            raise UserError("no example counts")
        row, column = sums["errors"] / sums["examples"]
        return {
            "loss": float(sums["loss"] / sums["coordinates"]),
            "distance": float(sums["distance"] / sums["examples"]),
            "row_error": float(row),
            "column_error": float(column),
        }


def bright_images(count, side=12, margin=3, seed=0):
    """Return dim noise with a bright pixel at least `margin` pixels from the edge, and that pixel's (row, column)."""
    generator = np.random.default_rng(seed)
    images = generator.integers(1, 100, (count, side, side, 1)).astype(np.uint8)
    positions = generator.integers(margin, side - margin, (count, 2))
    images[np.arange(count), positions[:, 0], positions[:, 1]] = 255
    return images, positions


def pointing_dataset(train=64, side=12, shift=2, flip=True):
    """Return a resident data set for `Pointing`."""

    def split(count, seed):
        images, positions = bright_images(count, side, seed=seed)
        return Examples(images, positions.astype(np.float32) + 0.5)

    return Dataset(
        name="bright",
        class_names=("row", "column"),
        train=split(train, 0),
        validation=split(20, 1),
        test=split(30, 2),
        augmentation=Augmentation(shift, flip),
        targets=PointTargets(),
    )


def write_images(folder, images, annotations):
    """Write PNG files to a folder and return them as a source."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, (image, annotation) in enumerate(zip(images, annotations, strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
        path = folder / f"{index:03}.png"
        path.write_bytes(buffer.getvalue())
        files.append((path, annotation))
    return FolderSource(folder, files)


def pointing_stream(folder, train=32, side=12, shift=2, flip=True, **options):
    """Return a streamed data set for `Pointing`, with its images in a folder."""
    counts = {"train": train, "validation": 10, "test": 15}
    sources = {
        split: write_images(folder / split, *bright_images(count, side, seed=seed))
        for seed, (split, count) in enumerate(counts.items())
    }
    return StreamedDataset(
        "bright",
        ("row", "column"),
        sources,
        (side, side, 1),
        "keras",
        RandomShift(shift),
        flip,
        targets=PointTargets(),
        **options,
    )
