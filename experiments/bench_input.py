"""How many images per second does the input pipeline deliver, compared with tf.data? (random crops of JPEGs)

Question: on the same files, how many images per second and CPU core do the stream (Grain, libjpeg-turbo, OpenCV) and
          tf.data deliver?
Command:  python experiments/bench_input.py --peer-python tf/bin/python
          after `python3 -m venv tf && tf/bin/pip install tensorflow-cpu`
Cost:     about a minute on 2 CPU cores.
Expect:   1.3 times tf.data if that decodes whole images, about the same as tf.data if that decodes only the crop.

Both read the same JPEGs (500 by 375 pixels, cut from the two photographs in scikit-learn), take crops of 5 to 100 % of
the area with aspect ratios from 3/4 to 4/3, resize them bilinearly to 224 pixels, mirror half of them and batch them.

tf.data runs with AUTOTUNE in two variants. One decodes the whole image and then crops it, as the paper's code
does (slim/preprocessing/inception_preprocessing.py). The other decodes only the crop (`decode_and_crop_jpeg`). Our
pipeline stops decoding below the crop. It also decodes large crops at reduced size, but crops of 500 by 375 pixels are
too small for that.

The pipelines take turns, each in its own process. The rate per core divides by the CPU time of all threads of the
process.
"""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

WHOLE, FUSED = "tf.data", "tf.data, fused"
SIZE, BATCH, AREA, ASPECT = 224, 32, (0.05, 1.0), (0.75, 1.33)
EXAMPLES = 100_000
"""Size of the data set, which repeats each file many times: a small set is shuffled differently from large ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line flags."""

    peer_python: Path | None = None
    """Python of an environment with TensorFlow; without it, only our pipeline is measured."""
    files: int = 200
    """Number of JPEGs to write."""
    images: int = 2000
    """Images per round."""
    rounds: int = 5
    """Rounds of each pipeline; the pipelines take turns."""
    json: bool = False
    """Print the results as one JSON object."""


# --- The two pipelines, each in its own process ----------------------------------------------------------


def examples(folder: Path) -> list[Path]:
    """Return the paths of all examples, in order."""
    files = sorted(folder.iterdir())
    return [files[index % len(files)] for index in range(EXAMPLES)]


def ours(folder: Path):
    """Yield batches of the stream that training reads."""
    from mnv2_jax.data.sources import FolderSource
    from mnv2_jax.data.stream import StreamedDataset
    from mnv2_jax.data.transforms import RandomCrop

    source = FolderSource(folder, [(path, 0) for path in examples(folder)])
    dataset = StreamedDataset(
        "bench", ("a", "b"), {"train": source}, (SIZE, SIZE, 3), "tensorflow", RandomCrop(AREA[0], ASPECT), True
    )
    for read, _ in dataset.train_data(BATCH).values(0, 0):
        yield read.images


def tensorflow(folder: Path, fused: bool):
    """Yield batches of tf.data, which decodes the whole image and crops it, or decodes only the crop (`fused`)."""
    import tensorflow as tf

    def prepare(path):
        content = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(content),
            tf.zeros((0, 0, 4)),
            min_object_covered=0.0,
            area_range=AREA,
            aspect_ratio_range=ASPECT,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        if fused:
            image = tf.image.decode_and_crop_jpeg(content, window, channels=3, dct_method="INTEGER_FAST")
        else:
            image = tf.slice(tf.image.decode_jpeg(content, channels=3), begin, size)
        image = tf.image.resize(image, (SIZE, SIZE))
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8)

    paths = [str(path) for path in examples(folder)]
    data = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
    data = data.map(prepare, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)
    yield from data.as_numpy_iterator()


def work(name: str, folder: Path) -> None:
    """For each number read from stdin, draw that many images and print the rates per core and of all cores."""
    batches = ours(folder) if name == "ours" else tensorflow(folder, name == FUSED)
    for line in sys.stdin:
        images = int(line)
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        for _ in range(images // BATCH):
            batch = next(batches)
            assert batch.shape == (BATCH, SIZE, SIZE, 3)
        after, stop = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        core = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps({"a_core": images / core, "all_cores": images / (stop - start)}), flush=True)


# --- The comparison --------------------------------------------------------------------------------------


def write_files(folder: Path, count: int) -> None:
    """Write random parts of two photographs as JPEGs of ImageNet's most common size."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    generator = np.random.default_rng(0)
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        top, left = generator.integers(photograph.shape[0] - 375), generator.integers(photograph.shape[1] - 500)
        part = Image.fromarray(photograph[top : top + 375, left : left + 500])
        part.save(folder / f"{index:04}.jpg", quality=95)


def main(options: Options) -> None:
    """Run the benchmark and print the results."""
    from mnv2_jax.errors import UserError

    if min(options.files, options.rounds) < 1 or options.images < BATCH:
        raise UserError(f"--files and --rounds must be 1 or more, and --images {BATCH} or more")
    pythons = {"ours": Path(sys.executable)}
    if options.peer_python is not None:
        check = [options.peer_python, "-c", "import tensorflow"]
        if not options.peer_python.is_file() or subprocess.run(check, capture_output=True).returncode:
            raise UserError(f"--peer-python {options.peer_python} is not a Python interpreter with TensorFlow")
        pythons |= {WHOLE: options.peer_python, FUSED: options.peer_python}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, options.files)
        size = sum(path.stat().st_size for path in folder.iterdir()) / options.files
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
        workers = {
            name: subprocess.Popen(
                [python, __file__, "--work", name, folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
            for name, python in pythons.items()
        }
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        for turn in range(options.rounds + 1):
            for name, worker in workers.items():
                assert worker.stdin is not None
                assert worker.stdout is not None
                worker.send_signal(signal.SIGCONT)
                print(options.images, file=worker.stdin, flush=True)
                result = json.loads(worker.stdout.readline())
                # Otherwise it would fill its buffers while another one is measured.
                worker.send_signal(signal.SIGSTOP)
                if turn:  # the first one warms up
                    measured[name].append(result)
        for worker in workers.values():
            worker.kill()
            worker.communicate()
    report(options, measured, size)


def report(options: Options, measured: dict[str, list[dict[str, float]]], size: float) -> None:
    """Print the rates of each pipeline, and the ratios of ours to the others."""
    ratios = {
        name: [a["a_core"] / b["a_core"] for a, b in zip(measured["ours"], rounds, strict=True)]
        for name, rounds in measured.items()
        if name != "ours"
    }
    if options.json:
        print(json.dumps({"bytes_a_file": size, "images_per_second": measured, "ratio_a_core": ratios}))
        return
    print(f"{options.files} JPEGs of {size / 1000:.0f} KB, {options.images} images per round, {options.rounds} rounds")
    for name, rounds in measured.items():
        core, every = ([entry[kind] for entry in rounds] for kind in ("a_core", "all_cores"))
        print(
            f"{name:14} {median(core):6.0f} images/s per core ({min(core):.0f} to {max(core):.0f}), "
            f"{median(every):6.0f} on {os.cpu_count()} cores"
        )
    for name, each in ratios.items():
        print(f"ours / {name}, per core: {median(each):.2f} ({min(each):.2f} to {max(each):.2f})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], Path(sys.argv[3]))
    else:
        from mnv2_jax import cli

        cli.run(main, Options, __doc__)
