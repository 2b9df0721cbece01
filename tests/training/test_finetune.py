"""Starting from trained weights: what is copied, what stays frozen, and what is refused."""

import dataclasses
import io
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from mnv2_jax.data.batch import Batch
from mnv2_jax.data.preprocessing import PREPROCESSING, Preprocessing
from mnv2_jax.errors import Preempted, UserError
from mnv2_jax.models.create import create_model
from mnv2_jax.network import Network, open_network, save_network, tree_digest, variable_shapes
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.training.config import Execution
from mnv2_jax.training.create import create_learner, create_network, network_of
from mnv2_jax.training.devices import DATA, SEED, Devices, Program
from mnv2_jax.training.evaluation import evaluate_on
from mnv2_jax.training.finetune import Start, check_fits, open_trained, with_settings_of
from mnv2_jax.training.metrics import read_records
from mnv2_jax.training.programs import Member
from mnv2_jax.training.progress import Reporter
from mnv2_jax.training.run import prepare
from mnv2_jax.training.step import train_step
from mnv2_jax.weights.load import export_weights
from training.runs import NETWORK, STAGES, compile_once, results, run_tiny, tiny_run

# Six steps. kernels="xla" compiles faster.
SHORT = {"epochs": 1, "accumulation": 1, "dropout_rate": 0.0, "evaluations": 1}
MODEL = {"name": "mobilenet_v2", "width_multiplier": 0.1, "stages": STAGES, "kernels": "xla"}
KERNELS = {"kernels": "xla"}
WHOLE = Preprocessing("resize", 1.0, "bilinear", PREPROCESSING["torchvision"].mean, PREPROCESSING["torchvision"].std)
"""Preprocessing of digits for a network with torchvision's: they are not cropped."""
UNRAISABLE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _data(digits):
    """Make sure that digits are prepared."""


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """Return the folder of a run with a moving average, trained from scratch."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_tiny(folder, model={**MODEL, "unit_strides": 0}, training=SHORT)
    return folder


@pytest.fixture(scope="module")
def network(trained):
    """Return the network that this run saved."""
    return open_network(trained / "network")


def random_network(model, seed=0, **settings):
    """Return a network with random weights."""
    shapes = variable_shapes(model, settings.get("image_channels", 3))
    generator = np.random.default_rng(seed)
    variables = jax.tree.map(lambda leaf: generator.uniform(0.1, 1, leaf.shape).astype(np.float32), shapes)
    usual = {"source": "elsewhere", "preprocessing": "keras", "resolution": 12}
    return Network(model=model, variables=variables, task=Classification(model.num_classes), **{**usual, **settings})


@pytest.fixture(scope="module")
def colored(digits, tmp_path_factory):
    """Save a network for colour images, with another convention and preprocessing than digits."""
    model = NETWORK.clone(num_classes=7, convention="pytorch")
    path = tmp_path_factory.mktemp("colored") / "network"
    save_network(path, random_network(model, preprocessing="torchvision"))
    return path


@pytest.fixture(scope="module")
def torchvision(tmp_path_factory):
    """Write a torchvision file; return its path and the network in it."""
    model = create_model("mobilenet_v2", width_multiplier=0.25, num_classes=7, convention="pytorch")
    found = random_network(model, source="torchvision", preprocessing="torchvision", resolution=224)
    path = tmp_path_factory.mktemp("torchvision") / "weights.safetensors"
    export_weights(path, found, "torchvision")
    return path, found


def prepared(weights, model=None, **training):
    """Prepare a run from weights; return (run, data set, start, printed text)."""
    log = io.StringIO()
    run = tiny_run(model=KERNELS if model is None else model, training={**SHORT, **training}, weights=str(weights))
    return *prepare(run, Execution(), Reporter(Console(file=log, width=300))), log.getvalue()


def backbone(variables):
    """Return all variables but the classifier's."""
    params = {name: layer for name, layer in variables["params"].items() if name != "classifier"}
    return {"params": params, "batch_stats": variables["batch_stats"]}


ONE = (Member("mobilenet_v2", 5),)


