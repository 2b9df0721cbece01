"""Read from a compiled program's text (HLO) the bytes that it moves between a chip's memories and to other chips."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
ITEM_BYTES |= {"s64": 8, "u64": 8, "f64": 8}

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction by which chips exchange data.

    Attributes:
        kind: one of `KINDS`.
        bytes: size of its result on one chip.
        group: number of chips that exchange data with one another.
    """

    kind: str
    bytes: int
    group: int

    def sent_bytes(self) -> float:
        """Return a lower bound of the bytes that a chip sends; an all-reduce sends its data twice, others once."""
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.bytes * (self.group - 1) / self.group


def collectives(text: str, devices: int) -> Iterator[Collective]:
    """Yield the collectives in the text (HLO) of a program compiled for `devices` devices."""
    pattern = re.compile(rf"= (\(?.*?\)?) ({'|'.join(KINDS)})(?:-start)?\((.*)")
    for line in text.splitlines():
        found = pattern.search(line)
        if found:
            shapes, kind, rest = found.groups()
            yield Collective(kind, shape_bytes(shapes), _group_size(rest, devices))


def shape_bytes(shapes: str) -> int:
    """Return the bytes of an array or a tuple of arrays, in HLO's notation: "(f32[3,16]{1,0}, bf16[])"."""
    arrays = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
    return sum(ITEM_BYTES.get(kind, 0) * prod(int(side) for side in sides.split(",") if side) for kind, sides in arrays)


def _group_size(attributes: str, devices: int) -> int:
    """Return the number of devices per group from the attribute replica_groups; all devices if it is missing or empty.

    {{0,1},{2,3}} lists the groups, [2,4]<=[8] means two groups of four, and mesh['seed'=2,'data'=4] {'data'} names the
    mesh axes of a group.
    """
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    counted = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes)
    if counted:
        return int(counted[2])
    named = re.search(r"replica_groups=mesh\[(.*?)\] *\{(.*?)\}", attributes)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return devices


class Instruction(NamedTuple):
    """A line of a computation: `%name = shape opcode(operands), rest`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str


FAST_MEMORY = "S(1)"
"""Marks, in an array's layout, that it lies in the chip's fast memory (VMEM) and uses no HBM bandwidth."""

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
PARTIAL = {"slice", "dynamic-slice", "gather"}
"""Instructions that read only as much of their first operand as they return."""


def traffic_bytes(text: str) -> int:
    """Return a lower bound of the bytes that a program reads from and writes to HBM.

    Counts every instruction's operands and result once each. XLA's own "bytes accessed" is more than what is moved: it
    counts a copy into fast memory at its start, at its end and at its use, and for a slice the whole array.
    """
    computations: dict[str, list[Instruction]] = {}
    main, name = "", ""
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            name = header[2]
            main = name if header[1] else main
            computations[name] = []
            continue
        found = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line)
        if found and name:
            inside, _, rest = found[4].partition(")")
            # A parameter has its number in place of operands.
            operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or (inside,)
            computations[name].append(Instruction(found[1], found[2], found[3], operands, rest))
    return _computation_bytes(computations, main)


def _computation_bytes(computations: Mapping[str, Sequence[Instruction]], name: str) -> int:
    shapes = {each.name: each.shape for each in computations.get(name, ())}
    return sum(_instruction_bytes(computations, each, shapes) for each in computations.get(name, ()))


def _instruction_bytes(
    computations: Mapping[str, Sequence[Instruction]], instruction: Instruction, shapes: Mapping[str, str]
) -> int:
    opcode, shape, rest = instruction.opcode, instruction.shape, instruction.rest
    if opcode in FREE or opcode.endswith("-done"):
        return 0
    if opcode == "while":
        body = re.search(r"body=%([\w.\-]+)", rest)
        count = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
        return (int(count[1]) if count else 1) * (_computation_bytes(computations, body[1]) if body else 0)
    if opcode in ("call", "conditional"):
        # One branch is taken; count the cheapest, for a lower bound.
        branches = re.findall(r"(?:to_apply=|computations=\{|, )%([\w.\-]+)", rest)
        return min((_computation_bytes(computations, each) for each in branches if each in computations), default=0)
    if opcode in ("copy-start", "slice-start"):
        # The result lists source and destination; what is moved is as large as the smaller one.
        ends = re.findall(r"\b[a-z]+\d*\[[\d,]*\](?:\{[^}]*\})?", shape)[:2]
        return min(map(shape_bytes, ends)) * sum(FAST_MEMORY not in end for end in ends)
    if opcode in PARTIAL:
        return _slow_bytes(shape) + (shape_bytes(shape) if _slow_bytes(shapes.get(instruction.operands[0], "")) else 0)
    called = re.search(r"calls=%([\w.\-]+)", rest)
    fused = computations.get(called[1], ()) if called else ()
    return _slow_bytes(shape) + sum(
        _read_bytes(fused, index, _slow_bytes(shapes.get(operand, "")))
        for index, operand in enumerate(instruction.operands)
        if operand not in instruction.operands[:index]
    )


def _slow_bytes(shapes: str) -> int:
    """Return the bytes of those arrays that lie in HBM."""
    arrays = re.findall(r"\b[a-z]+\d*\[[\d,]*\](?:\{[^}]*\})?", shapes)
    return sum(shape_bytes(array) for array in arrays if FAST_MEMORY not in array)


def _read_bytes(fused: Sequence[Instruction], index: int, whole: int) -> int:
    """Return the bytes that a fused computation reads of a parameter: its slices if it takes only those, or `whole`."""
    names = [each.name for each in fused if each.opcode == "parameter" and each.operands == (str(index),)]
    users = [each for each in fused if set(names) & set(each.operands)]
    if not users or any(each.opcode not in PARTIAL or each.operands[0] not in names for each in users):
        return whole
    return min(whole, sum(shape_bytes(each.shape) for each in users))


def needed_bytes(message: str) -> int | None:
    """Return the memory that a program needs, from the compiler's out-of-memory error; None for other errors."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"Used ([\d.]+)([KMGT])|required for \w[\w ]* \(([\d.]+)([KMGT])\)", message)
    if not found:
        return None
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(number) * 1024 ** (1 + "KMGT".index(unit)))
