"""NSGA-II for several objectives, through pymoo (Deb et al. 2002; ViTAS section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nasjax.core import architecture
from nasjax.core.architecture import Arch, Key
from nasjax.search.errors import SearchError
from nasjax.search.objectives import Problem, Values

_EMPTY = 100  # generations without a feasible child after which the search is over


class NSGA2:
    """Non-dominated sorting with crowding, over architectures as vectors of option indices.

    ViTAS's settings: population and offspring 50, 40 generations, binary tournament, two-point
    crossover, polynomial mutation with eta 3 of one gene on average, duplicates removed.
    Architectures that break a constraint are told by how much and never evaluated.

    Args:
      problem: what is searched for, any number of objectives.
      key: of the draws.
      population: architectures of a generation.

    Raises:
      SearchError: if the population is too small.
      ImportError: if pymoo is not installed.
    """

    def __init__(self, problem: Problem, key: Key, population: int = 50) -> None:
        if population < 2:
            raise SearchError(
                f"a population of {population} cannot be crossed over; 2 or more was expected."
            )
        try:
            from pymoo.algorithms.moo.nsga2 import NSGA2 as Algorithm
            from pymoo.core.duplicate import DuplicateElimination
            from pymoo.core.evaluator import Evaluator
            from pymoo.core.problem import Problem as Described
            from pymoo.core.termination import NoTermination
            from pymoo.operators.crossover.pntx import TwoPointCrossover
            from pymoo.operators.mutation.pm import PM
            from pymoo.operators.repair.rounding import RoundingRepair
            from pymoo.problems.static import StaticProblem
        except ImportError:
            raise ImportError(
                'NSGA-II needs pymoo; install it with pip install "nasjax[search]".'
            ) from None
        self._problem = problem
        self._codes: dict[tuple[int, ...], tuple[int, ...]] = {}
        options = [
            len(problem.space.choice(name).options) for name, _ in architecture.genes(problem.space)
        ]
        self._genes = len(options)
        # A gene of one option has nothing to vary.
        self._varied = np.flatnonzero(np.array(options) > 1)
        if not self._varied.size:
            raise SearchError(f"space {problem.space.name!r} has a single architecture.")
        rng = architecture.generator(key)
        first = [problem.draw(rng) for _ in range(population)]
        start = np.stack([self._vector(rng, arch) for arch in first])
        described = Described(
            n_var=self._varied.size,
            n_obj=len(problem.objectives),
            n_ieq_constr=1 if problem.constraints else 0,
            xl=0,
            xu=np.array(options)[self._varied] - 1,
            vtype=int,
        )

        class ByArchitecture(DuplicateElimination):  # type: ignore[misc]
            """Vectors that differ in silent genes alone are one architecture."""

            def _do(_, pop: Any, other: Any, is_duplicate: np.ndarray) -> np.ndarray:
                seen = {self._code(row) for row in other.get("X")} if other is not None else set()
                for i, row in enumerate(pop.get("X")):
                    code = self._code(row)
                    is_duplicate[i] = code in seen
                    seen |= {code} if other is None else set()
                return is_duplicate

        repair = RoundingRepair()
        self._algorithm = Algorithm(
            pop_size=population,
            sampling=start[:, self._varied],
            crossover=TwoPointCrossover(prob=1.0, repair=repair),
            mutation=PM(eta=3, prob=1.0, prob_var=1 / self._varied.size, repair=repair),
            eliminate_duplicates=ByArchitecture(),
        )
        seed = int(rng.integers(2**31))
        self._algorithm.setup(described, termination=NoTermination(), seed=seed, verbose=False)

        def tell(population: Any, values: np.ndarray) -> None:
            given = (
                {"F": values, "G": population.get("G")} if problem.constraints else {"F": values}
            )
            Evaluator().eval(StaticProblem(described, **given), population)
            self._algorithm.tell(infills=population)

        self._tell = tell
        self._asked: Any = None
        self._feasible: list[int] = []

    def ask(self) -> list[dict[str, Any]]:
        """The children of the next generation that keep the constraints."""
        for _ in range(_EMPTY):
            self._asked = self._algorithm.ask()
            if self._asked is None or not len(self._asked):
                return []  # every combination has been tried
            archs = [self._decode(row) for row in self._asked.get("X")]
            violations = [self._problem.violation(arch) for arch in archs]
            if self._problem.constraints:
                self._asked.set("G", np.array(violations)[:, None])
            self._feasible = [i for i, v in enumerate(violations) if not v]
            if self._feasible:
                return [archs[i] for i in self._feasible]
            self.tell([])
        return []

    def tell(self, values: Sequence[Values]) -> None:
        """Rank the generation; who broke a constraint comes last, whatever its objectives."""
        told = np.zeros((len(self._asked), len(self._problem.objectives)))
        told[self._feasible] = self._problem.minimized(values)
        self._tell(self._asked, told)

    def _code(self, row: np.ndarray) -> tuple[int, ...]:
        genes = tuple(np.rint(row).astype(int).tolist())
        if genes not in self._codes:
            self._codes[genes] = architecture.code(self._problem.space, self._decode(row))
        return self._codes[genes]

    def _vector(self, rng: np.random.Generator, arch: Arch) -> np.ndarray:
        """Option indices of ``arch``, random ones where they mean nothing."""
        space = self._problem.space
        full = architecture.with_silent_genes(space, rng, arch)
        vector = []
        for name, layer in architecture.genes(space):
            options = space.choice(name).options
            missing = layer is not None and layer >= len(full[name])
            value = full[name] if layer is None else None if missing else full[name][layer]
            vector.append(rng.integers(len(options)) if missing else options.index(value))
        return np.array(vector)

    def _decode(self, row: np.ndarray) -> dict[str, Any]:
        vector = np.zeros(self._genes, int)
        vector[self._varied] = np.rint(row).astype(int)
        return architecture.nearest(self._problem.space, vector)
