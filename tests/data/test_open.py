import numpy as np
import pytest
from samples import write_folder
from toy import PointTargets

from mnv2_jax.data.open import open_dataset
from mnv2_jax.data.rand_augment import RandAugment
from mnv2_jax.data.resident import Dataset
from mnv2_jax.data.stream import StreamedDataset
from mnv2_jax.data.transforms import RandomCrop
from mnv2_jax.errors import UserError


def test_small_sets_are_resident_unless_asked_otherwise(digits):
    resident = open_dataset("digits", train_images=100, validation_images=20, resolution=20)
    assert isinstance(resident, Dataset)
    assert (resident.train_images, len(resident.validation.images), resident.image_shape) == (100, 20, (20, 20, 1))
    streamed = open_dataset("digits", streamed=True, train_images=100, validation_images=20, resolution=20)
    assert isinstance(streamed, StreamedDataset)
    assert (streamed.train_images, len(streamed.sources["validation"])) == (100, 20)
    assert streamed.image_shape == (20, 20, 1)
    assert streamed.class_names == resident.class_names == digits.class_names


def test_a_folder_is_streamed_and_varied_as_asked(tmp_path):
    options = dict(smallest_crop=0.2, color=True, convention="pytorch", on_bad_image="skip")
    dataset = open_dataset("folder", data_files=write_folder(tmp_path / "pets"), resolution=32, **options)
    assert dataset.crop == RandomCrop(0.2)
    assert (dataset.color, dataset.preprocessing, dataset.on_bad_image) == (True, "torchvision", "skip")


def test_images_of_many_sizes_cannot_be_resident():
    for name in ("imagenet2012", "folder", "something"):
        line = f"{name} has images of many sizes, so it is streamed; remove --input resident"
        with pytest.raises(UserError, match=line):
            open_dataset(name, streamed=False)
    with pytest.raises(UserError, match="--dataset folder needs --data-files DIR"):
        open_dataset("folder")


def test_rand_augment_is_of_streams():
    how = RandAugment(2)
    assert open_dataset("digits", streamed=True, rand_augment=how).rand_augment == how
    with pytest.raises(
        UserError, match="^--rand-augment is for streamed images, but digits is resident; add --input st"
    ):
        open_dataset("digits", rand_augment=how)
    with pytest.raises(
        UserError, match="^--rand-augment moves the content of images, so only class targets stay valid"
    ):
        open_dataset("digits", streamed=True, rand_augment=how, targets=PointTargets())


@pytest.mark.parametrize("streamed", [False, True])
def test_targets_are_the_task_s(streamed):
    class Negative:
        def encode(self, annotation, view):
            return np.int32(-annotation)

        def move(self, targets, move, resolution):
            return targets

        def empty(self):
            return np.int32(0)

    plain, negative = (open_dataset("digits", streamed=streamed, **kw) for kw in ({}, {"targets": Negative()}))
    for one, other in zip(plain.evaluation("test", 100), negative.evaluation("test", 100), strict=True):
        np.testing.assert_array_equal(one.targets, -other.targets)
