import subprocess
import sys
from typing import get_args

from mnv2_jax.data.catalog import CATALOG, OnBadImage, ResidentName


def test_studies_know_the_sets_that_live_on_the_device():
    resident = {name for name, entry in CATALOG.items() if entry.resident}
    assert set(get_args(ResidentName)) == resident
    assert {"digits", "fashion_mnist"} <= resident
    assert set(get_args(OnBadImage)) == {"stop", "skip"}


def test_the_catalog_is_read_without_what_reads_the_data():
    """Command lines list the catalog's names; loading JAX and TFDS for that would take seconds."""
    heavy = ("jax", "numpy", "tensorflow_datasets", "grain", "cv2", "PIL")
    code = f"import sys, mnv2_jax.data.catalog; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
