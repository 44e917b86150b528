"""A random forest that predicts the scores of a space's architectures from those evaluated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nasjax.core import architecture
from nasjax.core.architecture import Arch
from nasjax.core.space import SearchSpace
from nasjax.search.errors import SearchError
from nasjax.search.ranking import rank_correlations


@dataclass(frozen=True)
class HeldOutCorrelation:
    """How well architectures were ranked that the forest had not seen.

    Attributes:
      spearman: Spearman's rho between predicted and true scores.
      kendall: Kendall's tau-b of the same.
      fitted: number of architectures the forest was fitted to.
      architectures: number of those held out.
    """

    spearman: float
    kendall: float
    fitted: int
    architectures: int


@dataclass(frozen=True, eq=False, repr=False)
class AccuracyPredictor:
    """A random forest on the encoded architectures of a space (NASViT, Appendix C.1).

    Its features are raw, as AttentiveNAS's: for each value of an architecture its place among the
    options in ascending order, -1 in layers that do not exist. A tree asks no more of numbers than
    their order. Of options without one (operations of a cell) each is a feature: there or not.

    The forest is fitted to the ranks of the scores, and what it predicts is read as the score of
    that rank. A few networks that did not train at all would have the trees tell them apart from
    the rest, where a search wants to know who is the best of the good ones.

    An instance is a function from an architecture to its predicted score.

    Example:
      >>> import jax
      >>> from nasjax import spaces
      >>> space = spaces.quickstart().space
      >>> archs = [architecture.sample(space, jax.random.key(i)) for i in range(80)]
      >>> predictor = AccuracyPredictor.fit(space, archs, [0.1 * a["depth"] for a in archs])
      >>> round(predictor(architecture.largest(space)), 2), predictor.held_out.architectures
      (0.4, 40)

    Attributes:
      space: the search space.
      held_out: how well a forest of the others ranked the architectures held out; None where none
        were, or too few or too equal to be ranked.
      evaluated: number of architectures that the forest is fitted to.
    """

    space: SearchSpace
    held_out: HeldOutCorrelation | None
    evaluated: int
    _forest: Any
    _scale: tuple[np.ndarray, np.ndarray]

    @classmethod
    def fit(
        cls,
        space: SearchSpace,
        archs: Sequence[Arch],
        scores: Sequence[float],
        *,
        holdout: float = 0.5,
        seed: int = 0,
        trees: int = 100,
        depth: int = 15,
    ) -> AccuracyPredictor:
        """Fit scores; the same architectures, in any order, and seed give the same model.

        Some architectures are held out, a forest of the others gives ``held_out``, and the final
        one is of all. (NASViT keeps the forest of one half.)

        Args:
          space: of the architectures.
          archs: those evaluated. One that comes twice counts once, with its last score.
          scores: of each, e.g. its accuracy with inherited weights.
          holdout: the fraction of architectures to hold out; 0 for none.
          seed: of the forest, and of which are held out.
          trees: of the forest.
          depth: of a tree, at most.

        Raises:
          ArchitectureError: if an architecture does not lie in the space.
          SearchError: if lengths differ, there is none, a score is no number, or ``holdout`` is not
            from 0 to 0.5.
          ImportError: if scikit-learn is not installed.
        """
        from scipy.stats import rankdata  # takes a second to import

        make = require_forests()
        if len(archs) != len(scores) or not len(archs):
            raise SearchError(
                f"there are {len(archs)} architectures and {len(scores)} scores; one for each, and "
                "at least one, was expected."
            )
        if not 0 <= holdout <= 0.5:
            raise SearchError(f"holdout is {holdout!r}; a fraction up to 0.5 was expected.")
        for i, score in enumerate(scores):
            if not math.isfinite(score):
                raise SearchError(
                    f"the score of architecture {i} is {score!r}; a number was expected, so leave "
                    "it out or evaluate it again."
                )
        known = {
            architecture.code(space, arch): float(score)
            for arch, score in zip(archs, scores, strict=True)
        }
        codes = sorted(known)
        table, truth = _features(space, codes), np.array([known[code] for code in codes])

        def forest(rows: np.ndarray) -> Any:
            return make(n_estimators=trees, max_depth=depth, random_state=seed).fit(
                table[rows], rankdata(truth[rows])
            )

        order = np.random.default_rng(seed).permutation(len(codes))
        held, rest = np.split(order, [round(holdout * len(codes))])
        found = None
        if len(held) > 2 and np.ptp(truth[held]):
            predicted = forest(rest).predict(table[held])
            if np.ptp(predicted):
                c = rank_correlations(predicted.tolist(), truth[held].tolist())
                found = HeldOutCorrelation(
                    c["spearman_rho"], c["kendall_tau"], len(rest), len(held)
                )
        ranks, first = np.unique(rankdata(truth), return_index=True)
        return cls(space, found, len(codes), forest(np.arange(len(codes))), (ranks, truth[first]))

    def __call__(self, arch: Arch) -> float:
        """The predicted score of ``arch``.

        Raises:
          ArchitectureError: if it does not lie in the space.
        """
        return float(self.predict([arch])[0])

    def predict(self, archs: Iterable[Arch]) -> np.ndarray:
        """Predicted scores, an array ``(architectures,)``; one call is faster than many."""
        codes = [architecture.code(self.space, arch) for arch in archs]
        if not codes:
            return np.zeros(0)
        return np.interp(self._forest.predict(_features(self.space, codes)), *self._scale)

    def report(self) -> str:
        """What is to be said of the model, in one line."""
        fitted = f"random forest of {self.evaluated} architectures of {self.space.name}"
        if self.held_out is None:
            return f"{fitted}; nothing held out could be ranked"
        h = self.held_out
        return (
            f"{fitted}: Spearman {h.spearman:.2f}, Kendall tau {h.kendall:.2f} on "
            f"{h.architectures} of them, held out"
        )

    __str__ = report

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.report()}>"


def require_forests() -> Any:
    """scikit-learn's class of random forests.

    Raises:
      ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import RandomForestRegressor
    except ImportError:
        raise ImportError(
            'A random forest needs scikit-learn; install it with pip install "nasjax[search]".'
        ) from None
    return RandomForestRegressor


def _features(space: SearchSpace, codes: Sequence[Sequence[int]]) -> np.ndarray:
    """A row for each encoded architecture: see :class:`AccuracyPredictor`."""
    table = np.array(codes)
    columns = []
    for (name, _), column in zip(architecture.genes(space), table.T, strict=True):
        options = space.choice(name).options
        if all(isinstance(o, int | float) for o in options):
            places = np.argsort(np.argsort(np.array(options, float)))
            columns.append(np.where(column < 0, -1, places[column]))
        else:
            columns += [column == option for option in range(len(options))]
    return np.stack(columns, -1).astype(float)
