"""NSGA-II: fronts that are nearly whole, of what keeps the constraints."""

import csv
import itertools
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("pymoo", reason="NSGA-II needs pymoo")

from pymoo.indicators.hv import HV

from nasjax import spaces
from nasjax.core import architecture
from nasjax.core.space import Choice, SearchSpace
from nasjax.search import (
    NSGA2,
    Constraint,
    Objective,
    Problem,
    SearchError,
    non_dominated,
    one_by_one,
    pareto_front,
    run,
)
from tests.search.toys import ACCURACY, PARAMS, Watched, accuracy, params
from tests.search.toys import problem as toy_problem

GENES = 6
PLAIN = SearchSpace("plain", tuple(Choice(f"c{i}", (0, 1, 2, 3)) for i in range(GENES)), {})


def architectures() -> list[dict[str, int]]:
    """All of them; listing them by the library checks each."""
    names = [choice.name for choice in PLAIN.choices]
    return [dict(zip(names, v, strict=True)) for v in itertools.product(range(4), repeat=GENES)]


def gain(arch: Any) -> float:
    """Returns diminish, differently for each choice."""
    return sum((i + 1) * arch[f"c{i}"] ** 0.5 for i in range(GENES))


def weight(arch: Any) -> float:
    return sum((GENES - i) * arch[f"c{i}"] + arch["c0"] * arch[f"c{i}"] for i in range(GENES))


def hypervolume(values: np.ndarray, every: np.ndarray) -> float:
    """Of normalised objectives, with reference to the worst of each."""
    low, high = every.min(0), every.max(0)
    return float(HV(ref_point=np.ones(values.shape[-1]))((values - low) / (high - low)))


def part_of_the_front(wanted: Problem, history: Any, every: np.ndarray) -> float:
    front = wanted.minimized([e.values for e in pareto_front(wanted, history)])
    true = every[non_dominated(every)]
    return hypervolume(front, every) / hypervolume(true, every)


def test_the_front_of_a_small_space_is_nearly_the_true_one() -> None:
    wanted = Problem(PLAIN, (ACCURACY, Objective("weight")), costs={"weight": weight})
    every = np.array([[-gain(a), weight(a)] for a in architectures()])
    history = run(wanted, NSGA2(wanted, jax.random.key(0), 30), Watched(fitness=gain), 500)
    assert len(history) == 500
    assert part_of_the_front(wanted, history, every) >= 0.98
    # Which as many random architectures do not reach.
    drawn = np.random.default_rng(0).choice(len(every), 500, replace=False)
    assert hypervolume(every[drawn], every) / hypervolume(every, every) < 0.97


def test_the_front_of_a_constrained_space_is_nearly_the_true_one() -> None:
    limits = (Constraint("weight", 10, 40),)
    wanted = Problem(PLAIN, (ACCURACY, Objective("weight")), limits, {"weight": weight})
    every = np.array([[-gain(a), weight(a)] for a in architectures() if 10 <= weight(a) <= 40])
    watched = Watched(fitness=gain)
    history = run(wanted, NSGA2(wanted, jax.random.key(0), 30), watched, 300)
    assert all(10 <= weight(arch) <= 40 for arch in watched.seen) and len(watched.seen) == 300
    assert part_of_the_front(wanted, history, every) >= 0.98


def test_on_a_table_of_the_truth_the_front_is_nearly_the_true_one(shared: Any) -> None:
    net = spaces.make("toy_cell")
    with (shared / "benchmarks" / "toy_cell_fashion_mnist.csv").open(newline="") as file:
        # The table knows the parameters too, and sooner than they can be counted.
        rows = {tuple(int(row[n]) for n in net.columns): row for row in csv.DictReader(file)}

    def look_up(column: str) -> Any:
        return lambda arch: float(rows[tuple(of(arch) for of in net.columns.values())][column])

    score, size = look_up("test_acc"), look_up("num_params")
    wanted = Problem(net.space, (ACCURACY, PARAMS), costs={"params": size})
    every = np.array([[-score(arch), size(arch)] for arch in architecture.every(net.space)])
    history = run(wanted, NSGA2(wanted, jax.random.key(0)), one_by_one(score), 2000)
    assert part_of_the_front(wanted, history, every) >= 0.98
    drawn = architecture.sample(net.space, jax.random.key(0))
    assert net.count("params", drawn) == size(drawn)


def test_the_searcher_has_its_own_random_numbers() -> None:
    def disturbed(arch: Any) -> float:
        np.random.seed(len(arch["ratio"]))
        return accuracy(arch)

    wanted = toy_problem([ACCURACY, PARAMS])
    histories = []
    for fitness in (accuracy, disturbed):
        np.random.seed(7)
        proposes = NSGA2(wanted, jax.random.key(0), 8)
        histories.append(list(run(wanted, proposes, Watched(fitness=fitness), 40)))
        if fitness is accuracy:
            after = np.random.random()
            np.random.seed(7)
            assert after == np.random.random()
    assert histories[0] == histories[1]


@pytest.mark.parametrize("population", [2, 5, 50])
@pytest.mark.parametrize(
    "choices",
    [
        (Choice("width", (3, 1, 2)),),
        (Choice("width", (1, 2)), Choice("still", (5,))),
        (Choice("width", (1, 2)), Choice("depth", (1, 2)), Choice("ratio", (1, 2), per="blocks")),
    ],
    ids=["one gene", "a gene without options", "depth"],
)
def test_small_spaces_come_to_an_end(choices: Any, population: int) -> None:
    axes: dict[str, Any] = {"blocks": "depth"} if len(choices) == 3 else {}
    wanted = Problem(SearchSpace("few", choices, axes), costs={})
    watched = Watched(fitness=lambda arch: arch["width"])
    history = run(wanted, NSGA2(wanted, jax.random.key(0), population), watched, 1000)
    assert 1 < len(history) == len(watched.seen) <= wanted.space.size
    if population == 50:
        assert len(history) == wanted.space.size


def test_a_single_architecture_cannot_be_searched() -> None:
    wanted = Problem(SearchSpace("one", (Choice("still", (5,)),), {}))
    with pytest.raises(SearchError, match="space 'one' has a single architecture"):
        NSGA2(wanted, jax.random.key(0))


def test_the_infeasible_is_told_by_how_much_and_never_asked_for() -> None:
    wanted = toy_problem([ACCURACY, PARAMS], [Constraint("params", 8, 12)])
    proposes = NSGA2(wanted, jax.random.key(0), 10)
    asked = []
    for _ in range(6):
        archs = proposes.ask()
        assert archs and all(8 <= params(a) <= 12 for a in archs)
        asked += archs
        proposes.tell([{"accuracy": accuracy(a), "params": params(a)} for a in archs])
    # The generations are full, so some children were left out.
    assert len(asked) < 60
