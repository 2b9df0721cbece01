"""The experiments' commands in this process, without the seconds that one of their own needs to start."""

import sys

import jax
import pytest

from experiments import scripts
from mnv2_jax import cli
from mnv2_jax.ablation import design
from mnv2_jax.training.devices import Devices


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs a script in an empty folder; returns its exit code."""
    # These change the process for good.
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
    """Runs have one device, which has nobody to wait for."""
    create = Devices.create
    monkeypatch.setattr(Devices, "create", lambda *given, **named: create(*given, **named, devices=jax.devices()[:1]))


@pytest.fixture
def few_blocks(monkeypatch):
    """Studies are of networks of three blocks, whose costs are counted in a fifth of the time."""
    whole = design.shared_settings

    def shared_settings(options):
        return {**whole(options), "stages": ((1, 16, 1, 1), (6, 24, 1, 2), (6, 32, 1, 2))}

    monkeypatch.setattr(design, "shared_settings", shared_settings)
    for name in ("ablate_residual", "ablate_expansion"):
        monkeypatch.setattr(scripts.load(name), "shared_settings", shared_settings)


@pytest.fixture
def refused(command, tmp_path, capsys):
    """Checks that a script refuses flags in one line, which it returns, and writes nothing."""

    def run(name, *flags):
        assert command(name, *flags) == 2
        output, errors = capsys.readouterr()
        (line,) = errors.splitlines()
        assert line.startswith("error: ")
        assert "Traceback" not in output + errors
        assert list(tmp_path.iterdir()) == []
        return line

    return run
