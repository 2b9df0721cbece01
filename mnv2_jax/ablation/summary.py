"""Results of a study: `summary.json`, made only from the study's description and the records of its runs.

It can be remade from a study's files, without training.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import fmean, linear_regression, median, stdev
from typing import Any

import numpy as np

from mnv2_jax.ablation.arms import image_shape, network_of_arm
from mnv2_jax.ablation.design import Arm, Study, named
from mnv2_jax.ablation.statistics import compare_all, failed_runs, mean_interval
from mnv2_jax.data.batch import Dataset
from mnv2_jax.errors import UserError
from mnv2_jax.models.cost import count_multiply_adds, count_parameters, layer_costs
from mnv2_jax.results import plain
from mnv2_jax.tasks.task import TASKS, Metric
from mnv2_jax.training.metrics import Record


def describe(
    study: Study,
    dataset: Dataset,
    rates: Mapping[str, float] | None,
    command: str,
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the part of a summary that does not depend on the runs.

    Args:
        study, dataset: the study and its images.
        rates: tuned factor of each arm's learning rate; None if they were not tuned.
        command, environment: recorded as they are.
    """
    steps = study.training.steps(dataset.train_images)
    task = study.run(study.baseline).task
    chance = TASKS[task].metric.chance
    described = {
        "experiment": study.experiment,
        "question": study.question,
        "claim": study.claim,
        "dataset": study.dataset,
        "title": study.title,
        "task": task,
        "chance": chance(dataset.num_classes) if chance else None,
        "baseline": study.baseline.name,
        "seeds": list(range(study.seeds)),
        "arms": {arm.name: _describe_arm(study, arm, dataset, rates) for arm in study.arms},
        "figure": study.figure,
        "axis": study.axis,
        "published": [list(point) for point in study.published],
        "paper_range": list(study.paper_range) if study.paper_range else None,
        "notes": [arm.note for arm in study.arms if arm.note],
        "tuned": study.tune,
        "budget": {
            "epochs": study.training.epochs if study.training.images is None else None,
            "steps": steps,
            "images": steps * study.training.batch_size,
            "train_images": dataset.train_images,
            "validation_images": dataset.count("validation"),
            "test_images": dataset.count("test"),
        },
        "model": named(study.model),
        "training": dataclasses.asdict(study.training),
        "command": command,
        "environment": dict(environment),
    }
    return plain(described)  # as JSON reads it back, so that a remade summary is the same


def _describe_arm(study: Study, arm: Arm, dataset: Dataset, rates: Mapping[str, float] | None) -> dict[str, Any]:
    shape = image_shape(arm, dataset)
    network, training = network_of_arm(study, arm, dataset), study.run(arm).training
    described: dict[str, Any] = {
        "network": type(network).__name__,
        "parameters": count_parameters(network, shape),
        "multiply_adds": count_multiply_adds(network, shape),
        "resolution": shape[0],
        "learning_rate": training.learning_rate * (rates[arm.name] if rates else 1),
        "series": arm.series,
        "value": arm.value,
        "paper": dataclasses.asdict(arm.paper) if arm.paper else None,
    }
    if arm.training:
        described["training"] = {**arm.training, "steps": training.steps(dataset.train_images)}
    if study.figure == "memory":
        layers = layer_costs(network, shape)
        described["activation_bytes"] = [[layer.name, layer.activation_bytes()] for layer in layers]
    return described


_ARM = {
    "parameters": int,
    "multiply_adds": int,
    "resolution": int,
    "learning_rate": float,
    "series": str,
    "value": (float, type(None)),
    "paper": ({"difference": float, "where": str, "how": str}, type(None)),
}

DESCRIBED = {
    **dict.fromkeys(
        ("experiment", "question", "claim", "dataset", "title", "baseline", "figure", "axis", "command"), str
    ),
    "seeds": [int],
    "arms": {str: _ARM},
    "published": [[(float, str)]],
    "paper_range": ([(float, str)], type(None)),
    "notes": [str],
    "tuned": bool,
    "budget": dict.fromkeys(("steps", "images", "train_images", "validation_images", "test_images"), int),
    "model": dict,
    "training": {"batch_size": int},
    "environment": dict,
}
"""Schema of the output of `describe`, with which `results.misfit` checks a summary when it is read."""


