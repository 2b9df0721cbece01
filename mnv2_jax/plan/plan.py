"""Compile the trainer's own programs for a TPU slice that is not here, and report memory, time and traffic."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from mnv2_jax.ablation.arms import data_of_arm, families, learner_of
from mnv2_jax.ablation.design import Study
from mnv2_jax.data.batch import Dataset
from mnv2_jax.data.preprocessing import of_convention
from mnv2_jax.data.sources import Example
from mnv2_jax.data.stream import StreamedDataset
from mnv2_jax.data.transforms import RandomCrop
from mnv2_jax.errors import UserError
from mnv2_jax.models.cost import layer_costs
from mnv2_jax.plan import Step
from mnv2_jax.plan.chips import Chip, Topology
from mnv2_jax.plan.compiled import Collective, collectives, needed_bytes, traffic_bytes
from mnv2_jax.training.config import Parallel, Recipe, Run
from mnv2_jax.training.create import create_dataset, create_learner
from mnv2_jax.training.devices import REPLICATED, Devices, Program, group_size
from mnv2_jax.training.programs import describe_programs
from mnv2_jax.training.step import Learner

IMAGENET_IMAGES = 1_281_167

Watch = Callable[[str], AbstractContextManager[None]]
"""Takes a description of what is compiled; returns a context manager that is open while it is compiled."""

LARGEST_BATCH = 1 << 14
"""Largest batch that is tried, in images per chip; nobody trains with more."""

PARTS = {
    "params": "parameters",
    "batch_stats": "batch-norm statistics",
    "opt_state": "optimizer",
    "ema": "moving average",
    "batch": "images and labels",
    "activations": "activations",
    "temporary": "other temporaries",
    "program": "program",
    "padding": "padding of small arrays",
}
"""Parts of a program's memory, and their names in reports."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a program needs on each chip. Bytes, operations and seconds are per step.

    Attributes:
        title: what was compiled.
        topology: the slice.
        chips: number of the slice's chips that the program uses.
        images: images per step, over all chips and runs.
        memory: bytes by the names of `PARTS`; empty if the program does not fit.
        hbm_bytes: memory that the program needs, according to the compiler; a lower bound if it does not fit.
        flops: floating-point operations; None if the program does not fit.
        bytes_accessed: bytes read and written by XLA's count, more than HBM moves; None if the program does not fit.
        traffic_bytes: lower bound of the bytes that HBM moves, see `traffic_bytes`; None if the program does not fit.
        collectives: the data exchanges between chips; empty if the program does not fit.
        compile_seconds: time to compile it on this host.
    """

    title: str
    topology: Topology
    chips: int
    images: int
    memory: dict[str, int]
    hbm_bytes: int
    flops: float | None
    bytes_accessed: float | None
    traffic_bytes: int | None
    collectives: tuple[Collective, ...]
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the program fits in the chip's memory."""
        return self.flops is not None

    @property
    def chip(self) -> Chip:
        """The slice's kind of chip."""
        return self.topology.chip

    def seconds(self) -> dict[str, float]:
        """Return the seconds that "compute", "memory" and "links" take at peak rates; empty if it does not fit."""
        if self.flops is None or self.traffic_bytes is None:
            return {}
        return {
            "compute": self.flops / self.chip.flops,
            "memory": self.traffic_bytes / self.chip.hbm_bandwidth,
            "links": self.sent_bytes / self.chip.link_bandwidth,
        }

    @property
    def sent_bytes(self) -> float:
        """Lower bound of the bytes that a chip sends to others."""
        return sum(collective.sent_bytes() for collective in self.collectives)

    @property
    def bound_by(self) -> str | None:
        """The slowest of "compute", "memory" and "links"; None if the program does not fit."""
        seconds = self.seconds()
        return max(seconds, key=seconds.__getitem__) if seconds else None

    @property
    def images_per_second(self) -> float | None:
        """Upper bound over all chips, if compute, memory and links overlap perfectly; None if it does not fit."""
        seconds = self.seconds()
        return self.images / max(seconds.values()) if seconds else None

    def to_json(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        return {
            "title": self.title,
            "topology": self.topology.name,
            "chips": self.chips,
            "batch_size": self.images,
            "fits": self.fits,
            "per_chip": {
                "hbm_bytes": self.hbm_bytes,
                "hbm_available_bytes": self.chip.usable_bytes,
                "memory": self.memory,
                "flops": self.flops,
                "bytes_accessed": self.bytes_accessed,
                "hbm_traffic_bytes": self.traffic_bytes,
                "sent_bytes": self.sent_bytes,
            },
            "collectives": [{"kind": kind, **figures} for kind, figures in self.by_kind().items()],
            "seconds": self.seconds(),
            "images_per_second_upper_bound": self.images_per_second,
            "bound_by": self.bound_by,
            "peak": {
                "flops": self.chip.flops,
                "hbm_bandwidth": self.chip.hbm_bandwidth,
                "link_bandwidth": self.chip.link_bandwidth,
                "source": self.chip.source,
            },
            "compile_seconds": round(self.compile_seconds, 2),
        }

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Return the number of collectives of each kind, and the bytes of their results on a chip."""
        figures: dict[str, dict[str, int]] = {}
        for collective in self.collectives:
            entry = figures.setdefault(collective.kind, {"count": 0, "bytes": 0})
            entry["count"] += 1
            entry["bytes"] += collective.bytes
        return figures


class _Unread(Sequence):
    """A source of `count` examples that are never read."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Example:
        raise NotImplementedError("a plan reads no data")

    def fingerprint(self) -> str:
        """Return an empty fingerprint."""
        return ""


def imagenet_like(resolution: int, num_classes: int, training: Recipe, convention: str) -> StreamedDataset:
    """Return a data set with ImageNet's number of images and training crops; it is never read."""
    return StreamedDataset(
        "plan",
        tuple(map(str, range(num_classes))),
        {"train": _Unread(IMAGENET_IMAGES)},
        (resolution, resolution, 3),
        of_convention(convention),
        RandomCrop(training.smallest_crop),
        True,
        training.color_distortion,
    )


def plan_run(
    run: Run, dataset: StreamedDataset, topology: Topology, step: Step, parallel: Parallel, title: str
) -> Plan:
    """Compile a run's program for a slice.

    Args:
        run: the run's settings; its batch size is over all chips.
        dataset: its data set; no image is read.
        topology: the slice; the run uses all of its chips.
        step: "train", or "eval" with the same batch size.
        parallel: how the step is compiled for several chips.
        title: name of the plan in reports.
    """
    devices = Devices.create(parallel=parallel, devices=topology.devices)
    learner = create_learner(run, dataset, devices.per_run)
    return plan_programs(learner, dataset, run.training, topology, devices, step, title)


def plan_programs(
    learner: Learner,
    dataset: Dataset,
    training: Recipe,
    topology: Topology,
    devices: Devices,
    step: Step,
    title: str,
) -> Plan:
    """Compile one of the trainer's programs for the devices of a topology.

    Raises:
        UserError: if the batch cannot be divided among the devices, or if the compiler fails for a reason other than
            memory.
    """
    programs = describe_programs(learner, dataset, training, devices, training.batch_size)
    program = programs["train" if step == "train" else "evaluate"]
    began = time.perf_counter()
    known: dict[str, Any] = dict(
        title=title, topology=topology, chips=devices.mesh.size, images=training.batch_size * devices.runs
    )
    try:
        compiled: Any = devices.lower(program).compile()
    except jax.errors.JaxRuntimeError as error:
        needed = needed_bytes(str(error))
        if needed is None:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"the TPU compiler cannot compile this for {topology.name} ({reason})") from error
        return Plan(
            **known,
            memory={},
            hbm_bytes=needed,
            flops=None,
            bytes_accessed=None,
            traffic_bytes=None,
            collectives=(),
            compile_seconds=time.perf_counter() - began,
        )
    seconds = time.perf_counter() - began
    temporary = activation_bytes(learner, dataset, training, devices.per_run, step)
    memory, total = _memory(compiled.memory_analysis(), program, devices, temporary)
    cost, text = compiled.cost_analysis(), compiled.as_text()
    return Plan(
        **known,
        memory=memory,
        hbm_bytes=total,
        flops=cost["flops"],
        bytes_accessed=cost["bytes accessed"],
        traffic_bytes=traffic_bytes(text),
        collectives=tuple(collectives(text, devices.mesh.size)),
        compile_seconds=seconds,
    )


