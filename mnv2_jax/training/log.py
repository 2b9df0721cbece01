"""Log the records of runs to JSON lines, TensorBoard and the terminal."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import jax
from jax.experimental import multihost_utils
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from mnv2_jax.training.metrics import Record, read_records, to_line, write_records
from mnv2_jax.training.progress import Reporter


class Log:
    """Writes the records of a group of runs, flushing each to disk. Only process 0 writes.

    TensorBoard files are written in this thread: TensorBoard's own writer uses another one, which dies silently when
    the disk is full.

    Args:
        metrics: the file of JSON lines; records of other runs in it are kept.
        runs: folder of each run's TensorBoard files, by (arm, seed); None to write none.
        reporter: writes to the terminal.
    """

    def __init__(self, metrics: Path, runs: Mapping[tuple[str, int], Path | None], reporter: Reporter):
        self.reporter = reporter
        self.records: list[Record] = []
        self._metrics, self._runs = metrics, runs
        self._file: IO[str] | None = None
        self._boards: dict[tuple[str, int], EventsWriter] = {}

    def start_from(self, step: int) -> None:
        """Open the files to continue after a step.

        Drops the group's records of later steps, which will be repeated, and those of the test split.
        """
        known = read_records(self._metrics)
        others = [r for r in known if (r.arm, r.seed) not in self._runs]
        own = [r for r in known if (r.arm, r.seed) in self._runs and r.step <= step and r.split != "test"]
        self.records = own
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("log")
        if jax.process_index() == 0:
            write_records(self._metrics, [*others, *own])
            self._file = self._metrics.open("a", encoding="utf-8")
            for run, folder in self._runs.items():
                if folder is None:
                    continue
                folder.mkdir(parents=True, exist_ok=True)
                board = self._boards[run] = EventsWriter(str(folder / "events"))
                board.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
                board.flush()

    def has(self, split: str, step: int) -> bool:
        """Return whether there is a record of a split at a step; the answer is the same in every process."""
        return any(record.split == split and record.step == step for record in self.records)

    def write(self, record: Record) -> None:
        """Write one record."""
        self.records.append(record)
        if self._file is None:
            return
        self._file.write(to_line(record))
        self._file.flush()
        board = self._boards.get((record.arm, record.seed))
        if board is not None:
            values = dict(record.metrics)
            if record.images_per_second is not None:
                values["images_per_second"] = record.images_per_second
            for name, value in values.items():
                board.write_event(Event(step=record.step, summary=scalar(f"{record.split}/{name}", value)))
            board.flush()
        self.reporter.record(record)

    def close(self) -> None:
        """Close the files."""
        # Failed writes have already raised an error.
        for file in (self._file, *self._boards.values()):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
