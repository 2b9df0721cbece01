"""Progress output of long computations."""

import io
import time

import pytest
from rich.console import Console

from mnv2_jax.training import progress


@pytest.mark.parametrize("terminal", [True, False])
def test_how_long_work_takes_is_seen_while_it_lasts(monkeypatch, terminal):
    monkeypatch.setattr(progress, "TELL_SECONDS", 0.01)
    output = io.StringIO()
    with progress.timed(Console(file=output, force_terminal=terminal, width=120), "compiling [one]"):
        while not (terminal or "so far" in output.getvalue()):
            time.sleep(0.01)
    assert "compiling [one]" in output.getvalue()
    if not terminal:
        lines = output.getvalue().splitlines()
        assert (lines[0], lines[1]) == ("compiling [one]", "compiling [one]: 0:00 so far")
