"""Settings of a network that are names, apart from what they name: command lines list them without loading JAX."""

from typing import Literal

ModelName = Literal["mobilenet_v1", "mobilenet_v2"]
"""The paper's networks."""
Layers = Literal["fitted", "plain"]
"""Forms of the layers: fitted to the platform, or as JAX has them."""
Activation = Literal["linear", "relu6", "relu", "leaky_relu", "elu", "hard_swish", "swish", "tanh"]
"""What follows a convolution and its norm."""
Shortcut = Literal["bottleneck", "expansion", "none"]
"""What the shortcuts of inverted residuals join (Fig. 6b)."""
Transformation = Literal["depthwise", "linear", "two_depthwise"]
"""What an inverted residual does with its expansion."""
ConventionName = Literal["tensorflow", "pytorch"]
"""Numeric conventions."""
