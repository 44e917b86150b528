"""Stopping: signals that let the work under way finish, on every host at the same step."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
from jax.experimental import multihost_utils


class Interrupt:
    """Notices Ctrl-C and SIGTERM, which is also how a cluster announces a preemption.

    Where there are several processes, one that gets the signal tells the others, and all of them
    stop after the same step.
    """

    # JAX's agreement is on a number that only grows as long as the process lives.
    _asked: ClassVar[Iterator[int]] = itertools.count(1)

    def __init__(self) -> None:
        self._signal: str | None = None

    def stops(self) -> str | None:
        """The signal to stop for now, or None; to be asked after each step, by every process."""
        if jax.process_count() == 1:
            return self._signal
        agreed = multihost_utils.reached_preemption_sync_point(next(self._asked))
        return (self._signal or "SIGTERM") if agreed else None

    @contextlib.contextmanager
    def watch(self) -> Iterator[Interrupt]:
        """Catch the signals inside the ``with`` block; a second one is not caught."""
        previous: dict[int, Any] = {}
        alone = jax.process_count() == 1

        def note(number: int, frame: Any) -> None:
            self._signal = signal.Signals(number).name
            signal.signal(number, previous[number])
            if not alone:
                signal.raise_signal(signal.SIGTERM)  # which JAX has been watching from the start

        for caught in (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,):
            with contextlib.suppress(ValueError):  # not in the main thread: nothing to catch
                previous[caught] = signal.signal(caught, note)
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
