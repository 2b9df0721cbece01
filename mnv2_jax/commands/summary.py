"""A network's layers: as the paper's Table 2 writes them, and one by one with their cost for one image.

Parameters are the trainable ones. Multiply-adds are counted as in the paper: batch norm and biases are left
out. Memory is what a layer has to hold at once, its input and its output in float32.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mnv2_jax.settings import NetworkSettings, check_num_classes, check_resolution

if TYPE_CHECKING:
    from mnv2_jax.models.cost import LayerCost, TableRow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this command. What follows a field is its help."""

    network: Annotated[NetworkSettings, tyro.conf.arg(name="")] = NetworkSettings()
    """The network."""
    resolution: int = 224
    """Side of the square images, in pixels."""
    num_classes: int = 1000
    """Outputs of the classifier; 0 leaves it out."""
    json: bool = False
    """Print one JSON object instead of tables."""


def main(options: Options) -> None:
    """Print the network that the flags describe."""
    check_resolution(options.resolution)
    check_num_classes(options.num_classes)

    from mnv2_jax.models.cost import layer_costs, table_rows, units
    from mnv2_jax.models.create import create_model

    size, settings = options.resolution, options.network.settings()
    settings["unit_strides"] = settings["unit_strides"] or 0
    layers = layer_costs(create_model(**settings, num_classes=options.num_classes), (size, size, 3))
    parameters = sum(layer.parameters for layer in layers)
    totals = {
        "parameters": parameters + sum(layer.batch_norm_parameters for layer in layers),
        "parameters_without_batch_norm": parameters,
        "multiply_adds": sum(layer.multiply_adds for layer in layers),
        "peak_activation_bytes": max(layer.activation_bytes() for layer in layers),
        "peak_activation_bytes_by_block": max(unit.activation_bytes() for unit in units(layers)),
    }
    rows = table_rows(layers)
    if options.json:
        described = {
            "model": settings["name"],
            "width_multiplier": settings["width_multiplier"],
            "resolution": size,
            **totals,
            "table": [row._asdict() for row in rows],
            "layers": [layer_as_json(layer) for layer in layers],
        }
        print(json.dumps(described, indent=2))
        return
    # Tables take what they need; a narrow terminal breaks lines rather than numbers.
    console = Console(highlight=False, width=max(200, Console().width))
    console.print(f"{settings['name']}, width {settings['width_multiplier']:g}, {size} pixels\n")
    console.print(paper_table(rows))
    console.print()
    console.print(layer_table(layers))
    console.print()
    console.print(f"parameters                     {totals['parameters']:>13,}")
    console.print(f"  without batch norm           {parameters:>13,}")
    console.print(f"multiply-adds                  {totals['multiply_adds']:>13,}")
    console.print(f"largest layer, in and out      {totals['peak_activation_bytes'] / 1e3:>13,.1f} KB")
    console.print(f"largest block as one operator  {totals['peak_activation_bytes_by_block'] / 1e3:>13,.1f} KB")


def layer_as_json(layer: "LayerCost") -> dict[str, object]:
    """All that is known of a layer."""
    return {**dataclasses.asdict(layer), "operator": layer.operator, "activation_bytes": layer.activation_bytes()}


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def paper_table(rows: "Sequence[TableRow]") -> Table:
    """The network as Table 2 writes it."""
    table = Table("input", "operator", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in "tcns":
        table.add_column(name, justify="right")
    for row in rows:
        expansion = "-" if row.expansion is None else f"{row.expansion:g}"
        stride = "-" if row.stride is None else str(row.stride)
        table.add_row(_shape(row.input_shape), row.operator, expansion, str(row.channels), str(row.repeats), stride)
    return table


def layer_table(layers: "Sequence[LayerCost]") -> Table:
    """A row a layer."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("layer", "operator", "input", "output"):
        table.add_column(name)
    for name in ("stride", "parameters", "batch norm", "multiply-adds", "KB"):
        table.add_column(name, justify="right")
    for layer in layers:
        table.add_row(
            layer.name,
            layer.operator,
            _shape(layer.input_shape),
            _shape(layer.output_shape),
            str(layer.stride),
            f"{layer.parameters:,}",
            f"{layer.batch_norm_parameters:,}",
            f"{layer.multiply_adds:,}",
            f"{layer.activation_bytes() / 1e3:,.1f}",
        )
    return table
