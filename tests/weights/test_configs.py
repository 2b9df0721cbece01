"""Configuration files beside weights, field by field; `tests/peers` compares with the packages that write them."""

import json

import pytest

from mnv2_jax.data.preprocessing import PREPROCESSING, Preprocessing
from mnv2_jax.errors import UserError
from mnv2_jax.weights.configs import read_timm, read_transformers


@pytest.fixture
def said(tmp_path):
    """Return a function that writes files with given contents and reads them."""

    def said(read, name, **contents):
        for file, content in contents.items():
            (tmp_path / f"{file}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return read(tmp_path, name)

    return said


def transformers(said, config=None, processor=None, name="mobilenet_v2"):
    contents = {"config": None if config is None else {"model_type": name, **config}, "preprocessor_config": processor}
    contents = {file: content for file, content in contents.items() if content is not None}
    return said(read_transformers, name, **contents)


def timm(said, pretrained=None, name="mobilenet_v2", **config):
    config = {"architecture": "mobilenetv2_035", **config, "pretrained_cfg": pretrained or {}}
    return said(read_timm, name, config=config)


def test_nothing_is_said_where_there_is_no_file_or_another_s(said):
    for read in (read_transformers, read_timm):
        assert said(read, "mobilenet_v2").settings == {}
        assert said(read, "mobilenet_v2", config={"seed": 0}).resolution is None


def test_what_transformers_network_computes(said):
    found = transformers(said, {"depth_multiplier": 0.5, "image_size": [96, 96], "id2label": {"0": "cat", "1": "dog"}})
    assert found.settings == {
        "convention": "tensorflow", "batch_norm_epsilon": None, "activation": "relu6", "output_stride": None,
    }  # fmt: skip
    assert (found.resolution, found.class_names, found.outputs) == (96, ("cat", "dog"), None)
    assert found.stated["width_multiplier"] == ("depth_multiplier", 0.5)
    assert found.notes == ("config.json says tensorflow padding, epsilon 0.001, relu6",)
    other = {"tf_padding": False, "hidden_act": "silu", "layer_norm_eps": 1e-3, "output_stride": 16}
    found = transformers(said, {**other, "problem_type": "multi_label_classification"})
    assert found.settings == {
        "convention": "pytorch", "batch_norm_epsilon": 1e-3, "activation": "swish", "output_stride": 16,
    }  # fmt: skip
    assert found.outputs == "sigmoid"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "vit"}, 'config.json says model_type "vit": the tensors are those of a mobilenet_v2'),
        ({"hidden_act": "gelu"}, 'says hidden_act "gelu": supported are relu6, relu, silu'),
        ({"output_stride": 4}, "says output_stride 4: supported are 8, 16, 32"),
        ({"depth_divisible_by": 4}, "says depth_divisible_by 4: only 8 is supported"),
        ({"first_layer_is_expansion": False}, "says first_layer_is_expansion false: only true is supported"),
        ({"finegrained_output": False, "depth_multiplier": 0.5}, "says finegrained_output false"),
        ({"tf_padding": "no"}, 'says tf_padding "no": expected bool'),
        ({"layer_norm_eps": 0}, "says layer_norm_eps 0: expected a number greater than 0"),
        ({"image_size": [96, 128]}, r"says image_size \[96, 128\]: only square images"),
        ({"problem_type": "regression"}, 'says problem_type "regression": supported are single_label_classification'),
    ],
    ids=str,
)
def test_what_transformers_network_cannot_be_here_is_named(config, says, said):
    with pytest.raises(UserError, match=says):
        transformers(said, config)


BOTH = ("resize_then_crop", "bilinear")


