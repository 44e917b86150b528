"""Searches that are stopped anywhere end as if they had not been; nothing is evaluated twice."""

import functools
import itertools
import json
import os
import pathlib
import signal
from typing import Any

import jax
import numpy as np
import pytest

from nasjax.core import architecture
from nasjax.search import (
    SEARCHERS,
    Constraint,
    History,
    Objective,
    RandomSearch,
    SearchError,
    best,
    nsga2,
    one_by_one,
    pareto_front,
    run,
    searcher,
)
from nasjax.train.errors import Stopped
from tests.search.toys import ACCURACY, PARAMS, SPACE, Crash, Watched, accuracy, code, found, params
from tests.search.toys import problem as toy_problem

LIMITED = Constraint("params", 4, 14)
COUNT = 24
SETTINGS: dict[str, dict[str, Any]] = {
    "random": {"population": 5},
    "evolution": {"population": 7, "parents": 4, "mutations": 3, "crossovers": 2},
    "nsga2": {"population": 7},
    "predictor": {
        "population": 7,
        "batch": 9,
        "parents": 6,
        "mutations": 5,
        "crossovers": 5,
        "rounds": 3,
    },
}
NAMES = sorted(SEARCHERS)


def wanted(name: str) -> Any:
    objectives = [ACCURACY] if name == "evolution" else [ACCURACY, PARAMS]
    return toy_problem(objectives, [LIMITED])


def search(
    name: str, evaluate: Any, history: History | None = None, count: int = COUNT, seed: int = 0
) -> History:
    problem = wanted(name)
    proposes = searcher(name, problem, jax.random.key(seed), **SETTINGS[name])
    return run(problem, proposes, evaluate, count, history)


def saved(name: str, path: pathlib.Path) -> History:
    return History(SPACE, path, wanted(name).describe())


@functools.cache
def whole(name: str, seed: int = 0) -> History:
    return search(name, Watched(), seed=seed)


@pytest.mark.parametrize("name", NAMES)
def test_exactly_so_many_are_evaluated_and_none_of_them_twice(name: str) -> None:
    for count in (1, 6, 7, 8, 20):
        watched = Watched()
        history = search(name, watched, count=count)
        assert [e.arch for e in history] == watched.seen
        assert len(found(history)) == len(watched.seen) == count


@pytest.mark.parametrize("name", NAMES)
def test_what_breaks_a_constraint_is_never_evaluated(name: str) -> None:
    for entry in whole(name):
        assert 4 <= params(entry.arch) <= 14
    free = run(
        toy_problem(), searcher(name, toy_problem(), jax.random.key(0), **SETTINGS[name]),
        Watched(), COUNT,
    )  # fmt: skip
    assert any(not 4 <= params(e.arch) <= 14 for e in free)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_key_finds_the_same_and_another_key_something_else(name: str) -> None:
    assert list(whole(name)) == list(search(name, Watched()))
    assert found(whole(name)) != found(whole(name, 1))


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_any_evaluation_and_resumed_is_as_never_killed(
    name: str, tmp_path: pathlib.Path
) -> None:
    """Also within a generation whose values come in another order, and within a line."""
    problem = wanted(name)
    # Of those that take longer, some in each of their generations.
    few = {"nsga2": (0, 1, 3, 7, 8, 11, 14, 17, 19, 23), "predictor": (1, 7, 10, 16, 23)}
    for after in few.get(name, range(COUNT)):
        path = tmp_path / f"{after}.jsonl"
        first = Watched(crash_after=after, backwards=after % 3 == 1)
        with pytest.raises(Crash):
            search(name, first, saved(name, path))
        if after % 2:
            with path.open("a") as file:
                file.write('{"architecture": {"width": 4, "dep')
        again = Watched(backwards=after % 3 == 2)
        history = search(name, again, saved(name, path))
        assert len(first.seen) + len(again.seen) == COUNT
        assert not {*map(code, first.seen)} & {*map(code, again.seen)}
        assert found(history) == found(whole(name)) == found(saved(name, path))
        assert best(problem, history) == best(problem, whole(name))
        fronts = [{code(e.arch) for e in pareto_front(problem, h)} for h in (history, whole(name))]
        assert fronts[0] == fronts[1]


