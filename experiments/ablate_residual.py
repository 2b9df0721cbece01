"""What should shortcuts connect, and is the inverted residual block better than the classic? (Sec. 3.3 and Fig. 6b)

Question: are shortcuts between bottlenecks better than shortcuts between expansions, or none? And is the inverted
          block (narrow, wide, narrow) better than the classic one (wide, narrow, wide) at the same cost?
Command:  python experiments/ablate_residual.py --question shortcut
          python experiments/ablate_residual.py --question classic
          with --convolution depthwise full for both kinds of classic block
Cost:     21 runs each; 310 CPU-seconds (shortcut), some 3 minutes on 2 CPU cores with compilation.
Expect:   on digits, shortcuts between bottlenecks 0.95, between expansions 0.92, none 0.75; the classic networks
          learn little in so few steps (depthwise 0.17, full 0.33; inverted 0.95).

The classic network (`ClassicResidualNet`) has the same stages, stem and head. Its blocks have 6 c channels at the ends
and c inside; MobileNetV2's have c at the ends and 6 c inside. Its width is chosen to match MobileNetV2's multiply-adds
in one arm and its parameters in another, each within 2 %. Its 3x3 convolution is depthwise as in MobileNetV2, full as
in ResNet, or each in turn.
"""

import dataclasses
from typing import Literal

from mnv2_jax import cli
from mnv2_jax.ablation.design import Arm, PaperResult, Study, StudyOptions, create_study, shared_settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StudyOptions):
    """Command-line flags."""

    question: Literal["shortcut", "classic"] = "shortcut"
    """What the shortcuts should connect, or the inverted block against the classic one."""
    convolution: tuple[Literal["depthwise", "full"], ...] = ("depthwise",)
    """The 3x3 convolution of the classic block: depthwise (MobileNetV2), full (ResNet), or both."""


def create(options: Options) -> Study:
    """Return the study for --question."""
    return shortcuts(options) if options.question == "shortcut" else inversion(options)


def shortcuts(options: Options) -> Study:
    """Return the study of Fig. 6b: shortcuts between bottlenecks, between expansions, or none."""
    return create_study(
        options,
        experiment="ablate_residual_shortcut",
        question="Should shortcuts join the bottlenecks?",
        claim="Yes: between bottlenecks they work better than between expansions, and both better than none (Sec. 3.3, Fig. 6b).",
        arms=[
            Arm("bottleneck", {"block": "InvertedResidual"}),
            Arm("expansion", {"block": "ExpansionShortcut"}, PaperResult(-0.005, "Fig. 6b", "digitized")),
            Arm("none", {"block": "NoShortcut"}, PaperResult(-0.015, "Fig. 6b", "digitized")),
        ],
    )


def inversion(options: Options) -> Study:
    """Return the study of the inverted against the classic block, at equal multiply-adds and at equal parameters."""
    from mnv2_jax.ablation.matching import Matching

    matching = Matching(options.data, shared_settings(options))
    arms = [Arm("inverted")]
    for cost, short in (("multiply_adds", "madds"), ("parameters", "params")):
        target = matching.cost(cost, {})
        for form in dict.fromkeys(options.convolution):
            block = {"depthwise": "ClassicResidual", "full": "FullClassicResidual"}[form]
            settings = {"name": "classic_residual", "reduction": options.network.expansion, "block": block}
            matched = matching.match(cost, target, settings)
            found, what, name = matching.cost(cost, matched), cost.replace("_", "-"), f"classic {form}, {short}"
            note = (
                f"{name}: width {matched['width_multiplier']}, channels in single steps, has {found:,} {what}, "
                f"{found / target - 1:+.2%} of the inverted network's {target:,}."
            )
            arms.append(Arm(name, matched, note=note))
    return create_study(
        options,
        experiment="ablate_residual_classic",
        question="Is the inverted residual block better than the classic one at the same cost?",
        claim="The paper turns the block round because inverted shortcuts need less memory and work slightly better in its "
        "experiments (Sec. 3.3); it shows no figure of the two side by side.",
        arms=arms,
    )


def main(options: Options) -> None:
    """Run the study."""
    from mnv2_jax.ablation.study import study_command

    study_command(options, create(options))


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
