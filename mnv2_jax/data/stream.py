"""Large sets: read, decoded and cropped by Grain's workers while the devices compute.

What a step sees is a function of the run's seed and the step's number: the order is a seeded permutation an
epoch, and an image's crop follows from its place in the whole stream. So the number of processes changes
nothing; each reads only its part of every batch. The position of the stream is a checkpoint's business.
"""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from mnv2_jax.data.batch import Batch, Normalization
from mnv2_jax.data.catalog import FOLDER, find_entry, image_key, label_names, prepared_builder
from mnv2_jax.data.jpeg import decode, read_frame
from mnv2_jax.data.names import OnBadImage
from mnv2_jax.data.preprocessing import PREPROCESSING, of_convention, preprocess, read_image
from mnv2_jax.data.resident import check_images, data_key, pad_batch
from mnv2_jax.data.sources import Example, FolderSource, Source, TfdsSource, read_folder
from mnv2_jax.errors import UserError

# Grain's threads are the parallelism; OpenCV's own would fight them for the cores.
cv2.setNumThreads(0)


class Pixels(NamedTuple):
    """What workers make of training examples: one, or a batch of them."""

    images: UInt8[Array | np.ndarray, "*n h w c"]
    labels: Int[Array | np.ndarray, "*n"]


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A random part of the image, scaled to a square (the inception crop).

    Attributes:
        smallest: share of the image's area that a crop has at least; the largest is all of it.
        aspect: range of the crop's width over its height.

    Source: tensorflow/models, research/slim/preprocessing/inception_preprocessing.py.
    """

    smallest: float = 0.05
    aspect: tuple[float, float] = (0.75, 1.33)

    def box(self, generator: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) in pixels; the whole image if ten tries do not fit into it."""
        for _ in range(10):
            area = generator.uniform(self.smallest, 1) * height * width
            aspect = generator.uniform(*self.aspect)
            rows, columns = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
            if 0 < rows <= height and 0 < columns <= width:
                top, left = generator.integers(height - rows + 1), generator.integers(width - columns + 1)
                return int(top), int(left), rows, columns
        return 0, 0, height, width


@dataclasses.dataclass(frozen=True)
class RandomShift:
    """The whole image scaled to a square, then moved by up to `pixels` in both directions, zeros moving in."""

    pixels: int


Crop = RandomCrop | RandomShift

PREFETCH_BYTES = 1 << 30
"""Of batches that wait for the devices."""


def crop_and_scale(
    example: Example,
    crop: RandomCrop,
    flip: bool,
    generator: np.random.Generator,
    output: UInt8[np.ndarray, "size size c"],
) -> None:
    """Decode, crop and scale in one go; of a JPEG only what the crop needs of its size and rows is decoded."""
    size, _, channels = output.shape
    frame = read_frame(example.content)
    image = None if frame else decode(example, channels)
    height, width = frame[:2] if frame else image.shape[:2]  # type: ignore[union-attr]
    top, left, rows, columns = crop.box(generator, height, width)
    divisor = 1
    if image is None:
        while divisor < 8 and min(rows, columns) >= 2 * divisor * size:
            divisor *= 2
        image = decode(example, channels, divisor, top + rows)
    part = image[top // divisor : -(-(top + rows) // divisor), left // divisor : -(-(left + columns) // divisor)]
    write(cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR), flip, output)


def write(image: UInt8[np.ndarray, "size size *c"], flip: bool, output: UInt8[np.ndarray, "size size c"]) -> None:
    """Put an image where it is meant to be, mirrored if asked; OpenCV mirrors faster than NumPy."""
    if flip:
        image = cv2.flip(image, 1)
    output[:] = image.reshape(output.shape)


def scale_and_shift(
    example: Example,
    shift: RandomShift,
    flip: bool,
    generator: np.random.Generator,
    output: UInt8[np.ndarray, "size size c"],
) -> None:
    """Decode, scale, and move."""
    size, _, channels = output.shape
    image = decode(example, channels)
    if image.shape[:2] != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR).reshape(output.shape)
    margin = shift.pixels
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)))
    top, left = generator.integers(2 * margin + 1, size=2)
    write(padded[top : top + size, left : left + size], flip, output)


