"""The networks that `bench_throughput.py` compares, each in its own process, and their common weights and batch.

`python throughput_networks.py work NAME TASK SETTINGS FOLDER` reads numbers of steps from stdin and answers with
measurements. `python throughput_networks.py inputs SETTINGS FOLDER` writes the weights and the batch.
"""

import ctypes
import json
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = {"ours": ("jax", "flax"), "torch": ("torch", "torchvision"), "keras": ("keras", "jax")}
"""Packages that each network imports."""
CONVENTIONS = {"ours": "tensorflow", "torch": "pytorch", "keras": "tensorflow"}
"""The convention that each network follows when it is timed; ours supports both."""
SOURCES = {"pytorch": "torchvision", "tensorflow": "keras"}
"""The library whose parameter names the weight file of a convention uses."""
TASKS = ("train", "evaluate")
CLASSES, LEARNING_RATE, MOMENTUM = 1000, 1e-3, 0.9

# Each of the three generators yields the name of its device once its packages are imported, then a loss per step.


def ours(task: str, settings: dict[str, Any], folder: Path) -> Iterator[Any]:
    """Run the trainer's step, compiled for one device as `mnv2_jax train` compiles it."""
    import functools

    import jax
    import numpy as np
    import optax

    from mnv2_jax import cli
    from mnv2_jax.data.batch import Batch
    from mnv2_jax.models.mobilenet_v2 import MobileNetV2
    from mnv2_jax.tasks.classification import Classification
    from mnv2_jax.training.devices import DATA, SEED, Devices, Program
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

    devices = Devices.create(1, 1)
    state = devices.put(jax.tree.map(lambda leaf: np.asarray(leaf)[None], state), SEED)
    arrays = devices.put(arrays, DATA)
    function, donate = (train_step, (0,)) if task == "train" else (eval_step, ())
    program = Program(functools.partial(function, learner=learner), (SEED, DATA), (state, arrays), donate)
    step = devices.compile(program)
    while True:
        if task == "train":
            state, sums = jax.block_until_ready(step(state, arrays))
        else:
            sums, _ = jax.block_until_ready(step(state, arrays))
        yield float(np.asarray(sums["loss"])[0]) / count


def torch(task: str, settings: dict[str, Any], folder: Path) -> Iterator[Any]:
    """Run PyTorch without its compiler, as most of its users do."""
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
    """Run the compiled functions that Keras's `fit` and `evaluate` call, without the loops around them."""
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
    # The functions donate these buffers.
    state = tuple([variable.value for variable in group] for group in groups)
    while True:
        logs, state = jax.block_until_ready(function(state, iter([data])))
        yield float(logs["loss"])


NETWORKS = {"ours": ours, "torch": torch, "keras": keras}


def resident(kind: str) -> float | None:
    """Return this process's resident memory in MB, now ("VmRSS") or at its peak ("VmHWM"); None if not on Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(kind))
    except (OSError, StopIteration):
        return None


def forget_peak() -> bool:
    """Return freed memory to the system and reset the peak; return whether that worked."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def work(name: str, task: str, settings: dict[str, Any], folder: Path) -> None:
    """For each number read from stdin, take that many steps and print measurements, with memory after "N memory"."""
    steps = NETWORKS[name](task, settings, folder)
    device = next(steps)
    versions = {package: version(package) for package in PACKAGES[name]} | {"python": platform.python_version()}
    imported = resident("VmRSS")
    for line in sys.stdin:
        count, *wanted = line.split()
        # Not before timed steps: they would have to allocate the returned memory again.
        measurable = bool(wanted) and forget_peak()
        start = time.perf_counter()
        losses = [next(steps) for _ in range(int(count))]
        answer = {"seconds": time.perf_counter() - start, "loss": losses[0], "device": device, "versions": versions}
        peak = resident("VmHWM") if measurable else None
        if peak is not None and imported is not None:
            answer["memory_mb"] = peak - imported
        print(json.dumps(answer), flush=True)


def write_inputs(settings: dict[str, Any], folder: Path) -> None:
    """Write a batch, and weights under each library's names; a network that computes differently has another loss."""
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

    # Statistics of this batch: with initial statistics, features would vanish before the last layer.
    model = MobileNetV2(CLASSES, settings["width_multiplier"], settings["unit_strides"], batch_norm_momentum=0.0)

    @jax.jit
    def create(images):
        variables = model.init(jax.random.key(0), images)
        _, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return {**variables, **updates}

    variables = jax.tree.map(np.asarray, create(images))
    # Initial logits are nearly 0, so the loss would be log(1000) for any features.
    kernel = variables["params"]["classifier"]["kernel"]
    variables["params"]["classifier"]["kernel"] = 0.1 * generator.standard_normal(kernel.shape, np.float32)
    for source in SOURCES.values():
        np.savez(folder / f"{source}.npz", **dict[str, Any](mapping.export(TABLES[source], model, variables)))


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), Path(sys.argv[5]))
    else:
        write_inputs(json.loads(sys.argv[2]), Path(sys.argv[3]))
