"""What a network costs: parameters, multiply-adds and activation memory, layer by layer, read off the module itself."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """The cost of one convolution or fully connected layer for one image.

    Attributes:
        name: its path in the network, "block_1/expand"; a layer's norm and activation belong to it.
        input_shape, output_shape: without the batch axis.
        kernel_shape: (height, width, inputs, outputs), or (inputs, outputs) of a fully connected layer.
        stride, dilation: in pixels.
        parameters: of the kernel and the bias.
        batch_norm_parameters: scale and bias of the batch norm behind it; its running statistics are none.
        multiply_adds: of the kernel, as the paper counts them: batch norm and bias are left out.
    """

    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    stride: int
    dilation: int
    parameters: int
    batch_norm_parameters: int
    multiply_adds: int

    @property
    def operator(self) -> str:
        """What the layer is, as the paper writes it."""
        if len(self.kernel_shape) == 2:
            return "dense"
        height, width, inputs, _ = self.kernel_shape
        kind = "dwise" if inputs == 1 and self.input_shape[-1] > 1 else "conv2d"
        return f"{kind} {height}x{width}"

    def activation_bytes(self, bytes_per_value: int = 4) -> int:
        """Input and output of the layer: what it has to hold at once, weights left out (Sec. 5.1, eq. 2)."""
        return (math.prod(self.input_shape) + math.prod(self.output_shape)) * bytes_per_value


@functools.cache
def layer_costs(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[LayerCost, ...]:
    """Cost of every layer with a kernel, in the order in which they run, for images of (height, width, channels).

    A kernel meets every output position once, so its multiply-adds are its size times the positions. Nothing
    is computed: the model runs on abstract shapes, once for each model and shape.
    """
    costs: dict[str, LayerCost] = {}

    def record(next_call, args, kwargs, context):
        output = next_call(*args, **kwargs)
        module = context.module
        # A convolution and its norm are called "conv" and "norm" in the layer that owns both.
        owner = "/".join(module.path[:-1] if module.path[-1:] in [("conv",), ("norm",)] else module.path)
        if context.method_name != "__call__":
            return output
        if module.has_variable("params", "scale"):
            size = sum(value.size for value in module.variables["params"].values())
            costs[owner] = dataclasses.replace(costs[owner], batch_norm_parameters=size)
        if not module.has_variable("params", "kernel"):
            return output
        sizes = {name: value.size for name, value in module.variables["params"].items()}
        shape = output.shape[1:]
        costs[owner] = LayerCost(
            name=owner,
            input_shape=args[0].shape[1:],
            output_shape=shape,
            kernel_shape=module.get_variable("params", "kernel").shape,
            stride=getattr(module, "stride", 1),
            dilation=getattr(module, "dilation", 1),
            parameters=sum(sizes.values()),
            batch_norm_parameters=0,
            multiply_adds=sizes["kernel"] * math.prod(shape[:-1]),
        )
        return output

    with nn.intercept_methods(record):
        # All of it abstract: even a key would start JAX's devices, of which studies ask for several first.
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image_shape))))
    return tuple(costs.values())


def count_multiply_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of one image, as the paper counts them: 300.8 million at width 1.0 and 224 pixels."""
    return sum(layer.multiply_adds for layer in layer_costs(model, image_shape))


def count_parameters(model: nn.Module, image_shape: tuple[int, int, int], batch_norm: bool = True) -> int:
    """Trainable parameters. Running statistics are none; `batch_norm=False` leaves scale and bias out as well.

    The paper and its checkpoints' table count without batch norm (3.47 million at width 1.0), Keras and
    torchvision with it (3,504,872).
    """
    layers = layer_costs(model, image_shape)
    return sum(layer.parameters + (layer.batch_norm_parameters if batch_norm else 0) for layer in layers)


# --- As the paper writes it ------------------------------------------------------------------------------


class TableRow(NamedTuple):
    """A row of the paper's Table 2: `repeats` times the same operator, the first of which has the `stride`."""

    input_shape: tuple[int, ...]
    operator: str
    expansion: float | None  # t
    channels: int  # c
    repeats: int  # n
    stride: int | None  # s


class Unit(NamedTuple):
    """A block of the network, or a layer outside of blocks: what Table 2 counts."""

    name: str
    layers: tuple[LayerCost, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Without the batch axis."""
        return self.layers[0].input_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Without the batch axis."""
        return self.layers[-1].output_shape

    def activation_bytes(self, bytes_per_value: int = 4) -> int:
        """Input and output of the unit as one operator, whose inner tensors are never held whole (Sec. 5.1)."""
        return (math.prod(self.input_shape) + math.prod(self.output_shape)) * bytes_per_value


def units(layers: Sequence[LayerCost]) -> list[Unit]:
    """The layers by block."""
    grouped: dict[str, list[LayerCost]] = {}
    for layer in layers:
        grouped.setdefault(layer.name.split("/")[0], []).append(layer)
    return [Unit(name, tuple(members)) for name, members in grouped.items()]


def table_rows(layers: Sequence[LayerCost]) -> list[TableRow]:
    """The network as Table 2 writes it, with the channels and strides that it really has."""
    rows: list[TableRow] = []
    every = units(layers)
    for index, unit in enumerate(every):
        first, last = unit.layers[0], unit.layers[-1]
        stride = math.prod(layer.stride for layer in unit.layers)
        expansion = None
        if len(unit.layers) == 1:
            operator = first.operator
        elif last.name.endswith("/project"):
            operator, expansion = "bottleneck", last.kernel_shape[2] / unit.input_shape[-1]
        else:
            operator = "depthwise separable"
        side = max(layer.kernel_shape[0] for layer in unit.layers)
        if len(unit.layers) > 1 and side != 3:
            operator += f" {side}x{side}"  # the paper's are all 3x3
        channels = last.output_shape[-1]
        if operator == "dense":
            height, width, _ = features = every[index - 1].output_shape
            rows.append(TableRow(features, f"avgpool {height}x{width}", None, features[-1], 1, None))
            rows.append(TableRow((1, 1, features[-1]), "conv2d 1x1", None, channels, 1, None))
        elif rows and stride == 1 and rows[-1][1:4] == (operator, expansion, channels):
            rows[-1] = rows[-1]._replace(repeats=rows[-1].repeats + 1)
        else:
            rows.append(TableRow(unit.input_shape, operator, expansion, channels, 1, stride))
    return rows
