import jax
import jax.numpy as jnp
import pytest

from mnv2_jax import MobileNetV1
from mnv2_jax.models.backbone import Stage
from mnv2_jax.models.cost import count_multiply_adds, count_parameters, layer_costs
from mnv2_jax.models.mobilenet_v1 import STAGES


@pytest.mark.parametrize(
    ("width", "parameters", "multiply_adds"),
    # Parameters as Keras counts them, minus moving statistics; millions of multiply-adds as in the V1 paper's Table 6
    # and 7 (569, 325, 149, 41).
    [(1.0, 4_231_976, 569), (0.75, 2_585_560, 325), (0.5, 1_331_592, 149), (0.25, 470_072, 41)],
)
def test_size_at_every_published_width(width, parameters, multiply_adds):
    model = MobileNetV1(width_multiplier=width)
    assert count_parameters(model, (224, 224, 3)) == parameters
    assert round(count_multiply_adds(model, (224, 224, 3)) / 1e6) == multiply_adds


def test_shapes():
    layers = {layer.name: layer for layer in layer_costs(MobileNetV1(), (224, 224, 3))}
    ends = {0: (112, 64), 2: (56, 128), 4: (28, 256), 10: (14, 512), 12: (7, 1024)}
    for block, (size, channels) in ends.items():
        assert layers[f"block_{block}/pointwise"].output_shape == (size, size, channels)
    assert len(layers) == 28  # the "28 layers" of the V1 paper


def test_forward_pass():
    model = MobileNetV1(7, 0.25, stages=(Stage(1, 64, 1, 1), Stage(1, 128, 1, 2)))
    images = jnp.zeros((2, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    ends = jax.jit(lambda variables: model.apply(variables, images, method="endpoints"))(variables)
    assert set(ends) == {"stem", "block_0", "block_0/depthwise", "block_1", "block_1/depthwise", "pooled", "logits"}
    assert ends["logits"].shape == (2, 7)


def test_the_table_is_that_of_the_paper_with_its_last_stride_as_in_its_code():
    blocks = [
        (stage.channels, stage.stride if repeat == 0 else 1) for stage in STAGES for repeat in range(stage.repeats)
    ]
    assert blocks == [
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)
    ]  # fmt: skip


def test_its_blocks_expand_nothing():
    model = MobileNetV1(7, 0.25, stages=(Stage(6, 64, 1, 1),))
    with pytest.raises(ValueError, match="DepthwiseSeparable block has no expansion, got 6"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
