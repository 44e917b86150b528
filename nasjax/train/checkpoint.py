"""Checkpoints: Orbax behind one small class.

Saving is asynchronous and atomic: a step's directory appears when all of it is written. With the
state go the position in the data and what the run is (space, configuration, version), which is
checked before anything is restored.
"""

from __future__ import annotations

import json
import logging
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from nasjax.train.errors import CheckpointError
from nasjax.train.state import State

_STATE, _EXTRA = "state", "extra"
logger = logging.getLogger(__name__)


class Checkpointer:
    """Saves and restores the states of one phase of a run.

    Args:
      directory: where the phase's checkpoints are.
      identity: JSON-able facts that a checkpoint must share with the run that restores it.
      keep: how many of the latest checkpoints to keep.

    Raises:
      CheckpointError: if ``directory`` cannot be made.
    """

    def __init__(
        self, directory: pathlib.Path | str, identity: Mapping[str, Any], keep: int = 2
    ) -> None:
        self.directory = pathlib.Path(directory).absolute()
        self.identity = json.loads(json.dumps(identity))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            save_decision_policy=ocp.checkpoint_managers.FixedIntervalPolicy(1),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            handlers = {
                _STATE: ocp.StandardCheckpointHandler(),
                _EXTRA: ocp.JsonCheckpointHandler(),
            }
            self._manager = ocp.CheckpointManager(
                self.directory, options=options, item_handlers=handlers
            )
        except OSError as error:
            raise CheckpointError(
                f"no checkpoints can be kept in {self.directory}: {error.strerror}; "
                "choose a --workdir that can be written."
            ) from None

    def save(self, state: State, data: Mapping[str, Any], *, wait: bool = False) -> None:
        """Save ``state`` and the position in the data; returns before it is on disk.

        Args:
          state: its ``step`` names the checkpoint; a step that is saved already is left alone.
          data: JSON-able position in the data.
          wait: whether to return only when everything is on disk.

        Raises:
          CheckpointError: if this or the previous save could not be written.
        """
        step = int(state.step)
        extra = {"identity": self.identity, "data": dict(data)}
        try:
            if step not in self._manager.all_steps():
                self._require_space(state)
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        **{
                            _STATE: ocp.args.StandardSave(state),
                            _EXTRA: ocp.args.JsonSave(extra),
                        }
                    ),
                )
            if wait:
                self._manager.wait_until_finished()
        except CheckpointError:
            raise
        except Exception as error:  # Orbax and TensorStore raise whatever the file system did
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.directory} "
                f"({_reason(error)}); free space or choose another --workdir, then run the same "
                "command again: it continues from the last good checkpoint."
            ) from None

    def _require_space(self, state: State) -> None:
        # Asked beforehand: a disk that fills up in the middle of an asynchronous save is reported
        # by three libraries at once.
        needed = sum(x.nbytes for x in jax.tree.leaves(state)) + 2**18
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise CheckpointError(
                f"{self.directory} has {free / 2**20:.1f} MiB left and the checkpoint of step "
                f"{int(state.step)} needs {needed / 2**20:.1f}; free space, then run the same "
                "command again: it continues from the last good checkpoint."
            )

    def latest(self) -> int | None:
        """The step of the newest checkpoint on disk."""
        return self._manager.latest_step()

    def restore(self, like: State) -> tuple[State, dict[str, Any]] | None:
        """The newest checkpoint that can be read, and its position in the data.

        One that cannot be read is reported, removed, and the one before it is taken.

        Args:
          like: a state of the same structure, shapes and shardings.

        Returns:
          None where there is no checkpoint.

        Raises:
          CheckpointError: if the checkpoint is of another space, configuration or structure.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                extra = self._manager.restore(
                    step, args=ocp.args.Composite(**{_EXTRA: ocp.args.JsonRestore()})
                )[_EXTRA]
                self._check(extra["identity"], step)
                state = self._restore_state(step, like)
            except CheckpointError:
                raise
            except Exception as error:
                logger.warning(
                    "The checkpoint of step %d in %s cannot be read (%s); it is removed and the "
                    "one before it is used.",
                    step,
                    self.directory,
                    _reason(error),
                )
                if jax.process_index() == 0:
                    shutil.rmtree(self.directory / str(step), ignore_errors=True)
                self._manager.reload()
                continue
            return state, extra["data"]
        return None

    def _restore_state(self, step: int, like: State) -> State:
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        args = ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(abstract)})
        return self._manager.restore(step, args=args)[_STATE]

    def _check(self, found: Mapping[str, Any], step: int) -> None:
        for name, expected in self.identity.items():
            if found.get(name) != expected:
                raise CheckpointError(
                    f"the checkpoint of step {step} in {self.directory} has {name} "
                    f"{found.get(name)!r}, but this run has {expected!r}; use another --workdir."
                )

    def read_weights(self) -> Any:
        """The weights of the newest checkpoint alone (their moving average where one is kept).

        Raises:
          CheckpointError: if there is no checkpoint that can be read.
        """
        step = self.latest()
        if step is None:
            raise CheckpointError(f"there is no checkpoint in {self.directory}.")
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        try:
            tree = self._manager.item_metadata(step)[_STATE]
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), dict(tree)
            )
            args = ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(abstract)})
            state = self._manager.restore(step, args=args)[_STATE]
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint of step {step} in {self.directory} cannot be read "
                f"({_reason(error)}); remove it to use the one before."
            ) from None
        return state["average"] or state["weights"]

    def close(self) -> None:
        """Wait for saves under way. A run ends with a save that was waited for, so one that fails
        here was not its last: that is said, and nothing raised."""
        try:
            self._manager.wait_until_finished()
            self._manager.close()
        except Exception as error:
            logger.warning("A save to %s failed: %s", self.directory, _reason(error))


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
