"""A trained network from wherever it is, over a whole split of any data set."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

from mnv2_jax.data import stream
from mnv2_jax.data.catalog import FOLDER
from mnv2_jax.data.names import OnBadImage
from mnv2_jax.errors import UserError
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.training.checkpoint import RunCheckpoints
from mnv2_jax.training.folder import CONFIG
from mnv2_jax.training.loop import evaluate_network
from mnv2_jax.training.run import CHECKPOINTS, NETWORK, OWN
from mnv2_jax.weights.load import Weights, from_description, load_weights


def open_weights(path: Path, averaged: bool = True) -> tuple[Weights, dict[str, Any], list[str]]:
    """A network, the settings of the run that it comes from, or none, and what there is to say of it.

    Args:
        path: a run's folder, or what `load_weights` takes.
        averaged: of a run with a moving average of its parameters, take the average.

    Raises:
        UserError: if there is none.
    """
    if not (path / CONFIG).is_file() or not (path / CHECKPOINTS).is_dir() or (path / "model.safetensors").exists():
        return load_weights(path), {}, []
    try:
        settings = json.loads((path / CONFIG).read_text())
    except ValueError as error:
        raise UserError(f"{path / CONFIG} is not a run's ({error})") from error
    if "seed" not in settings:
        raise UserError(f"{path} is a study; name one of its networks, {path / CHECKPOINTS}/ARM-SEED")
    if (path / NETWORK).is_dir() and (averaged or not settings.get("ema_decay")):
        return load_weights(path / NETWORK), settings, []
    with contextlib.closing(RunCheckpoints(path / CHECKPOINTS, read_only=True)) as checkpoints:
        saved = checkpoints.restore()
    if saved is None:
        raise UserError(f"{path} has no checkpoint yet that can be read; train it first")
    weights, _ = from_description(saved.notes["network"])
    state: Any = saved.state
    averages = state.get("ema") if averaged else None
    variables = {"params": averages or state["params"], "batch_stats": state["batch_stats"]}
    import jax

    said = [f"the checkpoint of step {step} cannot be read ({why})" for step, why in saved.damaged]
    said.append(f"this is the network after step {int(state['step'][0])}, from a checkpoint of the run")
    return weights._replace(variables=jax.tree.map(lambda leaf: leaf[0], variables)), settings, said


def _some(names: tuple[str, ...] | None) -> str:
    return ", ".join((names or ())[:3]) + ", ..."


def evaluate_weights(
    weights: Weights,
    dataset: str,
    split: str,
    data_files: Path | None = None,
    resolution: int | None = None,
    on_bad_image: OnBadImage = "stop",
) -> tuple[dict[str, float], list[str]]:
    """Metrics of a network over all of a split, with the preprocessing that belongs to it, and what was skipped.

    Raises:
        UserError: if the data are not there, or of other classes than the network.
    """
    data = stream.load_stream(
        dataset, data_files, resolution=resolution or weights.resolution, on_bad_image=on_bad_image
    )
    classes = weights.model.num_classes
    if classes != data.num_classes:
        raise UserError(f"the network has {classes} classes and {dataset} {data.num_classes}")
    # Other code bases name the same classes in other words; our own runs name them as their folders do.
    if dataset == FOLDER and weights.source == OWN and weights.class_names != data.class_names:
        raise UserError(
            f"the network's classes ({_some(weights.class_names)}) are not those of {data_files} ({_some(data.class_names)})"
        )
    shape = (*data.image_shape[:2], weights.image_channels)
    data = dataclasses.replace(data, preprocessing=weights.preprocessing, image_shape=shape)
    metrics = evaluate_network(weights.model, weights.variables, Classification(classes), data, split)
    return metrics, sorted(data.skipped)
