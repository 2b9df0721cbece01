"""Numbers published in the paper and in the README of its checkpoints, and why some differ from what the modules give.

This file is data only; `paper_tables.py` recomputes the numbers. Tables are written with bars, with the entries as
published; "–" is an entry left open.
Sources: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv:1801.04381v4, and the table of
released checkpoints of tensorflow/models, research/slim/nets/mobilenet/README.md.
"""

from typing import NamedTuple

PAPER = "Sandler et al., arXiv:1801.04381v4"
SLIM = "tensorflow/models, research/slim/nets/mobilenet/README.md"
NONE = "–"
V1, V2 = "mobilenet_v1", "mobilenet_v2"
"""Our names for the two recomputed networks."""

TABLE_1 = """
h × w × k      | 1x1 conv2d, ReLU6    | h × w × tk
h × w × tk     | 3x3 dwise s=s, ReLU6 | h/s × w/s × tk
h/s × w/s × tk | linear 1x1 conv2d    | h/s × w/s × k'
"""
"""The bottleneck block (Table 1) in symbols: input, operator, output; "s=s" is the stride of the block."""

TABLE_2 = """
224² × 3     | conv2d      | – | 32   | 1 | 2
112² × 32    | bottleneck  | 1 | 16   | 1 | 1
112² × 16    | bottleneck  | 6 | 24   | 2 | 2
56² × 24     | bottleneck  | 6 | 32   | 3 | 2
28² × 32     | bottleneck  | 6 | 64   | 4 | 2
14² × 64     | bottleneck  | 6 | 96   | 3 | 1
14² × 96     | bottleneck  | 6 | 160  | 3 | 2
7² × 160     | bottleneck  | 6 | 320  | 1 | 1
7² × 320     | conv2d 1x1  | – | 1280 | 1 | 1
7² × 1280    | avgpool 7x7 | – | –    | 1 | –
1 × 1 × 1280 | conv2d 1x1  | – | k    | – | –
"""
"""MobileNetV2 (Table 2): input, operator, t, c, n, s."""

TEXT = {
    "residual bottleneck layers": "19",
    "multiply-adds, M": "300",
    "params, M": "3.4",
    "fewest multiply-adds, M": "7",
    "most multiply-adds, M": "585",
    "fewest params, M": "1.7",
    "most params, M": "6.9",
}
"""Sizes in Sec. 4: of Table 2's network, and over widths from 0.35 to 1.4 and resolutions from 96 to 224."""

TABLE_3 = """
112 | 64   | 1600 | 16   | 400 | 32   | 800
56  | 128  | 800  | 32   | 200 | 48   | 300
28  | 256  | 400  | 64   | 100 | 400  | 600
14  | 512  | 200  | 160  | 62  | 800  | 310
7   | 1024 | 199  | 320  | 32  | 1600 | 156
1   | 1024 | 2    | 1280 | 2   | 1600 | 3
max | –    | 1600 | –    | 400 | –    | 600
"""
"""Largest tensors to be kept between operators (Table 3): pixels; then channels and KB of MobileNetV1, MobileNetV2 and
ShuffleNet (2x, g = 3)."""

PEAK_MEMORY = {"largest tensor between blocks": ("1600", "400"), "each block as one operator": ("1600", "400")}
"""Peak KB of MobileNetV1 and MobileNetV2 at inference (Sec. 5.1; last row of Table 3), by definition of an operator."""


class PublishedNetwork(NamedTuple):
    """A row of Table 4; `ours` is the (name, width) of our network, if we have it."""

    name: str
    top1: str
    parameters: str
    multiply_adds: str
    milliseconds: str
    ours: tuple[str, float] | None = None


TABLE_4 = (
    PublishedNetwork("MobileNetV1", "70.6", "4.2", "575", "113", (V1, 1.0)),
    PublishedNetwork("ShuffleNet (1.5)", "71.5", "3.4", "292", NONE),
    PublishedNetwork("ShuffleNet (x2)", "73.7", "5.4", "524", NONE),
    PublishedNetwork("NasNet-A", "74.0", "5.3", "564", "183"),
    PublishedNetwork("MobileNetV2", "72.0", "3.4", "300", "75", (V2, 1.0)),
    PublishedNetwork("MobileNetV2 (1.4)", "74.7", "6.9", "585", "143", (V2, 1.4)),
)


class ReleasedCheckpoint(NamedTuple):
    """A row of the table in slim's README."""

    width: float
    resolution: int
    multiply_adds: str
    parameters: str
    top1: str
    top5: str
    milliseconds: str


