"""The vocabulary of the networks: convolutions, batch norm, activations, `make_divisible`.

Images are NHWC. Kernels are HWIO; a depthwise kernel is (height, width, 1, channels), as in
`lax.conv_general_dilated` with one feature group a channel.

A convolution has two forms that compute the same function. TPUs and GPUs get XLA's native convolution. On
CPU, where XLA runs a depthwise convolution 15 to 50 times slower than the same nine multiply-adds on shifted
images, it is written as shifts and matrix products, with its derivatives. The choice is made where the
program is lowered (`lax.platform_dependent`), so that a program compiled on a CPU host for a TPU gets the
TPU's form. The CPU forms have reverse-mode derivatives only (`jax.grad`, `jax.vjp`).

All this is what `layers="fitted"` means. With "plain", the layers are XLA's native convolution and JAX's own
derivatives on every platform: what the fitted ones are measured against.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mnv2_jax.models.names import Activation, ConventionName, Layers

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Rows added above and below, columns added left and right."""


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round a channel count to the nearest multiple of `divisor`, never losing more than 10 %.

    The rule of the paper's own code: round half up, at least one `divisor`, and one `divisor` more where
    rounding would take away over a tenth (tensorflow/models, research/slim/nets/mobilenet/mobilenet.py).

    Raises:
        ValueError: if `value` or `divisor` is not positive.
    """
    if value <= 0 or divisor <= 0:
        raise ValueError(f"make_divisible needs positive numbers, got value={value} and divisor={divisor}")
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


# --- Activations -----------------------------------------------------------------------------------------


def relu6(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """min(max(x, 0), 6), the paper's non-linearity (Sec. 3.3), with derivative 0 at both corners.

    As a clamp its backward pass is one mask; `jnp.minimum(jnp.maximum(...))` splits gradients at ties.
    """
    return lax.clamp(jnp.zeros((), x.dtype), x, jnp.full((), 6, x.dtype))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda x: x,
    "relu6": relu6,
    "relu": nn.relu,
    "leaky_relu": nn.leaky_relu,
    "elu": nn.elu,
    "hard_swish": nn.hard_swish,
    "swish": nn.swish,
    "tanh": nn.tanh,
}


def chosen_activation(names: tuple[Activation, ...], choice: Int[Array, ""] | int) -> Callable[[jax.Array], jax.Array]:
    """The one at `choice`, which may be traced: so one program serves networks that differ in an activation only."""
    branches = [ACTIVATIONS[name] for name in names]
    return lambda x: lax.switch(choice, branches, x)


# --- Numeric conventions ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Convention:
    """What the paper's TensorFlow code and its PyTorch ports do differently.

    Attributes:
        symmetric_padding: pad (k-1)/2 on both sides (torchvision), else TensorFlow's SAME, which puts the
            odd pixel of a strided convolution at the end: (0, 1) for a 3x3 on an even input.
        epsilon: added to the variance in batch norm.
        kernel_init: of every convolution.
        classifier_init: of the last, fully connected layer.

    Source: slim/nets/mobilenet (truncated normal 0.09, epsilon 1e-3) and torchvision/models/mobilenetv2.py
    (Kaiming normal on fan-out, which is 9C for a depthwise kernel; N(0, 0.01); epsilon 1e-5).
    """

    symmetric_padding: bool
    epsilon: float
    kernel_init: nn.initializers.Initializer
    classifier_init: nn.initializers.Initializer

    def padding(self, size: int, kernel_size: int, stride: int, dilation: int = 1) -> tuple[int, int]:
        """Rows (or columns) to add before and after an axis of `size` pixels."""
        reach = (kernel_size - 1) * dilation
        if self.symmetric_padding:
            return reach // 2, reach // 2
        total = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
        return total // 2, total - total // 2


CONVENTIONS: dict[str, Convention] = {
    "tensorflow": Convention(
        symmetric_padding=False,
        epsilon=1e-3,
        # jax's truncated normal leaves the standard deviation uncorrected for the truncation, as slim's does.
        kernel_init=nn.initializers.truncated_normal(0.09),
        classifier_init=nn.initializers.truncated_normal(0.09),
    ),
    "pytorch": Convention(
        symmetric_padding=True,
        epsilon=1e-5,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        classifier_init=nn.initializers.normal(0.01),
    ),
}

# --- Convolutions ----------------------------------------------------------------------------------------


class Window(NamedTuple):
    """How a kernel moves over an image: step, distance between its taps, and padding of both axes, in pixels."""

    stride: int = 1
    dilation: int = 1
    padding: Padding = ((0, 0), (0, 0))


def _taps(x: jax.Array, kernel_size: tuple[int, int], window: Window) -> list[jax.Array]:
    """The input as each tap of the kernel sees it: one strided view of the padded input a tap, row by row."""
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

    # The gradient of the input is the same convolution of the spread-out dy with the turned kernel.
    def spread(axis: int, size: int) -> tuple[int, int, int]:
        span = (size - 1) * window.dilation
        low = span - window.padding[axis - 1][0]
        reach = (dy.shape[axis] - 1) * window.stride + 1
        return low, x.shape[axis] + span - low - reach, window.stride - 1

    spread_dy = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), spread(1, height), spread(2, width), (0, 0, 0)))
    dx = _shifted_depthwise(spread_dy, kernel[::-1, ::-1], Window(dilation=window.dilation))

    # The gradient of the kernel sums over all images, in float32. Image after image keeps the working set in
    # cache and is elementwise, which vectorises; XLA's own sum over n, h, w of slices is 2 to 3 times slower, and so
    # are several small images at a time.
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
    # Written as x^T dy. XLA's own derivative is (dy^T x)^T and first writes dy out transposed.
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
    """XLA's own, with as many feature groups as the kernel's channels ask for: the plain form of the next two."""
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
    """A full convolution; a 1x1 at stride 1 is a matrix product on every platform."""
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
    """Each channel convolved with a filter of its own (Sec. 3.1)."""
    return lax.platform_dependent(
        x,
        kernel,
        # custom_vjp takes its static arguments by position.
        cpu=lambda x, kernel: _cpu_depthwise(x, kernel, window),
        default=functools.partial(native_convolution, window=window),
    )


def convolve(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw group d"],
    stride: int = 1,
    dilation: int = 1,
    depthwise: bool = False,
    convention: ConventionName = "tensorflow",
    layers: Layers = "fitted",
) -> Float[Array, "n h2 w2 d"]:
    """A convolution with the padding of a convention, in the form that `layers` names; see `Conv`."""
    rows, columns = (CONVENTIONS[convention].padding(size, kernel.shape[0], stride, dilation) for size in x.shape[1:3])
    form = depthwise_convolution if depthwise else convolution
    if layers == "plain":
        form = native_convolution
    return form(x, kernel, Window(stride, dilation, (rows, columns)))


class Conv(nn.Module):
    """A convolution without bias.

    Attributes:
        features: output channels; of a depthwise convolution, its input channels.
        kernel_size: side of the square kernel, in pixels.
        stride: in pixels, along both axes.
        dilation: distance between neighbouring taps of the kernel, in pixels.
        depthwise: one filter a channel instead of a full convolution.
        convention: padding and initialiser.
        dtype: of the computation; the kernel is stored in float32.
        layers: "fitted" to the platform, or "plain".
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False
    convention: ConventionName = "tensorflow"
    dtype: DTypeLike = jnp.float32
    layers: Layers = "fitted"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        """Convolve."""
        inputs = 1 if self.depthwise else x.shape[-1]
        shape = (self.kernel_size, self.kernel_size, inputs, self.features)
        kernel = self.param("kernel", CONVENTIONS[self.convention].kernel_init, shape)
        # Where parameters are made only shapes count, which the plain form tells sooner.
        layers = "plain" if self.is_initializing() else self.layers
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return convolve(x, kernel, self.stride, self.dilation, self.depthwise, self.convention, layers)


