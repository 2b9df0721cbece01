"""Descriptions of studies, and how flags create them."""

import dataclasses
import json
import re
from pathlib import Path

import flax.linen as nn
import pytest

from ablation.studies import STUDY
from mnv2_jax.ablation.design import ARM, Arm, StudyOptions, create_study, identity, shared_settings
from mnv2_jax.errors import UserError
from mnv2_jax.models.blocks import NoShortcut
from mnv2_jax.settings import DataSettings, SharedSettings
from mnv2_jax.training.config import Recipe

DESCRIBED = {"experiment": "x", "question": "?", "claim": "!"}


def test_an_unknown_arm_is_named():
    with pytest.raises(UserError, match="unknown arm 'relu7' in --arms; choose from linear, relu6"):
        STUDY.with_arms(["relu7"])


def test_the_baseline_is_the_first_arm_and_stays():
    assert STUDY.baseline.name == "linear"
    assert [arm.name for arm in STUDY.with_arms(["relu6"]).arms] == ["linear", "relu6"]


def test_a_run_is_of_the_study_but_for_what_its_arm_changes():
    arm = Arm("b", {"expansion": 2.0}, training={"batch_size": 8, "label_smoothing": 0.1}, resolution=6)
    study = dataclasses.replace(STUDY, arms=(*STUDY.arms, arm), resolution=12, weights="w", task="t", streamed=True)
    run = study.run(arm, seed=3)
    assert run.model == {**STUDY.model, "expansion": 2.0}
    assert run.training == dataclasses.replace(STUDY.training, batch_size=8, label_smoothing=0.1)
    assert (run.seed, run.resolution, run.weights, run.task, run.streamed) == (3, 6, None, "t", True)
    assert study.run(dataclasses.replace(arm, started=True, resolution=None)).weights == "w"
    assert study.run(dataclasses.replace(arm, started=True, resolution=None)).resolution == 12


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ({"training": {"label_smothing": 1}}, "unknown training setting 'label_smothing'; did you mean 'label_smo"),
        ({"training": {"x": 1}}, "unknown training setting 'x'; choose from batch_size, learning_rate, "),
        ({"training": {"epochs": 3}}, "all arms share epochs, so that they see the same images; set it for the study"),
        ({"training": {"label_smoothing": 2}}, "--label-smoothing must be from 0 to below 1, got 2"),
        ({"training": {"batch_norm": "local"}}, "--batch-norm must be global or replica, got 'local'"),
        ({"training": {"batch_size": "16"}}, "--batch-size must be a whole number, got '16'"),
        ({"model": {"dropout_rate": 0.1}}, "dropout_rate is a training setting; use training="),
        ({"model": {"num_classes": 3}}, "num_classes is determined by the data"),
    ],
)  # fmt: skip
def test_what_an_arm_cannot_change_is_refused_where_it_is_made(arm, says, without_type_checks):
    with pytest.raises(UserError, match=f"^arm mine: {re.escape(says)}"):
        Arm("mine", **arm)


def test_settings_of_an_arm_and_of_its_study_have_to_go_together():
    arm = Arm("decay", training={"rmsprop_decay": 0.8})
    with pytest.raises(UserError, match="^arm decay: --rmsprop-decay requires --optimizer rmsprop"):
        dataclasses.replace(STUDY, arms=(*STUDY.arms, arm))
    rmsprop = dataclasses.replace(STUDY.training, optimizer="rmsprop")
    study = dataclasses.replace(STUDY, arms=(*STUDY.arms, arm), training=rmsprop)
    assert study.run(arm).training.rmsprop_decay == 0.8


def test_arms_have_names_of_their_own_that_files_can_have():
    with pytest.raises(UserError, match="^two arms are named linear; give each its own name$"):
        dataclasses.replace(STUDY, arms=(*STUDY.arms, Arm("linear")))
    for name in ("", "1/2"):
        with pytest.raises(UserError, match="must not be empty or contain /"):
            Arm(name)


def test_arms_with_batches_of_several_sizes_see_one_number_of_images():
    arms = (Arm("a"), Arm("b", training={"batch_size": 24}))
    study = dataclasses.replace(STUDY, arms=arms)
    assert study.batch_sizes == (16, 24)
    # 8 epochs of 4 steps of 16 are 512 images; 480 make whole batches of either size.
    longer = dataclasses.replace(study, training=dataclasses.replace(STUDY.training, epochs=8)).at_equal_images(70)
    assert [longer.run(arm).training.steps(70) for arm in arms] == [30, 20]
    assert identity(longer)["images"] == 480
    with pytest.raises(UserError, match="no number of images up to 16 is divisible by each of the batch sizes 16, 24"):
        study.at_equal_images(20)
    assert STUDY.at_equal_images(70) is STUDY


