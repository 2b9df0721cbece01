import pytest

from mnv2_jax import create_model
from mnv2_jax.models.cost import count_parameters, layer_costs, table_rows, units
from mnv2_jax.models.mobilenet_v2 import STAGES


def layers_of(width, size):
    return layer_costs(create_model("mobilenet_v2", width_multiplier=width), (size, size, 3))


# Width, resolution, multiply-adds and parameters without batch norm in millions, from tensorflow/models,
# research/slim/nets/mobilenet/README.md, which truncates multiply-adds to whole millions. Last, the multiply-adds to
# two decimals, computed by hand from the table of layers.
RELEASED = [
    (1.4, 224, 582, 6.06, 582.20), (1.3, 224, 509, 5.34, 509.37),
    (1.0, 224, 300, 3.47, 300.77), (1.0, 192, 221, 3.47, 221.32), (1.0, 160, 154, 3.47, 154.08),
    (1.0, 128, 99, 3.47, 99.07), (1.0, 96, 56, 3.47, 56.29),
    (0.75, 224, 209, 2.61, 209.07), (0.75, 192, 153, 2.61, 153.94), (0.75, 160, 107, 2.61, 107.30),
    (0.75, 128, 69, 2.61, 69.13), (0.75, 96, 39, 2.61, 39.45),
    (0.5, 224, 97, 1.95, 97.13), (0.5, 192, 71, 1.95, 71.70), (0.5, 160, 50, 1.95, 50.18),
    (0.5, 128, 32, 1.95, 32.58), (0.5, 96, 18, 1.95, 18.89),
    (0.35, 224, 59, 1.66, 59.29), (0.35, 192, 43, 1.66, 43.90), (0.35, 160, 30, 1.66, 30.87),
    (0.35, 128, 20, 1.66, 20.22), (0.35, 96, 11, 1.66, 11.93),
]  # fmt: skip


@pytest.mark.parametrize(("width", "resolution", "millions", "parameters", "exact"), RELEASED)
def test_every_released_checkpoint(width, resolution, millions, parameters, exact):
    layers = layers_of(width, resolution)
    multiply_adds = sum(layer.multiply_adds for layer in layers)
    assert int(multiply_adds / 1e6) == millions
    assert round(multiply_adds / 1e6, 2) == exact
    assert round(sum(layer.parameters for layer in layers) / 1e6, 2) == parameters


@pytest.mark.parametrize(
    ("width", "parameters", "without_batch_norm", "of_1001", "with_statistics"),
    # torchvision has 3,504,872 at width 1.0, Keras 3,538,984 with the moving statistics.
    [
        (0.25, 1_519_112, 1_508_456, 1_520_393, 1_529_768),
        (0.35, 1_677_128, 1_663_048, 1_678_409, 1_691_208),
        (0.5, 1_968_680, 1_950_136, 1_969_961, 1_987_224),
        (0.75, 2_636_424, 2_609_784, 2_637_705, 2_663_064),
        (1.0, 3_504_872, 3_470_760, 3_506_153, 3_538_984),
        (1.3, 5_386_792, 5_342_536, 5_388_457, 5_431_048),
        (1.4, 6_108_776, 6_060_840, 6_110_569, 6_156_712),
    ],
)
def test_parameters_at_every_width(width, parameters, without_batch_norm, of_1001, with_statistics):
    layers = layers_of(width, 224)
    batch_norm = sum(layer.batch_norm_parameters for layer in layers)
    assert sum(layer.parameters for layer in layers) == without_batch_norm
    assert without_batch_norm + batch_norm == parameters
    # Running mean and variance have the sizes of scale and bias.
    assert parameters + batch_norm == with_statistics
    assert parameters + layers[-1].kernel_shape[0] + 1 == of_1001


