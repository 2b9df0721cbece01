"""Should depthwise kernels be larger than 3x3? (MobileNetV2, Sec. 3.1)

Question: how does accuracy depend on the size of the depthwise kernels, and what do larger kernels cost?
Command:  python experiments/ablate_kernel.py
Cost:     21 runs, 470 CPU-seconds, some 5 minutes on 2 CPU cores with compilation.
Expect:   on digits, all three 0.95, inconclusive with 7 seeds; 5x5 and 7x7 have 22 % and 54 % more multiply-adds than
          3x3, and 10 % and 26 % more parameters.
"""

from mnv2_jax import cli
from mnv2_jax.ablation.design import Arm, Study, StudyOptions, create_study

Options = StudyOptions


def create(options: Options) -> Study:
    """Return the study: one arm per kernel size; --kernel-size is the baseline's."""
    sizes = dict.fromkeys((options.network.kernel_size or 3, 3, 5, 7))
    return create_study(
        options,
        experiment="ablate_kernel",
        question="How does accuracy depend on the size of the depthwise kernels?",
        claim="All depthwise kernels are 3x3 (Sec. 3.1); the paper compares no other sizes.",
        arms=[Arm(f"{size}x{size}", {"kernel_size": size}, value=size) for size in sizes],
        figure="sweep",
        axis="kernel size, the side in pixels",
    )


def main(options: Options) -> None:
    """Run the study."""
    from mnv2_jax.ablation.study import study_command

    study_command(options, create(options))


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
