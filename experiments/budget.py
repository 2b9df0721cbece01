"""Does an effect grow, stay or shrink with longer training?

Question: how does the difference between linear and ReLU6 bottlenecks, or between inverted and classic blocks, change
          with the number of images that a run is trained on?
Command:  python experiments/budget.py --claim bottleneck
          python experiments/budget.py --claim classic
Cost:     36 runs (bottleneck) and 63 runs (classic).
Expect:   one study per budget, in the folder OUT-IMAGES, and in OUT a figure over all of them.

Each budget is a study of its own: every run has the whole learning-rate schedule, and --tune chooses the learning rates
for that budget. --reuse takes over runs that other studies have in common with these.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ablate_bottleneck
import ablate_residual

from mnv2_jax import cli
from mnv2_jax.ablation.design import Study, StudyOptions
from mnv2_jax.errors import UserError
from mnv2_jax.results import check_folder, open_results, write_results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StudyOptions):
    """Command-line flags."""

    claim: Literal["bottleneck", "classic"] = "bottleneck"
    """Linear against ReLU6 bottlenecks, or inverted against classic blocks at equal multiply-adds."""
    budgets: tuple[int, ...] = (1500, 6000, 24000)
    """Numbers of images that runs are trained on; one study each."""

    def __post_init__(self):
        super().__post_init__()
        if not self.budgets:
            raise UserError("--budgets must name at least one number of images")
        for images in self.budgets:
            if images < self.training.batch_size:
                raise UserError(
                    f"--budgets {images} is less than one batch of {self.training.batch_size}; use "
                    f"{self.training.batch_size} or more"
                )
        if self.training.images is not None:
            raise UserError("--images is set by --budgets; remove it")


def create(options: Options, images: int | None = None) -> Study:
    """Return the study of one budget, by default the last."""
    inherited = {field.name: getattr(options, field.name) for field in dataclasses.fields(StudyOptions)}
    inherited["training"] = dataclasses.replace(options.training, images=images or options.budgets[-1])
    if options.claim == "bottleneck":
        return ablate_bottleneck.create(ablate_bottleneck.Options(**inherited))
    inherited["arms"] = options.arms or ("classic depthwise, madds", "classic full, madds")
    both = ("depthwise", "full")
    return ablate_residual.create(ablate_residual.Options(**inherited, question="classic", convolution=both))


def points(summaries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the numbers of the figure: the comparisons of every budget."""
    return [
        {"images": summary["budget"]["images"], "arms": summary["arms"], "comparisons": summary["comparisons"]}
        for summary in summaries
    ]