@dataclasses.dataclass(frozen=True)
class Prepare:
    """From the numbers of a run of examples to their pixels, each by chances that follow from its place in the stream.

    All of a run goes into one array: a copy less than examples that are stacked.

    Attributes:
        source: the examples.
        seed: of the stream.
        crop, flip, size, channels: how they are varied.
        skipped: where to note a damaged image, in whose place the next one is taken; None to fail.
    """

    source: Source
    seed: int
    crop: Crop
    flip: bool
    size: int
    channels: int
    skipped: dict[str, None] | None = None

    def __call__(self, run: int, numbers: Int[np.ndarray, " n"]) -> Pixels:
        """The pixels of the examples of run number `run` of the stream, which are all of one length."""
        images = np.empty((len(numbers), self.size, self.size, self.channels), np.uint8)
        labels = np.empty(len(numbers), np.int32)
        for index, number in enumerate(numbers):
            generator = np.random.default_rng((self.seed, run * len(numbers) + index))
            labels[index] = self.one(int(number), generator, images[index])
        return Pixels(images, labels)

    def one(self, number: int, generator: np.random.Generator, output: UInt8[np.ndarray, "size size c"]) -> int:
        """Write the pixels of an example, and return its class."""
        flip = self.flip and bool(generator.integers(2))
        for tried in range(len(self.source)):
            try:
                example = self.source[(number + tried) % len(self.source)]
                if isinstance(self.crop, RandomCrop):
                    crop_and_scale(example, self.crop, flip, generator, output)
                else:
                    scale_and_shift(example, self.crop, flip, generator, output)
            except UserError as error:
                if self.skipped is None:
                    raise UserError(f"{error}; --on-bad-image skip goes on without it") from error
                self.skipped[str(error)] = None
                continue
            return example.label
        raise UserError("no image of the training split can be read")


