"""The state of a group of runs on disk, so that a run that was stopped continues as if it had not been."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mnv2_jax.errors import UserError
from mnv2_jax.network import check_room, orbax_path, said_by, tree_digest
from mnv2_jax.training.step import TrainState

CHECKPOINTS, NETWORK, BEST = "checkpoints", "network", "best_network"
"""Names in a run's folder: of where to continue, of what came out, and of what was best on the validation split."""


class Saved(NamedTuple):
    """What a checkpoint gives back.

    Attributes:
        state: on the devices that were asked for.
        notes: what was saved beside it: the data's position, the timer.
        damaged: steps of newer checkpoints that could not be read, and why.
    """

    state: TrainState
    notes: dict[str, Any]
    damaged: list[tuple[int, str]]


class RunCheckpoints:
    """The checkpoints of one run, numbered by step; each is whole or not there.

    Args:
        folder: for the checkpoints alone.
        keep: newest ones that are kept.
        keep_every: besides, those of every multiple of so many steps.
        read_only: to look at them while, perhaps, the run goes on.
        disposable: whether runs may start from their beginning where none can be read.
        oldest: step of the oldest that the run may resume from; there has to be one if it is not 0.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        keep_every: int | None = None,
        read_only: bool = False,
        disposable: bool = False,
        oldest: int = 0,
    ):
        self.disposable, self._oldest = disposable, oldest
        self._open = contextlib.ExitStack()
        with _writable(folder):
            if not read_only:
                folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self._open.enter_context(orbax_path(folder)),
                item_handlers={"state": ocp.StandardCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()},
                options=ocp.CheckpointManagerOptions(read_only=True)
                if read_only
                else ocp.CheckpointManagerOptions(
                    max_to_keep=keep, keep_period=keep_every, cleanup_tmp_directories=True
                ),
            )
        self._folder = folder

    def save(self, state: TrainState, step: int, notes: Mapping[str, Any]) -> None:
        """Begin to write; the run may go on. What is written is the state as it is now.

        Raises:
            UserError: if the last checkpoint could not be written, for want of space for instance.
        """
        # The next step takes the state's memory, so the writer gets a copy. A digest of it tells later whether all
        # of it came back: what is missing of an array is read as zeros.
        state = jax.tree.map(lambda leaf: leaf.copy(), state)
        notes = {**notes, "sha256": tree_digest(state)}
        with _writable(self._folder):
            # One at a time.
            self._manager.wait_until_finished()
            check_room(self._folder, state)
            self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes))
            )

    def wait(self) -> None:
        """Wait until all that was begun is on disk.

        Raises:
            UserError: if it could not be written.
        """
        with _writable(self._folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and let go of the folder."""
        with _writable(self._folder), self._open:
            self._manager.close()

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint that the run may resume from, newest first."""
        return sorted((step for step in self._manager.all_steps() if step >= self._oldest), reverse=True)

    def restore(self, like: TrainState | None = None) -> Saved | None:
        """The newest checkpoint that can be read; None where there is none at all.

        Args:
            like: the shapes, with the shardings that the arrays shall have; None puts them on the first device,
                as dictionaries.

        Raises:
            UserError: if there are checkpoints and none can be read.
        """
        damaged: list[tuple[int, str]] = []
        for step in self.steps:
            try:
                target = self._shapes(step) if like is None else like
                parts = ocp.args.Composite(state=ocp.args.StandardRestore(target), notes=ocp.args.JsonRestore())
                restored = self._manager.restore(step, args=parts)
                state, notes = restored["state"], restored["notes"]
                if tree_digest(state) != notes["sha256"]:
                    raise ValueError("its content is not what was saved")
                return Saved(state, notes, damaged)
            except Exception as error:  # Orbax lets errors of every library below it through
                damaged.append((step, " ".join(str(error).split())[:120] or type(error).__name__))
        if self._oldest and not damaged:
            raise UserError(
                f"there is no checkpoint of step {self._oldest} or later in {self._folder}, from which the finished run would "
                "be trained longer; --overwrite starts from nothing"
            )
        if damaged:
            steps = ", ".join(str(step) for step, _ in damaged)
            raise UserError(
                f"none of the checkpoints in {self._folder} (of steps {steps}) can be read ({damaged[0][1]}); "
                "--overwrite starts from nothing"
            )
        return None

    def set_aside(self, step: int) -> None:
        """Rename a checkpoint that cannot be read, so that a run that comes to its step again can write it."""
        if jax.process_index() == 0:
            with _writable(self._folder):
                aside = self._folder / f"damaged-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self._folder / str(step)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager.reload()

    def _shapes(self, step: int) -> Any:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        tree = self._manager.item_metadata(step)["state"].tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a full disk comes as OSError, or wrapped by what found it full
        raise UserError(
            f"a checkpoint cannot be written to {folder} ({said_by(error)}); make room, and the same command continues from "
            "the last one that is whole"
        ) from error
