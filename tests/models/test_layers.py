import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax.models import layers
from mnv2_jax.models.blocks import ConvNorm
from mnv2_jax.models.layers import CONVENTIONS, BatchNorm, Conv, Window, make_divisible, relu6


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(
    ("value", "expected"),
    # 32 * 0.35 = 11.2 would become 8 and lose 29 %, so it becomes 16; 24 * 0.35 = 8.4 may become 8.
    [(11.2, 16), (8.4, 8), (3, 8), (12, 16), (20, 24), (1792, 1792), (96 * 0.75, 72), (24 * 1.4, 32)],
)
def test_make_divisible(value, expected):
    assert make_divisible(value) == expected


def test_make_divisible_never_loses_more_than_a_tenth():
    values = np.arange(1, 400) * 0.35
    rounded = [make_divisible(value) for value in values]
    assert all(result % 8 == 0 and result >= 0.9 * value for value, result in zip(values, rounded, strict=True))


@pytest.mark.parametrize("value", [0, -8])
def test_make_divisible_refuses_what_is_no_width(value):
    with pytest.raises(ValueError, match="positive"):
        make_divisible(value)


def test_relu6_and_its_derivative():
    x = jnp.array([-1.0, 0.0, 3.0, 6.0, 7.0])
    np.testing.assert_array_equal(relu6(x), [0, 0, 3, 6, 6])
    np.testing.assert_array_equal(jax.vmap(jax.grad(relu6))(x), [0, 0, 1, 0, 0])


@pytest.mark.parametrize(("stride", "expected"), [(1, (1, 1)), (2, (0, 1))])
def test_tensorflow_padding_of_an_even_input(stride, expected):
    assert CONVENTIONS["tensorflow"].padding(28, 3, stride) == expected


def test_tensorflow_padding_of_an_odd_input_is_symmetric():
    assert CONVENTIONS["tensorflow"].padding(7, 3, 2) == (1, 1) == CONVENTIONS["pytorch"].padding(8, 3, 2)


@pytest.mark.parametrize("convention", ["tensorflow", "pytorch"])
@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(
    ("kind", "stride", "dilation"),
    # No network here strides a 1x1, or dilates what it strides.
    [("depthwise", 1, 1), ("depthwise", 2, 1), ("depthwise", 1, 2), ("full", 1, 1), ("full", 2, 1), ("full", 1, 3),
     ("pointwise", 1, 1)],
)  # fmt: skip
def test_the_cpu_form_is_the_native_convolution(kind, stride, dilation, size, convention):
    """Values and both gradients, over odd and even sizes, strides, dilations and paddings."""
    side = 1 if kind == "pointwise" else 3
    x = normal(0, 2, size, size + 1, 5)
    kernel = normal(1, side, side, 1 if kind == "depthwise" else 5, 5)
    rule = CONVENTIONS[convention].padding
    rows, columns = (rule(extent, side, stride, dilation) for extent in x.shape[1:3])
    window = Window(stride, dilation, (rows, columns))
    ours = layers.depthwise_convolution if kind == "depthwise" else layers.convolution

    y, pull = jax.vjp(lambda x, kernel: ours(x, kernel, window), x, kernel)
    native_y, native_pull = jax.vjp(lambda x, kernel: layers.native_convolution(x, kernel, window), x, kernel)
    assert y.shape == native_y.shape
    np.testing.assert_allclose(y, native_y, atol=1e-5)
    for gradient, native_gradient in zip(pull(y), native_pull(y), strict=True):
        np.testing.assert_allclose(gradient, native_gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "stride", "dilation"), [("depthwise", 1, 2), ("depthwise", 2, 1), ("full", 2, 1), ("pointwise", 1, 1)]
)
def test_the_cpu_form_in_bfloat16_is_the_native_convolution_to_rounding(kind, stride, dilation):
    """Beside the same in float32, from the same rounded numbers; bfloat16 keeps 8 bits, and the CPU form rounds each sum."""
    side = 1 if kind == "pointwise" else 3
    x = normal(0, 2, 7, 8, 5).astype(jnp.bfloat16)
    kernel = normal(1, side, side, 1 if kind == "depthwise" else 5, 5).astype(jnp.bfloat16)
    rule = CONVENTIONS["tensorflow"].padding
    window = Window(stride, dilation, tuple(rule(extent, side, stride, dilation) for extent in x.shape[1:3]))
    ours = layers.depthwise_convolution if kind == "depthwise" else layers.convolution
    y, pull = jax.vjp(lambda x, kernel: ours(x, kernel, window), x, kernel)
    wide = jax.vjp(
        lambda x, kernel: layers.native_convolution(x, kernel, window), *(a.astype(jnp.float32) for a in (x, kernel))
    )
    gradients, wide_gradients = pull(y), wide[1](y.astype(jnp.float32))
    for found, expected in zip((y, *gradients), (wide[0], *wide_gradients), strict=True):
        assert found.dtype == jnp.bfloat16
        assert np.abs(found.astype(jnp.float32) - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["depthwise", "pointwise"])