def finding(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Return the answer as one sentence: each arm's difference at the smallest and at the largest budget."""
    from mnv2_jax.ablation.summary import metric_of
    from mnv2_jax.ablation.verdicts import difference

    first, last = summaries[0], summaries[-1]
    metric = metric_of(first)
    each = [
        f"{one['arm']} {difference(one, metric):+.1f} and {difference(other, metric):+.1f}"
        for one, other in zip(first["comparisons"], last["comparisons"], strict=True)
    ]
    images = f"{first['budget']['images']:,} and {last['budget']['images']:,} images"
    return (
        f"Difference from {first['baseline']} after {images}, in {metric.difference_unit}: {'; '.join(each)}"
    ).replace("-", "−")


def draw(summaries: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw test results, and differences from the baseline with their intervals, against images seen."""
    import matplotlib.pyplot as plt

    from mnv2_jax.ablation.style import WIDTH, draw_legend
    from mnv2_jax.analysis.drawing import headline, tidy

    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 4.6), layout="constrained")
    _draw_results(left, summaries)
    _draw_differences(right, summaries)
    for axes in (left, right):
        tidy(axes)
        axes.set_xscale("log")
        images = [summary["budget"]["images"] for summary in summaries]
        axes.set_xticks(images, [f"{each:,}" for each in images], minor=False)
        axes.minorticks_off()
        axes.set_xlabel("images seen by a run")
    details = f"{summaries[0]['title']}, {len(summaries[0]['seeds'])} seeds for each arm and budget."
    if summaries[0]["tuned"]:
        details += " Each arm's learning rate was chosen for each budget on validation images."
    headline(figure, finding(summaries), details)
    draw_legend(figure)
    return figure


def _draw_results(axes: "Axes", summaries: Sequence[Mapping[str, Any]]) -> None:
    from statistics import fmean

    import numpy as np

    from mnv2_jax.ablation.style import draw_metric_axis, draw_runs, explain_runs, line_style
    from mnv2_jax.ablation.summary import failed_of, metric_of

    metric = metric_of(summaries[0])
    tested = f"test_{metric.name}"
    for index, name in enumerate(summaries[0]["arms"]):
        found = [(summary["budget"]["images"], summary["arms"][name][tested]) for summary in summaries]
        axes.plot([x for x, _ in found], [fmean(values) for _, values in found], label=name, **line_style(index))
        for (x, values), summary in zip(found, summaries, strict=True):
            draw_runs(axes, np.full(len(values), x), np.asarray(values), failed_of(summary)[name], index, 18)
    explain_runs(axes, max(summaries, key=lambda summary: sum(map(sum, failed_of(summary).values()))))
    draw_metric_axis(axes, summaries[0])
    axes.set(title=f"Test {metric.title}", ylabel=f"test {metric.title}")


def _draw_differences(axes: "Axes", summaries: Sequence[Mapping[str, Any]]) -> None:
    from mnv2_jax.ablation.style import MARKERS, line_style
    from mnv2_jax.ablation.summary import metric_of
    from mnv2_jax.ablation.verdicts import difference

    metric = metric_of(summaries[0])
    axes.axhline(0, color="0.4", linewidth=1)
    for index, first in enumerate(summaries[0]["comparisons"]):
        style = line_style(index + 1)
        xs, ys = [], []
        for summary in summaries:
            comparison = next(each for each in summary["comparisons"] if each["arm"] == first["arm"])
            # Arms side by side, so that their intervals do not cover each other.
            x, y = summary["budget"]["images"] * 1.06**index, difference(comparison, metric)
            xs.append(x)
            ys.append(y)
            filled = comparison["verdict"] != "inconclusive"
            bars = None
            if comparison["ci95"] is not None:
                low, high = (metric.scale * bound for bound in comparison["ci95"])
                bars = [[y - low], [high - y]]
            marker: dict[str, Any] = {
                "fmt": MARKERS[index + 1],
                "markerfacecolor": style["color"] if filled else "white",
            }
            axes.errorbar(x, y, yerr=bars, color=style["color"], capsize=4, zorder=3, **marker)
            failed = sum(comparison["failed"].values())
            if failed:
                text = f"{failed} failed: median"
                axes.annotate(text, (x, y), xytext=(7, 0), textcoords="offset points", fontsize=8.5, va="center")
        axes.plot(xs, ys, label=f"{first['arm']}, difference with 95 % interval", **style)
        paper = first["paper"]
        if paper is not None:
            label = f"paper's difference on ImageNet ({paper['where']}, {paper['how']})"
            axes.axhline(metric.scale * paper["difference"], color="black", linestyle=(0, (1, 2)), label=label)
    axes.plot([], [], "o", color="black", markerfacecolor="white", label="hollow: inconclusive")
    left, right = ("worse", "better") if metric.higher_is_better else ("better", "worse")
    axes.set(
        title=f"Difference from {summaries[0]['baseline']}",
        ylabel=f"← {left}     {metric.difference_unit}     {right} →",
    )


def main(options: Options) -> None:
    """Run the study of every budget, and draw all of them."""
    from mnv2_jax.ablation.study import study_command
    from mnv2_jax.training.progress import create_console

    folder = options.out or Path("runs") / f"budget_{options.claim}-{options.data.dataset}"
    budgets = sorted(dict.fromkeys(options.budgets))
    studies = {images: create(options, images) for images in budgets}
    settings = {"experiment": "budget", "claim": options.claim, "dataset": options.data.dataset}
    check_folder(settings, folder, options.overwrite, "computation")
    summaries = []
    for images, study in studies.items():
        out = folder.with_name(f"{folder.name}-{images}")
        summaries.append(study_command(dataclasses.replace(options, out=out), study))
    open_results(settings, folder, options.overwrite)
    write_results(folder, {"experiment": "budget", "budgets": points(summaries)}, draw(summaries))
    console = create_console()
    console.print()
    console.print(finding(summaries), markup=False)
    console.print(str(folder / "figure.png"), markup=False)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
