"""Train a network on a data set, on all devices of one or several hosts.

--recipe sets all training settings at once, and other flags override single ones. --weights starts from a trained
network. Running the same command again resumes the run. SIGTERM saves its state and exits with code 75. To train a
finished run longer, run the same command with more --epochs or --images.
"""

import dataclasses
import itertools
import shlex
from pathlib import Path
from typing import Annotated

import tyro

from mnv2_jax.results import command_line
from mnv2_jax.settings import DataSettings, NetworkSettings
from mnv2_jax.training.config import RECIPES, Execution, Recipe, RecipeName, Run
from mnv2_jax.training.distributed import Processes

Flat = tyro.conf.arg(name="")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this command. The string below each field is its help text."""

    data: Annotated[DataSettings, Flat] = DataSettings()
    """Data to train on."""
    network: Annotated[NetworkSettings, Flat] = NetworkSettings()
    """Network to train."""
    weights: str | None = None
    """Start from trained weights: a run or network folder, a file that `convert` reads, hf://OWNER/NAME or
    torchvision://FILE."""
    recipe: RecipeName = "small"
    """Named training settings: small (for small data sets), paper (Sec. 6.1), cosine (SGD, 150 epochs, 72.2 %)."""
    training: Annotated[Recipe, Flat] = RECIPES["small"]
    """Training settings."""
    seed: int = 0
    """Random seed: initial weights, data order, augmentation and dropout."""
    out: Path | None = None
    """Folder of the run; runs/train-DATASET-MODEL-SEED if not given."""
    overwrite: bool = False
    """Replace the run in --out instead of resuming it."""
    execution: Annotated[Execution, Flat] = Execution()
    """Execution settings. They change results by rounding at most."""
    processes: Annotated[Processes, Flat] = Processes()
    """Processes that make up the run."""


def default(arguments: list[str]) -> Options:
    """Return the defaults of the flags: the settings of the recipe that they name."""
    names = [argument.partition("=") for argument in arguments]
    following = [after for flag, after in itertools.pairwise(arguments) if flag == "--recipe"]
    given = [value for flag, equals, value in names if flag == "--recipe" and equals] + following
    name = given[-1] if given else "small"
    if name not in RECIPES:
        return Options()
    return Options(recipe=name, training=RECIPES[name])


def main(options: Options) -> None:
    """Train the network."""
    run = Run(
        **options.data.settings(),
        model=options.network.settings(from_weights=options.weights is not None),
        training=options.training,
        seed=options.seed,
        weights=options.weights,
    )

    from mnv2_jax.training.distributed import initialize

    initialize(options.processes)

    import jax

    from mnv2_jax.environment import environment
    from mnv2_jax.tasks.task import TASKS
    from mnv2_jax.training.progress import Reporter, create_console
    from mnv2_jax.training.run import train_run

    name = run.model["name"] or "weights"
    folder = options.out or Path("runs") / f"train-{run.dataset}-{name}-{run.seed}"
    # All processes train; only the first one prints.
    reporter = Reporter(create_console(quiet=jax.process_index() != 0))
    summary = train_run(run, options.execution, folder, reporter, options.overwrite, command_line(), environment())
    test, metric = summary["test"], TASKS[run.task].metric
    others = {key: value for key, value in test.items() if key not in (metric.name, "loss", "examples")}
    said = [f"test {metric.title} {metric.format(test[metric.name])}"]
    said += [f"{key.replace('_', ' ')} {value:.2%}" for key, value in others.items()]
    reporter.say(", ".join([*said, f"loss {test['loss']:.4f}"]))
    for name in ("figure.png", "summary.json", "metrics.jsonl", "network", "best_network"):
        if (folder / name).exists():  # runs of earlier versions have no best network
            reporter.say(str(folder / name))
    reporter.say(f"tensorboard --logdir {shlex.quote(str(folder / 'tensorboard'))}")
