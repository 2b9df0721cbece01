"""What a run will need and how long it will take on TPUs that are not here, by compiling its own step for them."""

from typing import Literal

Step = Literal["train", "eval"]
"""Which of the trainer's programs is planned."""
