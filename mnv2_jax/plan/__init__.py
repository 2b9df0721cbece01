"""Plans of runs on TPUs that are not here: their own step is compiled for them, and its needs are read off."""

from typing import Literal

Step = Literal["train", "eval"]
"""The program of the trainer that is planned."""
