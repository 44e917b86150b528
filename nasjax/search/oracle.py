"""Oracles: the true accuracy of every architecture of a space, from a table."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from nasjax.core.architecture import Arch
from nasjax.search._table import Cell, TableKey, read_columns
from nasjax.search.errors import OracleError

_LISTED = 8  # values of a column that an error message lists


@dataclass(frozen=True, eq=False, repr=False)
class Oracle:
    """A tabular benchmark: every architecture was trained alone, and its accuracy written down.

    It says how good the architecture is that a search found, without training it. It is a judge:
    a search that asks it has seen the answers. :meth:`read` makes one from a CSV file.

    Attributes:
      name: what it is called in messages and reports.
      key: by which columns the table knows an architecture.
      accuracies: the accuracy in percent for each tuple of values of the key columns.

    Example:
      >>> key = TableKey(("width",), lambda arch: {"width": arch["width"]})
      >>> oracle = Oracle("tiny", key, {(8,): 90.0, (16,): 92.0, (32,): 92.0, (64,): 86.0})
      >>> oracle.score({"width": 8})
      {'accuracy': 90.0, 'rank': 3, 'percentile': 75.0, 'regret': 2.0}
      >>> oracle.mean, oracle.random(1), oracle.random(2)
      (90.0, 90.0, 91.25)
    """

    name: str
    key: TableKey
    accuracies: Mapping[tuple[Cell, ...], float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "accuracies", MappingProxyType(dict(self.accuracies)))
        if not self.accuracies:
            raise OracleError(f"oracle {self.name!r} has no architecture: give at least one.")

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        key: TableKey,
        *,
        accuracy: str = "test_acc",
        size: int | None = None,
        name: str | None = None,
    ) -> Oracle:
        """The oracle of a CSV file with a header and one row for each architecture.

        Args:
          path: the file.
          key: by which columns it knows an architecture; values are compared as the file writes
            them, or as numbers where both are numbers.
          accuracy: the column of the accuracies, in percent.
          size: the number of architectures of the space (``space.size``), where it is known; the
            table must have as many.
          name: [the name of the file]

        Raises:
          OracleError: if the file is absent, empty or no CSV file, lacks a column, has an
            architecture twice, an accuracy that is no percentage, or not ``size`` architectures.
        """
        file = Path(path).expanduser()
        lines: dict[tuple[Cell, ...], int] = {}
        accuracies: dict[tuple[Cell, ...], float] = {}
        for line, cells, value in read_columns(file, key.columns, accuracy):
            if cells in lines:
                raise OracleError(
                    f"lines {lines[cells]} and {line} of {file} are of one architecture "
                    f"({_row(key, cells)}): keep one row for each, with the mean of several runs."
                )
            if isinstance(value, str) or not 0 <= value <= 100:
                raise OracleError(
                    f"{accuracy!r} in line {line} of {file} is {value!r}, but a percentage from 0 "
                    "to 100 is expected: correct the line or name another column in accuracy=."
                )
            lines[cells], accuracies[cells] = line, float(value)
        if not accuracies:
            raise OracleError(f"{file} has a header but no row: one per architecture is expected.")
        if size is not None and len(accuracies) != size:
            raise OracleError(
                f"{file} has {len(accuracies)} architectures, but the space has {size}: give the "
                "table of this space, with a row for each of its architectures."
            )
        if 0 < max(accuracies.values()) <= 1:
            raise OracleError(
                f"{accuracy!r} of {file} is at most 1 in every row, but percentages from 0 to 100 "
                "are expected: multiply the column by 100."
            )
        return cls(name or file.stem, key, accuracies)

    def __repr__(self) -> str:
        # A judge does not blurt out the answers.
        return f"{type(self).__name__}(name={self.name!r}, size={self.size})"

    def accuracy(self, arch: Arch) -> float:
        """The accuracy of ``arch`` in percent.

        Raises:
          OracleError: if the table has no row for it.
        """
        cells = self.key.cells(arch)
        if cells not in self.accuracies:
            raise OracleError(
                f"oracle {self.name!r} has no row with {_row(self.key, cells)}: "
                f"{self._reason(cells)}; check the architecture, or what TableKey makes of it."
            )
        return self.accuracies[cells]

    def rank(self, arch: Arch) -> int:
        """1 plus the number of better architectures; those of equal accuracy share a rank."""
        return 1 + self.size - int(np.searchsorted(self._ascending, self.accuracy(arch), "right"))

    def percentile(self, arch: Arch) -> float:
        """Which percentage of all architectures, itself included, is at least as good.

        ``2.6`` reads "among the best 2.6%"; the best one, if it is alone, has ``100 / size``.
        """
        below = int(np.searchsorted(self._ascending, self.accuracy(arch), "left"))
        return 100 * (self.size - below) / self.size

    def regret(self, arch: Arch) -> float:
        """How many percentage points the best architecture is better."""
        return self.best - self.accuracy(arch)

    def score(self, arch: Arch) -> dict[str, float]:
        """All of ``accuracy``, ``rank``, ``percentile`` and ``regret``, ready for JSON."""
        return {
            "accuracy": self.accuracy(arch),
            "rank": self.rank(arch),
            "percentile": self.percentile(arch),
            "regret": self.regret(arch),
        }

    def verdict(self, arch: Arch) -> dict[str, Any]:
        """What is to be said of ``arch`` as the end of a search, ready for JSON.

        Its score, the best of all, and the best of 1, 10 and 100 at random.

        Raises:
          OracleError: if the table has no row for it.
        """
        return {
            "table": self.name,
            "architectures": self.size,
            "found": self.score(arch),
            "best": self.best,
            "random": {str(draws): self.random(draws) for draws in (1, 10, 100)},
        }

    @property
    def size(self) -> int:
        """The number of architectures."""
        return len(self.accuracies)

    @property
    def best(self) -> float:
        """The highest accuracy in percent."""
        return float(self._ascending[-1])

    @property
    def mean(self) -> float:
        """The mean accuracy in percent: what an architecture drawn at random can expect."""
        return float(self._ascending.mean())

    @property
    def std(self) -> float:
        """The standard deviation of the accuracies (of all of them, not of a sample)."""
        return float(self._ascending.std())

    def random(self, draws: int) -> float:
        """The expected accuracy of the best of ``draws`` architectures drawn at random.

        Random search that trains every candidate, the baseline of every search. Draws are uniform
        and with replacement. Exact: the best of ``n`` is at most the ``i``-th of ``N`` accuracies
        in ascending order with probability ``(i / N) ** n``.

        Raises:
          OracleError: if ``draws`` is no integer from 1.
        """
        if isinstance(draws, bool) or not isinstance(draws, int | np.integer) or draws < 1:
            raise OracleError(
                f"draws is {draws!r}, but a number of architectures from 1 is needed."
            )
        below = (np.arange(1, self.size) / self.size) ** int(draws)
        return self.best - float(np.diff(self._ascending) @ below)

    @functools.cached_property
    def _ascending(self) -> np.ndarray:
        return np.sort(np.fromiter(self.accuracies.values(), float))

    def _reason(self, cells: tuple[Cell, ...]) -> str:
        columns = zip(*self.accuracies, strict=True)
        for name, value, column in zip(self.key.columns, cells, columns, strict=True):
            held = list(dict.fromkeys(column))
            if value not in held:
                few = ", ".join(map(repr, held)) if len(held) <= _LISTED else ""
                return f"column {name!r} holds {few or f'values like {held[0]!r}'}"
        return "it holds each of these values, but not together"


def _row(key: TableKey, cells: tuple[Cell, ...]) -> str:
    return ", ".join(f"{n}={c!r}" for n, c in zip(key.columns, cells, strict=True))
