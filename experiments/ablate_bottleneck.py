"""Should the bottleneck be linear? (MobileNetV2, Sec. 3.2 and Fig. 6a)

Question: does a non-linearity after each block's projection make the network worse?
Command:  python experiments/ablate_bottleneck.py --activation relu6
Cost:     12 runs, 140 CPU-seconds with compilation: one to two minutes on 2 CPU cores.
Expect:   test accuracy on digits: linear 0.96, relu6 0.79; relu6 worse, p = 0.03 (6 seeds per arm).

The arms differ only in the function applied after each bottleneck; the number of weights is the same. Given several
activations (--activation relu6 relu hard_swish), the study compares each with the linear baseline.
"""

import dataclasses
from typing import TYPE_CHECKING, Literal

from mnv2_jax import cli
from mnv2_jax.ablation.design import Arm, PaperResult, Study, StudyOptions, create_study
from mnv2_jax.models.names import ACTIVATIONS

PAPER = {"relu6": PaperResult(difference=-0.006, where="Fig. 6a", how="digitized")}

if TYPE_CHECKING:
    NonLinear = str
else:
    NonLinear = Literal[tuple(name for name in ACTIVATIONS if name != "linear")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StudyOptions):
    """Command-line flags."""

    activation: tuple[NonLinear, ...] = ("relu6",)
    """Activations after the bottleneck, each compared with none (linear)."""


def create(options: Options) -> Study:
    """Return the study: the linear bottleneck, and one arm per activation of the flags."""
    names = dict.fromkeys(options.activation)
    return create_study(
        options,
        experiment="ablate_bottleneck",
        question=f"Is a linear bottleneck better than one followed by {' or '.join(names)}?",
        claim="Yes: a non-linearity in a narrow layer destroys information, so bottlenecks are linear "
        "(Sec. 3.2; shown for ReLU6 in Fig. 6a).",
        arms=[
            Arm("linear", {"bottleneck_activation": "linear"}),
            *(Arm(name, {"bottleneck_activation": name}, PAPER.get(name)) for name in names),
        ],
    )


def main(options: Options) -> None:
    """Run the study."""
    from mnv2_jax.ablation.study import study_command

    study_command(options, create(options), label="-".join(dict.fromkeys(options.activation)))


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
