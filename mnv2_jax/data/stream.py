"""Large data sets: read, decoded and cropped by Grain's threads while the devices compute.

The examples of a step depend only on the run's seed and the step: the order is a seeded permutation per epoch, and an
image's crop is seeded by its position in the whole stream. So the number of processes changes nothing; each process
reads only its part of every batch. The position in the stream is stored in checkpoints.
"""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from mnv2_jax.data.batch import (
    CLASSES,
    Batch,
    ClassTargets,
    Examples,
    Normalization,
    Targets,
    data_key,
    stack_targets,
)
from mnv2_jax.data.catalog import FOLDER, Entry, ExifOrientation, OnBadImage, describe_orientation
from mnv2_jax.data.folder import printable, read_folder
from mnv2_jax.data.prepare import check_images, find_entry, image_key, label_names, prepared_builder
from mnv2_jax.data.preprocessing import (
    Preprocessing,
    find_preprocessing,
    of_convention,
    preprocess,
    read_image,
    view_of,
)
from mnv2_jax.data.rand_augment import RandAugment
from mnv2_jax.data.sources import FolderSource, Source, TfdsSource
from mnv2_jax.data.transforms import Crop, RandomCrop, RandomShift, crop_and_scale, distort_color, scale_and_shift
from mnv2_jax.errors import UserError

