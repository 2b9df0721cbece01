"""Show a network's layers: as in the paper's Table 2, and one by one with their cost for one image.

Only trainable parameters count. Multiply-adds are counted as in the paper, without batch norm and biases. Memory is a
layer's input plus its output in float32.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mnv2_jax.errors import UserError
from mnv2_jax.settings import NetworkSettings, check_num_classes, check_resolution
from mnv2_jax.wording import counted

if TYPE_CHECKING:
    from mnv2_jax.models.cost import LayerCost, TableRow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this command. The string below each field is its help text."""

    network: Annotated[NetworkSettings, tyro.conf.arg(name="")] = NetworkSettings()
    """The network."""
    weights: str | None = None
    """Summarize a trained network instead: a run folder, network folder, weights file, hf://OWNER/NAME or
    torchvision://FILE."""
    resolution: int | None = None
    """Side of the square images in pixels; if not given, that of --weights, else 224."""
    num_classes: int | None = None
    """Number of classes, 0 for no classifier; 1000 if not given. Not with --weights."""
    json: bool = False
    """Print one JSON object instead of tables."""


def main(options: Options) -> None:
    """Print the summary of the network."""
    check_resolution(options.resolution)
    if options.num_classes is not None:
        check_num_classes(options.num_classes)

    from mnv2_jax.models.cost import layer_costs, table_rows, units
    from mnv2_jax.models.create import model_name

    model, size, channels = find_model(options)
    name, width = model_name(model), model.width_multiplier
    layers = layer_costs(model, (size, size, channels))
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
            "weights": options.weights,
            "model": name,
            "width_multiplier": width,
            "resolution": size,
            **totals,
            "table": [row._asdict() for row in rows],
            "layers": [layer_as_json(layer) for layer in layers],
        }
        print(json.dumps(described, indent=2))
        return
    # Tables get the width that they need; a narrow terminal wraps lines rather than numbers.
    console = Console(highlight=False, width=max(200, Console().width))
    of = f" of {options.weights}" if options.weights else ""
    classes = counted(model.num_classes, "class") if model.num_classes else "no classifier"
    console.print(f"{name}{of}, width {width:g}, {counted(size, 'pixel')}, {classes}\n", markup=False)
    console.print(paper_table(rows))
    console.print()
    console.print(layer_table(layers))
    console.print()
    console.print(f"parameters                     {totals['parameters']:>13,}")
    console.print(f"  without batch norm           {parameters:>13,}")
    console.print(f"multiply-adds                  {totals['multiply_adds']:>13,}")
    console.print(f"largest layer, input + output  {totals['peak_activation_bytes'] / 1e3:>13,.1f} KB")
    console.print(f"largest block as one operator  {totals['peak_activation_bytes_by_block'] / 1e3:>13,.1f} KB")


def find_model(options: Options) -> "tuple[Any, int, int]":
    """Return (network, side of its images in pixels, image channels).

    Raises:
        UserError: for a flag that --weights already determines; see also `load_weights`.
    """
    from mnv2_jax.models.create import create_model
    from mnv2_jax.weights.load import load_weights

    if options.weights is None:
        settings = options.network.settings()
        settings["unit_strides"] = settings["unit_strides"] or 0
        classes = 1000 if options.num_classes is None else options.num_classes
        return create_model(**settings, num_classes=classes), options.resolution or 224, 3
    usual, own = (dataclasses.asdict(each) for each in (NetworkSettings(), options.network))
    given = [name for name, value in own.items() if value != usual[name]]
    if given := [*given, *(["num_classes"] if options.num_classes is not None else [])]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"--weights determines the network; remove {flags}")
    network = load_weights(options.weights)
    return network.model, options.resolution or network.resolution, network.image_channels


def layer_as_json(layer: "LayerCost") -> dict[str, object]:
    """Return a layer's cost as JSON values."""
    return {**dataclasses.asdict(layer), "operator": layer.operator, "activation_bytes": layer.activation_bytes()}


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def paper_table(rows: "Sequence[TableRow]") -> Table:
    """Create the table of the network in the form of the paper's Table 2."""
    table = Table("input", "operator", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in "tcns":
        table.add_column(name, justify="right")
    for row in rows:
        expansion = "-" if row.expansion is None else f"{row.expansion:g}"
        stride = "-" if row.stride is None else str(row.stride)
        table.add_row(_shape(row.input_shape), row.operator, expansion, str(row.channels), str(row.repeats), stride)
    return table


def layer_table(layers: "Sequence[LayerCost]") -> Table:
    """Create the table of the layers, one per row."""
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
