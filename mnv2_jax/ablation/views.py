"""Views of a finished study: judged by another metric, or restricted to some of its arms."""

from collections.abc import Mapping, Sequence
from typing import Any

from mnv2_jax.ablation.summary import comparison_count, failed_of, summarize
from mnv2_jax.ablation.verdicts import untrained
from mnv2_jax.errors import UserError
from mnv2_jax.tasks.task import TASKS
from mnv2_jax.training.metrics import Record


def judged_by(summary: Mapping[str, Any], records: Sequence[Record], name: str) -> dict[str, Any]:
    """Return the summary of the same study judged by another metric that its runs recorded.

    The chance level is only known for the task's own metric. By another metric no run counts as failed, and the task's
    own still decides whether the arms are trained. The paper's numbers, top-1 accuracies, are left out.

    Raises:
        UserError: for a metric that was not recorded; lists those that were.
    """
    task = TASKS[summary.get("task", "classification")]
    tests = [record.metrics for record in records if record.split == "test"]
    known = [metric.name for metric in (task.metric, *task.others) if all(metric.name in test for test in tests)]
    if name not in known:
        raise UserError(f"--metric {name} is not recorded by {summary['experiment']}; choose from {', '.join(known)}")
    if name == task.metric.name:
        return dict(summary)
    arms = {arm: {**settings, "paper": None} for arm, settings in summary["arms"].items()}
    changed: dict[str, Any] = {"metric": name, "chance": None, "arms": arms, "published": [], "paper_range": None}
    return summarize({**summary, **changed, "untrained": untrained(summary)}, records)


def with_arms(summary: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the summary restricted to the baseline and the named arms.

    p-values and intervals stay corrected for all comparisons of the study, since arms are selected after the fact.

    Raises:
        UserError: if no arm besides the baseline is left.
    """
    arms = {name: arm for name, arm in summary["arms"].items() if name in names or name == summary["baseline"]}
    if len(arms) < 2:
        raise UserError(
            f"--arms: {summary['experiment']} has none of these arms; choose from {', '.join(summary['arms'])}"
        )
    comparisons = [comparison for comparison in summary["comparisons"] if comparison["arm"] in arms]
    failed = {name: runs for name, runs in failed_of(summary).items() if name in arms}
    kept = {"compared": comparison_count(summary), "untrained": untrained(summary), "failed_runs": failed}
    return {**summary, "arms": arms, "comparisons": comparisons, **kept}
