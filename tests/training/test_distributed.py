"""Two processes with two devices each give the same run as one process with four."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mnv2_jax.errors import UserError
from mnv2_jax.network import open_network, tree_digest
from mnv2_jax.training import distributed
from mnv2_jax.training.distributed import Processes, initialize, is_slurm_job, is_tpu_host, watch_for_preemption
from mnv2_jax.training.metrics import read_records
from training.runs import run_tiny

HERE = Path(__file__).parent
# A few small steps, so that only rounding differs.
SMALL = {"learning_rate": 0.002, "epochs": 2, "batch_size": 48, "accumulation": 1, "evaluations": 1}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(folder, calls, devices=2):
    """Start two processes that call `run_tiny(folder, ...)` with these arguments, on `devices` devices each."""
    port = free_port()
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "PYTHONPATH": str(HERE.parent),
    }
    processes = []
    for number in range(2):
        code = (
            "import faulthandler, sys\n"
            "faulthandler.dump_traceback_later(500, exit=True)\n"  # shows where it hangs, if it does
            "from pathlib import Path\n"
            "from mnv2_jax.training.distributed import Processes, initialize\n"
            f"initialize(Processes('127.0.0.1:{port}', 2, {number}))\n"
            "import jax\n"
            f"assert (jax.device_count(), jax.local_device_count()) == ({2 * devices}, {devices})\n"
            "from training.runs import run_tiny\n"
            f"run_tiny(Path({str(folder)!r}), log=sys.stdout, devices=None, {calls})\n"
        )
        processes.append(
            subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
        )  # fmt: skip
    return processes


def finish(processes):
    results = [process.communicate(timeout=520) for process in processes]
    for process, (_, errors) in zip(processes, results, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return results


def difference(one, other):
    one, other = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (one, other))
    return np.linalg.norm(one - other) / np.linalg.norm(other)


def backbone(path):
    variables = open_network(path / "network").variables
    return variables["batch_stats"], {name: leaf for name, leaf in variables["params"].items() if name != "classifier"}


@pytest.mark.slow
@pytest.mark.parametrize(("streamed", "compiled"), [(False, "jit"), (True, "jit"), (False, "pmap")])
def test_two_processes(data_dir, digits, tmp_path, streamed, compiled):
    """Parameters and records agree, and the summary is written."""
    parallel = f"execution={{'parallel': {compiled!r}}}"
    finish(start(tmp_path / "two", f"streamed={streamed}, training={SMALL}, {parallel}"))
    run_tiny(tmp_path / "one", devices=4, streamed=streamed, training=SMALL)
    one, two = (open_network(tmp_path / name / "network").variables["params"] for name in ("one", "two"))
    assert difference(two, one) < 1e-5
    records = [read_records(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    for ours, theirs in zip(*records, strict=True):
        assert (ours.step, ours.split, ours.images) == (theirs.step, theirs.split, theirs.images)
        assert theirs.metrics == pytest.approx(ours.metrics, rel=0.01)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["test"]["examples"] == 454


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["jit", "pmap"])
def test_two_processes_start_from_the_same_weights(data_dir, digits, tmp_path, compiled):
    """And a frozen backbone stays bitwise the same."""
    run_tiny(tmp_path / "trained", training=SMALL)
    frozen = {**SMALL, "freeze": "backbone"}
    parallel = f"execution={{'parallel': {compiled!r}}}"
    weights = f"weights={str(tmp_path / 'trained')!r}"
    finish(start(tmp_path / "two", f"training={frozen}, model={{'kernels': 'tuned'}}, {weights}, {parallel}"))
    run_tiny(tmp_path / "one", devices=4, training=frozen, model={}, weights=str(tmp_path / "trained"))
    assert tree_digest(backbone(tmp_path / "two")) == tree_digest(backbone(tmp_path / "trained"))
    one, two = (open_network(tmp_path / name / "network").variables["params"] for name in ("one", "two"))
    assert 0 <= difference(two["classifier"], one["classifier"]) < 1e-5


@pytest.mark.slow
def test_preemption_of_one_process_stops_both_at_the_same_step(data_dir, digits, tmp_path):
    """Repeating the command in both resumes."""
    calls = "training={'epochs': 15, 'evaluations': 1}, execution={'log_every': 1, 'checkpoint_every': 10000}"
    processes = start(tmp_path / "run", calls, devices=1)
    metrics = tmp_path / "run" / "metrics.jsonl"
    began = time.monotonic()
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert time.monotonic() - began < 500
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    results = [process.communicate(timeout=520) for process in processes]
    steps = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert len(steps) == 1
    for process, (_, errors) in zip(processes, results, strict=True):
        assert process.returncode != 0
        assert f"Preempted: SIGTERM: saved after step {steps[0]}" in errors
    output, _ = finish(start(tmp_path / "run", calls, devices=1))[0]
    assert f"resuming from step {steps[0]}" in output
    assert "step 90 test:" in output


def test_sigterm_is_noticed_after_a_step_and_no_longer_when_all_is_over():
    before = signal.getsignal(signal.SIGTERM)
    with watch_for_preemption() as should_stop:
        assert not should_stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop(2)
    assert signal.getsignal(signal.SIGTERM) == before


# --- Flags and environment -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Processes("localhost:1"), "go together; give all three or none"),
        (Processes("localhost:1", 2, 2), r"--process-id must be at least 0 and less than --processes \(2\), got 2"),
        (Processes("localhost", 2, 0), "--coordinator must be HOST:PORT, got localhost"),
        (Processes("localhost:65536", 2, 0), "--coordinator must be HOST:PORT, got localhost:65536"),
    ],
)
def test_flags_that_do_not_go_together(options, says):
    with pytest.raises(UserError, match=says):
        initialize(options)


ALONE = """
from mnv2_jax.training import distributed
distributed.JOIN_SECONDS = 1
distributed.initialize(distributed.Processes("localhost:{port}", 2, 1))
"""


def test_processes_that_do_not_come_together_end_in_time_with_one_line():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    done = subprocess.run([sys.executable, "-c", ALONE.format(port=port)], capture_output=True, text=True, timeout=100)
    says = f"error: the 2 processes at the coordinator localhost:{port} did not connect within 1 seconds; "
    assert done.stderr == f"{says}check that all of them are running\n"
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False),
        ({"SLURM_NTASKS": "4"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, True),
    ],
)
def test_slurm_tells_of_other_processes(environment, says):
    assert is_slurm_job(environment) == says


def test_tpus_are_found_on_the_pci_bus(tmp_path):
    for number, vendor in enumerate(["0x8086", "0x1ae0"]):
        (tmp_path / f"0000:00:{number:02}.0").mkdir()
        (tmp_path / f"0000:00:{number:02}.0" / "vendor").write_text(f"{vendor}\n")
    assert is_tpu_host({}, tmp_path)
    assert not is_tpu_host({"JAX_PLATFORMS": "cpu"}, tmp_path)
    assert not is_tpu_host({}, tmp_path / "0000:00:00.0")


@pytest.mark.parametrize("error", [ValueError("coordinator_address should be defined."), RuntimeError("unreachable")])
def test_a_tpu_host_joins_the_others_or_is_alone(monkeypatch, error):
    tried = []

    def join(**limits):
        tried.append(True)
        raise error

    monkeypatch.setattr(distributed, "is_tpu_host", lambda environment: True)
    monkeypatch.setattr(jax.distributed, "initialize", join)
    with contextlib.nullcontext() if isinstance(error, ValueError) else pytest.raises(UserError, match="unreachable"):
        initialize(Processes())
    assert tried
