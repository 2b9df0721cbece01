"""What arms change in their runs (network, training, initial weights), and which arms share a program."""

import dataclasses
import io
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from samples import write_folder

from ablation.studies import ALONE, STUDY, measured, one_device, run
from mnv2_jax.ablation.arms import check_arms, data_of_arm, families, learner_of, network_of_arm, run_of, with_shared
from mnv2_jax.ablation.design import Arm
from mnv2_jax.ablation.study import Family, StudyTrainer, with_weights
from mnv2_jax.errors import UserError
from mnv2_jax.models.blocks import InvertedResidual
from mnv2_jax.models.cost import count_multiply_adds, count_parameters
from mnv2_jax.models.create import create_model
from mnv2_jax.network import open_network
from mnv2_jax.training import run as run_module
from mnv2_jax.training.config import Execution
from mnv2_jax.training.create import create_dataset
from mnv2_jax.training.evaluation import evaluate_network
from mnv2_jax.training.metrics import read_records
from mnv2_jax.training.programs import describe_programs
from mnv2_jax.training.progress import Reporter
from mnv2_jax.weights.load import export_weights, load_weights


class HalfShortcut(InvertedResidual):
    """A user-defined variant with half of the shortcut."""

    def join(self, x, y):
        return x / 2 + y if self.stride == 1 and x.shape[-1] == self.features else y


def silent():
    return Reporter(Console(file=io.StringIO()))


def program_text(family, dataset):
    """Return the text of the training step of a family of arms, before it is compiled."""
    devices = one_device()
    learner = learner_of(family.owner.study, family.arms, dataset)
    return devices.lower(describe_programs(learner, dataset, family.recipe, devices)["train"]).as_text()


def names(study):
    return [[arm.name for arm in family] for family in families(study)]


# --- Programs --------------------------------------------------------------------------------------------


def test_arms_that_differ_in_an_activation_share_a_program():
    arms = (Arm("a"), Arm("b", {"bottleneck_activation": "relu"}), Arm("c", {"expansion": 2.0}))
    arms += (Arm("d", {"expansion": 2.0, "bottleneck_activation": "relu6"}), Arm("e", {"width_multiplier": 0.2}))
    assert names(dataclasses.replace(STUDY, arms=arms)) == [["a", "b"], ["c", "d"], ["e"]]


def test_arms_that_start_from_weights_share_a_program_with_those_that_do_not_unless_they_are_trained_otherwise():
    arms = (Arm("scratch"), Arm("tuned", started=True), Arm("frozen", training={"freeze": "backbone"}, started=True))
    assert names(dataclasses.replace(STUDY, arms=arms)) == [["scratch", "tuned"], ["frozen"]]


def test_arms_of_other_blocks_resolutions_or_training_have_programs_of_their_own():
    arms = (Arm("a"), Arm("b", {"block": HalfShortcut}), Arm("c", resolution=6), Arm("d", training={"batch_size": 8}))
    assert names(dataclasses.replace(STUDY, arms=arms)) == [["a"], ["b"], ["c"], ["d"]]


def test_arms_whose_training_is_the_study_s_own_share_its_program():
    arms = (Arm("a"), Arm("b", {"bottleneck_activation": "relu"}, training={"momentum": STUDY.training.momentum}))
    assert names(dataclasses.replace(STUDY, arms=arms)) == [["a", "b"]]


def test_an_arm_has_the_shared_settings_that_its_network_knows():
    shared = {"width_multiplier": 0.35, "expansion": 6.0, "unit_strides": 1}
    own = with_shared(shared, {"name": "mobilenet_v1", "width_multiplier": 0.3})
    assert own == {"name": "mobilenet_v1", "width_multiplier": 0.3, "unit_strides": 1}
    assert with_shared(shared, {}) == {"name": "mobilenet_v2", **shared}


def test_two_arms_that_are_the_same_are_refused(tiny):
    arms = (Arm("a"), Arm("b", {"bottleneck_activation": "relu"}), Arm("c", {"bottleneck_activation": "linear"}))
    with pytest.raises(
        UserError, match="the arms a and c are the same network, trained the same way; remove one of them"
    ):
        check_arms(dataclasses.replace(STUDY, arms=arms), tiny)
    rounded = (Arm("a"), Arm("b", {"width_multiplier": 0.101}))
    with pytest.raises(UserError, match="the arms a and b are the same network"):
        check_arms(dataclasses.replace(STUDY, arms=rounded), tiny)
    for same in (Arm("c", training={"momentum": 0.8}), Arm("c", resolution=6), Arm("c", {"block": HalfShortcut})):
        check_arms(dataclasses.replace(STUDY, arms=(*arms[:2], same)), tiny)


