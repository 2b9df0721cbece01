"""What a compiled program says of itself: its memory, and what it sends to other chips."""

import dataclasses
import re
from collections.abc import Iterator
from math import prod

ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
ITEM_BYTES |= {"s64": 8, "u64": 8, "f64": 8}

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction by which chips exchange data.

    Attributes:
        kind: one of `KINDS`.
        bytes: of its result on one chip.
        group: how many chips take part together.
    """

    kind: str
    bytes: int
    group: int

    def sent_bytes(self) -> float:
        """What a chip sends at least: a sum goes round twice, in parts; everything else once."""
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.bytes * (self.group - 1) / self.group


def collectives(text: str, devices: int) -> Iterator[Collective]:
    """The collectives of a compiled program's text (HLO) for so many devices."""
    pattern = re.compile(rf"= (\(?.*?\)?) ({'|'.join(KINDS)})(?:-start)?\((.*)")
    for line in text.splitlines():
        found = pattern.search(line)
        if found:
            shapes, kind, rest = found.groups()
            yield Collective(kind, shape_bytes(shapes), _group_size(rest, devices))


def shape_bytes(shapes: str) -> int:
    """Of an array or a tuple of arrays, as HLO writes them: "(f32[3,16]{1,0}, bf16[])"."""
    arrays = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
    return sum(ITEM_BYTES.get(kind, 0) * prod(int(side) for side in sides.split(",") if side) for kind, sides in arrays)


def _group_size(attributes: str, devices: int) -> int:
    """From replica_groups={{0,1},{2,3}} or its short form [groups,size]<=[devices]; all if none are named."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    short = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes)
    return int(short[2]) if short else devices


def needed_bytes(message: str) -> int | None:
    """How much memory a program wanted, from the compiler's words when it refuses it; None for other errors."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"Used ([\d.]+)([KMGT])|required for \w[\w ]* \(([\d.]+)([KMGT])\)", message)
    if not found:
        return None
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(number) * 1024 ** (1 + "KMGT".index(unit)))
