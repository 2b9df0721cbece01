"""What a study asks, and what flags make of it."""

import dataclasses
import json

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
    with pytest.raises(UserError, match="there is no arm 'relu7'; this study has linear, relu6"):
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
    with pytest.raises(UserError, match="there is no arm to compare a with; name another"):
        create_study(StudyOptions(), arms=[Arm("a")], **DESCRIBED)


def test_strides_fit_the_images_or_the_weights_or_are_given():
    options = StudyOptions()
    assert shared_settings(options)["unit_strides"] == 1
    given = dataclasses.replace(options, network=dataclasses.replace(options.network, unit_strides=3))
    assert shared_settings(given)["unit_strides"] == 3
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
            "--images 15 do not fill a batch of 16; take 16 or more",
        ),
    ],
)
def test_settings_are_checked_when_they_are_made(make, says):
    with pytest.raises(UserError, match=says):
        make()
