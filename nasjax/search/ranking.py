"""How well the scores of a super-network rank its sub-networks: rank correlations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nasjax.search.errors import SearchError


def rank_correlations(scores: Sequence[float], truth: Sequence[float]) -> dict[str, float]:
    """Kendall's tau (b: ties counted) and Spearman's rho of ``scores`` with ``truth``.

    Args:
      scores: of some architectures, e.g. their accuracies with inherited weights.
      truth: of the same ones, e.g. their accuracies when trained alone.

    Raises:
      SearchError: if there are fewer than three, or as many of one as not of the other, or all
        values of one are equal: then there is no order to compare.
    """
    from scipy import stats  # a dependency of jax

    if len(scores) != len(truth) or len(scores) < 3:
        raise SearchError(
            f"{len(scores)} scores cannot be ranked against {len(truth)} accuracies; as many of "
            "each, three at least, were expected."
        )
    for name, values in (("scores", scores), ("accuracies", truth)):
        if np.ptp(values) == 0:
            raise SearchError(f"all {name} are {values[0]}, so they rank nothing; use more data.")
    return {
        "kendall_tau": float(stats.kendalltau(scores, truth).statistic),
        "spearman_rho": float(stats.spearmanr(scores, truth).statistic),
    }