@pytest.mark.parametrize(
    ("training", "why"),
    [
        ({"batch_norm": "replica"}, "batch_norm has no effect with one device per run"),
        ({"color_distortion": True}, "color_distortion has no effect for images of one size"),
    ],
)
def test_settings_of_training_that_change_nothing_make_no_arm(digits, training, why):
    study = dataclasses.replace(STUDY, arms=(Arm("a"), Arm("b", training=training)))
    with pytest.raises(
        UserError, match=rf"^the arms a and b are the same network, trained the same way \({why}\); remove"
    ):
        check_arms(study, digits)


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        (Arm("b", {"depth": 3}), "mobilenet_v2 has no setting depth"),
        (Arm("b", training={"accumulation": 3}), "--batch-size 16 is not divisible by 1 device with 3 microbatches"),
        (Arm("b", training={"batch_size": 71}), "--batch-size 71 exceeds the 70 images"),
    ],
)
def test_an_arm_that_cannot_be_trained_is_named(tiny, arm, says):
    with pytest.raises(UserError, match=f"^arm b: {says}"):
        check_arms(dataclasses.replace(STUDY, arms=(Arm("a"), arm)), tiny)


def test_an_arm_sees_a_stream_as_its_own_training_varies_it(tmp_path):
    arms = (Arm("a"), Arm("b", training={"color_distortion": True}), Arm("c", training={"batch_norm": "replica"}))
    study = dataclasses.replace(STUDY, dataset="folder", data_files=write_folder(tmp_path / "pets"), arms=arms)
    dataset = create_dataset(study.run(arms[0]))
    data = [data_of_arm(study, arm, dataset) for arm in arms]
    assert [each.color for each in data] == [False, True, False]
    assert data[2] is dataset
    check_arms(study, dataset)  # a streamed run uses all devices as replicas


# --- Training --------------------------------------------------------------------------------------------

CHANGES = {
    "label smoothing": {"label_smoothing": 0.1},
    "dropout": {"dropout_rate": 0.5},
    "moving average": {"ema_decay": 0.9},
    "accumulation": {"accumulation": 2},
    "optimizer": {"optimizer": "rmsprop", "rmsprop_epsilon": 0.1},
}
TOGETHER = {name: value for change in CHANGES.values() for name, value in change.items()} | {"batch_size": 8}


@pytest.mark.parametrize("name", CHANGES)
def test_what_an_arm_changes_in_its_training_is_in_its_program(tiny, name):
    arms = (Arm("base"), Arm("the same"), Arm(name, training=CHANGES[name]))
    owner = StudyTrainer(STUDY, tiny, Path(), silent())
    base, same, changed = (program_text(Family(owner, owner.study, (arm,)), tiny) for arm in arms)
    assert base == same != changed


@pytest.fixture(scope="module")
def changed(tiny, tmp_path_factory):
    """Train a study whose arms differ in training; return (folder, `Trained`, records by arm and split)."""
    arms = (Arm("base"), Arm("moving average", training=CHANGES["moving average"]), Arm("together", training=TOGETHER))
    folder = tmp_path_factory.mktemp("changed") / "out"
    trained = run(tiny, folder, dataclasses.replace(STUDY, arms=arms))
    records = {}
    for record in trained.records:
        records.setdefault((record.arm, record.split), []).append((record.seed, record.step, record.metrics))
    return folder, trained, records


def test_the_moving_average_is_what_is_evaluated_and_saved(changed, tiny):
    folder, _, records = changed
    assert records["moving average", "train"] == records["base", "train"]
    for split in ("validation", "test"):
        assert records["moving average", split] != records["base", split]
    found = evaluate_network(open_network(folder / "checkpoints" / "moving average-1"), tiny, "test")
    (expected,) = [metrics for seed, _, metrics in records["moving average", "test"] if seed == 1]
    assert found == pytest.approx({**expected, "examples": 50}, rel=1e-5)


