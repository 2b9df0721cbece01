"""Plan a run on TPUs that are not attached: compile its step for a slice and report memory and time per chip.

Times come from a roofline model: compute, memory and communication each run at the chip's peak and overlap
perfectly. Images per second are therefore an upper bound, and a loose one: depthwise convolutions, for example, never
reach the peak. Bytes are those between the chip and its HBM. XLA's own count is shown too; it counts copies into the
chip's fast memory several times. Needs the TPU compiler (the extra "plan"), but no TPU.
"""

import dataclasses
import functools
import json
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.box import SIMPLE_HEAD
from rich.table import Table

from mnv2_jax.ablation.design import Study, StudyOptions
from mnv2_jax.errors import UserError
from mnv2_jax.flags import parse
from mnv2_jax.plan import Step
from mnv2_jax.settings import NetworkSettings, check_num_classes, check_resolution
from mnv2_jax.training.config import RECIPES, Parallel, Recipe, RecipeName, Run
from mnv2_jax.wording import counted

if TYPE_CHECKING:
    from mnv2_jax.plan.chips import Topology
    from mnv2_jax.plan.plan import Plan, Watch

BATCH_PER_CHIP, LARGEST_BATCH_PER_CHIP = 128, 1 << 16
"""Images per chip and step: the default, and the maximum."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this command. The string below each field is its help text."""

    network: Annotated[NetworkSettings, tyro.conf.arg(name="")] = NetworkSettings(dtype="bfloat16")
    """The network."""
    resolution: int = 224
    """Side of the square images, in pixels."""
    num_classes: int = 1000
    """Number of classes."""
    topology: str = "v5litepod-8"
    """TPU slice by accelerator type (v4-8, v5litepod-8, v5p-8, v6e-8), or as CHIP:SHAPE, such as v5e:2x4."""
    step: Step = "train"
    """Training step or evaluation step."""
    batch_size: int | None = None
    """Images per step over all chips, as for `train`; 128 per chip if not given."""
    batch_norm: Literal["global", "replica"] = "replica"
    """Compute batch statistics over all chips (global) or over each chip's images (replica)."""
    accumulation: int = 1
    """Number of microbatches per chip and step."""
    recipe: RecipeName = "cosine"
    """Recipe of `train`: optimizer, moving average and everything else that the step computes."""
    parallel: Parallel = "jit"
    """How the step is compiled for several chips."""
    sweep_batch: bool = False
    """Find the largest power-of-two batch per chip that fits, starting from --batch-size."""
    compare: tuple[str, ...] = ()
    """Settings of a second plan, shown beside the first, as FLAG=VALUE: dtype=float32 batch-norm=global."""
    study: Path | None = None
    """Plan the programs of a study with its defaults instead: experiments/ablate_bottleneck.py, or your own script."""
    json: bool = False
    """Print one JSON object instead of a table."""


def main(options: Options) -> None:
    """Plan the run or the study that the flags describe."""
    if options.study is not None:
        own = dataclasses.replace(Options(), topology=options.topology, study=options.study, json=options.json)
        given = [name for name, value in _flat(own).items() if value != _flat(options)[name]]
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UserError(f"--study uses the study's own settings; remove {flags}")
    if options.compare and options.sweep_batch:
        raise UserError("--compare and --sweep-batch cannot be combined; use one at a time")
    if options.sweep_batch and options.accumulation & (options.accumulation - 1):
        raise UserError(
            f"--sweep-batch tries powers of two, none of which is divisible by --accumulation {options.accumulation}"
        )
    others = [changed(options, options.compare)] if options.compare else []
    for each in (options, *others):
        check(each)
    study = None if options.study is None else find_study(options.study)

    from mnv2_jax.plan.chips import open_topology
    from mnv2_jax.plan.plan import plan_study
    from mnv2_jax.training.progress import create_console, timed

    topologies = {each.topology: open_topology(each.topology) for each in (options, *others)}
    console = create_console()
    watch = functools.partial(timed, create_console(stderr=options.json))
    if options.study is not None and study is not None:
        plans = plan_study(study, topologies[options.topology], watch)
    elif options.sweep_batch:
        plans = sweep(options, topologies[options.topology], watch)
    else:
        plans = []
        for number, each in enumerate((options, *others), start=1):
            which = f"plan {number} of {1 + len(others)} " if others else ""
            with watch(f"compiling {which}for {each.topology} (one to four minutes)"):
                plans.append(plan(each, topologies[each.topology]))
    if options.json:
        described = [each.to_json() for each in plans]
        print(json.dumps({**described[0], "others": described[1:]} if len(plans) > 1 else described[0], indent=2))
        return
    console.print(table(plans))
    for chip in {each.chip.name: each.chip for each in plans}.values():
        console.print(f"Peak figures of {chip.name}: {chip.source}.", markup=False)
    for missed in [found for found in plans if not found.fits]:
        console.print(advice(missed), markup=False)
    fitting = [found for found in plans if found.fits]
    if options.sweep_batch and fitting:
        best = fitting[-1]
        console.print(
            f"The largest power-of-two batch that fits is {best.images // best.chips} images per chip.", markup=False
        )


