"""Run a script with a network of one block, in its own process, for `test_ablate_bottleneck.py`.

python tiny_study.py SCRIPT FLAGS
"""

import runpy
import sys

from mnv2_jax.ablation import design

STAGES = ((1, 16, 1, 2),)
_shared_settings = design.shared_settings


def shared_settings(options):
    """Return the scripts' settings, with one block."""
    return {**_shared_settings(options), "stages": STAGES}


if __name__ == "__main__":
    design.shared_settings = shared_settings
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
