"""Progress output during training: a bar in a terminal, otherwise plain lines."""

import contextlib
import threading
import time
from collections.abc import Iterator

import jax
import rich.markup
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mnv2_jax.tasks.task import Metric
from mnv2_jax.training.metrics import Record
from mnv2_jax.wording import counted

TELL_SECONDS = 30.0
"""Seconds between two lines about long work, if the output is not a terminal."""


def duration(seconds: float) -> str:
    """Format seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def create_console(quiet: bool = False, stderr: bool = False) -> Console:
    """Return a console on standard output or standard error; if not a terminal, it is wide enough for tables."""
    console = Console(highlight=False, soft_wrap=True, quiet=quiet, stderr=stderr)
    if not console.is_terminal:
        console.width = 120
    return console


def create_bar(console: Console) -> Progress:
    """Return a progress bar with a description before it and a "status" field after it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
        transient=True,
    )


@contextlib.contextmanager
def timed(console: Console, text: str) -> Iterator[None]:
    """Show what is being done and for how long: as a running clock in a terminal, otherwise by a line every 30 s."""
    if console.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            progress.add_task(rich.markup.escape(text), total=None)
            yield
        return
    console.print(text, markup=False)
    began, done = time.perf_counter(), threading.Event()

    def tell() -> None:
        while not done.wait(TELL_SECONDS):
            console.print(f"{text}: {duration(time.perf_counter() - began)} so far", markup=False)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Reporter:
    """Shows step, loss, images per second and time left, for one run or for the groups of a study in turn.

    A console that is not a terminal gets lines instead of a bar: one per record for a single run, and one per
    evaluation, with the run's own training loss, for each run of a study.

    Args:
        console: where to print; standard output by default.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or create_console()
        self._bar: Progress | None = None
        self._steps, self._began = 0, time.perf_counter()

    def say(self, line: str) -> None:
        """Print one line, above the bar if there is one."""
        self.console.print(line, markup=False)

    def expect(self, steps: int, metric: Metric, several: bool = False) -> None:
        """Set the total number of steps, of one run or of all groups of a study, and the task's main metric."""
        self._total, self._metric, self._several = steps, metric, several
        self._before, self._skipped, self._stepping = 0, 0, 0.0
        self._losses: dict[tuple[str, int], float] = {}
        if self._total and self.console.is_terminal and not self.console.quiet:
            self._bar = create_bar(self.console)
            self._bar.start()
            self._task = self._bar.add_task("training", total=self._total, status="")

    def describe(self, text: str) -> None:
        """Show the current activity, in front of the bar or as a line."""
        if self._bar is not None:
            self._bar.update(self._task, description=text, status="")
        else:
            self.say(text)

    def stop(self) -> None:
        """Remove the bar; also called after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def begin(self, label: str, steps: int, done: int) -> None:
        """Begin a group of runs that has already done `done` of its `steps`."""
        self._label, self._steps, self._began = label, steps, time.perf_counter()
        self._skipped += done

    def end(self) -> None:
        """End the group after its last step."""
        self._before += self._steps
        self._stepping += time.perf_counter() - self._began

    def _left(self, step: int) -> str:
        done = self._before + step
        spent = self._stepping + time.perf_counter() - self._began
        per_step = spent / max(done - self._skipped, 1)
        return f"{duration(per_step * (self._total - done))} left"

    def interval(self, step: int, loss: float, examples_per_second: float) -> None:
        """Show a logged interval of the group that ends at `step`; `loss` is the mean over its runs."""
        if self._bar is not None:
            speed = examples_per_second / jax.device_count()
            status = f"loss {loss:.3f}  {speed:.1f} images/s per device  {self._left(step)}"
            description = f"{self._label} step {step}/{self._steps}" if self._several else "training"
            self._bar.update(self._task, completed=self._before + step, description=description, status=status)

    def record(self, record: Record) -> None:
        """Show a record that was logged."""
        who = f"{record.arm} seed {record.seed}" if self._several else ""
        values, metric = record.metrics, self._metric
        if record.split == "train":
            self._losses[record.arm, record.seed] = values["loss"]
            if self._bar is None and not self._several:
                rate = f"  learning rate {values['learning_rate']:.2e}" if "learning_rate" in values else ""
                speed = (record.images_per_second or 0) / jax.device_count()
                self.say(
                    f"step {record.step}/{self._steps}: loss {values['loss']:.3f}{rate}  {speed:.1f} images/s per "
                    f"device  {self._left(record.step)}"
                )
        elif not self._several:
            metrics = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())
            self.say(f"step {record.step} {record.split}: {metrics} ({counted(record.images, 'image')})")
        elif record.split == "test":
            self.say(f"{who}: test {metric.title} {metric.format(values[metric.name])}, loss {values['loss']:.3f}")
        elif self._bar is None:
            loss = self._losses.get((record.arm, record.seed), float("nan"))
            self.say(
                f"{who} step {record.step}/{self._steps}: loss {loss:.3f}, validation {metric.title} "
                f"{metric.format(values[metric.name])}, {self._left(record.step)}"
            )