def test_a_studys_run_is_the_run_that_train_makes_of_the_same_settings(changed, tiny, tmp_path, monkeypatch):
    """Records and network are bitwise the same, on one device as in a study."""
    _, trained, _ = changed
    study = dataclasses.replace(ALONE, training=dataclasses.replace(STUDY.training, **TOGETHER))
    monkeypatch.setattr(run_module, "create_dataset", lambda *given: tiny)
    devices = one_device()
    monkeypatch.setattr(run_module.Devices, "create", lambda **given: devices)
    run_module.train_run(run_of(study, study.baseline, seed=1), Execution(), tmp_path / "out", silent())
    alone = [dataclasses.replace(r, arm="together") for r in read_records(tmp_path / "out" / "metrics.jsonl")]
    assert measured(alone) == measured([r for r in trained.records if (r.arm, r.seed) == ("together", 1)])
    saved = [open_network(path).variables for path in (tmp_path / "out" / "network", changed[0] / "checkpoints" / "together-1")]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, *saved)


def test_an_arm_may_have_batches_and_steps_of_its_own(changed):
    _, trained, records = changed
    assert [step for seed, step, _ in records["together", "validation"] if seed == 0] == [4, 8]
    arms = trained.summary["arms"]
    assert arms["together"]["training"] == {**TOGETHER, "steps": 8}
    assert "training" not in arms["base"]
    assert (trained.summary["budget"]["steps"], trained.summary["budget"]["images"]) == (4, 64)
    (note,) = trained.summary["notes"]
    assert note.startswith("Every run sees 64 images, in steps: base 4 of 16, moving average 4 of 16, together 8 of 8.")
    assert note in trained.log
    assert trained.log.count("together seed 0 step ") == trained.log.count("base seed 0 step ") == 2
    assert "base seed 0 step 2/4: loss" in trained.log
    assert "together seed 0 step 4/8: loss" in trained.log


def test_the_learning_rate_of_an_arm_is_its_own(tiny):
    from mnv2_jax.ablation.summary import describe

    study = dataclasses.replace(STUDY, arms=(Arm("base"), Arm("slow", training={"learning_rate": 0.01})))
    arms = describe(study, tiny, {"base": 2.0, "slow": 0.5}, "", {})["arms"]
    assert [arm["learning_rate"] for arm in arms.values()] == [0.04, 0.005]


# --- Trained weights -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transferred(changed, tiny, tmp_path_factory):
    """Train arms from scratch, fine-tuned and frozen; return (the weights, the folder, `Trained`)."""
    weights = changed[0] / "checkpoints" / "base-0"
    arms = (Arm("scratch"), Arm("tuned", started=True), Arm("frozen", training={"freeze": "backbone"}, started=True))
    asked = dataclasses.replace(STUDY, arms=arms, model={"unit_strides": None}, weights=str(weights))
    study, start = with_weights(asked, silent())
    folder = tmp_path_factory.mktemp("transferred") / "out"
    return open_network(weights), folder, run(tiny, folder, study, start=start)


def test_arms_take_the_network_of_the_weights(transferred, changed):
    _, _, trained = transferred
    base = changed[1].summary["arms"]["base"]
    for arm in trained.summary["arms"].values():
        assert (arm["parameters"], arm["multiply_adds"]) == (base["parameters"], base["multiply_adds"])
    # From scratch, it is bitwise the network that was trained before.
    assert trained.summary["arms"]["scratch"]["test_loss"] == base["test_loss"]
    assert trained.summary["arms"]["tuned"]["test_loss"] != base["test_loss"]


def test_an_arm_from_trained_weights_goes_on_from_them(transferred, changed):
    _, _, trained = transferred
    first = {r.arm: r.metrics["loss"] for r in trained.records if (r.seed, r.step, r.split) == (0, 1, "train")}
    assert first["scratch"] == changed[2]["base", "train"][0][2]["loss"]
    assert len({first["tuned"], first["scratch"]}) == 2


