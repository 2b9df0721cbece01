"""Count the channels that are active after each ReLU6, and where a block's expansion is invertible (App. A, Fig. 7).

A block expands a bottleneck of n channels to m = t n, and ReLU6 sets some of them to a constant. The others determine
the bottleneck if at least n channels keep their value and n of their rows of the expansion are linearly independent
(Lemma 2). The lemma is about ReLU, which keeps positive values. ReLU6 also clips at 6, so here a channel keeps its
value if it is strictly between 0 and 6. The paper's figure counts positive channels; this module counts both.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from mnv2_jax.data.batch import Batch
from mnv2_jax.errors import UserError
from mnv2_jax.models.backbone import Backbone
from mnv2_jax.models.blocks import InvertedResidual, NoShortcut, TwoDepthwise, block_name
from mnv2_jax.models.layers import activation_name
from mnv2_jax.models.mobilenet_v2 import MobileNetV2
from mnv2_jax.training.devices import SEED, Devices, Program
from mnv2_jax.training.step import Learner, init_state

CEILINGS = {"relu6": 6.0, "relu": math.inf}
"""Value from which on each activation clips."""

COUNTED = (InvertedResidual, NoShortcut, TwoDepthwise)
"""Blocks in which every layer before the projection outputs its activation, with nothing added."""

RANK_IMAGES = 64
"""Number of images in which the rank is computed, at one position each; see `measure`."""

# --- What is counted --------------------------------------------------------------------------------------


class Counts(NamedTuple):
    """Number of channels at every position: positive ones, and those whose value the activation keeps."""

    positive: Int[Array | np.ndarray, "n h w"]
    kept: Int[Array | np.ndarray, "n h w"]


def count_channels(y: Float[Array, "n h w c"], ceiling: float = 6.0) -> Counts:
    """Count, at every position, the channels that are positive and those strictly between 0 and `ceiling`."""
    return Counts(jnp.sum(y > 0, axis=-1), jnp.sum((y > 0) & (y < ceiling), axis=-1))


def barely_enough(y: Float[Array, "n h w m"], needed: int, ceiling: float = 6.0) -> Bool[Array, "n m"]:
    """Return which channels keep their value at one position per image: that with the fewest, but at least `needed`.

    There the kept rows are most likely to be linearly dependent. An image without such a position gives a row with
    fewer than `needed`.
    """
    kept = ((y > 0) & (y < ceiling)).reshape(y.shape[0], -1, y.shape[-1])
    counts = jnp.sum(kept, axis=-1)
    position = jnp.argmin(jnp.where(counts >= needed, counts, y.shape[-1] + 1), axis=1)
    return jnp.take_along_axis(kept, position[:, None, None], axis=1)[:, 0]


def full_rank(rows: Float[np.ndarray, "n m"], kept: Bool[np.ndarray, "k m"]) -> Bool[np.ndarray, " k"]:
    """Return, for each of k cases, whether the kept ones of m linear functionals determine the n channels (float32).

    Functionals that are not kept are set to zero, which does not affect the rank and gives all cases one shape.
    """
    if not len(kept):
        return np.zeros(0, bool)
    return np.linalg.matrix_rank(np.where(kept[:, None], rows, 0).astype(np.float32)) == len(rows)


# --- The network ------------------------------------------------------------------------------------------


def blocks_of(params: Mapping[str, Any]) -> list[str]:
    """Return the blocks' names, in order."""
    return sorted((name for name in params if name.startswith("block_")), key=lambda name: int(name[6:]))


def relu_layers(params: Mapping[str, Any]) -> list[str]:
    """Return the names of the layers with an activation, in the network's order, as in `endpoints`."""
    layers = ("expand", "depthwise", "depthwise_2")
    inner = [f"{block}/{layer}" for block in blocks_of(params) for layer in layers if layer in params[block]]
    return ["stem", *inner, *(["head"] if "head" in params else [])]


def bottlenecks(params: Mapping[str, Any]) -> dict[str, int]:
    """Return n, the number of bottleneck channels, of each block with an expansion."""
    expanding = [block for block in blocks_of(params) if "expand" in params[block]]
    return {block: params[block]["expand"]["conv"]["kernel"].shape[2] for block in expanding}


def expansion_rows(model: Backbone, variables: Mapping[str, Any], block: str) -> Float[np.ndarray, "n m"]:
    """Return a block's expansion as one linear map with batch norm folded in, one column per expanded channel."""
    layer, statistics = variables["params"][block]["expand"], variables["batch_stats"][block]["expand"]
    epsilon = model.conv_norm(1).epsilon
    slope = np.asarray(layer["norm"]["scale"]) / np.sqrt(np.asarray(statistics["norm"]["var"]) + epsilon)
    return np.asarray(layer["conv"]["kernel"])[0, 0] * slope


