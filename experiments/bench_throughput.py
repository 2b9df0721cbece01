"""How many images a second does MobileNetV2 train and evaluate, beside PyTorch and Keras on JAX?

Question: how fast is the training engine's step, and how much memory does it take, beside the same step of others?
Command:  python experiments/bench_throughput.py --peers torch,keras --peer-python peers/bin/python
          where `python3 -m venv peers && peers/bin/pip install torch torchvision keras jax` made that environment.
Cost:     some minutes on 2 CPU cores, most of them to compile.
Expect:   a ratio a peer and task: above 1, ours is faster.

Each is what its users run: ours the compiled step of `mnv2_jax train`; PyTorch torchvision's network, eager, with images in
the memory format channels_last; Keras the compiled step that `fit` and `evaluate` call. All compute in float32 the cross
entropy over 1000 classes, and train with SGD, momentum 0.9; no one drops features. They have the same threads and
environment, and the same batch, which is in memory from the start; each step is waited for. All start from the same weights,
and nothing is timed before their losses agree: of the batch by its own statistics in training, by running ones in evaluation.
The timed network of ours pads like Keras's; with PyTorch's padding it is compared with PyTorch.

They take turns, each in a process of its own that is stopped while another one's turn is. The ratio is the median over the
rounds, of two rates of the same round. Memory is the process's peak while it takes steps, less what it had once its packages
were imported; what a compiler keeps to itself counts, what it needed for its work does not. It is the host's, not a GPU's.
Other programs on the same cores slow PyTorch down most, whose threads wait for each other several times a layer: load_average
in the results says whether there were any.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

PEERS = {"torch": ("torch", "torchvision"), "keras": ("keras", "jax")}
"""What has to be importable where a peer runs."""
PACKAGES = {"ours": ("jax", "flax"), **PEERS}
CONVENTIONS = {"ours": "tensorflow", "torch": "pytorch", "keras": "tensorflow"}
"""In which each computes; ours can do both."""
SOURCES = {"pytorch": "torchvision", "tensorflow": "keras"}
"""Whose names the weights of a convention have."""
TASKS = ("train", "evaluate")
CLASSES, LEARNING_RATE, MOMENTUM = 1000, 1e-3, 0.9
TOLERANCE = 1e-3
"""By how much of itself a loss may differ."""
WARM_UP, SECONDS = 2, 2.0
"""Steps before the first that is timed; what a round takes if the number of its steps is not given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this script."""

    peers: tuple[str, ...] = ()
    """Of torch and keras those to compare with, with spaces or commas between them; without any only ours is measured."""
    peer_python: Path | None = None
    """Python of an environment with the peers; this one if not given."""
    tasks: tuple[str, ...] = TASKS
    """What to measure."""
    width_multiplier: float = 1.0
    """Scales the channels of every layer."""
    resolution: int = 224
    """Side of the square images, in pixels."""
    batch_size: int = 16
    """Images a step."""
    unit_strides: int = 0
    """How many of the first stride-2 layers take stride 1 instead; beside peers 0 or 1."""
    rounds: int = 5
    """Rounds of each, in turn."""
    steps: int | None = None
    """Steps a round; as many as take each about 2 seconds if not given."""
    out: Path = Path("runs/bench_throughput")
    """Folder for results.json and the figure; those that are there are replaced."""
    json: bool = False
    """Print one JSON object."""


# --- The networks, each in a process of its own ----------------------------------------------------------
# Each generator yields the name of its device once its packages are imported, and then a loss for every step.


def ours(task: str, settings: dict[str, Any], folder: Path) -> Iterator[Any]:
    """The training engine's step, compiled as `mnv2_jax train` compiles it, for one device."""
    import functools

    import jax
    import numpy as np
    import optax

    from mnv2_jax import cli
    from mnv2_jax.data.batch import Batch
    from mnv2_jax.models.mobilenet_v2 import MobileNetV2
    from mnv2_jax.tasks.classification import Classification
    from mnv2_jax.training import parallel
    from mnv2_jax.training.step import Learner, TrainState, eval_step, train_step
    from mnv2_jax.weights import mapping
    from mnv2_jax.weights.load import SOURCES as TABLES

    cli.leave_absent_tpus_alone()
    yield jax.devices()[0].device_kind

    source = SOURCES[settings["convention"]]
    model = MobileNetV2(
        CLASSES, settings["width_multiplier"], settings["unit_strides"], convention=settings["convention"]
    )
    learner = Learner(model, Classification(CLASSES), optax.sgd(LEARNING_RATE, MOMENTUM))
    variables = mapping.fill(TABLES[source], model, 3, dict(np.load(folder / f"{source}.npz")))
    batch = np.load(folder / "batch.npz")
    count = len(batch["labels"])
    arrays = Batch(batch["images"], batch["labels"], np.ones(count, np.float32), np.arange(count, dtype=np.int32))
    zero = np.zeros((), np.int32)
    optimizer_state = jax.tree.map(np.asarray, learner.optimizer.init(variables["params"]))
    state = TrainState(zero, zero, variables["params"], variables["batch_stats"], optimizer_state, None)

    mesh = parallel.create_mesh(1, 1)
    specs = (parallel.SEED, parallel.DATA)
    state = parallel.place(jax.tree.map(lambda leaf: np.asarray(leaf)[None], state), mesh, parallel.SEED)
    arrays = parallel.place(arrays, mesh, parallel.DATA)
    function, donate = (train_step, (0,)) if task == "train" else (eval_step, ())
    step = parallel.compile_program(functools.partial(function, learner=learner), mesh, specs, (state, arrays), donate)
    while True:
        if task == "train":
            state, sums = jax.block_until_ready(step(state, arrays))
        else:
            sums = jax.block_until_ready(step(state, arrays))
        yield float(np.asarray(sums["loss"])[0]) / count


