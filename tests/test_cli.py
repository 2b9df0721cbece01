"""What all commands have in common: flags, exit codes, the process."""

import dataclasses
import io
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
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
    batch_size: int = 8
    """Images a step."""
    resolution: int = 32
    """Pixels."""


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process; return exit code, output and errors."""
    # These would change this process permanently.
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
    assert run(lambda options: print(options), "--width", "0.5") == (
        0,
        "Options(width=0.5, form='round', batch_size=8, resolution=32)\n",
        "",
    )


def test_a_default_is_made_from_the_arguments(run):
    def default(arguments):
        return Options(form="square" if "--width" in arguments else "round")

    show = lambda options: print(options.form)  # noqa: E731
    assert run(show, "--width", "2", default=default)[1] == "square\n"
    assert run(show, default=default)[1] == "round\n"
    assert run(show, "--width", "2", "--form", "flat", default=default)[1] == "flat\n"


def test_flags_that_are_not_known_end_with_code_2(run):
    says = "error: unrecognized option --color; see --help\n"
    assert run(lambda options: print("ran"), "--color", "red") == (2, "", says)


def test_a_help_has_the_description_and_the_flags(run):
    code, output, _ = run(lambda options: print("ran"), "--help")
    assert code == 0
    for text in ("usage: command", "A command.", "--width", "A form.", "round"):
        assert text in output
    assert "ran" not in output


def test_reads_that_orbax_drops_are_no_news(monkeypatch):
    """Other unraisable errors are still shown."""
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


# --- Exit codes and errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("it is\nwrong"), 2, "error: it is wrong\n"),
        (Preempted("saved at\nstep 3"), 75, "saved at step 3\n"),
        (OSError(28, "No space left", "/x/y"), 2, "error: /x/y cannot be read or written: No space left\n"),
        (OSError("broken"), 2, "error: reading or writing failed: broken\n"),
        (MemoryError(), 2, "error: not enough memory; reduce --batch-size or --resolution\n"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
            2,
            "error: not enough memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.); "
            "reduce --batch-size or --resolution\n",
        ),
        (SystemExit(1), 141, ""),  # rich's, when a pipe is closed
        (KeyboardInterrupt(), 130, "\nInterrupted. Finished work is kept; run the same command to resume.\n"),
    ],
)
def test_how_a_command_ends_is_told_by_its_exit_code(run, error, code, says):
    def main(options):
        raise error

    assert run(main) == (code, "", says)


@pytest.mark.parametrize("said", ["Unable to initialize backend 'cuda': none", ""])
def test_a_platform_that_is_not_there_is_named(run, monkeypatch, said):
    def main(options):
        raise RuntimeError(said)

    def no_devices():
        raise AssertionError

    monkeypatch.setattr(jax, "devices", no_devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    says = (
        f"JAX cannot start cuda on this machine ({said or 'AssertionError'}); "
        "set JAX_PLATFORMS to an available platform, for example cpu"
    )
    assert run(main) == (2, "", f"error: {says}\n")


def test_commands_compute_as_everywhere_else(run):
    before = {option: getattr(jax.config, option) for option in ("jax_enable_x64", "jax_numpy_rank_promotion")}
    try:
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_numpy_rank_promotion", "raise")
        code, output, errors = run(lambda options: print(jax.numpy.ones(1).dtype))
        assert (code, output) == (0, "float32\n")
        assert errors.splitlines() == [
            "JAX_ENABLE_X64 is ignored: commands compute with False",
            "JAX_NUMPY_RANK_PROMOTION is ignored: commands compute with allow",
        ]
    finally:
        for option, value in before.items():
            jax.config.update(option, value)


def test_an_error_of_the_program_itself_is_not_hidden(run):
    def main(options):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main)

    def other(options):
        raise RuntimeError("INTERNAL: it is broken")

    with pytest.raises(RuntimeError, match="it is broken"):
        run(other)


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
    command = f"set -o pipefail; {sys.executable} -c '{PRINT_MUCH}' | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("line\n", "", 141)


def test_what_a_terminal_cannot_show_is_written_as_its_number_and_a_closed_output_is_none(monkeypatch):
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "ascii"))
    with cli.exit_codes():
        print("3 × −1")
    assert output.getvalue() == b"3 \\xd7 \\u22121\n"
    monkeypatch.setattr(sys, "stdout", None)
    with cli.exit_codes():
        print("nobody reads this")
    sys.stdout.close()


# --- The process -----------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch):
    """Record the arguments with which the process would be restarted."""
    calls = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: calls.append((program, arguments)))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "study.py", "--seeds", "2"])
    monkeypatch.setattr(sys, "platform", "linux")
    return calls


def test_without_a_home_folder_a_temporary_one_is_used(monkeypatch, tmp_path, capsys):
    # As for a user without an entry in the system's user database.
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(cli.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("HOME", "")
    cli.find_home()
    (home,) = tmp_path.iterdir()
    assert os.environ["HOME"] == str(home)
    assert home.stat().st_mode & 0o777 == 0o700
    says = f"there is no home folder: data and caches go to {home}; set HOME to choose another\n"
    assert capsys.readouterr().err == says
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    (tmp_path / f"mnv2_jax-{os.getuid()}").mkdir()
    with pytest.raises(UserError, match="belongs to another user; set HOME$"):
        cli.find_home()


def test_programs_are_not_kept_where_no_folder_can_be_made_and_it_is_said(monkeypatch, tmp_path, capsys):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("")
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        cli.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    errors = capsys.readouterr().err
    assert errors.startswith("compiled programs are not cached (")
    assert errors.endswith("; set JAX_COMPILATION_CACHE_DIR to a writable folder\n")


@pytest.mark.parametrize(("setting", "starts"), [("always [madvise] never", 1), ("[always] madvise never", 0), ("", 0)])
def test_a_command_restarts_where_huge_pages_have_to_be_asked_for(started, monkeypatch, setting, starts):
    # So that monkeypatch restores it, whatever the command does.
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(cli, "_content", lambda path: setting)
    cli.use_huge_pages()
    assert started == [(sys.executable, [sys.executable, "-X", "dev", "study.py", "--seeds", "2"])] * starts
    # The restarted process finds the setting and continues.
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
