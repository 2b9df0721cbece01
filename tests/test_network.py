"""Networks on disk: saved and opened as one record, including those of version 0.1.0."""

import json
import os
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mnv2_jax import InvertedResidual, MobileNetV1, MobileNetV2, Network
from mnv2_jax import network as network_module
from mnv2_jax.data.preprocessing import Preprocessing
from mnv2_jax.errors import UserError
from mnv2_jax.models.backbone import Stage
from mnv2_jax.models.blocks import ExpansionShortcut
from mnv2_jax.network import (
    describe,
    from_description,
    is_network,
    is_replaceable,
    open_network,
    save_network,
    variable_shapes,
)
from mnv2_jax.tasks.classification import Classification

SMALL = MobileNetV1(3, 0.1, stages=(Stage(1, 64, 1, 1), Stage(1, 128, 2, 2)))


def variables_of(model, channels=3):
    """Return variables in eighths: -3/8 to 3/8, or 1/2 to 3/2 if the network multiplies or divides by them."""
    generator = np.random.default_rng(0)

    def leaf(path, shaped):
        low, high = (4, 12) if path[-1].key in ("scale", "var") else (-3, 3)
        return (generator.integers(low, high + 1, shaped.shape) / 8).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, variable_shapes(model, channels))


def network_of(model=SMALL, channels=3, **changes):
    settings = dict(
        source="mnv2_jax",
        preprocessing="keras",
        resolution=16,
        class_names=("cat", "dog", "bird"),
        image_channels=channels,
    )
    return Network(model, variables_of(model, channels), Classification(3), **{**settings, **changes})


def assert_same(ours, theirs):
    assert ours.replace(variables={}) == theirs.replace(variables={})
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)


@pytest.mark.parametrize(
    "network",
    [
        network_of(),
        network_of(preprocessing=Preprocessing("resize", 0.9, "box", (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))),
        network_of(channels=1, class_names=None, source="an_experiment"),
        network_of(
            MobileNetV2(
                3,
                0.1,
                stages=(Stage(1, 16, 1, 1), Stage(2, 24, 2, 2)),
                block=ExpansionShortcut,
                kernels="xla",
                kernel_size=5,
            )
        ),
    ],
    ids=["MobileNetV1", "own preprocessing", "grey", "MobileNetV2"],
)
def test_a_network_needs_no_further_arguments(network, tmp_path):
    save_network(tmp_path / "x", network)
    assert is_network(tmp_path / "x")
    assert_same(open_network(tmp_path / "x"), network)


def test_how_a_file_was_read_is_not_kept(tmp_path):
    save_network(tmp_path / "x", network_of(notes=("the classifier has 3 classes",)))
    assert open_network(tmp_path / "x").notes == ()


def test_what_was_saved_last_is_there_and_nothing_else(tmp_path):
    first = network_of()
    last = first.replace(variables=jax.tree.map(lambda leaf: leaf + 1, first.variables), resolution=32)
    save_network(tmp_path / "x", first)
    save_network(tmp_path / "x", last)
    assert_same(open_network(tmp_path / "x"), last)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_network_that_could_not_be_opened_is_not_saved(tmp_path):
    class Other(MobileNetV1):
        pass

    class OtherTask(Classification):
        name = "other"

    with pytest.raises(ValueError, match="Other is not registered in mnv2_jax.models.names.MODELS"):
        save_network(tmp_path / "x", network_of().replace(model=Other(3)))
    with pytest.raises(ValueError, match="the task 'other' is not one of classification"):
        save_network(tmp_path / "x", network_of().replace(task=OtherTask(3)))
    assert list(tmp_path.iterdir()) == []


class Mine(InvertedResidual):
    """A user-defined block."""


def test_a_network_of_one_s_own_blocks_opens_with_their_classes(tmp_path):
    network = network_of(MobileNetV2(3, 0.1, stages=(Stage(1, 16, 1, 1),), block=Mine))
    save_network(tmp_path / "x", network)
    with pytest.raises(UserError, match=f"unknown block '{__name__}.Mine'.*pass a custom block as a class"):
        open_network(tmp_path / "x")
    assert_same(open_network(tmp_path / "x", [ExpansionShortcut, Mine]), network)


