"""Samplers: pure in the key and the step, true to their distributions, and within their limits."""

import math
from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest

from nasjax import sampling, spaces
from nasjax.core import architecture, cost
from nasjax.core import mixture as mixtures
from nasjax.core.errors import NasjaxError
from nasjax.core.space import Choice, SearchSpace
from nasjax.sampling import Sampler, fair, identity, identity_probability, uniform, weighted, within
from tests.toys import patches, toy

NET = toy()
SPACE = NET.space  # widths (4, 8), depths (1, 2), heads (0, 1, 2) in each block
KEY = jax.random.key(5)
TARGET = 180  # parameters, of 130 with identities alone to 245 without any
SAMPLERS = {
    "uniform": uniform(SPACE),
    "several": uniform(SPACE, 3),
    "weighted": weighted(SPACE, {"heads": (0.5, 0.25, 0.25)}),
    "fair": fair(SPACE),
    "within": within(uniform(SPACE, 2), NET, "params", 0, 150),
    "identity": identity(NET, "params", TARGET),
}


def draws(sampler: Sampler, steps: int, key: jax.Array = KEY) -> list[dict[str, Any]]:
    return [arch for step in range(steps) for arch in sampler(key, step)]


def frequencies(archs: list[dict[str, Any]], name: str, layer: int | None = None) -> np.ndarray:
    options = SPACE.choice(name).options
    values = [
        a[name] if layer is None else a[name][layer]
        for a in archs
        if layer is None or layer < len(a[name])
    ]
    return np.array([values.count(o) for o in options]) / len(values)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_follows_from_the_key_and_its_number_alone(name: str) -> None:
    sampler = SAMPLERS[name]
    first = [sampler(KEY, step) for step in range(12)]
    assert all(len(archs) == sampler.paths for archs in first)
    for archs in first:
        assert all(architecture.validate(SPACE, a) == a for a in archs)
    # In any order, as in a run that is resumed; and from a key made anew, as on another host.
    for step in (7, 3, 11):
        assert sampler(jax.random.key(5), step) == first[step]
    assert len({str(archs) for archs in first}) > 5
    others = [sampler(jax.random.key(6), step) for step in range(12)]
    assert sum(a == b for a, b in zip(first, others, strict=True)) < 6


def test_the_paths_of_a_step_differ_and_begin_like_one() -> None:
    several = [uniform(SPACE, 3)(KEY, step) for step in range(20)]
    assert [archs[:1] for archs in several] == [uniform(SPACE)(KEY, step) for step in range(20)]
    assert sum(archs[0] == archs[1] for archs in several) < 6


def test_uniform_is_uniform_in_each_choice() -> None:
    found = draws(uniform(SPACE), 2000)
    for name, layer in (("width", None), ("depth", None), ("heads", 0), ("heads", 1)):
        got = frequencies(found, name, layer)
        np.testing.assert_allclose(got, 1 / len(got), atol=0.06, err_msg=name)
    # Choices and layers are drawn apart.
    both = np.mean([a["width"] == 4 and a["heads"][0] == 0 for a in found])
    assert abs(both - 1 / 6) < 0.04


def test_weighed_has_the_probabilities_it_was_given() -> None:
    given = {"heads": (0.6, 0.1, 0.3), "depth": (0.0, 1.0)}
    found = draws(weighted(SPACE, given, paths=2), 1000)
    assert frequencies(found, "depth").tolist() == [0, 1]
    for layer in (0, 1):
        np.testing.assert_allclose(frequencies(found, "heads", layer), given["heads"], atol=0.05)
    np.testing.assert_allclose(frequencies(found, "width"), 0.5, atol=0.06)


def test_probabilities_may_be_as_exact_as_they_are_written() -> None:
    for row in ((0.3333333,) * 3, np.float32([0.1, 0.7, 0.2]), [1, 0, 0]):
        assert len(draws(weighted(SPACE, {"heads": row}), 3)) == 3


@pytest.mark.parametrize("name", ["uniform", "weighted", "identity"])
def test_a_single_draw_has_the_distribution_of_a_step(name: str) -> None:
    sampler = SAMPLERS[name]
    assert sampler.sample is not None
    rng = architecture.generator(KEY)
    single, steps = [sampler.sample(rng) for _ in range(1500)], draws(sampler, 1500)
    for choice, layer in (("width", None), ("depth", None), ("heads", 0)):
        first, second = (frequencies(f, choice, layer) for f in (single, steps))
        np.testing.assert_allclose(first, second, atol=0.07)


EQUAL = SearchSpace(
    "equal",
    (Choice("a", (1, 2, 3)), Choice("b", ("x", "y", "z"), per="edges")),
    {"edges": 4},
)
MIXED = SearchSpace(
    "mixed",
    (Choice("two", (0, 1)), Choice("three", (5, 6, 7), per="edges"), Choice("four", (1, 2, 3, 4))),
    {"edges": 2},
)


def counts(space: SearchSpace, archs: list[dict[str, Any]]) -> dict[Any, Counter[Any]]:
    found: dict[Any, Counter[Any]] = {}
    for name, layer in architecture.genes(space):
        values = [a[name] if layer is None else a[name][layer] for a in archs]
        found[name, layer] = Counter(values)
    return found