RELEASED = (
    ReleasedCheckpoint(1.4, 224, "582", "6.06", "75.0", "92.5", "138.0"),
    ReleasedCheckpoint(1.3, 224, "509", "5.34", "74.4", "92.1", "123.0"),
    ReleasedCheckpoint(1.0, 224, "300", "3.47", "71.8", "91.0", "73.8"),
    ReleasedCheckpoint(1.0, 192, "221", "3.47", "70.7", "90.1", "55.1"),
    ReleasedCheckpoint(1.0, 160, "154", "3.47", "68.8", "89.0", "40.2"),
    ReleasedCheckpoint(1.0, 128, "99", "3.47", "65.3", "86.9", "27.6"),
    ReleasedCheckpoint(1.0, 96, "56", "3.47", "60.3", "83.2", "17.6"),
    ReleasedCheckpoint(0.75, 224, "209", "2.61", "69.8", "89.6", "55.8"),
    ReleasedCheckpoint(0.75, 192, "153", "2.61", "68.7", "88.9", "41.6"),
    ReleasedCheckpoint(0.75, 160, "107", "2.61", "66.4", "87.3", "30.4"),
    ReleasedCheckpoint(0.75, 128, "69", "2.61", "63.2", "85.3", "21.9"),
    ReleasedCheckpoint(0.75, 96, "39", "2.61", "58.8", "81.6", "14.2"),
    ReleasedCheckpoint(0.5, 224, "97", "1.95", "65.4", "86.4", "28.7"),
    ReleasedCheckpoint(0.5, 192, "71", "1.95", "63.9", "85.4", "21.1"),
    ReleasedCheckpoint(0.5, 160, "50", "1.95", "61.0", "83.2", "14.9"),
    ReleasedCheckpoint(0.5, 128, "32", "1.95", "57.7", "80.8", "9.9"),
    ReleasedCheckpoint(0.5, 96, "18", "1.95", "51.2", "75.8", "6.4"),
    ReleasedCheckpoint(0.35, 224, "59", "1.66", "60.3", "82.9", "19.7"),
    ReleasedCheckpoint(0.35, 192, "43", "1.66", "58.2", "81.2", "14.6"),
    ReleasedCheckpoint(0.35, 160, "30", "1.66", "55.7", "79.1", "10.5"),
    ReleasedCheckpoint(0.35, 128, "20", "1.66", "50.8", "75.0", "6.9"),
    ReleasedCheckpoint(0.35, 96, "11", "1.66", "45.5", "70.4", "4.5"),
)


# --- Why entries differ ------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """Position of a cell: names of table, row and column."""

    table: str
    row: str
    column: str


MOST_PARAMETERS = (
    "The checkpoint released at width 1.4 is listed with 6.06 (6.11 with batch norm); the paper does not say where 6.9 "
    "comes from."
)
MOST_MULTIPLY_ADDS = (
    "The checkpoint released at width 1.4 is listed with 582; the paper does not say where 585 comes from."
)
ONE_STRIDE_EARLY = (
    "The published entry is the output of the stride-2 block that this resolution enters, which exists only at half "
    "that resolution: in Table 2, 56² × 24 goes in and 28² × 32 comes out."
)
INPUT_AND_OUTPUT = (
    "The published entry is the largest single tensor between blocks; eq. 2 counts an operator's input and output."
)

EXPLANATIONS: dict[Entry, str] = {
    Entry("text", "residual bottleneck layers", "size"): (
        "Table 2 adds up to 17 bottlenecks; with the first and the last convolution they are 19."
    ),
    Entry("text", "fewest multiply-adds, M", "size"): (
        "The smallest checkpoint, width 0.35 at 96 pixels, is listed with 11; nothing in the ranges is smaller."
    ),
    Entry("text", "most multiply-adds, M", "size"): MOST_MULTIPLY_ADDS,
    Entry("text", "most params, M", "size"): MOST_PARAMETERS,
    **{
        Entry("table3", pixels, f"V2 {what}"): ONE_STRIDE_EARLY
        for pixels in ("56", "28", "14")
        for what in ("ch.", "KB")
    },
    Entry("table3", "7", "V1 KB"): "The published entry is about twice what 1024 channels take.",
    Entry("table3", "7", "V2 KB"): "The published entry is more than 320 channels take (30.6 if 1 KB is 1024 B).",
    Entry("table3", "max", "SN KB"): "The published entry is the largest except for the first row, which is larger.",
    Entry("memory", "each block as one operator", "V1 KB"): INPUT_AND_OUTPUT,
    Entry("memory", "each block as one operator", "V2 KB"): INPUT_AND_OUTPUT,
    Entry("table4", "MobileNetV1", "multiply-adds, M"): (
        "The checkpoint of MobileNetV1 is listed with 569 (research/slim/nets/mobilenet_v1.md); the paper does not say "
        "where 575 comes from."
    ),
    Entry("table4", "MobileNetV2 (1.4)", "params, M"): MOST_PARAMETERS,
    Entry("table4", "MobileNetV2 (1.4)", "multiply-adds, M"): MOST_MULTIPLY_ADDS,
}
