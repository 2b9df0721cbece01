import dataclasses
import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from samples import encoded, prepare_imagenet_like, write_folder

from mnv2_jax.data import stream
from mnv2_jax.data.preprocessing import PREPROCESSING, preprocess, read_image
from mnv2_jax.data.sources import Example, FolderSource, read_folder
from mnv2_jax.data.stream import Pixels, RandomCrop, crop_and_scale, distort_color, load_stream
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
    # From a checkpoint's position, and from the step alone.
    for options in ({"position": whole[2][1]}, {}):
        later = first_batches(pets, 3, step=3, **options)
        for (one, _), (rest, _) in zip(whole[3:], later, strict=True):
            np.testing.assert_array_equal(one.images, rest.images)
            np.testing.assert_array_equal(one.labels, rest.labels)


def test_every_epoch_shows_every_example_once_in_another_order(tmp_path):
    files = [(write_one(tmp_path, index), index) for index in range(12)]
    dataset = load_stream("folder", write_folder(tmp_path / "unused"), resolution=8)
    dataset = dataclasses.replace(dataset, sources={"train": FolderSource(tmp_path, files)})
    labels = [pixels.labels for pixels, _ in first_batches(dataset, 6, batch_size=4)]
    epochs = np.concatenate(labels[:3]), np.concatenate(labels[3:])
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()


def write_one(folder, index):
    path = folder / f"{index}.jpg"
    path.write_bytes(encoded(index))
    return path


def test_accumulated_parts_are_runs_of_the_batch(pets, monkeypatch):
    """Two devices with two parts each: rows go to devices in runs, and a device has a run of every part."""
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    whole = first_batches(pets, 2)
    parts = list(itertools.islice(pets.train_data(8, accumulation=2).values(0, 0), 2))
    for (pixels, _), (found, _) in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(found.labels, pixels.labels[[0, 1, 4, 5, 2, 3, 6, 7]])
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
        np.testing.assert_array_equal(pixels.labels, np.concatenate([one.labels, other.labels]))


def cropped(example, crop, size):
    """A crop in RGB."""
    output = np.zeros((size, size, 3), np.uint8)
    crop_and_scale(example, crop, False, np.random.default_rng(0), output)
    return output


# --- Images ----------------------------------------------------------------------------------------------


def test_random_crops_have_the_areas_and_shapes_that_they_should():
    crop, generator = RandomCrop(0.05, (0.75, 1.33)), np.random.default_rng(0)
    boxes = np.array([crop.box(generator, 300, 400) for _ in range(2000)])
    top, left, rows, columns = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + rows <= 300).all()
    assert (left + columns <= 400).all()
    area, aspect = rows * columns / 120_000, columns / rows
    assert 0.049 < area.min() < 0.07
    assert 0.9 < area.max() <= 1
    assert aspect.min() > 0.73
    assert aspect.max() < 1.36
    # A strip that no such crop fits into is taken whole.
    assert RandomCrop(0.9).box(generator, 10, 1000) == (0, 0, 10, 1000)


def test_a_large_image_is_decoded_at_a_fraction_of_its_size(monkeypatch):
    """Half, where the crop is twice the target; and what comes out is the same picture."""
    smooth = np.linspace(0, 255, 512).astype(np.uint8)
    pixels = np.stack([np.tile(smooth, (512, 1)), np.tile(smooth[:, None], (1, 512)), np.full((512, 512), 90)], -1)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=95)
    example = Example(buffer.getvalue(), 0, "large")
    divisors, decode = [], stream.decode
    monkeypatch.setattr(stream, "decode", lambda e, c, d, rows: divisors.append(d) or decode(e, c, d, rows))

    class Fixed(RandomCrop):
        def box(self, generator, height, width):
            return 64, 128, 256, 256

    small = cropped(example, Fixed(), 64)
    assert divisors == [4]
    expected = np.asarray(Image.fromarray(pixels.astype(np.uint8)[64:320, 128:384]).resize((64, 64)))
    assert np.abs(small.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_other_kinds_of_images(kind):
    example = Example(encoded(3, kind=kind), 0, "image")
    image = cropped(example, RandomCrop(1.0, (1.2, 1.2)), 40)
    expected = np.asarray(read_image("image", 3, example.content).resize((40, 40), Image.Resampling.BILINEAR))
    assert image.shape == (40, 40, 3)
    assert np.abs(image.astype(int) - expected).mean() < 12


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_other_modes_of_images(mode):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (204, 102, 51)).convert(mode).save(buffer, "JPEG" if mode in ("L", "CMYK") else "PNG")
    image = cropped(Example(buffer.getvalue(), 0, "x"), RandomCrop(), 8)
    expected = {"L": (127, 127, 127)}.get(mode, (204, 102, 51))
    np.testing.assert_allclose(image.reshape(-1, 3), np.broadcast_to(expected, (64, 3)), atol=8)


