"""How many images per second does MobileNetV2 train and evaluate, compared with PyTorch and Keras on JAX?

Question: how fast is the trainer's step, and how much memory does it take, compared with the same step of its peers?
Command:  python experiments/bench_throughput.py --peers torch,keras --peer-python peers/bin/python
          after `python3 -m venv peers && peers/bin/pip install torch torchvision keras jax`
Cost:     some minutes on 2 CPU cores, mostly compilation.
Expect:   one ratio per peer and task; above 1, ours is faster.

Each network runs as its users run it. Ours is the compiled step of `mnv2_jax train`. PyTorch is torchvision's network,
eager, with images in channels_last memory format. Keras is the compiled step that `fit` and `evaluate` call.

All compute the cross entropy over 1000 classes in float32 and train with SGD, momentum 0.9, without dropout. They have
the same number of threads, the same environment and the same batch, which is in memory from the start. Every step is
blocked on.

All start from the same weights. Nothing is timed until their losses agree, in training with the statistics of the batch
and in evaluation with running statistics. Our timed network pads like Keras's; to check the loss against PyTorch, ours
is run with PyTorch's padding.

The networks take turns, each in its own process, which is stopped while it is not its turn. The ratio is the median
over rounds of the ratio of two rates of the same round.

Memory is the peak of the process during the steps, minus its memory after importing its packages. It includes what a
compiler keeps, but not the peak of compilation. It is host memory, not GPU memory.

Other programs on the same cores slow PyTorch down most, because its threads wait for each other several times per
layer. load_average in the results shows whether there were any.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from throughput_networks import CONVENTIONS, PACKAGES, TASKS

NETWORKS = Path(__file__).with_name("throughput_networks.py")
PEERS = tuple(name for name in PACKAGES if name != "ours")
TOLERANCE = 1e-3
"""Largest relative difference between losses that agree."""
WARM_UP, SECONDS = 2, 2.0
"""Steps before the first timed one; seconds per round if --steps is not given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line flags."""

    peers: tuple[str, ...] = ()
    """Peers to compare with: torch, keras or both, separated by spaces or commas; by default only ours is measured."""
    peer_python: Path | None = None
    """Python of an environment with the peers; by default this one."""
    tasks: tuple[str, ...] = TASKS
    """Tasks to measure."""
    width_multiplier: float = 1.0
    """Scales the channels of every layer."""
    resolution: int = 224
    """Side of the square images, in pixels."""
    batch_size: int = 16
    """Images per step."""
    unit_strides: int = 0
    """Number of the first stride-2 layers that take stride 1 instead; with peers, 0 or 1."""
    rounds: int = 5
    """Rounds of each network; the networks take turns."""
    steps: int | None = None
    """Steps per round; by default as many as take about 2 seconds."""
    out: Path = Path("runs/bench_throughput")
    """Output folder for results.json and the figure; existing ones are replaced."""
    json: bool = False
    """Print the results as one JSON object."""


class Worker:
    """A process that takes steps on request and is stopped (SIGSTOP) in between; killed when its context exits."""

    def __init__(self, name: str, task: str, python: Path, settings: dict[str, Any], folder: Path):
        self.name = name
        self._log = folder / f"{name}-{task}-{settings['convention']}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, NETWORKS, "work", name, task, json.dumps(settings), folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment(),
            )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def steps(self, count: int, memory: bool = False) -> dict[str, Any]:
        """Take `count` steps and return what the process measured."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            print(count, "memory" if memory else "", file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise failure(self.name, self._log)
        # Threads that spin while they wait for work would take CPU time from the others.
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(line)


def failure(name: str, log: Path) -> Exception:
    """Return the last line that a process wrote, as a `UserError`."""
    from mnv2_jax.errors import UserError

    lines = log.read_text(errors="replace").strip().splitlines()
    return UserError(f"{name} failed: {lines[-1] if lines else 'it was killed, possibly for lack of memory'}")


