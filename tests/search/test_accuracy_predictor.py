"""The random forest: what it ranks, what it does not depend on, and what it refuses."""

import itertools
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="a random forest needs scikit-learn")

from nasjax import spaces
from nasjax.core import architecture
from nasjax.core.space import Choice, SearchSpace
from nasjax.search import AccuracyPredictor, Oracle, SearchError, TableKey, rank_correlations
from tests.search.toys import SPACE, accuracy

EVERY = list(architecture.every(SPACE))


def fit(archs: Any = EVERY, **settings: Any) -> AccuracyPredictor:
    return AccuracyPredictor.fit(SPACE, archs, [accuracy(a) for a in archs], **settings)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("toy_conv_macro", "toy_conv_macro_cifar10.csv"),
        ("toy_cell", "toy_cell_fashion_mnist.csv"),
    ],
)
def test_on_tables_of_the_truth_500_samples_rank_what_was_held_out(
    shared: Any, name: str, file: str
) -> None:
    net = spaces.make(name)
    truth = Oracle.read(shared / "benchmarks" / file, TableKey.by_column(net.columns))
    rng = architecture.generator(jax.random.key(0))
    archs = [architecture.sample(net.space, rng) for _ in range(500)]
    fitted = AccuracyPredictor.fit(net.space, archs, [truth.accuracy(a) for a in archs])
    assert fitted.held_out is not None and fitted.held_out.spearman >= 0.8
    assert 230 <= fitted.held_out.architectures <= 250  # some are drawn twice
    others = [architecture.sample(net.space, rng) for _ in range(200)]
    seen = rank_correlations(fitted.predict(others).tolist(), [truth.accuracy(a) for a in others])
    # The forest of all is no worse than what the half of it promised.
    assert seen["spearman_rho"] > fitted.held_out.spearman - 0.05


def test_half_is_held_out_and_how_well_it_is_ranked_is_no_guess() -> None:
    fitted = fit()
    assert fitted.held_out is not None and fitted.evaluated == len(EVERY)
    assert fitted.held_out.architectures + fitted.held_out.fitted == len(EVERY)
    assert abs(fitted.held_out.architectures - fitted.held_out.fitted) <= 1
    assert fitted.held_out.spearman > 0.8
    # Of scores that say nothing of the architecture nothing is learnt.
    noise = np.random.default_rng(0).random(len(EVERY)).tolist()
    lost = AccuracyPredictor.fit(SPACE, EVERY, noise).held_out
    assert lost is not None and abs(lost.spearman) < 0.4
    assert "Spearman 0." in fitted.report() and repr(fitted).startswith(
        "<AccuracyPredictor: random"
    )


def test_the_order_of_the_architectures_is_nothing_and_the_seed_something() -> None:
    few = EVERY[::2]
    first, backwards, other = fit(few), fit(few[::-1]), fit(few, seed=1)
    twice = fit([*few, *few[:5]])
    assert first.held_out == backwards.held_out == twice.held_out != other.held_out
    assert first.evaluated == twice.evaluated == len(few)
    np.testing.assert_array_equal(first.predict(EVERY), backwards.predict(EVERY))
    np.testing.assert_array_equal(first.predict(EVERY), twice.predict(EVERY))
    assert first(EVERY[3]) == first.predict(EVERY)[3]


def test_predictions_are_scores_and_only_their_order_counts() -> None:
    scores = np.array([accuracy(a) for a in EVERY])
    plain = AccuracyPredictor.fit(SPACE, EVERY, scores.tolist(), holdout=0.0)
    predicted = plain.predict(EVERY)
    assert plain.held_out is None and "nothing held out" in plain.report()
    assert scores.min() <= predicted.min() and predicted.max() <= scores.max()
    assert np.abs(predicted - scores).mean() < 0.1 * np.ptp(scores)
    # The same order on another scale, one that failed altogether among it: the same ranking.
    bent = np.exp(3 * scores)
    bent[scores.argmin()] = -1e6
    scores[scores.argmin()] = -1e6
    pair = [AccuracyPredictor.fit(SPACE, EVERY, s.tolist()).predict(EVERY) for s in (scores, bent)]
    assert rank_correlations(*(p.tolist() for p in pair))["spearman_rho"] == pytest.approx(1)


def test_numbers_count_by_their_order_however_options_are_listed() -> None:
    def space(options: tuple[int, ...]) -> SearchSpace:
        return SearchSpace("s", tuple(Choice(f"c{i}", options) for i in range(3)), {})

    archs = [
        dict(zip(("c0", "c1", "c2"), values, strict=True))
        for values in itertools.product((1, 3, 5, 7, 9), repeat=3)
    ]
    scores = [float(a["c0"] * a["c1"] - a["c2"] ** 2) for a in archs]
    few = np.random.default_rng(0).permutation(len(archs))[:40]

    def quality(options: tuple[int, ...]) -> float:
        fitted = AccuracyPredictor.fit(
            space(options), [archs[i] for i in few], [scores[i] for i in few], holdout=0.0
        )
        return rank_correlations(fitted.predict(archs).tolist(), scores)["spearman_rho"]

    assert quality((9, 1, 5, 3, 7)) == pytest.approx(quality((1, 3, 5, 7, 9)), abs=0.03)


def test_options_without_an_order_are_told_apart() -> None:
    cells = SearchSpace("c", (Choice("a", ("skip", "conv", "pool")), Choice("b", ("x", "y"))), {})
    archs = [{"a": a, "b": b} for a in ("skip", "conv", "pool") for b in ("x", "y")]
    scores = [0.1, 0.2, 0.9, 0.8, 0.3, 0.4]
    fitted = AccuracyPredictor.fit(cells, archs, scores, holdout=0.0)
    assert int(fitted.predict(archs).argmax()) in (2, 3)


def test_one_architecture_is_enough_and_equal_scores_rank_nothing() -> None:
    alone = fit(EVERY[:1])
    assert alone.held_out is None and alone(EVERY[5]) == accuracy(EVERY[0])
    flat = AccuracyPredictor.fit(SPACE, EVERY, [0.5] * len(EVERY))
    assert flat.held_out is None and set(flat.predict(EVERY)) == {0.5}
    assert flat.predict([]).shape == (0,)


@pytest.mark.parametrize(
    ("archs", "scores", "settings", "message"),
    [
        (EVERY[:3], [1.0, 2.0], {}, "3 architectures and 2 scores"),
        ([], [], {}, "0 architectures and 0 scores; .* at least one"),
        (EVERY[:2], [1.0, float("nan")], {}, "score of architecture 1 is nan; a number"),
        (EVERY[:2], [1.0, 2.0], {"holdout": 0.9}, "holdout is 0.9; a fraction up to 0.5"),
    ],
)
def test_what_cannot_be_fitted(archs: Any, scores: Any, settings: Any, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        AccuracyPredictor.fit(SPACE, archs, scores, **settings)