def first_state(run, dataset, start, members=ONE):
    """Return the state before the first step, with and without the weights."""
    devices = Devices.create(1, 2)
    programs = compile_once(create_learner(run, dataset, 2), dataset, run.training, devices)()
    fresh = programs.start(members)
    state = start.overlay(programs.start(members), programs.learner, devices, [True])
    return (jax.tree.map(lambda leaf: np.asarray(leaf)[0], each) for each in (state, fresh))


# --- What is taken over ----------------------------------------------------------------------------------


def test_a_run_s_folder_is_the_network_that_it_left(trained, network):
    found, settings, said = open_trained(trained)
    assert tree_digest(found.variables) == tree_digest(network.variables)
    assert (settings["seed"], said) == (5, [])


def test_an_unfinished_run_s_folder_is_its_last_checkpoint(trained, network, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("network", "summary.json"))
    averaged, _, said = open_trained(folder)
    assert said == ["using the network after step 6, from a checkpoint of the run"]
    assert tree_digest(averaged.variables) == tree_digest(network.variables)
    # The same for a finished run, if the average is not asked for.
    last, _, _ = open_trained(trained, averaged=False)
    digest = tree_digest(jax.tree.map(lambda leaf: np.asarray(leaf)[None], last.variables["params"]))
    assert digest == json.loads((trained / "summary.json").read_text())["parameters_sha256"]
    assert tree_digest(last.variables["params"]) != tree_digest(averaged.variables["params"])


@pytest.mark.parametrize("inside", [".", "network"])
def test_of_the_same_classes_all_is_kept(trained, network, inside):
    """Bitwise, including the moving average; the optimizer state is initial."""
    run, dataset, start, said = prepared(trained / inside)
    assert "classifier" not in said
    state, fresh = first_state(run, dataset, start)
    assert tree_digest(state.variables()) == tree_digest(state.variables(averaged=True))
    assert tree_digest(state.variables()) == tree_digest(network.variables)
    assert tree_digest(state.variables()) != tree_digest(fresh.variables())
    assert tree_digest((state.opt_state, state.step, state.seed)) == tree_digest(
        (fresh.opt_state, fresh.step, fresh.seed)
    )


@pytest.mark.parametrize(("source", "anew"), [("mnv2_jax", True), ("elsewhere", True), ("torchvision", False)], ids=str)
def test_a_classifier_of_other_class_names_starts_anew_if_they_are_ours(network, tmp_path, source, anew):
    """Other code bases may have other names for the same classes."""
    names = tuple(f"number {index}" for index in range(10))
    save_network(tmp_path / "renamed", network.replace(class_names=names, source=source))
    run, dataset, start, said = prepared(tmp_path / "renamed")
    why = f"{tmp_path / 'renamed'} has 10 classes with different names than those of the data"
    line = f"the classifier is newly initialised: {why}\n"
    assert said == (line if anew else "")
    state, fresh = first_state(run, dataset, start)
    assert tree_digest(backbone(state.variables())) == tree_digest(backbone(network.variables))
    expected = fresh.params if anew else network.variables["params"]
    assert tree_digest(state.params["classifier"]) == tree_digest(expected["classifier"])
    assert tree_digest(state.ema["classifier"]) == tree_digest(expected["classifier"])


@pytest.mark.parametrize(("classes", "has"), [(7, "7 classes"), (0, "no classes")])
def test_a_classifier_of_another_number_of_classes_starts_anew(tmp_path, classes, has):
    saved = random_network(NETWORK.clone(num_classes=classes), image_channels=1)
    save_network(tmp_path / "x", saved)
    run, dataset, start, said = prepared(tmp_path / "x")
    assert said == f"the classifier is newly initialised: {tmp_path / 'x'} has {has}, the data have 10\n"
    state, fresh = first_state(run, dataset, start)
    assert tree_digest(backbone(state.variables())) == tree_digest(backbone(saved.variables))
    assert tree_digest(state.params["classifier"]) == tree_digest(fresh.params["classifier"])


ANEW = "the classifier is newly initialised:"


def test_a_classifier_of_sigmoids_starts_anew():
    model = NETWORK.clone(num_classes=3)
    start = random_network(model, source="keras").replace(task=Classification(3, outputs="sigmoid"))
    taken = Start.of(start, model, ("a", "b", "c"), "x")
    assert taken.said == (f"{ANEW} x has sigmoid outputs, but training is for one class per image",)
    assert "classifier" not in taken.variables["params"]


