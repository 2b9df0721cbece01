"""What every command does the same way: read its flags, keep quiet but for itself, fail in one line."""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import platformdirs
import tyro

from mnv2_jax.environment import is_tpu_host
from mnv2_jax.errors import Preempted, UserError

Options = TypeVar("Options")

CACHE_BYTES = 1 << 30


def parse(
    options: type[Options],
    description: str,
    arguments: list[str] | None = None,
    program: str | None = None,
    default: Callable[[list[str]], Options] | None = None,
) -> Options:
    """Read the command line into a frozen dataclass; each field is a flag, its docstring the help.

    Args:
        options, description, arguments, program, default: see `run`.

    Raises:
        UserError: for anything that tyro would answer with its box of several lines.
        SystemExit: after --help.
    """
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            arguments = sys.argv[1:] if arguments is None else arguments
            start = None if default is None else default(arguments)
            extra: dict[str, Any] = {} if start is None else {"default": start}
            return expand_paths(tyro.cli(options, description=description, args=arguments, prog=program, **extra))
    except SystemExit as stop:
        if not stop.code:
            raise
        # The box's first paragraph says what is wrong; behind a rule come hints about --help.
        # In an ASCII terminal it is drawn with + - and |.
        rows = [line for line in output.getvalue().splitlines()[1:] if "───" not in line and "---" not in line]
        lines = [line.strip("│╭╮╰╯─+| \n") for line in rows]
        sentences = " ".join(line for line in lines if line and not line.startswith("For full helptext"))
        raise UserError(f"{sentences.rstrip('.')}; --help lists what is known") from None


def expand_paths(options: Options) -> Options:
    """The same flags with `~` and `$VARIABLE` replaced in every path, as a shell does only at the start of a word.

    Raises:
        UserError: for what is no path of this machine: gs://BUCKET, a home folder or a variable that is not there.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = expand_paths(value)
        elif isinstance(value, Path):
            changes[field.name] = _expanded(value)
        elif isinstance(value, tuple) and any(isinstance(each, Path) for each in value):
            changes[field.name] = tuple(_expanded(each) for each in value)
        elif isinstance(value, str) and field.name in ("weights", "input"):  # a path, or a reference to a hub
            changes[field.name] = str(_expanded(Path(value))) if value[:1] == "~" or "$" in value else value
    return dataclasses.replace(options, **changes)  # type: ignore[type-var]


def _expanded(path: Path) -> Path:
    if scheme := re.match(r"([A-Za-z][\w+.-]+):/", str(path)):
        url = str(path).replace(":/", "://", 1)
        raise UserError(f"{url} is no path of this machine; mount what {scheme[1]}:// names, and name its folder here")
    found = os.path.expandvars(os.path.expanduser(path))
    if found.startswith("~"):
        raise UserError(f"{path}: there is no home folder of that name here; write the whole path")
    if unset := re.search(r"\$\{?([A-Za-z_]\w*)", found):
        raise UserError(f"{path}: the environment variable {unset[1]} is not set; set it, or write the whole path")
    return Path(found)


def silence_libraries() -> None:
    """Leave the terminal to us: no warnings and notices of frameworks. Python's -W brings warnings back."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    import absl.logging
    import tensorflow_datasets as tfds

    # What fails in them comes to us as an exception, and is said in one line.
    absl.logging.set_verbosity(absl.logging.FATAL)
    for name in ("jax", "orbax", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Where one write of a checkpoint fails, those beside it fail too: one line says so, not a hundred.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    _forget_dropped_reads()
    tfds.disable_progress_bar()


@functools.cache
def _forget_dropped_reads() -> None:
    # Where one read of a checkpoint fails, Orbax drops the others, which end where nobody waits for them any more.
    shown = sys.unraisablehook

    def hook(dropped: Any) -> None:
        if "loop is closed" not in str(dropped.exc_value) and "_read_array" not in repr(dropped.object):
            shown(dropped)

    sys.unraisablehook = hook


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, at most 1 GiB, unless JAX was told where already."""
    import jax

    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        folder = Path(platformdirs.user_cache_dir("mnv2_jax")) / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def use_huge_pages() -> None:
    """Start this process anew with malloc on huge pages, where Linux leaves it to a program to ask for them.

    XLA takes the memory of every step from malloc and gives it back. With pages of 4 KiB, mapping it anew takes up
    to half of a step on CPU; with transparent huge pages of 2 MiB that is gone. glibc (2.35 and later) reads the setting
    when a process starts, so it is now or never; one that the user has made is left alone.
    """
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if "GLIBC_TUNABLES" in os.environ or sys.platform != "linux" or "[madvise]" not in _content(setting):
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _content(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def leave_absent_tpus_alone() -> None:
    """Where the TPU compiler is installed and no TPU is there, keep JAX from starting one: it takes time and complains."""
    import jax

    installed = {name for name in ("libtpu", "jax_plugins") if importlib.util.find_spec(name) is not None}
    if installed == {"libtpu"} and not jax.config.jax_platforms and not is_tpu_host(os.environ):  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")


def fail(error: UserError) -> NoReturn:
    """Say what was wrong in one line and end with exit code 2."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def run(
    main: Callable[[Options], None],
    options: type[Options],
    description: str,
    arguments: list[str] | None = None,
    program: str | None = None,
    default: Callable[[list[str]], Options] | None = None,
) -> None:
    """Run a command to its exit code: 0, 2 for bad input (one line says what), 130 when interrupted, 75 on SIGTERM.

    Args:
        main: the command.
        options: its flags, for `parse`.
        description: the first lines of its help.
        arguments: in place of the process's own.
        program: what the help calls it.
        default: from the arguments to the options that they start from, where one flag sets others.
    """
    try:
        parsed = parse(options, description, arguments, program, default)
        if arguments is None:  # else they are not the process's, which is another's to start
            use_huge_pages()
        silence_libraries()
        leave_absent_tpus_alone()
        use_compilation_cache()
        main(parsed)
        sys.stdout.flush()
    except UserError as error:
        fail(error)
    except Preempted as stop:
        print(" ".join(str(stop).split()), file=sys.stderr)
        sys.exit(os.EX_TEMPFAIL)
    except BrokenPipeError:
        # Whoever read our output has stopped, as `head` does. Python would complain again when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        where = f"{error.filename} cannot be read or written" if error.filename else "reading or writing failed"
        fail(UserError(f"{where}: {error.strerror or error}"))
    except KeyboardInterrupt:
        print("\nInterrupted. What is finished is kept; the same command continues after it.", file=sys.stderr)
        sys.exit(130)
