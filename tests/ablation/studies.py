"""The study that tests of studies train: two blocks instead of seventeen, compiled in seconds."""

from mnv2_jax.ablation.design import Arm, PaperResult, Study
from mnv2_jax.models.mobilenet_v2 import Stage
from mnv2_jax.training.config import TrainConfig

TINY_STAGES = (Stage(1, 16, 1, 1), Stage(2, 24, 1, 2))

STUDY = Study(
    experiment="test",
    question="Is <linear> better?",
    claim="Yes.",
    dataset="digits",
    arms=(
        Arm("linear"),
        Arm("relu6", {"bottleneck_activation": "relu6"}, PaperResult(-0.006, "Fig. 6a", "digitized")),
    ),
    model={"width_multiplier": 0.1, "unit_strides": 1, "stages": TINY_STAGES},
    training=TrainConfig(epochs=1, batch_size=16, learning_rate=0.02, evaluations=2),
    seeds=2,
)
ENVIRONMENT = {"jax": "0", "device": "cpu", "device_count": 8, "git": "abc"}
