"""Tune each arm's learning rate on the validation split: with separate seeds, at a quarter of the study's budget.

0.5, 1 and 2 times the study's rate are tried. While the best is the lowest or the highest tried, the next factor of two
is tried too.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mnv2_jax.ablation.design import Study
from mnv2_jax.errors import Diverged
from mnv2_jax.results import append_line, read_lines
from mnv2_jax.tasks.task import Metric
from mnv2_jax.training.programs import Member

if TYPE_CHECKING:
    from mnv2_jax.ablation.study import Family

FILE = "tuning.jsonl"

RATES = (0.5, 1.0, 2.0)
"""Factors of the study's learning rate that are tried first for each arm."""
LIMITS = (1 / 16, 16.0)
"""The lowest and the highest factor that may be tried."""
BUDGET = 0.25
"""Images of a tuning run, as a fraction of those of a run of the study."""
SEEDS = (1000, 1001)
"""Seeds of the tuning runs. The study's own runs use none of them."""


def read_trials(folder: Path, metric: Metric) -> list[dict[str, Any]]:
    """Read the trials recorded in a study's folder.

    Raises:
        UserError: if its file is damaged.
    """
    shape = {"arm": str, "seed": int, "rate": float, metric.name: float, "loss": (float, type(None))}
    return read_lines(folder / FILE, shape)


def shortened(study: Study, train_images: int) -> Study:
    """Return the study with a tuning run's budget, in whole batches of each size, and one evaluation, at the end."""
    sizes = study.batch_sizes
    images = study.training.steps(train_images) * study.training.batch_size
    unit = math.lcm(*sizes)
    budget = max(1, round(BUDGET * images / unit)) * unit
    return dataclasses.replace(study, training=dataclasses.replace(study.training, images=budget, evaluations=1))


def pending(family: "Family", tried: Sequence[Mapping[str, Any]], metric: Metric) -> list[Member]:
    """Return the tuning runs that have not been tried, as far as the results so far tell."""
    known = {(trial["arm"], trial["seed"], trial["rate"]) for trial in tried}
    wanted = {arm: _rates(arm, tried, metric) for arm in family.names}
    trials = [family.member(arm, seed, rate) for arm in family.names for rate in wanted[arm] for seed in SEEDS]
    return [trial for trial in trials if trial[:3] not in known]


def _rates(arm: str, tried: Sequence[Mapping[str, Any]], metric: Metric) -> list[float]:
    """Return the factors to try for an arm: one more on the side where the best is the last."""
    of_arm = [trial for trial in tried if trial["arm"] == arm]
    counts = Counter(trial["rate"] for trial in of_arm)
    rates = sorted({*RATES, *counts})
    if any(counts[rate] < len(SEEDS) for rate in rates):
        return rates
    best = best_rates(of_arm, metric)[arm]
    beyond = {rates[0]: rates[0] / 2, rates[-1]: rates[-1] * 2}.get(best)
    return [*rates, beyond] if beyond is not None and LIMITS[0] <= beyond <= LIMITS[1] else rates


def tune(family: "Family", tried: list[dict[str, Any]], file: Path, metric: Metric) -> None:
    """Run all pending trials. Each is written to `file` and appended to `tried` before the next group starts.

    Args:
        family: of the `shortened` study.
        tried, file: trials so far, and where they are recorded.
        metric: decides between the rates.
    """
    reporter, learning_rate = family.owner.reporter, family.recipe.learning_rate
    while trials := pending(family, tried, metric):
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
