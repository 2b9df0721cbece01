"""A finished study looked at otherwise: by another metric, or some of its arms alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from mnv2_jax.ablation.summary import comparison_count, failed_of, summarize
from mnv2_jax.ablation.verdicts import untrained
from mnv2_jax.errors import UserError
from mnv2_jax.tasks.task import TASKS
from mnv2_jax.training.metrics import Record


def judged_by(summary: Mapping[str, Any], records: Sequence[Record], name: str) -> dict[str, Any]:
    """The summary of the same study by another metric that its runs recorded.

    What chance gives is known for the task's own metric alone: by another no run counts as failed, and whether the arms
    are trained is still told by the task's own. The paper's numbers are of top-1 accuracy, and left out.

    Raises:
        UserError: for a metric that was not recorded; says which there are.
    """
    task = TASKS[summary.get("task", "classification")]
    tests = [record.metrics for record in records if record.split == "test"]
    known = [metric.name for metric in (task.metric, *task.others) if all(metric.name in test for test in tests)]
    if name not in known:
        raise UserError(f"--metric {name} is not recorded by {summary['experiment']}; there are {', '.join(known)}")
    if name == task.metric.name:
        return dict(summary)
    arms = {arm: {**settings, "paper": None} for arm, settings in summary["arms"].items()}
    changed: dict[str, Any] = {"metric": name, "chance": None, "arms": arms, "published": [], "paper_range": None}
    return summarize({**summary, **changed, "untrained": untrained(summary)}, records)


def with_arms(summary: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The summary of the baseline and of the arms of these names alone.

    p-values and intervals stay corrected for all comparisons of the study: which arms are shown is chosen afterwards.

    Raises:
        UserError: if no arm besides the baseline is left.
    """
    arms = {name: arm for name, arm in summary["arms"].items() if name in names or name == summary["baseline"]}
    if len(arms) < 2:
        raise UserError(f"--arms: {summary['experiment']} has none of them; its arms are {', '.join(summary['arms'])}")
    comparisons = [comparison for comparison in summary["comparisons"] if comparison["arm"] in arms]
    failed = {name: runs for name, runs in failed_of(summary).items() if name in arms}
    kept = {"compared": comparison_count(summary), "untrained": untrained(summary), "failed_runs": failed}
    return {**summary, "arms": arms, "comparisons": comparisons, **kept}
