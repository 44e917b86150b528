"""What runs on top of a space: searchers of a problem, latency, and oracles (tables of the truth).

A :class:`Problem` says what is wanted of which space; a searcher asks for architectures and is
told values; :func:`run` brings the two together (docs/two_stage.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nasjax.core.architecture import Key
from nasjax.core.errors import did_you_mean
from nasjax.search._table import TableKey
from nasjax.search.accuracy_predictor import AccuracyPredictor, HeldOutCorrelation
from nasjax.search.errors import OracleError, SearchError
from nasjax.search.guided import Guided
from nasjax.search.history import Evaluated, History
from nasjax.search.latency import (
    Latency,
    architecture_latency,
    measure_architectures,
    measure_latencies,
    measure_latency,
)
from nasjax.search.latency_predictor import LatencyPredictor
from nasjax.search.loop import best, one_by_one, run
from nasjax.search.nsga2 import NSGA2
from nasjax.search.objectives import Constraint, Objective, Problem, limits, problem
from nasjax.search.oracle import Oracle
from nasjax.search.pareto import non_dominated, pareto_front, write_front
from nasjax.search.ranking import rank_correlations, ranking_study
from nasjax.search.scoring import Scorer
from nasjax.search.searchers import Evolution, RandomSearch, Searcher

SEARCHERS: dict[str, Callable[..., Searcher]] = {
    "random": RandomSearch,
    "evolution": Evolution,
    "nsga2": NSGA2,
    "predictor": Guided,
}


def searcher(name: str, problem: Problem, key: Key, **settings: Any) -> Searcher:
    """The searcher called ``name``.

    Args:
      name: one of ``SEARCHERS``.
      problem: what is searched for.
      key: of its draws.
      **settings: its further arguments.

    Raises:
      SearchError: if there is no such searcher or setting.
    """
    if name not in SEARCHERS:
        raise SearchError(f"no searcher {name!r}; {did_you_mean(name, SEARCHERS)}")
    try:
        return SEARCHERS[name](problem, key, **settings)
    except TypeError as error:
        raise SearchError(f"searcher {name!r} cannot be made so: {error}.") from None


__all__ = [
    "NSGA2",
    "SEARCHERS",
    "AccuracyPredictor",
    "Constraint",
    "Evaluated",
    "Evolution",
    "Guided",
    "HeldOutCorrelation",
    "History",
    "Latency",
    "LatencyPredictor",
    "Objective",
    "Oracle",
    "OracleError",
    "Problem",
    "RandomSearch",
    "Scorer",
    "SearchError",
    "Searcher",
    "TableKey",
    "architecture_latency",
    "best",
    "limits",
    "measure_architectures",
    "measure_latencies",
    "measure_latency",
    "non_dominated",
    "one_by_one",
    "pareto_front",
    "problem",
    "rank_correlations",
    "ranking_study",
    "run",
    "searcher",
    "write_front",
]
