"""Fixtures of the tests against other packages: their networks with random weights and statistics.

Run them with `pip install -e '.[test,peers]'` and `pytest -m peers`; without the packages they are not collected.
"""

import importlib.util
import os
import warnings

import numpy as np
import pytest

PEERS = ("torch", "torchvision", "timm", "transformers", "keras", "tensorflow")
os.environ["KERAS_BACKEND"] = "jax"
os.environ["HF_HUB_OFFLINE"] = "1"

if any(importlib.util.find_spec(name) is None for name in PEERS):
    collect_ignore_glob = ["test_*.py"]
else:
    with warnings.catch_warnings():
        # We cannot fix warnings that they raise at import.
        warnings.simplefilter("ignore")
        for name in PEERS:
            importlib.import_module(name)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "peers":
            item.add_marker(pytest.mark.peers)
            item.add_marker(pytest.mark.filterwarnings("ignore"))


def randomized(state, seed=0):
    """Return random arrays for a network: fan-in-scaled kernels, and norms that are not the identity.

    `state` maps names to arrays. The end of a name, in PyTorch's or Keras's terms, says what the array is.
    """
    generator = np.random.default_rng(seed)
    result = {}
    for name, value in state.items():
        shape = np.shape(value)
        if name.endswith(("num_batches_tracked", "seed_generator_state")):
            result[name] = value
        elif name.endswith(("running_var", "moving_variance")):
            result[name] = generator.uniform(0.5, 2, shape).astype(np.float32)
        elif len(shape) == 1 and name.endswith(("weight", "gamma")):
            result[name] = generator.uniform(0.5, 1.5, shape).astype(np.float32)
        elif len(shape) == 1:
            result[name] = (0.3 * generator.normal(size=shape)).astype(np.float32)
        else:
            # A depthwise kernel has fan-in 9, whichever axis holds its channels.
            seen = np.prod(shape) / max(shape) if 1 in shape[1:] and 3 in shape else np.prod(shape) / max(shape[0], 1)
            result[name] = (generator.normal(size=shape) * (2 / max(seen, 9)) ** 0.5).astype(np.float32)
    return result


def randomize_torch(network, seed=0):
    """Randomize a network in place; return it in evaluation mode."""
    import torch

    state = {name: value.numpy() for name, value in network.state_dict().items()}
    network.load_state_dict({name: torch.tensor(value) for name, value in randomized(state, seed).items()})
    return network.eval()


def randomize_keras(network, seed=0):
    """Randomize a network in place and return it."""
    state = {variable.path: variable.numpy() for variable in network.weights}
    values = randomized(state, seed)
    for variable in network.weights:
        variable.assign(values[variable.path])
    return network


@pytest.fixture(scope="session")
def images():
    """Return a function that makes a batch of a size; the same size gives the same images."""
    return lambda size, count=2: np.random.default_rng(size).uniform(-1, 1, (count, size, size, 3)).astype(np.float32)