def check_network(model: Backbone) -> None:
    """Check that the network has expansions and that the counts are meaningful for its activation and blocks.

    Raises:
        UserError: if not; says why.
    """
    if not isinstance(model, MobileNetV2):
        raise UserError(f"the network is a {type(model).__name__}; only MobileNetV2's blocks expand a bottleneck")
    if model.expansion == 1 or all(stage.expansion == 1 for stage in model.stages):
        raise UserError("the network's expansion is 1, so there are no expansions to invert")
    activation = activation_name(model.activation)
    if activation not in CEILINGS:
        known = " or ".join(CEILINGS)
        raise UserError(f"the network's activation is {activation}; channels are active or inactive only after {known}")
    if model.block not in COUNTED:
        known = ", ".join(block_name(block) for block in COUNTED)
        raise UserError(
            f"the network's blocks are {block_name(model.block)}; channels can be counted only in {known}, whose "
            "layers each output one activation"
        )


def initial_variables(learner: Learner, seed: int, image_shape: tuple[int, int, int]) -> dict[str, PyTree]:
    """Return the initial variables of training with this seed. The batch norm statistics are not meaningful yet."""
    devices = Devices.create()
    runs = {"seed": np.full(1, seed, np.int32)}
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), runs)

    # Compiled as in training, so that it compiles only once if a network is trained as well.
    def init(run):
        return init_state(run["seed"], learner, image_shape)

    state = devices.compile(Program(init, [SEED], [shapes], once=True))(devices.put(runs, SEED))
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)[0]), state.variables())


def with_statistics(model: Backbone, variables: Mapping[str, PyTree], batches: Iterable[Batch]) -> dict[str, PyTree]:
    """Return the variables with batch norm statistics of these images, from one pass in training mode.

    Initial running statistics (mean 0, variance 1) match no layer, so evaluating with them would give a different
    function from the one that is trained. Partial batches are left out.

    Raises:
        UserError: if there is no full batch.
    """
    network = model.clone(batch_norm_momentum=0.0, batch_norm_axis=None, dropout_rate=0.0)

    @jax.jit
    def statistics(variables, images):
        _, updates = network.apply(variables, images, train=True, method="endpoints", mutable=["batch_stats"])
        return updates["batch_stats"]

    def pooled(*norms: Mapping[str, Any]) -> dict[str, Any]:
        """Pool the statistics of batches of equal size, including the variance between their means."""
        means, variances = (np.stack([norm[name] for norm in norms]).astype(np.float64) for name in ("mean", "var"))
        mean = means.mean(axis=0)
        variance = np.maximum((variances + means**2).mean(axis=0) - mean**2, 0)
        return {"mean": jnp.asarray(mean, jnp.float32), "var": jnp.asarray(variance, jnp.float32)}

    variables = _on_one_device(variables)
    found = [jax.device_get(statistics(variables, batch.images)) for batch in batches if np.all(batch.weights)]
    if not found:
        raise UserError("no full batch of images to compute batch norm statistics from")
    stats = jax.tree.map(pooled, *found, is_leaf=lambda node: "mean" in node)
    return {**variables, "batch_stats": stats}