def test_gradients_of_kernels_are_summed_in_float32_whatever_the_type(kind):
    """A sum of 32,768 products of ones would stop at 256 in bfloat16."""
    x = jnp.ones((32, 32, 32, 2), jnp.bfloat16)
    kernel = jnp.ones((1, 1, 1 if kind == "depthwise" else 2, 2), jnp.bfloat16)
    convolve = layers.depthwise_convolution if kind == "depthwise" else layers.convolution
    gradient = jax.grad(lambda kernel: convolve(x, kernel, Window()).astype(jnp.float32).sum())(kernel)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient, jnp.full(kernel.shape, 32768))


def test_batch_norm_of_bfloat16_has_float32_statistics():
    x = (normal(0, 64, 8, 8, 3) * 3 + 100).astype(jnp.bfloat16)
    norm = BatchNorm(momentum=0.0)
    variables = norm.init(jax.random.key(0), x, train=False)
    y, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], wide.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["var"], wide.var((0, 1, 2)), rtol=1e-2)


def test_tpu_and_gpu_get_the_native_depthwise_convolution():
    """One form is lowered for a platform, chosen by the platform: nothing of the other is left in the text."""
    x, kernel = normal(0, 1, 8, 8, 4), normal(1, 3, 3, 1, 4)

    def gradient(x, kernel):
        return jax.grad(lambda k: layers.depthwise_convolution(x, k, Window(padding=((1, 1), (1, 1)))).sum())(kernel)

    traced = jax.jit(gradient).trace(x, kernel)
    for platform, native in [("tpu", True), ("cuda", True), ("cpu", False)]:
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) is native
        assert ("stablehlo.while" in text) is not native


@pytest.mark.parametrize("form", ["fitted", "plain"])
def test_plain_layers_are_native_convolutions_with_derivatives_of_jax(form):
    x = normal(0, 2, 8, 8, 4)
    model = ConvNorm(4, 3, depthwise=True, layers=form)
    variables = model.init(jax.random.key(0), x, train=False)
    step = jax.make_jaxpr(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"])[0])
    text = str(step(x))
    assert "conv_general_dilated" in text
    assert ("custom_vjp" in text) is (form == "fitted")
    assert ("platform_index" in text) is (form == "fitted")


def test_of_several_activations_a_traced_number_chooses():
    x = jnp.array([-1.0, 3.0, 8.0])
    apply = jax.jit(lambda choice, x: layers.chosen_activation(("linear", "relu6", "relu"), choice)(x))
    assert [apply(choice, x).tolist() for choice in range(3)] == [[-1, 3, 8], [0, 3, 6], [0, 3, 8]]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("form", ["fitted", "plain"])
def test_batch_norm_is_flax_batch_norm(train, form):
    x, direction = 3 * normal(0, 4, 5, 6, 3) + 1, normal(1, 4, 5, 6, 3)
    parameters = {"scale": jnp.array([0.5, 1, 2]), "bias": jnp.array([0.0, 1, -1])}
    statistics = {"mean": jnp.array([0.1, 0.2, 0.3]), "var": jnp.array([1.0, 2, 3])}

    def run(module, **how):
        def loss(params, x):
            variables = {"params": params, "batch_stats": statistics}
            y, updates = module.apply(variables, x, mutable=["batch_stats"], **how)
            return jnp.sum(y * direction), (y, updates["batch_stats"])

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(parameters, x)

    ours = run(BatchNorm(momentum=0.9, epsilon=1e-3, layers=form), train=train)
    flax = run(nn.BatchNorm(momentum=0.9, epsilon=1e-3), use_running_average=not train)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, flax)


@pytest.mark.parametrize(
    ("convention", "depthwise", "deviation"),
    # Truncated normal 0.09, uncorrected: 0.09 * 0.8796. Kaiming's fan-out: sqrt(2 / 64) and sqrt(2 / (9 * 64)).
    [
        ("tensorflow", False, 0.0792),
        ("tensorflow", True, 0.0792),
        ("pytorch", False, (2 / (9 * 64)) ** 0.5),
        ("pytorch", True, (2 / (9 * 64)) ** 0.5),
    ],
)
def test_initial_kernels(convention, depthwise, deviation):
    conv = Conv(64, 3, depthwise=depthwise, convention=convention)
    kernels = [conv.init(jax.random.key(seed), jnp.zeros((1, 4, 4, 64)))["params"]["kernel"] for seed in range(8)]
    assert kernels[0].shape == (3, 3, 1 if depthwise else 64, 64)
    assert np.std(np.stack(kernels)) == pytest.approx(deviation, rel=0.05)
