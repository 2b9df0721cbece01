"""`python -m mnv2_jax`: from the first argument to a command."""

import subprocess
import sys

import pytest

from mnv2_jax.__main__ import COMMANDS, main


def test_without_a_command_all_of_them_are_listed():
    done = subprocess.run([sys.executable, "-m", "mnv2_jax"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m mnv2_jax COMMAND")
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == list(COMMANDS)
    assert {"train", "evaluate", "datasets", "summary", "convert", "predict", "plan"} <= COMMANDS.keys()


def test_another_command_is_refused_with_those_there_are(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mnv2_jax", "train-everything"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown command 'train-everything'; choose from train, evaluate, datasets")
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mnv2_jax", command, "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert f"usage: python -m mnv2_jax {command}" in capsys.readouterr().out


def test_the_package_hands_out_its_public_names():
    import mnv2_jax

    assert set(mnv2_jax.__all__) <= set(dir(mnv2_jax))
    for name in mnv2_jax.__all__:
        assert getattr(mnv2_jax, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mnv2_jax.nothing  # noqa: B018
