"""Evolution guided by a predictor: few architectures are evaluated, thousands are predicted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from nasjax.core import architecture
from nasjax.core.architecture import Arch, Key
from nasjax.search.accuracy_predictor import AccuracyPredictor, require_forests
from nasjax.search.breeding import Breeder
from nasjax.search.errors import SearchError
from nasjax.search.history import Evaluated
from nasjax.search.objectives import Problem, Values
from nasjax.search.pareto import by_rank
from nasjax.search.searchers import check_population

_TRIES = 10  # per predicted child; there are plenty of them
_ELITE = 10  # evaluated architectures that have children, as in Evolution

Forests = Mapping[str, AccuracyPredictor]


class Guided:
    """Evolution on the predictions of a random forest, whose best are then evaluated.

    Random architectures are evaluated and a forest is fitted to them. A batch is then evaluated and
    the forest fitted anew to all that is known, and so on. One part of a batch are the best of an
    evolution on the predictions, round after round. The other are children of the best evaluated,
    those with the best predictions: where the forest errs, the truth has a say too.

    Source: NASViT, Appendix C.1, Algorithm 2: a first population of 1024, 128 parents, 128 mutants
    and 128 crossovers a round, 40 rounds on the predictions of one forest. Its sizes are the
    defaults of all that is predicted. What is evaluated follows the budget instead: a small first
    sample, and forests fitted again and again, which know the good part of the space better.
    ``population=1024, near=0`` is the paper's search, its best then evaluated.

    Only objectives that are not costs of the problem are predicted: parameters, FLOPs, and latency
    by a predictor of its own are known of any architecture. Of several objectives the best are
    those of a Pareto set (:func:`~nasjax.search.pareto.by_rank`).

    Args:
      problem: what is searched for, any number of objectives.
      key: of the draws.
      population: of the random architectures that are evaluated first.
      batch: architectures evaluated between one forest and the next.
      near: the part of a batch that are children of the 10 best evaluated.
      parents: how many of the best, by prediction, have children.
      mutations: children by mutation in each round.
      crossovers: children by crossover.
      probability: with which a value is drawn anew in a mutation.
      rounds: generations on the predictions of one forest, at most.

    Raises:
      SearchError: if nothing is to be predicted, or there is no population, batch, parent or child.
      ImportError: if scikit-learn is not installed.
    """

    def __init__(
        self,
        problem: Problem,
        key: Key,
        population: int = 50,
        batch: int = 50,
        near: float = 0.5,
        parents: int = 128,
        mutations: int = 128,
        crossovers: int = 128,
        probability: float = 0.2,
        rounds: int = 40,
    ) -> None:
        require_forests()  # missing, it is missed now and not after the first evaluations
        check_population(population)
        self._predicted = [o.name for o in problem.objectives if o.name not in problem.costs]
        if not self._predicted:
            names = ", ".join(o.name for o in problem.objectives)
            raise SearchError(
                f"{names} is known without evaluating anything, so there is nothing to predict; "
                "name an objective like accuracy too, or search with evolution or nsga2."
            )
        fewest = min(batch, parents, rounds, mutations + crossovers)
        if fewest < 1 or min(mutations, crossovers) < 0:
            raise SearchError(
                f"a guided search with a batch of {batch}, {parents} parents, {mutations} "
                f"mutations, {crossovers} crossovers and {rounds} rounds predicts nothing; at "
                "least one of each was expected, of mutations and crossovers together."
            )
        if not 0 <= near <= 1:
            raise SearchError(f"near is {near!r}; a part of the batch from 0 to 1 was expected.")
        self._problem, self._rng = problem, architecture.generator(key)
        self._population, self._batch = population, batch
        self._near = round(near * batch)
        self._sizes = (parents, mutations, crossovers, rounds)
        self._probability = probability
        self._asked: list[dict[str, Any]] = []
        self._told: dict[tuple[int, ...], Evaluated] = {}

    def ask(self) -> list[dict[str, Any]]:
        """The random sample, then batches; nothing that was asked for before."""
        known = [entry.arch for entry in self._told.values()]
        if not known:
            self._asked = self._breeder(known).draws(self._population)
            return list(self._asked)
        forests = self._fit(list(self._told.values()), holdout=0.0)
        self._asked = self._far(forests, known, self._batch - self._near)
        self._asked += self._around(forests, [*known, *self._asked], self._near)
        # Parents have no more children: a small space.
        missing = self._batch - len(self._asked)
        self._asked += self._breeder([*known, *self._asked]).draws(missing)
        return list(self._asked)

    def tell(self, values: Sequence[Values]) -> None:
        """Remember what the next forest is fitted to."""
        for arch, found in zip(self._asked, values, strict=True):
            code = architecture.code(self._problem.space, arch)
            self._told[code] = Evaluated(arch, dict(found))

    def predictors(self, history: Iterable[Evaluated]) -> dict[str, AccuracyPredictor]:
        """For each objective that is predicted the forest of the random sample in ``history``.

        Its ``held_out`` is the figure of the paper: of a random sample, not of what forests before
        it took for the best.

        Args:
          history: of a search by this searcher, as far as it is.
        """
        sample = list(islice(history, self._population))
        return self._fit(sample, holdout=0.5) if sample else {}

    def _breeder(self, known: Sequence[Arch], tries: int = 100) -> Breeder:
        return Breeder(self._problem, self._rng, self._probability, known=known, tries=tries)

    def _fit(self, entries: Sequence[Evaluated], holdout: float) -> dict[str, AccuracyPredictor]:
        archs = [entry.arch for entry in entries]
        return {
            name: AccuracyPredictor.fit(
                self._problem.space, archs, [e.values[name] for e in entries], holdout=holdout
            )
            for name in self._predicted
        }

    def _far(self, forests: Forests, known: Sequence[Arch], count: int) -> list[dict[str, Any]]:
        """Up to ``count`` architectures that are new, the best of an evolution on predictions."""
        if not count:
            return []
        parents, mutations, crossovers, rounds = self._sizes
        archs = [dict(arch) for arch in known]
        breeder = self._breeder(archs, _TRIES)
        values = self._values(forests, archs)
        leaders = list(islice(by_rank(values), parents))
        for _ in range(rounds):
            best = [archs[i] for i in leaders]
            children = breeder.mutants(mutations, best) + breeder.crossed(crossovers, best)
            if not children:
                break
            new = list(range(len(archs), len(archs) + len(children)))
            archs += children
            values = np.concatenate([values, self._values(forests, children)])
            before, among = leaders, [*leaders, *new]
            leaders = [among[i] for i in islice(by_rank(values[among]), parents)]
            if leaders == before:
                break  # nothing better is near
        fresh = (i for i in by_rank(values) if i >= len(known))
        return [archs[i] for i in islice(fresh, count)]

    def _around(self, forests: Forests, known: Sequence[Arch], count: int) -> list[dict[str, Any]]:
        """Up to ``count`` children of the best evaluated that are new, those predicted to be best.

        ``known`` begins with what was told, in its order.
        """
        _, mutations, crossovers, _ = self._sizes
        values = self._problem.minimized([entry.values for entry in self._told.values()])
        best = [known[i] for i in islice(by_rank(values), _ELITE)]
        breeder = self._breeder(known, _TRIES)
        children = breeder.mutants(mutations, best) + breeder.crossed(crossovers, best)
        if not children:
            return []
        return [children[i] for i in islice(by_rank(self._values(forests, children)), count)]

    def _values(self, forests: Forests, archs: Sequence[Arch]) -> np.ndarray:
        """Predictions and costs ``(architectures, objectives)``, less being better."""
        columns = {name: forest.predict(archs) for name, forest in forests.items()}
        costs = [o.name for o in self._problem.objectives if o.name not in forests]
        for name in costs:
            columns[name] = np.array([self._problem.costs[name](arch) for arch in archs])
        return np.stack([o.sign * columns[o.name] for o in self._problem.objectives], -1)
