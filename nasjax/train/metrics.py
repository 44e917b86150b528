"""Where metrics go: a JSON-lines file anyone can read, the terminal, TensorBoard if asked for."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from nasjax.core.errors import NasjaxError
from nasjax.train.errors import CheckpointError


class MetricWriter(Protocol):
    """Receives metrics; write these two methods to send them elsewhere."""

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Record ``values`` at ``step`` of ``phase``."""

    def close(self) -> None:
        """Flush what is buffered."""


def plain(value: Any) -> Any:
    """``value`` as JSON has it: numbers, lists, mappings."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "shape"):
        return np.asarray(value).tolist()
    return value


class JsonlWriter:
    """One JSON object a line, in a file that resumed runs continue.

    Args:
      path: the file.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def rewind(self, phase: str, step: int) -> None:
        """Drop the lines of ``phase`` after ``step``, which a resumed run writes anew."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # half-written when the run was killed
                continue
            # The test accuracy is written after the phase, and anew when it is resumed.
            again = row.get("step", 0) > step or "test_accuracy" in row
            if row.get("phase") != phase or not again:
                kept.append(line + "\n")
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, self.path)

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Append a line."""
        # What was not measured at this step is nan, which JSON does not have.
        measured = {k: v for k, v in plain(values).items() if v == v}
        row = {"phase": phase, "step": step, **measured}
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be written ({error.strerror}); free space, then run the same "
                "command again: it continues from the last good checkpoint."
            ) from None

    def close(self) -> None:
        """Nothing is buffered."""


class TensorBoardWriter:
    """TensorBoard events of the numbers (the extra ``nasjax[tensorboard]``).

    Args:
      directory: where the events go.

    Raises:
      NasjaxError: if tensorboardX is not installed.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise NasjaxError(
                'TensorBoard events need tensorboardX: pip install "nasjax[tensorboard]".'
            ) from None
        self._writer = SummaryWriter(str(directory))

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Write every number as a scalar."""
        for name, value in plain(values).items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{phase}/{name}", value, step)

    def close(self) -> None:
        """Flush the events."""
        self._writer.close()