@pytest.mark.parametrize("name", NAMES)
def test_killed_again_and_again_it_still_ends(name: str, tmp_path: pathlib.Path) -> None:
    path, total = tmp_path / "history.jsonl", 0
    for after in itertools.cycle((3, 0, 1, 5)):
        watched = Watched(crash_after=after)
        try:
            history = search(name, watched, saved(name, path))
        except Crash:
            continue
        finally:
            total += len(watched.seen)
        break
    assert total == COUNT and found(history) == found(whole(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_search_that_is_over_evaluates_nothing_and_a_longer_one_goes_on(
    name: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "history.jsonl"
    search(name, Watched(), saved(name, path), count=13)
    again = Watched()
    assert len(search(name, again, saved(name, path), count=13)) == 13 and not again.seen
    longer = Watched()
    history = search(name, longer, saved(name, path))
    assert len(longer.seen) == COUNT - 13
    assert found(history) == found(whole(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_space_that_is_exhausted_ends_the_search(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nsga2, "_EMPTY", 10)  # which a hundred generations would find, too
    limits = [Constraint("params", 1, 3)]
    few = [a for a in architecture.every(SPACE) if params(a) <= 3]
    assert 4 < len(few) < 15
    problem, watched = toy_problem(constraints=limits), Watched()
    proposes = searcher(name, problem, jax.random.key(0), **SETTINGS[name])
    history = run(problem, proposes, watched, 10_000)
    assert len(watched.seen) == len(history) <= len(few)
    if name != "nsga2":  # which converges before it has seen everything
        assert len(history) == len(few)
    assert best(problem, history).values["accuracy"] == max(map(accuracy, few))


def test_values_may_come_in_any_order() -> None:
    for name in NAMES:
        backwards = search(name, Watched(backwards=True))
        assert found(backwards) == found(whole(name))
        assert best(wanted(name), backwards) == best(wanted(name), whole(name))


def test_costs_are_recorded_beside_what_is_evaluated() -> None:
    for entry in whole("random"):
        assert entry.values == {"accuracy": accuracy(entry.arch), "params": params(entry.arch)}


def test_the_best_of_equals_is_the_smallest_whatever_the_order() -> None:
    problem = toy_problem()
    rng = np.random.default_rng(0)
    every = list(architecture.every(SPACE))
    first = max(map(accuracy, every))
    equals = [a for a in every if accuracy(a) == first]
    assert len(equals) > 1
    for equal in (False, True):
        answers = set()
        for _ in range(5):
            history = History(SPACE)
            for i in rng.permutation(len(every)):
                size = 1 if equal else params(every[i])
                history.add(every[i], {"accuracy": accuracy(every[i]), "params": size})
            answers.add(code(best(problem, history).arch))
        assert len(answers) == 1 and answers < {*map(code, equals)}
        if not equal:
            assert answers == {code(min(equals, key=params))}
            smallest = best(toy_problem([PARAMS]), history)
            assert smallest.arch == {"width": 1, "depth": 1, "ratio": [1]}


def test_a_signal_stops_between_two_architectures_and_keeps_them(tmp_path: pathlib.Path) -> None:
    def fitness(arch: Any) -> float:
        if len(watched.seen) == 11:
            os.kill(os.getpid(), signal.SIGTERM)
        return accuracy(arch)

    path = tmp_path / "history.jsonl"
    watched = Watched(fitness=fitness)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=r"SIGTERM: stopped after 11 of 24 .* to continue"):
        search("evolution", watched, saved("evolution", path))
    assert signal.getsignal(signal.SIGTERM) is handler
    assert len(saved("evolution", path)) == 11
    again = Watched()
    assert found(search("evolution", again, saved("evolution", path))) == found(whole("evolution"))
    assert len(again.seen) == COUNT - 11


def test_a_signal_at_the_last_architecture_is_no_stop() -> None:
    def fitness(arch: Any) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return accuracy(arch)

    assert len(search("random", Watched(fitness=fitness), count=1)) == 1


class Climber:
    """An optimizer of another library: knows vectors of integers, and nothing of architectures."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._sizes = [len(SPACE.choice(n).options) for n, _ in architecture.genes(SPACE)]
        self._best: tuple[float, np.ndarray] = (-np.inf, self._rng.integers(0, self._sizes))
        self.told: list[Any] = []

    def ask(self) -> list[dict[str, Any]]:
        self._vectors = []
        for _ in range(4):
            vector = self._best[1].copy()
            gene = self._rng.integers(len(vector))
            vector[gene] = self._rng.integers(self._sizes[gene])
            self._vectors.append(vector)
        return [architecture.nearest(SPACE, vector) for vector in self._vectors]

    def tell(self, values: Any) -> None:
        self.told += values
        for value, vector in zip(values, self._vectors, strict=True):
            if value["accuracy"] >= self._best[0]:
                self._best = value["accuracy"], vector


def test_whoever_asks_and_is_told_is_a_searcher(tmp_path: pathlib.Path) -> None:
    problem = toy_problem([ACCURACY, Objective("latency")])

    def evaluate(archs: Any) -> Any:
        return ((a, {"accuracy": accuracy(a), "latency": 2.0 * a["width"]}) for a in archs)

    climber = Climber(0)
    history = run(problem, climber, evaluate, 30)
    assert len(history) == 30
    top = max(map(accuracy, architecture.every(SPACE)))
    assert best(problem, history).values["accuracy"] == top
    # It was told of all that it asked for, also of what was known already.
    assert len(climber.told) > 30 and len(climber.told) % 4 == 0
    assert all(set(told) == {"accuracy", "latency", "params"} for told in climber.told)
    assert {json.dumps(t) for t in climber.told} <= {json.dumps(e.values) for e in history}
    path = tmp_path / "history.jsonl"
    run(problem, Climber(0), evaluate, 11, History(SPACE, path))
    assert found(run(problem, Climber(0), evaluate, 30, History(SPACE, path))) == found(history)


def test_a_searcher_that_repeats_itself_or_has_no_more_ends_the_search() -> None:
    class Stubborn:
        asked = 0

        def ask(self) -> list[dict[str, Any]]:
            self.asked += 1
            return [{"width": 2, "depth": 1, "ratio": [1 if self.asked < 5 else 2]}]

        def tell(self, values: Any) -> None:
            pass

    stubborn = Stubborn()
    assert len(run(toy_problem(), stubborn, Watched(), 5)) == 2
    assert 5 < stubborn.asked < 2000

    class Silent(Stubborn):
        def ask(self) -> list[dict[str, Any]]:
            return []

    assert len(run(toy_problem(), Silent(), Watched(), 5)) == 0


def test_an_evaluation_without_the_objective_is_named() -> None:
    problem = toy_problem([Objective("loss")])
    proposes = searcher("random", problem, jax.random.key(0))
    with pytest.raises(SearchError, match="gives params, accuracy, but the objective is 'loss'"):
        run(problem, proposes, one_by_one(accuracy), 5)
    renamed = run(problem, proposes, one_by_one(accuracy, "loss"), 5)
    assert all(e.values["loss"] == accuracy(e.arch) for e in renamed)


def test_nothing_to_compare_is_one_sentence() -> None:
    problem = toy_problem()
    with pytest.raises(SearchError, match="0 architectures cannot be compared; 1 or more"):
        run(problem, searcher("random", problem, jax.random.key(0)), Watched(), 0)
    with pytest.raises(SearchError, match="nothing was evaluated, so nothing is the best"):
        best(problem, History(SPACE))


def test_a_bar_counts_what_was_known_before(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.jsonl"
    problem = toy_problem()
    for count in (6, 9):
        proposes = searcher("random", problem, jax.random.key(0), population=3)
        run(problem, proposes, Watched(), count, History(SPACE, path), progress="random")
    shown = capsys.readouterr().err
    assert "random" in shown and "9/9" in shown and "6/9" in shown and "best accuracy" in shown


def test_an_evaluation_that_leaves_some_out_is_named() -> None:
    problem = toy_problem()

    def careless(archs: Any) -> Any:
        return ((arch, {"accuracy": 1.0}) for arch in archs[1:])

    searcher = RandomSearch(problem, jax.random.key(0), 4)
    with pytest.raises(SearchError, match=r"left 1 of \d architectures out"):
        run(problem, searcher, careless, 8)