def distort_color(
    key: Key[Array, ""], places: Int[Array, " n"], images: UInt8[Array, "n h w c"]
) -> Float[Array, "n h w c"]:
    """Brightness and saturation of each image varied, in either order, by chances of its own; values in 0 to 255.

    Source: `distort_color` of slim/preprocessing/inception_preprocessing.py in its fast mode: brightness by up to
    32 of 255, saturation by a factor from 0.5 to 1.5.
    """

    def brighten(image, delta):
        return image + delta

    def saturate(image, factor):
        # In HSV the value is the largest channel and stays; the others move away from it or closer, down to 0.
        value, low = image.max(-1, keepdims=True), image.min(-1, keepdims=True)
        most = jnp.where(value > low, value / jnp.maximum(value - low, 1e-6), factor)
        return value - jnp.minimum(factor, jnp.maximum(most, 0)) * (value - image)

    def distort(place, image):
        order_key, delta_key, factor_key = jax.random.split(jax.random.fold_in(key, place), 3)
        delta = jax.random.uniform(delta_key, minval=-32, maxval=32)
        factor = jax.random.uniform(factor_key, minval=0.5, maxval=1.5)
        one, other = saturate(brighten(image, delta), factor), brighten(saturate(image, factor), delta)
        return jnp.clip(jnp.where(jax.random.bernoulli(order_key), one, other), 0, 255)

    return jax.vmap(distort)(places, images.astype(jnp.float32))


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedDataset:
    """A set that is read while it is used.

    Attributes:
        name: of the set.
        class_names: in their order.
        sources: of the splits "train", "validation" and "test".
        image_shape: (height, width, channels) of the network's input.
        preprocessing: of evaluation, a name in `PREPROCESSING`; training is normalised alike.
        crop, flip, color: how training images are varied.
        on_bad_image: "stop" at a damaged image and name it, or "skip" it: training takes the next one in its place,
            evaluation counts one image less.
        skipped: which images were skipped so far, and why.
    """

    name: str
    class_names: tuple[str, ...]
    sources: Mapping[str, Source]
    image_shape: tuple[int, int, int]
    preprocessing: str
    crop: Crop
    flip: bool
    color: bool = False
    on_bad_image: OnBadImage = "stop"
    skipped: dict[str, None] = dataclasses.field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def train_images(self) -> int:
        """How many images there are to train on."""
        return len(self.sources["train"])

    @property
    def normalization(self) -> Normalization:
        """From uint8 to the network's input."""
        return PREPROCESSING[self.preprocessing].normalization

    def fingerprint(self) -> str:
        """Changes when other images are meant: by their number and names, which are read without the images."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for split, source in self.sources.items():
            digest.update(f"{split} {len(source)} {source.fingerprint()}".encode())
        return digest.hexdigest()

    def train_data(self, batch_size: int, accumulation: int = 1) -> "StreamedData":
        """Training batches of `batch_size` examples, of which a device takes `accumulation` parts."""
        return StreamedData(self, batch_size, accumulation)

    def evaluation(self, split: str, batch_size: int, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Every example of a split exactly once, in order, in batches of one shape, filled up with weight 0.

        Of `parts` processes, number `part` gets its share of every batch. A damaged image that is skipped counts
        nowhere.
        """
        source, share = self.sources[split], batch_size // parts
        size, _, channels = self.image_shape
        how = PREPROCESSING[self.preprocessing]

        def prepare(index: int) -> tuple[Float[np.ndarray, "h w c"], int, int]:
            try:
                example = source[index]
                image = preprocess(read_image(example.name, channels, example.content), how, size)
            except UserError as error:
                if self.on_bad_image == "stop":
                    raise UserError(f"{error}; --on-bad-image skip goes on without it") from error
                self.skipped[str(error)] = None
                return np.zeros(self.image_shape, np.float32), 0, 0
            return image, example.label, 1

        indices = [
            place
            for start in range(part * share, part * share + len(source), batch_size)
            for place in range(start, min(start + share, len(source)))
        ]
        if indices:
            examples = iter(grain.MapDataset.source(indices).map(prepare).to_iter_dataset(read_options(2 * share)))
        else:
            examples = iter(())
        for start in range(part * share, part * share + len(source), batch_size):
            count = max(0, min(share, len(source) - start))
            drawn = list(itertools.islice(examples, count))
            images = (
                np.stack([image for image, _, _ in drawn]) if drawn else np.zeros((0, *self.image_shape), np.float32)
            )
            batch = pad_batch(images, np.array([label for _, label, _ in drawn], np.int32), share)
            batch.weights[: len(drawn)] = [weight for _, _, weight in drawn]
            yield batch


