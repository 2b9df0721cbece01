"""Plans for runs on TPUs that are not here: the run's own step is compiled for them, and its needs are read off."""

from typing import Literal

Step = Literal["train", "eval"]
"""The trainer's program to plan."""