PREFETCH_BYTES = 1 << 30
"""Memory for batches that are prefetched, in bytes."""


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Decodes and augments a chunk of consecutive examples, each with a generator seeded by its stream position.

    A chunk is written into one array, which saves the copy that stacking examples would take.

    Attributes:
        source: the examples.
        seed: random seed of the stream.
        crop, flip, size, channels: augmentation, and shape of the output.
        targets: how annotations are encoded.
        rand_augment: augmentation after the crop.
        skipped: where to record damaged images, which are replaced by the next one; None to fail instead.
    """

    source: Source
    seed: int
    crop: Crop
    flip: bool
    size: int
    channels: int
    targets: Targets = CLASSES
    rand_augment: RandAugment = RandAugment()
    skipped: dict[str, None] | None = None

    def __call__(self, run: int, numbers: Int[np.ndarray, " n"]) -> Examples:
        """Return the examples of chunk number `run` of the stream; all chunks have the same length."""
        images = np.empty((len(numbers), self.size, self.size, self.channels), np.uint8)
        targets = []
        for index, number in enumerate(numbers):
            generator = np.random.default_rng((self.seed, run * len(numbers) + index))
            targets.append(self.one(int(number), generator, images[index]))
        return Examples(images, stack_targets(targets))

    def one(self, number: int, generator: np.random.Generator, output: UInt8[np.ndarray, "size size c"]) -> PyTree:
        """Write the pixels of an example to `output`, and return its targets."""
        flip = self.flip and bool(generator.integers(2))
        for tried in range(len(self.source)):
            try:
                example = self.source[(number + tried) % len(self.source)]
                if isinstance(self.crop, RandomCrop):
                    view = crop_and_scale(example, self.crop, flip, generator, output)
                else:
                    view = scale_and_shift(example, self.crop, flip, generator, output)
                self.rand_augment(output, generator)
                return self.targets.encode(example.annotation, view)
            except UserError as error:
                if self.skipped is None:
                    raise UserError(f"{error}; use --on-bad-image skip to continue without it") from error
                self.skipped[str(error)] = None
        raise UserError("no image of the training split can be read")


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedDataset:
    """A data set that is read while it is used.

    Attributes:
        name: name of the set.
        class_names: by class index.
        sources: sources of the splits "train", "validation" and "test", or of "all".
        image_shape: (height, width, channels) of the network's input.
        preprocessing: for evaluation, a name in `PREPROCESSING` or a `Preprocessing`; training normalises the same.
        crop, flip, color, rand_augment: augmentation of the training images.
        on_bad_image: "stop" at a damaged image and name it, or "skip" it: training takes the next one instead,
            evaluation counts one image fewer.
        targets: how the sources' annotations are encoded.
        skipped: messages that name the images skipped so far.
        said: see `batch.Dataset`.
    """

    name: str
    class_names: tuple[str, ...]
    sources: Mapping[str, Source]
    image_shape: tuple[int, int, int]
    preprocessing: str | Preprocessing
    crop: Crop
    flip: bool
    color: bool = False
    rand_augment: RandAugment = RandAugment()
    on_bad_image: OnBadImage = "stop"
    targets: Targets = CLASSES
    skipped: dict[str, None] = dataclasses.field(default_factory=dict)
    said: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rand_augment.operations and not isinstance(self.targets, ClassTargets):
            raise UserError(
                "--rand-augment moves the content of images, so only class targets stay valid; remove --rand-augment"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def train_images(self) -> int:
        """Number of training images."""
        return self.count("train")

    def count(self, split: str) -> int:
        """Return the number of images in a split; 0 if there is no such split."""
        return len(self.sources.get(split, ()))

    @property
    def normalization(self) -> Normalization:
        """The normalisation from uint8 to the network's input."""
        return find_preprocessing(self.preprocessing).normalization

    def at(self, resolution: int) -> "StreamedDataset":
        """Return the data set at another resolution; the largest training shift scales with it."""
        side, _, channels = self.image_shape
        crop = self.crop
        if isinstance(crop, RandomShift):
            crop = RandomShift(round(crop.pixels * resolution / side))
        return dataclasses.replace(self, image_shape=(resolution, resolution, channels), crop=crop)

    def with_channels(self, channels: int) -> "StreamedDataset":
        """Return the data set in RGB (3) or greyscale (1).

        Raises:
            ValueError: for any other number of channels.
        """
        if channels not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels, got {channels}")
        return dataclasses.replace(self, image_shape=(*self.image_shape[:2], channels))

    def prepared_as(self, preprocessing: str | Preprocessing, channels: int) -> "StreamedDataset":
        """Return the data set for another network: cropped and normalised by its preprocessing, greyscale or RGB."""
        return dataclasses.replace(self.with_channels(channels), preprocessing=preprocessing)

    def fingerprint(self) -> str:
        """Return a hash of the class names and of each split's size and fingerprint; no image is read."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for split, source in self.sources.items():
            digest.update(f"{split} {len(source)} {source.fingerprint()}".encode())
        return digest.hexdigest()

    def train_data(self, batch_size: int, accumulation: int = 1) -> "StreamedData":
        """Return training batches of `batch_size` examples, `accumulation` microbatches per device."""
        return StreamedData(self, batch_size, accumulation)

    def evaluation(self, split: str, batch_size: int, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Yield every example exactly once, in order, in batches of one shape; the last is padded with weight 0.

        Damaged images that are skipped also get weight 0.

        Args:
            split: a key of `sources`.
            batch_size: size of the global batch.
            process, processes: index of the process whose part of every batch is yielded, and number of processes.
        """
        source, share = self.sources[split], batch_size // processes
        starts = range(process * share, process * share + len(source), batch_size)
        numbers = [number for start in starts for number in range(start, min(start + share, len(source)))]
        examples: Iterator = iter(())
        if numbers:
            prepare = grain.MapDataset.source(numbers).map(lambda number: self._evaluated(source, number))
            examples = iter(prepare.to_iter_dataset(read_options(2 * share)))
        for start in starts:
            drawn = list(itertools.islice(examples, max(0, min(share, len(source) - start))))
            drawn += [self._uncounted()] * (share - len(drawn))
            images, targets, weights = zip(*drawn, strict=True)
            index = np.arange(share, dtype=np.int32)
            yield Batch(np.stack(images), stack_targets(targets), np.array(weights, np.float32), index)

    def _evaluated(self, source: Source, number: int) -> tuple[Float[np.ndarray, "h w c"], PyTree, float]:
        """Return (image, targets, weight) of an example."""
        size, _, channels = self.image_shape
        how = find_preprocessing(self.preprocessing)
        try:
            example = source[number]
            image = read_image(example.name, channels, example.content, example.upright)
            targets = self.targets.encode(example.annotation, view_of(image, how, size))
            return preprocess(image, how, size), targets, 1.0
        except UserError as error:
            if self.on_bad_image == "stop":
                raise UserError(f"{error}; use --on-bad-image skip to continue without it") from error
            self.skipped[str(error)] = None
            return self._uncounted()

    def _uncounted(self) -> tuple[Float[np.ndarray, "h w c"], PyTree, float]:
        """Return (image, targets, weight) of a padding example."""
        return np.zeros(self.image_shape, np.float32), self.targets.empty(), 0.0


