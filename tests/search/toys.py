"""A small space, its costs and fitness, quick to compute; and evaluations that can be watched."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from nasjax.core.space import Choice, SearchSpace
from nasjax.search import Constraint, History, Objective, Problem

SPACE = SearchSpace(
    "toys",
    (
        Choice("width", (2, 1, 4, 3)),
        Choice("depth", (1, 2, 3)),
        Choice("ratio", (1, 2, 4), per="blocks"),
    ),
    {"embed": "width", "blocks": "depth", "hidden": lambda width, ratio: width * ratio},
)
ACCURACY = Objective("accuracy", maximize=True)
PARAMS = Objective("params")


def params(arch: Any) -> int:
    """From 1 to 48."""
    return arch["width"] * sum(arch["ratio"])


def accuracy(arch: Any) -> float:
    """More is better up to a plateau of 25 architectures, and others are equal too."""
    gains = sum(ratio / (2 + layer) for layer, ratio in enumerate(arch["ratio"]))
    return round(min(arch["width"] ** 0.5 + gains - 0.1 * arch["depth"] ** 2, 4.0), 1)


def problem(
    objectives: Sequence[Objective] = (ACCURACY,),
    constraints: Sequence[Constraint] = (),
    space: SearchSpace = SPACE,
) -> Problem:
    """What is searched for in these tests."""
    return Problem(space, tuple(objectives), tuple(constraints), {"params": params})


def code(arch: Any) -> str:
    """What tells architectures apart."""
    return json.dumps(arch, sort_keys=True)


def found(history: History) -> dict[str, dict[str, float]]:
    """All that a history knows, whatever its order."""
    return {code(entry.arch): entry.values for entry in history}


class Crash(Exception):
    """Stands for a kill."""


class Watched:
    """An evaluation that remembers what it has seen, and crashes when it has seen enough.

    ``backwards`` gives the values of a population in another order, as devices may.
    """

    def __init__(
        self, crash_after: int | None = None, backwards: bool = False, fitness: Any = accuracy
    ) -> None:
        self.seen: list[dict[str, Any]] = []
        self._crash_after, self._backwards, self._fitness = crash_after, backwards, fitness

    def __call__(self, archs: Sequence[Any]) -> Iterator[tuple[Any, dict[str, float]]]:
        for arch in archs[::-1] if self._backwards else archs:
            if len(self.seen) == self._crash_after:
                raise Crash
            self.seen.append(arch)
            yield arch, {"accuracy": self._fitness(arch)}
