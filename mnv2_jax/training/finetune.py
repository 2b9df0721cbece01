"""Start a run from trained weights, from any source.

The run takes all variables of the network, except those of the classifier if its classes differ: it is then newly
initialised. Weights that do not fit are refused with a one-line error before training.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import PyTree

from mnv2_jax.errors import UserError
from mnv2_jax.models.create import NOT_IN_INFERENCE, create_model, model_name, model_settings
from mnv2_jax.network import Network, from_description, variable_shapes
from mnv2_jax.results import CONFIG, kind_of, read_json
from mnv2_jax.training.checkpoint import BEST, CHECKPOINTS, NETWORK, RunCheckpoints
from mnv2_jax.training.config import Run
from mnv2_jax.training.devices import SEED, Devices
from mnv2_jax.training.step import Learner, TrainState
from mnv2_jax.weights.load import SOURCES, load_weights
from mnv2_jax.wording import counted

DECIDED = ("name", "width_multiplier", "expansion", "kernel_size", "bottleneck_activation", "convention")
"""Model settings that the weights determine; flags may repeat them."""


def open_trained(where: str | Path, averaged: bool = True) -> tuple[Network, dict[str, Any], list[str]]:
    """Open a trained network.

    Args:
        where: a run's folder, finished or not; a network in it; or any source that `load_weights` accepts.
        averaged: use the moving average of the parameters if the run has one.

    Returns:
        The network, the settings of its run (empty if unknown), and remarks, one line each.

    Raises:
        UserError: if there is no network that can be read.
    """
    path = Path(where)
    if path.name in (NETWORK, BEST) and (path.parent / CONFIG).is_file() and path.is_dir():
        settings = read_json(path.parent / CONFIG, object)
        return load_weights(where), settings if kind_of(settings) == "run" else {}, []
    if not (path / CONFIG).is_file() or not (path / CHECKPOINTS).is_dir() or (path / "model.safetensors").exists():
        return load_weights(where), {}, []
    settings = read_json(path / CONFIG, {}, f"restore it from a copy, or use {path / NETWORK}")
    if kind_of(settings) != "run":
        raise UserError(f"{path} is a study; choose one of its networks, {path / CHECKPOINTS}/ARM-SEED")
    if (path / NETWORK).is_dir() and (averaged or not settings.get("ema_decay")):
        return load_weights(path / NETWORK), settings, []
    with contextlib.closing(RunCheckpoints(path / CHECKPOINTS, read_only=True)) as checkpoints:
        saved = checkpoints.restore()
    if saved is None:
        raise UserError(f"{path} has no readable checkpoint yet; train it first")
    state: Any = saved.state
    averages = (state.get("ema") or {}) if averaged else {}
    variables = {"params": {**state["params"], **averages}, "batch_stats": state["batch_stats"]}
    said = [f"the checkpoint of step {step} cannot be read ({why})" for step, why in saved.damaged]
    said.append(f"using the network after step {int(state['step'][0])}, from a checkpoint of the run")
    network = from_description(saved.notes["network"])
    return network.replace(variables=jax.tree.map(lambda leaf: leaf[0], variables)), settings, said


def with_settings_of(run: Run, start: Network) -> Run:
    """Return the run with model settings from its weights, where it does not set its own.

    Raises:
        UserError: if a setting of the run contradicts the weights.
    """
    theirs, usual = model_settings(start.model), model_settings(create_model(model_name(start.model)))
    own = {name: value for name, value in run.model.items() if value is not None}
    has = dict(theirs)
    if has.get("expansion", 0) is None:
        has["expansion"] = max(stage.expansion for stage in start.model.stages)  # type: ignore[attr-defined]
    for name in DECIDED:
        if name in own and own[name] != has.get(name):
            flag = "--model" if name == "name" else f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} {own[name]} does not match {run.weights}, which has {has.get(name)}; remove the flag"
            )
    # `create_network` sets those that depend on the data and the training.
    rest = ("num_classes", *NOT_IN_INFERENCE)
    model = {name: value for name, value in theirs.items() if name not in rest and value != usual[name]}
    always = {name: theirs[name] for name in ("name", "width_multiplier", "unit_strides")}
    model = {**always, **model, **own}
    return dataclasses.replace(run, model=model)


@dataclasses.dataclass(frozen=True)
class Start:
    """Trained variables that a run starts from.

    Attributes:
        variables: "params" and "batch_stats" of the layers that the run takes.
        said: remarks, one sentence each.
    """

    variables: Mapping[str, PyTree]
    said: tuple[str, ...]

    @classmethod
    def of(cls, start: Network, model: nn.Module, class_names: Sequence[str], name: str) -> "Start":
        """Fit a trained network to a model.

        Args:
            start: the trained network.
            model: the run's model.
            class_names: of the run's data.
            name: name of the weights in messages.

        Raises:
            UserError: if the variables do not fit; names those that are missing, left over or of another shape.
        """
        layers = tuple(model.task_layers)  # type: ignore[attr-defined]
        theirs = start.model.num_classes  # type: ignore[attr-defined]
        said: tuple[str, ...] = ()
        # Other code bases have other names for the same classes.
        named = start.class_names is not None and start.source not in SOURCES
        renamed = named and tuple(start.class_names or ()) != tuple(class_names)
        sigmoids = start.task.outputs == "sigmoid"  # type: ignore[attr-defined]
        anew = theirs != len(class_names) or renamed or sigmoids
        if anew:
            if sigmoids:
                why = f"{name} has sigmoid outputs, but training is for one class per image"
            elif theirs != len(class_names):
                has = counted(theirs, "class") if theirs else "no classes"
                why = f"{name} has {has}, the data have {len(class_names)}"
            else:
                why = f"{name} has {counted(theirs, 'class')} with different names than those of the data"
            said = (f"the classifier is newly initialised: {why}",)
        params = {layer: value for layer, value in start.variables["params"].items() if not (anew and layer in layers)}
        variables = {"params": params, "batch_stats": start.variables["batch_stats"]}
        wanted = variable_shapes(model, start.image_channels)
        wanted = {**wanted, "params": {k: v for k, v in wanted["params"].items() if not (anew and k in layers)}}
        check_fits(variables, wanted, name)
        return cls(jax.tree.map(np.asarray, variables), said)

    def overlay(self, state: TrainState, learner: Learner, devices: Devices, runs: Sequence[bool]) -> TrainState:
        """Replace the variables in the initial states of those `runs` that start from these weights.

        The initial optimizer state does not depend on the parameters, so it stays.
        """

        def stacked(own: jax.Array, given: np.ndarray) -> np.ndarray:
            if all(runs):
                return np.broadcast_to(given, own.shape)
            rows = np.array(own)
            rows[np.asarray(runs)] = given
            return rows

        def replaced(own: PyTree, given: PyTree) -> PyTree:
            return devices.put(jax.tree.map(stacked, own, given), SEED)

        given = self.variables["params"]
        params = {**state.params, **replaced({name: state.params[name] for name in given}, given)}
        ema = state.ema
        if learner.ema_decay:
            averaged = {name: layer for name, layer in given.items() if name in ema}
            # A separate copy: the state is donated to the step, so its arrays must not share memory.
            ema = {**ema, **replaced({name: ema[name] for name in averaged}, averaged)}
        batch_stats = replaced(state.batch_stats, self.variables["batch_stats"])
        return state.replace(params=params, ema=ema, batch_stats=batch_stats)


def check_fits(variables: PyTree, wanted: PyTree, name: str) -> None:
    """Check that variables have the names and shapes that a model expects.

    Raises:
        UserError: if they do not; names what is missing, left over or of another shape.
    """

    def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {"/".join(str(getattr(key, "key", key)) for key in path): tuple(leaf.shape) for path, leaf in leaves}

    theirs, ours = shapes(variables), shapes(wanted)
    problems = [f"{path} is missing" for path in ours if path not in theirs]
    problems += [f"{path} is unexpected" for path in theirs if path not in ours]
    problems += [
        f"{path} has shape {theirs[path]}, expected {ours[path]}"
        for path in ours
        if path in theirs and theirs[path] != ours[path]
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{name} does not fit the network: {'; '.join(problems[:3])}{more}")
