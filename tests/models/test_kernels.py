import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax.models import kernels
from mnv2_jax.models.kernels import Window
from mnv2_jax.models.layers import CONVENTIONS


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def assert_same(ours, x, kernel, window):
    """Check that values and both gradients equal those of the native convolution."""
    y, pull = jax.vjp(lambda x, kernel: ours(x, kernel, window), x, kernel)
    native_y, native_pull = jax.vjp(lambda x, kernel: kernels.native_convolution(x, kernel, window), x, kernel)
    assert y.shape == native_y.shape
    np.testing.assert_allclose(y, native_y, atol=1e-5)
    for gradient, native_gradient in zip(pull(y), native_pull(y), strict=True):
        np.testing.assert_allclose(gradient, native_gradient, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("convention", ["tensorflow", "pytorch"])
@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(
    ("kind", "stride", "dilation"),
    # No network here has a strided 1x1 convolution, or one that is both strided and dilated.
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
    assert_same(kernels.depthwise_convolution if kind == "depthwise" else kernels.convolution, x, kernel, window)


@pytest.mark.parametrize("convention", ["tensorflow", "pytorch"])
@pytest.mark.parametrize(
    # With small images, the last maps are smaller than the kernel.
    ("side", "size", "stride", "dilation"),
    [(5, 8, 2, 1), (5, 7, 1, 2), (7, 8, 1, 1), (7, 2, 2, 1)],
)
def test_the_cpu_form_of_a_large_depthwise_kernel_is_the_native_convolution(side, size, stride, dilation, convention):
    x, kernel = normal(0, 2, size, size + 1, 3), normal(1, side, side, 1, 3)
    rule = CONVENTIONS[convention].padding
    window = Window(stride, dilation, tuple(rule(extent, side, stride, dilation) for extent in x.shape[1:3]))
    assert_same(kernels.depthwise_convolution, x, kernel, window)


@pytest.mark.parametrize(
    ("kind", "stride", "dilation"), [("depthwise", 1, 2), ("depthwise", 2, 1), ("full", 2, 1), ("pointwise", 1, 1)]
)
def test_the_cpu_form_in_bfloat16_is_the_native_convolution_to_rounding(kind, stride, dilation):
    """Compared with float32 on the same rounded inputs; bfloat16 keeps 8 bits, and the CPU form rounds each sum."""
    side = 1 if kind == "pointwise" else 3
    x = normal(0, 2, 7, 8, 5).astype(jnp.bfloat16)
    kernel = normal(1, side, side, 1 if kind == "depthwise" else 5, 5).astype(jnp.bfloat16)
    rule = CONVENTIONS["tensorflow"].padding
    window = Window(stride, dilation, tuple(rule(extent, side, stride, dilation) for extent in x.shape[1:3]))
    ours = kernels.depthwise_convolution if kind == "depthwise" else kernels.convolution
    y, pull = jax.vjp(lambda x, kernel: ours(x, kernel, window), x, kernel)
    wide = jax.vjp(
        lambda x, kernel: kernels.native_convolution(x, kernel, window), *(a.astype(jnp.float32) for a in (x, kernel))
    )
    gradients, wide_gradients = pull(y), wide[1](y.astype(jnp.float32))
    for found, expected in zip((y, *gradients), (wide[0], *wide_gradients), strict=True):
        assert found.dtype == jnp.bfloat16
        assert np.abs(found.astype(jnp.float32) - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["depthwise", "pointwise"])
def test_gradients_of_kernels_are_summed_in_float32_whatever_the_type(kind):
    """In bfloat16, a sum of 32,768 products of ones would stop at 256."""
    x = jnp.ones((32, 32, 32, 2), jnp.bfloat16)
    kernel = jnp.ones((1, 1, 1 if kind == "depthwise" else 2, 2), jnp.bfloat16)
    form = kernels.depthwise_convolution if kind == "depthwise" else kernels.convolution
    gradient = jax.grad(lambda kernel: form(x, kernel, Window()).astype(jnp.float32).sum())(kernel)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient, jnp.full(kernel.shape, 32768))


def test_tpu_and_gpu_get_the_native_depthwise_convolution():
    """Each platform is lowered with one form, and the text has nothing of the other."""
    x, kernel = normal(0, 1, 8, 8, 4), normal(1, 3, 3, 1, 4)

    def gradient(x, kernel):
        return jax.grad(lambda k: kernels.depthwise_convolution(x, k, Window(padding=((1, 1), (1, 1)))).sum())(kernel)

    traced = jax.jit(gradient).trace(x, kernel)
    for platform, native in [("tpu", True), ("cuda", True), ("cpu", False)]:
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) is native
        assert ("stablehlo.while" in text) is not native
