"""Several processes as one run: one a host of a TPU slice, or a GPU host, or a task of Slurm."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path

from mnv2_jax.errors import UserError

GOOGLE = "0x1ae0"
"""The vendor of TPUs on the PCI bus (jax/_src/hardware_utils.py)."""


@dataclasses.dataclass(frozen=True)
class Processes:
    """Which processes make up the run. What follows a field is its help."""

    coordinator: str | None = None
    """Address of process 0 (HOST:PORT), where neither Slurm nor a Cloud TPU tells it."""
    processes: int | None = None
    """How many processes there are; with --coordinator."""
    process_id: int | None = None
    """Number of this one, from 0; with --coordinator."""


def is_slurm_job(environment: Mapping[str, str]) -> bool:
    """Whether Slurm started several tasks, of which this is one."""
    return int(environment.get("SLURM_NTASKS", "1") or 1) > 1 and "SLURM_PROCID" in environment


def is_tpu_host(environment: Mapping[str, str], devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether TPUs are plugged in here and are meant to be used; their files in /dev differ from kind to kind.

    Network cards of Google's are taken for TPUs too, which does no harm: nothing tells them of other hosts.
    """
    if environment.get("JAX_PLATFORMS", "") not in ("", "tpu"):
        return False
    return any(vendor.read_text().strip() == GOOGLE for vendor in devices.glob("*/vendor"))


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
        if not re.fullmatch(r"\S+:\d+", options.coordinator or ""):
            raise UserError(f"--coordinator must be HOST:PORT, got {options.coordinator}")
        if not 0 <= number < count:
            raise UserError(f"--process-id must be from 0 to below the {count} --processes, got {number}")
        try:
            jax.distributed.initialize(options.coordinator, count, number)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the coordinator {options.coordinator} cannot be joined ({reason})") from error
    elif is_slurm_job(os.environ) or is_tpu_host(os.environ):
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError) as error:
            if isinstance(error, ValueError) and not is_slurm_job(os.environ):
                return  # nothing here tells a TPU of other hosts
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the other processes, of which the environment tells, cannot be joined ({reason})"
            ) from error