def torch(task: str, settings: dict[str, Any], folder: Path) -> Iterator[Any]:
    """PyTorch without its compiler, as most of its users run it."""
    import numpy as np
    import torch
    import torchvision

    torch.set_num_threads(settings["threads"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield torch.cuda.get_device_name() if device.type == "cuda" else "cpu"

    model = torchvision.models.mobilenet_v2(weights=None, width_mult=settings["width_multiplier"], dropout=0.0)
    if settings["unit_strides"]:
        model.features[0][0].stride = (1, 1)
    model.load_state_dict({name: torch.tensor(value) for name, value in np.load(folder / "torchvision.npz").items()})
    model = model.train(task == "train").to(device, memory_format=torch.channels_last)
    batch = np.load(folder / "batch.npz")
    images = torch.tensor(batch["images"]).permute(0, 3, 1, 2).to(device).contiguous(memory_format=torch.channels_last)
    labels = torch.tensor(batch["labels"]).long().to(device)
    cross_entropy = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM)
    while True:
        if task == "train":
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
        else:
            with torch.inference_mode():
                loss = cross_entropy(model(images), labels)
        yield loss.item()


def keras(task: str, settings: dict[str, Any], folder: Path) -> Iterator[Any]:
    """The compiled functions that Keras's `fit` and `evaluate` call, without what these do around them."""
    import jax
    import jax.numpy as jnp
    import keras
    import numpy as np

    yield jax.devices()[0].device_kind

    size = settings["resolution"]
    model = keras.applications.MobileNetV2(
        input_shape=(size, size, 3),
        alpha=settings["width_multiplier"],
        weights=None,
        classes=CLASSES,
        classifier_activation=None,
    )
    if settings["unit_strides"]:
        config = model.get_config()
        stem = next(layer for layer in config["layers"] if layer["config"]["name"] == "Conv1")
        stem["config"]["strides"] = (1, 1)
        model = keras.Model.from_config(config)
    weights = np.load(folder / "keras.npz")
    for variable in model.weights:
        variable.assign(weights[variable.path])
    model.compile(
        keras.optimizers.SGD(LEARNING_RATE, MOMENTUM),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    batch = np.load(folder / "batch.npz")
    data = jnp.asarray(batch["images"]), jnp.asarray(batch["labels"])
    model.optimizer.build(model.trainable_variables)
    if task == "train":
        model.make_train_function()
        function, kept = model.train_function, [model.optimizer.variables]
    else:
        model.make_test_function()
        function, kept = model.test_function, []
    groups = [model.trainable_variables, model.non_trainable_variables, *kept, model.metrics_variables]
    # The functions take these over, and use their memory again.
    state = tuple([variable.value for variable in group] for group in groups)
    while True:
        logs, state = jax.block_until_ready(function(state, iter([data])))
        yield float(logs["loss"])


NETWORKS = {"ours": ours, "torch": torch, "keras": keras}


def resident(kind: str) -> float | None:
    """Megabytes of this process in memory: now ("VmRSS"), or at the peak ("VmHWM"); None where Linux does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(kind))
    except (OSError, StopIteration):
        return None


def forget_peak() -> bool:
    """Give back what was freed, and let the peak begin anew; whether that could be done."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def work(name: str, task: str, settings: dict[str, Any], folder: Path) -> None:
    """For each number that comes in, take so many steps, and say what they took; with "memory" behind it, say that too."""
    steps = NETWORKS[name](task, settings, folder)
    device = next(steps)
    versions = {package: version(package) for package in PACKAGES[name]} | {"python": platform.python_version()}
    imported = resident("VmRSS")
    for line in sys.stdin:
        count, *wanted = line.split()
        # Not before steps that are timed: they would have to fetch back what was given back.
        measurable = bool(wanted) and forget_peak()
        start = time.perf_counter()
        losses = [next(steps) for _ in range(int(count))]
        answer = {"seconds": time.perf_counter() - start, "loss": losses[0], "device": device, "versions": versions}
        peak = resident("VmHWM") if measurable else None
        if peak is not None and imported is not None:
            answer["memory_mb"] = peak - imported
        print(json.dumps(answer), flush=True)


def write_inputs(settings: dict[str, Any], folder: Path) -> None:
    """A batch, and weights with which a network that computes otherwise has another loss, under the names of each."""
    import jax
    import numpy as np

    from mnv2_jax import cli
    from mnv2_jax.models.mobilenet_v2 import MobileNetV2
    from mnv2_jax.weights import mapping
    from mnv2_jax.weights.load import SOURCES as TABLES

    cli.leave_absent_tpus_alone()
    generator = np.random.default_rng(0)
    count, size = settings["batch_size"], settings["resolution"]
    images = generator.standard_normal((count, size, size, 3), np.float32)
    labels = generator.integers(CLASSES, size=count).astype(np.int32)
    np.savez(folder / "batch.npz", images=images, labels=labels)

    # Statistics of this batch: those of a fresh network would let its features vanish before the last layer.
    model = MobileNetV2(CLASSES, settings["width_multiplier"], settings["unit_strides"], batch_norm_momentum=0.0)

    @jax.jit
    def create(images):
        variables = model.init(jax.random.key(0), images)
        _, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return {**variables, **updates}

    variables = jax.tree.map(np.asarray, create(images))
    # Fresh logits are nearly 0, and the loss log(1000) whatever the features are.
    kernel = variables["params"]["classifier"]["kernel"]
    variables["params"]["classifier"]["kernel"] = 0.1 * generator.standard_normal(kernel.shape, np.float32)
    for source in SOURCES.values():
        np.savez(folder / f"{source}.npz", **dict[str, Any](mapping.export(TABLES[source], model, variables)))


# --- The comparison --------------------------------------------------------------------------------------


class Worker:
    """A process that takes steps when it is asked to, and is stopped in between. Leaving it as a context ends it."""

    def __init__(self, name: str, task: str, python: Path, settings: dict[str, Any], folder: Path):
        self.name = name
        self._log = folder / f"{name}-{task}-{settings['convention']}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, __file__, "--work", name, task, json.dumps(settings), folder],
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
        """Take so many, and tell what they took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            print(count, "memory" if memory else "", file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise failure(self.name, self._log)
        # Threads that wait for work would take some from the others.
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(line)


def failure(name: str, log: Path) -> Exception:
    """What a process wrote last, as the command's error."""
    from mnv2_jax.errors import UserError

    lines = log.read_text(errors="replace").strip().splitlines()
    return UserError(f"{name} failed: {lines[-1] if lines else 'something killed it, for its memory perhaps'}")


def environment() -> dict[str, str]:
    """The same for all of them. On a GPU they have to share its memory, which JAX would take at once."""
    fixed = {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return {**os.environ, **fixed}


def thread_count() -> int:
    """Cores that this process may use, which is what JAX takes."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split(values: Sequence[str]) -> tuple[str, ...]:
    """Names with spaces or commas between them, each once."""
    return tuple(dict.fromkeys(name for value in values for name in value.split(",") if name))


def check(options: Options) -> tuple[tuple[str, ...], dict[str, Path]]:
    """The tasks, and the Python of each network; makes the folder of the results.

    Raises:
        UserError: for flags that cannot be measured.
    """
    from mnv2_jax.errors import UserError
    from mnv2_jax.models.strides import STRIDED_LAYERS

    peers, tasks = split(options.peers), split(options.tasks)
    for flag, names, known in (("--peers", peers, tuple(PEERS)), ("--tasks", tasks, TASKS)):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UserError(f"{flag} {unknown[0]} is not known; known are {' and '.join(known)}")
    if not tasks:
        raise UserError("--tasks must name one at least")
    if options.batch_size < 2:
        raise UserError(f"--batch-size must be 2 or more, which statistics need, got {options.batch_size}")
    if not 0 < options.width_multiplier < float("inf"):
        raise UserError(f"--width-multiplier must be greater than 0, got {options.width_multiplier}")
    for flag, value in (("rounds", options.rounds), ("steps", options.steps), ("resolution", options.resolution)):
        if value is not None and value < 1:
            raise UserError(f"--{flag} must be 1 or more, got {value}")
    most = 1 if peers else STRIDED_LAYERS
    if not 0 <= options.unit_strides <= most:
        raise UserError(
            f"--unit-strides must be 0 to {most}{' beside peers' if peers else ''}, got {options.unit_strides}"
        )
    if "keras" in peers and options.resolution < 32:
        raise UserError(f"--resolution must be 32 or more beside keras, got {options.resolution}")

    python = options.peer_python or Path(sys.executable)
    for peer in peers:
        code = "\n".join(f"import {package}" for package in PEERS[peer])
        command = [str(python), "-c", code]
        if not python.is_file() or subprocess.run(command, capture_output=True, env=environment()).returncode:
            raise UserError(f"--peer-python {python} is no Python with {' and '.join(PEERS[peer])}")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out} is a file; name a folder")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be written: {error.strerror}") from error
    return tasks, {"ours": Path(sys.executable), **dict.fromkeys(peers, python)}


def check_loss(name: str, task: str, theirs: float, mine: float) -> None:
    """Refuse to compare networks that compute something else.

    Raises:
        UserError: says both losses.
    """
    from mnv2_jax.errors import UserError

    if not abs(theirs - mine) <= TOLERANCE * abs(mine):
        raise UserError(f"{name} computes something else in {task}: its loss is {theirs:.5f}, and ours {mine:.5f}")


def measure(
    task: str, pythons: dict[str, Path], options: Options, settings: dict[str, Any], folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The result of a task, and what each network says of itself."""

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
    """The smallest and the largest."""
    return [min(values), max(values)]


def ratios(rates: dict[str, list[float]]) -> dict[str, list[float]]:
    """Ours to each peer's, round by round."""
    return {
        name: [mine / theirs for mine, theirs in zip(rates["ours"], values, strict=True)]
        for name, values in rates.items()
        if name != "ours"
    }


def summarize(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of the rates and of the ratios, and how far the rounds lie apart."""
    each = ratios(rates)
    return {
        "images_per_second": {name: median(values) for name, values in rates.items()},
        "spread": {name: spread(values) for name, values in rates.items()},
        "ratio": {name: median(values) for name, values in each.items()},
        "ratio_spread": {name: spread(values) for name, values in each.items()},
    }


def main(options: Options) -> None:
    """Measure, and print."""
    from mnv2_jax.training.metrics import write_atomically

    tasks, pythons = check(options)
    load = os.getloadavg()[0]
    settings = {
        "width_multiplier": options.width_multiplier,
        "resolution": options.resolution,
        "batch_size": options.batch_size,
        "unit_strides": options.unit_strides,
        "threads": thread_count(),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own, so that neither this one nor one that is measured has it in memory.
        command = [sys.executable, __file__, "--inputs", json.dumps(settings), str(folder)]
        with (folder / "inputs.log").open("w") as log:
            code = subprocess.run(command, stdout=log, stderr=log, env=environment()).returncode
        if code:
            raise failure("making the weights", folder / "inputs.log")
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
    """What a result was measured with, in words."""
    strides = result["unit_strides"]
    fewer = f", {strides} of the strides left out" if strides else ""
    return (
        f"width {result['width_multiplier']:g}, {result['resolution']} pixels, batches of {result['batch_size']}{fewer}"
    )


def report(found: dict[str, Any]) -> None:
    """A line each, and the ratio to every peer."""
    if found["load_average"] > 0.5:
        print(f"load average {found['load_average']:.1f} before the start: others use these cores too")
    for result in found["results"]:
        print(f"{result['task']}: {setting(result)}, {result['rounds']} rounds, {found['threads']} threads")
        for name, rate in result["images_per_second"].items():
            low, high = result["spread"][name]
            memory = f", {result['memory_mb'][name]:.0f} MB" if "memory_mb" in result else ""
            print(f"  {name:6} {rate:8.1f} images/s ({low:.1f} to {high:.1f}){memory}, on {found['device'][name]}")
        for name, ratio in result["ratio"].items():
            low, high = result["ratio_spread"][name]
            print(f"  ours to {name}: {ratio:.2f} ({low:.2f} to {high:.2f})")


def draw(found: dict[str, Any], folder: Path) -> None:
    """A panel a task, a bar each: the median, from the smallest to the largest round."""
    from mnv2_jax.ablation import plots
    from mnv2_jax.ablation.plots import plt

    titles = {"ours": "mnv2_jax", "torch": "PyTorch", "keras": "Keras on JAX"}
    hatches = {"ours": "", "torch": "//", "keras": ".."}
    results = found["results"]
    names = list(results[0]["images_per_second"])
    width = max(4.5, 1.2 + 1.4 * len(names))
    figure, panels = plt.subplots(
        1, len(results), figsize=(width * len(results), 4.4), layout="constrained", squeeze=False
    )
    for axes, result in zip(panels.flat, results, strict=True):
        for place, name in enumerate(names):
            rate, (low, high) = result["images_per_second"][name], result["spread"][name]
            color = plots.COLORS[list(titles).index(name)]
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
        axes.set(title=result["task"], ylabel="images a second")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.7)
        axes.set_axisbelow(True)
    first = results[0]
    rounds = f"{first['rounds']} round{'s' if first['rounds'] > 1 else ''}"
    figure.suptitle(
        f"MobileNetV2, {setting(first)}\nmedian, smallest and largest of {rounds}, float32, {found['threads']} threads",
        fontsize=11,
    )
    plots.save(figure, folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), Path(sys.argv[5]))
    elif sys.argv[1:2] == ["--inputs"]:
        write_inputs(json.loads(sys.argv[2]), Path(sys.argv[3]))
    else:
        from mnv2_jax import cli

        # Workers that are stopped would otherwise outlive this process.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        cli.run(main, Options, __doc__)
