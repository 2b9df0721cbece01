"""The committed results of scripts that do not train a study."""

import json

import pytest

from experiments.scripts import EXPERIMENTS, load
from mnv2_jax.results import misfit


@pytest.mark.parametrize(
    "name", ["activation_patterns", "memory_split", "null_studies", "relu_embedding", "relu_invertibility"]
)
def test_a_committed_summary_can_be_drawn_again(name):
    summary = json.loads((EXPERIMENTS / "results" / name / "summary.json").read_text())
    assert misfit(summary, load(name).SHAPE) is None
