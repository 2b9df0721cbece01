"""A new activation, data set or recipe needs one line in one table; flags and library follow."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mnv2_jax"

LINES = {
    "models/names.py": ("ACTIVATIONS", '    "halved": lambda x: x / 2,\n'),
    "data/catalog.py": (
        "CATALOG",
        '    "small_digits": Entry("digits at 14 pixels", "mnv2_jax.data.builders.digits:Digits", 14, 8, False, 1),\n',
    ),
    "training/config.py": ("RECIPES", '    "short": Recipe(epochs=1, batch_size=8, learning_rate=0.5),\n'),
}
"""By file: the table, and the line to add."""

USE = """
import json, sys, typing
from mnv2_jax import cli
from mnv2_jax.commands import datasets, summary, train
from mnv2_jax.data.catalog import ResidentName

options = cli.parse(train.Options, "", sys.argv[1:], default=train.default)
found = {"loaded": "jax" in sys.modules, "epochs": options.training.epochs, "resident": typing.get_args(ResidentName)}
settings = {name: value for name, value in options.network.settings().items() if value is not None}
try:
    cli.parse(summary.Options, "", ["--bottleneck-activation", "doubled"])
except cli.UserError as error:
    found["refused"] = str(error)

import jax.numpy as jnp
from mnv2_jax import create_model
from mnv2_jax.data.open import open_dataset
from mnv2_jax.models.layers import find_activation

model = create_model(**settings, activation="halved")
found["half"] = float(find_activation(model.bottleneck_activation)(jnp.float32(3)))
found["names"] = [model.activation, model.bottleneck_activation]
found["shape"] = open_dataset(options.data.dataset).image_shape
datasets.main(datasets.Options())
print(json.dumps(found))
"""


@pytest.fixture
def extended(tmp_path):
    """Create a copy of the package with one more line in each of three tables."""
    shutil.copytree(PACKAGE, tmp_path / "mnv2_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name, (table, line) in LINES.items():
        file = tmp_path / "mnv2_jax" / name
        before, start, after = file.read_text().partition(f"\n{table}: ")
        head, brace, rest = after.partition(" = {\n")
        assert start
        assert brace
        file.write_text(before + start + head + brace + line + rest)
    return tmp_path


def test_what_is_in_a_table_is_a_flag_and_a_setting(extended, digits, data_dir):
    flags = ["--bottleneck-activation", "halved", "--dataset", "small_digits", "--recipe", "short"]
    environment = {**os.environ, "PYTHONPATH": str(extended), "TFDS_DATA_DIR": str(data_dir)}
    command = [sys.executable, "-W", "ignore", "-c", USE, *flags]
    done = subprocess.run(command, env=environment, cwd=extended, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *listed, last = done.stdout.splitlines()
    found = json.loads(last)
    assert found["epochs"] == 1
    assert found["names"] == ["halved", "halved"]
    assert found["half"] == 1.5
    assert found["shape"] == [14, 14, 1]
    assert "small_digits" in found["resident"]
    assert any(line.startswith("small_digits") and "digits at 14 pixels" in line for line in listed)
    # The flags were parsed without JAX.
    assert found["loaded"] is False
    assert "choose from halved, linear" in found["refused"]
