"""Flags that choose a network, for the commands that make one of nothing else."""

import dataclasses
from typing import Literal

from mnv2_jax.commands.options import check_resolution, check_unit_strides
from mnv2_jax.errors import UserError
from mnv2_jax.models.classifier import ImageClassifier
from mnv2_jax.models.create import create_model
from mnv2_jax.models.names import ConventionName, ModelName


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Flags that choose a network. What follows a field is its help."""

    model: ModelName = "mobilenet_v2"
    """The network."""
    width_multiplier: float = 1.0
    """Scales the channels of every layer."""
    resolution: int = 224
    """Side of the square images, in pixels."""
    num_classes: int = 1000
    """Outputs of the classifier; 0 leaves it out."""
    convention: ConventionName = "tensorflow"
    """Padding, epsilon and initialisers: the paper's code's, or PyTorch's."""
    output_stride: Literal[8, 16, 32] = 32
    """Below 32, the last feature maps are kept finer and their layers dilated."""
    unit_strides: int = 0
    """How many of the first stride-2 layers take stride 1, for small images."""

    def create(self) -> ImageClassifier:
        """The network.

        Raises:
            UserError: for sizes that no network has.
        """
        if not 0 < self.width_multiplier < 100:
            raise UserError(f"--width-multiplier must be greater than 0 and below 100, got {self.width_multiplier}")
        check_resolution(self.resolution)
        if self.num_classes < 0:
            raise UserError(f"--num-classes must not be negative, got {self.num_classes}")
        check_unit_strides(self.unit_strides)
        return create_model(
            self.model,
            width_multiplier=self.width_multiplier,
            num_classes=self.num_classes,
            convention=self.convention,
            output_stride=self.output_stride,
            unit_strides=self.unit_strides,
        )
