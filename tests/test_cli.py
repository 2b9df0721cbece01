"""What every command does the same way: its flags, its exit codes, its process."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mnv2_jax import cli
from mnv2_jax.errors import Preempted, UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of a command."""

    width: float = 1.0
    """A width."""
    form: str = "round"
    """A form."""


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process: exit code, output, errors."""
    # These change the process for good.
    monkeypatch.setattr(cli, "silence_libraries", lambda: None)
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)

    def run(main, *arguments, **options):
        try:
            cli.run(main, Options, "A command.", list(arguments), "command", **options)
        except SystemExit as stop:
            return (stop.code, *capsys.readouterr())
        return (0, *capsys.readouterr())

    return run


# --- Flags -----------------------------------------------------------------------------------------------


def test_flags_become_options(run):
    assert run(lambda options: print(options), "--width", "0.5") == (0, "Options(width=0.5, form='round')\n", "")


def test_a_default_is_made_from_the_arguments(run):
    def default(arguments):
        return Options(form="square" if "--width" in arguments else "round")

    show = lambda options: print(options.form)  # noqa: E731
    assert run(show, "--width", "2", default=default)[1] == "square\n"
    assert run(show, default=default)[1] == "round\n"
    assert run(show, "--width", "2", "--form", "flat", default=default)[1] == "flat\n"


@pytest.mark.parametrize(
    ("arguments", "says"), [(["--width", "wide"], "wide"), (["--colour", "red"], "--colour"), (["red"], "red")]
)
def test_a_flag_that_is_not_known_is_one_line(run, arguments, says):
    code, output, errors = run(lambda options: print("ran"), *arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert says in errors
    assert errors.endswith("; --help lists what is known\n")
    assert errors.count("\n") == 1


def test_a_help_has_the_description_and_the_flags(run):
    code, output, _ = run(lambda options: print("ran"), "--help")
    assert code == 0
    for text in ("usage: command", "A command.", "--width", "A form.", "round"):
        assert text in output
    assert "ran" not in output


@dataclasses.dataclass(frozen=True)
class Files:
    """Flags that name files."""

    out: Path | None = None
    """One."""
    more: tuple[Path, ...] = ()
    """Several."""
    weights: str = ""
    """A path, or a reference."""


@dataclasses.dataclass(frozen=True)
class Nested:
    """Flags in groups."""

    files: Files = Files()
    """The group."""


def test_home_and_variables_are_replaced_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("RUNS", "/scratch")
    flags = ["--files.out", "~/a", "--files.more", "$RUNS/b", "c$", "--files.weights", "~/w"]
    files = cli.parse(Nested, "", flags).files
    assert files == Files(Path("/home/me/a"), (Path("/scratch/b"), Path("c$")), "/home/me/w")
    kept = Files(weights="hf://timm/x")
    assert cli.expand_paths(kept) == kept


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("gs://bucket/run", "gs://bucket/run is no path of this machine; mount what gs:// names"),
        ("~nobody-here/run", "there is no home folder of that name here"),
        ("$NOT_SET_HERE/run", "the environment variable NOT_SET_HERE is not set"),
        ("a/${NOT_SET_HERE}", "the environment variable NOT_SET_HERE is not set"),
    ],
)
def test_what_is_no_path_of_this_machine_is_refused(path, says):
    with pytest.raises(UserError) as error:
        cli.parse(Files, "", ["--out", path])
    assert says in str(error.value)


def test_reads_that_orbax_drops_are_no_news(monkeypatch):
    """Others that nobody waits for are."""
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    cli._forget_dropped_reads.__wrapped__()
    news = SimpleNamespace(exc_value=ValueError("x"), object=None)
    for dropped in (
        SimpleNamespace(exc_value=RuntimeError("Event loop is closed"), object=None),
        SimpleNamespace(exc_value=Exception("x"), object="<coroutine object _read_array_index at 0>"),
        news,
    ):
        sys.unraisablehook(dropped)
    assert shown == [news]


# --- How a command ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("it is\nwrong"), 2, "error: it is wrong\n"),
        (Preempted("saved at\nstep 3"), 75, "saved at step 3\n"),
        (OSError(28, "No space left", "/x/y"), 2, "error: /x/y cannot be read or written: No space left\n"),
        (OSError("broken"), 2, "error: reading or writing failed: broken\n"),
        (KeyboardInterrupt(), 130, "\nInterrupted. What is finished is kept; the same command continues after it.\n"),
    ],
)
def test_how_a_command_ends_is_told_by_its_exit_code(run, error, code, says):
    def main(options):
        raise error

    assert run(main) == (code, "", says)


def test_an_error_of_the_program_itself_is_not_hidden(run):
    def main(options):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main)


PRINT_MUCH = """
import dataclasses
from mnv2_jax import cli

@dataclasses.dataclass(frozen=True)
class Options:
    pass

# What a command loads besides does not matter here.
cli.silence_libraries = cli.leave_absent_tpus_alone = cli.use_compilation_cache = lambda: None
cli.run(lambda options: print("line\\n" * 100_000), Options, "", [])
"""


def test_a_reader_that_stops_is_no_error():
    command = f"{sys.executable} -c '{PRINT_MUCH}' | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("line\n", "")


# --- The process -----------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch):
    """What the process was restarted with; this one only notes it."""
    calls = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: calls.append((program, arguments)))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "study.py", "--seeds", "2"])
    monkeypatch.setattr(sys, "platform", "linux")
    return calls


@pytest.mark.parametrize(("setting", "starts"), [("always [madvise] never", 1), ("[always] madvise never", 0), ("", 0)])
def test_a_command_restarts_where_huge_pages_have_to_be_asked_for(started, monkeypatch, setting, starts):
    # As monkeypatch remembers it, whatever the command does.
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(cli, "_content", lambda path: setting)
    cli.use_huge_pages()
    assert started == [(sys.executable, [sys.executable, "-X", "dev", "study.py", "--seeds", "2"])] * starts
    # The one that it becomes finds the setting there, and continues.
    if starts:
        assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
        cli.use_huge_pages()
        assert len(started) == 1


def test_a_setting_of_the_user_is_left_alone(started, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    monkeypatch.setattr(cli, "_content", lambda path: "[madvise]")
    cli.use_huge_pages()
    assert not started
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=1"