@pytest.mark.parametrize("name", ["c[1]/run", "a*b?", "back\\slash", "x" * 250, "\udcff", "a 'b' %20.", "**"])
def test_a_folder_may_have_any_name(name, tmp_path):
    """Orbax treats brackets, stars and question marks as a pattern."""
    (tmp_path / "axxb").mkdir()
    save_network(tmp_path / name, network_of())
    assert_same(open_network(tmp_path / name), network_of())
    top = name.split("/")[0]
    assert {path.name for path in tmp_path.iterdir()} == {"axxb", top}
    assert is_replaceable(tmp_path / name)


@pytest.mark.parametrize("fault", ["check_room", "_open_variables", "_replace_folder"])
def test_where_writing_fails_what_was_there_stays(fault, tmp_path, monkeypatch):
    save_network(tmp_path / "x", network_of())
    monkeypatch.setattr(network_module, fault, mock.Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(
        UserError, match=r"the network .*x cannot be written \(no space left on device\); free some space"
    ):
        save_network(tmp_path / "x", network_of(resolution=32))
    monkeypatch.undo()
    assert_same(open_network(tmp_path / "x"), network_of())
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# --- What is not a network -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_arrays_of_another_shape_than_the_model_s_are_refused(tmp_path):
    network = network_of()
    wider = variables_of(SMALL.clone(width_multiplier=0.5))
    save_network(tmp_path / "x", network.replace(variables=wider))
    with pytest.raises(UserError, match="x cannot be read"):
        open_network(tmp_path / "x")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_is_not_there_or_damaged_is_named(tmp_path):
    with pytest.raises(UserError, match="the network .*nothing cannot be read"):
        open_network(tmp_path / "nothing")
    save_network(tmp_path / "x", network_of())
    for file in (tmp_path / "x" / "variables").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(b"")
    with pytest.raises(UserError, match="the network .*x cannot be read; it may be damaged"):
        open_network(tmp_path / "x")


def test_arrays_that_are_not_those_that_were_saved_are_noticed(tmp_path, monkeypatch):
    """Networks of version 0.1.0 have no digest, so changes in them cannot be detected."""
    with monkeypatch.context() as patch:
        patch.setattr(network_module, "tree_digest", lambda tree: "0")
        save_network(tmp_path / "x", network_of())
    with pytest.raises(UserError, match="the network .*x is damaged: its arrays differ from those that were saved"):
        open_network(tmp_path / "x")
    change_description(tmp_path / "x", variables_sha256=None)
    assert_same(open_network(tmp_path / "x"), network_of())


def change_description(folder, **changes):
    file = folder / "description" / "metadata"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"resolution": "16"}, 'resolution is "16", expected a whole number'),
        ({"resolution": -1}, "its resolution must be from 1 to 32767, got -1"),
        ({"class_names": ["cat"]}, "class_names specifies 1 class, but the network has 3 outputs"),
        (
            {"task": {"name": "classification", "num_classes": 4}},
            "num_classes specifies 4 classes, but the network has 3 outputs",
        ),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(change, says, tmp_path):
    save_network(tmp_path / "x", network_of())
    change_description(tmp_path / "x", **change)
    with pytest.raises(UserError, match="the network .*x is damaged") as error:
        open_network(tmp_path / "x")
    assert says in str(error.value)


def test_a_network_that_was_saved_before_kernels_had_sizes_has_3x3_ones():
    description = describe(network_of())
    del description["model"]["kernel_size"]
    assert from_description(description).model == network_of().model


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"name": "mobilenet_v9"}}, "unknown model 'mobilenet_v9'"),
        ({"model": {"name": "mobilenet_v1", "depth": 3}}, "mobilenet_v1 has no setting depth"),
        ({"model": {"name": "mobilenet_v1", "width_multiplier": 0.0}}, "the width multiplier must be greater than 0"),
        ({"task": {"name": "detection"}}, "detection"),
        ({"preprocessing": "none"}, "unknown preprocessing 'none'"),
        ({"model": None}, "its description is not of a supported network"),
    ],
)
def test_a_description_of_something_else_is_refused_in_one_line(change, says):
    with pytest.raises(UserError, match="its description is not of a supported network") as error:
        from_description({**describe(network_of()), **change})
    assert says in str(error.value)


