"""What the tests against other packages share: their networks with random weights and random statistics.

`pip install -e '.[test,peers]'` and `pytest -m peers` run them; without the packages they are not collected.
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
        # Their warnings at import are not ours to mend.
        warnings.simplefilter("ignore")
        for name in PEERS:
            importlib.import_module(name)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "peers":
            item.add_marker(pytest.mark.peers)
            item.add_marker(pytest.mark.filterwarnings("ignore"))


def randomized(state, seed=0):
    """Arrays in the place of a network's own: fan-in-scaled kernels, and norms that do something.

    `state` maps names to arrays; a name's end tells what it is, in PyTorch's words or Keras's.
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
            # A depthwise kernel sees 9 values, whichever axis its channels are on.
            seen = np.prod(shape) / max(shape) if 1 in shape[1:] and 3 in shape else np.prod(shape) / max(shape[0], 1)
            result[name] = (generator.normal(size=shape) * (2 / max(seen, 9)) ** 0.5).astype(np.float32)
    return result


def randomize_torch(network, seed=0):
    """The network itself, in evaluation mode."""
    import torch

    state = {name: value.numpy() for name, value in network.state_dict().items()}
    network.load_state_dict({name: torch.tensor(value) for name, value in randomized(state, seed).items()})
    return network.eval()


def randomize_keras(network, seed=0):
    """The network itself."""
    state = {variable.path: variable.numpy() for variable in network.weights}
    values = randomized(state, seed)
    for variable in network.weights:
        variable.assign(values[variable.path])
    return network


@pytest.fixture(scope="session")
def images():
    """Makes a batch of a size: the same for the same size."""
    return lambda size, count=2: np.random.default_rng(size).uniform(-1, 1, (count, size, size, 3)).astype(np.float32)