def metric_of(described: Mapping[str, Any]) -> Metric:
    """Return the metric that a summary is judged by: its task's, or one chosen with `judged_by`.

    Summaries of version 0.1.0, which had only classification, do not name their task.
    """
    task = TASKS[described.get("task", "classification")]
    return {metric.name: metric for metric in (task.metric, *task.others)}[described.get("metric", task.metric.name)]


def failed_of(summary: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return which runs of each arm failed, one bool per seed, judged among all arms of the study, shown or not."""
    if "failed_runs" in summary:
        return summary["failed_runs"]
    metric = metric_of(summary)
    values = [arm[f"test_{metric.name}"] for arm in summary["arms"].values()]
    return dict(zip(summary["arms"], failed_runs(values, metric.higher_is_better, summary.get("chance")), strict=True))


def comparison_count(summary: Mapping[str, Any]) -> int:
    """Return the number of comparisons that p-values and intervals are corrected for, including hidden ones."""
    return summary.get("compared", len(summary["comparisons"]))


def summarize(described: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """Return the contents of `summary.json`, with fractions from 0 to 1. A summary is itself a valid description.

    If the description has no chance level, as in version 0.1.0, no run counts as failed.

    Raises:
        UserError: if a run's record of the test split is missing.
    """
    metric = metric_of(described)
    tests = {(record.arm, record.seed): record.metrics for record in records if record.split == "test"}
    missing = [(arm, seed) for arm in described["arms"] for seed in described["seeds"] if (arm, seed) not in tests]
    if missing:
        arm, seed = missing[0]
        raise UserError(f"the test result of {arm}, seed {seed}, is missing; the study is not finished")
    arms: dict[str, dict[str, Any]] = {}
    for name, arm in described["arms"].items():
        of_arm = [tests[name, seed] for seed in described["seeds"]]
        values = [metrics[metric.name] for metrics in of_arm]
        results = {
            f"test_{metric.name}": values,
            "test_loss": [metrics["loss"] for metrics in of_arm],
            "mean": fmean(values),
            "ci95": mean_interval(values),
        }
        arms[name] = {**arm, **results}
        arms[name].pop("last_tenth", None)  # of another metric, if the description is a summary
        own = [record for record in records if record.arm == name and record.split == "validation"]
        found = [_last_tenth([each for each in own if each.seed == seed], metric) for seed in described["seeds"]]
        changes = [change for change in found if change is not None]
        if len(changes) == len(found):
            arms[name]["last_tenth"] = {"mean": fmean(changes), "ci95": mean_interval(changes)}
    baseline = described["baseline"]
    tested = f"test_{metric.name}"
    others = {name: arm[tested] for name, arm in arms.items() if name != baseline}
    against = arms[baseline][tested]
    spread = stdev(against)
    comparisons = [
        {
            "arm": name,
            "baseline": baseline,
            "metric": tested,
            **dataclasses.asdict(comparison),
            "baseline_spread": spread,
            "paper": arms[name]["paper"],
        }
        for name, comparison in compare_all(others, against, metric.higher_is_better, described.get("chance")).items()
    ]
    return plain({**described, "arms": arms, "comparisons": comparisons})


def _last_tenth(validation: Sequence[Record], metric: Metric) -> float | None:
    """Return how much a run's validation metric changes over the last tenth of training, by a straight line.

    None if fewer than three evaluations are within it.
    """
    points = [(each.step, each.metrics[metric.name]) for each in validation if metric.name in each.metrics]
    end = max((step for step, _ in points), default=0)
    late = [(step, value) for step, value in points if step >= 0.9 * end]
    if len(late) < 3:
        return None
    steps, values = zip(*late, strict=True)
    return linear_regression(steps, values).slope * 0.1 * end


TIMING = {"arms": [str], "compile_seconds": float}
"""Schema of a line of `timings.jsonl`."""


def speeds(records: Sequence[Record], timings: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return each arm's "images_per_second", with runs side by side, and its program's "compile_seconds", if known.

    They are not part of the summary, since they differ whenever a study is run.
    """
    found: dict[str, dict[str, float]] = {}
    for arm in dict.fromkeys(record.arm for record in records):
        speed = [record.images_per_second for record in records if record.arm == arm and record.images_per_second]
        found[arm] = {"images_per_second": median(speed)} if speed else {}
    for timing in timings:
        for arm in timing["arms"]:
            found.setdefault(arm, {})["compile_seconds"] = timing["compile_seconds"]
    return found
