"""The environment that results depend on: versions, devices, source commit."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

GOOGLE = "0x1ae0"
"""PCI vendor ID of TPUs (jax/_src/hardware_utils.py)."""


def is_tpu_host(environment: Mapping[str, str], devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Return whether this host has TPUs and JAX_PLATFORMS lets JAX use them.

    Looks for Google's devices on the PCI bus, since the files in /dev differ between kinds of TPU. Google's network
    cards are mistaken for TPUs, which does no harm: there is no metadata that names other hosts.
    """
    if environment.get("JAX_PLATFORMS", "") not in ("", "tpu"):
        return False
    return any(vendor.read_text().strip() == GOOGLE for vendor in devices.glob("*/vendor"))


def core_count() -> int:
    """Return the number of cores that this process may use, all of which JAX uses."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """Return versions, devices and the source's commit, as JSON values."""
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
    """Return the source's commit; "unknown" for an installed package, even inside another project's repository."""
    if not (source / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
