"""Several processes as one run: one a host of a TPU slice, or a GPU host, or a task of Slurm."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path

import jax

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


def environment_says(environment: Mapping[str, str]) -> bool:
    """Whether the environment tells JAX of several processes: a Slurm job of several tasks, or a TPU host."""
    if int(environment.get("SLURM_NTASKS", "1") or 1) > 1 and "SLURM_PROCID" in environment:
        return True
    if environment.get("JAX_PLATFORMS", "") not in ("", "tpu"):
        return False
    slice_hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return len(slice_hosts) > 1 or Path("/dev/accel0").exists()


def initialize(options: Processes) -> None:
    """Join the other processes, if there are any; before anything asks JAX for its devices.

    Raises:
        UserError: for flags that do not go together, and where the others cannot be reached.
    """
    given = [options.coordinator, options.processes, options.process_id]
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise UserError("--coordinator, --processes and --process-id go together; give all three or none")
        count, number = options.processes or 0, options.process_id or 0
        if not re.fullmatch(r"\S+:\d+", options.coordinator or ""):
            raise UserError(f"--coordinator must be HOST:PORT, got {options.coordinator}")
        if not 0 <= number < count:
            raise UserError(f"--process-id must be from 0 to below the {count} --processes, got {number}")
        try:
            jax.distributed.initialize(options.coordinator, count, number)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the coordinator {options.coordinator} cannot be joined ({reason})") from error
    elif environment_says(os.environ):
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the other processes, of which the environment tells, cannot be joined ({reason})"
            ) from error
