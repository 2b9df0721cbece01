"""The experiment scripts as modules, and the costs of their studies."""

import functools
import importlib.util
import sys
from pathlib import Path

from mnv2_jax.ablation.arms import network_of_arm
from mnv2_jax.models.cost import layer_costs

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
STUDIES = sorted(path.stem for path in EXPERIMENTS.glob("*.py") if "create_study(" in path.read_text())


@functools.cache
def load(name):
    """Load a script as a module, once."""
    # Like Python when it runs the script, so that its sibling modules are found.
    sys.path.insert(0, str(EXPERIMENTS))
    specification = importlib.util.spec_from_file_location(f"script_{name}", EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    # dataclasses looks up the module of a class here.
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    sys.path.remove(str(EXPERIMENTS))
    return module


def study_of(name, **flags):
    """Return the study that a script creates for these flags."""
    script = load(name)
    return script.create(script.Options(**flags))


def costs_of(study, dataset):
    """Return (multiply-adds, parameters) of every arm, by name."""
    found = {}
    for arm in study.arms:
        side = arm.resolution or dataset.image_shape[0]
        layers = layer_costs(network_of_arm(study, arm, dataset), (side, side, 1))
        parameters = sum(layer.parameters + layer.batch_norm_parameters for layer in layers)
        found[arm.name] = sum(layer.multiply_adds for layer in layers), parameters
    return found
