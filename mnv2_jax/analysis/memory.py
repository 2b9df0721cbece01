"""Memory of inference: by the paper's formula (Sec. 5.1), and as compiled."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

from mnv2_jax.models.cost import Unit

BYTES = 4
"""Bytes per value (float32)."""


def part_bytes(unit: Unit, split: int) -> int:
    """Return the bytes that the paper's formula counts: a block's input, output, and 1/`split` of each inner tensor.

    Sec. 5.1 uses parts of few channels, so that input and output dominate: |s^2 k| + |s'^2 k'| + O(max(s^2, s'^2)).
    """
    inner = sum(
        math.prod(layer.output_shape[:2]) * -(-layer.output_shape[2] // min(split, layer.output_shape[2]))
        for layer in unit.layers[:-1]
    )
    return unit.activation_bytes(BYTES) + inner * BYTES


class Compiled(NamedTuple):
    """A compiled program and its memory.

    Attributes:
        run: the program.
        activation_bytes: memory of its input, output and temporaries.
        inner_bytes: memory of its temporaries alone (XLA's "temporary" memory).
    """

    run: Callable[..., Any]
    activation_bytes: int
    inner_bytes: int


def compile_inference(
    function: Callable[..., Any], variables: Any, images: jax.ShapeDtypeStruct, device: jax.Device | None = None
) -> Compiled:
    """Compile `function(variables, images)` and return its memory without weights. `device` need not be attached."""
    if device is not None:
        sharding = SingleDeviceSharding(device)

        def put(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        variables, images = jax.tree.map(put, variables), put(images)
    program = jax.jit(function).lower(variables, images).compile()
    memory: Any = program.memory_analysis()
    image_bytes = math.prod(images.shape) * images.dtype.itemsize
    inner = memory.temp_size_in_bytes
    return Compiled(program, image_bytes + memory.output_size_in_bytes + inner, inner)
