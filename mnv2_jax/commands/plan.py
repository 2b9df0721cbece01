"""What a run needs of TPUs that are not here: its own step, compiled for a slice of them.

The times are those of a roofline: what the chip takes at its peak for the operations, for the bytes and for what goes
to other chips, as if all three were done at once and nothing ever waited. So the images a second are an upper bound,
and a loose one: a depthwise convolution, for instance, never reaches the peak. The bytes are those between the chip and
its HBM; XLA's own count, which is shown too, holds copies into the chip's fast memory several times.
Needs the TPU compiler (the extra "plan"), and no TPU.
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

from mnv2_jax import cli
from mnv2_jax.ablation.design import Study, StudyOptions
from mnv2_jax.errors import UserError
from mnv2_jax.plan import Step
from mnv2_jax.settings import NetworkSettings, check_num_classes, check_resolution
from mnv2_jax.training.config import RECIPES, Parallel, RecipeName, Run

if TYPE_CHECKING:
    from mnv2_jax.plan.chips import Topology
    from mnv2_jax.plan.plan import Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this command. What follows a field is its help."""

    network: Annotated[NetworkSettings, tyro.conf.arg(name="")] = NetworkSettings(dtype="bfloat16")
    """The network."""
    resolution: int = 224
    """Side of the square images, in pixels."""
    num_classes: int = 1000
    """Outputs of the classifier."""
    topology: str = "v5e:2x4"
    """The slice, as CHIP:SHAPE: v4, v5e, v5p or v6e, and the chips along each axis."""
    step: Step = "train"
    """Which of the trainer's programs."""
    batch_per_device: int = 128
    """Images a chip and step."""
    batch_norm: Literal["global", "replica"] = "replica"
    """Batch statistics over all chips, or of each chip's images alone."""
    accumulation: int = 1
    """Microbatches in which a chip takes its images, one after the other."""
    recipe: RecipeName = "cosine"
    """Optimizer, moving average and all else that the step computes, by the names of `train`."""
    parallel: Parallel = "jit"
    """How the step is compiled for several chips."""
    sweep_batch: bool = False
    """Find the largest power-of-two batch a chip that fits."""
    compare: tuple[str, ...] = ()
    """Settings of a second plan beside the first, as FLAG=VALUE: dtype=float32 batch-norm=global."""
    study: Path | None = None
    """Plan the programs of a study instead, with its defaults: experiments/ablate_bottleneck.py, or a script of yours."""
    json: bool = False
    """Print one JSON object instead of a table."""


def main(options: Options) -> None:
    """Plan what the flags describe."""
    if options.study is not None:
        own = dataclasses.replace(Options(), topology=options.topology, study=options.study, json=options.json)
        given = [name for name, value in _flat(own).items() if value != _flat(options)[name]]
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UserError(f"--study plans a study's own settings; leave {flags} out")
    if options.compare and options.sweep_batch:
        raise UserError("--compare and --sweep-batch do not go together; take one after the other")
    if options.sweep_batch and options.accumulation & (options.accumulation - 1):
        raise UserError(
            f"--sweep-batch takes powers of two, which --accumulation {options.accumulation} does not divide"
        )
    others = [changed(options, options.compare)] if options.compare else []
    for each in (options, *others):
        check(each)
    study = None if options.study is None else find_study(options.study)

    from mnv2_jax.plan.chips import open_topology
    from mnv2_jax.plan.plan import plan_study
    from mnv2_jax.training.progress import create_console

    topologies = {each.topology: open_topology(each.topology) for each in (options, *others)}
    console = create_console()
    report = (lambda text: None) if options.json else (lambda text: console.print(text, markup=False))

    if options.study is not None and study is not None:
        report(f"Compiling the programs of {options.study.stem} for {options.topology}; a minute or so each.")
        plans = plan_study(study, topologies[options.topology])
    else:
        report(f"Compiling for {options.topology}; one to four minutes.")
        plans = [plan(options, topologies[options.topology])]
        for other in others:
            report(f"Compiling with {' '.join(options.compare)}.")
            plans.append(plan(other, topologies[other.topology]))
        if options.sweep_batch:
            plans = sweep(options, topologies[options.topology], plans[0], report)
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
        console.print(f"The largest power-of-two batch that fits is {best.images // best.chips} a chip.", markup=False)