def test_what_the_images_are_like_follows_the_weights(torchvision):
    """Grey digits become colour images with torchvision's normalization; the width comes from the weights too."""
    path, saved = torchvision
    run, dataset, start, said = prepared(path, model={**KERNELS, "convention": None, "width_multiplier": None})
    assert f"the classifier is newly initialised: {path} has 7 classes, the data have 10" in said.splitlines()
    assert (dataset.image_shape, dataset.preprocessing) == ((12, 12, 3), WHOLE)
    made = network_of(run, dataset)
    assert (made.model.convention, made.model.width_multiplier, made.model.num_classes) == ("pytorch", 0.25, 10)
    assert (made.preprocessing, made.image_channels, made.class_names) == (WHOLE, 3, dataset.class_names)
    assert tree_digest(start.variables) == tree_digest(backbone(saved.variables))


def test_a_run_may_say_what_its_weights_are(trained):
    said, dataset, *_ = prepared(trained, model={**MODEL, "unit_strides": 0})
    unsaid, *_ = prepared(trained)
    assert create_network(said, dataset) == create_network(unsaid, dataset)


# --- What is left as it is -------------------------------------------------------------------------------

FROZEN = {
    "eight devices, microbatches and an average": dict(devices=8, training={"ema_decay": 0.9, "accumulation": 2}),
    "one device": dict(devices=1, training={"ema_decay": 0.0}),
    "pmap": dict(devices=8, training={"ema_decay": 0.9}, execution={"parallel": "pmap"}),
}


def fine_tune(folder, weights, how, **changes):
    """Train only the classifier of `weights`."""
    settings = {**FROZEN[how], **changes}
    training = {**SHORT, "freeze": "backbone", **settings.pop("training")}
    return run_tiny(folder, model=KERNELS, weights=str(weights), training=training, **settings)


@pytest.fixture(scope="module")
def frozen(trained, colored, tmp_path_factory):
    """Return a cached function that trains only the classifier and gives (folder, weights, summary)."""
    done = {}

    def of(how):
        if how not in done:
            folder = tmp_path_factory.mktemp("frozen") / "run"
            weights = colored if how == "one device" else trained
            done[how] = folder, weights, fine_tune(folder, weights, how)
        return done[how]

    return of


@pytest.mark.parametrize("how", FROZEN)
def test_a_frozen_backbone_stays_as_it_is_to_the_bit(frozen, how):
    """Parameters and statistics, averaged or not; the classifier learns."""
    folder, weights, _ = frozen(how)
    before = open_trained(weights)[0].variables
    for averaged in (True, False):
        after = open_trained(folder, averaged)[0].variables
        assert tree_digest(backbone(after)) == tree_digest(backbone(before))
        old, new = before["params"]["classifier"]["kernel"], after["params"]["classifier"]["kernel"]
        assert new.shape[1] == 10
        assert old.shape != new.shape or not np.array_equal(old, new)
    losses = [r.metrics["loss"] for r in read_records(folder / "metrics.jsonl") if r.split == "train"]
    assert np.isfinite(losses).all()


def test_a_frozen_run_trains_alike_under_jit_and_pmap(trained, frozen, tmp_path):
    """They differ in accumulation, which does not matter with frozen statistics."""
    one, other = (
        open_trained(frozen(how)[0], averaged=False)[0].variables["params"]["classifier"]
        for how in ("eight devices, microbatches and an average", "pmap")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), one, other)


def test_the_network_of_a_fine_tuned_run_takes_the_images_of_its_weights(frozen):
    folder, _, summary = frozen("one device")
    left = open_network(folder / "network")
    assert (left.preprocessing, left.image_channels, left.resolution) == (WHOLE, 3, 12)
    assert left.model.convention == "pytorch"
    assert left.class_names == tuple("0123456789")
    assert summary["settings"]["weights_sha256"]
    found = evaluate_on(left, "digits", "test").metrics
    assert found == pytest.approx(summary["test"], rel=1e-5)


