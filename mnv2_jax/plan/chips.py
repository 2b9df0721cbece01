"""Rentable TPUs: figures of the chips, shapes of the slices, and the compiler for them."""

import dataclasses
import fnmatch
import os
import re
from collections.abc import Sequence
from importlib import metadata
from math import prod

import jax

from mnv2_jax.errors import UserError

GIBIBYTE = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU chip's peak figures and slices.

    Attributes:
        name: name of the generation.
        flops: peak bfloat16 FLOP/s. By default XLA multiplies float32 matrices in bfloat16 too.
        usable_bytes: high-bandwidth memory that a program can use, from the compiler's error messages (libtpu 0.0.42).
        hbm_bandwidth: bytes per second.
        link_bandwidth: bytes per second over all links to other chips, in one direction.
        slices: shapes of the slices on offer (chips along each axis), smaller ones first.
        source: source of the figures.
        config: the compiler's name for the configuration in which a chip's two cores are one device; None for the
            default configuration.
        rented: prefix of the names under which slices are rented, "v5litepod" in "v5litepod-8"; `name` if None.
        cores: cores per chip, if those names count cores; else 1.
    """

    name: str
    flops: float
    usable_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    slices: tuple[str, ...]
    source: str
    config: str | None = None
    rented: str | None = None
    cores: int = 1

    def units(self, shape: str) -> int:
        """Return the number in a slice's rented name: its chips, or its cores."""
        return count_chips(shape) * self.cores

    def rented_name(self, shape: str) -> str:
        """Return the name under which a slice is rented: "v5litepod-8" for 2x4, "v4-8" for 2x2x1."""
        return f"{self.rented or self.name}-{self.units(shape)}"


def count_chips(shape: str) -> int:
    """Return the number of chips in a slice's shape, such as "2x4"."""
    return prod(int(side) for side in shape.split("x"))


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SOLID = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")

CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4",
            275e12,
            int(30.75 * GIBIBYTE),
            1.2e12,
            2.7e11,
            _SOLID,
            "cloud.google.com/tpu/docs/v4; links: jax-ml.github.io/scaling-book/tpus (6 of 45 GB/s)",
            "megacore",
            cores=2,
        ),
        Chip(
            "v5e",
            197e12,
            int(15.75 * GIBIBYTE),
            8.19e11,
            2e11,
            _FLAT,
            "cloud.google.com/tpu/docs/v5e (links: 400 GB/s in both directions together)",
            rented="v5litepod",
        ),
        Chip(
            "v5p",
            459e12,
            int(95.74 * GIBIBYTE),
            2.765e12,
            6e11,
            _SOLID,
            "cloud.google.com/tpu/docs/v5p (links: 1200 GB/s in both directions together)",
            cores=2,
        ),
        Chip(
            "v6e",
            918e12,
            int(31.25 * GIBIBYTE),
            1.638e12,
            4e11,
            _FLAT,
            "cloud.google.com/tpu/docs/v6e (links: 800 GB/s in both directions together)",
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A TPU slice that programs are compiled for.

    Attributes:
        chip: the kind of chip.
        shape: chips along each axis, such as "2x4".
        devices: one per chip.
    """

    chip: Chip
    shape: str
    devices: Sequence[jax.Device]

    @property
    def name(self) -> str:
        """The compiler's name for it, such as "v5e:2x4"."""
        return f"{self.chip.name}:{self.shape}"


def required_libtpu() -> str:
    """Return the libtpu version that the installed JAX requires, such as "0.0.42.*"; "*" if it states none."""
    for requirement in metadata.requires("jax") or []:
        found = re.match(r"libtpu\s*==\s*([\w.*]+)", requirement)
        if found:
            return found[1]
    return "*"


def check_compiler() -> str:
    """Return the version of the TPU compiler.

    Raises:
        UserError: if it is missing, or not the version that JAX requires; says which to install.
    """
    required = required_libtpu()
    cure = f"jax {jax.__version__} requires libtpu {required}: pip install 'libtpu=={required}'"
    try:
        installed = metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        raise UserError(f"planning needs the TPU compiler, which is not installed; {cure}") from None
    if not fnmatch.fnmatch(installed, required):
        raise UserError(f"the TPU compiler is libtpu {installed}; {cure}")
    return installed


def find_slice(name: str) -> tuple[Chip, str]:
    """Return (chip, shape) of a slice, given as CHIP:SHAPE ("v5e:2x4") or by its rented name ("v5litepod-8").

    Rented names count chips for v5e and v6e, and cores, two per chip, for v4 and v5p
    (cloud.google.com/tpu/docs/v4 and the pages of the others).

    Raises:
        UserError: for a slice that is not offered; lists those that are, in both forms.
    """
    for chip in CHIPS.values():
        for shape in chip.slices:
            if name in (f"{chip.name}:{shape}", chip.rented_name(shape), f"{chip.name}-{chip.units(shape)}"):
                return chip, shape
    start = re.split("[:-]", name)[0]
    chips = [chip for chip in CHIPS.values() if start in (chip.name, chip.rented) and start != name]
    if not chips:
        raise UserError(
            "--topology must be an accelerator type (v4-8, v5litepod-8, v5p-8, v6e-8) or CHIP:SHAPE (v5e:2x4), where CHIP "
            f"is one of {', '.join(CHIPS)}; got {name!r}"
        )
    (chip,) = chips
    offered = ", ".join(f"{chip.rented_name(shape)} ({chip.name}:{shape})" for shape in chip.slices)
    counted_in = f"; accelerator types count cores, {chip.cores} per chip" if chip.cores > 1 else ""
    raise UserError(f"--topology {name} is not an available slice; choose from {offered}{counted_in}")


def open_topology(name: str) -> Topology:
    """Open a slice by name, without TPUs; from then on this process computes on the CPU.

    Raises:
        UserError: as in `find_slice` and `check_compiler`, or if the compiler does not open the slice.
    """
    chip, shape = find_slice(name)
    check_compiler()
    jax.config.update("jax_platforms", "cpu")
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # this is no TPU host
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # compiling uses no TPU, so other processes may load libtpu too
        "TPU_LOG_DIR": "disabled",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    options: dict[str, object] = {} if chip.config is None else {"chip_config_name": chip.config}
    if count_chips(shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    name = f"{chip.name}:{shape}"
    try:
        description = topologies.get_topology_desc(name, platform="tpu", **options)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the TPU compiler cannot open {name} ({reason})") from error
    return Topology(chip, shape, description.devices)