# --- Batch norm ------------------------------------------------------------------------------------------


def _plain_batch_normalize(x, scale, bias, epsilon, axis_name):
    """Normalise `x` by its own statistics over all but the last axis; returns (y, mean, variance).

    Whatever the type of `x` and `y`, statistics and gradients of the parameters are summed in float32.
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
    # The statistics only feed running averages: nothing flows back through them.
    dy, _, _ = cotangents
    x, scale, mean, inverse = residuals
    count = x.size // x.shape[-1]
    dtype = x.dtype
    x, dy = x.astype(jnp.float32), dy.astype(jnp.float32)

    # In two steps, because XLA's CPU compiler fuses a one-step sum with what produces dy, and is then slow.
    def total(a):
        return jnp.sum(jnp.sum(a, tuple(range(1, a.ndim - 1))), 0)

    dbias = total(dy)
    dscale = (total(dy * x) - mean * dbias) * inverse
    # What flows back through the statistics comes from all that they were taken over; the parameters' gradients
    # stay this device's share, like those of every other parameter.
    all_dscale, all_dbias = (dscale, dbias) if axis_name is None else lax.psum((dscale, dbias), axis_name)
    count *= 1 if axis_name is None else lax.axis_size(axis_name)
    # scale * inverse * (dy - mean(dy) - normalised(x) * mean(dy * normalised(x))), as one multiply-add each.
    slope = scale * inverse
    x_slope = -slope * inverse * all_dscale / count
    dx = dy * slope + x * x_slope - (slope * all_dbias / count + x_slope * mean)
    return dx.astype(dtype), dscale, dbias


_batch_normalize = jax.custom_vjp(_plain_batch_normalize, nondiff_argnums=(3, 4))
_batch_normalize.defvjp(_batch_normalize_forward, _batch_normalize_backward)


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last (Ioffe and Szegedy, arXiv:1502.03167).

    The same function as `flax.linen.BatchNorm` with its defaults, with a backward pass that is half as costly
    on CPU. The running variance is the biased one, as in TensorFlow and Flax; PyTorch's is unbiased. The
    output has the type of the input; parameters and statistics are float32.

    Attributes:
        momentum: share of the running statistics that one step keeps. It has to suit the length of the run:
            after few steps 0.999 still evaluates with the initial statistics (tensorflow/tensorflow #36065).
        epsilon: added to the variance.
        axis_name: of the mesh or `pmap` axis over whose devices training takes its statistics; None takes them
            over this device's images alone. The running statistics are then this device's as well.
        layers: "fitted", with the backward pass written out, or "plain", with JAX's.
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    axis_name: str | None = None
    layers: Layers = "fitted"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"], train: bool) -> Float[Array, "*batch c"]:
        """Normalise by the batch (`train`) or by the running statistics."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        variance = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if not train:
            slope = scale * lax.rsqrt(variance.value + self.epsilon)
            return (x * slope + (bias - mean.value * slope)).astype(x.dtype)
        normalize = _batch_normalize if self.layers == "fitted" else _plain_batch_normalize
        y, batch_mean, batch_variance = normalize(x, scale, bias, self.epsilon, self.axis_name)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            variance.value = self.momentum * variance.value + (1 - self.momentum) * batch_variance
        return y


# --- Dropout ---------------------------------------------------------------------------------------------


class Dropout(nn.Module):
    """Sets each feature to zero with probability `rate` in training, and scales up what is kept.

    Unlike `flax.linen.Dropout`, what an example loses depends on the example's place in the whole batch and not
    on how the batch is spread over devices.

    Attributes:
        rate: share of the features.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "n c"], train: bool, places: Int[Array, " n"] | None = None
    ) -> Float[Array, "n c"]:
        """Drop; `places` are the examples' in the whole batch, 0, 1, ... if not given."""
        if not train or self.rate == 0:
            return x
        key = self.make_rng("dropout")
        places = jnp.arange(len(x)) if places is None else places

        def keep(place):
            return jax.random.bernoulli(jax.random.fold_in(key, place), 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(keep)(places), x / (1 - self.rate), 0)