def _flat(options: Options) -> dict[str, Any]:
    """Return the value of every flag, by name."""
    flags = dataclasses.asdict(options)
    return {**flags.pop("network"), **flags}


def check(options: Options) -> None:
    """Check that a run can have these settings.

    Raises:
        UserError: for an invalid one.
    """
    check_resolution(options.resolution)
    check_num_classes(options.num_classes, least=1)  # without a classifier there is nothing to train
    training_of(options)


def training_of(options: Options) -> Recipe:
    """Return the recipe of a run on the slice.

    Raises:
        UserError: for an unknown slice, or a batch size that is too large or does not divide over its chips.
    """
    from mnv2_jax.plan.chips import count_chips, find_slice
    from mnv2_jax.training.devices import check_divides

    chips = count_chips(find_slice(options.topology)[1])
    batch_size = BATCH_PER_CHIP * chips if options.batch_size is None else options.batch_size
    if batch_size > LARGEST_BATCH_PER_CHIP * chips:
        raise UserError(
            f"--batch-size must be {LARGEST_BATCH_PER_CHIP * chips} or less on {options.topology}, got {batch_size}"
        )
    training = dataclasses.replace(
        RECIPES[options.recipe],
        batch_size=batch_size,
        batch_norm=options.batch_norm,
        accumulation=options.accumulation,
    )
    check_divides(batch_size, chips, options.accumulation)
    return training


def changed(options: Options, settings: Sequence[str]) -> Options:
    """Return the options with some of them changed by settings such as "FLAG=VALUE".

    Raises:
        UserError: for an unknown flag, a bad value, or a flag that --compare cannot change.
    """
    for setting in settings:
        name, equals, _ = setting.lstrip("-").partition("=")
        if not name or not equals:
            raise UserError(f"--compare takes FLAG=VALUE, for example dtype=float32; got {setting!r}")
        if name.replace("_", "-") in ("compare", "study", "json", "sweep-batch"):
            raise UserError(f"--compare changes settings of a plan; --{name} is not one")
    arguments = [f"--{setting.lstrip('-')}" for setting in settings]
    return parse(Options, "", arguments, "--compare", lambda _: options)


def plan(options: Options, topology: "Topology") -> "Plan":
    """Compile the step that the flags describe."""
    from mnv2_jax.plan.plan import imagenet_like, plan_run

    training, model = training_of(options), options.network.settings()
    run = Run("plan", {**model, "unit_strides": model["unit_strides"] or 0}, training, resolution=options.resolution)
    dataset = imagenet_like(options.resolution, options.num_classes, training, model["convention"])
    batch = training.batch_size // len(topology.devices)
    return plan_run(run, dataset, topology, options.step, options.parallel, title(options, batch))


def title(options: Options, batch: int) -> str:
    """Return the title of a plan: its main settings, and others that differ from the defaults. `batch` is per chip."""
    usual, own, model = _flat(Options()), _flat(options), options.network.settings()
    names = ["recipe", "accumulation", "num_classes", "expansion", "kernel_size", "convention"]
    names += ["output_stride", "unit_strides"]
    others = [name for name in names if own[name] != usual[name]]
    return ", ".join(
        [
            f"{model['name']} {model['width_multiplier']:g}",
            f"{options.resolution} px",
            options.step,
            f"{batch} per chip",
            options.network.dtype,
            f"{options.batch_norm} norm",
            options.parallel,
            *(f"{name.replace('_', ' ')} {own[name]}" for name in others),
        ]
    )


