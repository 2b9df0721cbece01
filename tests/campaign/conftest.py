"""Fixtures that run commands in this process and check that they change no file."""

import importlib
import os
import re
import signal
import stat
import sys
from pathlib import Path

import pytest

from campaign.world import make_quick, make_world
from experiments import scripts
from mnv2_jax import cli
from mnv2_jax.__main__ import COMMANDS


@pytest.fixture(scope="session")
def world(digits, tmp_path_factory):
    """Return the folder that `make_world` fills."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.fixture(scope="module")
def quick():
    """Make commands quick, in case bad input is accepted."""
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        for name in ("silence_libraries", "use_compilation_cache", "leave_absent_tpus_alone", "use_huge_pages"):
            patch.setattr(cli, name, lambda: None)
        yield patch


def module_of(command):
    """Return the module of a command or script."""
    if command in COMMANDS:
        return importlib.import_module(f"mnv2_jax.commands.{command}")
    return scripts.load(command)


LONGEST = 60
"""Seconds after which a command counts as hanging."""


def give_up(*_):
    pytest.fail(f"not refused in {LONGEST} s")  # not an Exception, so no code catches it


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and modification time of everything in a folder, except times of folders, which locks change."""
    return {
        path: (0, 0) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)
        for root, folders, files in os.walk(folder)
        for path in (os.path.join(root, name) for name in (*folders, *files))
        for status in (os.lstat(path),)
    }


@pytest.fixture
def refused(quick, world, tmp_path, monkeypatch, capsys):
    """Run a command that must be refused, with exit code 2, one line, and no file made or changed; return the line."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before = everything(world)
    signal.signal(signal.SIGALRM, give_up)

    def refused(command, flags):
        module, arguments = module_of(command), [flag.format(world=world, here=here) for flag in flags]
        monkeypatch.setattr(sys, "argv", [f"{command}.py", *arguments])
        capsys.readouterr()
        signal.alarm(LONGEST)
        with pytest.raises(SystemExit) as stop:
            cli.run(
                module.main, module.Options, module.__doc__ or "", arguments, command, getattr(module, "default", None)
            )
        signal.alarm(0)
        output, errors = capsys.readouterr()
        assert stop.value.code == 2, (output, errors)
        assert "Traceback" not in output
        assert re.fullmatch(r"error: [^\n]+\n", errors), errors
        assert not re.search(r"Traceback|object at 0x|<class|─{3}|-{3}", errors), errors
        assert everything(here) == {}
        assert everything(world) == before
        return errors.removeprefix("error: ").rstrip("\n")

    yield refused
    signal.alarm(0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
