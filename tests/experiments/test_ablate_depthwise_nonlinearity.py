import pytest

from experiments.scripts import study_of
from mnv2_jax.errors import UserError
from mnv2_jax.training.config import Recipe


def test_two_activations_in_two_precisions():
    study = study_of("ablate_depthwise_nonlinearity")
    assert [(arm.model["activation"], arm.model["dtype"]) for arm in study.arms] == [
        ("relu6", "float32"), ("relu", "float32"), ("relu6", "bfloat16"), ("relu", "bfloat16")
    ]  # fmt: skip


def test_arms_seeds_and_images_by_flag():
    recipe = Recipe(epochs=1, batch_size=16, learning_rate=0.02, images=320)
    study = study_of("ablate_depthwise_nonlinearity", arms=("relu",), seeds=3, training=recipe)
    assert [arm.name for arm in study.arms] == ["relu6", "relu"]
    assert (study.seeds, study.training.images) == (3, 320)
    with pytest.raises(UserError, match="unknown arm 'gelu' in --arms; choose from relu6, relu, relu6 bfloat16"):
        study_of("ablate_depthwise_nonlinearity", arms=("gelu",))
