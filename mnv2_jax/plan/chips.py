"""TPUs as one rents them: the chips' figures, the shapes that slices have, and the compiler for them."""

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
    """The peak figures of a chip.

    Attributes:
        name: of the generation.
        flops: bfloat16 operations a second. XLA multiplies float32 matrices in bfloat16 too, unless told otherwise.
        usable_bytes: of high-bandwidth memory that the compiler gives a program; from its own errors (libtpu 0.0.42).
        hbm_bandwidth: bytes a second.
        link_bandwidth: bytes a second over all links to other chips, in one direction.
        slices: numbers of chips along each axis that are offered, smaller ones first.
        source: of the figures.
        config: the compiler's name for its cores taken as one device, where there are two.
        rented: how the names begin by which its slices are rented, "v5litepod" of "v5litepod-8"; `name` if None.
        cores: of a chip, as those names count.
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
        """Of a slice, as the names by which slices are rented count: chips, or cores."""
        return count_chips(shape) * self.cores

    def rented_name(self, shape: str) -> str:
        """The name by which a slice is rented: "v5litepod-8" of 2x4, "v4-8" of 2x2x1."""
        return f"{self.rented or self.name}-{self.units(shape)}"


def count_chips(shape: str) -> int:
    """Of a slice's shape, "2x4"."""
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
    """A slice that programs are compiled for.

    Attributes:
        chip: what it is made of.
        shape: chips along each axis, "2x4".
        devices: one a chip.
    """

    chip: Chip
    shape: str
    devices: Sequence[jax.Device]

    @property
    def name(self) -> str:
        """As the compiler calls it, "v5e:2x4"."""
        return f"{self.chip.name}:{self.shape}"


def required_libtpu() -> str:
    """The versions of libtpu that belong to the JAX in use, "0.0.42.*" for instance."""
    for requirement in metadata.requires("jax") or []:
        found = re.match(r"libtpu\s*==\s*([\w.*]+)", requirement)
        if found:
            return found[1]
    return "*"


def check_compiler() -> str:
    """The version of the TPU compiler.

    Raises:
        UserError: if it is missing, or is another than JAX's; says which to install.
    """
    required = required_libtpu()
    cure = f"jax {jax.__version__} goes with libtpu {required}: pip install 'libtpu=={required}'"
    try:
        installed = metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        raise UserError(f"planning needs the TPU compiler, which is not installed; {cure}") from None
    if not fnmatch.fnmatch(installed, required):
        raise UserError(f"the TPU compiler is libtpu {installed}; {cure}")
    return installed


def find_slice(name: str) -> tuple[Chip, str]:
    """(the chip, the shape) of a slice: CHIP:SHAPE, "v5e:2x4", or as it is rented, "v5litepod-8".

    The names for renting count chips of v5e and v6e, and cores of v4 and v5p, of which a chip has two
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
            "--topology must be a slice by the name that it is rented by (v4-8, v5litepod-8, v5p-8, v6e-8) or as "
            f"CHIP:SHAPE (v5e:2x4) with a chip of {', '.join(CHIPS)}; got {name!r}"
        )
    (chip,) = chips
    offered = ", ".join(f"{chip.rented_name(shape)} ({chip.name}:{shape})" for shape in chip.slices)
    counted_in = f"; the first count cores, {chip.cores} a chip" if chip.cores > 1 else ""
    raise UserError(f"--topology {name} is no slice that is offered; there are {offered}{counted_in}")


def open_topology(name: str) -> Topology:
    """A slice by its name, without a TPU; no TPU is started, and this process computes on the CPU from now on.

    Raises:
        UserError: see `find_slice`; or without the compiler that fits.
    """
    chip, shape = find_slice(name)
    check_compiler()
    jax.config.update("jax_platforms", "cpu")
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # this is no TPU host
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # compiling is nobody's business but ours
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
        raise UserError(f"the TPU compiler does not open {name} ({reason})") from error
    return Topology(chip, shape, description.devices)
