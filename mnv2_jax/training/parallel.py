"""How a function of one run becomes a program for several: seeds are spread over a mesh of devices."""

from collections.abc import Callable, Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

SEED = PartitionSpec("seed")
REPLICATED = PartitionSpec()


def seed_groups(seeds: Sequence[int], devices: int) -> list[tuple[int, ...]]:
    """Split seeds into groups of one size, at most one seed a device, so that one program serves them all.

    Where they do not divide evenly the last group repeats its last seed, on devices that would stand idle.
    """
    count = -(-len(seeds) // devices)
    size = -(-len(seeds) // count) if count else 0
    groups = [tuple(seeds[start : start + size]) for start in range(0, len(seeds), max(size, 1))]
    return [group + group[-1:] * (size - len(group)) for group in groups]


def seed_mesh(size: int) -> Mesh:
    """A mesh of `size` devices along the axis "seed"."""
    return jax.make_mesh((size,), ("seed",), axis_types=(AxisType.Auto,), devices=jax.devices()[:size])


def over_seeds(
    function: Callable, mesh: Mesh, in_specs: Sequence[PartitionSpec], donate: Sequence[int] = ()
) -> jax.stages.Wrapped:
    """Compile a function of one run to a function of one run on each device of the mesh.

    Args:
        function: takes and returns pytrees of one run.
        mesh: from `seed_mesh`.
        in_specs: `SEED` for an argument that each run has its own of, stacked along a new first axis;
            `REPLICATED` for one that all share.
        donate: positions of arguments whose memory the result may take.
    """

    def on_device(*arguments):
        own = [
            jax.tree.map(lambda leaf: leaf[0], argument) if spec == SEED else argument
            for argument, spec in zip(arguments, in_specs, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*own))

    # No run depends on another, so there is nothing for shard_map to check across the axis.
    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=tuple(in_specs), out_specs=SEED, check_vma=False)
    return jax.jit(
        mapped,
        in_shardings=tuple(NamedSharding(mesh, spec) for spec in in_specs),
        out_shardings=NamedSharding(mesh, SEED),
        donate_argnums=tuple(donate),
    )
