"""A run that is killed repeatedly, for `test_run.py`. It forks, so it runs in its own process.

    python killed.py FOLDER INPUT SEED KILLS

It prints a line of JSON per try: when it was killed, and whether it was writing a checkpoint at that time.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[1]))

from training.runs import LONG, run_tiny

# Everything is imported but JAX is not started, so children skip Python's startup.
FIRST_SIGN, LONGEST = 120.0, 1.0


def attempt(folder: Path, streamed: bool, seconds: float | None) -> dict:
    """Run in a child process; kill it `seconds` after its training begins, or with None, let it finish."""
    began = folder / "began"
    began.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            every_step = {"checkpoint_every": 1}
            run_tiny(folder / "run", began.touch, devices=1, streamed=streamed, training=LONG, execution=every_step)
        except BaseException as error:
            print(json.dumps({"failed": repr(error)}), flush=True)
            os._exit(1)
        os._exit(0)
    if seconds is None:
        return {"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}
    start = time.monotonic()
    while not began.exists() and time.monotonic() - start < FIRST_SIGN:
        if os.waitpid(child, os.WNOHANG)[0]:
            return {"code": 0}
        time.sleep(0.01)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    checkpoints = [path.name for path in (folder / "run" / "checkpoints").iterdir()]
    return {
        "code": code,
        "after": round(seconds, 3),
        "checkpoints": sorted(name for name in checkpoints if name.isdigit()),
        "saving": any(not name.isdigit() for name in checkpoints),
    }


def main() -> None:
    folder, streamed, seed, kills = Path(sys.argv[1]), sys.argv[2] == "stream", int(sys.argv[3]), int(sys.argv[4])
    moments = random.Random(seed)
    for _ in range(kills):
        print(json.dumps(attempt(folder, streamed, moments.uniform(0, LONGEST))), flush=True)
    print(json.dumps(attempt(folder, streamed, None)), flush=True)


if __name__ == "__main__":
    main()
