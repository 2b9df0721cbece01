"""What a person sees while a run trains: a bar in a terminal, plain lines in a file."""

import time

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mnv2_jax.training.metrics import Record


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def create_console(quiet: bool = False) -> Console:
    """Standard output; what is no terminal is wide enough for a table in one piece."""
    console = Console(highlight=False, soft_wrap=True, quiet=quiet)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=120, quiet=quiet)


def create_bar(console: Console) -> Progress:
    """A bar with a description before it and a "status" behind it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
        transient=True,
    )


class RunReporter:
    """Shows step, loss, learning rate, images a second a device and the time left of one run.

    Args:
        console: where to; by default standard output. One that is no terminal gets a line for every record.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or create_console()
        self._bar: Progress | None = None

    def say(self, line: str) -> None:
        """Print one line, above the bar if there is one."""
        self.console.print(line, markup=False)

    def start(self, done: int, steps: int) -> None:
        """The run is about to do the steps behind `done`."""
        self._first, self._steps, self._began = done, steps, time.perf_counter()
        if self.console.is_terminal and not self.console.quiet:
            self._bar = create_bar(self.console)
            self._bar.start()
            self._task = self._bar.add_task("training", total=steps, completed=done, status="")

    def stop(self) -> None:
        """End, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def record(self, record: Record) -> None:
        """A record was written."""
        values = dict(record.metrics)
        if record.split != "train":
            metrics = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())
            self.say(f"step {record.step} {record.split}: {metrics} ({record.images} images)")
            return
        per_step = (time.perf_counter() - self._began) / max(record.step - self._first, 1)
        left = duration(per_step * (self._steps - record.step))
        speed = (record.images_per_second or 0) / jax.device_count()
        status = (
            f"loss {values['loss']:.3f}  learning rate {values['learning_rate']:.2e}  "
            f"{speed:.1f} images/s a device  {left} left"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=record.step, status=status)
        else:
            self.say(f"step {record.step}/{self._steps}: {status}")
