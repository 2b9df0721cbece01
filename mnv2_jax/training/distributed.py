"""Several processes as one run: one per host of a TPU slice, per GPU host or per Slurm task."""

import contextlib
import dataclasses
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping

from mnv2_jax.environment import is_tpu_host
from mnv2_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of a run. The string under a field is its command-line help."""

    coordinator: str | None = None
    """Address of process 0 (HOST:PORT), if neither Slurm nor Cloud TPU provides it."""
    processes: int | None = None
    """Number of processes; with --coordinator."""
    process_id: int | None = None
    """Index of this process, from 0; with --coordinator."""


JOIN_SECONDS = 300
"""Seconds within which all processes must have joined; they may be started one after the other."""


def is_slurm_job(environment: Mapping[str, str]) -> bool:
    """Return whether this process is one of several tasks started by Slurm."""
    return int(environment.get("SLURM_NTASKS", "1") or 1) > 1 and "SLURM_PROCID" in environment


def initialize(options: Processes) -> None:
    """Join the other processes, if any. Call this before anything asks JAX for its devices.

    Raises:
        UserError: if the flags do not go together, or the other processes cannot be reached.
    """
    import jax

    given = [options.coordinator, options.processes, options.process_id]
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise UserError("--coordinator, --processes and --process-id go together; give all three or none")
        count, number = options.processes or 0, options.process_id or 0
        address = re.fullmatch(r"\S+:(\d{1,5})", options.coordinator or "")
        if address is None or not 0 < int(address[1]) < 2**16:
            raise UserError(f"--coordinator must be HOST:PORT, got {options.coordinator}")
        if not 0 <= number < count:
            raise UserError(f"--process-id must be at least 0 and less than --processes ({count}), got {number}")
        try:
            with _time_limit(f"the {count} processes at the coordinator {options.coordinator}"):
                jax.distributed.initialize(options.coordinator, count, number, initialization_timeout=2 * JOIN_SECONDS)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"cannot connect to the coordinator {options.coordinator} ({reason})") from error
    elif is_slurm_job(os.environ) or is_tpu_host(os.environ):
        try:
            with _time_limit("the other processes given by the environment"):
                jax.distributed.initialize(initialization_timeout=2 * JOIN_SECONDS)
        except (RuntimeError, ValueError) as error:
            if isinstance(error, ValueError) and not is_slurm_job(os.environ):
                return  # the environment of this TPU names no other hosts
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"cannot connect to the other processes given by the environment ({reason})") from error


@contextlib.contextmanager
def _time_limit(whom: str) -> Iterator[None]:
    """Exit with one line and code 2 if the processes have not joined in time; JAX would abort instead."""

    def give_up() -> None:
        print(
            f"error: {whom} did not connect within {JOIN_SECONDS} seconds; check that all of them are running",
            file=sys.stderr,
        )
        sys.stderr.flush()
        os._exit(2)  # the main thread, waiting inside JAX, cannot be interrupted

    timer = threading.Timer(JOIN_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def watch_for_preemption() -> Iterator[Callable[[int], bool]]:
    """Yield a function of the step: whether to stop after it, because this or another process received SIGTERM."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        yield multihost_utils.reached_preemption_sync_point
        return
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


def wait_for_processes(where: str) -> None:
    """Wait until all processes have reached this call."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(where)