def sweep(options: Options, topology: "Topology", watch: "Watch") -> "list[Plan]":
    """Search for the largest batch per chip that fits; returns all plans tried, by batch size."""
    from mnv2_jax.plan.plan import largest_batch

    chips = len(topology.devices)

    def plan_of(batch: int) -> "Plan":
        with watch(f"compiling for {options.topology} with {counted(batch, 'image')} per chip"):
            return plan(dataclasses.replace(options, batch_size=batch * chips), topology)

    return largest_batch(plan_of, training_of(options).batch_size // chips)


def find_study(path: Path) -> Study:
    """Return the study that a script describes, with its defaults.

    The script is imported, not run as main. It must define `Options`, a subclass of `StudyOptions`, and `create`, which
    makes a study from them.

    Raises:
        UserError: if the script does not exist, fails, or does not describe a study.
    """
    if not path.is_file():
        raise UserError(
            f"--study {path} is not a script; use one of yours or one in experiments/, which is in the source, not in "
            "the wheel"
        )
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # as when it is run: it may import modules beside it
    try:
        script = runpy.run_path(str(path))
    except Exception as error:  # a user's script may raise anything
        raise UserError(f"--study {path} cannot be run ({type(error).__name__}: {error})") from error
    finally:
        sys.path.remove(folder)
    options, create = script.get("Options"), script.get("create")
    if not (isinstance(options, type) and issubclass(options, StudyOptions) and callable(create)):
        raise UserError(
            f"--study {path} defines no study: it needs Options, a subclass of StudyOptions, and create(options)"
        )
    return create(options())


def advice(plan: "Plan") -> str:
    """Describe by how much a program does not fit, and what would help."""
    needed, room = plan.hbm_bytes / 2**30, plan.chip.usable_bytes / 2**30
    return (
        f"{plan.title} does not fit: it needs at least {needed:.2f} GiB, {needed - room:.2f} GiB more than the "
        f"{room:.2f} GiB available on a {plan.chip.name}. Fewer images per chip help in proportion (plan --sweep-batch finds "
        "how many fit); so do --accumulation, --dtype bfloat16 and a smaller --width-multiplier or --resolution."
    )


def table(plans: "Sequence[Plan]") -> Table:
    """Create the table of the plans, one per column."""
    from mnv2_jax.plan.plan import PARTS

    result = Table("per chip and step", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for each in plans:
        result.add_column(each.title, justify="right", max_width=36)

    def row(name: str, cell: "Callable[[Plan], str]", always: bool = False) -> None:
        result.add_row(name, *(cell(each) if each.fits or always else "-" for each in plans))

    row("slice", lambda p: f"{p.topology.name} ({p.topology.chip.rented_name(p.topology.shape)})", True)
    row("chips used", lambda p: f"{p.chips}", True)
    row("images per step, all chips", lambda p: f"{p.images:,}", True)
    result.add_section()
    for part, name in PARTS.items():
        if any(each.memory.get(part) for each in plans):
            row(f"{name}, MB", functools.partial(_part, part))
    row("memory needed, MB", lambda p: f"{p.hbm_bytes / 1e6:,.1f}", True)
    row("memory available, MB", lambda p: f"{p.chip.usable_bytes / 1e6:,.1f}", True)
    row("fits", lambda p: f"yes, {p.hbm_bytes / p.chip.usable_bytes:.0%} full" if p.fits else "no", True)
    result.add_section()
    row("operations, GFLOP", lambda p: f"{p.flops / 1e9:,.2f}")  # type: ignore[operator]
    row("bytes accessed, as XLA counts, GB", lambda p: f"{p.bytes_accessed / 1e9:,.3f}")  # type: ignore[operator]
    row("bytes to and from HBM, lower bound, GB", lambda p: f"{p.traffic_bytes / 1e9:,.3f}")  # type: ignore[operator]
    row("collectives", _collectives)
    result.add_section()
    for part, name in {"compute": "operations", "memory": "bytes to and from HBM", "links": "links"}.items():
        row(f"{name} at peak rate, ms", functools.partial(_milliseconds, part))
    row("bound by", lambda p: str(p.bound_by))
    row("images per second, all chips, upper bound", lambda p: f"{p.images_per_second:,.0f}")
    row("compile time, s", lambda p: f"{p.compile_seconds:.0f}", True)
    return result


def _part(part: str, plan: "Plan") -> str:
    return f"{plan.memory[part] / 1e6:,.1f}"


def _milliseconds(part: str, plan: "Plan") -> str:
    return f"{plan.seconds()[part] * 1e3:,.3f}"


def _collectives(plan: "Plan") -> str:
    kinds = plan.by_kind().items()
    return "\n".join(f"{each['count']} {kind}, {each['bytes'] / 1e6:,.2f} MB" for kind, each in kinds) or "none"
