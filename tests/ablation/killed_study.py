"""A study that kills itself in the middle of a run, for `test_study.py`: a process of its own.

    python killed_study.py FOLDER STEP

Saves its state at every evaluation, and is gone when a group has logged the step and its state is on disk.
"""

import os
import signal
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[1]))

from samples import tiny_of

from ablation.studies import quick, run, stopping
from mnv2_jax.ablation import study
from mnv2_jax.data.resident import load


def main() -> None:
    folder, step = Path(sys.argv[1]), int(sys.argv[2])
    study.SAVE_SECONDS = -1

    def kill() -> None:
        while not any(path.name.isdigit() for path in folder.glob("running/*/state/*")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    with quick():
        run(tiny_of(load("digits")), folder, reporter=stopping(step, kill))


if __name__ == "__main__":
    main()
