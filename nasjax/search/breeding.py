"""Children of architectures: legal, within the constraints, and never made before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from nasjax.core import architecture
from nasjax.core.architecture import Arch
from nasjax.search.objectives import Problem

Parents = Sequence[Arch]


class Breeder:
    """Makes architectures that it has not made yet; fewer than wanted where it finds no more.

    Args:
      problem: whose space they lie in and whose constraints they keep.
      rng: of the draws.
      probability: with which a value is drawn anew in a mutation.
      whole: the same for choices of the whole network; None for the same.
      known: architectures that are not to be made.
      tries: for each of those wanted.
    """

    def __init__(
        self,
        problem: Problem,
        rng: np.random.Generator,
        probability: float,
        whole: float | None = None,
        *,
        known: Iterable[Arch] = (),
        tries: int = 100,
    ) -> None:
        self._problem, self._rng, self._tries = problem, rng, tries
        self._probabilities = (probability, whole)
        self._seen = {architecture.code(problem.space, arch) for arch in known}

    def draws(self, count: int) -> list[dict[str, Any]]:
        """The problem's own draws."""
        return self._new(count, lambda: self._problem.draw(self._rng))

    def mutants(self, count: int, parents: Parents) -> list[dict[str, Any]]:
        """A random parent each, some of its values drawn anew."""
        return self._new(count, lambda: self._mutant(parents))

    def crossed(self, count: int, parents: Parents) -> list[dict[str, Any]]:
        """Values of two random parents each."""
        return self._new(count, lambda: self._crossed(parents))

    def _new(self, count: int, make: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for _ in range(self._tries * count):
            if len(found) == count:
                break
            arch = make()
            code = architecture.code(self._problem.space, arch)
            if code not in self._seen and not self._problem.violation(arch):
                self._seen.add(code)
                found.append(arch)
        return found

    def _mutant(self, parents: Parents) -> dict[str, Any]:
        parent = parents[int(self._rng.integers(len(parents)))]
        return architecture.mutate(self._problem.space, self._rng, parent, *self._probabilities)

    def _crossed(self, parents: Parents) -> dict[str, Any]:
        first, second = self._rng.integers(len(parents), size=2).tolist()
        return architecture.crossover(
            self._problem.space, self._rng, parents[first], parents[second]
        )
