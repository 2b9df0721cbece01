"""Slices of TPUs, and the compiler that goes with them."""

import re

import pytest

from mnv2_jax.errors import UserError
from mnv2_jax.plan import chips
from mnv2_jax.plan.chips import check_compiler, open_topology


@pytest.mark.parametrize("name", ["", "v5e", "v9:2x4", "v5e:3x3", "v5e:2x2x2", "v5p:2x2", "v5e:32x32"])
def test_slices_that_are_not_offered(name):
    with pytest.raises(UserError, match=r"of v4, v5e, v5p, v6e|(v5e|v5p) has \dx\d"):
        open_topology(name)


def test_the_compiler_has_to_be_the_one_that_belongs_to_jax(monkeypatch):
    required = chips.required_libtpu()
    assert re.fullmatch(r"\d+\.\d+\.\d+\.\*", required)

    def missing(name):
        raise chips.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(chips.metadata, "version", missing)
    with pytest.raises(UserError, match=rf"not installed; .*pip install 'libtpu=={re.escape(required)}'"):
        check_compiler()
    monkeypatch.setattr(chips.metadata, "version", lambda name: "0.0.1.3")
    with pytest.raises(UserError, match=rf"is libtpu 0\.0\.1\.3; .*pip install 'libtpu=={re.escape(required)}'"):
        check_compiler()
    monkeypatch.setattr(chips.metadata, "version", lambda name: required.replace("*", "1"))
    assert check_compiler() == required.replace("*", "1")