def _memory(sizes: Any, program: Program, devices: Devices, activations: int) -> tuple[dict[str, int], int]:
    """Return (bytes by the names of `PARTS`, their sum) per chip, from the compiler's analysis."""
    state, _, value = program.arguments
    # Each chip holds the state of one run, and its part of the batch or the whole of a resident set.
    names = ("params", "batch_stats", "opt_state", "ema")
    parts = {name: _bytes(getattr(state, name)) // devices.runs for name in names}
    parts["batch"] = _bytes(value) // (1 if program.specs[2] == REPLICATED else devices.per_run)
    # State that a program does not use (evaluation does not use all of it) is still on the chip.
    held = max(sizes.argument_size_in_bytes, sum(parts.values()))
    held += sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    parts["activations"] = min(sizes.temp_size_in_bytes, activations)
    parts["temporary"] = sizes.temp_size_in_bytes - parts["activations"]
    parts["program"] = sizes.generated_code_size_in_bytes
    total = held + sizes.temp_size_in_bytes + parts["program"]
    return {**parts, "padding": total - sum(parts.values())}, total


def plan_study(study: Study, topology: Topology, watch: Watch) -> list[Plan]:
    """Compile a study's training programs, with its runs spread over the chips as the study does it.

    `watch` is called with a description of each program, and the context that it returns is open while that compiles.
    """
    dataset = create_dataset(study.run(study.baseline))
    study = study.at_equal_images(dataset.train_images)
    plans, every = [], families(study)
    for number, family in enumerate(every, start=1):
        runs = group_size(study.seeds * len(family), len(topology.devices))
        own = data_of_arm(study, family[0], dataset)
        learner, training = learner_of(study, family, own), study.run(family[0]).training
        devices, names = Devices.create(runs, 1, devices=topology.devices), ", ".join(arm.name for arm in family)
        with watch(f"compiling program {number} of {len(every)} for {topology.name} ({names}; about a minute)"):
            plans.append(plan_programs(learner, own, training, topology, devices, "train", names))
    return plans


def largest_batch(plan_of: Callable[[int], Plan], batch: int) -> list[Plan]:
    """Return plans for `batch` and for powers of two, among them the largest that fits, sorted by batch size.

    `plan_of` compiles for a batch size. All batch sizes are in images per chip.
    """
    start = plan_of(batch)
    plans = {batch: start}
    power = 1 << (batch.bit_length() - 1)
    if start.fits and start.memory["activations"]:
        # Memory grows with the batch; start where it should be nearly full.
        images = start.memory["activations"] + start.memory["temporary"] + start.memory["batch"]
        room = start.chip.usable_bytes - (start.hbm_bytes - images)
        power = max(power, 1 << (max(1, room * batch // images).bit_length() - 1))
    while 1 <= power <= LARGEST_BATCH:
        if power not in plans:
            plans[power] = plan_of(power)
        following = power * 2 if plans[power].fits else power // 2
        if following in plans and plans[following].fits != plans[power].fits:
            break
        power = following
    return [plans[size] for size in sorted(plans)]


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def activation_bytes(learner: Learner, dataset: Dataset, training: Recipe, chips: int, step: Step) -> int:
    """Return the bytes of activations on one chip.

    In training, these are the outputs of all layers with kernels for one microbatch, which the backward pass needs; in
    evaluation, the largest layer's input and output.
    """
    layers = layer_costs(learner.model.clone(batch_norm_axis=None), dataset.image_shape)
    values = (
        max(layer.activation_bytes(1) for layer in layers)
        if step == "eval"
        else sum(prod(layer.output_shape) for layer in layers) // training.accumulation
    )
    return values * jnp.dtype(learner.model.dtype).itemsize * training.batch_size // chips
