"""Flags that several commands share."""

import dataclasses
from typing import Literal

from mnv2_jax.errors import UserError
from mnv2_jax.models.classifier import ImageClassifier
from mnv2_jax.models.create import create_model
from mnv2_jax.models.layers import ConventionName

ModelName = Literal["mobilenet_v1", "mobilenet_v2"]


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
        if not 0 < self.resolution <= 8192:
            raise UserError(f"--resolution must be from 1 to 8192 pixels, got {self.resolution}")
        for name in ("num_classes", "unit_strides"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} must not be negative, got {getattr(self, name)}")
        return create_model(
            self.model,
            width_multiplier=self.width_multiplier,
            num_classes=self.num_classes,
            convention=self.convention,
            output_stride=self.output_stride,
            unit_strides=self.unit_strides,
        )
