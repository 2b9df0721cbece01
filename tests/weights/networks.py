"""Networks with random weights, as loaded from each source."""

import jax
import numpy as np
import safetensors.numpy

from mnv2_jax import Network, create_model
from mnv2_jax.network import variable_shapes
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.weights.load import SOURCES


def random_network(source, model="mobilenet_v2", **settings):
    """Return a network as `load_weights` would for a file of that source."""
    convention = SOURCES[source].convention
    made = create_model(model, **{"width_multiplier": 0.25, "num_classes": 7, "convention": convention, **settings})
    generator = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: generator.uniform(0.1, 1, leaf.shape).astype(np.float32), variable_shapes(made)
    )
    preprocessing = SOURCES[source].preprocessing.get(model, "keras")
    return Network(made, variables, Classification(made.num_classes), source, preprocessing, 224)


def write(path, tensors):
    safetensors.numpy.save_file(tensors, path)
    return path


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
