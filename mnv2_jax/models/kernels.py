"""Convolution and batch norm in the form that is fastest on each platform.

Images are NHWC. Kernels are HWIO; a depthwise kernel is (height, width, 1, channels), as in
`lax.conv_general_dilated` with one feature group per channel.

A convolution has two forms that compute the same function. TPUs and GPUs use XLA's native convolution. On CPU, XLA
runs a depthwise convolution 15 to 50 times slower than the same nine multiply-adds on shifted images, so there
convolutions and their derivatives are written as shifts and matrix products. The form is chosen at lowering
(`lax.platform_dependent`), so a program compiled on a CPU host for a TPU gets the TPU form. The CPU forms have
reverse-mode derivatives only (`jax.grad`, `jax.vjp`).

This is `kernels="tuned"`. With "xla", layers use XLA's native convolution and JAX's own derivatives on every platform,
as a baseline for the tuned ones.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Rows added above and below, columns added left and right."""

# --- Convolution -----------------------------------------------------------------------------------------


class Window(NamedTuple):
    """How a kernel moves over an image: stride, distance between its taps, and padding of both axes, in pixels."""

    stride: int = 1
    dilation: int = 1
    padding: Padding = ((0, 0), (0, 0))


def _taps(x: jax.Array, kernel_size: tuple[int, int], window: Window) -> list[jax.Array]:
    """Return one strided slice of the padded input per tap of the kernel, row by row."""
    x = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    n, height, width, channels = x.shape
    stride, dilation = window.stride, window.dilation
    rows = (height - (kernel_size[0] - 1) * dilation - 1) // stride + 1
    columns = (width - (kernel_size[1] - 1) * dilation - 1) // stride + 1
    return [
        lax.slice(
            x,
            (0, i, j, 0),
            (n, i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, channels),
            (1, stride, stride, 1),
        )
        for i in range(0, kernel_size[0] * dilation, dilation)
        for j in range(0, kernel_size[1] * dilation, dilation)
    ]


