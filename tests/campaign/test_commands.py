"""Bad input to every command gives one line, exit code 2, and no file made or changed."""

import pytest

from campaign.cases import cases
from mnv2_jax.__main__ import COMMANDS

pytestmark = pytest.mark.campaign


@pytest.mark.parametrize("case", cases(COMMANDS), ids=str)
def test_bad_input_is_one_line(case, refused):
    line = refused(case.command, case.flags)
    assert [word for word in case.says if word not in line] == [], line
