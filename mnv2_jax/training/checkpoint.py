"""Save the state of a group of runs, so that a stopped run resumes exactly."""

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
"""Names in a run's folder: the checkpoints, the final network, and the best network on the validation split."""


class Saved(NamedTuple):
    """A restored checkpoint.

    Attributes:
        state: on the requested devices.
        notes: what was saved with it, such as the data position and the timer.
        damaged: (step, reason) of newer checkpoints that could not be read.
    """

    state: TrainState
    notes: dict[str, Any]
    damaged: list[tuple[int, str]]


class RunCheckpoints:
    """The checkpoints of a group of runs, numbered by step; each is either complete or absent.

    Args:
        folder: holds nothing but the checkpoints.
        keep: number of newest checkpoints to keep.
        keep_every: also keep every checkpoint whose step is a multiple of this.
        read_only: only read them, possibly while the run is training.
        disposable: whether the runs may start over if no checkpoint can be read.
        oldest: first step that the run may resume from; if it is not 0, a checkpoint from there on must exist.
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
        """Start writing the state as it is now, in the background.

        Raises:
            UserError: if this or the previous checkpoint cannot be written, for example because the disk is full.
        """
        # The state is donated to the next step, so the writer gets a copy. Missing parts of an array are read as
        # zeros; the digest detects that on restore.
        state = jax.tree.map(lambda leaf: leaf.copy(), state)
        notes = {**notes, "sha256": tree_digest(state)}
        with _writable(self._folder):
            # One write at a time.
            self._manager.wait_until_finished()
            check_room(self._folder, state)
            self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes))
            )

    def wait(self) -> None:
        """Wait until pending checkpoints are on disk.

        Raises:
            UserError: if one could not be written.
        """
        with _writable(self._folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for pending checkpoints and close the folder."""
        with _writable(self._folder), self._open:
            self._manager.close()

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints that the run may resume from, newest first."""
        return sorted((step for step in self._manager.all_steps() if step >= self._oldest), reverse=True)

    def restore(self, like: TrainState | None = None) -> Saved | None:
        """Restore the newest checkpoint that can be read; return None if there are no checkpoints.

        Args:
            like: shapes and target shardings of the arrays; None restores them on the first device, as dictionaries.

        Raises:
            UserError: if no checkpoint can be read, or there is none from step `oldest` on.
        """
        damaged: list[tuple[int, str]] = []
        for step in self.steps:
            try:
                target = self._shapes(step) if like is None else like
                parts = ocp.args.Composite(state=ocp.args.StandardRestore(target), notes=ocp.args.JsonRestore())
                restored = self._manager.restore(step, args=parts)
                state, notes = restored["state"], restored["notes"]
                if tree_digest(state) != notes["sha256"]:
                    raise ValueError("its content differs from what was saved")
                return Saved(state, notes, damaged)
            except Exception as error:  # Orbax passes on errors of every library below it
                damaged.append((step, " ".join(str(error).split())[:120] or type(error).__name__))
        if self._oldest and not damaged:
            raise UserError(
                f"{self._folder} has no checkpoint of step {self._oldest} or later to train the finished run longer "
                "from; use --overwrite to start over"
            )
        if damaged:
            steps = ", ".join(str(step) for step, _ in damaged)
            remedy = "these runs start over" if self.disposable else "use --overwrite to start over"
            raise UserError(
                f"none of the checkpoints in {self._folder} (steps {steps}) can be read ({damaged[0][1]}); {remedy}"
            )
        return None

    def set_aside(self, step: int) -> None:
        """Rename an unreadable checkpoint, so that the run can save at that step again."""
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
    except Exception as error:  # a full disk raises OSError, or an error of a library that wraps it
        raise UserError(
            f"a checkpoint cannot be written to {folder} ({said_by(error)}); free some space and run the same command "
            "to resume from the last complete checkpoint"
        ) from error
