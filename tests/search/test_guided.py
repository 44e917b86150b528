"""Evolution guided by a predictor: fewer evaluations, of one objective and of several."""

from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="a random forest needs scikit-learn")

from nasjax import spaces
from nasjax.core import architecture
from nasjax.core.space import Choice, SearchSpace
from nasjax.search import (
    Constraint,
    Guided,
    Objective,
    Oracle,
    Problem,
    SearchError,
    TableKey,
    best,
    non_dominated,
    one_by_one,
    run,
    searcher,
)
from nasjax.search.pareto import by_rank
from tests.search.toys import ACCURACY, PARAMS, SPACE, Watched, accuracy, code, params
from tests.search.toys import problem as toy_problem

WIDE = SearchSpace("wide", tuple(Choice(f"c{i}", (0, 1, 2, 3)) for i in range(8)), {})
SMALL = {"parents": 20, "mutations": 20, "crossovers": 20, "rounds": 10}


def gain(arch: Any) -> float:
    """Grows with every gene, some by more, and in pairs."""
    return sum((i + 1) * arch[f"c{i}"] + arch[f"c{i}"] * arch[f"c{(i + 1) % 8}"] for i in range(8))


def weight(arch: Any) -> float:
    return sum((8 - i) * arch[f"c{i}"] for i in range(8))


def ask_and_tell(proposes: Guided, rounds: int, fitness: Any = accuracy) -> list[list[Any]]:
    asked = []
    for _ in range(rounds):
        asked.append(proposes.ask())
        proposes.tell([{"accuracy": fitness(a)} for a in asked[-1]])
    return asked


def test_on_a_table_of_the_truth_it_beats_evolution_at_equal_evaluations(shared: Any) -> None:
    net = spaces.make("toy_conv_macro")
    table = shared / "benchmarks" / "toy_conv_macro_cifar10.csv"
    truth = Oracle.read(table, TableKey.by_column(net.columns), size=net.space.size)
    wanted, evaluate = Problem(net.space), one_by_one(truth.accuracy)
    settings: dict[str, Any] = {"predictor": {**SMALL, "rounds": 3}, "evolution": {}}

    def regret(kind: str, seed: int) -> float:
        proposes = searcher(kind, wanted, jax.random.key(seed), **settings[kind])
        return truth.regret(best(wanted, run(wanted, proposes, evaluate, 150)).arch)

    mean = {n: np.mean([regret(n, seed) for seed in range(3)]) for n in settings}
    assert mean["predictor"] < 0.8 * mean["evolution"]


def test_batches_have_the_sizes_that_were_asked_for_and_no_architecture_twice() -> None:
    proposes = Guided(Problem(WIDE), jax.random.key(0), 10, 6, **SMALL)
    asked = ask_and_tell(proposes, 4, gain)
    assert [len(batch) for batch in asked] == [10, 6, 6, 6]
    every = [code(a) for batch in asked for a in batch]
    assert len(set(every)) == len(every)
    drawn, *batches = [np.mean([gain(a) for a in batch]) for batch in asked]
    assert min(batches) > drawn


def test_near_says_which_part_of_a_batch_are_children_of_the_best() -> None:
    def distances(near: float) -> list[int]:
        """In how many genes those of the second batch differ from the nearest of the first."""
        proposes = Guided(
            Problem(WIDE), jax.random.key(0), 10, 8, near, 20, 40, 0, probability=0.1, rounds=20
        )
        first, second = ask_and_tell(proposes, 2, gain)
        assert len(second) == 8
        return [min(sum(a[n] != p[n] for n in a) for p in first) for a in second]

    # A child of one parent has a gene or two drawn anew; those of many rounds have come far.
    assert np.mean(distances(1.0)) < 2 < np.mean(distances(0.0))
    half = distances(0.5)
    assert np.mean(half[4:]) < 2 < np.mean(half[:4])


