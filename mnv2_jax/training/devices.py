"""How a function of one run on one device becomes a program for many runs and devices.

The devices form a mesh with the axes "seed" (runs that know nothing of each other) and "data" (the devices of one
run, each with its share of the batch). `jit` compiles the function for all of them with `shard_map`; `pmap`, its
older form, has the axis "data" only.
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
"""Of the state and of results: each run has its own, stacked along a first axis."""
DATA = PartitionSpec(DATA_AXIS)
"""Of a batch: each device of a run has its share of the first axis."""
REPLICATED = PartitionSpec()
"""Of what all devices share."""


def group_size(runs: int, devices: int) -> int:
    """How many of `runs` runs are trained at a time: at most one a device, and in groups as even as can be."""
    return -(-runs // -(-runs // devices)) if runs else 0


def run_groups(runs: Sequence[Run], size: int) -> list[tuple[Run, ...]]:
    """Split runs into groups of one size, so that one program serves them all.

    Where they do not divide evenly the last group repeats its last run, on devices that would stand idle.
    """
    groups = [tuple(runs[start : start + size]) for start in range(0, len(runs), max(size, 1))]
    return [group + group[-1:] * (size - len(group)) for group in groups]


def check_divides(batch_size: int, devices: int, accumulation: int, mixup: float = 0) -> None:
    """Refuse a batch that so many devices cannot share equally, or with mixup not in whole pairs.

    Raises:
        UserError: says which batch would do.
    """
    unit = devices * accumulation * (2 if mixup else 1)
    if batch_size % unit:
        parts = f" with {accumulation} microbatches each" if accumulation > 1 else ""
        parts += ", in pairs for --mixup" if mixup else ""
        near = max(unit, round(batch_size / unit) * unit)
        raise UserError(
            f"--batch-size {batch_size} does not divide by {counted(devices, 'device')}{parts}; take {near}"
        )


class Program(NamedTuple):
    """A function of one run on one device, and what it takes to compile it.

    Attributes:
        function: takes and returns pytrees of one run; `DATA_AXIS` is there to be summed over, and what it returns
            must be the same on all devices of a run.
        specs: `SEED`, `DATA` or `REPLICATED` for each argument.
        arguments: like the ones to come, or their shapes.
        donate: positions of arguments whose memory the result may take.
        once: whether it runs once, so that it had better be compiled soon than run fast.
    """

    function: Callable
    specs: Sequence[PartitionSpec]
    arguments: Sequence[Any]
    donate: Sequence[int] = ()
    once: bool = False


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a group of runs, and how programs are compiled for them.

    Attributes:
        mesh: of the axes "seed" and "data".
        parallel: "jit", or "pmap" for meshes of one seed.
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
        """A mesh of `runs` times `per_run` devices; as many a run as there are if `per_run` is None.

        `devices` are this machine's if not given, or those of a topology that is compiled for and not there.
        """
        devices = jax.devices() if devices is None else devices
        per_run = len(devices) // runs if per_run is None else per_run
        axes = (AxisType.Auto,) * 2
        mesh = jax.make_mesh((runs, per_run), ("seed", DATA_AXIS), axis_types=axes, devices=devices[: runs * per_run])
        return cls(mesh, parallel)

    @property
    def runs(self) -> int:
        """Runs that are trained side by side."""
        return self.mesh.shape["seed"]

    @property
    def per_run(self) -> int:
        """Devices of each run."""
        return self.mesh.shape[DATA_AXIS]

    @property
    def kind(self) -> str:
        """What a device is, as its maker calls it."""
        return self.mesh.devices.flat[0].device_kind

    def check_divides(self, batch_size: int, accumulation: int, mixup: float = 0) -> None:
        """See `check_divides`."""
        check_divides(batch_size, self.per_run, accumulation, mixup)

    # --- Arrays ----------------------------------------------------------------------------------------

    @property
    def _local_size(self) -> int:
        """Devices of this process; of a topology that is compiled for, all."""
        return self.mesh.size // jax.process_count()

    def put(self, tree: Any, spec: PartitionSpec) -> Any:
        """Put arrays of the host on the devices: this process's rows of the axis that `spec` spreads, or the whole."""
        if self.parallel == "pmap" and spec == DATA:
            local = self._local_size
            return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(local, -1, *np.shape(leaf)[1:]), tree)
        return self.put_global(tree, spec)

    def put_global(self, tree: Any, spec: PartitionSpec) -> Any:
        """Put arrays of the host on the devices as arrays of all processes, also under `pmap`; checkpoints hold such."""
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)

    def shapes(self, tree: Any, spec: PartitionSpec) -> Any:
        """What `put` makes of arrays of these shapes, of which this process has its share."""
        if self.parallel != "pmap" or spec != DATA:
            return tree
        local, size = self._local_size, self.mesh.size
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((local, leaf.shape[0] // size, *leaf.shape[1:]), leaf.dtype), tree
        )

    # --- Programs --------------------------------------------------------------------------------------

    def lower(self, program: Program) -> jax.stages.Lowered:
        """The program before it is compiled."""
        if self.parallel == "pmap":
            return self._pmapped(program).lower(self._spread(), *program.arguments)
        # No run depends on another, and what is summed over devices is the function's business: nothing to check.
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
        """Lower the program; what this returns compiles it, in any thread. The compiled one takes what `put` returns."""
        if self.parallel == "pmap" and jax.process_count() > 1:
            # Of several processes' pmap only a call can be compiled, not shapes.
            pmapped = functools.partial(self._pmapped(program), self._spread())
            return lambda: pmapped
        lowered = self.lower(program)
        options = self._compiler_options(program)

        def finish() -> Callable:
            compiled = lowered.compile(options)
            return functools.partial(compiled, self._spread()) if self.parallel == "pmap" else compiled

        return finish

    def compile(self, program: Program) -> Callable:
        """`trace`, compiled at once."""
        return self.trace(program)()

    def _compiler_options(self, program: Program) -> Any:
        """LLVM's -O2 on CPU: a quarter less time to compile than XLA's -O3, for steps that are as fast and as exact.

        Other platforms' compilers spend their time elsewhere, and a level in XLA_FLAGS is the user's choice.
        """
        flag = "xla_backend_optimization_level"
        if self.mesh.devices.flat[0].platform != "cpu" or flag in os.environ.get("XLA_FLAGS", ""):
            return None
        return {flag: "1" if program.once else "2"}

    def _pmapped(self, program: Program) -> Any:
        """By `pmap`, which wants one argument at least that is spread over the devices: the first, which nothing uses."""
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
    """What a device does: the function of one run, on arguments and results with a first axis of runs."""

    def on_device(*arguments):
        own = [
            jax.tree.map(lambda leaf: leaf[0], argument) if spec == SEED else argument
            for argument, spec in zip(arguments, program.specs, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], program.function(*own))

    return on_device
