"""What results depend on besides the command."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


def core_count() -> int:
    """Cores that this process may use, which are those that JAX takes."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """Versions, devices, and the commit of the source, for JSON."""
    import jax

    source = Path(__file__).resolve().parents[1]
    try:
        commit = subprocess.run(
            ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "mnv2_jax": version("mnv2_jax"),
        "jax": version("jax"),
        "flax": version("flax"),
        "optax": version("optax"),
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "git": commit,
    }
