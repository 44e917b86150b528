"""Searchers: who proposes architectures. They ask, are told values, and know of no network.

A searcher is a pure function of its key and of what it is told: started anew and told the same
values it asks for the same architectures. That is how a search that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from nasjax.core import architecture
from nasjax.core.architecture import Key
from nasjax.search.breeding import Breeder
from nasjax.search.errors import SearchError
from nasjax.search.objectives import Problem, Values


class Searcher(Protocol):
    """Anything that proposes architectures; an optimizer of another library needs two methods."""

    def ask(self) -> list[dict[str, Any]]:
        """Architectures to be evaluated next; none where the searcher has come to its end."""

    def tell(self, values: Sequence[Values]) -> None:
        """The values of all that was asked for last, in that order."""


def check_population(size: int) -> None:
    """Raise :class:`SearchError` if nobody is in a population of ``size``."""
    if size < 1:
        raise SearchError(f"a population of {size} cannot be searched; 1 or more was expected.")


class RandomSearch:
    """Architectures drawn at random (SPOS's baseline; TangleNAS's SPOS+RS).

    Args:
      problem: what is searched for.
      key: of the draws.
      population: architectures asked for at once.
    """

    def __init__(self, problem: Problem, key: Key, population: int = 50) -> None:
        check_population(population)
        self._problem, self._rng, self._size = problem, architecture.generator(key), population

    def ask(self) -> list[dict[str, Any]]:
        """The next draws."""
        return [self._problem.draw(self._rng) for _ in range(self._size)]

    def tell(self, values: Sequence[Values]) -> None:
        """Nothing is learnt."""


class Evolution:
    """Evolution as AutoFormer and SPOS do it: the best so far mutate and cross over.

    Source: Guo et al. 2020, Algorithm 1; Chen et al. 2021, section 3.4: population 50, the 10 best
    are parents, 25 mutants and 25 crossovers a generation, 20 generations (1000 evaluations).

    Args:
      problem: what is searched for; it must have a single objective.
      key: of the draws.
      population: of the first generation, drawn at random.
      parents: how many of the best of all generations have children.
      mutations: children by mutation in each generation.
      crossovers: children by crossover.
      probability: with which a value is drawn anew in a mutation.
      whole: the same for choices of the whole network; AutoFormer has 0.4 for depth and width.

    Raises:
      SearchError: if there are several objectives, or no population, parent or child.
    """

    def __init__(
        self,
        problem: Problem,
        key: Key,
        population: int = 50,
        parents: int = 10,
        mutations: int = 25,
        crossovers: int = 25,
        probability: float = 0.2,
        whole: float | None = None,
    ) -> None:
        check_population(population)
        if len(problem.objectives) != 1:
            names = ", ".join(o.name for o in problem.objectives)
            raise SearchError(
                f"evolution has one objective, not {names}; name one, or search with nsga2."
            )
        if parents < 1 or mutations < 0 or crossovers < 0 or mutations + crossovers < 1:
            raise SearchError(
                f"evolution with {parents} parents, {mutations} mutations and {crossovers} "
                "crossovers has no children; at least one parent and one child were expected."
            )
        self._problem = problem
        self._breeder = Breeder(problem, architecture.generator(key), probability, whole)
        self._sizes = (population, parents, mutations, crossovers)
        self._asked: list[dict[str, Any]] = []
        self._told: list[tuple[float, dict[str, Any]]] = []

    def ask(self) -> list[dict[str, Any]]:
        """The next generation: legal architectures that were not asked for before."""
        population, parents, mutations, crossovers = self._sizes
        if not self._told:
            children = self._breeder.draws(population)
        else:
            best = [arch for _, arch in self._told[:parents]]
            children = self._filled(mutations, self._breeder.mutants(mutations, best))
            children += self._filled(crossovers, self._breeder.crossed(crossovers, best))
        self._asked = children
        return list(children)

    def tell(self, values: Sequence[Values]) -> None:
        """Rank the generation among all before it."""
        objective = self._problem.objectives[0]
        scores = [objective.sign * v[objective.name] for v in values]
        self._told += zip(scores, self._asked, strict=True)
        self._told.sort(key=lambda entry: entry[0])  # stable: of equals the older comes first

    def _filled(self, count: int, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """``found``, with random architectures where parents have no ``count`` new children."""
        return found + self._breeder.draws(count - len(found))
