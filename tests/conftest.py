"""Setup of all tests: eight CPU devices, strict JAX, small data."""

import atexit
import gc
import os
import shutil
import signal
import tempfile

# Before JAX starts: use the CPU whatever else is installed, as eight devices.
os.environ["JAX_PLATFORMS"] = "cpu"
# Compile quickly rather than well: tests spend most of their time compiling.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
    ]
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Commands restart their process if this is not set.
os.environ.setdefault("GLIBC_TUNABLES", "")

from pathlib import Path

# TFDS reads this when it is imported. Tests prepare their data away from the user's.
os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp(prefix="mnv2-tfds-")

import jax
import jaxtyping
import pytest
from jaxtyping import install_import_hook

atexit.register(shutil.rmtree, os.environ["TFDS_DATA_DIR"], ignore_errors=True)

# Background jobs of a shell, perhaps these tests among them, ignore interrupts, and subprocesses inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before mnv2_jax is imported: check annotations, including shapes, at every call.
install_import_hook("mnv2_jax", "typecheck.check")

# Tracing creates many small objects, few of them garbage. Python's default thresholds cost 5 % of the time.
gc.set_threshold(100_000, 50, 50)


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


FASHION_MNIST = Path(os.environ.get("FASHION_MNIST_FILES", "/usr/share/datasets/fashion-mnist"))


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache(tmp_path_factory):
    """Compile programs that several tests need only once; MNV2_TEST_CACHE keeps them between sessions."""
    folder = os.environ.get("MNV2_TEST_CACHE") or str(tmp_path_factory.mktemp("xla"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    return Path(os.environ["TFDS_DATA_DIR"])


@pytest.fixture(scope="session")
def digits(data_dir):
    from mnv2_jax.data.resident import load

    return load("digits", data_dir=data_dir)


@pytest.fixture(scope="session")
def tiny(digits):
    """Return the middle 12 pixels of a few digits: enough to run a network, not to train it well."""
    from samples import tiny_of

    return tiny_of(digits)


@pytest.fixture(scope="session")
def fashion_files() -> Path:
    if not (FASHION_MNIST / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"no Fashion-MNIST in {FASHION_MNIST} (Debian's dataset-fashion-mnist installs it)")
    return FASHION_MNIST


@pytest.fixture
def without_type_checks():
    """Turn off the checks of annotations, which only tests have, as for users of the library."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
