"""A study that is interrupted, for `test_study.py`. It forks, so it runs in its own process.

    python killed_study.py FOLDER STEP
    python killed_study.py FOLDER SEED KILLS TERMS

The first kills itself when a group has logged the step and its state is on disk. The second is interrupted at random
moments by KILLS SIGKILLs and TERMS SIGTERMs and then finishes; it prints a line of JSON per try. Both save their state
at every evaluation.
"""

import dataclasses
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[1]))

from samples import tiny_of

from ablation.studies import STUDY, quick, run, stopping
from mnv2_jax.ablation import study
from mnv2_jax.data.resident import load
from mnv2_jax.errors import Preempted

LONG = dataclasses.replace(STUDY, training=dataclasses.replace(STUDY.training, epochs=40, evaluations=16))
"""A study that takes some seconds."""

SIGNS = ("*.json*", "running/*/state/*", "checkpoints/.*", "checkpoints/*-0", "checkpoints/*-1", "tensorboard/*-1/*")
"""A try is ended once one of these exists: settings, a state, a partial or whole network, the second group."""

LONGEST = 1.0
"""Largest delay, in seconds, from then to the signal."""


def kill_itself(folder: Path, step: int) -> None:
    """Run the study, and kill this process after a step."""

    def kill() -> None:
        while not any(path.name.isdigit() for path in folder.glob("running/*/state/*")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    run(tiny_of(load("digits")), folder, reporter=stopping(step, kill))


def child(folder: Path) -> int:
    """Run the study to its end; return the exit code that a command would have."""
    try:
        run(tiny_of(load("digits")), folder, LONG)
    except Preempted:
        return os.EX_TEMPFAIL
    except BaseException as error:
        print(json.dumps({"failed": repr(error)}), flush=True)
        return 1
    return 0


def attempt(folder: Path, number: int | None, moments: random.Random, signs: Sequence[str]) -> dict:
    """Run in a child process and send it a signal at a random moment after a sign; with None, let it finish."""
    process = os.fork()
    if process == 0:
        os._exit(child(folder))
    found: dict = {"signal": number}
    if number is not None:
        found["sign"] = moments.choice(signs)
        while not any(folder.glob(found["sign"])) and not ended(process):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, LONGEST))
        os.kill(process, number)
    found["code"] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    found["left"] = sorted(path.name for path in folder.rglob("*") if "tmp" in path.name or ".new" in path.name)
    metrics = folder / "metrics.jsonl"
    found["tested"] = metrics.read_text().count('"test"') if metrics.exists() else 0
    return found


def ended(process: int) -> bool:
    """Return whether the process has ended by itself."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end_at_random(folder: Path, seed: int, kills: int, terms: int) -> None:
    """Interrupt a study with SIGKILLs and SIGTERMs in random order, then let it finish."""
    moments = random.Random(seed)
    numbers = [int(signal.SIGKILL)] * kills + [int(signal.SIGTERM)] * terms
    moments.shuffle(numbers)
    for index, number in enumerate([*numbers, None]):
        # The first comes early, while there is much to do: a study that is finished cannot be interrupted.
        print(json.dumps(attempt(folder, number, moments, SIGNS if index else SIGNS[:2])), flush=True)


def main() -> None:
    folder, *numbers = sys.argv[1:]
    study.SAVE_SECONDS = -1
    with quick():
        if len(numbers) == 1:
            kill_itself(Path(folder), int(numbers[0]))
        else:
            end_at_random(Path(folder), *map(int, numbers))


if __name__ == "__main__":
    main()
