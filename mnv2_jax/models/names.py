"""Settings of a network that are names, apart from what they name: command lines list them without loading JAX."""

from typing import Literal

ModelName = Literal["mobilenet_v1", "mobilenet_v2"]
"""Networks."""
Layers = Literal["fitted", "plain"]
"""Forms of the layers: fitted to the platform, or as JAX has them."""
Activation = Literal["linear", "relu6", "relu", "leaky_relu", "elu", "hard_swish", "swish", "tanh"]
"""What follows a convolution and its norm."""
ConventionName = Literal["tensorflow", "pytorch"]
"""Numeric conventions."""
