"""Running a search: whoever proposes, whoever evaluates, nothing twice and nothing lost."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from tqdm import tqdm

from nasjax.core import architecture
from nasjax.core.architecture import Arch
from nasjax.search.errors import SearchError
from nasjax.search.history import Evaluated, History
from nasjax.search.objectives import Problem, Values
from nasjax.search.searchers import Searcher
from nasjax.train.errors import Stopped
from nasjax.train.hosts import from_first
from nasjax.train.interrupt import Interrupt

logger = logging.getLogger(__name__)
Evaluate = Callable[[Sequence[Arch]], Iterable[tuple[Arch, Values]]]
_IDLE = 1000  # proposals in a row of which none is new, after which a search is over
_ROUND = 10  # proposals that a round counts for at least


def one_by_one(score: Callable[[Arch], float], name: str = "accuracy") -> Evaluate:
    """The evaluation of a population by a function of one architecture."""
    return lambda archs: ((arch, {name: score(arch)}) for arch in archs)


def run(
    problem: Problem,
    searcher: Searcher,
    evaluate: Evaluate,
    evaluations: int,
    history: History | None = None,
    *,
    progress: str | None = None,
) -> History:
    """Search until ``evaluations`` architectures are known, or the searcher has no more.

    What the history holds is not evaluated again: the searcher is told what is known, so a search
    that is started again with the same history ends as if it had never been stopped.

    Args:
      problem: what is searched for.
      searcher: proposes; newly made.
      evaluate: ``architectures -> pairs of an architecture and its values``, in any order. The
        problem's costs are added to the values. Each pair is written down when it comes.
      evaluations: different architectures evaluated in all.
      history: to fill; one in memory where None.
      progress: what a progress bar is called; None for no bar.

    Returns:
      The history; :func:`best` and :func:`pareto_front` read it.

    Raises:
      SearchError: if nothing is to be evaluated, or ``evaluate`` lacks an objective or an
        architecture.
      Stopped: after SIGINT or SIGTERM; what was evaluated is kept.
    """
    if evaluations < 1:
        raise SearchError(
            f"{evaluations} architectures cannot be compared; 1 or more were expected."
        )
    history = History(problem.space) if history is None else history
    first = problem.objectives[0]
    lead = min((first.sign * entry.values[first.name] for entry in history), default=math.inf)
    seen: set[tuple[int, ...]] = set()
    idle = 0
    bar = tqdm(
        total=evaluations,
        initial=min(len(history), evaluations),
        desc=progress,
        unit="network",
        dynamic_ncols=True,
        disable=progress is None or jax.process_index() != 0,
    )
    with Interrupt().watch() as interrupt, bar:
        most = min(evaluations, problem.space.size)
        while len(history) < most and idle < _IDLE:
            asked = searcher.ask()
            if not asked:
                break
            codes = [architecture.code(problem.space, arch) for arch in asked]
            idle = idle + max(len(codes), _ROUND) if seen.issuperset(codes) else 0
            seen.update(codes)
            new = {c: a for c, a in zip(codes, asked, strict=True) if history.get(a) is None}
            few = list(new.values())[: evaluations - len(history)]
            for arch, values in _evaluated(problem, evaluate, few):
                values = from_first(values)
                history.add(arch, values)
                lead = min(lead, first.sign * values[first.name])
                bar.set_postfix_str(f"best {first.name} {first.sign * lead:.4g}", refresh=False)
                bar.update(1)
                stop = interrupt.stops()
                if stop is not None and len(history) < evaluations:
                    raise Stopped(
                        f"{stop}: stopped after {len(history)} of {evaluations} "
                        "architectures, all of them saved; run the same command again to continue."
                    )
            if left := sum(history.get(arch) is None for arch in few):
                raise SearchError(
                    f"the evaluation left {left} of {len(few)} architectures out; let it yield a "
                    "pair for each."
                )
            if len(history) < evaluations:
                searcher.tell([history.get(arch) or {} for arch in asked])
    if len(history) < evaluations:
        logger.info(
            "The search ends after %d of %d evaluations: nothing new is proposed.",
            len(history),
            evaluations,
        )
    return history


def best(problem: Problem, history: History) -> Evaluated:
    """The best architecture by the first objective; of several the smallest.

    Raises:
      SearchError: if nothing was evaluated.
    """
    entries = list(history)
    if not entries:
        raise SearchError("nothing was evaluated, so nothing is the best; evaluate some first.")
    first = problem.objectives[0]

    def order(entry: Evaluated) -> tuple[Any, ...]:
        # Not by age: after a kill a generation may be evaluated in another order.
        code = architecture.code(problem.space, entry.arch)
        return first.sign * entry.values[first.name], entry.values.get("params", 0), code

    return min(entries, key=order)


def _evaluated(
    problem: Problem, evaluate: Evaluate, archs: Sequence[Arch]
) -> Iterable[tuple[Arch, dict[str, Any]]]:
    for arch, values in evaluate(archs) if archs else ():
        every = {**problem.known(arch), **values}
        for objective in problem.objectives:
            if objective.name not in every:
                raise SearchError(
                    f"the evaluation gives {', '.join(every)}, but the objective is "
                    f"{objective.name!r}; let it give that, or name another objective."
                )
        yield arch, every
