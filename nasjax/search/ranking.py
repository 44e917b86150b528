"""How well scores rank networks: rank correlations, with intervals, beside that of size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
    from scipy import stats  # a dependency of jax, which takes a second to import

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


def ranking_study(
    scores: Mapping[str, Any],
    truth: Mapping[str, Any],
    params: Sequence[float],
    bands: Sequence[tuple[float, float]] = (),
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rank correlations of every score with every accuracy, over seeds and within bands of size.

    Source: TF-TAS, Tables 5 and 6. The parameter count's own correlations are among the rows:
    what a score tells beyond size is seen only beside them. Of several seeds of the scores and of
    the accuracies every pair is compared and the mean reported.

    Args:
      scores: by name, ``(networks,)`` or ``(seeds, networks)``.
      truth: accuracies by name, likewise.
      params: the parameters of each network.
      bands: least and greatest parameters; the whole range is always there too.
      resamples: of the bootstrap, which draws networks with replacement.
      level: of the confidence intervals.
      seed: of the bootstrap.

    Returns:
      Rows with ``score``, ``truth``, ``band`` (None: all), ``networks``, ``kendall_tau`` and
      ``spearman_rho``, each with ``_low``, ``_high`` and ``_std`` (over seeds). Bands with fewer
      than three networks, or where one side has no order, have None.

    Raises:
      SearchError: if the numbers of networks differ.
    """
    sides = [
        {name: np.atleast_2d(np.asarray(values, float)) for name, values in given.items()}
        for given in ({**scores, "params": params}, truth)
    ]
    size = np.asarray(params, float)
    for name, values in [*sides[0].items(), *sides[1].items()]:
        if values.shape[1] != size.size:
            raise SearchError(
                f"there are {values.shape[1]} values of {name}, but {size.size} networks; give one "
                "of each network."
            )
    rows = []
    for band in (None, *bands):
        low, high = band or (-np.inf, np.inf)
        inside = (size >= low) & (size <= high)
        rng = np.random.default_rng(seed)
        count = int(inside.sum())
        draws: Any = rng.integers(count, size=(resamples, count)) if count else []
        for accuracy, true in sides[1].items():
            for name, values in sides[0].items():
                found = _compared(values[:, inside], true[:, inside], draws, level)
                rows.append(
                    {"score": name, "truth": accuracy, "band": band, "networks": count, **found}
                )
    return rows


def _compared(scores: np.ndarray, truth: np.ndarray, draws: Any, level: float) -> dict[str, Any]:
    measures = ("kendall_tau", "spearman_rho")
    pairs = [(s, t) for s in scores for t in truth]
    try:
        values = [rank_correlations(s, t) for s, t in pairs]
    except SearchError:
        return dict.fromkeys(f"{m}{end}" for m in measures for end in ("", "_low", "_high", "_std"))
    resampled: dict[str, list[float]] = {m: [] for m in measures}
    for rows in draws:
        try:
            again = [rank_correlations(s[rows], t[rows]) for s, t in pairs]
        except SearchError:  # as good as all of them the same network
            continue
        for m in measures:
            resampled[m].append(float(np.mean([a[m] for a in again])))
    found: dict[str, Any] = {}
    for m in measures:
        tail = 50 * (1 - level)
        ends = np.percentile(resampled[m], [tail, 100 - tail]) if resampled[m] else (None, None)
        found[m] = float(np.mean([v[m] for v in values]))
        for end, value in zip(("low", "high"), ends, strict=True):
            found[f"{m}_{end}"] = None if value is None else float(value)
        found[f"{m}_std"] = float(np.std([v[m] for v in values]))
    return found
