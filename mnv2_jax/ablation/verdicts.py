"""Comparisons of a study in words, for sentences, tables and figures."""

from collections.abc import Mapping
from typing import Any

from mnv2_jax.ablation.statistics import near_chance, seeds_needed
from mnv2_jax.ablation.summary import comparison_count, metric_of
from mnv2_jax.tasks.task import Metric


def interval(comparison: Mapping[str, Any], metric: Metric) -> str:
    """Format an interval: "-5.00 to -2.06", "-2.62 to 0" or "no bound with 5 seeds"."""
    if comparison["ci95"] is None:
        return f"no bound with {comparison['n']} seeds"
    return " to ".join(f"{metric.scale * bound:+.2f}" if bound else "0" for bound in comparison["ci95"])


def difference(comparison: Mapping[str, Any], metric: Metric) -> float:
    """Return the difference that the verdict is about, in the metric's display unit."""
    return metric.scale * comparison[f"{comparison['estimand']}_difference"]


def paper_difference(comparison: Mapping[str, Any], metric: Metric) -> str:
    """Format the paper's difference: "-0.6 (Fig. 6a)"; empty if the paper has none."""
    paper = comparison["paper"]
    return f"{metric.scale * paper['difference']:+.1f} ({paper['where']})" if paper else ""


def same_direction(comparison: Mapping[str, Any]) -> bool | None:
    """Return whether the difference has the paper's sign; None if the paper has no number or ours is inconclusive."""
    if comparison["paper"] is None or comparison["verdict"] == "inconclusive":
        return None
    ours: float = comparison[f"{comparison['estimand']}_difference"]
    return (ours < 0) == (comparison["paper"]["difference"] < 0)


def failures(comparison: Mapping[str, Any]) -> str:
    """Describe the failed runs: "1 of 8 runs of t=3 and 2 of 8 runs of t=6"; empty if none failed."""
    failed = ((comparison[which], comparison["failed"][which]) for which in ("arm", "baseline"))
    return " and ".join(f"{count} of {comparison['n']} runs of {name}" for name, count in failed if count)


def verdict(comparison: Mapping[str, Any]) -> str:
    """Describe the verdict: "worse, as in the paper" or "inconclusive (median; 1 of 8 failed)"."""
    text: str = comparison["verdict"]
    same = same_direction(comparison)
    if same is not None:
        text += ", as in the paper" if same else ", unlike the paper"
    failed, n = comparison["failed"], comparison["n"]
    if any(failed.values()):
        text += f" (median; {failed['arm']} of {n} failed"
        text += f", {failed['baseline']} of the baseline's)" if failed["baseline"] else ")"
    return text


