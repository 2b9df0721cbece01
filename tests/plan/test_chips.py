"""TPU slices and their compiler."""

import re

import pytest

from mnv2_jax.errors import UserError
from mnv2_jax.plan import chips
from mnv2_jax.plan.chips import check_compiler, find_slice, open_topology


@pytest.mark.parametrize(
    ("name", "slice_"),
    [
        ("v5litepod-8", "v5e:2x4"),
        ("v5e-8", "v5e:2x4"),
        ("v5e:2x4", "v5e:2x4"),
        ("v5litepod-256", "v5e:16x16"),
        ("v6e-1", "v6e:1x1"),
        ("v5p-8", "v5p:2x2x1"),
        ("v4-64", "v4:2x4x4"),
    ],
)
def test_a_slice_is_known_by_its_shape_and_by_the_name_that_it_is_rented_by(name, slice_):
    """Names of v4 and v5p count cores, two per chip."""
    chip, shape = find_slice(name)
    assert f"{chip.name}:{shape}" == slice_


@pytest.mark.parametrize("name", ["", "v5e", "v5litepod", "v9:2x4", "v9-8"])
def test_what_is_no_name_of_a_slice(name):
    with pytest.raises(
        UserError,
        match=r"\(v4-8, v5litepod-8, v5p-8, v6e-8\) or CHIP:SHAPE .*, where CHIP is one of v4, v5e, v5p, v6e; got",
    ):
        open_topology(name)


@pytest.mark.parametrize("name", ["v5e:3x3", "v5e:2x2x2", "v5e:32x32", "v5litepod-2", "v5p:2x2", "v5p-4"])
def test_slices_that_are_not_offered(name):
    """The error lists slices that are offered, in both notations."""
    offered = r"v5p-8 \(v5p:2x2x1\), .*; accelerator types count cores, 2 per chip$"
    if name.startswith("v5e") or name.startswith("v5l"):
        offered = r"v5litepod-1 \(v5e:1x1\), v5litepod-4 \(v5e:2x2\), "
    with pytest.raises(UserError, match=rf"^--topology {name} is not an available slice; choose from {offered}"):
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
