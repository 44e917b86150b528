"""Problems: what is wanted and what must hold, said before anything is evaluated."""

import dataclasses
import doctest
import importlib
import math
from typing import Any

import jax
import numpy as np
import pytest

from nasjax.core import architecture, cost
from nasjax.search import Constraint, Objective, Problem, SearchError, problem
from tests import toys as networks
from tests.search.toys import ACCURACY, PARAMS, SPACE, params
from tests.search.toys import problem as toy_problem

NET = networks.toy()
MODULE = importlib.import_module("nasjax.search.objectives")
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("seed", range(3))
def test_draws_keep_every_constraint(seed: int) -> None:
    limits = (Constraint("params", 6, 12), Constraint("depth", 2, 2))
    costs = {"params": params, "depth": lambda arch: arch["depth"]}
    wanted = dataclasses.replace(toy_problem(), constraints=limits, costs=costs)
    rng = architecture.generator(jax.random.key(seed))
    for _ in range(50):
        arch = wanted.draw(rng)
        assert architecture.validate(SPACE, arch) == arch
        assert 6 <= params(arch) <= 12 and arch["depth"] == 2
        assert wanted.violation(arch) == 0


def test_a_violation_is_the_part_by_which_a_limit_is_missed_and_limits_themselves_are_kept() -> (
    None
):
    limit = Constraint("params", 10, 20)
    got = [limit.violation(value) for value in (5, 9, 10, 15, 20, 25, 40)]
    assert got == pytest.approx([0.5, 0.1, 0, 0, 0, 0.25, 1])
    assert Constraint("params", maximum=20).violation(-1e9) == 0
    assert Constraint("params", minimum=10).violation(1e9) == 0
    both = toy_problem(constraints=[limit, Constraint("params", 30, 40)])
    arch = {"width": 1, "depth": 2, "ratio": [4, 1]}  # 5 parameters
    assert both.violation(arch) == pytest.approx(0.5 + 25 / 30)
    assert str(limit) == "10 <= params <= 20"
    assert str(Constraint("params", maximum=1e6)) == "params <= 1e+06"


def test_draws_follow_the_given_sampler() -> None:
    only = {"width": 4, "depth": 1, "ratio": [2]}
    wanted = dataclasses.replace(toy_problem(), sample=lambda key: dict(only))
    assert all(wanted.draw(jax.random.key(i)) == only for i in range(3))


def test_objectives_are_minimised_each_in_its_direction() -> None:
    wanted = toy_problem([ACCURACY, PARAMS])
    values = [{"accuracy": 0.5, "params": 7, "flops": 1}, {"params": 3, "accuracy": 0.25}]
    np.testing.assert_array_equal(wanted.minimized(values), [[-0.5, 7], [-0.25, 3]])
    assert wanted.minimized([]).shape == (0, 2)
    assert wanted.known({"width": 2, "depth": 1, "ratio": [4]}) == {"params": 8}


def test_costs_of_a_super_network_are_known_and_bounded() -> None:
    wanted = problem(NET, ["accuracy", "params", "flops"], {"params": (0, 1e6)})
    for _ in range(5):
        arch = architecture.sample(NET.space, RNG)
        assert wanted.known(arch) == {n: NET.count(n, arch) for n in ("params", "flops")}
    for name in ("params", "flops"):
        assert wanted.bounds(name) == cost.bounds(NET.space, NET.terms(name))
    assert [o.sign for o in wanted.objectives] == [-1, 1, 1]


def test_a_cost_of_ones_own_is_an_objective_and_a_constraint_like_any_other() -> None:
    def latency(arch: Any) -> float:
        return 0.5 * arch["width"] + arch["depth"]

    wanted = problem(
        NET, ["latency", "accuracy"], {"latency": (4.5, 5.0)}, {"latency": latency, "rank": len}
    )
    assert wanted.objectives[0] == Objective("latency", unit="ms")
    assert {latency(wanted.draw(RNG)) for _ in range(40)} == {5.0}  # of 3, 4, 5 and 6
    custom = Objective("rank", maximize=True)
    assert problem(NET, [custom], costs={"rank": len}).objectives == (custom,)


def test_a_draw_whose_limits_leave_nothing_says_what_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MODULE, "_TRIES", 200)
    low, high = cost.bounds(NET.space, NET.terms("params"))
    for limits in ((0, low - 1), (high + 1, math.inf)):
        with pytest.raises(SearchError, match=f"params goes from {low:,} to {high:,} there; move"):
            problem(NET, constraints={"params": limits})
    # Within the bounds, but of no architecture at all.
    wanted = problem(NET, constraints={"params": (low + 0.25, low + 0.75)})
    with pytest.raises(SearchError, match=rf"none of 200 .*from {low:,} to {high:,} there; wid"):
        wanted.draw(RNG)


def test_a_limit_of_an_unbounded_cost_that_leaves_nothing_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MODULE, "_TRIES", 200)
    wanted = problem(NET, constraints={"latency": (5, 6)}, costs={"latency": lambda arch: 1.0})
    with pytest.raises(SearchError, match="5 <= latency <= 6; its costs are not bounded beforeh"):
        wanted.draw(RNG)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objectives": ["acuracy"]}, "no objective 'acuracy'; did you mean 'accuracy'.*params"),
        ({"objectives": ["latency"]}, "no objective 'latency'; Known: accuracy, params, flops"),
        ({"objectives": []}, r"the objectives are \[\]; one or more, each once"),
        ({"objectives": ["params", "params"]}, "one or more, each once, were expected"),
        ({"constraints": {"accuracy": (0.5, 1)}}, "'accuracy' cannot be constrained, since it is"),
        ({"constraints": {"parms": (0, 1)}}, "'parms' cannot be .* did you mean 'params'"),
        ({"constraints": {"params": (2, 1)}}, "the minimum 2 is above the maximum 1; exchange"),
        ({"constraints": {"params": 5}}, "limits of params are 5; its minimum and its maximum"),
        ({"constraints": {"params": "ab"}}, "limits of params are 'ab'; its minimum"),
        ({"constraints": {"params": (1, 2, 3)}}, r"are \(1, 2, 3\); its minimum and its maximum"),
    ],
)
def test_what_is_no_problem(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        problem(NET, **arguments)


def test_a_problem_without_a_super_network_is_checked_too() -> None:
    with pytest.raises(SearchError, match="'params' cannot be constrained"):
        Problem(SPACE, constraints=(Constraint("params", 0, 1),))
    with pytest.raises(SearchError, match="each once"):
        Problem(SPACE, ())


def test_problems_are_told_apart() -> None:
    one = toy_problem()
    others = [
        toy_problem([PARAMS]),
        toy_problem([ACCURACY, PARAMS]),
        toy_problem(constraints=[Constraint("params", 0, 9)]),
        toy_problem(space=NET.space),
    ]
    described = [repr(p.describe()) for p in (one, *others)]
    assert len(set(described)) == 5
    assert repr(toy_problem().describe()) == described[0]


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(MODULE)
    assert result.failed == 0 and result.attempted > 0
