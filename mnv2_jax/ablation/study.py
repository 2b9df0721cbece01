"""A study: arms that differ in one thing, each trained with the same seeds, and what came out of it.

A study's folder holds `config.json` (what is asked), `metrics.jsonl` (every record of every run),
`checkpoints/ARM-SEED` (the trained networks), and what is made from these alone: `summary.json`, `figure.png`,
`figure.svg` and `report.html`. A run is finished when its record of the test split is there; the same study
started again trains only what is not finished.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mnv2_jax.ablation.design import Arm, Study, identity
from mnv2_jax.ablation.progress import Reporter
from mnv2_jax.ablation.statistics import compare_paired
from mnv2_jax.data.resident import Dataset
from mnv2_jax.errors import UserError
from mnv2_jax.models.cost import count_multiply_adds, count_parameters
from mnv2_jax.models.mobilenet_v2 import MobileNetV2
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.training.config import TrainConfig
from mnv2_jax.training.folder import check_folder, claim_folder
from mnv2_jax.training.loop import (
    Logged,
    Programs,
    compile_programs,
    evaluate,
    evaluation_size,
    evaluation_steps,
    log_interval,
    train,
)
from mnv2_jax.training.metrics import Record, read_records, to_line, write_atomically, write_records
from mnv2_jax.training.optimizer import create_optimizer
from mnv2_jax.training.parallel import create_mesh, run_groups
from mnv2_jax.training.step import Learner, TrainState
from mnv2_jax.weights.load import Weights, save_weights

CHECKPOINTS = "checkpoints"
CONTENTS = ("metrics.jsonl", "summary.json", "figure.png", "figure.svg", "report.html", CHECKPOINTS)


def open_folder(study: Study, folder: Path, overwrite: bool) -> list[Record]:
    """Make the folder the study's and return the records of its finished runs.

    Raises:
        UserError: if it cannot be written, or holds something else.
    """
    check_folder(identity(study), folder, overwrite, "study")
    claim_folder(identity(study), folder, overwrite, CONTENTS)
    records = read_records(folder / "metrics.jsonl")
    finished = {(record.arm, record.seed) for record in records if record.split == "test"}
    records = [record for record in records if (record.arm, record.seed) in finished]
    write_records(folder / "metrics.jsonl", records)
    return records


class Run(NamedTuple):
    """One training: an arm's name, and a seed."""

    arm: str
    seed: int


def families(study: Study) -> list[tuple[Arm, ...]]:
    """The arms, those together that one program serves: they differ in what follows the bottlenecks, and in nothing else.

    To compile a program takes as long as to train some of a study's runs; to choose between activations, next to nothing.
    """
    found: dict[str, list[Arm]] = {}
    for arm in study.arms:
        rest = {**study.model, **arm.model, "bottleneck_activation": None}
        found.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(arm)
    return [tuple(arms) for arms in found.values()]


def create_network(study: Study, arm: Arm, dataset: Dataset) -> MobileNetV2:
    """The network of an arm."""
    momentum = study.training.norm_momentum(study.training.steps(dataset.train_images))
    attributes = {**study.model, **arm.model}
    return MobileNetV2(dataset.num_classes, batch_norm_momentum=momentum, **attributes)


def create_learner(study: Study, family: Sequence[Arm], dataset: Dataset) -> Learner:
    """What the steps of a family need; of several arms, a run chooses its own by its number in the family."""
    optimizer = create_optimizer(study.training, study.training.steps_per_epoch(dataset.train_images))
    networks = [create_network(study, arm, dataset) for arm in family]
    network = networks[0]
    if len(family) > 1:
        network = network.clone(bottleneck_activation=tuple(each.bottleneck_activation for each in networks))
    return Learner(network, Classification(dataset.num_classes), optimizer, choices=len(family))


def trained_weights(study: Study, arm: Arm, dataset: Dataset, variables: dict[str, Any]) -> Weights:
    """A trained network with what it takes to use it on other images."""
    return Weights(
        create_network(study, arm, dataset),
        variables,
        source=study.experiment,
        preprocessing=dataset.preprocessing,
        resolution=dataset.image_shape[0],
        class_names=dataset.class_names,
        image_channels=dataset.image_shape[2],
    )


def train_arms(
    study: Study, dataset: Dataset, folder: Path, finished: list[Record], reporter: Reporter
) -> list[Record]:
    """Train what is not finished, family by family; every record is on disk before the next is made."""
    records = list(finished)
    done = {(record.arm, record.seed) for record in finished}
    steps = study.training.steps(dataset.train_images)
    plan = []
    for family in families(study):
        # Seed by seed, so that what is compared is trained side by side.
        runs = [Run(arm.name, seed) for seed in range(study.seeds) for arm in family]
        plan.append((family, run_groups([run for run in runs if run not in done], jax.device_count())))
    pending = {run for _, groups in plan for group in groups for run in group}
    reporter.start(steps, sum(len(groups) for _, groups in plan), len(pending), len(study.arms) * study.seeds)
    with (folder / "metrics.jsonl").open("a") as file:
        for family, groups in plan:
            if not groups:
                continue
            names = [arm.name for arm in family]
            reporter.compiling(names)
            mesh = create_mesh(len(groups[0]), 1)
            learner = create_learner(study, family, dataset)
            programs = compile_programs(learner, dataset, study.training, mesh)
            reporter.compiled(programs.compile_seconds)
            for group in groups:
                reporter.run(group)
                choices = [names.index(run.arm) for run in group] if len(family) > 1 else None

                def save(state, family=family, group=group):
                    variables = jax.device_get(state.variables())
                    for index, run in enumerate(group):
                        own = jax.tree.map(lambda leaf, index=index: leaf[index], variables)
                        arm = next(arm for arm in family if arm.name == run.arm)
                        weights = trained_weights(study, arm, dataset, own)
                        save_weights(folder / CHECKPOINTS / f"{run.arm}-{run.seed}", weights)

                for record in train_group(programs, group, choices, dataset, study.training, reporter, save):
                    file.write(to_line(record))
                    file.flush()
                    records.append(record)
                    reporter.record(record)
                reporter.run_ended()
    return records


