"""Common code of all commands: process setup, quiet libraries, and exit codes."""

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
"""Exit code when the reader of the output has stopped."""


def silence_libraries() -> None:
    """Turn off warnings and notices of libraries. Python's -W turns warnings back on."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    import absl.logging
    import tensorflow_datasets as tfds

    # Their failures reach us as exceptions, which are reported in one line.
    absl.logging.set_verbosity(absl.logging.FATAL)
    for name in ("jax", "orbax", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # If one write of a checkpoint fails, others fail with it; report this in one line, not a hundred.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    _forget_dropped_reads()
    tfds.disable_progress_bar()


@functools.cache
def _forget_dropped_reads() -> None:
    # If one read of a checkpoint fails, Orbax drops the others, and Python reports them as errors that nobody awaits.
    shown = sys.unraisablehook

    def hook(dropped: Any) -> None:
        if "loop is closed" not in str(dropped.exc_value) and "_read_array" not in repr(dropped.object):
            shown(dropped)

    sys.unraisablehook = hook


def use_compilation_cache() -> None:
    """Cache compiled programs in the user's cache folder, at most 1 GiB, unless JAX has a cache folder already."""
    import jax

    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        try:
            folder = Path(platformdirs.user_cache_dir("mnv2_jax")) / "xla"
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:  # no home folder, or one that is not the user's
            print(
                f"compiled programs are not cached ({error}); set JAX_COMPILATION_CACHE_DIR to a writable folder",
                file=sys.stderr,
            )
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def find_home() -> None:
    """If the user has no home folder, use a temporary one; libraries would create a folder called ~.

    Raises:
        UserError: if the temporary folder is another user's.
    """
    if os.path.expanduser("~") != "~":
        return
    home = Path(tempfile.gettempdir()) / f"mnv2_jax-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.stat().st_uid != os.getuid():
        raise UserError(f"there is no home folder, and {home} belongs to another user; set HOME")
    print(f"there is no home folder: data and caches go to {home}; set HOME to choose another", file=sys.stderr)
    os.environ["HOME"] = str(home)


def use_huge_pages() -> None:
    """Restart this process with malloc on huge pages, if Linux gives them to programs that ask ("madvise").

    XLA allocates and frees the memory of every step. With pages of 4 KiB, mapping that memory takes up to half of a
    step on CPU; transparent huge pages of 2 MiB avoid this. glibc (2.35 and later) reads the setting at process start,
    hence the restart. If the user has set GLIBC_TUNABLES, nothing is changed.
    """
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if "GLIBC_TUNABLES" in os.environ or sys.platform != "linux" or "[madvise]" not in _content(setting):
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    with contextlib.suppress(OSError):  # if a restart is not allowed, continue without
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _content(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def leave_absent_tpus_alone() -> None:
    """If the TPU compiler is installed but there is no TPU, keep JAX from looking for one, which takes time."""
    import jax

    installed = {name for name in ("libtpu", "jax_plugins") if importlib.util.find_spec(name) is not None}
    if installed == {"libtpu"} and not jax.config.jax_platforms and not is_tpu_host(os.environ):  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")


NUMERICS = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_transfer_guard": "allow",
    "jax_disable_jit": False,  # programs are compiled ahead of time
}
"""The JAX options that this package and its libraries are written for."""


def use_own_numerics() -> None:
    """Reset JAX's numeric options if the environment has changed them, so that results stay comparable."""
    import jax

    for option, value in NUMERICS.items():
        if getattr(jax.config, option) not in (value, None):
            print(f"{option.upper()} is ignored: commands compute with {value}", file=sys.stderr)
            jax.config.update(option, value)


def _absent_platform(error: Exception) -> UserError | None:
    """Return the error to show if JAX cannot start the devices that it was told to use; None for other errors."""
    if "jax" not in sys.modules:
        return None
    import jax

    if "Unable to initialize backend" not in str(error):
        try:
            jax.devices()
            return None
        except Exception as again:  # any kind means that the devices are missing
            error = again
    reason = " ".join(str(error).partition(" (set JAX")[0].split())[:200].rstrip(".") or type(error).__name__
    asked = os.environ.get("JAX_PLATFORMS") or "its devices"
    return UserError(
        f"JAX cannot start {asked} on this machine ({reason}); set JAX_PLATFORMS to an available platform, "
        "for example cpu"
    )


def fail(error: UserError) -> NoReturn:
    """Print the error in one line and exit with code 2."""
    with contextlib.suppress(OSError):  # if nobody reads it, the exit code remains
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def open_streams() -> None:
    """Escape characters that the output's encoding lacks, and replace closed streams by the null device."""
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def close_output() -> None:
    """Flush the output; it is no error if nobody reads it any more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


LARGE = ("--batch-size", "--resolution", "--width-multiplier", "--num-classes", "--train-images")
"""Flags that increase memory use."""


def _lack_of_memory(error: Exception, options: type | None) -> UserError | None:
    """Return an error that names the flags to lower if memory ran out; None for other errors."""
    reason = " ".join(str(error).split())[:200]
    exhausted = "RESOURCE_EXHAUSTED" in reason or "bad_alloc" in reason or "out of memory" in reason.lower()
    if not exhausted and not isinstance(error, MemoryError):
        return None
    flags = {} if options is None else flag_types(options)
    smaller = " or ".join(flag for flag in LARGE if flag in flags)
    why = f" ({reason})" if reason else ""
    return UserError(f"not enough memory{why}" + (f"; reduce {smaller}" if smaller else ""))


@contextlib.contextmanager
def exit_codes(options: type | None = None) -> Iterator[None]:
    """Turn errors into a one-line message and an exit code; see `run`."""
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
        # rich exits with 1, and nothing else does, when the reader of the output has stopped, as `head` does.
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
        print("\nInterrupted. Finished work is kept; run the same command to resume.", file=sys.stderr)
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
    """Run a command and exit.

    The exit code is 0 on success, 2 for bad input (with a one-line message), 130 when interrupted, 75 on SIGTERM, and
    141 if the reader of the output has stopped.

    Args:
        main: the command.
        options, description, arguments, program, default: see `parse`.
    """
    with exit_codes(options):
        parsed = parse(options, description, arguments, program, default)
        find_home()
        if arguments is None:  # otherwise the caller owns this process, and restarting it is not ours to do
            use_huge_pages()
        silence_libraries()
        leave_absent_tpus_alone()
        use_compilation_cache()
        use_own_numerics()
        main(parsed)
