"""Base class of all networks: their settings, and the forward pass from images through a table of stages to logits."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, get_args

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mnv2_jax.models.blocks import Block, ConvNorm, find_block
from mnv2_jax.models.layers import CONVENTIONS, Dropout, Function, find_activation
from mnv2_jax.models.names import (
    LARGEST_NUM_CLASSES,
    Activation,
    ConventionName,
    Kernels,
    KernelSize,
    check_count,
    check_name,
    check_scale,
    check_share,
)
from mnv2_jax.models.strides import STRIDED_LAYERS, check_output_stride, strides_and_dilations

LARGEST_STAGE = 10_000
"""Upper bound of a stage's channels, repeats and stride."""


class Stage(NamedTuple):
    """A row of the paper's Table 2: `repeats` blocks. The first has the given `stride`, the others stride 1."""

    expansion: float  # t
    channels: int  # c, before the width multiplier
    repeats: int  # n
    stride: int  # s


class Backbone(nn.Module):
    """A network from preprocessed images to feature maps, and to logits if it has a classifier.

    A subclass provides a table of stages, the widths of its layers (`scaled`, `head_channels`) and the arguments of its
    blocks (`create_block`).

    Attributes:
        num_classes: width of the output. With 0 there is no classifier and the output is the pooled features.
        width_multiplier: scales the channels of every layer.
        unit_strides: number of stride-2 layers, counted from the input, that take stride 1 instead. For small images;
            see `unit_strides_for`.
        output_stride: 8 or 16 keep the feature maps at that stride by dilation; see `strides_and_dilations`.
        kernel_size: side of the spatial convolution of every block, in pixels: 3 (as in the papers), 5 or 7. The stem
            is always 3x3.
        activation: the non-linearity of every layer that has one; a name in `ACTIVATIONS`, or a function.
        convention: padding, epsilon and initialisers: "tensorflow" (the paper's) or "pytorch".
        dropout_rate: fraction of the pooled features that is set to zero in training (the paper's code and torchvision
            train V2 with 0.2); `apply` then needs `rngs={"dropout": key}`.
        batch_norm_momentum: fraction of the running statistics kept per step.
        batch_norm_epsilon: added to the variance; None takes the convention's.
        batch_norm_axis: name of the axis of devices that share batch statistics in training; see `BatchNorm`.
        dtype: of the convolutions and the feature maps. Parameters, batch-norm statistics, pooled features and logits
            are always float32.
        kernels: "tuned" (written to compile well on each platform) or "xla" (XLA's own); the same function up to
            rounding.
        head: whether the network has the last 1x1 convolution and the classifier. Without them it is a backbone for
            other heads, and its output is the last feature map, pooled.
        frozen_batch_norm: normalise by the running statistics in training too, and do not update them.
        stages: the table between stem and head.
        block: class of the blocks: one of `mnv2_jax.models.blocks`, or your own.

    Raises:
        ValueError: for an invalid setting.
    """

    num_classes: int = 1000
    width_multiplier: float = 1.0
    unit_strides: int = 0
    output_stride: int | None = None
    kernel_size: KernelSize = 3
    activation: Activation | Function = "relu6"
    convention: ConventionName = "tensorflow"
    dropout_rate: float = 0.0
    batch_norm_momentum: float = 0.99
    batch_norm_epsilon: float | None = None
    batch_norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32
    kernels: Kernels = "tuned"
    head: bool = True
    frozen_batch_norm: bool = False
    stages: tuple[Stage, ...] = ()
    block: type[Block] = Block

    task_layers: ClassVar[tuple[str, ...]] = ("classifier",)
    """Top-level parameters that belong to the task; all others belong to the backbone."""

    def __post_init__(self) -> None:
        find_activation(self.activation)
        check_name("convention", self.convention, CONVENTIONS)
        check_name("value of kernels", self.kernels, get_args(Kernels))
        check_name("kernel size", self.kernel_size, get_args(KernelSize))
        find_block(self.block)
        check_scale("the width multiplier", self.width_multiplier)
        check_count("num_classes", self.num_classes, 0, LARGEST_NUM_CLASSES)
        check_count("unit_strides", self.unit_strides, 0, STRIDED_LAYERS)
        check_share("dropout_rate", self.dropout_rate)
        check_share("batch_norm_momentum", self.batch_norm_momentum)
        check_output_stride(self.output_stride)
        if self.batch_norm_epsilon is not None and not self.batch_norm_epsilon > 0:
            raise ValueError(f"batch_norm_epsilon must be greater than 0, got {self.batch_norm_epsilon}")
        for setting in ("head", "frozen_batch_norm"):
            check_name(f"value of {setting}", getattr(self, setting), (True, False))
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise ValueError(f"dtype must be a floating-point type, got {jnp.dtype(self.dtype).name}")
        for stage in self.stages:
            check_scale("the expansion of a stage", stage.expansion)
            check_count("the channels of a stage", stage.channels, 1, LARGEST_STAGE)
            check_count("the repeats of a stage", stage.repeats, 1, LARGEST_STAGE)
            check_count("the stride of a stage", stage.stride, 1, LARGEST_STAGE)
        super().__post_init__()

    # --- What a subclass defines -------------------------------------------------------------------------

    def scaled(self, channels: float) -> int:
        """Return the channels of a layer that has `channels` at width 1."""
        raise NotImplementedError

    def create_block(self, stage: Stage, **moves: Any) -> Block:
        """Create a block of a stage. `moves` holds its kernel size, stride, dilation and name."""
        return self.block(self.scaled(stage.channels), expansion=stage.expansion, conv_norm=self.conv_norm, **moves)

    def head_channels(self) -> int | None:
        """Return the channels of the 1x1 convolution after the blocks, or None if there is none."""
        return None

    # --- From images to logits ---------------------------------------------------------------------------

    @nn.compact
    def endpoints(
        self,
        images: Float[Array, "n h w c"],
        train: bool = False,
        index: Int[Array, " n"] | None = None,
        split: int = 1,
    ) -> Mapping[str, Array]:
        """Return every feature map by name: "stem", "block_1/expand", ..., "block_1", ..., "head", "pooled", "logits".

        "block_1" is the output of a block, "block_1/expand" that of a layer inside it. With a `split`, inner layers
        are never computed whole and are left out. Under `jit`, unused feature maps cost nothing.

        Raises:
            ValueError: for images that are not NHWC, not floating-point, or whose number of channels differs from the
                one the network was initialised with, and for a `split` of blocks that cannot be split.
        """
        _check_images(images)
        if not self.is_initializing():
            stem: Any = self.get_variable("params", "stem")
            made_for = stem["conv"]["kernel"].shape[2]
            if images.shape[3] != made_for:
                raise ValueError(f"images must have {made_for} channels, got {images.shape[3]}")
        rows = [(stage, stage.stride if repeat == 0 else 1) for stage in self.stages for repeat in range(stage.repeats)]
        moves = strides_and_dilations([2, *(stride for _, stride in rows)], self.unit_strides, self.output_stride)
        ends: dict[str, Array] = {}
        x = ends["stem"] = self.conv_norm(self.scaled(32), 3, *moves[0], name="stem")(images, train)
        block_ends: dict[str, Array] = {}
        for number, ((stage, _), (stride, dilation)) in enumerate(zip(rows, moves[1:], strict=True)):
            name = f"block_{number}"
            block = self.create_block(stage, kernel_size=self.kernel_size, stride=stride, dilation=dilation, name=name)
            block_ends = block.endpoints(x, train, block_ends, split)
            ends |= {f"{name}/{layer}": value for layer, value in block_ends.items() if layer != "output"}
            x = ends[name] = block_ends["output"]
        channels = self.head_channels()
        if self.head and channels is not None:
            x = ends["head"] = self.conv_norm(channels, name="head")(x, train)
        ends["pooled"] = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        if self.head and self.num_classes:
            kept = Dropout(self.dropout_rate)(ends["pooled"], train, index)
            kernel_init = CONVENTIONS[self.convention].classifier_init
            ends["logits"] = nn.Dense(self.num_classes, kernel_init=kernel_init, name="classifier")(kept)
        return ends

    def __call__(
        self,
        images: Float[Array, "n h w c"],
        train: bool = False,
        index: Int[Array, " n"] | None = None,
        split: int = 1,
    ) -> Float[Array, "n features"]:
        """Return the logits, or the pooled features if the network has no classifier.

        Args:
            images: images, preprocessed as the network expects.
            train: normalise by the batch, apply dropout and update the collection "batch_stats".
            index: index of each image in the global batch, if this is only a part of it. Dropout depends on it.
            split: at inference, compute each block in this many parts of its inner channels, one after the other. The
                same function up to rounding, in less memory, since no expansion is ever held whole (Sec. 5.1).
        """
        ends = self.endpoints(images, train, index, split)
        return ends["logits"] if "logits" in ends else ends["pooled"]

    @property
    def conv_norm(self) -> Callable[..., ConvNorm]:
        """`ConvNorm` with this network's settings filled in."""
        return functools.partial(
            ConvNorm,
            activation=self.activation,
            convention=self.convention,
            batch_norm_momentum=self.batch_norm_momentum,
            batch_norm_epsilon=self.batch_norm_epsilon,
            batch_norm_axis=self.batch_norm_axis,
            dtype=self.dtype,
            kernels=self.kernels,
            frozen_batch_norm=self.frozen_batch_norm,
        )


def _check_images(images: Array) -> None:
    shape = images.shape
    # A height of 1 or 3 with more than 4 channels means NCHW.
    if len(shape) != 4 or (shape[1] in (1, 3) and shape[3] > 4):
        raise ValueError(f"images must be of shape (images, height, width, channels), got {shape}")
    if 0 in shape[1:]:
        raise ValueError(f"images must have 1 pixel or more, got images of shape {shape}")
    # Raw integer pixels would be taken for preprocessed ones.
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be preprocessed to floating-point numbers, got {images.dtype}")
