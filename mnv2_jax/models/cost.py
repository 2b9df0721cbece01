"""Parameters, multiply-adds and activation memory of a network, layer by layer, from the module itself."""

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
        name: path in the network, such as "block_1/expand"; includes the norm and activation of the layer.
        input_shape, output_shape: without the batch axis.
        kernel_shape: (height, width, inputs, outputs), or (inputs, outputs) for a fully connected layer.
        stride, dilation: in pixels.
        parameters: of the kernel and the bias.
        batch_norm_parameters: scale and bias of the batch norm that follows; running statistics are not counted.
        multiply_adds: of the kernel; batch norm and bias are not counted, as in the paper.
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
        """The kind of layer in the notation of the paper."""
        if len(self.kernel_shape) == 2:
            return "dense"
        height, width, inputs, _ = self.kernel_shape
        kind = "dwise" if inputs == 1 and self.input_shape[-1] > 1 else "conv2d"
        return f"{kind} {height}x{width}"

    def activation_bytes(self, bytes_per_value: int = 4) -> int:
        """Return the bytes of input and output, which are in memory at once; excludes weights (Sec. 5.1, eq. 2)."""
        return (math.prod(self.input_shape) + math.prod(self.output_shape)) * bytes_per_value


@functools.cache
def layer_costs(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[LayerCost, ...]:
    """Return the cost of every layer with a kernel, in execution order, for images of (height, width, channels).

    Multiply-adds are the size of the kernel times the number of output positions. The model runs on abstract shapes
    only, so nothing is computed. Results are cached by model and shape.
    """
    costs: dict[str, LayerCost] = {}

    def record(next_call, args, kwargs, context):
        output = next_call(*args, **kwargs)
        module = context.module
        # A `ConvNorm` owns a convolution "conv" and a norm "norm"; both count for the `ConvNorm`.
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
        # The key is abstract too: a real one would initialise JAX before studies can set the number of devices.
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image_shape))))
    return tuple(costs.values())


def count_multiply_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Return the multiply-adds per image as the paper counts them: 300.8 million for width 1.0 and 224 pixels."""
    return sum(layer.multiply_adds for layer in layer_costs(model, image_shape))


def count_parameters(model: nn.Module, image_shape: tuple[int, int, int], batch_norm: bool = True) -> int:
    """Return the number of trainable parameters; `batch_norm=False` excludes the scale and bias of batch norm.

    Running statistics are never counted. The paper and the table of its checkpoints count without batch norm
    (3.47 million at width 1.0), Keras and torchvision with it (3,504,872).
    """
    layers = layer_costs(model, image_shape)
    return sum(layer.parameters + (layer.batch_norm_parameters if batch_norm else 0) for layer in layers)


# --- In the notation of the paper ------------------------------------------------------------------------


class TableRow(NamedTuple):
    """A row of the paper's Table 2: the operator is repeated `repeats` times, and the first has the `stride`."""

    input_shape: tuple[int, ...]
    operator: str
    expansion: float | None  # t
    channels: int  # c
    repeats: int  # n
    stride: int | None  # s


class Unit(NamedTuple):
    """A block of the network, or a layer outside the blocks; the unit of Table 2."""

    name: str
    layers: tuple[LayerCost, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input without the batch axis."""
        return self.layers[0].input_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output without the batch axis."""
        return self.layers[-1].output_shape

    def activation_bytes(self, bytes_per_value: int = 4) -> int:
        """Return the bytes of input and output, for a unit whose inner tensors are never held whole (Sec. 5.1)."""
        return (math.prod(self.input_shape) + math.prod(self.output_shape)) * bytes_per_value


def units(layers: Sequence[LayerCost]) -> list[Unit]:
    """Group the layers by block."""
    grouped: dict[str, list[LayerCost]] = {}
    for layer in layers:
        grouped.setdefault(layer.name.split("/")[0], []).append(layer)
    return [Unit(name, tuple(members)) for name, members in grouped.items()]


def table_rows(layers: Sequence[LayerCost]) -> list[TableRow]:
    """Return the rows of Table 2 for this network, with its actual channels and strides."""
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
            operator += f" {side}x{side}"  # all 3x3 in the paper
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
