"""Searchers: legal proposals that are new, and evolution that gets there sooner than chance."""

import functools
import importlib
from typing import Any

import jax
import numpy as np
import pytest

from nasjax import spaces
from nasjax.core import architecture
from nasjax.core.space import Choice, SearchSpace
from nasjax.search import (
    NSGA2,
    Constraint,
    Evolution,
    History,
    Oracle,
    Problem,
    RandomSearch,
    SearchError,
    TableKey,
    best,
    one_by_one,
    problem,
    run,
    searcher,
)
from tests.search.toys import ACCURACY, PARAMS, SPACE, Crash, Watched, accuracy, code, params
from tests.search.toys import problem as toy_problem
from tests.toys import toy

EASY = SearchSpace("easy", tuple(Choice(f"c{i}", (0, 1, 2, 3)) for i in range(5)), {})
SECRET = (2, 0, 3, 1, 2)


def likeness(arch: Any) -> float:
    return sum(arch[f"c{i}"] == s for i, s in enumerate(SECRET))


def evaluations_to_the_optimum(name: str, seed: int) -> int:
    wanted, history = Problem(EASY), History(EASY)

    def fitness(arch: Any) -> float:
        if likeness(arch) == len(SECRET):
            raise Crash  # there is nothing more to find
        return likeness(arch)

    proposes = searcher(name, wanted, jax.random.key(seed), population=20)
    with pytest.raises(Crash):
        run(wanted, proposes, one_by_one(fitness), EASY.size, history)
    return len(history) + 1


def test_evolution_finds_an_easy_optimum_sooner_than_chance() -> None:
    took = {
        name: np.mean([evaluations_to_the_optimum(name, seed) for seed in range(5)])
        for name in ("evolution", "random")
    }
    assert took["evolution"] < 0.5 * took["random"]


@functools.cache
def oracle(name: str, path: str) -> tuple[Any, Oracle]:
    net = spaces.make(name)
    key = TableKey(tuple(net.columns), lambda arch: {n: of(arch) for n, of in net.columns.items()})
    return net, Oracle.read(path, key, size=net.space.size)


@pytest.mark.parametrize(
    ("name", "file", "ratio"),
    [
        ("toy_cell", "toy_cell_fashion_mnist.csv", 1.0),
        ("toy_conv_macro", "toy_conv_macro_cifar10.csv", 0.6),
    ],
)
def test_on_a_table_of_the_truth_evolution_beats_random_search(
    shared: Any, name: str, file: str, ratio: float
) -> None:
    net, truth = oracle(name, str(shared / "benchmarks" / file))
    # Without the costs, which would take most of the time.
    wanted, evaluate = Problem(net.space), one_by_one(truth.accuracy)

    def regret(kind: str, seed: int) -> float:
        history = run(wanted, searcher(kind, wanted, jax.random.key(seed)), evaluate, 300)
        return truth.regret(best(wanted, history).arch)

    mean = {n: np.mean([regret(n, seed) for seed in range(4)]) for n in ("evolution", "random")}
    assert mean["evolution"] < ratio * mean["random"]


def ask_and_tell(proposes: Any, rounds: int) -> list[list[dict[str, Any]]]:
    asked = []
    for _ in range(rounds):
        asked.append(proposes.ask())
        proposes.tell([{"accuracy": accuracy(a), "params": params(a)} for a in asked[-1]])
    return asked


def test_generations_have_the_sizes_that_were_asked_for_and_no_architecture_twice() -> None:
    evolution = Evolution(toy_problem(), jax.random.key(0), 8, 3, mutations=5, crossovers=2)
    first, *rest = ask_and_tell(evolution, 5)
    assert [len(first), *map(len, rest)] == [8, 7, 7, 7, 7]
    every = [code(a) for generation in (first, *rest) for a in generation]
    assert len(set(every)) == len(every)
    random = RandomSearch(toy_problem(), jax.random.key(0), 8)
    assert [len(asked) for asked in ask_and_tell(random, 3)] == [8, 8, 8]


def test_children_are_the_parents_with_little_changed_or_mixed() -> None:
    # One choice can tell a mutant of a single parent: a gene or two are drawn anew.
    wanted = Problem(EASY)
    only = Evolution(wanted, jax.random.key(0), 1, 1, mutations=10, crossovers=0, probability=0.2)
    (parent,) = only.ask()
    only.tell([{"accuracy": 1.0}])
    changed = [sum(a[n] != parent[n] for n in a) for a in only.ask()]
    assert np.mean(changed) < 3 and min(changed) > 0
    for seed in range(4):
        crossed = Evolution(wanted, jax.random.key(seed), 12, 2, mutations=0, crossovers=12)
        first = crossed.ask()
        crossed.tell([{"accuracy": float(i)} for i in range(12)])

        def is_mixed(arch: Any, parents: Any = first[-2:]) -> bool:
            return all(arch[n] in [p[n] for p in parents] for n in arch)

        children = crossed.ask()
        differ = sum(first[-1][n] != first[-2][n] for n in first[-1])
        possible = 2**differ - sum(map(is_mixed, first))
        # Where two parents have no more children, random ones fill the generation.
        assert len(children) == 12 and sum(map(is_mixed, children)) >= min(12, possible)