def test_grey_sets_stay_grey(data_dir):
    """Digits as a stream: the same classes, scaled and moved."""
    dataset = load_stream("digits", data_dir=data_dir)
    pixels = first_batches(dataset, 1)[0][0]
    assert pixels.images.shape == (8, 28, 28, 1)
    assert dataset.preprocessing == "keras"


def test_streamed_and_resident_evaluation_are_the_same(data_dir, digits):
    streamed = load_stream("digits", data_dir=data_dir)
    for one, other in zip(streamed.evaluation("test", 100), digits.evaluation("test", 100), strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
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
    pixels = Pixels(jnp.full((4, 32, 32, 3), 255, jnp.uint8), jnp.arange(4))
    batch = data.batch(pixels, jnp.int32(0), jnp.int32(0), jnp.arange(8, 12))
    np.testing.assert_allclose(batch.images, 1)
    np.testing.assert_array_equal(batch.places, [8, 9, 10, 11])


def test_colors_are_varied_within_the_papers_bounds():
    grey = jnp.full((300, 1, 1, 3), 100, jnp.uint8)
    varied = distort_color(jax.random.key(0), jnp.arange(300), grey)
    # Grey has no saturation to change: brightness alone, the same in all channels.
    assert float(jnp.abs(varied - varied[..., :1]).max()) < 1e-3
    assert 67.9 < float(varied.min()) < 72
    assert 128 < float(varied.max()) < 132.1
    red = jnp.tile(jnp.array([200, 100, 100], jnp.uint8), (300, 1, 1, 1))
    varied = distort_color(jax.random.key(1), jnp.arange(300), red)
    spread = (varied[..., 0] - varied[..., 1]).ravel()
    assert 49 < float(spread.min()) < 60
    assert 140 < float(spread.max()) < 151
    part = distort_color(jax.random.key(1), jnp.arange(5, 9), red[:4])
    np.testing.assert_array_equal(part, varied[5:9])


# --- Folders ---------------------------------------------------------------------------------------------


def test_a_folder_is_split_by_names_alone(folder):
    classes, files = read_folder(folder)
    assert classes == ("cat", "dog")
    assert {split: len(inside) for split, inside in files.items()} == {"train": 32, "validation": 4, "test": 4}
    assert len({path for inside in files.values() for path, _ in inside}) == 40
    assert all(classes[label] == path.parent.name for inside in files.values() for path, label in inside)
    # The first images are of all classes.
    assert [label for _, label in files["train"][:4]] == [0, 1, 0, 1]
    assert read_folder(folder)[1] == files


def test_folders_that_are_split_already(tmp_path):
    for name in ("train", "val"):
        write_folder(tmp_path / "two" / name, images=10)
    _, files = read_folder(tmp_path / "two")
    assert {split: len(inside) for split, inside in files.items()} == {"train": 18, "validation": 2, "test": 20}
    for name in ("train", "validation", "test"):
        write_folder(tmp_path / "three" / name, images=3)
    _, files = read_folder(tmp_path / "three")
    assert {split: len(inside) for split, inside in files.items()} == {"train": 6, "validation": 6, "test": 6}


def test_a_folder_with_a_training_part_only(tmp_path):
    write_folder(tmp_path / "one" / "train", images=10)
    (tmp_path / "one" / "notes").mkdir()
    _, files = read_folder(tmp_path / "one")
    assert {split: len(inside) for split, inside in files.items()} == {"train": 16, "validation": 2, "test": 2}


def test_a_data_set_is_known_by_its_files(folder, tmp_path):
    def fingerprint(path):
        return load_stream("folder", path).fingerprint()

    other = write_folder(tmp_path / "elsewhere")
    assert fingerprint(other) == fingerprint(folder)
    (other / "dog" / "000.jpg").rename(other / "dog" / "new.jpg")
    assert fingerprint(other) != fingerprint(folder)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "flat").mkdir()
    with pytest.raises(UserError, match="has 0 subfolders; expected one a class, two classes or more"):
        read_folder(tmp_path / "flat")
    folder = write_folder(tmp_path / "empty")
    (folder / "bird").mkdir()
    with pytest.raises(UserError, match="the class folder .*bird holds no images"):
        read_folder(folder)
    with pytest.raises(UserError, match="the class folder .*cat holds 2 images; expected 3 or more"):
        read_folder(write_folder(tmp_path / "few", images=2))
    for name, classes in (("train", ("cat", "dog")), ("val", ("cat", "cow"))):
        write_folder(tmp_path / "odd" / name, classes)
    with pytest.raises(UserError, match="hold other classes: cow, dog"):
        read_folder(tmp_path / "odd")


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_broken_image_among_good_ones(tmp_path, damage):
    folder = write_folder(tmp_path / "pets")
    _, files = read_folder(folder)
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


def test_train_images_limits_the_stream(folder, data_dir, imagenet_like):
    assert load_stream("folder", folder, train_images=10).train_images == 10
    assert load_stream("imagenet2012", data_dir=data_dir, train_images=10).train_images == 10
    with pytest.raises(UserError, match="--train-images must be between 1 and the 32 of"):
        load_stream("folder", folder, train_images=33)
