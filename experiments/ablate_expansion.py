"""How wide should a block be inside? (MobileNetV2, Sec. 3.3 and 6.1)

Question: how does accuracy depend on the expansion factor t, at equal width and at equal cost?
Command:  python experiments/ablate_expansion.py --at width
          python experiments/ablate_expansion.py --at multiply_adds
          with --expansions 0.25 0.5 1 2 3 4 6 8 10 for the whole sweep
Cost:     21 runs; with --expansions 0.5 1 3, 28 runs in 330 CPU-seconds (at width) and 410 (at multiply_adds), some 3
          to 4 minutes on 2 CPU cores with compilation.
Expect:   on digits, at equal width t=6 0.95, t=3 0.93, t=1 0.94 (t=0.5 0.71); at equal multiply-adds t=1 0.96.

The inner width of a block is t times its input channels, rounded. With t below 1 the block is narrower inside than at
its ends, which the paper likens to the classic residual block. At equal width a larger t also costs more. At equal
multiply-adds (within 2 %) the whole network gets narrower as t grows.
"""

import dataclasses
from typing import Literal

from mnv2_jax import cli
from mnv2_jax.ablation.design import Arm, Study, StudyOptions, create_study, shared_settings
from mnv2_jax.settings import check_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StudyOptions):
    """Command-line flags; --expansion is the baseline's t."""

    expansions: tuple[float, ...] = (1, 3)
    """Values of t, each compared with the baseline's."""
    at: Literal["width", "multiply_adds"] = "width"
    """What is equal in all arms: the width multiplier, or the multiply-adds (each arm's width is rescaled)."""


def create(options: Options) -> Study:
    """Return the study: one arm per t, the baseline first."""
    for t in options.expansions:
        check_size("expansions", t)
    base = options.network.expansion
    # Without an expansion layer it is another architecture, so the figure draws no line to it.
    series = {1: "t=1: no expansion layer"}
    arms = [Arm(f"t={base:g}", {"expansion": base}, value=base, series=series.get(base, ""))]
    others = [t for t in dict.fromkeys(options.expansions) if t != base]
    if options.at == "width":
        arms += [Arm(f"t={t:g}", {"expansion": t}, value=t, series=series.get(t, "")) for t in others]
    else:
        from mnv2_jax.ablation.matching import Matching

        matching = Matching(options.data, shared_settings(options))
        target = matching.cost("multiply_adds", {})
        for t in others:
            matched = matching.match("multiply_adds", target, {"expansion": t})
            found = matching.cost("multiply_adds", matched)
            note = (
                f"t={t:g}: width {matched['width_multiplier']}, channels in single steps, has {found:,} multiply-adds, "
                f"{found / target - 1:+.2%} of the baseline's {target:,}."
            )
            arms.append(Arm(f"t={t:g}", matched, value=t, note=note, series=series.get(t, "")))
    shared = "width" if options.at == "width" else "cost"
    return create_study(
        options,
        experiment=f"ablate_expansion_{shared}",
        question="How does accuracy depend on the expansion factor "
        + ("at one width?" if options.at == "width" else "at equal multiply-adds?"),
        claim="Expansion factors between 5 and 10 give nearly the same curves, smaller networks being better off with slightly "
        "smaller ones; the paper uses 6 (Sec. 3.3 and 6.1).",
        arms=arms,
        figure="sweep",
        axis="t, the expansion factor",
        paper_range=(5, 10, "5 to 10 nearly the same"),
    )


def main(options: Options) -> None:
    """Run the study."""
    from mnv2_jax.ablation.study import study_command

    study_command(options, create(options))


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
