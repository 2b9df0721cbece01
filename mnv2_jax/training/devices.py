"""Compile a function of one run on one device into a program for many runs and devices.

The devices form a mesh with the axes "seed" (independent runs) and "data" (the devices of one run, each with its
slice of the batch). `jit` compiles the function for the whole mesh with `shard_map`; the older `pmap` has only the
axis "data".
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mnv2_jax.errors import UserError
from mnv2_jax.training.config import Parallel
from mnv2_jax.training.step import DATA_AXIS
from mnv2_jax.wording import counted

Run = TypeVar("Run")

SEED = PartitionSpec("seed")
"""For states and results: one entry per run, stacked along the first axis."""
DATA = PartitionSpec(DATA_AXIS)
"""For batches: each device of a run holds a slice of the first axis."""
REPLICATED = PartitionSpec()
"""For arrays that are the same on all devices."""


def group_size(runs: int, devices: int) -> int:
    """Return how many of `runs` runs to train at a time: at most one per device, in groups as even as possible."""
    return -(-runs // -(-runs // devices)) if runs else 0


def run_groups(runs: Sequence[Run], size: int) -> list[tuple[Run, ...]]:
    """Split runs into groups of equal size, so that one program serves them all.

    If they do not divide evenly, the last group repeats its last run on devices that would otherwise be idle.
    """
    groups = [tuple(runs[start : start + size]) for start in range(0, len(runs), max(size, 1))]
    return [group + group[-1:] * (size - len(group)) for group in groups]


def check_divides(batch_size: int, devices: int, accumulation: int, mixup: float = 0) -> None:
    """Check that a batch divides evenly among devices and microbatches, and with mixup into whole pairs.

    Raises:
        UserError: if it does not; names a batch size that would.
    """
    unit = devices * accumulation * (2 if mixup else 1)
    if batch_size % unit:
        parts = f" with {accumulation} microbatches each" if accumulation > 1 else ""
        parts += ", in pairs for --mixup" if mixup else ""
        near = max(unit, round(batch_size / unit) * unit)
        raise UserError(
            f"--batch-size {batch_size} is not divisible by {counted(devices, 'device')}{parts}; use {near}"
        )


class Program(NamedTuple):
    """A function of one run on one device, and what is needed to compile it.

    Attributes:
        function: takes and returns pytrees of one run. It may reduce over `DATA_AXIS`, and its results must be the
            same on all devices of a run.
        specs: `SEED`, `DATA` or `REPLICATED` for each argument.
        arguments: example arguments, or their shapes.
        donate: indices of the arguments whose memory the results may reuse.
        once: whether it runs only once, so that compile time matters more than speed.
    """

    function: Callable
    specs: Sequence[PartitionSpec]
    arguments: Sequence[Any]
    donate: Sequence[int] = ()
    once: bool = False


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a group of runs; compiles programs for them.

    Attributes:
        mesh: with the axes "seed" and "data".
        parallel: "jit", or "pmap" for meshes with one seed.
    """

    mesh: Mesh
    parallel: Parallel = "jit"

    @classmethod
    def create(
        cls,
        runs: int = 1,
        per_run: int | None = None,
        parallel: Parallel = "jit",
        devices: Sequence[jax.Device] | None = None,
    ) -> "Devices":
        """Create a mesh of `runs` x `per_run` devices; None for `per_run` uses as many devices as possible.

        `devices` defaults to all devices of all processes; a topology's devices allow compiling without the hardware.
        """
        devices = jax.devices() if devices is None else devices
        per_run = len(devices) // runs if per_run is None else per_run
        axes = (AxisType.Auto,) * 2
        mesh = jax.make_mesh((runs, per_run), ("seed", DATA_AXIS), axis_types=axes, devices=devices[: runs * per_run])
        return cls(mesh, parallel)

    @property
    def runs(self) -> int:
        """Number of runs trained side by side."""
        return self.mesh.shape["seed"]

    @property
    def per_run(self) -> int:
        """Number of devices per run."""
        return self.mesh.shape[DATA_AXIS]

    @property
    def kind(self) -> str:
        """The vendor's name of the device."""
        return self.mesh.devices.flat[0].device_kind

    def check_divides(self, batch_size: int, accumulation: int, mixup: float = 0) -> None:
        """Call `check_divides` with the number of devices per run."""
        check_divides(batch_size, self.per_run, accumulation, mixup)

    # --- Arrays ----------------------------------------------------------------------------------------

    @property
    def _local_size(self) -> int:
        """Number of devices of this process; all devices of a topology that is only compiled for."""
        return self.mesh.size // jax.process_count()

    def put(self, tree: Any, spec: PartitionSpec) -> Any:
        """Put host arrays on the devices: this process's slice of the axis sharded by `spec`, or whole arrays."""
        if self.parallel == "pmap" and spec == DATA:
            local = self._local_size
            return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(local, -1, *np.shape(leaf)[1:]), tree)
        return self.put_global(tree, spec)

    def put_global(self, tree: Any, spec: PartitionSpec) -> Any:
        """Put host arrays on the devices as global arrays, even under `pmap`; checkpoints need global arrays."""
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)

    def shapes(self, tree: Any, spec: PartitionSpec) -> Any:
        """Return the shapes of what `put` makes of this process's slice of arrays with these global shapes."""
        if self.parallel != "pmap" or spec != DATA:
            return tree
        local, size = self._local_size, self.mesh.size
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((local, leaf.shape[0] // size, *leaf.shape[1:]), leaf.dtype), tree
        )

    # --- Programs --------------------------------------------------------------------------------------

    def lower(self, program: Program) -> jax.stages.Lowered:
        """Lower the program without compiling it."""
        if self.parallel == "pmap":
            return self._pmapped(program).lower(self._spread(), *program.arguments)
        # Runs are independent and the function itself reduces over devices, so there is nothing to check.
        mapped = jax.shard_map(
            _on_device(program), mesh=self.mesh, in_specs=tuple(program.specs), out_specs=SEED, check_vma=False
        )
        return jax.jit(
            mapped,
            in_shardings=tuple(NamedSharding(self.mesh, spec) for spec in program.specs),
            out_shardings=NamedSharding(self.mesh, SEED),
            donate_argnums=tuple(program.donate),
        ).lower(*program.arguments)

    def trace(self, program: Program) -> Callable[[], Callable]:
        """Lower the program and return a function that compiles it, in any thread.

        The compiled program takes arrays as returned by `put`.
        """
        if self.parallel == "pmap" and jax.process_count() > 1:
            # With several processes, pmap compiles only when called, not from shapes.
            pmapped = functools.partial(self._pmapped(program), self._spread())
            return lambda: pmapped
        lowered = self.lower(program)
        options = self._compiler_options(program)

        def finish() -> Callable:
            compiled = lowered.compile(options)
            return functools.partial(compiled, self._spread()) if self.parallel == "pmap" else compiled

        return finish

    def compile(self, program: Program) -> Callable:
        """Lower and compile the program."""
        return self.trace(program)()

    def _compiler_options(self, program: Program) -> Any:
        """Return options for LLVM's -O2 on CPU, or -O1 for a program that runs once.

        -O2 compiles in a quarter less time than XLA's -O3, and the steps are as fast and as exact. Returns None for
        other platforms, whose compilers spend their time elsewhere, and if the user sets a level in XLA_FLAGS.
        """
        flag = "xla_backend_optimization_level"
        if self.mesh.devices.flat[0].platform != "cpu" or flag in os.environ.get("XLA_FLAGS", ""):
            return None
        return {flag: "1" if program.once else "2"}

    def _pmapped(self, program: Program) -> Any:
        """Return the program under `pmap`, with an unused first argument: pmap needs at least one sharded argument."""
        on_device = _on_device(program)
        return jax.pmap(
            lambda _, *arguments: on_device(*arguments),
            axis_name=DATA_AXIS,
            in_axes=(0, *(0 if spec == DATA else None for spec in program.specs)),
            out_axes=None,
            donate_argnums=tuple(position + 1 for position in program.donate),
            devices=list(self.mesh.devices.flat),
        )

    def _spread(self) -> np.ndarray:
        return np.zeros(self._local_size, np.int32)


def _on_device(program: Program) -> Callable:
    """Return the function of one device: strips the leading run axis from arguments and adds it to results."""

    def on_device(*arguments):
        own = [
            jax.tree.map(lambda leaf: leaf[0], argument) if spec == SEED else argument
            for argument, spec in zip(arguments, program.specs, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], program.function(*own))

    return on_device
