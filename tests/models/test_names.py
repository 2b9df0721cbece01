import subprocess
import sys
from typing import get_args

import pytest

from mnv2_jax.models import names
from mnv2_jax.models.create import list_models
from mnv2_jax.models.layers import ACTIVATIONS, CONVENTIONS


def test_flags_are_listed_without_loading_jax():
    code = "import sys, mnv2_jax.models.names; print(sorted({'jax', 'flax', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_flags_offer_is_what_the_tables_have():
    assert get_args(names.Activation) == tuple(names.ACTIVATIONS) == tuple(ACTIVATIONS)
    assert get_args(names.ModelName) == ("mobilenet_v1", "mobilenet_v2")
    assert set(names.MODELS) - set(get_args(names.ModelName)) == {"classic_residual"}
    assert list_models() == sorted(names.MODELS)
    assert get_args(names.ConventionName) == tuple(CONVENTIONS)


def test_an_entry_is_a_dotted_path_or_the_thing_itself():
    assert names.resolve("os.path.join").__name__ == "join"
    assert names.resolve(len) is len


def test_what_is_unknown_is_named_with_what_there_is():
    with pytest.raises(ValueError, match="^unknown colour 'red'; choose from blue, green, and no other$"):
        names.check_name("colour", "red", ("blue", "green"), ", and no other")
