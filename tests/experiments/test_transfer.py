from experiments.scripts import study_of
from mnv2_jax.ablation.arms import families


def test_from_scratch_tuned_and_frozen():
    study = study_of("transfer", weights="somewhere")
    assert [(arm.name, study.run(arm).weights) for arm in study.arms] == [
        ("scratch", None), ("fine-tuned", "somewhere"), ("frozen", "somewhere")
    ]  # fmt: skip
    assert study.run(study.arms[2]).training.freeze == "backbone"
    # The number of unit strides comes from the weights; the first two arms share a program.
    assert study.model["unit_strides"] is None
    assert [len(family) for family in families(study)] == [2, 1]


def test_weights_that_are_not_there_say_how_they_are_made(refused):
    line = refused("transfer", "--weights", "nowhere")
    assert "--weights nowhere does not exist; train it first: python -m mnv2_jax train" in line
