"""Fixtures that run the scripts in this process, which saves the seconds that a new process needs to start."""

import sys

import jax
import pytest

from experiments import scripts
from mnv2_jax import cli
from mnv2_jax.ablation import design
from mnv2_jax.training.devices import Devices


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run a script in an empty folder; return its exit code."""
    # These would change this process permanently.
    for name in ("silence_libraries", "use_compilation_cache", "leave_absent_tpus_alone"):
        monkeypatch.setattr(cli, name, lambda: None)
    monkeypatch.chdir(tmp_path)

    def run(name, *flags):
        script = scripts.load(name)
        monkeypatch.setattr(sys, "argv", [str(scripts.EXPERIMENTS / f"{name}.py"), *map(str, flags)])
        try:
            cli.run(script.main, script.Options, script.__doc__, list(map(str, flags)))
        except SystemExit as stop:
            return stop.code or 0
        return 0

    return run


@pytest.fixture
def one_device(monkeypatch):
    """Train each run on one device, which waits for no other."""
    create = Devices.create
    monkeypatch.setattr(Devices, "create", lambda *given, **named: create(*given, **named, devices=jax.devices()[:1]))


@pytest.fixture
def few_blocks(monkeypatch):
    """Study networks of three blocks, whose costs are counted in a fifth of the time."""
    whole = design.shared_settings

    def shared_settings(options):
        return {**whole(options), "stages": ((1, 16, 1, 1), (6, 24, 1, 2), (6, 32, 1, 2))}

    monkeypatch.setattr(design, "shared_settings", shared_settings)
    for name in ("ablate_residual", "ablate_expansion"):
        monkeypatch.setattr(scripts.load(name), "shared_settings", shared_settings)


@pytest.fixture
def refused(command, tmp_path, capsys):
    """Check that a script refuses flags in one line and writes nothing; return the line."""

    def run(name, *flags):
        assert command(name, *flags) == 2
        output, errors = capsys.readouterr()
        (line,) = errors.splitlines()
        assert line.startswith("error: ")
        assert "Traceback" not in output + errors
        assert list(tmp_path.iterdir()) == []
        return line

    return run
