"""A trace of some steps, to be looked at in XProf or Perfetto."""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

_AFTER = 3  # calls first: the program is compiled and the pipelines are full
logger = logging.getLogger(__name__)


class Profiler:
    """Traces calls of a phase's step.

    Args:
      directory: where the trace goes.
      calls: how many calls are traced; 0 for none.
    """

    def __init__(self, directory: pathlib.Path, calls: int = 0) -> None:
        self._directory, self._calls = directory, calls
        self._seen = 0
        self._tracing = False

    @contextlib.contextmanager
    def watch(self) -> Iterator[Profiler]:
        """End a trace that is under way when the block is left, however that is."""
        try:
            yield self
        finally:
            self._stop()

    def called(self, result: Any) -> None:
        """To be called after each call, with what it returned."""
        self._seen += 1
        if self._calls and self._seen == _AFTER:
            jax.block_until_ready(result)
            jax.profiler.start_trace(self._directory)
            self._tracing = True
        if self._tracing and self._seen == _AFTER + self._calls:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
            logger.info(
                "Trace of %d calls: %s (xprof --logdir %s)",
                self._seen - _AFTER,
                self._directory,
                self._directory,
            )
