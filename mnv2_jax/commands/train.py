"""One run: train a network on a data set, on all devices of this host or of several.

--recipe sets all settings of the training at once; every other flag then changes one of them. The same command
again goes on where it stopped; SIGTERM saves and ends with exit code 75.
"""

import dataclasses
import itertools
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mnv2_jax.commands.options import check_resolution, check_unit_strides
from mnv2_jax.data.names import OnBadImage
from mnv2_jax.errors import UserError
from mnv2_jax.models.names import Activation, ConventionName, Layers, ModelName
from mnv2_jax.training.config import RECIPES, Parallel, TrainConfig
from mnv2_jax.training.distributed import Processes

RecipeName = Literal["small", "paper", "cosine"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this command. What follows a field is its help."""

    dataset: str = "digits"
    """A set that `python -m mnv2_jax datasets` lists, any prepared classification set of TFDS, or "folder"."""
    data_files: Path | None = None
    """For folder: your images, a subfolder a class. For fashion_mnist: the four IDX files."""
    input: Literal["auto", "resident", "stream"] = "auto"
    """Keep the whole set on the devices, or read it while it is used; auto goes by the size of the set."""
    on_bad_image: OnBadImage = "stop"
    """What to do about a damaged image in a stream."""
    train_images: int | None = None
    """Train on this many images of the training split; all of them if not given."""
    resolution: int | None = None
    """Side of the square images in pixels; the data set's own if not given."""
    model: ModelName = "mobilenet_v2"
    """The network."""
    width_multiplier: float = 1.0
    """Scales the channels of every layer."""
    expansion: float | None = None
    """t of MobileNetV2's blocks; 6 if not given."""
    bottleneck_activation: Activation | None = None
    """What follows the bottlenecks of MobileNetV2; nothing (linear) if not given."""
    convention: ConventionName = "tensorflow"
    """Padding, epsilon, initialisers and normalisation: the paper's code's, or PyTorch's."""
    unit_strides: int | None = None
    """How many of the first stride-2 layers take stride 1; by the size of the images if not given."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters and statistics are float32."""
    layers: Layers = "fitted"
    """Layers written so that the platform compiles them well, or plain, as JAX has them."""
    recipe: RecipeName = "small"
    """Settings of the training by name: small (a small set), paper (Sec. 6.1), cosine (SGD, 150 epochs, 72.2 %)."""
    training: Annotated[TrainConfig, tyro.conf.arg(name="")] = RECIPES["small"]
    """How parameters change."""
    seed: int = 0
    """Of the initial weights, the order of the images and all other chances."""
    out: Path | None = None
    """Folder of the run; runs/train-DATASET-MODEL-SEED if not given."""
    overwrite: bool = False
    """Begin anew in a folder that holds a run."""
    parallel: Parallel = "jit"
    """How the step is compiled for several devices."""
    log_every: int | None = None
    """Steps between two records; some fifty a run if not given."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints; one at every evaluation if not given."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    keep_every: int | None = None
    """Keep those of every multiple of so many steps besides."""
    profile: str | None = None
    """FIRST:LAST steps of which to write a trace, for XProf or Perfetto."""
    processes: Annotated[Processes, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Processes)
    """Which processes make up the run."""


def default(arguments: list[str]) -> Options:
    """What the flags start from: the settings of the recipe that they name."""
    names = [argument.partition("=") for argument in arguments]
    following = [after for flag, after in itertools.pairwise(arguments) if flag == "--recipe"]
    given = [value for flag, equals, value in names if flag == "--recipe" and equals] + following
    name = given[-1] if given else "small"
    if name not in RECIPES:
        return Options()
    return Options(recipe=name, training=RECIPES[name])  # type: ignore[arg-type]


def main(options: Options) -> None:
    """Train what the flags describe."""
    if not 0 < options.width_multiplier < 100:
        raise UserError(f"--width-multiplier must be greater than 0 and below 100, got {options.width_multiplier}")
    if options.resolution is not None:
        check_resolution(options.resolution)
    if options.unit_strides is not None:
        check_unit_strides(options.unit_strides)
    if not 0 <= options.seed < 2**31:
        raise UserError(f"--seed must be from 0 to below 2^31, got {options.seed}")
    of_v2 = {"expansion": options.expansion, "bottleneck_activation": options.bottleneck_activation}
    of_v2 = {name: value for name, value in of_v2.items() if value is not None}
    if of_v2 and options.model != "mobilenet_v2":
        raise UserError(f"{options.model} has no --{next(iter(of_v2)).replace('_', '-')}; mobilenet_v2 has")
    if options.expansion is not None and not 0 < options.expansion < 100:
        raise UserError(f"--expansion must be greater than 0 and below 100, got {options.expansion}")
    profile = None
    if options.profile is not None:
        try:
            first, last = map(int, options.profile.split(":"))
        except ValueError:
            raise UserError(f"--profile must be FIRST:LAST, two steps, got {options.profile!r}") from None
        profile = (first, last)

    from mnv2_jax.training.distributed import initialize

    initialize(options.processes)

    import jax

    from mnv2_jax.environment import environment
    from mnv2_jax.training.progress import RunReporter, create_console
    from mnv2_jax.training.run import Execution, Run, execute

    run = Run(
        dataset=options.dataset,
        model={
            "name": options.model,
            "width_multiplier": options.width_multiplier,
            "layers": options.layers,
            "convention": options.convention,
            "unit_strides": options.unit_strides,
            "dtype": options.dtype,
            **of_v2,
        },
        training=options.training,
        seed=options.seed,
        resolution=options.resolution,
        train_images=options.train_images,
        streamed={"auto": None, "resident": False, "stream": True}[options.input],
        data_files=options.data_files,
    )
    execution = Execution(
        parallel=options.parallel,
        log_every=options.log_every,
        checkpoint_every=options.checkpoint_every,
        keep=options.keep,
        keep_every=options.keep_every,
        profile=profile,
        on_bad_image=options.on_bad_image,
    )
    folder = options.out or Path("runs") / f"train-{options.dataset}-{options.model}-{options.seed}"
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    if Path(sys.argv[0]).name == "__main__.py":
        command = shlex.join(["python", "-m", "mnv2_jax", *sys.argv[1:]])
    # Every process computes, and the first one speaks.
    reporter = RunReporter(create_console(quiet=jax.process_index() != 0))
    summary = execute(run, execution, folder, reporter, options.overwrite, command, environment())
    test = summary["test"]
    reporter.say(f"test accuracy {test['accuracy']:.2%}, top five {test['top5_accuracy']:.2%}, loss {test['loss']:.4f}")
    for name in ("figure.png", "summary.json", "metrics.jsonl", "network"):
        reporter.say(str(folder / name))
