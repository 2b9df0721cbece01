"""What a person sees while a study runs: a bar in a terminal, plain lines in a file."""

import time
from collections.abc import Sequence
from statistics import fmean

from rich.console import Console
from rich.progress import Progress

from mnv2_jax.ablation.design import Run
from mnv2_jax.training.loop import Logged
from mnv2_jax.training.metrics import Record
from mnv2_jax.training.progress import create_bar, create_console, duration


class Reporter:
    """Shows arm, seed, step, loss, images a second and the time left, and prints a line when a run ends.

    Args:
        console: where to; by default standard output. A console that is no terminal gets no bar but a line
            for every logged step.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or create_console()
        self.trained = 0
        self._bar: Progress | None = None

    def say(self, line: str) -> None:
        """Print one line, above the bar if there is one."""
        self.console.print(line, markup=False)

    def start(self, steps: int, groups: int, pending: int, runs: int) -> None:
        """Begin: `groups` groups of runs, of `steps` steps each, hold the `pending` ones of `runs`."""
        self._steps, self._groups, self._done_groups = steps, groups, 0
        self._stepping, self._skipped = 0.0, 0
        self._status = "read back"  # until the first of the records is made here
        self.trained = pending
        if pending < runs:
            self.say(f"{runs - pending} of {runs} runs were finished before.")
        if groups and self.console.is_terminal:
            self._bar = create_bar(self.console)
            self._bar.start()
            self._task = self._bar.add_task("", total=steps * groups, status="")

    def stop(self) -> None:
        """End, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def compiling(self, arms: Sequence[str]) -> None:
        """The program of these arms is being compiled."""
        arm = ", ".join(arms)
        if self._bar is not None:
            self._bar.update(self._task, description=f"{arm}: compiling", status="")
        else:
            self.say(f"{arm}: compiling")

    def compiled(self, arms: Sequence[str], seconds: float) -> None:
        """It took `seconds`."""
        self.say(f"{', '.join(arms)}: compiled in {seconds:.0f} s")

    def run(self, runs: Sequence[Run]) -> None:
        """A group of runs begins."""
        arms, seeds, rates = (dict.fromkeys(each) for each in zip(*runs, strict=True))
        self._label = f"{', '.join(arms)} seed {', '.join(map(str, seeds))}"
        if set(rates) != {1.0}:
            self._label += f" learning rate x {', '.join(f'{rate:g}' for rate in rates)}"
        self._run_start = time.perf_counter()

    def resumed(self, step: int) -> None:
        """The group goes on from a step that it had reached before."""
        self._skipped += step
        self.say(f"going on from step {step}")

    def step(self, logged: Logged) -> None:
        """An interval of the group was logged."""
        now = time.perf_counter()
        done = self._done_groups * self._steps + logged.step
        per_step = (self._stepping + now - self._run_start) / (done - self._skipped)
        left = duration(per_step * (self._steps * self._groups - done))
        loss = fmean(run["loss"] for run in logged.metrics)
        self._status = f"loss {loss:.3f}  {logged.examples_per_second:.0f} images/s  {left} left"
        if self._bar is not None:
            description = f"{self._label} step {logged.step}/{self._steps}"
            self._bar.update(self._task, completed=done, description=description, status=self._status)

    def record(self, record: Record) -> None:
        """A record was written."""
        label = f"{record.arm} seed {record.seed}"
        if record.split == "test":
            self.say(f"{label}: test accuracy {record.metrics['accuracy']:.1%}, loss {record.metrics['loss']:.3f}")
        elif self._bar is None and record.split == "train":
            self.say(f"{label} step {record.step}/{self._steps}: {self._status}")

    def run_ended(self) -> None:
        """The group of runs has done its steps."""
        self._done_groups += 1
        self._stepping += time.perf_counter() - self._run_start
