"""What came out of a case: quantities, how far off each is, and which of them count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.golden.fixture import GoldenError

TOLERANCE = {"output": 1e-4, "loss": 1e-4, "gradient": 1e-3, "count": 0.0, "info": np.inf}
COUNTS = {
    "all": {"output", "loss", "gradient", "count"},
    "outputs": {"output", "count"},
    "none": set(),
}


def relative_error(actual: Any, expected: Any) -> float:
    """max |difference| / max |expected|, absolute where all is zero; infinite if shapes differ."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        return np.inf
    if not expected.size:
        return 0.0
    scale = float(np.max(np.abs(expected)))
    difference = float(np.max(np.abs(actual - expected)))
    return difference / scale if scale else difference


@dataclass(frozen=True)
class Quantity:
    """One number or array of a case.

    Attributes:
      name: what it is.
      kind: a key of ``TOLERANCE``; ``"info"`` never counts.
      error: relative error.
    """

    name: str
    kind: str
    error: float

    @classmethod
    def of(cls, name: str, kind: str, actual: Any, expected: Any) -> Quantity:
        """Compare ``actual`` with ``expected``; counts as the exact integers they are."""
        if kind == "count" and actual == expected:
            return cls(name, kind, 0.0)
        error = relative_error(actual, expected)
        # Integers beyond 2**53 may differ and still be equal as floats.
        return cls(name, kind, max(error, 1e-16) if kind == "count" else error)

    @property
    def within(self) -> bool:
        """Whether the error is within the bar; one that is not a number is not."""
        return bool(self.error <= TOLERANCE[self.kind])


@dataclass(frozen=True)
class Case:
    """A case and its quantities.

    Attributes:
      name: of the case.
      bar: what counts, a key of ``COUNTS``.
      quantities: what was compared.
    """

    name: str
    bar: str
    quantities: tuple[Quantity, ...]

    def __post_init__(self) -> None:
        if self.bar not in COUNTS:
            raise GoldenError(
                f"case {self.name!r} has the bar {self.bar!r}; {', '.join(COUNTS)} were expected."
            )

    def counts(self, quantity: Quantity) -> bool:
        """Whether ``quantity`` decides over the case."""
        return quantity.kind in COUNTS[self.bar]

    @property
    def status(self) -> str:
        """``"ok"``, ``"FAIL"``, or ``"info"`` where nothing counts."""
        counted = [q for q in self.quantities if self.counts(q)]
        if not counted:
            return "info"
        return "ok" if all(q.within for q in counted) else "FAIL"

    def line(self, stem: str) -> str:
        """The case in one line; what does not count is in parentheses."""
        parts = []
        for q in self.quantities:
            text = f"{q.name} {'0' if q.error == 0 else f'{q.error:.1e}'}"
            parts.append(text if self.counts(q) else f"({text})")
        return f"{stem}  {self.name}  {'  '.join(parts)}  {self.status}"
