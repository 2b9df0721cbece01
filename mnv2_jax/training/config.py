"""How a run is trained, saved as JSON with every study."""

import dataclasses

from mnv2_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Stochastic gradient descent with momentum, a linear warm-up and a cosine to zero.

    Attributes:
        epochs: passes over the training split.
        batch_size: images a step.
        learning_rate: the highest, at the end of the warm-up.
        momentum: of Nesterov's kind.
        weight_decay: on the kernels of all but depthwise convolutions (slim's rule, 4e-5 as in Sec. 6.1).
        warmup: share of the steps in which the learning rate rises from zero.
        evaluations: how often a run is logged and evaluated on the validation split, at equal distances.

    Raises:
        UserError: if a value is out of range.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 4e-5
    warmup: float = 0.2
    evaluations: int = 10

    def __post_init__(self):
        for name in ("epochs", "batch_size", "learning_rate", "evaluations"):
            value = getattr(self, name)
            if not value > 0:
                raise UserError(f"--{name.replace('_', '-')} must be greater than 0, got {value}")

    def steps(self, train_images: int) -> int:
        """Steps of a whole run: whole batches only, at every epoch."""
        if self.batch_size > train_images:
            raise UserError(
                f"--batch-size {self.batch_size} is more than the {train_images} images of the training split; "
                f"take {train_images} or fewer"
            )
        return self.epochs * (train_images // self.batch_size)


def batch_norm_momentum(steps: int) -> float:
    """A momentum that suits a run's length.

    The running statistics then average over about the last tenth of the run, and over no more than 1,000
    steps: a fixed 0.999 would evaluate a short run with statistics that never left their initial values
    (tensorflow/tensorflow #36065), a fixed 0.9 would make those of a long run noisy.
    """
    return 1 - min(max(10 / steps, 0.001), 0.5)
