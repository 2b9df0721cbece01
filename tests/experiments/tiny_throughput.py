"""`throughput_networks.py` with a network of two blocks: for `test_bench_throughput.py`, as a process of its own."""

import runpy
import sys
from pathlib import Path

from mnv2_jax.models import mobilenet_v2
from mnv2_jax.models.backbone import Stage


class MobileNetV2(mobilenet_v2.MobileNetV2):
    """As ours, with a shorter table."""

    stages: tuple[Stage, ...] = (Stage(1, 16, 1, 1), Stage(6, 24, 1, 2))


if __name__ == "__main__":
    mobilenet_v2.MobileNetV2 = MobileNetV2
    folder = Path(__file__).parents[2] / "experiments"
    sys.path.insert(0, str(folder))
    runpy.run_path(str(folder / "throughput_networks.py"), run_name="__main__")
