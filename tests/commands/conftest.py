"""Fixtures for commands: running them in this process, and networks that compile in seconds."""

import dataclasses
import functools
import json
import os
import sys
from typing import Any

import jax
import numpy as np
import pytest
from filelock import FileLock

from mnv2_jax import MobileNetV2, Network, cli
from mnv2_jax.__main__ import main
from mnv2_jax.commands import train
from mnv2_jax.data.preprocessing import PREPROCESSING
from mnv2_jax.models import names
from mnv2_jax.models.backbone import Stage
from mnv2_jax.network import save_network, variable_shapes
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.training import run as run_module
from mnv2_jax.training.devices import Devices
from mnv2_jax.training.programs import Programs, trace_programs
from mnv2_jax.weights import mapping
from mnv2_jax.weights.files import safetensors_bytes
from mnv2_jax.weights.transformers import TRANSFORMERS

STAGES = (Stage(1, 16, 1, 1), Stage(2, 24, 1, 2))


class TwoBlocks(MobileNetV2):
    """MobileNetV2 with two blocks instead of seventeen."""

    stages: tuple[Stage, ...] = STAGES


@pytest.fixture
def two_blocks(monkeypatch):
    """Give mobilenet_v2 two blocks in commands, which have no flag for stages."""
    monkeypatch.setitem(names.MODELS, "mobilenet_v2", TwoBlocks)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process; return exit code, output and errors."""
    # These would change this process permanently.
    monkeypatch.setattr(cli, "silence_libraries", lambda: None)
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mnv2_jax", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as stop:
            return (stop.code, *capsys.readouterr())
        return (0, *capsys.readouterr())

    return run


@pytest.fixture
def refused(run, tmp_path, monkeypatch):
    """Run a command that must be refused with exit code 2, one line and no file made; return the line."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def refused(*arguments):
        code, output, errors = run(*arguments)
        assert (code, output) == (2, "")
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        assert list((tmp_path / "here").iterdir()) == []
        return errors.removeprefix("error: ").rstrip("\n")

    return refused


def random_network(model, source="mnv2_jax", preprocessing="keras", class_names=("cat", "dog", "bird"), **changes):
    generator = np.random.default_rng(0)
    shapes = variable_shapes(model)
    variables = jax.tree.map(lambda leaf: generator.uniform(0.1, 0.5, leaf.shape).astype(np.float32), shapes)
    task = Classification(model.num_classes)
    return Network(model, variables, task, source, preprocessing, 32, class_names, **changes)


@pytest.fixture(scope="module")
def network():
    """Return a network of two blocks and three classes, with random weights."""
    return random_network(MobileNetV2(3, 0.1, stages=STAGES), preprocessing="torchvision")


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    """Return the folder of that network."""
    folder = tmp_path_factory.mktemp("networks") / "three"
    save_network(folder, network)
    return folder


@pytest.fixture
def hub_network(two_blocks, monkeypatch, tmp_path):
    """Yield a reference to a network of two blocks in the cache of the Hugging Face hub, and the network."""
    modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "huggingface_hub"}
    for name in modules:  # huggingface_hub reads its environment when it is imported
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    how = dataclasses.replace(PREPROCESSING["transformers"], crop=0.5)  # the central 32 of 64 pixels
    network = random_network(TwoBlocks(3, 0.35), "transformers", how)
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hf" / "hub" / "models--somebody--mobilenet"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    labels = dict(enumerate(network.class_names))
    (snapshot / "config.json").write_text(
        json.dumps({"model_type": "mobilenet_v2", "image_size": 32, "id2label": labels})
    )
    tensors = mapping.export(TRANSFORMERS, network.model, network.variables)
    (snapshot / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    yield "hf://somebody/mobilenet", network
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]


# --- Runs ------------------------------------------------------------------------------------------------

FLAGS = ["--width-multiplier", "0.1", "--epochs", "1", "--batch-size", "16", "--train-images", "80",
         "--evaluations", "2", "--resolution", "12", "--ema-decay", "0.5"]  # fmt: skip
"""Flags of a run of five steps on digits."""

_programs: dict[Any, Programs] = {}


def compiled_once(learner, dataset, recipe, devices):
    """`trace_programs` with a cache of compiled programs."""
    what = learner.model, learner.task, learner.trained_layers, recipe, devices
    key = (*what, type(dataset), dataset.preprocessing, dataset.image_shape, dataset.train_images)
    if key not in _programs:
        _programs[key] = trace_programs(learner, dataset, recipe, devices)()
    data = dataset.train_data(recipe.batch_size, recipe.accumulation)
    return lambda: dataclasses.replace(_programs[key], learner=learner, data=data)


def make_quick(patch):
    """Train runs with two blocks on one device, and compile their programs once."""
    patch.setitem(names.MODELS, "mobilenet_v2", TwoBlocks)
    patch.setattr(run_module, "trace_programs", compiled_once)
    patch.setattr(Devices, "create", functools.partial(Devices.create, per_run=1))


@pytest.fixture
def quick(monkeypatch):
    """Apply `make_quick`."""
    make_quick(monkeypatch)


@pytest.fixture(scope="session")
def finished(digits, tmp_path_factory):
    """Return the folder of a run, trained by the first test process that needs it."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = shared / "finished_run"
    with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as patch:
        if not (folder / "summary.json").exists():
            make_quick(patch)
            train.main(cli.parse(train.Options, "", [*FLAGS, "--out", str(folder)]))
    return folder
