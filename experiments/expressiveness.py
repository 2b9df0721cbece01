"""Are a block's capacity and its expressiveness separate? (MobileNetV2, Sec. 3.3, "information flow")

Question: what does the width of the bottlenecks (capacity) contribute to accuracy, and what does the transformation
          between them (expressiveness)?
Command:  python experiments/expressiveness.py
          with --bottlenecks 0.5 1 2 --inners 0.5 1 2 for the full grid
Cost:     48 runs, 180 CPU-seconds, some 2 minutes on 2 CPU cores with compilation.
Expect:   on digits, baseline 0.97, the others 0.96; inconclusive with 8 seeds.

The network is a small MobileNetV2 of four blocks. The channels of its bottlenecks and the inner width of its blocks
are set independently, each as a multiple of the baseline's; t follows from the two. Two more arms change the inner
transformation: one has no ReLU6 inside (linear), the other a second depthwise layer.
"""

import dataclasses
from typing import Annotated

from mnv2_jax import cli
from mnv2_jax.ablation.design import RECIPE, Arm, Flat, Study, StudyOptions, create_study
from mnv2_jax.settings import SharedSettings, check_size
from mnv2_jax.training.config import Recipe

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 1, 2))
"""(t, c, n, s): the first bottleneck rows of the paper's Table 2, the last with one block instead of three."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StudyOptions):
    """Command-line flags; --expansion is the baseline's t."""

    bottlenecks: tuple[float, ...] = (0.5, 1)
    """Bottleneck channels, as multiples of the baseline's."""
    inners: tuple[float, ...] = (0.5, 1)
    """Inner channels of the blocks, as multiples of the baseline's."""
    network: Annotated[SharedSettings, Flat] = SharedSettings(width_multiplier=0.5, expansion=6.0, unit_strides=0)
    """Settings that all networks share."""
    training: Annotated[Recipe, Flat] = dataclasses.replace(RECIPE, evaluations=1)
    """Training recipe."""


def create(options: Options) -> Study:
    """Return the study: every combination of widths, and the two other transformations at the baseline's widths."""
    for name in ("bottlenecks", "inners"):
        for value in getattr(options, name):
            check_size(name, value)

    def settings(bottleneck: float, inner: float) -> dict[str, object]:
        stages = [(t, round(c * bottleneck), n, s) for t, c, n, s in STAGES]
        expansion = options.network.expansion * inner / bottleneck
        return {"stages": stages, "expansion": expansion, "channel_divisor": 1}

    grid = [(b, i) for b in dict.fromkeys(options.bottlenecks) for i in dict.fromkeys(options.inners)]
    grid = [(1.0, 1.0), *(each for each in grid if each != (1, 1))]
    arms = [
        Arm(
            "baseline" if (bottleneck, inner) == (1, 1) else f"bottleneck x{bottleneck:g}, inner x{inner:g}",
            settings(bottleneck, inner),
            series=f"{bottleneck:g}",
            value=inner,
        )
        for bottleneck, inner in grid
    ]
    arms += [
        Arm("linear", {**settings(1, 1), "block": "LinearInside"}),
        Arm("two depthwise", {**settings(1, 1), "block": "TwoDepthwise"}),
    ]
    return create_study(
        options,
        experiment="expressiveness",
        question="What do wider bottlenecks buy, and what a wider or deeper transformation between them?",
        claim="The block separates the capacity of the network, encoded by the bottlenecks, from its expressiveness, encoded "
        "by the transformation between them (Sec. 3.3); the paper leaves it at that, without a figure.",
        arms=arms,
        figure="grid",
        axis="inner channels, of the baseline's|bottleneck channels, of the baseline's",
    )


def main(options: Options) -> None:
    """Run the study."""
    from mnv2_jax.ablation.study import study_command

    study_command(options, create(options))


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
