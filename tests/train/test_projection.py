"""Projection on random trees: what equation (1) promises, its mirror image, and stacked layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core.errors import NasjaxError
from nasjax.train import projection

SEEDS = range(20)
SHAPES: list[tuple[int, ...]] = [(), (1,), (5,), (2, 4), (3, 1, 2)]


def trees(seed):
    """Two random trees of one random structure, some tensors of which agree and some are zero."""
    rng = np.random.default_rng(seed)
    shapes = [SHAPES[i] for i in rng.integers(len(SHAPES), size=rng.integers(1, 7))]
    first, second = {}, {}
    for i, shape in enumerate(shapes):
        scale = 10.0 ** rng.integers(-4, 5, 2)
        a, b = (s * rng.standard_normal(shape) for s in scale)
        kind = rng.integers(6)
        b = {0: 0 * b, 1: a, 2: -a, 3: -3e3 * a}.get(int(kind), b)
        where = first.setdefault(f"block_{i % 2}", {}), second.setdefault(f"block_{i % 2}", {})
        where[0][f"w{i}"], where[1][f"w{i}"] = jnp.float32(a), jnp.float32(b)
    return first, second


def pairs(*of):
    return zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in of), strict=True)


def cosine(a, b):
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / norms if norms else 0.0


def residue(a, b, original):
    """The cosine of ``a`` with ``b``, of the length that ``a`` had: rounding is relative to it."""
    shrunk = np.linalg.norm(a) / (np.linalg.norm(original) or 1.0)
    return cosine(a, b) * min(shrunk, 1.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_projected_gradient_is_in_no_conflict_and_otherwise_unchanged(seed):
    supernet, subnets = trees(seed)
    got = projection.project(supernet, subnets)
    for new, old, against in pairs(got, supernet, subnets):
        if cosine(old, against) >= 0:
            np.testing.assert_array_equal(new, old)
        else:
            assert abs(residue(new, against, old)) < 1e-5
            assert np.linalg.norm(new) <= np.linalg.norm(old) * (1 + 1e-5)
            # What is taken away lies along the other gradient.
            taken = cosine(new - old, against)
            assert taken == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_priority_is_ever_lost(seed):
    """The sum never points away from what has priority, and in a conflict is as long along it."""
    supernet, subnets = trees(seed)
    for first, kept in (("subnets", subnets), ("supernet", supernet)):
        got = projection.combine(subnets, supernet, first=first)
        for g, k, a, b in pairs(got, kept, subnets, supernet):
            scale = np.linalg.norm(a) + np.linalg.norm(b) or 1.0
            assert cosine(g, k) * np.linalg.norm(g) / scale > -1e-5
            if cosine(a, b) < 0:
                along = float(np.vdot(g, k)) / np.linalg.norm(k)
                assert along == pytest.approx(np.linalg.norm(k), abs=1e-5 * float(scale))


@pytest.mark.parametrize("rule", projection.RULES.values())
@pytest.mark.parametrize("seed", SEEDS)
def test_priority_of_the_super_network_mirrors_that_of_the_sub_networks(seed, rule):
    supernet, subnets = trees(seed)
    one = projection.combine(subnets, supernet, first="subnets", rule=rule)
    other = projection.combine(supernet, subnets, first="supernet", rule=rule)
    for a, b in pairs(one, other):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rule", projection.RULES.values())
@pytest.mark.parametrize("first", projection.FIRST)
@pytest.mark.parametrize("seed", SEEDS)
def test_without_conflict_gradients_are_added_up(seed, first, rule):
    supernet, subnets = trees(seed)
    got = projection.combine(subnets, supernet, first=first, rule=rule)
    for g, a, b in pairs(got, subnets, supernet):
        if cosine(a, b) >= 0:
            np.testing.assert_array_equal(g, a + b)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_released_factor_is_bounded_and_then_conflicts_may_remain(seed):
    supernet, subnets = trees(seed)
    exact = projection.factors(supernet, subnets)
    bounded = projection.factors(supernet, subnets, projection.released)
    for k, free in pairs(bounded, exact):
        assert 0 <= k <= 2 and k <= free * (1 + 1e-5)


def test_a_strong_gradient_stays_in_conflict_by_the_released_rule_alone():
    weak, strong = {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([-10.0, 1.0])}
    rules = {"published": [0.0, 1.0], "released": [-8.0, 1.0]}
    for name, expected in rules.items():
        got = projection.project(strong, weak, projection.RULES[name])
        np.testing.assert_allclose(got["w"], expected, atol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_layers_of_a_stack_are_tensors_of_their_own(seed):
    rng = np.random.default_rng(seed)
    a, b = (jnp.float32(rng.standard_normal((2, 4, 3, 2))) for _ in range(2))
    apart = [{str(i): x[0, i] for i in range(4)} for x in (a, b)]
    together, whole = {"w": a[0]}, {"w": b[0]}
    stacked = {"w": True}
    for call in (projection.project, projection.combine):
        expected = jnp.stack(list(call(*apart).values()))
        np.testing.assert_allclose(call(together, whole, stacked=stacked)["w"], expected, rtol=1e-5)
    cosines = projection.cosines(together, whole, stacked)["w"]
    expected = jnp.stack(list(projection.cosines(*apart).values()))
    np.testing.assert_allclose(cosines, expected, rtol=1e-5)
    assert projection.factors(together, whole)["w"].shape == ()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_conflict_ratio_is_the_share_of_negative_cosines(seed):
    supernet, subnets = trees(seed)
    got = projection.cosines(supernet, subnets)
    expected = [cosine(a, b) for a, b in pairs(supernet, subnets)]
    np.testing.assert_allclose(jax.tree.leaves(got), expected, atol=1e-5)
    known = [c for c in expected if c]
    ratio = np.mean([c < 0 for c in known]) if known else 0.0
    assert float(projection.conflict_ratio(got)) == pytest.approx(ratio)


def test_a_gradient_is_clipped_to_a_norm_over_all_its_tensors():
    tree = {"a": jnp.full((3,), 2.0), "b": jnp.full((1,), 2.0, jnp.bfloat16)}  # a norm of 4
    clipped = projection.clip_norm(tree, 1.0)
    np.testing.assert_allclose(clipped["a"], 0.5, rtol=1e-5)
    assert clipped["b"].dtype == jnp.bfloat16
    jax.tree.map(np.testing.assert_array_equal, projection.clip_norm(tree, 10.0), tree)
    zero = jax.tree.map(jnp.zeros_like, tree)
    jax.tree.map(np.testing.assert_array_equal, projection.clip_norm(zero, 1.0), zero)


def test_another_priority_is_refused():
    with pytest.raises(NasjaxError, match="'subnet' can have no priority; did you mean 'subnets'"):
        projection.combine({}, {}, first="subnet")
