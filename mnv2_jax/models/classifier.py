"""What the networks have in common: their settings, and the way from the last feature map to logits."""

import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mnv2_jax.models.blocks import ConvNorm
from mnv2_jax.models.layers import CONVENTIONS, Dropout
from mnv2_jax.models.names import Activation, ConventionName, Layers


class ImageClassifier(nn.Module):
    """A network from images in the range of its convention's preprocessing to logits.

    A subclass says in `endpoints` what it computes; calling it gives the logits.

    Attributes:
        num_classes: width of the output. With 0 there is no classifier: the output is the pooled features.
        width_multiplier: scales the channels of every layer.
        unit_strides: how many of the first stride-2 layers take stride 1 instead; for small images, see
            `unit_strides_for`.
        output_stride: 8 or 16 keep the feature maps that fine, by dilation; see `strides_and_dilations`.
        activation: the non-linearity of every layer that has one; a name in `ACTIVATIONS`.
        convention: "tensorflow", the paper's, or "pytorch": padding, epsilon and initialisers.
        dropout_rate: share of the pooled features that training sets to zero (the paper's code and torchvision
            train with 0.2 for V2); `apply` then needs `rngs={"dropout": key}`.
        batch_norm_momentum: share of the running statistics that one step keeps.
        batch_norm_axis: name of the axis of devices that share batch statistics in training; see `BatchNorm`.
        dtype: of the convolutions and of what lies between them. Parameters, batch-norm statistics, the
            pooled features and the logits are float32 whatever it is.
        layers: "fitted", written so that the platform compiles them well, or "plain", as JAX has them; the same
            function to rounding.
    """

    num_classes: int = 1000
    width_multiplier: float = 1.0
    unit_strides: int = 0
    output_stride: int | None = None
    activation: Activation = "relu6"
    convention: ConventionName = "tensorflow"
    dropout_rate: float = 0.0
    batch_norm_momentum: float = 0.99
    batch_norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32
    layers: Layers = "fitted"

    def scaled(self, channels: int) -> int:
        """Channels of a layer that has `channels` at width 1."""
        raise NotImplementedError

    def endpoints(
        self, images: Float[Array, "n h w c"], train: bool = False, places: Int[Array, " n"] | None = None
    ) -> Mapping[str, Array]:
        """Every named intermediate result, "pooled" and "logits" the last of them.

        Inside a compiled function those that are not used cost nothing.
        """
        raise NotImplementedError

    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False, places: Int[Array, " n"] | None = None
    ) -> Float[Array, "n classes"]:
        """Classify; `train` normalises by the batch, drops features and updates the collection "batch_stats".

        `places` are the images' in the whole batch where this is a part of it; what is dropped depends on them.
        """
        return self.endpoints(images, train, places)["logits" if self.num_classes else "pooled"]

    @property
    def conv_norm(self) -> Callable[..., ConvNorm]:
        """Makes layers with this network's settings."""
        return functools.partial(
            ConvNorm,
            activation=self.activation,
            convention=self.convention,
            batch_norm_momentum=self.batch_norm_momentum,
            batch_norm_axis=self.batch_norm_axis,
            dtype=self.dtype,
            layers=self.layers,
        )

    def classify(self, x: Float[Array, "n h w c"], train: bool, places: Int[Array, " n"] | None) -> dict[str, Array]:
        """The endpoints behind the last feature map. For a subclass's compact `endpoints`."""
        pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        if not self.num_classes:
            return {"pooled": pooled}
        kept = Dropout(self.dropout_rate)(pooled, train, places)
        kernel_init = CONVENTIONS[self.convention].classifier_init
        logits = nn.Dense(self.num_classes, kernel_init=kernel_init, name="classifier")(kept)
        return {"pooled": pooled, "logits": logits}
