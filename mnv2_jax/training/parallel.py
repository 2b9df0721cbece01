"""How a function of one run on one device becomes a program for many runs and devices.

The devices form a mesh with the axes "seed" (runs that know nothing of each other) and "data" (the devices of one
run, each with its part of the batch). `jit` compiles the function for all of them with `shard_map`; `pmap`, its
older form, has the axis "data" only.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mnv2_jax.errors import UserError
from mnv2_jax.training.config import Parallel
from mnv2_jax.training.step import DATA_AXIS

Run = TypeVar("Run")

SEED = PartitionSpec("seed")
"""Of the state and of results: each run has its own, stacked along a first axis."""
DATA = PartitionSpec(DATA_AXIS)
"""Of a batch: each device of a run has its part of the first axis."""
REPLICATED = PartitionSpec()
"""Of what all devices share."""


def group_size(runs: int, devices: int) -> int:
    """How many of so many runs are trained at a time: at most one a device, and in groups as even as can be."""
    return -(-runs // -(-runs // devices)) if runs else 0


def run_groups(runs: Sequence[Run], size: int) -> list[tuple[Run, ...]]:
    """Split runs into groups of one size, so that one program serves them all.

    Where they do not divide evenly the last group repeats its last run, on devices that would stand idle.
    """
    groups = [tuple(runs[start : start + size]) for start in range(0, len(runs), max(size, 1))]
    return [group + group[-1:] * (size - len(group)) for group in groups]


def create_mesh(seeds: int = 1, data: int | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `seeds` times `data` devices; all there are for one run if `data` is None.

    `devices` are this machine's if not given, or those of a topology that is compiled for and not there.
    """
    devices = jax.devices() if devices is None else devices
    data = len(devices) // seeds if data is None else data
    axes = (AxisType.Auto,) * 2
    return jax.make_mesh((seeds, data), ("seed", DATA_AXIS), axis_types=axes, devices=devices[: seeds * data])


def check_divides(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Refuse a batch of which the devices' parts are not equal.

    Raises:
        UserError: says which batch would do.
    """
    unit = mesh.shape[DATA_AXIS] * accumulation
    if batch_size % unit:
        parts = f" with {accumulation} accumulated parts each" if accumulation > 1 else ""
        near = max(unit, round(batch_size / unit) * unit)
        raise UserError(
            f"--batch-size {batch_size} does not divide by {unit // accumulation} devices{parts}; take {near}"
        )


def lower_program(
    function: Callable,
    mesh: Mesh,
    specs: Sequence[PartitionSpec],
    arguments: Sequence[Any],
    donate: Sequence[int] = (),
    parallel: Parallel = "jit",
) -> jax.stages.Lowered:
    """A function of one run on one device as a program for the devices of a mesh, before it is compiled.

    Args:
        function: takes and returns pytrees of one run; `DATA_AXIS` is there to be summed over, and what it
            returns must be the same on all devices of a run.
        mesh: from `create_mesh`.
        specs: `SEED`, `DATA` or `REPLICATED` for each argument.
        arguments: like the ones to come, or their shapes.
        donate: positions of arguments whose memory the result may take.
        parallel: "pmap" for meshes of one seed.
    """
    if parallel == "pmap":
        return _pmapped(function, specs, donate, mesh).lower(_spread(mesh), *arguments)
    # No run depends on another, and what is summed over devices is the function's business: nothing to check.
    mapped = jax.shard_map(
        _of_one_run(function, specs), mesh=mesh, in_specs=tuple(specs), out_specs=SEED, check_vma=False
    )
    return jax.jit(
        mapped,
        in_shardings=tuple(NamedSharding(mesh, spec) for spec in specs),
        out_shardings=NamedSharding(mesh, SEED),
        donate_argnums=tuple(donate),
    ).lower(*arguments)


def _of_one_run(function: Callable, specs: Sequence[PartitionSpec]) -> Callable:
    """What a device does: a function of one run, on arguments and results with a first axis of runs."""

    def on_device(*arguments):
        own = [
            jax.tree.map(lambda leaf: leaf[0], argument) if spec == SEED else argument
            for argument, spec in zip(arguments, specs, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*own))

    return on_device


def _pmapped(function: Callable, specs: Sequence[PartitionSpec], donate: Sequence[int], mesh: Mesh) -> Any:
    """By `pmap`, which wants one argument at least that is spread over the devices: the first, which nothing uses."""
    on_device = _of_one_run(function, specs)
    return jax.pmap(
        lambda _, *arguments: on_device(*arguments),
        axis_name=DATA_AXIS,
        in_axes=(0, *(0 if spec == DATA else None for spec in specs)),
        out_axes=None,
        donate_argnums=tuple(position + 1 for position in donate),
        devices=list(mesh.devices.flat),
    )


def _local_size(mesh: Mesh) -> int:
    """Devices of this process; of a topology that is compiled for, all."""
    return mesh.size // jax.process_count()


def _spread(mesh: Mesh) -> np.ndarray:
    return np.zeros(_local_size(mesh), np.int32)


def trace_program(
    function: Callable,
    mesh: Mesh,
    specs: Sequence[PartitionSpec],
    arguments: Sequence[Any],
    donate: Sequence[int] = (),
    parallel: Parallel = "jit",
    once: bool = False,
) -> Callable[[], Callable]:
    """`lower_program`, and what compiles it, in any thread. The arguments of the result come from `place`.

    Args:
        function, mesh, specs, arguments, donate, parallel: see `lower_program`.
        once: it will run once, so that it had better be compiled soon than run fast.
    """
    if parallel == "pmap" and jax.process_count() > 1:
        # Of several processes' pmap only a call can be compiled, not shapes.
        program = functools.partial(_pmapped(function, specs, donate, mesh), _spread(mesh))
        return lambda: program
    lowered = lower_program(function, mesh, specs, arguments, donate, parallel)
    # LLVM's -O2 takes a quarter less time than XLA's default, -O3, for steps that are as fast; the numbers are the
    # same. Other platforms' compilers spend their time elsewhere.
    level = "1" if once else "2"
    options: Any = {"xla_backend_optimization_level": level} if mesh.devices.flat[0].platform == "cpu" else None

    def finish() -> Callable:
        compiled = lowered.compile(options)
        return functools.partial(compiled, _spread(mesh)) if parallel == "pmap" else compiled

    return finish


def compile_program(
    function: Callable,
    mesh: Mesh,
    specs: Sequence[PartitionSpec],
    arguments: Sequence[Any],
    donate: Sequence[int] = (),
) -> Callable:
    """`trace_program`, compiled at once."""
    return trace_program(function, mesh, specs, arguments, donate)()


def shapes_of(tree: Any, mesh: Mesh, spec: PartitionSpec, parallel: Parallel = "jit") -> Any:
    """What `place` makes of arrays of these shapes, of which this process has its part."""
    if parallel != "pmap" or spec != DATA:
        return tree
    local, devices = _local_size(mesh), mesh.size
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((local, leaf.shape[0] // devices, *leaf.shape[1:]), leaf.dtype), tree
    )


def place(tree: Any, mesh: Mesh, spec: PartitionSpec, parallel: Parallel = "jit") -> Any:
    """Put arrays of the host on the devices: this process's rows of the axis that `spec` spreads, or the whole."""
    if parallel == "pmap" and spec == DATA:
        local = _local_size(mesh)
        return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(local, -1, *np.shape(leaf)[1:]), tree)
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)
