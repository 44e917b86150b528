"""Stopping: signals that let the work under way finish."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class Interrupt:
    """Notices Ctrl-C and SIGTERM, and lets what is under way finish."""

    def __init__(self) -> None:
        self.signal: str | None = None

    @contextlib.contextmanager
    def watch(self) -> Iterator[Interrupt]:
        """Catch the signals inside the ``with`` block; a second one is not caught."""
        previous: dict[int, Any] = {}

        def note(number: int, frame: Any) -> None:
            self.signal = signal.Signals(number).name
            signal.signal(number, previous[number])

        for caught in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not in the main thread: nothing to catch
                previous[caught] = signal.signal(caught, note)
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
