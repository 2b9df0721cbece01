"""What every command does the same way: set up its process, keep libraries quiet, end with an exit code."""

import contextlib
import functools
import importlib.util
import io
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import platformdirs

from mnv2_jax.environment import is_tpu_host
from mnv2_jax.errors import Preempted, UserError
from mnv2_jax.flags import Options, flag_types, parse

CACHE_BYTES = 1 << 30
CLOSED_PIPE = 128 + signal.SIGPIPE
"""The exit code of a process whose output nobody reads any more."""


def silence_libraries() -> None:
    """Turn off warnings and notices of the libraries below. Python's -W brings warnings back."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    import absl.logging
    import tensorflow_datasets as tfds

    # What fails in them comes to us as an exception, and is said in one line.
    absl.logging.set_verbosity(absl.logging.FATAL)
    for name in ("jax", "orbax", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Where one write of a checkpoint fails, others fail with it: one line says so, not a hundred.
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
        try:
            folder = Path(platformdirs.user_cache_dir("mnv2_jax")) / "xla"
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:  # no home folder, or one that is not the user's
            print(
                f"compiled programs are not cached ({error}); set JAX_COMPILATION_CACHE_DIR to a folder of yours",
                file=sys.stderr,
            )
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def find_home() -> None:
    """Where the user has no home folder, use a temporary one: libraries would make a folder called ~.

    Raises:
        UserError: if that one is another user's.
    """
    if os.path.expanduser("~") != "~":
        return
    home = Path(tempfile.gettempdir()) / f"mnv2_jax-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.stat().st_uid != os.getuid():
        raise UserError(f"there is no home folder, and {home} is another user's; set HOME")
    print(f"there is no home folder: data and caches go to {home}; set HOME to choose another", file=sys.stderr)
    os.environ["HOME"] = str(home)


def use_huge_pages() -> None:
    """Restart this process with malloc on huge pages, where Linux leaves it to programs to ask for them.

    XLA allocates the memory of every step and frees it again. With pages of 4 KiB, mapping that memory takes up to half
    of a step on CPU; transparent huge pages of 2 MiB avoid it. glibc (2.35 and later) reads the setting when a process
    starts, hence the restart; a value that the user has set is kept.
    """
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if "GLIBC_TUNABLES" in os.environ or sys.platform != "linux" or "[madvise]" not in _content(setting):
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    with contextlib.suppress(OSError):  # where a restart is not allowed, continue without
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _content(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def leave_absent_tpus_alone() -> None:
    """Where the TPU compiler is installed but no TPU, keep JAX from looking for one, which takes time."""
    import jax

    installed = {name for name in ("libtpu", "jax_plugins") if importlib.util.find_spec(name) is not None}
    if installed == {"libtpu"} and not jax.config.jax_platforms and not is_tpu_host(os.environ):  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")


NUMERICS = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_transfer_guard": "allow",
    "jax_disable_jit": False,  # programs are compiled before they run
}
"""The options that this package and the libraries below it are written for."""


def use_own_numerics() -> None:
    """Reset numeric options that the environment has changed: results would not be comparable with any others."""
    import jax

    for option, value in NUMERICS.items():
        if getattr(jax.config, option) not in (value, None):
            print(f"{option.upper()} is ignored: commands compute with {value}", file=sys.stderr)
            jax.config.update(option, value)


def _absent_platform(error: Exception) -> UserError | None:
    """The error to show where JAX cannot start the devices that it was told to use; None for other errors."""
    if "jax" not in sys.modules:
        return None
    import jax

    if "Unable to initialize backend" not in str(error):
        try:
            jax.devices()
            return None
        except Exception as again:  # of whatever kind, the devices are not there
            error = again
    reason = " ".join(str(error).partition(" (set JAX")[0].split())[:200].rstrip(".") or type(error).__name__
    asked = os.environ.get("JAX_PLATFORMS") or "its devices"
    return UserError(
        f"JAX cannot start {asked} here ({reason}); set JAX_PLATFORMS to one that is here, cpu for instance"
    )


def fail(error: UserError) -> NoReturn:
    """Say what was wrong in one line and end with exit code 2."""
    with contextlib.suppress(OSError):  # where nobody reads it, the exit code says it
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def open_streams() -> None:
    """Escape characters that the terminal lacks, and send the output of a closed stream to the null device."""
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def close_output() -> None:
    """Flush the output; one that nobody reads any more is no error."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


LARGE = ("--batch-size", "--resolution", "--width-multiplier", "--num-classes", "--train-images")
"""Flags that memory grows with."""


def _lack_of_memory(error: Exception, options: type | None) -> UserError | None:
    """The error that names the flags to lower where memory ran out; None for other errors."""
    reason = " ".join(str(error).split())[:200]
    exhausted = "RESOURCE_EXHAUSTED" in reason or "bad_alloc" in reason or "out of memory" in reason.lower()
    if not exhausted and not isinstance(error, MemoryError):
        return None
    flags = {} if options is None else flag_types(options)
    smaller = " or ".join(flag for flag in LARGE if flag in flags)
    why = f" ({reason})" if reason else ""
    return UserError(f"there is not enough memory{why}" + (f"; lower {smaller}" if smaller else ""))


@contextlib.contextmanager
def exit_codes(options: type | None = None) -> Iterator[None]:
    """Turn errors into one line and an exit code; see `run`."""
    open_streams()
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        fail(error)
    except Preempted as stop:
        print(" ".join(str(stop).split()), file=sys.stderr)
        sys.exit(os.EX_TEMPFAIL)
    except BrokenPipeError:
        sys.exit(CLOSED_PIPE)
    except SystemExit as stop:
        # Whoever read our output has stopped, as `head` does: rich says so with 1, and nothing else does.
        sys.exit(CLOSED_PIPE if stop.code == 1 else stop.code)
    except OSError as error:
        where = f"{error.filename} cannot be read or written" if error.filename else "reading or writing failed"
        fail(UserError(f"{where}: {error.strerror or error}"))
    except (MemoryError, RuntimeError, AssertionError) as error:
        known = _lack_of_memory(error, options) or _absent_platform(error)
        if known is None:
            raise
        fail(known)
    except KeyboardInterrupt:
        print("\nInterrupted. What is finished is kept; the same command resumes.", file=sys.stderr)
        sys.exit(130)
    finally:
        close_output()


def run(
    main: Callable[[Options], None],
    options: type[Options],
    description: str,
    arguments: list[str] | None = None,
    program: str | None = None,
    default: Callable[[list[str]], Options] | None = None,
) -> None:
    """Run a command to its exit code: 0, 2 for bad input (one line says what), 130 when interrupted, 75 on SIGTERM.

    141 says that whoever read the output has stopped.

    Args:
        main: the command.
        options, description, arguments, program, default: see `parse`.
    """
    with exit_codes(options):
        parsed = parse(options, description, arguments, program, default)
        find_home()
        if arguments is None:  # else they are not the process's, which is another's to start
            use_huge_pages()
        silence_libraries()
        leave_absent_tpus_alone()
        use_compilation_cache()
        use_own_numerics()
        main(parsed)