def read_options(ahead: int) -> grain.ReadOptions:
    """As many threads as there are cores: OpenCV and Pillow let go of Python's lock while they decode."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, min(cores, ahead))
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=min(ahead, 2 * threads))


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedData:
    """Training batches out of a stream.

    Attributes:
        dataset: the set.
        batch_size: of the whole batch, over all processes.
        accumulation: parts of a device, see `device_places`.
    """

    dataset: StreamedDataset
    batch_size: int
    accumulation: int = 1
    shared = False

    def shapes(self) -> Pixels:
        """Of a batch."""
        size = self.batch_size
        return jax.eval_shape(
            lambda: Pixels(jnp.zeros((size, *self.dataset.image_shape), jnp.uint8), jnp.zeros(size, jnp.int32))
        )

    def values(self, seed: int, step: int, position: Any = None) -> Iterator[tuple[Pixels, Any]]:
        """This process's part of every batch from `step` on, and the position of the stream behind it."""
        part, parts = jax.process_index(), jax.process_count()
        dataset = self.dataset
        size, _, channels = dataset.image_shape
        skipped = dataset.skipped if dataset.on_bad_image == "skip" else None
        prepare = Prepare(dataset.sources["train"], seed, dataset.crop, dataset.flip, size, channels, skipped)
        stream = (
            grain.MapDataset.range(len(dataset.sources["train"]))
            .seed(seed)
            .shuffle()
            .repeat()
            # Every accumulated part of a batch is one piece of the stream, and each process takes a run of it.
            .batch(self.batch_size // parts // self.accumulation, drop_remainder=True)
            .map_with_index(prepare)[part::parts]
        )
        if self.accumulation > 1:
            stream = stream.batch(self.accumulation)
        # A thread makes a batch: as many at once as there are cores and a gibibyte holds.
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in self.shapes()) // parts
        batches = iter(stream.to_iter_dataset(read_options(max(2, PREFETCH_BYTES // size))))
        batches.set_state(position or {"next_index": step})
        for pixels in batches:
            yield Pixels(*map(self._by_device, pixels)), batches.get_state()

    def _by_device(self, array: np.ndarray) -> np.ndarray:
        """From (parts, examples, ...) to examples in the order of devices, each with all of its parts."""
        if self.accumulation == 1:
            return array
        shape = array.shape[2:]
        array = array.reshape(self.accumulation, jax.local_device_count(), -1, *shape).swapaxes(0, 1)
        return array.reshape(-1, *shape)

    def batch(self, value: Pixels, seed: Int[Array, ""], step: Int[Array, ""], places: Int[Array, " n"]) -> Batch:
        """Normalise a device's part, after its colours are varied."""
        images = jnp.asarray(value.images)
        varied: Array = images
        if self.dataset.color and images.shape[-1] == 3:
            varied = distort_color(jax.random.fold_in(data_key(seed), step), places, images)
        return Batch(self.dataset.normalization(varied), value.labels, jnp.ones(len(places)), places)


def load_stream(
    name: str,
    data_files: Path | None = None,
    data_dir: Path | None = None,
    train_images: int | None = None,
    resolution: int | None = None,
    convention: str = "tensorflow",
    smallest_crop: float = 0.05,
    color: bool = False,
    on_bad_image: OnBadImage = "stop",
) -> StreamedDataset:
    """Open a data set for streaming, prepared if necessary.

    Args:
        name, data_files, data_dir, train_images, resolution: as in `resident.load`; "folder" is the user's own
            `data_files`, see `read_folder`.
        convention: whose normalisation and central crop images of many sizes get.
        smallest_crop, color: how training varies them; see `RandomCrop` and `distort_color`.
        on_bad_image: see `StreamedDataset`.

    Raises:
        UserError: see `prepared_builder` and `read_folder`; or if there are fewer training images.
    """
    varied = of_convention(convention)
    if name == FOLDER:
        if data_files is None:
            raise UserError("--dataset folder needs --data-files DIR, a folder with a subfolder of images a class")
        class_names, files = read_folder(data_files)
        if train_images is not None:
            check_images("--train-images", train_images, len(files["train"]), str(data_files))
            files["train"] = files["train"][:train_images]
        sources: dict[str, Source] = {split: FolderSource(data_files, inside) for split, inside in files.items()}
        side = resolution or 224
        return StreamedDataset(
            str(data_files),
            class_names,
            sources,
            (side, side, 3),
            varied,
            RandomCrop(smallest_crop),
            True,
            color,
            on_bad_image,
        )
    entry = find_entry(name, data_dir)
    builder = prepared_builder(name, data_files, data_dir)
    splits = {"train": entry.train, "validation": entry.validation, "test": entry.test}
    sources = {split: TfdsSource(builder, tfds_split) for split, tfds_split in splits.items()}
    if train_images is not None:
        check_images("--train-images", train_images, len(sources["train"]), name)
        sources["train"] = TfdsSource(builder, entry.train, train_images)
    channels = 1 if builder.info.features[image_key(builder)].shape[-1] == 1 else 3
    side = resolution or entry.image_size
    crop: Crop = RandomCrop(smallest_crop) if entry.shift is None else RandomShift(entry.shift)
    preprocessing = varied if entry.shift is None else "keras"
    return StreamedDataset(
        name,
        label_names(builder),
        sources,
        (side, side, channels),
        preprocessing,
        crop,
        entry.flip,
        color and entry.shift is None,
        on_bad_image,
    )
