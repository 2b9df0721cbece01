"""bench_throughput.py compares networks that compute the same; rates are not checked."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "experiments" / "bench_throughput.py"


def test_all_losses_agree_and_every_peer_has_a_ratio(tmp_path):
    flags = [
        "--peers", "torch", "keras", "--width-multiplier", "0.35", "--resolution", "32", "--batch-size", "4",
        "--unit-strides", "1", "--rounds", "1", "--steps", "1", "--json", "--out", str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for result in found["results"]:
        assert result["ratio"].keys() == {"torch", "keras"}
        assert all(ratio > 0 for ratio in result["ratio"].values())
    assert found["results"][0]["memory_mb"].keys() == found["versions"].keys() == {"ours", "torch", "keras"}