def train_group(
    programs: Programs,
    runs: Sequence[Run],
    choices: Sequence[int] | None,
    dataset: Dataset,
    config: TrainConfig,
    reporter: Reporter,
    on_end: Callable[[TrainState], None] = lambda state: None,
) -> Iterator[Record]:
    """Train one group of runs to the end of their budget and yield their records as they come.

    Args:
        programs: of the family's network.
        runs: one for each place of the programs' mesh; a run that fills up the mesh may come twice.
        choices: the number of each run's arm in a family of several.
        dataset: its test split is read once, at the end.
        config: the runs' settings.
        reporter: told of every logged interval.
        on_end: called with the last states, before the records of the test split.

    Raises:
        UserError: when the loss is no longer a number.
    """
    steps = config.steps(dataset.train_images)
    state = programs.start([run.seed for run in runs], choices)
    jax.block_until_ready(state)
    began = time.perf_counter()

    def records(split: str, step: int, each: list[dict[str, float]], speed: float | None = None) -> Iterator[Record]:
        seconds = time.perf_counter() - began
        for run, metrics in dict(zip(runs, each, strict=True)).items():
            metrics = dict(metrics)
            yield Record(run.arm, run.seed, step, split, seconds, metrics, int(metrics.pop("examples")), speed)

    stops = evaluation_steps(steps, config.evaluations)
    for event in train(programs, state, 0, range(steps), log_interval(steps), stops):
        if isinstance(event, Logged):
            reporter.step(event)
            yield from records("train", event.step, event.metrics, event.examples_per_second)
            continue
        state = event.state
        if event.step in stops:
            validation = evaluate(programs, state, dataset.evaluation("validation", evaluation_size(programs.mesh)))
            yield from records("validation", event.step, validation)
    on_end(state)
    test = evaluate(programs, state, dataset.evaluation("test", evaluation_size(programs.mesh)))
    yield from records("test", steps, test)


def summarize(
    study: Study, dataset: Dataset, records: list[Record], command: str, environment: Mapping[str, Any]
) -> dict[str, Any]:
    """What `summary.json` holds: made from records alone, so that it can be made again. Accuracies are fractions."""
    seeds = list(range(study.seeds))
    tests = {(record.arm, record.seed): record for record in records if record.split == "test"}
    arms: dict[str, dict[str, Any]] = {}
    for arm in study.arms:
        network = create_network(study, arm, dataset)
        arms[arm.name] = {
            "parameters": count_parameters(network, dataset.image_shape),
            "multiply_adds": count_multiply_adds(network, dataset.image_shape),
            "test_accuracy": [tests[arm.name, seed].metrics["accuracy"] for seed in seeds],
            "test_loss": [tests[arm.name, seed].metrics["loss"] for seed in seeds],
        }
    comparisons = []
    for arm in study.arms[1:]:
        ours = compare_paired(arms[arm.name]["test_accuracy"], arms[study.baseline.name]["test_accuracy"])
        comparisons.append(
            {
                "arm": arm.name,
                "baseline": study.baseline.name,
                "metric": "test_accuracy",
                **dataclasses.asdict(ours),
                "ci95": list(ours.ci95),
                "paper": dataclasses.asdict(arm.paper) if arm.paper else None,
            }
        )
    steps = study.training.steps(dataset.train_images)
    return {
        "experiment": study.experiment,
        "question": study.question,
        "claim": study.claim,
        "dataset": study.dataset,
        "baseline": study.baseline.name,
        "seeds": seeds,
        "arms": arms,
        "comparisons": comparisons,
        "budget": {
            "epochs": study.training.epochs,
            "steps": steps,
            "images": steps * study.training.batch_size,
            "train_images": dataset.train_images,
            "validation_images": len(dataset.validation.labels),
            "test_images": len(dataset.test.labels),
        },
        "model": dict(study.model),
        "training": dataclasses.asdict(study.training),
        "command": command,
        "environment": dict(environment),
    }


def run_study(
    study: Study,
    dataset: Dataset,
    folder: Path,
    reporter: Reporter,
    overwrite: bool = False,
    command: str = "",
    environment: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[Record]]:
    """Train what is missing and write `summary.json`; returns the summary and all records of its runs.

    Raises:
        UserError: for bad settings or a folder that cannot be used; nothing is written then.
    """
    if study.seeds < 2:
        raise UserError(f"--seeds must be 2 or more, for a spread to be seen, got {study.seeds}")
    study.training.steps(dataset.train_images)
    finished = open_folder(study, folder, overwrite)
    began = time.perf_counter()
    try:
        records = train_arms(study, dataset, folder, finished, reporter)
    finally:
        reporter.stop()
    names = {arm.name for arm in study.arms}
    records = [record for record in records if record.arm in names and record.seed < study.seeds]
    summary = summarize(study, dataset, records, command, environment or {})
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    reporter.say(f"{reporter.trained} runs trained in {time.perf_counter() - began:.0f} s, compilation included.")
    return summary, records