def _on_one_device(variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Move variables to one device, wherever they were, so that one program serves them all."""
    return jax.device_put(jax.device_get(dict(variables)), jax.local_devices()[0])


# --- What is measured -------------------------------------------------------------------------------------


class Share(NamedTuple):
    """Fractions of all positions, and of all images."""

    positions: float
    images: float


@dataclasses.dataclass
class Layer:
    """One activation: the number of positions with 0, 1, ... channels that are positive, and that keep their value."""

    name: str
    positive: Int[np.ndarray, " counts"]
    kept: Int[np.ndarray, " counts"]

    @property
    def channels(self) -> int:
        """Total number of channels."""
        return len(self.positive) - 1

    def add(self, counts: Counts) -> None:
        """Add the counts of more images."""
        self.positive = self.positive + np.bincount(np.ravel(counts.positive), minlength=self.channels + 1)
        self.kept = self.kept + np.bincount(np.ravel(counts.kept), minlength=self.channels + 1)


class Spread(NamedTuple):
    """Statistics of a number of channels over images and positions."""

    minimum: int
    mean: float
    maximum: int
    deviation: float  # standard deviation

    @classmethod
    def of(cls, histogram: Int[np.ndarray, " counts"]) -> "Spread":
        """Compute the statistics from the number of positions with 0, 1, ... channels."""
        counts, there = np.arange(len(histogram)), np.flatnonzero(histogram)
        mean = float(np.average(counts, weights=histogram))
        deviation = math.sqrt(np.average((counts - mean) ** 2, weights=histogram))
        return cls(int(there[0]), mean, int(there[-1]), deviation)


@dataclasses.dataclass
class Block:
    """The expansion of one block: where it can be inverted.

    Attributes:
        name: of the block.
        bottleneck: number of channels before the expansion, n.
        channels: number of channels after the expansion, m.
        images, positions: number of images and positions counted.
        kept: (positions, images) where n channels or more keep their value; images count if this holds everywhere.
        positive: the same for channels that are positive, as in the paper.
        ranks: (checked, full): number of positions where the rank was computed, and where it is n.
    """

    name: str
    bottleneck: int
    channels: int
    images: int = 0
    positions: int = 0
    kept: tuple[int, int] = (0, 0)
    positive: tuple[int, int] = (0, 0)
    ranks: tuple[int, int] = (0, 0)

    def add(self, counts: Counts) -> None:
        """Add the counts of more images."""
        enough = Counts(*(np.asarray(each) >= self.bottleneck for each in counts))
        self.images += len(enough.kept)
        self.positions += enough.kept.size
        self.kept, self.positive = (
            (positions + int(each.sum()), images + int(each.all(axis=(1, 2)).sum()))
            for each, (positions, images) in ((enough.kept, self.kept), (enough.positive, self.positive))
        )

    def share(self, kind: str = "kept") -> Share:
        """Return the fractions with at least n channels that are "kept" or "positive", necessary for inversion."""
        positions, images = getattr(self, kind)
        return Share(positions / self.positions, images / self.images)


class Patterns(NamedTuple):
    """The counts of a network."""

    layers: list[Layer]
    blocks: list[Block]

    def expansions(self) -> list[tuple[Block, Layer]]:
        """Return the blocks with an expansion, each with its expansion layer."""
        layers = {layer.name: layer for layer in self.layers}
        return [(block, layers[f"{block.name}/expand"]) for block in self.blocks]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers and fractions of channels per layer, and the invertible fractions per block."""
        layers = {}
        for layer in self.layers:
            positive, kept = Spread.of(layer.positive)._asdict(), Spread.of(layer.kept)._asdict()
            fractions = {name: value / layer.channels for name, value in positive.items()}
            own = {"positive": positive, "positive_fraction": fractions, "kept": kept}
            layers[layer.name] = {"channels": layer.channels, **own}
        blocks = {
            block.name: {
                "bottleneck": block.bottleneck,
                "channels": block.channels,
                "invertible": block.share()._asdict(),
                "invertible_by_positive": block.share("positive")._asdict(),
                "rank": {"checked": block.ranks[0], "full": block.ranks[1]},
            }
            for block in self.blocks
        }
        return {"layers": layers, "blocks": blocks}


Counter = Callable[[Mapping[str, PyTree], Any], tuple[dict[str, Counts], dict[str, Array]]]


def create_counter(model: Backbone) -> Counter:
    """Compile a function of (variables, images) that returns every layer's counts and every block's `barely_enough`."""
    ceiling = CEILINGS[activation_name(model.activation)]

    @jax.jit
    def count(variables, images):
        ends: Any = model.apply(variables, images, method="endpoints")
        params = variables["params"]
        counts = {name: count_channels(ends[name], ceiling) for name in relu_layers(params)}
        barely = {
            block: barely_enough(ends[f"{block}/expand"], needed, ceiling)
            for block, needed in bottlenecks(params).items()
        }
        return counts, barely

    return count


def measure(
    model: Backbone, variables: Mapping[str, PyTree], batches: Iterable[Batch], counter: Counter | None = None
) -> Patterns:
    """Count the channels of every layer over all positions of all images.

    The rank takes a singular value decomposition, so it is sampled: at one position in each of the first `RANK_IMAGES`
    images, the one where the fewest channels keep their value, but still enough.

    Args:
        model: a network that passes `check_network`.
        variables: its "params" and "batch_stats".
        batches: all of one size; images with weight 0 are ignored.
        counter: `create_counter(model)`, to share it between several sets of variables.
    """
    counter, variables = counter or create_counter(model), _on_one_device(variables)
    params = variables["params"]
    needed = bottlenecks(params)
    rows = {block: expansion_rows(model, variables, block) for block in needed}
    blocks = {block: Block(block, *rows[block].shape) for block in needed}
    layers: dict[str, Layer] = {}
    for batch in batches:
        counts, barely = jax.device_get(counter(variables, batch.images))
        valid = np.asarray(batch.weights) > 0
        for name in relu_layers(params):
            own = Counts(*(each[valid] for each in counts[name]))
            if name not in layers:
                zeros = np.zeros(_channels(params, name) + 1, np.int64)
                layers[name] = Layer(name, zeros, zeros)
            layers[name].add(own)
            block = blocks.get(name.removesuffix("/expand"))
            if block is not None:
                left = max(0, RANK_IMAGES - block.images)
                block.add(own)
                kept = barely[block.name][valid][:left]
                full = full_rank(rows[block.name], kept[kept.sum(axis=1) >= block.bottleneck])
                block.ranks = block.ranks[0] + len(full), block.ranks[1] + int(full.sum())
    return Patterns(list(layers.values()), list(blocks.values()))


def _channels(params: Mapping[str, Any], name: str) -> int:
    """Return the number of channels of a layer, by its name in `endpoints`."""
    layer: Any = params
    for part in name.split("/"):
        layer = layer[part]
    return layer["conv"]["kernel"].shape[-1]