def verdict_in(summary: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    """Describe the verdict of one of a study's comparisons, with "; not trained" if the study is untrained.

    An inconclusive one names the difference that could have been seen: "inconclusive (detectable: 1.3)".
    """
    text, seen = verdict(comparison), comparison["detectable"]
    if comparison["verdict"] == "inconclusive" and seen is not None:
        text += f" (detectable: {metric_of(summary).scale * seen:.1f})"
    return text + ("; not trained" if untrained(summary) else "")


def p_value(comparison: Mapping[str, Any]) -> str:
    """Format the corrected p-value: "0.031"."""
    return f"{comparison['p_holm']:.2g}"


def untrained(summary: Mapping[str, Any]) -> str:
    """Return "not trained: 4 of 5 arms are near chance" if more than half of a study's arms are; else empty."""
    if "untrained" in summary:  # judged in the whole study, of which this is a view
        return summary["untrained"]  # type: ignore[no-any-return]
    metric = metric_of(summary)
    values = [arm[f"test_{metric.name}"] for arm in summary["arms"].values()]
    near = near_chance(values, metric.higher_is_better, summary.get("chance"))
    if sum(near) * 2 <= len(near):
        return ""
    which = "arms" if all(near) else f"{sum(near)} of {len(near)} arms"
    return f"not trained: {which} are near chance"


def last_tenths(summary: Mapping[str, Any]) -> str:
    """Describe how much each arm still changed at the end of training; empty if there were too few evaluations."""
    metric = metric_of(summary)
    changes = {name: arm["last_tenth"] for name, arm in summary["arms"].items() if "last_tenth" in arm}
    if not changes:
        return ""
    each = [
        f"{name} {metric.scale * change['mean']:+.2f}"
        + (f" ({interval({**change, 'n': len(summary['seeds'])}, metric)})" if change["ci95"] else "")
        for name, change in changes.items()
    ]
    return (
        f"Change of validation {metric.title} over the last tenth of training, in {metric.difference_unit} with 95 % "
        f"intervals: {', '.join(each)}."
    )


def peak_memory(summary: Mapping[str, Any]) -> str:
    """Describe which arm has the highest peak activation memory, and by how much; empty if it was not counted."""
    peaks = {
        name: max(size for _, size in arm["activation_bytes"]) / 1000
        for name, arm in summary["arms"].items()
        if "activation_bytes" in arm
    }
    if len(peaks) < 2:
        return ""
    top, second = sorted(peaks, key=lambda name: -peaks[name])[:2]
    return (
        f"{top} has the highest peak memory: {peaks[top]:,.0f} kB, {peaks[top] / peaks[second]:.1f} times the "
        f"{peaks[second]:,.0f} kB of {second}"
    )


def sentence(comparison: Mapping[str, Any], metric: Metric, comparisons: int = 1) -> str:
    """Describe one comparison, out of `comparisons`, in a sentence with its interval and p-value."""
    scale = metric.scale
    points = difference(comparison, metric)
    arm, baseline, n = comparison["arm"], comparison["baseline"], comparison["n"]
    p = f"p = {comparison['p_holm']:.3g}" + (" after Holm's correction" if comparisons > 1 else "")
    spread = scale * comparison["baseline_spread"]
    failed = failures(comparison)
    numbers = (
        f"over {n} pairs of runs, the {comparison['estimand']} difference of {arm} from {baseline} is {points:+.2f} "
        f"{metric.difference_unit} (95 % interval: {interval(comparison, metric)}, {p}; "
        f"standard deviation of {baseline} over seeds: {spread:.2f})"
    )
    if comparison["verdict"] == "inconclusive":
        needed = seeds_needed(comparisons)
        few = f" Fewer than {needed} seeds cannot reach p < 0.05 here." if n < needed else ""
        text = f"Inconclusive: {numbers}; chance alone can explain that.{few}"
        if comparison["detectable"] is not None:
            text += (
                f" Of such studies, 80 % would detect a difference of {scale * comparison['detectable']:.2f} "
                f"{metric.difference_unit}."
            )
    else:
        text = f"{arm} is {comparison['verdict']} than {baseline}: {numbers}."
    if failed:
        decided = comparison["verdict"] != "inconclusive"
        text = (
            f"{failed} failed: nearer to chance than to the median of the arm. {'Typically, ' if decided else ''}{text}"
        )
    paper = comparison["paper"]
    if paper is not None:
        theirs = f"{scale * paper['difference']:+.1f} ({paper['where']}, {paper['how']})"
        text += f" The paper's difference on ImageNet is {theirs}."
        same = same_direction(comparison)
        if same is not None:
            text += " The direction is the same." if same else " The direction is the opposite."
    return text


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """Describe the findings: one sentence per comparison, a warning if the study is untrained, and peak memory."""
    metric, stamp, peak = metric_of(summary), untrained(summary), peak_memory(summary)
    found = [sentence(comparison, metric, comparison_count(summary)) for comparison in summary["comparisons"]]
    if stamp:
        rule = "their medians are less than a tenth of the way from chance to perfect"
        told = "The differences show how soon each arm begins to learn, not what it can learn."
        found.insert(0, f"{stamp.capitalize()}: {rule}. {told}")
    if slopes := last_tenths(summary):
        found.append(slopes)
    if peak:
        found.append(f"{peak} (the input and output of one layer, one image, float32).")
    return found
