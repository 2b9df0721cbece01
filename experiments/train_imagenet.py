"""How accurate is MobileNetV2 on ImageNet? (Sec. 6.1 and Table 4: 72.0 % top-1)

Question: does this code base reach the published accuracy, with the paper's recipe or with a cheaper one?
Command:  python experiments/train_imagenet.py --recipe cosine --dtype bfloat16 --out runs/imagenet
          python experiments/train_imagenet.py --recipe paper --dtype bfloat16 --out runs/imagenet-paper
Cost:     192 million images (cosine, 150 epochs) or 538 million (paper, 420 epochs). The speed in the first lines of a
          run tells how many hours that is. Neither has been run to completion here.
Expect:   cosine: 72.2 % (reported for the same settings in the README.md of d-li14/mobilenetv2.pytorch).
          paper:  72.0 % (Sec. 6.1; slim's README reports it after some 700,000 steps of 8 workers with 96 images
          each; its released weights reach 71.8 %).

Prepare ImageNet first: python -m mnv2_jax datasets prepare imagenet2012. The script takes all flags
of `python -m mnv2_jax train`. To resume a stopped run, repeat the command.
"""

import dataclasses
import sys

from mnv2_jax import cli
from mnv2_jax.commands import train

RECIPE = "cosine"


def default(arguments: list[str]) -> train.Options:
    """Return the defaults of `train`, with ImageNet instead of digits and, without --recipe, the cheaper recipe."""
    named = any(argument.split("=")[0] == "--recipe" for argument in arguments)
    options = train.default(arguments if named else ["--recipe", RECIPE])
    return dataclasses.replace(options, data=dataclasses.replace(options.data, dataset="imagenet2012"))


if __name__ == "__main__":
    cli.run(train.main, train.Options, __doc__, sys.argv[1:], default=default)