@pytest.mark.parametrize(
    ("processor", "expected", "resolution"),
    [
        ({"size": {"shortest_edge": 256}, "crop_size": 224}, PREPROCESSING["transformers"], 224),
        ({"size": 128, "crop_size": {"height": 96, "width": 96}}, {"crop": 0.75}, 96),
        ({"size": 120, "crop_size": 96}, {"crop": 0.8}, 96),
        ({"size": {"height": 96, "width": 96}, "do_center_crop": False}, {"method": "resize"}, 96),
        ({"image_processor_type": "ViTImageProcessorFast", "size": 96, "resample": 3},
         {"method": "resize", "interpolation": "bicubic"}, 96),
        ({"size": 96, "crop_size": 96, "do_rescale": False, "image_mean": 51, "image_std": [255, 51, 51]},
         {"mean": (0.2, 0.2, 0.2), "std": (1.0, 0.2, 0.2)}, 96),
        ({"size": 96, "crop_size": 96, "do_normalize": False}, {"mean": (0, 0, 0), "std": (1, 1, 1)}, 96),
    ],
    ids=str,
)  # fmt: skip
def test_how_transformers_prepares_images(processor, expected, resolution, said):
    if isinstance(expected, dict):
        half = (0.5, 0.5, 0.5)
        usual = {"method": BOTH[0], "crop": 1.0, "interpolation": BOTH[1], "mean": half, "std": half}
        expected = Preprocessing(**{**usual, "half_pixel": "down", **expected})
    found = transformers(said, None, processor)
    assert (found.preprocessing, found.resolution) == (expected, resolution)


@pytest.mark.parametrize(
    ("processor", "says"),
    [
        ("{", "preprocessor_config.json cannot be read"),
        ("[1]", "contains a list, expected an object"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "is for a ConvNextImageProcessor: supported are"),
        ({"do_resize": False}, "says do_resize false: only true is supported"),
        ({"do_pad": True}, "says do_pad true: only false is supported"),
        ({"do_center_crop": False}, "says do_center_crop false: only square images"),
        ({"size": {"longest_edge": 256}}, "says size .*: only square images"),
        ({"size": 96, "crop_size": 128}, "says crop_size 128: more than the 96 pixels"),
        ({"crop_size": [96, 128]}, "says crop_size .*: only square images"),
        ({"resample": 9}, "says resample 9: expected one of Pillow's filters"),
        ({"image_std": [0.5, 0, 0.5]}, "says image_std .*: all images would become the same"),
        ({"image_mean": [0.5, "x", 0.5]}, "says image_mean .*: expected a number for each"),
    ],
    ids=str,
)
def test_images_that_cannot_be_prepared_so_are_named(processor, says, said):
    with pytest.raises(UserError, match=says):
        transformers(said, None, processor)


def test_how_timm_validates(said):
    found = timm(said)
    assert (found.preprocessing, found.resolution) == (PREPROCESSING["timm"], 224)
    pretrained = {"input_size": [3, 160, 160], "test_input_size": [3, 192, 192], "crop_pct": 0.9, "test_crop_pct": 0.95,
                  "interpolation": "bilinear", "crop_mode": "squash", "mean": [0.5] * 3, "std": [0.5] * 3,
                  "num_classes": 2, "label_names": ["cat", "dog"]}  # fmt: skip
    found = timm(said, pretrained)
    half = (0.5, 0.5, 0.5)
    assert found.preprocessing == Preprocessing("resize", 0.95, "bilinear", half, half)
    assert (found.resolution, found.class_names) == (192, ("cat", "dog"))
    assert {setting: value for setting, (_, value) in found.stated.items()} == {
        "width_multiplier": 0.35, "classes": 2, "channels": 3,
    }  # fmt: skip
    older = said(read_timm, "mobilenet_v1", config={"architecture": "mobilenetv1_100", **pretrained})
    assert older.preprocessing == found.preprocessing


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architecture": "mobilenetv2_110d"}, 'says architecture "mobilenetv2_110d": the tensors are those of'),
        (
            {"architecture": "mobilenetv1_100"},
            'says architecture "mobilenetv1_100": the tensors are those of a mobilenet_v2',
        ),
        ({"global_pool": "max"}, 'says global_pool "max": only "avg" is supported'),
        ({"model_args": {"act_layer": "silu"}}, "says model_args .*: 'act_layer' is not supported"),
        ({"pretrained": {"crop_mode": "border"}}, 'says crop_mode "border": supported are center, squash'),
        ({"pretrained": {"crop_pct": 1.5}}, "says crop_pct 1.5: expected a fraction"),
        ({"pretrained": {"interpolation": "random"}}, 'says interpolation "random": supported are'),
        ({"pretrained": {"input_size": [3, 160, 192]}}, "says input_size .*: only square images"),
        ({"pretrained": {"std": [0, 1, 1]}}, "says std .*: expected numbers other than 0"),
    ],
    ids=str,
)
def test_what_timm_says_that_cannot_be_done_is_named(config, says, said):
    with pytest.raises(UserError, match=says):
        timm(said, **config)
