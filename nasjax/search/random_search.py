"""Random search: the best of some architectures drawn uniformly (SPOS, Guo et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from tqdm import tqdm

from nasjax.core import architecture
from nasjax.core.architecture import Arch
from nasjax.core.space import SearchSpace
from nasjax.search.errors import SearchError


def random_search(
    space: SearchSpace, key: jax.Array, candidates: int, score: Callable[[Arch], float]
) -> tuple[dict[str, Any], float]:
    """The best of ``candidates`` architectures drawn at random, and its score.

    None is scored twice, so a small space may have fewer.

    Args:
      space: to draw from.
      key: of the draws.
      candidates: their number.
      score: of an architecture, the higher the better: with inherited weights and on validation
        data, ``Evaluator.architecture``.

    Raises:
      SearchError: if there is no candidate.
    """
    if candidates < 1:
        raise SearchError(f"{candidates} candidates cannot be compared; 1 at least was expected.")
    scores: dict[tuple[int, ...], float] = {}
    best: tuple[dict[str, Any], float] | None = None
    show = jax.process_index() == 0
    for i in tqdm(range(candidates), "random search", unit="network", disable=not show):
        arch = architecture.sample(space, jax.random.fold_in(key, i))
        code = tuple(architecture.encode(space, arch))
        if code not in scores:
            scores[code] = score(arch)
            if best is None or scores[code] > best[1]:
                best = arch, scores[code]
    assert best is not None
    return best