def test_where_all_choices_have_as_many_options_a_fair_step_has_each_once() -> None:
    sampler = fair(EQUAL)
    assert sampler.paths == 3
    orders = set()
    for step in range(30):
        archs = sampler(KEY, step)
        for gene, found in counts(EQUAL, archs).items():
            assert set(found.values()) == {1} and len(found) == 3, gene
        orders.add(tuple(a["a"] for a in archs))
        orders.add(tuple(a["b"][1] for a in archs))
    assert len(orders) == 12  # all permutations, of each choice


def test_choices_and_layers_have_orders_of_their_own() -> None:
    archs = draws(fair(EQUAL), 60)
    pairs = Counter((a["a"], a["b"][0]) for a in archs)
    layers = Counter((a["b"][0], a["b"][1]) for a in archs)
    assert len(pairs) == len(layers) == 9


@pytest.mark.parametrize("paths", [None, 1, 3])
def test_fair_is_exact_over_a_common_multiple_of_the_options(paths: int | None) -> None:
    sampler = fair(MIXED, paths)
    assert sampler.paths == (paths or 4)
    steps = math.lcm(2, 3, 4, sampler.paths) // sampler.paths
    for begin in (0, steps):
        archs = [a for step in range(begin, begin + steps) for a in sampler(KEY, step)]
        for gene, found in counts(MIXED, archs).items():
            options = MIXED.choice(gene[0]).options
            assert dict(found) == dict.fromkeys(options, len(archs) // len(options)), gene


def test_static_choices_stay_within_a_fair_step_and_go_round_by_steps() -> None:
    space = patches().space
    sampler = fair(space)
    assert sampler.paths == 3  # as many as there are widths
    seen = []
    for step in range(12):
        archs = sampler(KEY, step)
        assert len({a["patch"] for a in archs}) == 1
        assert sorted(a["width"] for a in archs) == [2, 4, 6]
        seen.append(archs[0]["patch"])
    assert all(sorted(seen[i : i + 2]) == [2, 4] for i in range(0, 12, 2))
    assert len({tuple(seen[i : i + 2]) for i in range(0, 12, 2)}) == 2


def test_fair_in_depth_gives_layers_that_exist() -> None:
    archs = draws(fair(SPACE), 200)
    assert all(len(a["heads"]) == a["depth"] for a in archs)
    # The first layer is always there, so nothing of its turns is lost.
    assert frequencies(archs, "heads", 0).tolist() == [1 / 3] * 3


def test_what_cannot_be_drawn_from_fairly() -> None:
    with pytest.raises(NasjaxError, match=r"space 'darts' allows only some .*; sample uniformly"):
        fair(spaces.darts(channels=4, cells=3).space)
    with pytest.raises(NasjaxError, match="fair sampling cannot keep a budget and stay fair"):
        within(fair(SPACE), NET, "params", 0, 1e9)
    for make in (uniform, fair):
        for paths in (0, -1):
            with pytest.raises(NasjaxError, match=f"{paths} paths a step train nothing; 1 or mor"):
                make(SPACE, paths)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"width": (0.5, 0.4)}, r"probabilities of 'width' are \(0.5, 0.4\); 2 that add up to 1"),
        ({"width": (1.5, -0.5)}, "2 that add up to 1 were expected"),
        ({"heads": (0.5, 0.5)}, "of 'heads' .* 3 that add up to 1"),
        ({"heds": (0.5, 0.5)}, "did you mean 'heads'"),
    ],
)
def test_weights_that_are_no_distribution(weights: Any, message: str) -> None:
    with pytest.raises(NasjaxError, match=message):
        weighted(SPACE, weights)


def params(arch: Any) -> float:
    return NET.count("params", arch)


def test_within_limits_all_are_and_the_others_keep_their_proportions() -> None:
    base = weighted(SPACE, {"heads": (0.2, 0.3, 0.5)})
    low, high = 110, 230
    found = draws(within(base, NET, "params", low, high), 800)
    assert all(low <= params(a) <= high for a in found)
    free = [a for a in draws(base, 2500, jax.random.key(9)) if low <= params(a) <= high]
    assert 0.2 < len(free) / 2500 < 0.8  # the limits leave some and take some
    ours, theirs = (Counter(map(str, archs)) for archs in (found, free))
    assert set(ours) == set(theirs) and len(ours) > 5
    for arch in ours:
        assert abs(ours[arch] / len(found) - theirs[arch] / len(free)) < 0.07, arch


def test_limits_are_allowed_themselves_and_nothing_is_drawn_again_without_need() -> None:
    low, high = cost.bounds(SPACE, NET.terms("params"))
    all_of_it = within(uniform(SPACE, 2), NET, "params", low, high)
    assert [all_of_it(KEY, i) for i in range(9)] == [uniform(SPACE, 2)(KEY, i) for i in range(9)]
    assert all_of_it.sample is not None
    for limits, end in (((0, low), "smallest"), ((high, math.inf), "largest")):
        only = within(uniform(SPACE), NET, "params", *limits)
        assert only(KEY, 0) == [NET.architecture(end)]