def read_options(ahead: int) -> grain.ReadOptions:
    """Use a thread per core, at most `ahead`: OpenCV and Pillow release the GIL while they decode."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, min(cores, ahead))
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=min(ahead, 2 * threads))


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedData:
    """Training batches from a stream.

    Attributes:
        dataset: the data set.
        batch_size: size of the global batch, over all processes.
        accumulation: microbatches per device; every microbatch is a contiguous part of the global batch.
    """

    dataset: StreamedDataset
    batch_size: int
    accumulation: int = 1
    shared = False

    def shapes(self) -> Examples:
        """Return the shapes of a global batch."""
        example = Examples(np.zeros(self.dataset.image_shape, np.uint8), self.dataset.targets.empty())
        return jax.eval_shape(
            lambda: jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.batch_size, *np.shape(leaf))), example)
        )

    def values(self, seed: int, step: int, position: Any = None) -> Iterator[tuple[Examples, Any]]:
        """Yield this process's part of every batch from `step` on, and the stream's position after it."""
        process, processes = jax.process_index(), jax.process_count()
        dataset = self.dataset
        size, _, channels = dataset.image_shape
        skipped = dataset.skipped if dataset.on_bad_image == "skip" else None
        how = dataset.crop, dataset.flip, size, channels, dataset.targets, dataset.rand_augment
        prepare = Prepare(dataset.sources["train"], seed, *how, skipped)
        stream = (
            grain.MapDataset.range(len(dataset.sources["train"]))
            .seed(seed)
            .shuffle()
            .repeat()
            # A microbatch of all processes is a contiguous piece of the stream; each process takes one chunk of it.
            .batch(self.batch_size // processes // self.accumulation, drop_remainder=True)
            .map_with_index(prepare)[process::processes]
        )
        if self.accumulation > 1:
            stream = stream.batch(self.accumulation)
        # Each thread makes one batch; prefetching is limited by the cores and by PREFETCH_BYTES.
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.shapes())) // processes
        batches = iter(stream.to_iter_dataset(read_options(max(2, PREFETCH_BYTES // size))))
        batches.set_state(position or {"next_index": step})
        for examples in batches:
            yield jax.tree.map(self._by_device, examples), batches.get_state()

    def _by_device(self, array: np.ndarray) -> np.ndarray:
        """Reorder (microbatches, examples, ...) to examples by device, each device with all of its microbatches."""
        if self.accumulation == 1:
            return array
        shape = array.shape[2:]
        array = array.reshape(self.accumulation, jax.local_device_count(), -1, *shape).swapaxes(0, 1)
        return array.reshape(-1, *shape)

    def batch(self, value: Examples, seed: Int[Array, ""], step: Int[Array, ""], index: Int[Array, " n"]) -> Batch:
        """Return a device's part of the batch, with colours distorted if asked for, then normalised."""
        images = jnp.asarray(value.images)
        varied: Array = images
        if self.dataset.color and images.shape[-1] == 3:
            varied = distort_color(jax.random.fold_in(data_key(seed), step), index, images)
        return Batch(self.dataset.normalization(varied), value.targets, jnp.ones(len(index)), index)


