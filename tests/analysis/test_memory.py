"""Memory of inference, by the paper's formula and as compiled."""

import jax
import jax.numpy as jnp

from mnv2_jax import MobileNetV2
from mnv2_jax.analysis.memory import compile_inference, part_bytes
from mnv2_jax.models.cost import layer_costs, units


def test_the_formula_by_hand():
    """Block 1: 16 channels at 112 pixels to 24 at 56 pixels, 96 inside."""
    block = units(layer_costs(MobileNetV2(), (224, 224, 3)))[2]
    ends = 112 * 112 * 16 + 56 * 56 * 24
    assert part_bytes(block, 1) == 4 * (ends + 96 * (112 * 112 + 56 * 56))
    assert part_bytes(block, 5) == 4 * (ends + 20 * (112 * 112 + 56 * 56))
    assert part_bytes(block, 1000) == 4 * (ends + 112 * 112 + 56 * 56)


def test_what_a_program_holds():
    """400 input values, 100 times as many temporaries, and one output value."""
    images = jax.ShapeDtypeStruct((1, 400), jnp.float32)
    program = compile_inference(lambda w, x: jnp.sum(jnp.sort((x.T @ w) ** 2, axis=0)), jnp.ones((1, 100)), images)
    assert program.inner_bytes >= 4 * 400 * 100
    assert program.activation_bytes == 4 * (400 + 1) + program.inner_bytes