def _flat(options: Options) -> dict[str, Any]:
    """Every flag's value by its name."""
    flags = dataclasses.asdict(options)
    return {**flags.pop("network"), **flags}


def check(options: Options) -> None:
    """Refuse numbers that no run has.

    Raises:
        UserError: says which.
    """
    check_resolution(options.resolution)
    if not 1 <= options.batch_per_device <= 1 << 16:
        raise UserError(f"--batch-per-device must be from 1 to {1 << 16}, got {options.batch_per_device}")
    if options.accumulation < 1 or options.batch_per_device % options.accumulation:
        raise UserError(
            f"--accumulation must divide --batch-per-device {options.batch_per_device}, got {options.accumulation}"
        )
    check_num_classes(options.num_classes, least=1)  # without a classifier there is nothing to train


def changed(options: Options, settings: Sequence[str]) -> Options:
    """The options with some of them set anew, "FLAG=VALUE" each.

    Raises:
        UserError: for what is no such flag or value.
    """
    for setting in settings:
        name, equals, _ = setting.lstrip("-").partition("=")
        if not name or not equals:
            raise UserError(f"--compare takes FLAG=VALUE, dtype=float32 for instance; got {setting!r}")
        if name.replace("_", "-") in ("compare", "study", "json", "sweep-batch"):
            raise UserError(f"--compare changes settings of a plan, and --{name} is none")
    arguments = [f"--{setting.lstrip('-')}" for setting in settings]
    return cli.parse(Options, "", arguments, "--compare", lambda _: options)


def plan(options: Options, topology: "Topology", batch_per_device: int | None = None) -> "Plan":
    """Compile what the flags describe, or with another batch."""
    from mnv2_jax.plan.plan import imagenet_like, plan_run

    batch = batch_per_device or options.batch_per_device
    training = dataclasses.replace(
        RECIPES[options.recipe],
        batch_size=batch * len(topology.devices),
        batch_norm=options.batch_norm,
        accumulation=options.accumulation,
    )
    model = options.network.settings()
    run = Run("plan", {**model, "unit_strides": model["unit_strides"] or 0}, training, resolution=options.resolution)
    dataset = imagenet_like(options.resolution, options.num_classes, training, model["convention"])
    return plan_run(run, dataset, topology, options.step, options.parallel, title(options, batch))


def title(options: Options, batch: int) -> str:
    """The settings that people compare, and all others that are not the defaults."""
    usual, own, model = _flat(Options()), _flat(options), options.network.settings()
    names = ["recipe", "accumulation", "num_classes", "expansion", "kernel_size", "convention"]
    names += ["output_stride", "unit_strides"]
    others = [name for name in names if own[name] != usual[name]]
    return ", ".join(
        [
            f"{model['name']} {model['width_multiplier']:g}",
            f"{options.resolution} px",
            options.step,
            f"{batch} a chip",
            options.network.dtype,
            f"{options.batch_norm} norm",
            options.parallel,
            *(f"{name.replace('_', ' ')} {own[name]}" for name in others),
        ]
    )


def sweep(options: Options, topology: "Topology", start: "Plan", report: Callable[[str], None]) -> "list[Plan]":
    """Plans up to the largest batch that fits."""
    from mnv2_jax.plan.plan import largest_batch

    def plan_of(batch: int) -> "Plan":
        report(f"Compiling with {batch} images a chip.")
        return plan(options, topology, batch)

    return largest_batch(plan_of, start, options.batch_per_device)


