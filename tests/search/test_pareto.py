"""Pareto sets: what nothing beats, against the definition, and files that can be read again."""

import csv
import json
import pathlib

import jax
import numpy as np
import pytest

from nasjax.core import architecture
from nasjax.search import Constraint, History, non_dominated, pareto_front, write_front
from tests.search.toys import ACCURACY, PARAMS, SPACE, accuracy, code, params, problem


def by_definition(values: np.ndarray) -> np.ndarray:
    return np.array(
        [
            not any(np.all(other <= row) and np.any(other < row) for other in values)
            for row in values
        ],
        bool,
    )


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_non_dominated_is_the_definition_also_with_ties(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    kept = []
    for count in (0, 1, 2, 3, 10, 60):
        for levels in (2, 4, 1000):
            values = rng.integers(0, levels, (count, objectives)) * 0.1 - 0.2
            got = non_dominated(values)
            assert got.dtype == bool and got.shape == (count,)
            np.testing.assert_array_equal(got, by_definition(values))
            order = rng.permutation(count)
            np.testing.assert_array_equal(non_dominated(values[order]), got[order])
            kept.append(got.mean() if count == 60 else 0)
    assert 0 < max(kept) < 1  # something was beaten, and something was not


def test_equals_stay_and_infinite_values_are_values() -> None:
    rows = np.array([[1, 2], [1, 2], [2, 1], [2, 2], [-np.inf, 9], [np.inf, 0], [np.inf, 0.5]])
    np.testing.assert_array_equal(non_dominated(rows), [1, 1, 1, 0, 1, 1, 0])


def some_history(seed: int = 0, count: int = 60) -> History:
    history = History(SPACE)
    for i in range(count):
        arch = architecture.sample(SPACE, jax.random.key(1000 * seed + i))
        if history.get(arch) is None:
            history.add(arch, {"accuracy": accuracy(arch), "params": params(arch)})
    return history


def test_the_front_is_best_by_the_first_objective_first() -> None:
    history = some_history()
    for objectives in ([ACCURACY, PARAMS], [PARAMS, ACCURACY]):
        wanted = problem(objectives)
        front = pareto_front(wanted, history)
        values = wanted.minimized([e.values for e in front])
        assert len(front) > 2
        np.testing.assert_array_equal(values[:, 0], np.sort(values[:, 0]))
        first = {code(e.arch) for e in front}
        beaten = wanted.minimized([e.values for e in history if code(e.arch) not in first])
        assert np.all(by_definition(values))
        for row in beaten:
            assert any(np.all(v <= row) and np.any(v < row) for v in values)
    assert {code(e.arch) for e in pareto_front(problem([ACCURACY, PARAMS]), history)} == first


def test_of_one_objective_the_front_is_the_best_and_all_that_equal_it() -> None:
    history = some_history()
    front = pareto_front(problem([PARAMS]), history)
    least = min(e.values["params"] for e in history)
    assert [e.values["params"] for e in front] == [least] * len(front)
    assert len(front) == sum(e.values["params"] == least for e in history)
    assert pareto_front(problem(), History(SPACE)) == []


def test_files_of_a_front_can_be_read_again(tmp_path: pathlib.Path) -> None:
    wanted = problem([PARAMS, ACCURACY], [Constraint("params", 0, 40)])
    front = pareto_front(wanted, some_history())
    paths = write_front(tmp_path, wanted, front)
    assert paths == (tmp_path / "pareto.json", tmp_path / "pareto.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pareto.csv", "pareto.json"]
    content = json.loads(paths[0].read_text())
    assert content["space"] == "toys" and content["constraints"] == ["0 <= params <= 40"]
    assert content["objectives"] == [
        {"name": "params", "direction": "min", "unit": ""},
        {"name": "accuracy", "direction": "max", "unit": ""},
    ]
    with paths[1].open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["params", "accuracy", "architecture"]
    assert len(table) == len(content["architectures"]) == len(front) > 2
    for entry, row, line in zip(front, content["architectures"], table, strict=True):
        for arch in (row["architecture"], json.loads(line["architecture"])):
            assert architecture.validate(SPACE, arch) == entry.arch
        for read in (row, line):
            assert {n: float(read[n]) for n in entry.values} == entry.values


def test_an_empty_front_leaves_files_without_rows(tmp_path: pathlib.Path) -> None:
    first, second = write_front(str(tmp_path), problem([ACCURACY, PARAMS]), [])
    assert json.loads(first.read_text())["architectures"] == []
    assert second.read_text() == "accuracy,params,architecture\n"
