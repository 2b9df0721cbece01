import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import encoded, prepare_imagenet_like, write_folder
from toy import MaskTargets, PointTargets, pointing_stream, write_images

from mnv2_jax.data.batch import Examples
from mnv2_jax.data.folder import read_folder
from mnv2_jax.data.preprocessing import PREPROCESSING, preprocess, read_image
from mnv2_jax.data.sources import FolderSource
from mnv2_jax.data.stream import StreamedDataset, load_stream
from mnv2_jax.data.transforms import RandomCrop, RandomShift
from mnv2_jax.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images") / "pets")


@pytest.fixture(scope="module")
def pets(folder):
    return load_stream("folder", folder, resolution=32)


@pytest.fixture(scope="module")
def imagenet_like(data_dir):
    prepare_imagenet_like(data_dir)
    return load_stream("imagenet2012", data_dir=data_dir, resolution=32)


def first_batches(dataset, count, batch_size=8, seed=0, step=0, position=None):
    values = dataset.train_data(batch_size).values(seed, step, position)
    return list(itertools.islice(values, count))


# --- The order -------------------------------------------------------------------------------------------


def test_a_stream_is_a_function_of_seed_and_step(pets):
    whole = first_batches(pets, 6)
    again = first_batches(pets, 6)
    for (one, place), (other, same) in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        assert place == same
    other = first_batches(pets, 1, seed=1)[0][0]
    assert not np.array_equal(other.images, whole[0][0].images)
    # From a checkpoint's position, and from the step only.
    for options in ({"position": whole[2][1]}, {}):
        later = first_batches(pets, 3, step=3, **options)
        for (one, _), (rest, _) in zip(whole[3:], later, strict=True):
            np.testing.assert_array_equal(one.images, rest.images)
            np.testing.assert_array_equal(one.targets, rest.targets)


def test_every_epoch_shows_every_example_once_in_another_order(tmp_path):
    files = [(write_one(tmp_path, index), index) for index in range(12)]
    dataset = load_stream("folder", write_folder(tmp_path / "unused"), resolution=8)
    dataset = dataclasses.replace(dataset, sources={"train": FolderSource(tmp_path, files)})
    labels = [pixels.targets for pixels, _ in first_batches(dataset, 6, batch_size=4)]
    epochs = np.concatenate(labels[:3]), np.concatenate(labels[3:])
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()


def write_one(folder, index):
    path = folder / f"{index}.jpg"
    path.write_bytes(encoded(index))
    return path


def test_accumulated_parts_are_runs_of_the_batch(pets, monkeypatch):
    """Two devices, two microbatches: devices get contiguous rows, and each has a piece of every microbatch."""
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    whole = first_batches(pets, 2)
    parts = list(itertools.islice(pets.train_data(8, accumulation=2).values(0, 0), 2))
    for (pixels, _), (found, _) in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(found.targets, pixels.targets[[0, 1, 4, 5, 2, 3, 6, 7]])
        np.testing.assert_array_equal(found.images, pixels.images[[0, 1, 4, 5, 2, 3, 6, 7]])


def test_processes_read_the_parts_of_the_same_batches(pets, monkeypatch):
    whole = [pixels for pixels, _ in first_batches(pets, 3)]
    parts = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        parts.append([pixels for pixels, _ in first_batches(pets, 3)])
    for pixels, one, other in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(pixels.images, np.concatenate([one.images, other.images]))
        np.testing.assert_array_equal(pixels.targets, np.concatenate([one.targets, other.targets]))


# --- Images ----------------------------------------------------------------------------------------------


def test_grey_sets_stay_grey(data_dir):
    """Digits as a stream keep one channel."""
    dataset = load_stream("digits", data_dir=data_dir)
    pixels = first_batches(dataset, 1)[0][0]
    assert pixels.images.shape == (8, 20, 20, 1)
    assert dataset.preprocessing == "keras"


