"""Does starting from trained weights help, and is it better to fine-tune the backbone or to freeze it?

Question: with few images of a new data set, how do training from scratch, fine-tuning, and training the classifier
          alone compare?
Command:  python -m mnv2_jax train --dataset fashion_mnist --width-multiplier 0.35 --unit-strides 1 --epochs 2 --out runs/fashion_mnist
          python experiments/transfer.py --weights runs/fashion_mnist
Cost:     240 CPU-seconds for the first command; 130 for the second, 21 runs: about two minutes each on 2 CPU cores.
Expect:   from scratch 0.88, fine-tuned 0.93 (better), frozen 0.36 (worse; p = 0.03 each, 7 seeds).

All three arms use the architecture of the weights, and see the same few images of digits in the same order for the same
number of steps. The classifier of the clothes is replaced by a new one for the digits. "frozen" trains only this
classifier: the backbone's parameters and batch-norm statistics stay as they are.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

from mnv2_jax import cli
from mnv2_jax.ablation.design import RECIPE, Arm, Flat, Study, StudyOptions, create_study
from mnv2_jax.errors import UserError
from mnv2_jax.settings import DataSettings, SharedSettings
from mnv2_jax.training.config import Recipe

SOURCE = (
    "python -m mnv2_jax train --dataset fashion_mnist --width-multiplier 0.35 --unit-strides 1 --epochs 2 "
    "--out runs/fashion_mnist"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StudyOptions):
    """Command-line flags."""

    weights: str = "runs/fashion_mnist"
    """What to start from: folder of a run or network, file that `convert` reads, hf://OWNER/NAME, torchvision://FILE."""
    data: Annotated[DataSettings, Flat] = DataSettings(train_images=320)
    """The data to train and test on."""
    network: Annotated[SharedSettings, Flat] = SharedSettings()
    """The architecture; it comes from the weights, and flags can only repeat it."""
    training: Annotated[Recipe, Flat] = dataclasses.replace(RECIPE, epochs=10)
    """Training recipe."""


def create(options: Options) -> Study:
    """Return the study: from scratch, fine-tuned, and frozen."""
    return create_study(
        options,
        weights=options.weights,
        experiment="transfer",
        question="Does a start from trained weights help?",
        claim="The paper starts detection and segmentation from networks that were trained to classify ImageNet (Sec. 6.2 "
        "and 6.3); it shows no start from scratch beside them.",
        arms=[
            Arm("scratch"),
            Arm("fine-tuned", started=True),
            Arm("frozen", training={"freeze": "backbone"}, started=True),
        ],
    )


def main(options: Options) -> None:
    """Run the study."""
    if "://" not in options.weights and not Path(options.weights).exists():
        raise UserError(
            f"--weights {options.weights} does not exist; train it first: {SOURCE} (with --data-files DIR if the data "
            "cannot be downloaded)"
        )
    from mnv2_jax.ablation.study import study_command

    study_command(options, create(options))


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
