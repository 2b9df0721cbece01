"""Is MobileNetV2 better than MobileNetV1? (MobileNetV2, Sec. 6.1 and Table 4)

Question: at equal width, how do accuracy, parameters, multiply-adds and the memory of each layer compare?
Command:  python experiments/compare_v1_v2.py
Cost:     21 runs, 280 CPU-seconds, some 3 minutes on 2 CPU cores with compilation.
Expect:   on digits, V2 0.95, V1 0.93 at the same width and 0.94 at the same multiply-adds; inconclusive with 7 seeds.

MobileNetV1 is compared at MobileNetV2's width multiplier, as in the paper's Table 4, and at its
multiply-adds (within 2 %), for which MobileNetV1 is made narrower.
"""

from mnv2_jax import cli
from mnv2_jax.ablation.design import Arm, PaperResult, Study, StudyOptions, create_study, shared_settings

Options = StudyOptions


def create(options: Options) -> Study:
    """Return the study: MobileNetV2, and MobileNetV1 at equal width and at equal multiply-adds."""
    from mnv2_jax.ablation.matching import Matching

    matching = Matching(options.data, shared_settings(options))
    target = matching.cost("multiply_adds", {})
    matched = matching.match("multiply_adds", target, {"name": "mobilenet_v1"})
    found = matching.cost("multiply_adds", matched)
    note = (
        f"V1, equal madds: width {matched['width_multiplier']} has {found:,} multiply-adds, {found / target - 1:+.2%} "
        f"of MobileNetV2's {target:,}."
    )
    return create_study(
        options,
        experiment="compare_v1_v2",
        question="Is MobileNetV2 better than MobileNetV1?",
        claim="Yes: 72.0 against 70.6 % with 300 instead of 575 million multiply-adds and 3.4 instead of 4.2 million "
        "parameters (Table 4), and bottlenecks keep little memory between blocks (Table 3).",
        arms=[
            Arm("V2"),
            Arm("V1", {"name": "mobilenet_v1"}, PaperResult(-0.014, "Table 4", "published")),
            Arm("V1, equal madds", matched, note=note),
        ],
        figure="memory",
    )


def main(options: Options) -> None:
    """Run the study."""
    from mnv2_jax.ablation.study import study_command

    study_command(options, create(options))


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
