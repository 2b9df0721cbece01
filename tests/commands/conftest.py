"""What the commands' tests share: a command in this process, and networks that compile in seconds."""

import json
import os
import sys

import jax
import numpy as np
import pytest

from mnv2_jax import MobileNetV2, Network, cli
from mnv2_jax.__main__ import main
from mnv2_jax.models import names
from mnv2_jax.models.backbone import Stage
from mnv2_jax.network import save_network, variable_shapes
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.weights import mapping
from mnv2_jax.weights.files import write_safetensors
from mnv2_jax.weights.transformers import TRANSFORMERS

STAGES = (Stage(1, 16, 1, 1), Stage(2, 24, 1, 2))


class TwoBlocks(MobileNetV2):
    """MobileNetV2 with two blocks instead of seventeen."""

    stages: tuple[Stage, ...] = STAGES


@pytest.fixture(scope="module")
def two_blocks():
    """Whatever a command calls mobilenet_v2 has two blocks: stages cannot be named on the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(names.MODELS, "mobilenet_v2", TwoBlocks)
        yield TwoBlocks


@pytest.fixture
def run(monkeypatch, capsys):
    """A command in this process: exit code, output, errors."""
    # These change the process for good.
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
    """What a command is refused with: exit code 2, nothing on the output, one line of errors, no file made."""
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


@pytest.fixture(scope="session")
def network():
    """Three classes by two blocks, of random weights."""
    return random_network(MobileNetV2(3, 0.1, stages=STAGES), preprocessing="torchvision")


@pytest.fixture(scope="session")
def saved(network, tmp_path_factory):
    """The folder of that network."""
    folder = tmp_path_factory.mktemp("networks") / "three"
    save_network(folder, network)
    return folder


@pytest.fixture
def hub_network(monkeypatch, tmp_path):
    """A reference to a network with the two blocks, found in the cache of the Hugging Face hub, and the network."""
    modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "huggingface_hub"}
    for name in modules:  # it reads its environment when it is imported
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    monkeypatch.setitem(names.MODELS, "mobilenet_v2", TwoBlocks)
    network = random_network(TwoBlocks(3, 0.35), "transformers", "transformers")
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
    write_safetensors(snapshot / "model.safetensors", tensors)
    yield "hf://somebody/mobilenet", network
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]
