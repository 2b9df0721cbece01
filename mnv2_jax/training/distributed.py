"""Several processes as one run: one a host of a TPU slice, or a GPU host, or a task of Slurm."""

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
    """Which processes make up the run. What follows a field is its help."""

    coordinator: str | None = None
    """Address of process 0 (HOST:PORT), where neither Slurm nor a Cloud TPU tells it."""
    processes: int | None = None
    """How many processes there are; with --coordinator."""
    process_id: int | None = None
    """Number of this one, from 0; with --coordinator."""


JOIN_SECONDS = 300
"""In which all processes must have come together; they may be started one after the other."""


def is_slurm_job(environment: Mapping[str, str]) -> bool:
    """Whether Slurm started several tasks, of which this is one."""
    return int(environment.get("SLURM_NTASKS", "1") or 1) > 1 and "SLURM_PROCID" in environment


def initialize(options: Processes) -> None:
    """Join the other processes, if there are any; before anything asks JAX for its devices.

    Raises:
        UserError: for flags that do not go together, and where the others cannot be reached.
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
            raise UserError(f"--process-id must be from 0 to below the {count} --processes, got {number}")
        try:
            with _time_limit(f"the {count} processes at the coordinator {options.coordinator}"):
                jax.distributed.initialize(options.coordinator, count, number, initialization_timeout=2 * JOIN_SECONDS)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the coordinator {options.coordinator} cannot be joined ({reason})") from error
    elif is_slurm_job(os.environ) or is_tpu_host(os.environ):
        try:
            with _time_limit("the other processes, of which the environment tells,"):
                jax.distributed.initialize(initialization_timeout=2 * JOIN_SECONDS)
        except (RuntimeError, ValueError) as error:
            if isinstance(error, ValueError) and not is_slurm_job(os.environ):
                return  # nothing here tells a TPU of other hosts
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the other processes, of which the environment tells, cannot be joined ({reason})"
            ) from error


@contextlib.contextmanager
def _time_limit(whom: str) -> Iterator[None]:
    """End this process with one line and exit code 2 where they have not come together in time: JAX would abort it."""

    def give_up() -> None:
        print(
            f"error: {whom} did not come together in {JOIN_SECONDS} seconds; see that all are started", file=sys.stderr
        )
        sys.stderr.flush()
        os._exit(2)  # the thread that waits inside of JAX cannot be interrupted

    timer = threading.Timer(JOIN_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def watch_for_preemption() -> Iterator[Callable[[int], bool]]:
    """Whether to stop after a step, because SIGTERM came: to this process, or with several to any of them."""
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
    """Until all have come here."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(where)