def load_stream(
    name: str,
    data_files: Path | None = None,
    data_dir: Path | None = None,
    train_images: int | None = None,
    validation_images: int | None = None,
    resolution: int | None = None,
    convention: str = "tensorflow",
    smallest_crop: float = 0.05,
    color: bool = False,
    rand_augment: RandAugment = RandAugment(),  # noqa: B008 (frozen)
    on_bad_image: OnBadImage = "stop",
    targets: Targets = CLASSES,
    exif_orientation: ExifOrientation = "apply",
    whole: bool = False,
) -> StreamedDataset:
    """Open a data set for streaming; prepare it first if necessary.

    Args:
        name, data_files, data_dir, train_images, validation_images, resolution, targets: as in `resident.load`; the
            name "folder" means the user's own images in `data_files`, see `read_folder`.
        convention: "tensorflow" or "pytorch", whose preprocessing is used for sets with random crops.
        smallest_crop, color: augmentation of sets with random crops; see `RandomCrop` and `distort_color`.
        rand_augment: augmentation of any set.
        on_bad_image: see `StreamedDataset`.
        exif_orientation: whether to apply the EXIF orientation.
        whole: take all images as one split, "all".

    Raises:
        UserError: as in `prepared_builder` and `read_folder`, or if a split has fewer images than asked for.
    """
    sources: Mapping[str, FolderSource | TfdsSource]
    said: tuple[str, ...] = ()
    size, channels, shift, flip = 224, 3, None, True
    upright = exif_orientation == "apply"
    if name == FOLDER:
        class_names, sources, said = _folder_sources(data_files, upright, whole)
        name = printable(data_files or name)
    else:
        entry = find_entry(name, data_dir)
        builder = prepared_builder(name, data_files, data_dir)
        sources = _tfds_sources(builder, entry, upright, whole)
        class_names, size, shift, flip = label_names(builder), entry.image_size, entry.shift, entry.flip
        channels = 1 if builder.info.features[image_key(builder)].shape[-1] == 1 else 3
    sources = _limited(sources, {"train": train_images, "validation": validation_images}, name)
    said = said if shift is not None else (*said, describe_orientation(exif_orientation))
    return StreamedDataset(
        name,
        class_names,
        sources,
        (resolution or size, resolution or size, channels),
        of_convention(convention) if shift is None else "keras",
        RandomCrop(smallest_crop) if shift is None else RandomShift(shift),
        flip,
        color and shift is None,
        rand_augment,
        on_bad_image,
        targets,
        said=said,
    )


def _limited(
    sources: Mapping[str, FolderSource | TfdsSource], wanted: Mapping[str, int | None], name: str
) -> dict[str, FolderSource | TfdsSource]:
    """Return the sources, some of them limited to their first images."""
    limited = dict(sources)
    for split, count in wanted.items():
        if count is not None and len(sources[split]):  # a folder may hold test images only
            check_images(f"--{split}-images", count, len(sources[split]), name)
            limited[split] = sources[split].first(count)
    return limited


def _folder_sources(
    data_files: Path | None, upright: bool, whole: bool
) -> tuple[tuple[str, ...], dict[str, FolderSource], tuple[str, ...]]:
    """Return (class names, sources by split, lines for the user) of the user's own images."""
    if data_files is None:
        raise UserError("--dataset folder needs --data-files DIR, a folder with one subfolder of images per class")
    class_names, files, said = read_folder(data_files, whole)
    return class_names, {split: FolderSource(data_files, inside, upright) for split, inside in files.items()}, said


def _tfds_sources(builder: Any, entry: Entry, upright: bool, whole: bool) -> dict[str, TfdsSource]:
    splits = {"train": entry.train, "validation": entry.validation, "test": entry.test}
    if whole:
        splits = {"all": "+".join(splits.values())}
    return {split: TfdsSource(builder, inside, upright=upright) for split, inside in splits.items()}