def environment() -> dict[str, str]:
    """Return the environment of all workers. On a GPU they share its memory, which JAX would preallocate."""
    fixed = {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return {**os.environ, **fixed}


def split(values: Sequence[str]) -> tuple[str, ...]:
    """Split names at commas and drop repetitions."""
    return tuple(dict.fromkeys(name for value in values for name in value.split(",") if name))


def check(options: Options) -> tuple[tuple[str, ...], dict[str, Path]]:
    """Check the flags and create the output folder; return the tasks, and the Python of each network.

    Raises:
        UserError: for flags that cannot be measured, a Python without the peers, or a folder that cannot be written.
    """
    from mnv2_jax.errors import UserError
    from mnv2_jax.models.strides import STRIDED_LAYERS

    peers, tasks = split(options.peers), split(options.tasks)
    for flag, names, known in (("--peers", peers, PEERS), ("--tasks", tasks, TASKS)):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UserError(f"unknown {flag} {unknown[0]}; choose from {', '.join(known)}")
    if not tasks:
        raise UserError("--tasks must name at least one task")
    if options.batch_size < 2:
        raise UserError(f"--batch-size must be 2 or more for batch statistics, got {options.batch_size}")
    if not 0 < options.width_multiplier < float("inf"):
        raise UserError(f"--width-multiplier must be greater than 0, got {options.width_multiplier}")
    for flag, value in (("rounds", options.rounds), ("steps", options.steps), ("resolution", options.resolution)):
        if value is not None and value < 1:
            raise UserError(f"--{flag} must be 1 or more, got {value}")
    most = 1 if peers else STRIDED_LAYERS
    if not 0 <= options.unit_strides <= most:
        raise UserError(
            f"--unit-strides must be 0 to {most}{' with --peers' if peers else ''}, got {options.unit_strides}"
        )
    if "keras" in peers and options.resolution < 32:
        raise UserError(f"--resolution must be 32 or more with --peers keras, got {options.resolution}")

    python = options.peer_python or Path(sys.executable)
    for peer in peers:
        code = "\n".join(f"import {package}" for package in PACKAGES[peer])
        command = [str(python), "-c", code]
        if not python.is_file() or subprocess.run(command, capture_output=True, env=environment()).returncode:
            raise UserError(f"--peer-python {python} is not a Python interpreter with {' and '.join(PACKAGES[peer])}")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out} is a file, not a folder")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be written: {error.strerror}") from error
    return tasks, {"ours": Path(sys.executable), **dict.fromkeys(peers, python)}


def check_loss(name: str, task: str, theirs: float, mine: float) -> None:
    """Check that a peer computes the same loss as ours.

    Raises:
        UserError: if the losses differ; the message names both.
    """
    from mnv2_jax.errors import UserError

    if not abs(theirs - mine) <= TOLERANCE * abs(mine):
        raise UserError(f"{name} does not compute the same in {task}: its loss is {theirs:.5f}, ours is {mine:.5f}")