def test_a_frozen_backbone_stays_as_it_is_to_the_bit(transferred):
    weights, folder, _ = transferred
    frozen, tuned = (open_network(folder / "checkpoints" / f"{arm}-1").variables for arm in ("frozen", "tuned"))
    jax.tree.map(np.testing.assert_array_equal, frozen["batch_stats"], weights.variables["batch_stats"])
    for layer, own in weights.variables["params"].items():
        if layer == "classifier":
            assert not np.array_equal(frozen["params"][layer]["kernel"], own["kernel"])
        else:
            jax.tree.map(np.testing.assert_array_equal, frozen["params"][layer], own)
    assert not np.array_equal(tuned["params"]["stem"]["conv"]["kernel"], weights.variables["params"]["stem"]["conv"]["kernel"])  # fmt: skip


def test_other_weights_are_another_study(transferred, changed, tiny):
    _, folder, _ = transferred
    arms = (Arm("scratch"), Arm("tuned", started=True), Arm("frozen", training={"freeze": "backbone"}, started=True))
    other = str(changed[0] / "checkpoints" / "base-1")
    study, start = with_weights(dataclasses.replace(STUDY, arms=arms, model={"unit_strides": None}, weights=other), silent())  # fmt: skip
    with pytest.raises(UserError, match="contains another study: weights is .*base-0.* there .*base-1.* here; the trained weights it"):  # fmt: skip
        run(tiny, folder, study, start=start)


def test_a_backbone_is_not_frozen_without_weights(tiny, tmp_path):
    study = dataclasses.replace(STUDY, arms=(Arm("base"), Arm("frozen", training={"freeze": "backbone"})))
    with pytest.raises(UserError, match="--freeze requires trained weights"):
        run(tiny, tmp_path / "out", study)
    assert not (tmp_path / "out").exists()


def test_settings_that_the_weights_do_not_have_are_refused(changed):
    weights = str(changed[0] / "checkpoints" / "base-0")
    study = dataclasses.replace(STUDY, arms=(Arm("base", started=True),), model={"width_multiplier": 0.2}, weights=weights)  # fmt: skip
    with pytest.raises(
        UserError, match="--width-multiplier 0.2 does not match .*base-0, which has 0.1; remove the flag"
    ):
        with_weights(study, silent())


# --- A user's own network --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tiny, tmp_path_factory):
    """Train a study of a block defined in this test; return (folder, `Trained`, study)."""
    model = {**STUDY.model, "convention": "pytorch", "stages": ((1, 8, 2, 2),)}
    study = dataclasses.replace(STUDY, arms=(Arm("own", {"block": HalfShortcut}),), model=model)
    folder = tmp_path_factory.mktemp("own") / "out"
    return folder, run(tiny, folder, study), study


def test_a_block_of_ones_own_is_trained_and_counted(own, tiny):
    _, trained, study = own
    assert trained.runs == 2
    plain = network_of_arm(study, Arm("plain"), tiny)
    arm = trained.summary["arms"]["own"]
    # Half a shortcut costs as much as a whole one.
    assert arm["parameters"] == count_parameters(plain, (12, 12, 1)) > 1000
    assert arm["multiply_adds"] == count_multiply_adds(plain, (12, 12, 1)) > 0
    assert trained.summary["model"]["stages"] == [[1, 8, 2, 2]]


def test_a_study_of_ones_own_blocks_continues(own, tiny):
    folder, trained, study = own
    again = run(tiny, folder, study)
    assert (again.runs, again.summary) == (0, trained.summary)


def test_a_saved_network_says_that_its_block_has_to_be_handed_in(own):
    path = own[0] / "checkpoints" / "own-0"
    with pytest.raises(UserError, match="HalfShortcut.*pass a custom block as a class"):
        load_weights(path)
    network = load_weights(path, blocks=[HalfShortcut])
    assert network.model.block is HalfShortcut
    assert network.variables["params"]["classifier"]["bias"].shape == (10,)


def test_a_network_of_ones_own_blocks_is_not_written_as_another_code_bases(own, tmp_path):
    network = load_weights(own[0] / "checkpoints" / "own-0", blocks=[HalfShortcut])
    with pytest.raises(UserError, match="the network is not the published mobilenet_v2 but differs in .*block") as error:  # fmt: skip
        export_weights(tmp_path / "own.safetensors", network, "torchvision")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    # The same if the block is the only difference.
    published = create_model("mobilenet_v2", convention="pytorch", block=HalfShortcut, num_classes=10)
    with pytest.raises(UserError, match="differs in block"):
        export_weights(tmp_path / "own.safetensors", network.replace(model=published), "torchvision")
