import sys

import pytest

from mnv2_jax import cli
from mnv2_jax.__main__ import main


@pytest.fixture
def run(monkeypatch, capsys):
    """The command in this process: exit code, output, errors."""
    # These change the process for good.
    monkeypatch.setattr(cli, "silence_libraries", lambda: None)
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mnv2_jax", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as stop:
            return (stop.code, *capsys.readouterr())
        return (0, *capsys.readouterr())

    return run