def test_the_data_are_called_as_people_know_them():
    own = dataclasses.replace(STUDY, dataset="folder", data_files=Path("pets"))
    assert [each.title for each in (STUDY, own, dataclasses.replace(STUDY, dataset="mnist"))] == [
        "handwritten digits (scikit-learn)", "pets", "mnist"
    ]  # fmt: skip


def test_what_makes_a_study_the_same_one_can_be_kept_as_json():
    arms = (*STUDY.arms, Arm("own", {"block": NoShortcut, "activation": nn.softplus}, training={"momentum": 0.8}))
    study = dataclasses.replace(STUDY, arms=arms, model={**STUDY.model, "block": NoShortcut})
    kept = json.loads(json.dumps(identity(study)))
    assert kept["block"] == "mnv2_jax.models.blocks.NoShortcut"
    own = {"block": "mnv2_jax.models.blocks.NoShortcut", "activation": "jax.nn.softplus", "momentum": 0.8}
    assert kept[f"{ARM}own"] == {**own, "activation": kept[f"{ARM}own"]["activation"], "resolution": None, "started": False}  # fmt: skip
    assert "softplus" in kept[f"{ARM}own"]["activation"]


@pytest.mark.parametrize(
    "changes",
    [{"tune": True}, {"train_images": 3}, {"validation_images": 3}, {"resolution": 6}, {"streamed": True}, {"task": "other"},
     {"dataset": "other"}, {"weights": "w"}, {"model": {}}, {"arms": STUDY.arms[::-1]},
     {"training": dataclasses.replace(STUDY.training, ema_decay=0.9)}],
)  # fmt: skip
def test_what_changes_the_runs_makes_another_study(changes):
    assert identity(dataclasses.replace(STUDY, **changes)) != identity(STUDY)


@pytest.mark.parametrize("changes", [{"seeds": 9}, {"question": "?"}, {"figure": "sweep"}, {"axis": "t"}])
def test_more_seeds_and_other_words_do_not(changes):
    assert identity(dataclasses.replace(STUDY, **changes)) == identity(STUDY)


def test_as_many_seeds_as_the_comparisons_need_unless_they_are_given():
    arms = [Arm("a"), Arm("b", {"expansion": 2.0}), Arm("c", {"expansion": 3.0})]
    assert create_study(StudyOptions(), arms=arms, **DESCRIBED).seeds == 7
    fewer = create_study(StudyOptions(arms=("c",)), arms=arms, **DESCRIBED)
    assert (fewer.seeds, [arm.name for arm in fewer.arms]) == (6, ["a", "c"])
    assert create_study(StudyOptions(seeds=3), arms=arms, **DESCRIBED).seeds == 3


def test_flags_become_the_study():
    options = StudyOptions(
        data=DataSettings(dataset="fashion_mnist", train_images=640, input="stream", resolution=20),
        validation_images=100,
        network=SharedSettings(width_multiplier=0.5, expansion=4.0, unit_strides=0),
        training=Recipe(epochs=3, batch_size=32, learning_rate=0.1, ema_decay=0.9),
        tune=True,
    )
    study = create_study(options, arms=[Arm("a"), Arm("b")], **DESCRIBED)
    assert (study.dataset, study.train_images, study.validation_images) == ("fashion_mnist", 640, 100)
    assert (study.streamed, study.resolution, study.tune) == (True, 20, True)
    assert study.training == options.training
    assert study.model == {"width_multiplier": 0.5, "expansion": 4.0, "kernels": "tuned", "unit_strides": 0}


def test_a_study_compares_something():
    with pytest.raises(UserError, match="there is no arm to compare a with; add another"):
        create_study(StudyOptions(), arms=[Arm("a")], **DESCRIBED)


def test_strides_fit_the_images_or_the_weights_or_are_given():
    options = StudyOptions()
    assert shared_settings(options)["unit_strides"] == 1
    given = dataclasses.replace(options, network=dataclasses.replace(options.network, unit_strides=3, kernel_size=5))
    assert (shared_settings(given)["unit_strides"], shared_settings(given)["kernel_size"]) == (3, 5)
    assert create_study(options, arms=[Arm("a"), Arm("b")], weights="w", **DESCRIBED).model["unit_strides"] is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SharedSettings(width_multiplier=0), "--width-multiplier must be greater than 0 and below 100, got 0"),
        (
            lambda: create_study(StudyOptions(seeds=10**9), arms=[Arm("a"), Arm("b")], **DESCRIBED),
            "--seeds must be 1000 or fewer",
        ),
        (lambda: StudyOptions(network=SharedSettings(expansion=6.0)), "--width-multiplier must be a number"),
        (lambda: SharedSettings(unit_strides=6), "--unit-strides must be from 0 to 5, got 6"),
        (
            lambda: dataclasses.replace(STUDY.training, images=15),
            "--images 15 is less than one batch of 16; use 16 or more",
        ),
    ],
)
def test_settings_are_checked_when_they_are_made(make, says):
    with pytest.raises(UserError, match=says):
        make()
