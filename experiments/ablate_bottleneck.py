"""Should the bottleneck be linear? (MobileNetV2, Sec. 3.2 and Fig. 6a)

Question: does a non-linearity after the projection of every block make the network worse?
Command:  python experiments/ablate_bottleneck.py --activation relu6
Cost:     12 runs, 64 to 66 s on 2 CPU cores, compilation included.
Expect:   linear 0.92, relu6 0.63 on the test digits; relu6 worse, p = 0.03 (6 seeds an arm).

What differs between the arms is one function after each bottleneck; the number of weights is the same. Several
activations are each compared with nothing: --activation relu6 relu hard_swish.
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
    """Flags of this script."""

    activation: tuple[NonLinear, ...] = ("relu6",)
    """What is put on the bottleneck, each to be compared with nothing (linear)."""


def create(options: Options) -> Study:
    """The linear bottleneck, and those that the flags name."""
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
    """Compare them."""
    from mnv2_jax.ablation.study import study_command

    study_command(options, create(options), label="-".join(dict.fromkeys(options.activation)))


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