def test_streamed_and_resident_evaluation_are_the_same(data_dir, digits):
    streamed = load_stream("digits", data_dir=data_dir)
    for one, other in zip(streamed.evaluation("test", 100), digits.evaluation("test", 100), strict=True):
        np.testing.assert_array_equal(one.targets, other.targets)
        np.testing.assert_array_equal(one.weights, other.weights)
        np.testing.assert_allclose(one.images[one.weights == 1], other.images[other.weights == 1], atol=1e-6)


def test_evaluation_crops_and_normalises_as_the_convention_does(imagenet_like, data_dir):
    assert imagenet_like.preprocessing == "tensorflow"
    pytorch = load_stream("imagenet2012", data_dir=data_dir, resolution=32, convention="pytorch")
    assert pytorch.preprocessing == "torchvision"
    for dataset in (imagenet_like, pytorch):
        batch = next(dataset.evaluation("test", 4))
        example = dataset.sources["test"][0]
        image = read_image("x", 3, example.content)
        np.testing.assert_array_equal(batch.images[0], preprocess(image, PREPROCESSING[dataset.preprocessing], 32))
    assert example.name == "train_1000.JPEG" or example.name.startswith("train_")


def test_imagenet_has_its_splits_and_classes(imagenet_like):
    assert imagenet_like.num_classes == 1000
    assert {name: len(source) for name, source in imagenet_like.sources.items()} == {
        "train": 198,
        "validation": 2,
        "test": 30,
    }
    assert sum(batch.weights.sum() for batch in imagenet_like.evaluation("test", 16)) == 30


def test_training_batches_are_normalised_inside_the_step(pets):
    data = pets.train_data(4)
    pixels = Examples(jnp.full((4, 32, 32, 3), 255, jnp.uint8), jnp.arange(4))
    batch = data.batch(pixels, jnp.int32(0), jnp.int32(0), jnp.arange(8, 12))
    np.testing.assert_allclose(batch.images, 1)
    np.testing.assert_array_equal(batch.index, [8, 9, 10, 11])


