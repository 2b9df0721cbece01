"""A study that kills itself in the middle of a run, for `test_study.py`: a process of its own.

    python killed_study.py FOLDER LOGGED

Saves its state at every evaluation, and is gone as soon as it has logged so many intervals.
"""

import os
import signal
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
from ablation.studies import ENVIRONMENT, STUDY
from samples import tiny_of

from mnv2_jax.ablation import engine
from mnv2_jax.ablation.progress import Reporter


class Killer(Reporter):
    def __init__(self, logged: int):
        super().__init__()
        self.left = logged

    def step(self, logged) -> None:
        super().step(logged)
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    from mnv2_jax.data.resident import load

    jax.config.update("jax_num_cpu_devices", 2)
    engine.SAVE_SECONDS = -1
    tiny = tiny_of(load("digits"))
    engine.run_study(
        STUDY, tiny, Path(sys.argv[1]), Killer(int(sys.argv[2])), command="python x", environment=ENVIRONMENT
    )


if __name__ == "__main__":
    main()
