"""Tune each arm's learning rate: 0.5, 1 or 2 times the study's, on the validation split, with separate seeds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mnv2_jax.errors import Diverged
from mnv2_jax.results import append_line, read_lines
from mnv2_jax.tasks.task import Metric
from mnv2_jax.training.programs import Member

if TYPE_CHECKING:
    from mnv2_jax.ablation.study import Family

FILE = "tuning.jsonl"

RATES = (0.5, 1.0, 2.0)
"""Factors of the study's learning rate that are tried for each arm."""
SEEDS = (1000, 1001)
"""Seeds of the tuning runs. The study's own runs use none of them."""


def read_trials(folder: Path, metric: Metric) -> list[dict[str, Any]]:
    """Read the trials recorded in a study's folder.

    Raises:
        UserError: if its file is damaged.
    """
    shape = {"arm": str, "seed": int, "rate": float, metric.name: float, "loss": (float, type(None))}
    return read_lines(folder / FILE, shape)


def pending(family: "Family", tried: Sequence[Mapping[str, Any]]) -> list[Member]:
    """Return the tuning runs that have not been tried."""
    known = {(trial["arm"], trial["seed"], trial["rate"]) for trial in tried}
    trials = [family.member(arm, seed, rate) for rate in RATES for arm in family.names for seed in SEEDS]
    return [trial for trial in trials if trial[:3] not in known]


def tune(family: "Family", tried: list[dict[str, Any]], file: Path, metric: Metric) -> None:
    """Run all pending trials. Each is written to `file` and appended to `tried` before the next group starts."""
    reporter, learning_rate = family.owner.reporter, family.recipe.learning_rate
    while trials := pending(family, tried):
        for trial in _try(family, family.groups(trials)[0], metric):
            append_line(file, trial)
            tried.append(trial)
            score = trial[metric.name]
            said = f"validation {metric.title} {metric.format(score)}" if trial["loss"] is not None else "diverged"
            reporter.say(
                f"{trial['arm']} at learning rate {trial['rate'] * learning_rate:g}, seed {trial['seed']}: {said}"
            )


def _try(family: "Family", group: Sequence[Member], metric: Metric) -> Iterator[dict[str, Any]]:
    """Train a group of trials; yields their final validation metrics. If any diverge, yields only those, loss None."""
    members = list(dict.fromkeys(group))
    try:
        records = family.train(group, final=False)
    except Diverged as error:
        for member in dict.fromkeys(group[index] for index in error.runs):
            yield {**_key(member), metric.name: 0.0, "loss": None}
        return
    validation = [record for record in records if record.split == "validation"]
    for member, record in zip(members, validation[-len(members) :], strict=True):
        yield {**_key(member), metric.name: record.metrics[metric.name], "loss": record.metrics["loss"]}


def _key(member: Member) -> dict[str, Any]:
    return {"arm": member.arm, "seed": member.seed, "rate": member.rate}


def best_rates(tried: Sequence[Mapping[str, Any]], metric: Metric) -> dict[str, float]:
    """Return each arm's factor with the best mean validation metric; ties go to the lower mean loss."""
    scores: dict[str, dict[float, list[tuple[float, float]]]] = {}
    sign = 1 if metric.higher_is_better else -1
    for trial in tried:
        of_arm = scores.setdefault(trial["arm"], {})
        diverged = trial["loss"] is None
        score, loss = (-math.inf, math.inf) if diverged else (sign * trial[metric.name], trial["loss"])
        of_arm.setdefault(trial["rate"], []).append((score, -loss))

    def mean_score(trials: Sequence[tuple[float, float]]) -> tuple[float, float]:
        return fmean(score for score, _ in trials), fmean(loss for _, loss in trials)

    return {
        arm: max(rates, key=lambda rate, rates=rates: mean_score(rates[rate]))  # type: ignore[misc]
        for arm, rates in scores.items()
    }