def one_step(dataset, learner, start):
    """Return the state after a step on one batch, on one device."""
    images = np.asarray(dataset.normalization(dataset.train.images[:32]))
    batch = Batch(images, dataset.train.targets[:32], np.ones(32, np.float32), np.arange(32, dtype=np.int32))
    devices = Devices.create(1, 1)
    state = start.replace(opt_state=learner.optimizer.init(start.params))
    state = jax.tree.map(lambda leaf: np.asarray(leaf)[None], state)
    program = Program(lambda state, batch: train_step(state, batch, learner)[0], [SEED, DATA], [state, batch])
    after = devices.compile(program)(devices.put(state, SEED), devices.put(batch, DATA))
    return jax.tree.map(lambda leaf: np.asarray(leaf)[0], after)


@pytest.fixture(scope="module")
def steps(trained):
    """Return the state before, and after one step of plain SGD at two learning rates of the backbone."""
    plain = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "warmup": 0.0, "frozen_batch_norm": True}
    run, dataset, _, _ = prepared(trained, **plain)
    state, _ = first_state(*prepared(trained)[:3])
    state = state.replace(ema=None)
    found = {}
    for factor in (1.0, 0.1):
        training = dataclasses.replace(run.training, ema_decay=0.0, backbone_learning_rate=factor)
        learner = create_learner(dataclasses.replace(run, training=training), dataset, 1)
        found[factor] = one_step(dataset, learner, state)
    return state, found


def test_frozen_batch_norm_leaves_the_statistics_and_trains_the_kernels(steps):
    before, after = steps[0], steps[1][1.0]
    assert tree_digest(after.batch_stats) == tree_digest(before.batch_stats)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, after.params)
    kernels = [
        path for path, moved in jax.tree_util.tree_leaves_with_path(changed) if path[-1].key == "kernel" and moved
    ]
    assert len(kernels) == 1 + 3 + 1 + 1  # stem, block, head and classifier


def test_the_backbone_s_step_is_its_share_of_the_full_one(steps):
    before, found = steps
    full, slow = (jax.tree.map(np.subtract, found[factor].params, before.params) for factor in (1.0, 0.1))
    jax.tree.map(np.testing.assert_array_equal, slow["classifier"], full["classifier"])
    for name in full:
        if name != "classifier":
            # A step that was added to a parameter near 1 is known only to 1e-7.
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, 0.1 * b, rtol=1e-5, atol=2e-7), slow[name], full[name]
            )
    assert np.abs(full["stem"]["conv"]["kernel"]).max() > 1e-4


# --- Stopped and continued -------------------------------------------------------------------------------


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_fine_tuned_run_that_was_stopped_is_the_one_that_was_not(frozen, tmp_path):
    how = "eight devices, microbatches and an average"
    folder, weights, summary = frozen(how)
    with pytest.raises(Preempted, match="saved after step 1"):
        fine_tune(tmp_path / "run", weights, how, on_start=terminate)
    log = io.StringIO()
    found = fine_tune(tmp_path / "run", weights, how, log=log)
    assert "resuming from step 1" in log.getvalue()
    assert found["parameters_sha256"] == summary["parameters_sha256"]
    assert found["test"] == summary["test"]
    last = [results(read_records(each / "metrics.jsonl"))[-1] for each in (folder, tmp_path / "run")]
    assert last[0] == last[1]


def test_a_run_from_weights_with_all_trained_continues_too(trained, network, tmp_path):
    """It differs from the run from scratch, and from a run from other weights of the same name."""
    weights = tmp_path / "weights"
    save_network(weights, network)
    settings = dict(model=MODEL, training=SHORT)
    whole = run_tiny(tmp_path / "whole", weights=str(weights), **settings)
    with pytest.raises(Preempted, match="saved after step 1"):
        run_tiny(tmp_path / "run", weights=str(weights), on_start=terminate, **settings)
    with pytest.raises(UserError, match=r"contains another run: weights is .* there and None here; weights_sha256 is"):
        run_tiny(tmp_path / "run", **settings)
    save_network(weights, network.replace(variables=jax.tree.map(lambda leaf: leaf + 1, network.variables)))
    with pytest.raises(UserError, match="contains another run: the trained weights it starts from differ from those"):
        run_tiny(tmp_path / "run", weights=str(weights), **settings)
    save_network(weights, network)
    found = run_tiny(tmp_path / "run", weights=str(weights), **settings)
    assert found["parameters_sha256"] == whole["parameters_sha256"]
    assert found["parameters_sha256"] != json.loads((trained / "summary.json").read_text())["parameters_sha256"]


