"""Layers of the networks (convolution, batch norm, activation, dropout) and their numeric conventions.

Images are NHWC; kernels are HWIO. `mnv2_jax.models.kernels` computes the convolutions.
"""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mnv2_jax.models import names
from mnv2_jax.models.kernels import (
    Window,
    batch_normalize,
    convolution,
    depthwise_convolution,
    native_batch_normalize,
    native_convolution,
)
from mnv2_jax.models.names import Activation, ConventionName, Kernels, check_name, resolve


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round a channel count to the nearest multiple of `divisor`, never losing more than 10 %.

    The rule of the paper's code (tensorflow/models, research/slim/nets/mobilenet/mobilenet.py): round half up, return
    at least `divisor`, and add one `divisor` if rounding down would lose more than 10 %.

    Raises:
        ValueError: if `value` or `divisor` is not positive.
    """
    if value <= 0 or divisor <= 0:
        raise ValueError(f"make_divisible needs positive numbers, got value={value} and divisor={divisor}")
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


# --- Activations -----------------------------------------------------------------------------------------

Function = Callable[[jax.Array], jax.Array]
"""An activation function."""


def linear(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Identity: no non-linearity."""
    return x


def relu6(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """min(max(x, 0), 6), the paper's non-linearity (Sec. 3.3), with derivative 0 at both corners.

    The backward pass of a clamp is one mask; `jnp.minimum(jnp.maximum(...))` splits gradients at ties.
    """
    return lax.clamp(jnp.zeros((), x.dtype), x, jnp.full((), 6, x.dtype))


ACTIVATIONS: dict[str, Function] = {name: resolve(target) for name, target in names.ACTIVATIONS.items()}


def find_activation(activation: str | Function) -> Function:
    """Return the activation of a name in `ACTIVATIONS`; a function is returned as is.

    Raises:
        ValueError: for an unknown name; lists the known ones.
    """
    if callable(activation):
        return activation
    check_name("activation", activation, ACTIVATIONS, "; pass a custom activation as a function")
    return ACTIVATIONS[activation]


def activation_name(activation: str | Function) -> str:
    """Return the name of an activation in `ACTIVATIONS`, or "module.name" for any other function."""
    if isinstance(activation, str):
        return activation
    known = (name for name, function in ACTIVATIONS.items() if function is activation)
    kind = activation if hasattr(activation, "__qualname__") else type(activation)
    return next(known, f"{kind.__module__}.{kind.__qualname__}")


def switch_activation(activations: Sequence[str | Function], choice: Int[Array, ""] | int) -> Function:
    """Return an activation that applies `activations[choice]`.

    `choice` may be traced, so that one program serves networks that differ only in an activation.
    """
    branches = [find_activation(activation) for activation in activations]
    return lambda x: lax.switch(choice, branches, x)


# --- Numeric conventions ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Convention:
    """Numeric details in which the paper's TensorFlow code and its PyTorch ports differ.

    Attributes:
        symmetric_padding: pad by (k-1)/2 on both sides (torchvision). Otherwise use TensorFlow's SAME, which puts the
            odd pixel of a strided convolution at the end: (0, 1) for a 3x3 kernel on an even input.
        epsilon: added to the variance in batch norm.
        kernel_init: of every convolution.
        classifier_init: of the fully connected classifier.

    Source: slim/nets/mobilenet (truncated normal 0.09, epsilon 1e-3) and torchvision/models/mobilenetv2.py
    (Kaiming normal on fan-out, which is 9C for a depthwise kernel; N(0, 0.01); epsilon 1e-5).
    """

    symmetric_padding: bool
    epsilon: float
    kernel_init: nn.initializers.Initializer
    classifier_init: nn.initializers.Initializer

    def padding(self, size: int, kernel_size: int, stride: int, dilation: int = 1) -> tuple[int, int]:
        """Return the rows (or columns) to add before and after an axis of `size` pixels."""
        reach = (kernel_size - 1) * dilation
        if self.symmetric_padding:
            return reach // 2, reach // 2
        total = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
        return total // 2, total - total // 2


CONVENTIONS: dict[str, Convention] = {
    "tensorflow": Convention(
        symmetric_padding=False,
        epsilon=1e-3,
        # Like slim's, JAX's truncated normal does not correct the standard deviation for the truncation.
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

# --- Convolution -----------------------------------------------------------------------------------------


def convolve(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw group d"],
    stride: int = 1,
    dilation: int = 1,
    depthwise: bool = False,
    convention: ConventionName = "tensorflow",
    kernels: Kernels = "tuned",
) -> Float[Array, "n h2 w2 d"]:
    """Convolve with the padding of `convention`, in the form named by `kernels`; see `Conv`."""
    rows, columns = (CONVENTIONS[convention].padding(size, kernel.shape[0], stride, dilation) for size in x.shape[1:3])
    form = depthwise_convolution if depthwise else convolution
    if kernels == "xla":
        form = native_convolution
    return form(x, kernel, Window(stride, dilation, (rows, columns)))


class Conv(nn.Module):
    """A convolution without bias.

    Attributes:
        features: output channels; for a depthwise convolution, equal to the input channels.
        kernel_size: side of the square kernel, in pixels.
        stride: in pixels, along both axes.
        dilation: distance between neighbouring taps of the kernel, in pixels.
        depthwise: one filter per channel instead of a full convolution.
        convention: sets padding and initialiser.
        dtype: of the computation; the kernel is stored in float32.
        kernels: "tuned" (to the platform) or "xla".
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False
    convention: ConventionName = "tensorflow"
    dtype: DTypeLike = jnp.float32
    kernels: Kernels = "tuned"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        """Convolve."""
        inputs = 1 if self.depthwise else x.shape[-1]
        shape = (self.kernel_size, self.kernel_size, inputs, self.features)
        kernel = self.param("kernel", CONVENTIONS[self.convention].kernel_init, shape, jnp.float32)
        # At initialisation only shapes matter, and the native form is faster to trace.
        kernels = "xla" if self.is_initializing() else self.kernels
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return convolve(x, kernel, self.stride, self.dilation, self.depthwise, self.convention, kernels)


# --- Batch norm ------------------------------------------------------------------------------------------


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last (Ioffe and Szegedy, arXiv:1502.03167).

    The same function as `flax.linen.BatchNorm` with its defaults, with a backward pass that costs half as much on CPU.
    The running variance is biased, as in TensorFlow and Flax; PyTorch's is unbiased. The output has the dtype of the
    input; parameters and statistics are float32.

    Attributes:
        momentum: fraction of the running statistics kept per step. It has to suit the length of the run: with 0.999,
            evaluation after few steps still uses the initial statistics (tensorflow/tensorflow #36065).
        epsilon: added to the variance.
        axis_name: name of the mesh or `pmap` axis whose devices share batch statistics in training. With None each
            device uses its own images only, and keeps its own running statistics.
        kernels: "tuned" (handwritten backward pass) or "xla" (JAX's).
        frozen: normalise by the running statistics in training too, and do not update them.
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    axis_name: str | None = None
    kernels: Kernels = "tuned"
    frozen: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"], train: bool) -> Float[Array, "*batch c"]:
        """Normalise by the batch (if `train` and not frozen) or by the running statistics."""
        channels = x.shape[-1]
        # Explicit float32: the default would be float64 with jax_enable_x64.
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if not train or self.frozen:
            slope = scale * lax.rsqrt(variance.value + self.epsilon)
            return (x * slope + (bias - mean.value * slope)).astype(x.dtype)
        normalize = batch_normalize if self.kernels == "tuned" else native_batch_normalize
        y, batch_mean, batch_variance = normalize(x, scale, bias, self.epsilon, self.axis_name)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            variance.value = self.momentum * variance.value + (1 - self.momentum) * batch_variance
        return y


# --- Convolution, norm and activation --------------------------------------------------------------------


class ConvNorm(nn.Module):
    """Convolution, batch norm, activation: "conv" in the paper's tables.

    Attributes:
        features, kernel_size, stride, dilation, depthwise: see `Conv`.
        activation: a name in `ACTIVATIONS`, or a function.
        convention, batch_norm_momentum, batch_norm_epsilon, batch_norm_axis, frozen_batch_norm, dtype, kernels: see
            `Backbone`.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False
    activation: Activation | Callable[[Array], Array] = "relu6"
    convention: ConventionName = "tensorflow"
    batch_norm_momentum: float = 0.99
    batch_norm_epsilon: float | None = None
    batch_norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32
    kernels: Kernels = "tuned"
    frozen_batch_norm: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 d"]:
        """Apply the three in turn."""
        conv = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            self.dilation,
            self.depthwise,
            self.convention,
            self.dtype,
            self.kernels,
            name="conv",
        )
        norm = BatchNorm(
            self.batch_norm_momentum,
            self.epsilon,
            self.batch_norm_axis,
            self.kernels,
            self.frozen_batch_norm,
            name="norm",
        )
        return self.activate(norm(conv(x), train))

    @property
    def epsilon(self) -> float:
        """The value that batch norm adds to the variance."""
        return CONVENTIONS[self.convention].epsilon if self.batch_norm_epsilon is None else self.batch_norm_epsilon

    def activate(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Apply only the activation."""
        return find_activation(self.activation)(x)

    def convolve(self, x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw _ d"]) -> Float[Array, "n h2 w2 d"]:
        """Apply only the convolution, with the given kernel, for example a part of the layer's own."""
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return convolve(x, kernel, self.stride, self.dilation, self.depthwise, self.convention, self.kernels)

    def inference_norm(self) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Return the (slope, shift) of batch norm at inference. The layer must be bound to its variables."""
        norm, statistics = self.variables["params"]["norm"], self.variables["batch_stats"]["norm"]
        slope = norm["scale"] * lax.rsqrt(statistics["var"] + self.epsilon)
        return slope, norm["bias"] - statistics["mean"] * slope


# --- Dropout ---------------------------------------------------------------------------------------------


class Dropout(nn.Module):
    """Dropout: in training, set each feature to zero with probability `rate` and scale up the others.

    Unlike `flax.linen.Dropout`, the mask of an example depends on its index in the global batch, not on how the batch
    is spread over devices.

    Attributes:
        rate: probability of dropping a feature.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "n c"], train: bool, index: Int[Array, " n"] | None = None
    ) -> Float[Array, "n c"]:
        """Apply dropout. `index` is the index of each example in the global batch; 0, 1, ... by default."""
        if not train or self.rate == 0:
            return x
        key = self.make_rng("dropout")
        index = jnp.arange(len(x)) if index is None else index

        def keep(own):
            return jax.random.bernoulli(jax.random.fold_in(key, own), 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(keep)(index), x / (1 - self.rate), 0)
