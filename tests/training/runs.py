"""A run that is over in seconds, for the tests of what happens to runs."""

import io
from pathlib import Path

STAGES = ((1, 16, 1, 1), (2, 24, 1, 2))
STEPS = 60
# Of these some would be left if it were killed twelve times on a machine that is several times faster.
LONG = {"epochs": 20}


def run_tiny(
    folder: Path, streamed: bool = False, on_start=lambda: None, log=None, training=None, model=None, **execution
):
    """Train two blocks on digits at 12 pixels with all that a run can have; returns the summary."""
    from rich.console import Console

    from mnv2_jax.training.config import TrainConfig
    from mnv2_jax.training.progress import RunReporter
    from mnv2_jax.training.run import Execution, Run, execute

    class Reporter(RunReporter):
        def start(self, done, steps):
            super().start(done, steps)
            on_start()

    settings = dict(
        epochs=4, batch_size=16, learning_rate=0.05, ema_decay=0.9, accumulation=2, dropout_rate=0.2, evaluations=3
    )
    run = Run(
        dataset="digits",
        model={"name": "mobilenet_v2", "width_multiplier": 0.1, "unit_strides": 1, "stages": STAGES, **(model or {})},
        training=TrainConfig(**{**settings, **(training or {})}),
        seed=5,
        resolution=12,
        train_images=240,
        streamed=streamed,
    )
    reporter = Reporter(Console(file=log or io.StringIO(), width=200))
    overwrite = execution.pop("overwrite", False)
    return execute(run, Execution(**{"log_every": 7, **execution}), folder, reporter, overwrite)