def test_several_objectives_are_searched_for_their_front() -> None:
    wanted = Problem(WIDE, (ACCURACY, Objective("weight")), costs={"weight": weight})
    watched = Watched(fitness=gain)
    proposes = Guided(wanted, jax.random.key(0), 40, 40, parents=60, rounds=5)
    history = run(wanted, proposes, watched, 160)
    found = wanted.minimized([e.values for e in history])
    drawn = wanted.minimized(
        [
            {"accuracy": gain(a), "weight": weight(a)}
            for a in Guided(wanted, jax.random.key(1), 160).ask()
        ]
    )
    # What random architectures have for a front is nearly all beaten.
    front = drawn[non_dominated(drawn)]
    beaten = [((found <= row).all(-1) & (found < row).any(-1)).any() for row in front]
    assert np.mean(beaten) > 0.9
    # And it is a front, not a corner.
    weights = found[non_dominated(found)][:, 1]
    assert len(weights) > 10 and np.ptp(weights) > 0.6 * weight({f"c{i}": 3 for i in range(8)})


def test_only_what_is_no_cost_is_predicted() -> None:
    latency = Objective("latency")
    wanted = toy_problem([ACCURACY, PARAMS, latency])
    proposes = Guided(wanted, jax.random.key(0), 12, 4, **SMALL)

    def evaluate(archs: Any) -> Any:
        return ((a, {"accuracy": accuracy(a), "latency": 2.0 * a["width"]}) for a in archs)

    history = run(wanted, proposes, evaluate, 24)
    found = proposes.predictors(history)
    assert set(found) == {"accuracy", "latency"}
    assert all(f.evaluated == 12 and f.held_out is not None for f in found.values())
    # They are of the random sample, also where its values came in another order.
    sample = list(history)[:12]
    assert proposes.predictors(sample[::-1])["latency"].held_out == found["latency"].held_out
    assert proposes.predictors([]) == {}


def test_costs_alone_leave_nothing_to_predict() -> None:
    with pytest.raises(SearchError, match="params is known without evaluating anything"):
        Guided(toy_problem([PARAMS]), jax.random.key(0))


def test_a_small_space_is_searched_to_its_end() -> None:
    wanted = toy_problem(constraints=[Constraint("params", 2, 9)])
    watched = Watched()
    history = run(wanted, Guided(wanted, jax.random.key(0), 5, 5, **SMALL), watched, 1000)
    every = [a for a in architecture.every(SPACE) if 2 <= params(a) <= 9]
    assert len(history) == len(watched.seen) == len(every)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population": 0}, "a population of 0 cannot be searched"),
        ({"batch": 0}, "a batch of 0, 128 parents, 128 mutations, .* predicts nothing"),
        ({"mutations": 0, "crossovers": 0}, "0 mutations, 0 crossovers and 40 rounds predicts"),
        ({"mutations": -1}, "-1 mutations"),
        ({"rounds": 0}, "0 rounds predicts nothing"),
        ({"near": 1.5}, "near is 1.5; a part of the batch from 0 to 1"),
        ({"bach": 3}, "searcher 'predictor' cannot be made so: .*'bach'"),
    ],
)
def test_what_is_no_guided_search(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        searcher("predictor", toy_problem(), jax.random.key(0), **settings)


def test_rows_come_front_by_front_and_the_isolated_first() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 12, (60, 2)).astype(float)
    order = list(by_rank(values))
    assert sorted(order) == list(range(60))
    left = np.ones(60, bool)
    while left.any():
        front = np.flatnonzero(left)[non_dominated(values[left])]
        assert set(order[: len(front)]) == set(front.tolist())
        order, left[front] = order[len(front) :], False
    line = np.array([[0, 10], [1, 9], [2, 8], [6, 4], [10, 0]], float)
    assert list(by_rank(line)) == [0, 4, 3, 2, 1]
    assert list(by_rank(np.array([[2.0], [1.0], [2.0], [0.0]]))) == [3, 1, 0, 2]
