"""Why ReLU6 inside the block? (MobileNetV2, Sec. 3.3)

Question: does ReLU6 train better than ReLU, in float32 and in bfloat16?
Command:  python experiments/ablate_depthwise_nonlinearity.py
Cost:     28 runs, 440 CPU-seconds, some 4 minutes on 2 CPU cores with compilation.
Expect:   on digits, all four arms 0.95; inconclusive with 7 seeds.

The paper uses ReLU6 "because of its robustness when used with low-precision computation". Here the expansion and the
depthwise convolution are followed by either ReLU6 or ReLU. Activations and convolutions are float32 or bfloat16;
parameters are float32.
"""

import dataclasses
from typing import Annotated

from mnv2_jax import cli
from mnv2_jax.ablation.design import RECIPE, Arm, Flat, Study, StudyOptions, create_study
from mnv2_jax.training.config import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StudyOptions):
    """Command-line flags."""

    training: Annotated[Recipe, Flat] = dataclasses.replace(RECIPE, evaluations=3)
    """Training recipe."""


def create(options: Options) -> Study:
    """Return the study: two activations in two precisions."""
    return create_study(
        options,
        experiment="ablate_depthwise_nonlinearity",
        question="Is ReLU6 better than ReLU inside the block?",
        claim="ReLU6 is used because of its robustness in low-precision computation (Sec. 3.3); the paper shows no figure of it.",
        arms=[
            Arm("relu6", {"activation": "relu6", "dtype": "float32"}),
            Arm("relu", {"activation": "relu", "dtype": "float32"}),
            Arm("relu6 bfloat16", {"activation": "relu6", "dtype": "bfloat16"}),
            Arm("relu bfloat16", {"activation": "relu", "dtype": "bfloat16"}),
        ],
    )


def main(options: Options) -> None:
    """Run the study."""
    from mnv2_jax.ablation.study import study_command

    study_command(options, create(options))


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
