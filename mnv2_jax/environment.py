"""What results depend on besides the command."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

GOOGLE = "0x1ae0"
"""The vendor of TPUs on the PCI bus (jax/_src/hardware_utils.py)."""


def is_tpu_host(environment: Mapping[str, str], devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether TPUs are plugged in here and meant to be used; their files in /dev differ from kind to kind.

    Google's network cards are taken for TPUs too, which does no harm: nothing tells them of other hosts.
    """
    if environment.get("JAX_PLATFORMS", "") not in ("", "tpu"):
        return False
    return any(vendor.read_text().strip() == GOOGLE for vendor in devices.glob("*/vendor"))


def core_count() -> int:
    """Cores that this process may use, which are those that JAX takes."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """Versions, devices, and the commit of the source, for JSON."""
    import jax

    source = Path(__file__).resolve().parents[1]
    return {
        "mnv2_jax": version("mnv2_jax"),
        "jax": version("jax"),
        "flax": version("flax"),
        "optax": version("optax"),
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "git": _commit(source),
    }


def _commit(source: Path) -> str:
    """Of the source; "unknown" of a package that is installed, where a repository around it is another's."""
    if not (source / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