def test_only_a_folder_of_a_network_alone_is_replaceable(tmp_path):
    save_network(tmp_path / "x", network_of())
    assert is_replaceable(tmp_path / "x")
    os.symlink(tmp_path / "x", tmp_path / "link")
    assert not is_replaceable(tmp_path / "link")
    (tmp_path / "x" / "notes.txt").write_text("mine")
    assert not is_replaceable(tmp_path / "x")
    (tmp_path / "empty").mkdir()
    assert is_replaceable(tmp_path / "empty")
    (tmp_path / "half" / "variables").mkdir(parents=True)
    assert not is_replaceable(tmp_path / "half")
    assert not is_network(tmp_path / "half")


# --- Networks of version 0.1.0 ---------------------------------------------------------------------------

COMMON = (
    '"num_classes": 3, "width_multiplier": 0.1, "unit_strides": {unit_strides}, "output_stride": null, '
    '"activation": "relu6", "convention": "{convention}", "dropout_rate": 0.2, "batch_norm_momentum": 0.99, '
    '"batch_norm_axis": null, "dtype": "float32"'
)
OLD = {
    "mobilenet_v2": (
        '{"model": {"name": "mobilenet_v2", '
        + COMMON.format(unit_strides=1, convention="tensorflow")
        + ', "layers": "plain", "expansion": 3.0, "bottleneck_activation": "relu", "stages": [[1, 16, 1, 1], '
        '[6, 24, 2, 2]], "shortcut": "expansion", "transformation": "depthwise", "channel_divisor": 8}, '
        '"image_channels": 3, "source": "mnv2_jax", "preprocessing": "keras", "resolution": 16, '
        '"class_names": ["cat", "dog", "bird"]}'
    ),
    "mobilenet_v1": (
        '{"model": {"name": "mobilenet_v1", '
        + COMMON.format(unit_strides=0, convention="pytorch")
        + ', "layers": "fitted", "blocks": [[64, 1], [128, 2], [128, 1]]}, "image_channels": 1, "source": "mnv2_jax", '
        '"preprocessing": "keras", "resolution": 16, "class_names": ["cat", "dog", "bird"]}'
    ),
}
"""Descriptions written by version 0.1.0."""
OLD_LOGITS = {
    "mobilenet_v2": [
        [-2.3315587043762207, -4.441432952880859, -2.406525135040283],
        [-2.377363443374634, -4.442723751068115, -2.665555477142334],
    ],
    "mobilenet_v1": [
        [0.7065939903259277, -0.6247726082801819, -0.12867140769958496],
        [0.7044853568077087, -0.6195055246353149, -0.12565594911575317],
    ],
}
"""What version 0.1.0 computed for these networks with `variables_of`."""


@pytest.mark.parametrize("name", OLD)
def test_a_network_of_version_0_1_0_opens_and_computes_the_same(name, tmp_path):
    description = json.loads(OLD[name])
    channels = description["image_channels"]
    variables = variables_of(from_description(description).model, channels)
    # As that version saved them.
    parts = ocp.args.Composite(variables=ocp.args.StandardSave(variables), description=ocp.args.JsonSave(description))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "x", parts)
    network = open_network(tmp_path / "x")
    assert network.task == Classification(3)
    assert (network.class_names, network.resolution, network.preprocessing) == (("cat", "dog", "bird"), 16, "keras")
    images = np.linspace(-1, 1, 2 * 16 * 16 * channels, dtype=np.float32).reshape(2, 16, 16, channels)
    logits = jax.jit(network.model.apply)(network.variables, images)
    np.testing.assert_allclose(logits, OLD_LOGITS[name], rtol=1e-5)