def measure(
    task: str, pythons: dict[str, Path], options: Options, settings: dict[str, Any], folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the result of a task, and the first answer of each network (its loss, device and versions)."""

    def start(name: str, convention: str) -> Worker:
        return Worker(name, task, pythons[name], {**settings, "convention": convention}, folder)

    workers: dict[str, Worker] = {}
    first: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        for name in pythons:
            workers[name] = stack.enter_context(start(name, CONVENTIONS[name]))
            first[name] = workers[name].steps(1)
            mine = first["ours"]["loss"]
            if CONVENTIONS[name] != CONVENTIONS["ours"]:
                with start("ours", CONVENTIONS[name]) as other:
                    mine = other.steps(1)["loss"]
            check_loss(name, task, first[name]["loss"], mine)

        counts, memory = {}, {}
        for name, worker in workers.items():
            worker.steps(WARM_UP)
            counts[name] = options.steps or max(1, round(SECONDS / worker.steps(1)["seconds"]))
            memory[name] = worker.steps(WARM_UP, memory=True).get("memory_mb")
        rates: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(options.rounds):
            for name, worker in workers.items():
                seconds = worker.steps(counts[name])["seconds"]
                rates[name].append(options.batch_size * counts[name] / seconds)
    result = {
        "task": task,
        "width_multiplier": options.width_multiplier,
        "resolution": options.resolution,
        "batch_size": options.batch_size,
        "unit_strides": options.unit_strides,
        "rounds": options.rounds,
        "steps": counts,
        **summarize(rates),
    }
    if task == "train" and None not in memory.values():
        result["memory_mb"] = memory
    return result, first


def spread(values: Sequence[float]) -> list[float]:
    """Return [minimum, maximum]."""
    return [min(values), max(values)]


def ratios(rates: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return the ratios of our rate to each peer's, round by round."""
    return {
        name: [mine / theirs for mine, theirs in zip(rates["ours"], values, strict=True)]
        for name, values in rates.items()
        if name != "ours"
    }


def summarize(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Return median and range over rounds of the rates and of the ratios."""
    each = ratios(rates)
    return {
        "images_per_second": {name: median(values) for name, values in rates.items()},
        "spread": {name: spread(values) for name, values in rates.items()},
        "ratio": {name: median(values) for name, values in each.items()},
        "ratio_spread": {name: spread(values) for name, values in each.items()},
    }


def main(options: Options) -> None:
    """Run the benchmark, write the results and print them."""
    from mnv2_jax.environment import core_count
    from mnv2_jax.results import write_atomically

    tasks, pythons = check(options)
    load = os.getloadavg()[0]
    settings = {
        "width_multiplier": options.width_multiplier,
        "resolution": options.resolution,
        "batch_size": options.batch_size,
        "unit_strides": options.unit_strides,
        "threads": core_count(),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In its own process, so that it takes memory neither here nor in a measured process.
        command = [sys.executable, str(NETWORKS), "inputs", json.dumps(settings), str(folder)]
        with (folder / "inputs.log").open("w") as log:
            code = subprocess.run(command, stdout=log, stderr=log, env=environment()).returncode
        if code:
            raise failure("creating the weights", folder / "inputs.log")
        measured = [measure(task, pythons, options, settings, folder) for task in tasks]
    about = measured[0][1]
    found = {
        "results": [result for result, _ in measured],
        "versions": {name: each["versions"] for name, each in about.items()},
        "threads": settings["threads"],
        "load_average": load,
        "device": {name: each["device"] for name, each in about.items()},
    }
    write_atomically(options.out / "results.json", json.dumps(found, indent=2) + "\n")
    draw(found, options.out)
    if options.json:
        print(json.dumps(found))
    else:
        report(found)
        print(f"{options.out}/results.json, figure.png and figure.svg")


def setting(result: dict[str, Any]) -> str:
    """Describe the settings of a result."""
    strides = result["unit_strides"]
    fewer = f", {strides} of the strides left out" if strides else ""
    return (
        f"width {result['width_multiplier']:g}, {result['resolution']} pixels, batches of {result['batch_size']}{fewer}"
    )


def report(found: dict[str, Any]) -> None:
    """Print the rate of each network, and our ratio to each peer."""
    if found["load_average"] > 0.5:
        print(f"load average {found['load_average']:.1f} before the start: other processes use these cores too")
    for result in found["results"]:
        print(f"{result['task']}: {setting(result)}, {result['rounds']} rounds, {found['threads']} threads")
        for name, rate in result["images_per_second"].items():
            low, high = result["spread"][name]
            memory = f", {result['memory_mb'][name]:.0f} MB" if "memory_mb" in result else ""
            print(f"  {name:6} {rate:8.1f} images/s ({low:.1f} to {high:.1f}){memory}, on {found['device'][name]}")
        for name, ratio in result["ratio"].items():
            low, high = result["ratio_spread"][name]
            print(f"  ours / {name}: {ratio:.2f} ({low:.2f} to {high:.2f})")


def draw(found: dict[str, Any], folder: Path) -> None:
    """Draw a panel per task and a bar per network: the median, with the range over rounds."""
    from mnv2_jax.ablation.figures import COLORS, plt
    from mnv2_jax.analysis.drawing import headline, tidy
    from mnv2_jax.results import save_figure

    titles = {"ours": "mnv2_jax", "torch": "PyTorch", "keras": "Keras on JAX"}
    hatches = {"ours": "", "torch": "//", "keras": ".."}
    results = found["results"]
    names = list(results[0]["images_per_second"])
    width = max(4.5, 1.2 + 1.4 * len(names))
    figure, panels = plt.subplots(
        1, len(results), figsize=(width * len(results), 4.8), layout="constrained", squeeze=False
    )
    for axes, result in zip(panels.flat, results, strict=True):
        for place, name in enumerate(names):
            rate, (low, high) = result["images_per_second"][name], result["spread"][name]
            color = COLORS[list(titles).index(name)]
            axes.bar(place, rate, 0.62, color=color, edgecolor="white", hatch=hatches[name])
            axes.errorbar(place, rate, [[rate - low], [high - rate]], color="black", capsize=5, linewidth=1.3)
            text = f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
            axes.annotate(text, (place, high), xytext=(0, 4), textcoords="offset points", ha="center")
        labels = [
            titles[name] + (f"\nours is {result['ratio'][name]:.3g}×" if name in result["ratio"] else "\n")
            for name in names
        ]
        axes.set_xticks(range(len(names)), labels)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_ylim(0, 1.15 * max(high for _, high in result["spread"].values()))
        axes.set(title=result["task"], ylabel="images per second (higher is better)")
        tidy(axes)
    first = results[0]
    rounds = f"{first['rounds']} round{'s' if first['rounds'] > 1 else ''}"
    headline(
        figure,
        f"How many images per second? MobileNetV2, {setting(first)}",
        f"Median, smallest and largest of {rounds}, float32, {found['threads']} threads",
    )
    save_figure(figure, folder)


if __name__ == "__main__":
    from mnv2_jax import cli

    # Exit through the contexts of the workers: stopped workers would otherwise outlive this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    cli.run(main, Options, __doc__)
