"""Where the records of a run go: JSON lines, TensorBoard, and the terminal."""

import contextlib
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from mnv2_jax.training.metrics import Record, read_records, to_line, write_records
from mnv2_jax.training.progress import RunReporter


class Log:
    """Writes records as they come, each to the disk at once. Only the first process writes.

    TensorBoard's files are written in this thread: its own writer has another one, which a full disk kills unseen.

    Args:
        metrics: the file of JSON lines.
        tensorboard: the folder of TensorBoard's files.
        reporter: the terminal.
        step: of what is there, records behind this step are of steps that are done again, and left out; so is the
            record of the test split.
    """

    def __init__(self, metrics: Path, tensorboard: Path, reporter: RunReporter, step: int):
        self._reporter = reporter
        self._file = self._board = None
        self.records = [r for r in read_records(metrics) if r.step <= step and r.split != "test"]
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("log")
        if jax.process_index() == 0:
            write_records(metrics, self.records)
            self._file = metrics.open("a", encoding="utf-8")
            tensorboard.mkdir(exist_ok=True)
            self._board = EventsWriter(str(tensorboard / "events"))
            start = SessionLog(status=SessionLog.START)
            self._board.write_event(Event(step=step + 1, session_log=start))
            self._board.flush()

    def has(self, split: str, step: int) -> bool:
        """Whether a split was evaluated after a step; every process knows what the first one wrote."""
        return any(record.split == split and record.step == step for record in self.records)

    def write(self, record: Record) -> None:
        """Write one record."""
        if self._file is None or self._board is None:
            return
        self._file.write(to_line(record))
        self._file.flush()
        values = dict(record.metrics)
        if record.images_per_second is not None:
            values["images_per_second"] = record.images_per_second
        for name, value in values.items():
            summary = scalar(f"{record.split}/{name}", value)
            self._board.write_event(Event(step=record.step, summary=summary))
        self._board.flush()
        self._reporter.record(record)

    def close(self) -> None:
        """Let go of the files."""
        if self._file is not None and self._board is not None:
            # What could not be written has been said.
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._board.close()