def test_limits_of_two_costs_hold_together() -> None:
    sampler = within(within(uniform(SPACE), NET, "params", 0, 150), NET, "flops", 100, 1e9)
    found = draws(sampler, 60)
    assert all(params(a) <= 150 and NET.count("flops", a) >= 100 for a in found)
    assert len({str(a) for a in found}) > 1


def test_limits_that_nothing_keeps_name_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = cost.bounds(SPACE, NET.terms("params"))
    for limits in ((0, low - 1), (high + 1, math.inf)):
        with pytest.raises(NasjaxError, match=f"they go from {low:,} to {high:,}; move the lim"):
            within(uniform(SPACE), NET, "params", *limits)
    monkeypatch.setattr(sampling, "_TRIES", 50)
    sampler = within(uniform(SPACE), NET, "params", high - 0.75, high - 0.25)
    with pytest.raises(NasjaxError, match="none of 50 architectures drawn has params from"):
        sampler(KEY, 0)


@pytest.mark.parametrize("cost_name", ["params", "flops"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_identities_make_the_expected_cost_the_target(cost_name: str, part: float) -> None:
    ends = [expected(cost_name, skip) for skip in (1.0, 0.0)]
    target = ends[0] + part * (ends[1] - ends[0])
    probability = identity_probability(NET, cost_name, target)
    assert expected(cost_name, probability) == pytest.approx(target, rel=1e-4)
    if cost_name == "params" and part == 0.5:
        sampler = identity(NET, cost_name, target)
        found = draws(sampler, 1500)
        values = np.array([NET.count(cost_name, a) for a in found])
        assert abs(values.mean() - target) < 4 * values.std() / math.sqrt(len(values))
        rest = (1 - probability) / 2
        for layer in (0, 1):
            np.testing.assert_allclose(
                frequencies(found, "heads", layer), [probability, rest, rest], atol=0.06
            )


def expected(name: str, skip: float) -> float:
    """By super-network's own expectation, of heads (0, 1, 2)."""
    mixture = mixtures.uniform(SPACE)
    row = np.array([skip, (1 - skip) / 2, (1 - skip) / 2], np.float32)
    return float(NET.expect(name, {**mixture, "heads": np.broadcast_to(row, (2, 3))}))


def test_the_ends_can_be_reached() -> None:
    assert identity_probability(NET, "params", expected("params", 1.0)) == pytest.approx(
        1, abs=1e-3
    )
    assert identity_probability(NET, "params", expected("params", 0.0)) == pytest.approx(
        0, abs=1e-3
    )


def test_a_target_out_of_reach_says_what_can_be_reached() -> None:
    ends = [f"{expected('params', skip):,.0f}" for skip in (0.0, 1.0)]
    for target in (10, 10_000):
        with pytest.raises(NasjaxError, match=rf"from {ends[0]} without any to {ends[1]} with not"):
            identity(NET, "params", target)


def test_the_probability_of_identity_blocks_is_solved_for_once() -> None:
    identity_probability.cache_clear()
    samplers = [identity(NET, "params", TARGET) for _ in range(3)]
    assert identity_probability.cache_info().misses == 1
    assert samplers[0](jax.random.key(0), 1) == samplers[2](jax.random.key(0), 1)


def test_a_choice_without_an_identity_is_named() -> None:
    with pytest.raises(NasjaxError, match=r"'width' .* options \(4, 8\), among which the identi"):
        identity(NET, "params", TARGET, choice="width")
    with pytest.raises(NasjaxError, match="the identity 7 is not; build the space with identity"):
        identity(NET, "params", TARGET, skip=7)


def test_samplers_by_name() -> None:
    made = sampling.sampler("uniform", NET, paths=3)
    assert made(KEY, 4) == uniform(SPACE, 3)(KEY, 4)
    assert sampling.sampler("fair", NET)(KEY, 4) == fair(SPACE)(KEY, 4)
    made = sampling.sampler("identity", NET, cost="params", target=TARGET)
    assert made(KEY, 4) == identity(NET, "params", TARGET)(KEY, 4)
    limits = {"params": (0, 150), "flops": (100, 1e9)}
    for arch in draws(sampling.sampler("uniform", NET, limits), 20):
        assert params(arch) <= 150 and NET.count("flops", arch) >= 100


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("unifrom", {}, "no sampler 'unifrom'; did you mean 'uniform'.*Known: uniform, fair, iden"),
        ("uniform", {"path": 2}, "sampler 'uniform' cannot be made so: .*'path'"),
        ("identity", {}, "sampler 'identity' cannot be made so: .*'cost' and 'target'"),
        ("identity", {"cost": "parms", "target": 1}, "counts no 'parms'; did you mean 'params'"),
        ("fair", {"limits": {"params": (0, 1e9)}}, "cannot keep a budget and stay fair"),
    ],
)
def test_what_is_no_sampler(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(NasjaxError, match=message):
        sampling.sampler(kind, NET, **settings)
