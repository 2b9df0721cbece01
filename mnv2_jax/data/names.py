"""What flags about data may say, apart from the data: command lines list it without loading TFDS or Grain."""

from typing import Literal

ResidentName = Literal["digits", "fashion_mnist", "cifar10", "cifar100"]
"""Sets that are small enough to live on the device."""
OnBadImage = Literal["stop", "skip"]
"""What a stream does about a damaged image."""