def test_parents_are_the_best_of_all_generations() -> None:
    wanted = Problem(EASY)
    evolution = Evolution(wanted, jax.random.key(1), 5, 1, mutations=3, crossovers=0)
    first = evolution.ask()
    evolution.tell([{"accuracy": float(i == 2)} for i in range(5)])
    for _ in range(4):
        for child in evolution.ask():
            assert sum(child[n] != first[2][n] for n in child) <= 4
        evolution.tell([{"accuracy": 0.5}] * 3)


def test_whole_says_how_often_choices_of_the_whole_network_mutate() -> None:
    deep = {"width": 3, "depth": 3, "ratio": [1, 2, 4]}

    def children(**settings: float) -> list[dict[str, Any]]:
        # Only the parent is drawn: random ones would take the place of mutants that are none.
        wanted = Problem(SPACE, sample=lambda key: dict(deep))
        proposes = Evolution(wanted, jax.random.key(0), 1, 1, 8, 0, **settings)
        assert proposes.ask() == [deep]
        proposes.tell([{"accuracy": 1.0}])
        return proposes.ask()

    still = children(probability=0.5, whole=0.0)
    assert len(still) == 8 and all((c["width"], c["depth"]) == (3, 3) for c in still)
    moved = children(probability=0.0, whole=0.5)
    assert len(moved) == 8 and all(c["ratio"] == deep["ratio"][: c["depth"]] for c in moved)
    assert any(c["ratio"] != deep["ratio"] for c in children(probability=0.5))


def test_searchers_start_from_the_problems_own_draws() -> None:
    only = {"width": 1, "depth": 1, "ratio": [1]}
    limits = (Constraint("params", 0, 20),)
    wanted = Problem(SPACE, (ACCURACY,), limits, {"params": params}, lambda key: dict(only))
    assert RandomSearch(wanted, jax.random.key(0), 3).ask() == [only] * 3
    # What would be asked for twice is drawn no more than once.
    assert Evolution(wanted, jax.random.key(0), 3).ask() == [only]
    assert NSGA2(wanted, jax.random.key(0), 3).ask() == [only]


@pytest.mark.parametrize("name", ["random", "evolution", "nsga2", "predictor"])
def test_a_single_feasible_architecture_is_found(name: str) -> None:
    wanted = toy_problem(constraints=[Constraint("params", 1, 1)])
    watched = Watched()
    history = run(wanted, searcher(name, wanted, jax.random.key(0), population=5), watched, 50)
    assert [e.arch for e in history] == [{"width": 1, "depth": 1, "ratio": [1]}]


@pytest.mark.parametrize("name", ["random", "evolution", "nsga2", "predictor"])
def test_a_space_with_a_rule_of_decoding_is_searched_legally(name: str) -> None:
    net = spaces.darts(channels=4, cells=3)
    wanted = Problem(net.space)

    def score(arch: Any) -> float:
        return sum(o == "skip_connect" for edges in arch.values() for o in edges)

    few: dict[str, int] = {"rounds": 2, "mutations": 4, "crossovers": 4}
    settings = few if name == "predictor" else {}
    proposes = searcher(name, wanted, jax.random.key(0), population=6, **settings)
    history = run(wanted, proposes, one_by_one(score), 20)
    assert len(history) == 20
    assert all(architecture.validate(net.space, e.arch) == e.arch for e in history)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("evolutoin", {}, "no searcher 'evolutoin'; did you mean 'evolution'.*nsga2"),
        ("random", {"populaton": 3}, "searcher 'random' cannot be made so: .*'populaton'"),
        ("random", {"population": 0}, "a population of 0 cannot be searched; 1 or more"),
        ("evolution", {"population": 0}, "a population of 0 cannot be searched; 1 or more"),
        ("nsga2", {"population": 1}, "a population of 1 cannot be crossed over; 2 or more"),
        ("evolution", {"parents": 0}, "0 parents, 25 mutations and 25 crossovers has no children"),
        ("evolution", {"mutations": 0, "crossovers": 0}, "has no children; at least one parent"),
        ("evolution", {"mutations": -1}, "-1 mutations"),
    ],
)
def test_what_is_no_searcher(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        searcher(name, toy_problem(), jax.random.key(0), **settings)


def test_evolution_of_two_objectives_is_refused() -> None:
    wanted = toy_problem([ACCURACY, PARAMS])
    with pytest.raises(SearchError, match=r"one objective, not accuracy, params; .* with nsga2"):
        searcher("evolution", wanted, jax.random.key(0))


@pytest.mark.parametrize("name", ["random", "evolution", "nsga2", "predictor"])
def test_limits_that_nothing_keeps_are_one_sentence_with_what_there_is(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("nasjax.search.objectives"), "_TRIES", 200)
    net = toy()
    low, high = problem(net).bounds("params") or (0, 0)
    # Between two counts, so that only drawing can tell.
    wanted = problem(net, constraints={"params": (high - 0.75, high - 0.25)})
    with pytest.raises(SearchError, match=f"params goes from {low:,} to {high:,} there"):
        run(wanted, searcher(name, wanted, jax.random.key(0)), Watched(), 10)