# --- Refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"width_multiplier": 0.2}, "--width-multiplier 0.2 does not match .*, which has 0.1; remove the flag"),
        ({"convention": "pytorch"}, "--convention pytorch does not match .*, which has tensorflow; remove the flag"),
        ({"name": "mobilenet_v1"}, "--model mobilenet_v1 does not match .*, which has mobilenet_v2; remove the flag"),
        ({"expansion": 6.0}, "--expansion 6.0 does not match .*, which has 2; remove the flag"),
        ({"kernel_size": 5}, "--kernel-size 5 does not match .*, which has 3; remove the flag"),
        ({"bottleneck_activation": "relu6"}, "--bottleneck-activation relu6 does not match .*, which has linear"),
        (
            {"stages": ((2, 160, 1, 1),)},
            r"does not fit the network: .*block_0/project.* has shape .*, expected",
        ),
    ],
)
def test_what_the_weights_are_not_is_refused_in_one_line(trained, tmp_path, model, says):
    with pytest.raises(UserError, match=says) as error:
        run_tiny(tmp_path / "run", model={**KERNELS, **model}, weights=str(trained), training=SHORT)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def truncated(path, folder):
    copy = folder / path.name
    copy.write_bytes(path.read_bytes()[:-1000])
    return copy


def reshaped(path, folder):
    import safetensors.numpy

    tensors = safetensors.numpy.load_file(path)
    tensors["features.3.conv.1.0.weight"] = tensors["features.3.conv.1.0.weight"][:, :, :2].copy()
    safetensors.numpy.save_file(tensors, folder / path.name)
    return folder / path.name


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncated, "weights.safetensors"),
        (reshaped, r"features.3.conv.1.0.weight has shape \(\d+, 1, 2, 3\), expected"),
        (lambda path, folder: folder / "nowhere", "nowhere does not exist"),
    ],
)
def test_files_that_cannot_be_read_are_refused_in_one_line(torchvision, tmp_path, damage, says):
    weights = damage(torchvision[0], tmp_path)
    with pytest.raises(UserError, match=says) as error:
        run_tiny(tmp_path / "run", model=KERNELS, weights=str(weights), training=SHORT)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@UNRAISABLE
def test_a_damaged_run_is_refused_in_one_line(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "trained")
    for path in (folder / "network" / "variables").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(UserError, match="the network .* cannot be read; it may be damaged") as error:
        run_tiny(tmp_path / "run", model=KERNELS, weights=str(folder), training=SHORT)
    assert "\n" not in str(error.value)
    shutil.rmtree(folder / "network")
    shutil.rmtree(folder / "checkpoints" / "6")
    with pytest.raises(UserError, match="has no readable checkpoint yet; train it first"):
        run_tiny(tmp_path / "run", model=KERNELS, weights=str(folder), training=SHORT)
    assert not (tmp_path / "run").exists()


def test_a_study_is_no_network(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"experiment": "x", "baseline": "linear"}))
    with pytest.raises(UserError, match="is a study; choose one of its networks, .*/checkpoints/ARM-SEED"):
        open_trained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is damaged"):
        open_trained(tmp_path)


def test_what_does_not_fit_is_named():
    shapes = {"params": {name: jax.ShapeDtypeStruct((2, 3), jnp.float32) for name in "abcde"}}
    theirs = {"params": {"a": np.zeros((2, 4)), "x": np.zeros(1)}}
    with pytest.raises(UserError) as error:
        check_fits(theirs, shapes, "weights")
    assert str(error.value) == (
        "weights does not fit the network: params/b is missing; params/c is missing; params/d is missing and 3 more"
    )


def test_weights_are_the_run_s_that_asks_for_them(network):
    """The network comes from the weights; the run's own settings stay."""
    run = with_settings_of(tiny_run(model={"kernels": "tuned"}, training={"dropout_rate": 0.3}, weights="x"), network)
    assert (run.model["name"], run.model["width_multiplier"], run.model["kernels"]) == ("mobilenet_v2", 0.1, "tuned")
    assert not {"num_classes", "dropout_rate", "batch_norm_momentum", "frozen_batch_norm"} & run.model.keys()
    assert Start.of(network, network.model, network.class_names, "x").said == ()
