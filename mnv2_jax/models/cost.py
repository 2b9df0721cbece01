"""What a network costs: parameters and multiply-adds, layer by layer."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class LayerCost(NamedTuple):
    """The cost of one convolution or fully connected layer for one image, batch norm and bias left out."""

    name: str
    output_shape: tuple[int, ...]  # without the batch axis
    parameters: int
    multiply_adds: int


def layer_costs(model: nn.Module, image_shape: tuple[int, int, int]) -> list[LayerCost]:
    """Cost of every layer with a kernel, in the order in which they run, for images of (height, width, channels).

    A kernel meets every output position once, so its multiply-adds are its size times the positions. Nothing
    is computed: the model runs on abstract shapes.
    """
    costs: list[LayerCost] = []

    def record(next_call, args, kwargs, context):
        output = next_call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and module.has_variable("params", "kernel"):
            size = module.get_variable("params", "kernel").size
            shape = output.shape[1:]
            costs.append(LayerCost("/".join(module.path), shape, size, size * math.prod(shape[:-1])))
        return output

    with nn.intercept_methods(record):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    return costs


def count_multiply_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of one image, as the paper counts them: 300.8 million at width 1.0 and 224 pixels."""
    return sum(layer.multiply_adds for layer in layer_costs(model, image_shape))


def count_parameters(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Trainable parameters, scale and bias of batch norm included, running statistics not."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
