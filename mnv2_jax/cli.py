"""What every command does the same way: read its flags, keep quiet but for itself, fail in one line."""

import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import io
import itertools
import logging
import os
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import platformdirs
import tyro

from mnv2_jax.environment import is_tpu_host
from mnv2_jax.errors import Preempted, UserError

Options = TypeVar("Options")

CACHE_BYTES = 1 << 30
CLOSED_PIPE = 128 + signal.SIGPIPE
"""The exit code of a process whose output nobody reads any more."""


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
    arguments = sys.argv[1:] if arguments is None else arguments
    start = None if default is None else default(arguments)
    extra: dict[str, Any] = {} if start is None else {"default": start}
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return expand_paths(tyro.cli(options, description=description, args=arguments, prog=program, **extra))
    except SystemExit as stop:
        if not stop.code:
            raise
        fields = () if extra else dataclasses.fields(options)  # type: ignore[arg-type]
        required = [_flag(each.name) for each in fields if _is_required(each)]
        sentence = _sentence(output.getvalue(), arguments, _flags(options), required)
        raise UserError(f"{sentence}; --help lists what is known") from None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _flags(options: type) -> dict[str, Any]:
    """The type of every flag's value."""
    flags: dict[str, Any] = {"--help": bool}
    for name, hint in get_type_hints(options).items():
        if dataclasses.is_dataclass(hint):
            flags |= _flags(hint)  # type: ignore[arg-type]
        else:
            flags[_flag(name)] = hint
            if hint is bool:
                flags[_flag(f"no_{name}")] = hint
    return flags


def _sentence(box: str, arguments: list[str], flags: Mapping[str, Any], required: Sequence[str]) -> str:
    """What is wrong with the arguments, where tyro says it in a box of several lines, folded to the terminal's width."""
    given: dict[str, list[str]] = {}
    values: list[str] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            values = given[_flag(name.strip("-"))] = [value] if equals else []
        else:
            values.append(argument)
    unknown = next((flag for flag in given if flag not in flags), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, flags, 1, cutoff=0.7)
        return f"unrecognized option {unknown}" + "".join(f"; did you mean {flag}?" for flag in near)
    missing = [flag for flag in required if flag not in given]
    if missing:
        return f"{' and '.join(missing)} must be given"
    # The first paragraph; behind a rule come hints. In an ASCII terminal the box is drawn with - and spaces.
    rows = [line.strip("│| ") for line in box.splitlines()[1:]]
    paragraphs = (
        list(group) for is_text, group in itertools.groupby(rows, lambda row: bool(row.strip("─-╰╯+"))) if is_text
    )
    said = " ".join(next(paragraphs, [])).rstrip(".")
    kind, _, stray = said.partition(": ")
    if kind.startswith("Unrecognized"):
        return f"unrecognized argument {stray}"
    flag = next((flag for flag in re.findall(r"--[\w-]+", said) if flag in given), "")
    got = " ".join(given.get(flag, ()))
    choices, types = _leaves(flags.get(flag))
    if flag and not got:
        return f"{flag} needs a value"
    if choices:
        return f"there is no {flag} {got}; known are {', '.join(map(str, choices))}"
    if int in types or float in types:
        return f"{flag} takes {'numbers' if float in types else 'whole numbers'}, got {got}"
    return said


def _leaves(hint: Any) -> tuple[list[Any], list[Any]]:
    """(the values that a type names, the types that it is made of)."""
    if get_origin(hint) is Literal:
        return list(get_args(hint)), []
    parts = [_leaves(part) for part in get_args(hint)]
    return [value for values, _ in parts for value in values], [hint, *(kind for _, kinds in parts for kind in kinds)]


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
        try:
            folder = Path(platformdirs.user_cache_dir("mnv2_jax")) / "xla"
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:  # no home folder, or one that is not the user's
            print(f"compiled programs are not kept ({error}); JAX_COMPILATION_CACHE_DIR says where", file=sys.stderr)
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def find_home() -> None:
    """Where the user has no home folder, keep what is kept there in a temporary one: libraries would make a folder called ~.

    Raises:
        UserError: if that one is another user's.
    """
    if os.path.expanduser("~") != "~":
        return
    home = Path(tempfile.gettempdir()) / f"mnv2_jax-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.stat().st_uid != os.getuid():
        raise UserError(f"there is no home folder, and {home} is another user's; set HOME")
    print(f"there is no home folder: data and caches go to {home}; HOME says where", file=sys.stderr)
    os.environ["HOME"] = str(home)


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
    with contextlib.suppress(OSError):  # a user who may not start it anew goes without
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


NUMERICS = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_transfer_guard": "allow",
    "jax_disable_jit": False,  # programs are compiled before they run
}
"""What JAX's libraries and ours are written for."""


def use_own_numerics() -> None:
    """Compute as everywhere else, whatever the environment asks for: with its settings, nobody's results could be compared."""
    import jax

    for option, value in NUMERICS.items():
        if getattr(jax.config, option) not in (value, None):
            print(f"{option.upper()} is not used: commands compute with {value}", file=sys.stderr)
            jax.config.update(option, value)


def _absent_platform(error: Exception) -> UserError | None:
    """What is wrong where JAX could not start the devices that it was told to; None of other errors."""
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
    return UserError(f"JAX cannot start {asked} here ({reason}); JAX_PLATFORMS says what it starts, cpu for one")


def fail(error: UserError) -> NoReturn:
    """Say what was wrong in one line and end with exit code 2."""
    with contextlib.suppress(OSError):  # where nobody reads it, the exit code says it
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def open_streams() -> None:
    """Let every character be written: one that the terminal has not, as its number; and to nowhere, where a stream is closed."""
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def close_output() -> None:
    """Write what is left, and leave nothing that Python would complain about at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


LARGE = ("--batch-size", "--batch-per-device", "--resolution", "--width-multiplier", "--num-classes", "--train-images")
"""Flags that memory is needed in proportion to."""


def _lack_of_memory(error: Exception, options: type | None) -> UserError | None:
    """What to lower, where the memory of a device or of this machine did not suffice; None of other errors."""
    reason = " ".join(str(error).split())[:200]
    exhausted = "RESOURCE_EXHAUSTED" in reason or "bad_alloc" in reason or "out of memory" in reason.lower()
    if not exhausted and not isinstance(error, MemoryError):
        return None
    flags = {} if options is None else _flags(options)
    smaller = " or ".join(flag for flag in LARGE if flag in flags)
    why = f" ({reason})" if reason else ""
    return UserError(f"there is not enough memory{why}" + (f"; lower {smaller}" if smaller else ""))


@contextlib.contextmanager
def exit_codes(options: type | None = None) -> Iterator[None]:
    """Let every character be written, and end as `run` says."""
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
        print("\nInterrupted. What is finished is kept; the same command continues after it.", file=sys.stderr)
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
        options: its flags, for `parse`.
        description: the first lines of its help.
        arguments: in place of the process's own.
        program: what the help calls it.
        default: from the arguments to the options that they start from, where one flag sets others.
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