def _shifted_depthwise(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    height, width, _, channels = kernel.shape
    weights = kernel.reshape(height * width, channels)
    taps = _taps(x, (height, width), window)
    return sum((tap * weight for tap, weight in zip(taps[1:], weights[1:], strict=True)), taps[0] * weights[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cpu_depthwise(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    return _shifted_depthwise(x, kernel, window)


def _cpu_depthwise_forward(x, kernel, window):
    return _shifted_depthwise(x, kernel, window), (x, kernel)


def _cpu_depthwise_backward(window, residuals, dy):
    x, kernel = residuals
    height, width, _, channels = kernel.shape

    # The gradient of the input is a convolution of the dilated dy with the flipped kernel.
    def spread(axis: int, size: int) -> tuple[int, int, int]:
        span = (size - 1) * window.dilation
        low = span - window.padding[axis - 1][0]
        reach = (dy.shape[axis] - 1) * window.stride + 1
        return low, x.shape[axis] + span - low - reach, window.stride - 1

    spread_dy = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), spread(1, height), spread(2, width), (0, 0, 0)))
    dx = _shifted_depthwise(spread_dy, kernel[::-1, ::-1], Window(dilation=window.dilation))

    # The gradient of the kernel is summed over all images, in float32. One image at a time keeps the working set in
    # cache, and the elementwise sum vectorises. XLA's own sum of the slices over n, h, w is 2 to 3 times slower, and so
    # is taking several small images at a time.
    def add_image(sums, example):
        image, image_dy = example
        taps = _taps(image[None], (height, width), window)
        return [total + tap[0].astype(jnp.float32) * image_dy for total, tap in zip(sums, taps, strict=True)], None

    zeros = [jnp.zeros(dy.shape[1:], jnp.float32)] * (height * width)
    sums, _ = lax.scan(add_image, zeros, (x, dy))
    dkernel = jnp.stack([jnp.sum(total, axis=(0, 1)) for total in sums])
    return dx, dkernel.reshape(height, width, 1, channels).astype(kernel.dtype)


_cpu_depthwise.defvjp(_cpu_depthwise_forward, _cpu_depthwise_backward)


@jax.custom_vjp
def _cpu_pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _cpu_pointwise_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _cpu_pointwise_backward(residuals, dy):
    x, kernel = residuals
    dx = lax.dot_general(dy, kernel, (((x.ndim - 1,), (1,)), ((), ())))
    # Computed as x^T dy. XLA's own derivative is (dy^T x)^T, which first writes a transposed copy of dy.
    rows, row_dys = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dkernel = lax.dot_general(rows, row_dys, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return dx, dkernel.astype(kernel.dtype)


_cpu_pointwise.defvjp(_cpu_pointwise_forward, _cpu_pointwise_backward)


def _cpu_convolution(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    height, width, _, features = kernel.shape
    patches = jnp.concatenate(_taps(x, (height, width), window), axis=-1)
    return _cpu_pointwise(patches, kernel.reshape(-1, features))


def native_convolution(
    x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw group d"], window: Window
) -> Float[Array, "n h2 w2 d"]:
    """XLA's own convolution; the number of feature groups follows from the kernel's input channels."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(window.stride, window.stride),
        padding=window.padding,
        rhs_dilation=(window.dilation, window.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def convolution(
    x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c d"], window: Window
) -> Float[Array, "n h2 w2 d"]:
    """A full convolution; with a 1x1 kernel and stride 1, a matrix product on every platform."""
    if kernel.shape[:2] == (1, 1) and window.stride == 1:
        return lax.platform_dependent(x, kernel[0, 0], cpu=_cpu_pointwise, default=jnp.matmul)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_cpu_convolution, window=window),
        default=functools.partial(native_convolution, window=window),
    )


def depthwise_convolution(
    x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw 1 c"], window: Window
) -> Float[Array, "n h2 w2 c"]:
    """Convolve each channel with its own filter (Sec. 3.1)."""
    return lax.platform_dependent(
        x,
        kernel,
        # custom_vjp takes its static arguments by position.
        cpu=lambda x, kernel: _cpu_depthwise(x, kernel, window),
        default=functools.partial(native_convolution, window=window),
    )


# --- Batch norm ------------------------------------------------------------------------------------------


def native_batch_normalize(x, scale, bias, epsilon, axis_name):
    """Normalise `x` by its statistics over all axes but the last; return (y, mean, variance).

    `y` has the dtype of `x`. Statistics and parameter gradients are summed in float32 whatever that is.
    `batch_normalize` is the same function with a backward pass that costs half as much on CPU.
    """
    return _batch_normalize_forward(x, scale, bias, epsilon, axis_name)[0]


def _batch_normalize_forward(x, scale, bias, epsilon, axis_name):
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(jnp.float32)
    mean, square = jnp.mean(wide, axes), jnp.mean(jnp.square(wide), axes)
    if axis_name is not None:
        mean, square = lax.pmean((mean, square), axis_name)
    variance = jnp.maximum(square - jnp.square(mean), 0)
    inverse = lax.rsqrt(variance + epsilon)
    y = wide * (scale * inverse) + (bias - mean * scale * inverse)
    return (y.astype(x.dtype), mean, variance), (x, scale, mean, inverse)


def _batch_normalize_backward(epsilon, axis_name, residuals, cotangents):
    # The returned statistics only feed running averages, so they have no gradient.
    dy, _, _ = cotangents
    x, scale, mean, inverse = residuals
    count = x.size // x.shape[-1]
    dtype = x.dtype
    x, dy = x.astype(jnp.float32), dy.astype(jnp.float32)

    # In two steps: XLA's CPU compiler fuses a one-step sum with the producer of dy, which is slow.
    def total(a):
        return jnp.sum(jnp.sum(a, tuple(range(1, a.ndim - 1))), 0)

    dbias = total(dy)
    dscale = (total(dy * x) - mean * dbias) * inverse
    # The gradient through the statistics needs sums over all devices that share them. The gradients of scale and bias
    # stay this device's contribution, like those of every other parameter.
    all_dscale, all_dbias = (dscale, dbias) if axis_name is None else lax.psum((dscale, dbias), axis_name)
    count *= 1 if axis_name is None else lax.axis_size(axis_name)
    # scale * inverse * (dy - mean(dy) - normalised(x) * mean(dy * normalised(x))), as multiply-adds.
    slope = scale * inverse
    x_slope = -slope * inverse * all_dscale / count
    dx = dy * slope + x * x_slope - (slope * all_dbias / count + x_slope * mean)
    return dx.astype(dtype), dscale, dbias


batch_normalize = jax.custom_vjp(native_batch_normalize, nondiff_argnums=(3, 4))
batch_normalize.defvjp(_batch_normalize_forward, _batch_normalize_backward)