def find_study(path: Path) -> Study:
    """The study that a script describes, with its defaults.

    The script is run up to its definitions: `Options`, a `StudyOptions`, and `create`, which makes a study of them.

    Raises:
        UserError: if there is none, or it describes no study.
    """
    if not path.is_file():
        raise UserError(
            f"--study {path} is no script; name one of yours or of experiments/, which is in the source, not in the wheel"
        )
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # as when it is run: it may import what lies beside it
    try:
        script = runpy.run_path(str(path))
    except Exception as error:  # what may be wrong in it cannot be listed
        raise UserError(f"--study {path} is no script that runs ({type(error).__name__}: {error})") from error
    finally:
        sys.path.remove(folder)
    options, create = script.get("Options"), script.get("create")
    if not (isinstance(options, type) and issubclass(options, StudyOptions) and callable(create)):
        raise UserError(f"--study {path} describes no study: it needs Options, a StudyOptions, and create(options)")
    return create(options())


def advice(plan: "Plan") -> str:
    """By how much a program does not fit, and what would help."""
    needed, room = plan.hbm_bytes / 2**30, plan.chip.usable_bytes / 2**30
    return (
        f"{plan.title} does not fit: it needs {needed:.2f} GiB or more of the {room:.2f} GiB that a {plan.chip.name} gives, "
        f"{needed - room:.2f} GiB too much. A smaller --batch-per-device helps in proportion (--sweep-batch finds it), "
        "so do --accumulation, --dtype bfloat16 and a smaller --width-multiplier or --resolution."
    )


def table(plans: "Sequence[Plan]") -> Table:
    """A column a plan."""
    from mnv2_jax.plan.plan import PARTS

    result = Table("a chip and step", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for each in plans:
        result.add_column(each.title, justify="right", max_width=36)

    def row(name: str, cell: "Callable[[Plan], str]", always: bool = False) -> None:
        result.add_row(name, *(cell(each) if each.fits or always else "-" for each in plans))

    row("slice", lambda p: f"{p.topology.name}, {p.chips} chips used", True)
    row("images a step, all chips", lambda p: f"{p.images:,}", True)
    result.add_section()
    for part, name in PARTS.items():
        if any(each.memory.get(part) for each in plans):
            row(f"{name}, MB", functools.partial(_part, part))
    row("memory needed, MB", lambda p: f"{p.hbm_bytes / 1e6:,.1f}", True)
    row("memory there is, MB", lambda p: f"{p.chip.usable_bytes / 1e6:,.1f}", True)
    row("fits", lambda p: f"yes, {p.hbm_bytes / p.chip.usable_bytes:.0%} full" if p.fits else "no", True)
    result.add_section()
    row("operations, GFLOP", lambda p: f"{p.flops / 1e9:,.2f}")  # type: ignore[operator]
    row("bytes moved, as XLA counts, GB", lambda p: f"{p.bytes_accessed / 1e9:,.3f}")  # type: ignore[operator]
    row("bytes to and from HBM, at least, GB", lambda p: f"{p.traffic_bytes / 1e9:,.3f}")  # type: ignore[operator]
    row("collectives", _collectives)
    result.add_section()
    for part, name in {"compute": "operations", "memory": "bytes to and from HBM", "links": "links"}.items():
        row(f"{name} at the peak, ms", functools.partial(_milliseconds, part))
    row("bound by", lambda p: str(p.bound_by))
    row("images a second, all chips, at most", lambda p: f"{p.images_per_second:,.0f}")
    row("compiled in, s", lambda p: f"{p.compile_seconds:.0f}", True)
    return result


def _part(part: str, plan: "Plan") -> str:
    return f"{plan.memory[part] / 1e6:,.1f}"


def _milliseconds(part: str, plan: "Plan") -> str:
    return f"{plan.seconds()[part] * 1e3:,.3f}"


def _collectives(plan: "Plan") -> str:
    kinds = plan.by_kind().items()
    return "\n".join(f"{each['count']} {kind}, {each['bytes'] / 1e6:,.2f} MB" for kind, each in kinds) or "none"