def test_exact_multiply_adds_and_counting_functions():
    assert sum(layer.multiply_adds for layer in layers_of(1.0, 224)) == 300_774_272
    assert count_parameters(create_model("mobilenet_v2"), (64, 64, 3)) == 3_504_872
    assert count_parameters(create_model("mobilenet_v2"), (64, 64, 3), batch_norm=False) == 3_470_760


def test_blocks_cost_what_the_table_of_layers_says():
    """Convolution parameters, batch-norm parameters and millions of multiply-adds at width 1.0 and 224 pixels."""
    published = {
        "stem": (864, 64, 10.838), "block_0": (800, 96, 10.035), "block_1": (4704, 432, 29.202),
        "block_2": (8208, 624, 25.740), "block_3": (9360, 640, 15.467), "block_4": (14016, 832, 10.989),
        "block_6": (20160, 896, 7.564), "block_7": (52608, 1664, 10.311), "block_10": (64896, 1728, 12.720),
        "block_11": (115776, 2496, 22.692), "block_13": (152640, 2624, 15.608), "block_14": (315840, 4160, 15.476),
        "block_16": (469440, 4480, 23.003), "head": (409600, 2560, 20.070), "classifier": (1281000, 0, 1.280),
    }  # fmt: skip
    costs = {
        unit.name: (
            sum(layer.parameters for layer in unit.layers),
            sum(layer.batch_norm_parameters for layer in unit.layers),
            round(sum(layer.multiply_adds for layer in unit.layers) / 1e6, 3),
        )
        for unit in units(layers_of(1.0, 224))
    }
    assert {name: costs[name] for name in published} == published


def test_the_network_as_table_2_writes_it():
    rows = table_rows(layers_of(1.0, 224))
    bottlenecks = [row[2:6] for row in rows if row.operator == "bottleneck"]
    assert bottlenecks == [tuple(stage) for stage in STAGES]
    assert [row.input_shape for row in rows] == [
        (224, 224, 3), (112, 112, 32), (112, 112, 16), (56, 56, 24), (28, 28, 32), (14, 14, 64), (14, 14, 96),
        (7, 7, 160), (7, 7, 320), (7, 7, 1280), (1, 1, 1280),
    ]  # fmt: skip
    assert [row.operator for row in rows if row.operator != "bottleneck"] == [
        "conv2d 3x3", "conv2d 1x1", "avgpool 7x7", "conv2d 1x1"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "channels", "positions"),
    # Totals over depthwise convolutions: channels, and channels times output pixels for 224-pixel images.
    [("mobilenet_v2", 7_136, 2_301_824), ("mobilenet_v1", 4_960, 1_931_776), ("classic_residual", 1_504, 572_320)],
)
@pytest.mark.parametrize("side", [5, 7])
def test_a_larger_kernel_costs_its_pixels_in_every_block_and_nothing_else(name, channels, positions, side):
    usual, larger = (layer_costs(create_model(name, kernel_size=size), (224, 224, 3)) for size in (3, side))
    more = side**2 - 3**2
    assert sum(each.parameters for each in larger) - sum(each.parameters for each in usual) == more * channels
    assert sum(each.multiply_adds for each in larger) - sum(each.multiply_adds for each in usual) == more * positions
    assert [each.activation_bytes() for each in larger] == [each.activation_bytes() for each in usual]
    assert larger[0] == usual[0]  # the stem
    assert all(row.operator.endswith(f" {side}x{side}") for row in table_rows(larger)[1:-3])


def test_memory():
    """Sec. 5.1 in half precision, layer by layer and with a block as one operator."""
    layers = layers_of(1.0, 224)
    largest = max(layers, key=lambda layer: layer.activation_bytes(2))
    assert (largest.name, largest.activation_bytes(2)) == ("block_1/depthwise", 2 * (96 * 112**2 + 96 * 56**2))
    block = max(units(layers), key=lambda unit: unit.activation_bytes(2))
    assert (block.name, block.activation_bytes(2)) == ("block_0", 2 * (32 + 16) * 112**2)