def test_a_data_set_is_known_by_its_files(folder, tmp_path):
    def fingerprint(path):
        return load_stream("folder", path).fingerprint()

    other = write_folder(tmp_path / "elsewhere")
    assert fingerprint(other) == fingerprint(folder)
    (other / "dog" / "000.jpg").rename(other / "dog" / "new.jpg")
    assert fingerprint(other) != fingerprint(folder)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_broken_image_among_good_ones(tmp_path, damage):
    folder = write_folder(tmp_path / "pets")
    _, files, _ = read_folder(folder)
    broken = [files["train"][5][0], files["test"][0][0]]
    for path in broken:
        content = path.read_bytes()
        path.write_bytes({"truncated": content[: len(content) // 2], "text": b"no image", "empty": b""}[damage])

    dataset = load_stream("folder", folder, resolution=16)
    with pytest.raises(UserError, match=f"{broken[0].name} cannot be read as an image"):
        first_batches(dataset, 4)
    with pytest.raises(UserError, match=f"{broken[1].name} cannot be read as an image"):
        list(dataset.evaluation("test", 4))

    dataset = load_stream("folder", folder, resolution=16, on_bad_image="skip")
    assert [pixels.images.shape for pixels, _ in first_batches(dataset, 4)] == [(8, 16, 16, 3)] * 4
    assert sum(batch.weights.sum() for batch in dataset.evaluation("test", 4)) == 3
    assert len(dataset.skipped) == 2
    assert all(any(said.startswith(str(path)) for said in dataset.skipped) for path in broken)
    again = load_stream("folder", folder, resolution=16, on_bad_image="skip")
    for (one, _), (other, _) in zip(first_batches(dataset, 4), first_batches(again, 4), strict=True):
        np.testing.assert_array_equal(one.images, other.images)


def test_the_orientation_in_exif_is_applied_or_ignored_in_every_split(folder):
    applied, ignored = (
        load_stream("folder", folder, resolution=16, exif_orientation=how) for how in ("apply", "ignore")
    )
    assert (
        applied.said[-1]
        == "photographs are rotated upright by their EXIF tag (--exif-orientation ignore keeps them as stored)"
    )
    assert ignored.said[-1] == "photographs are used as stored, whatever their EXIF tag says"
    for split in ("train", "validation", "test"):
        assert applied.sources[split][0].upright
        assert not ignored.sources[split].first(1)[0].upright


def test_train_images_limits_the_stream(folder, data_dir, imagenet_like):
    assert load_stream("folder", folder, train_images=10).train_images == 10
    assert load_stream("imagenet2012", data_dir=data_dir, train_images=10).train_images == 10
    with pytest.raises(UserError, match="--train-images must be from 1 to 32, the"):
        load_stream("folder", folder, train_images=33)


def test_validation_images_limits_the_validation_split(folder):
    dataset = load_stream("folder", folder, validation_images=3)
    assert {split: len(source) for split, source in dataset.sources.items()} == dict(train=32, validation=3, test=4)
    with pytest.raises(UserError, match="--validation-images must be from 1 to 4, the"):
        load_stream("folder", folder, validation_images=5)


def test_a_limited_folder_is_known_by_the_files_that_it_takes(tmp_path):
    folder = write_folder(tmp_path / "pets")
    whole, limited = (load_stream("folder", folder, train_images=count).fingerprint() for count in (None, 4))
    _, files, _ = read_folder(folder)
    files["train"][-1][0].unlink()
    assert load_stream("folder", folder).fingerprint() != whole
    assert load_stream("folder", folder, train_images=4).fingerprint() == limited


# --- Targets that move with the image --------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
def test_a_point_is_where_its_pixel_is(tmp_path, flip):
    dataset = pointing_stream(tmp_path, shift=3, flip=flip)
    seen = [examples for examples, _ in first_batches(dataset, 6)]
    for images, targets in seen:
        row, column = np.unravel_index(images[..., 0].reshape(len(images), -1).argmax(1), (12, 12))
        np.testing.assert_array_equal(targets, np.stack([row, column], -1) + 0.5)
    assert len({tuple(target) for _, targets in seen for target in targets}) > 32


class Fixed(RandomCrop):
    """Take the same crop of every image."""

    def box(self, generator, height, width):
        return 6, 3, 24, 36


@pytest.mark.parametrize("flip", [False, True])
def test_a_point_is_cropped_scaled_and_mirrored_with_its_image(tmp_path, flip):
    """A crop of 24 x 36 becomes 12 x 12, so a bright block of 2 x 3 pixels becomes the target pixel."""
    images, annotations = np.zeros((16, 40, 50, 3), np.uint8), []
    for index, image in enumerate(images):
        row, column = index % 12, index // 2 % 12
        image[6 + 2 * row : 8 + 2 * row, 3 + 3 * column : 6 + 3 * column] = 255
        annotations.append((6 + 2 * row + 0.5, 3 + 3 * column + 1))  # relative to pixel centers
    source = write_images(tmp_path, images, annotations)
    dataset = StreamedDataset("x", ("a", "b"), {"train": source}, (12, 12, 3), "keras", Fixed(), flip)
    dataset = dataclasses.replace(dataset, targets=PointTargets())
    mirrored = 0
    for examples, _ in first_batches(dataset, 4):
        found = [np.argwhere(image[..., 0] == 255).tolist() for image in examples.images]
        np.testing.assert_array_equal(np.array(found)[:, 0] + 0.5, examples.targets)
        mirrored += sum(target[1] > 8 for target in examples.targets)
    assert (mirrored > 0) == flip


def numbered(height, width):
    """Return an image whose red is the row and green the column, and a mask of the same numbers."""
    row, column = np.mgrid[:height, :width]
    image = np.stack([4 * row, 4 * column, np.full_like(row, 9)], -1).astype(np.uint8)
    return image, (row * 64 + column).astype(np.int32)


@pytest.mark.parametrize("crop", [RandomCrop(0.2), RandomShift(5)], ids=["crop", "shift"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_mask_is_cropped_scaled_moved_and_mirrored_with_its_image(tmp_path, crop, flip):
    """The mask takes the nearest pixel and the image is interpolated, so they differ by half a pixel at most."""
    source = write_images(tmp_path, *zip(*[numbered(40, 60), numbered(60, 30)] * 8, strict=True))
    dataset = StreamedDataset("x", ("a", "b"), {"train": source}, (32, 32, 3), "keras", crop, flip)
    dataset = dataclasses.replace(dataset, targets=MaskTargets(32))
    outside = 0
    for (images, targets), _ in first_batches(dataset, 4):
        mask = targets["mask"]
        assert (mask.shape, mask.dtype) == ((8, 32, 32), np.int32)
        inside = mask >= 0
        np.testing.assert_array_equal(images[..., 2] == 0, ~inside)
        for channel, numbers in ((0, mask // 64), (1, mask % 64)):
            assert np.abs(images[..., channel] / 4 - numbers)[inside].max() <= 0.5 + 0.5 / 4
        outside += (~inside).sum()
    assert (outside > 0) == isinstance(crop, RandomShift)


def test_evaluation_shows_targets_as_the_central_crop_does(tmp_path):
    source = write_images(tmp_path, *zip(*[numbered(40, 60), numbered(60, 30)] * 2, strict=True))
    for name in PREPROCESSING:
        dataset = StreamedDataset("x", ("a", "b"), {"test": source}, (32, 32, 3), name, RandomCrop(), True)
        batch = next(dataclasses.replace(dataset, targets=MaskTargets(32)).evaluation("test", 6))
        how = PREPROCESSING[name]
        pixels = (batch.images[:4] * np.float32(how.std) + np.float32(how.mean)) * 255 / 4
        mask = batch.targets["mask"]
        # TensorFlow 1 samples at pixel corners instead of centers; other filters smooth at the edges.
        for channel, numbers in ((0, mask // 64), (1, mask % 64)):
            assert np.abs(pixels[..., channel] - numbers[:4]).max() <= 1.6, name
        assert (mask[4:] == -1).all()
        np.testing.assert_array_equal(batch.weights, [1, 1, 1, 1, 0, 0])


def test_a_skipped_image_has_empty_targets(tmp_path):
    dataset = pointing_stream(tmp_path, on_bad_image="skip")
    (tmp_path / "test" / "003.png").write_bytes(b"no image")
    batch = next(dataset.evaluation("test", 5))
    np.testing.assert_array_equal(batch.weights, [1, 1, 1, 0, 1])
    np.testing.assert_array_equal(batch.targets[3], [0, 0])
    assert batch.targets.dtype == np.float32


# --- For another network ---------------------------------------------------------------------------------


def test_images_are_prepared_as_another_network_takes_them(pets):
    grey = pets.prepared_as("timm", 1)
    assert (grey.image_shape, grey.preprocessing) == ((32, 32, 1), "timm")
    assert grey.train_data(4).shapes().images.shape == (4, 32, 32, 1)
    example = pets.sources["test"][0]
    expected = preprocess(read_image("x", 1, example.content), PREPROCESSING["timm"], 32)
    np.testing.assert_array_equal(next(grey.evaluation("test", 4)).images[0], expected)
    assert first_batches(grey, 1)[0][0].images.shape == (8, 32, 32, 1)
    with pytest.raises(ValueError, match="images must have 1 or 3 channels, got 2"):
        pets.with_channels(2)


def test_images_are_moved_by_as_much_of_them_at_another_size(data_dir, pets):
    larger = load_stream("digits", data_dir=data_dir).at(40)
    assert (larger.image_shape, larger.crop) == ((40, 40, 1), RandomShift(4))
    assert (pets.at(16).image_shape, pets.at(16).crop) == ((16, 16, 3), pets.crop)
