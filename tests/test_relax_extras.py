"""Edge weights and pruned options: what they leave as it was, and what can never come out."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax import relax, spaces
from nasjax.core import architecture
from nasjax.core import mixture as mixtures
from nasjax.core.errors import NasjaxError
from nasjax.core.space import Choice, SearchSpace
from nasjax.relax_extras import edge_weights, leave_out, prune, pruned, with_edge_weights, without
from nasjax.spaces.darts import NODES, decode

SPACE = SearchSpace(
    "space",
    (
        Choice("operation", ("none", "a", "b", "c", "d"), per="edges"),
        Choice("width", (1, 2, 3)),
    ),
    {"edges": 6, "embed": "width"},
)
EDGES = ((0,), (1, 2), (3, 4, 5))
LEARNING = ["darts", "sparse", "drnas", "gdas", "snas"]
STEPS = 11


def make(name: str) -> relax.Relaxation:
    if name == "waiting":
        return dataclasses.replace(relax.darts(), name=name, learns=False)
    return relax.relaxation(name, steps=STEPS)


def draw(shapes: dict[str, tuple[int, ...]], seed: int = 0, scale: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {n: jnp.asarray(scale * rng.standard_normal(s), jnp.float32) for n, s in shapes.items()}


def alphas(seed: int = 0, scale: float = 1.0) -> dict[str, Any]:
    return draw(mixtures.shapes(SPACE), seed, scale)


def weighed(seed: int = 0) -> dict[str, Any]:
    return {**alphas(seed), **draw({"operation/edges": (6,)}, seed + 100)}


def random_masks(seed: int) -> dict[str, np.ndarray]:
    """Between one and all options left in every row."""
    rng = np.random.default_rng(seed)
    masks = {n: rng.integers(0, 2, s).astype(np.float32) for n, s in mixtures.shapes(SPACE).items()}
    for mask in masks.values():
        rows = mask.reshape(-1, mask.shape[-1])
        rows[np.arange(len(rows)), rng.integers(mask.shape[-1], size=len(rows))] = 1
    return masks


def test_edge_weights_are_a_softmax_into_every_node() -> None:
    weights = jnp.asarray(np.random.default_rng(0).standard_normal(6), jnp.float32)
    for nodes in (EDGES, ((5, 0), (3, 1, 2), (4,))):
        found = edge_weights(weights, nodes)
        for node in nodes:
            e = np.exp(np.asarray(weights, np.float64)[list(node)])
            np.testing.assert_allclose(found[np.array(node)], e / e.sum(), rtol=1e-5)


@pytest.mark.parametrize("name", [*LEARNING, "waiting"])
def test_the_mixture_is_the_base_times_the_weight_of_the_edge(name: str, key: jax.Array) -> None:
    base, given = make(name), weighed()
    method = with_edge_weights(base, {"operation": EDGES})
    own = {n: a for n, a in given.items() if n != "operation/edges"}
    weights = edge_weights(given["operation/edges"], EDGES)
    for found, plain in (
        (method.mixture(given, key, jnp.int32(3)), base.mixture(own, key, jnp.int32(3))),
        (method.mean(given), base.mean(own)),
    ):
        assert set(found) == set(plain)
        np.testing.assert_array_equal(found["width"], plain["width"])
        np.testing.assert_allclose(found["operation"], plain["operation"] * weights[:, None])
    assert method.learns and not method.hard


def test_the_base_sees_only_its_own_alphas(key: jax.Array) -> None:
    seen = []

    def note(result: Any) -> Any:
        def function(alphas: Any, *rest: Any) -> Any:
            seen.append(set(alphas))
            return result(alphas)

        return function

    plain = relax.darts()
    spy = relax.Relaxation("spy", note(plain.mean), note(plain.mean), note(lambda a: jnp.ones(())))
    method = with_edge_weights(spy, {"operation": EDGES})
    method.mixture(weighed(), key, jnp.int32(0)), method.mean(weighed()), method.penalty(weighed())
    assert seen == [{"operation", "width"}] * 3


def test_first_edge_weights_are_drawn_with_the_alphas(key: jax.Array) -> None:
    method = with_edge_weights(relax.drnas(1e-3), {"operation": EDGES})
    first = method.init(SPACE, key)
    plain = relax.init_alphas(SPACE, key)
    assert set(first) == {*plain, "operation/edges"}
    assert all(np.array_equal(first[n], plain[n]) for n in plain)
    assert first["operation/edges"].shape == (6,)
    assert 0 < np.std(first["operation/edges"]) < 0.01
    assert np.isfinite(method.penalty(first))
    assert relax.darts().init(SPACE, key).keys() == plain.keys()


def test_gradients_reach_edges_and_options(key: jax.Array) -> None:
    method = with_edge_weights(make("drnas"), {"operation": EDGES})
    push = alphas(7)["operation"]

    def loss(a: Any) -> jax.Array:
        return jnp.sum(push * method.mixture(a, key, jnp.int32(0))["operation"])

    slope = jax.jit(jax.grad(loss))(weighed())
    assert np.all(np.max(np.abs(slope["operation"]), -1) > 1e-6)
    edges = np.asarray(slope["operation/edges"])
    assert np.all(np.abs(edges[1:]) > 1e-6)
    for node in EDGES:  # a softmax: a node with one edge has nothing to learn
        assert abs(edges[list(node)].sum()) < 1e-5


def test_darts_keeps_the_edges_of_the_highest_product() -> None:
    space = spaces.darts(channels=4).space
    nodes = {"normal": NODES, "reduce": NODES}
    method = with_edge_weights(relax.darts(), nodes)
    for seed in range(5):
        first = method.init(space, jax.random.key(seed))
        given = draw({n: a.shape for n, a in first.items()}, seed)
        found = relax.decode(space, method, given)
        for kind in nodes:
            options = jax.nn.softmax(given[kind])[:, 1:]
            height = np.max(options, -1) * edge_weights(given[f"{kind}/edges"], NODES)
            kept = [e for node in NODES for e in sorted(node, key=lambda e: -height[e])[:2]]
            assert [o != "none" for o in found[kind]] == [e in kept for e in range(14)]
        assert found == architecture.validate(space, found)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({"operation": ((0,), (0, 1))}, "the nodes of 'operation' list the edges \\[0, 0, 1\\]"),
        ({"operation": ((0,), (2, 3))}, "each from 0 on was expected once"),
        ({"operation": ((0,), (1, 2))}, "have 3 edges, but in space 'space' .* shape \\(6, 5\\)"),
        ({"operatoin": EDGES}, "'operatoin' is no choice .* did you mean 'operation'"),
        ({"width": ((0, 1, 2),)}, "the nodes of 'width' have 3 edges"),
    ],
)
def test_nodes_that_do_not_fit(nodes: Any, message: str, key: jax.Array) -> None:
    with pytest.raises(NasjaxError, match=message):
        with_edge_weights(relax.darts(), nodes).init(SPACE, key)


def test_alphas_without_edges_are_refused() -> None:
    method = with_edge_weights(relax.darts(), {"operation": EDGES})
    with pytest.raises(NasjaxError, match="lack 'operation/edges'; draw them with the init"):
        method.mean(alphas())


def test_what_is_left_out_leaves_its_share_to_the_others() -> None:
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.random((20, 5)), jnp.float32)
    mask = (rng.random((20, 5)) < 0.6).astype(np.float32)
    mask[:, 2] = 1
    found = leave_out(weights, mask)
    assert not np.any(found[mask == 0])
    np.testing.assert_allclose(np.sum(found, -1), np.sum(weights, -1), rtol=1e-5)
    ratio = np.where(mask > 0, found / weights, np.nan)
    np.testing.assert_allclose(np.nanmin(ratio, -1), np.nanmax(ratio, -1), rtol=1e-5)
    corner = leave_out(jnp.array([1.0, 0, 0, 0]), np.array([0.0, 1, 1, 0]))
    np.testing.assert_array_equal(corner, [0, 0.5, 0.5, 0])
    slope = jax.grad(lambda w: leave_out(w, np.array([0.0, 1, 1]))[1])(jnp.array([1.0, 0, 0]))
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("name", LEARNING)
def test_pruned_options_have_no_weight_and_no_gradient(name: str) -> None:
    push = alphas(9)
    for seed in range(2):
        masks = random_masks(seed)
        method = pruned(make(name), masks)

        def loss(a: Any, key: jax.Array, method: Any = method) -> Any:
            mixture = method.mixture(a, key, jnp.int32(3))
            return sum(jnp.sum(push[n] * mixture[n]) for n in mixture), mixture

        step = jax.jit(jax.grad(loss, has_aux=True))
        for scale in (0.3, 30.0):
            slope, mixture = step(alphas(seed, scale), jax.random.key(seed))
            for found in (mixture, method.mean(alphas(seed, scale))):
                for choice, mask in masks.items():
                    assert not np.any(found[choice][mask == 0])
                    np.testing.assert_allclose(np.sum(found[choice], -1), 1, atol=1e-5)
            if method.hard:
                assert all(set(np.unique(x)) <= {0, 1} for x in mixture.values())
            for choice, mask in masks.items():
                assert np.all(np.isfinite(slope[choice]))
                assert not np.any(slope[choice][mask == 0])
                if scale < 1:  # rows with a choice learn, but where sparsemax has decided
                    rows = np.max(np.abs(slope[choice]), -1)[mask.sum(-1) > 1]
                    assert np.all(rows > 0) or name == "sparse"


def test_a_pruned_draw_is_the_whole_draw_without_the_others(key: jax.Array) -> None:
    """DrNAS draws from all options, masks, and divides by what remains; SNAS likewise."""
    masks, given = random_masks(1), alphas(1)
    for name in ("drnas", "snas", "darts"):
        whole = make(name).mixture(given, key, jnp.int32(0))
        found = pruned(make(name), masks).mixture(given, key, jnp.int32(0))
        for choice, mask in masks.items():
            expected = leave_out(whole[choice], mask)
            np.testing.assert_allclose(found[choice], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LEARNING)
def test_a_pruned_option_is_never_decoded(name: str) -> None:
    for seed in range(6):
        masks = random_masks(seed)
        method = pruned(make(name), masks)
        against = {n: alphas(seed)[n] - 200.0 * masks[n] for n in masks}  # what is left underflows
        for given in (alphas(seed, 3.0), against):
            hot = mixtures.one_hot(SPACE, relax.decode(SPACE, method, given))
            assert all(np.all(hot[n] <= masks[n]) for n in masks)
    edges = with_edge_weights(method, {"operation": EDGES})
    given = {**weighed(), "operation/edges": jnp.array([0.0, 300, 0, 0, 300, 0])}
    hot = mixtures.one_hot(SPACE, relax.decode(SPACE, edges, given))
    assert all(np.all(hot[n] <= masks[n]) for n in masks)


def test_darts_rule_on_pruned_options() -> None:
    space = spaces.darts(channels=4).space
    start = without(space, "none")
    for seed in range(3):
        given = draw(mixtures.shapes(space), seed, 2.0)
        given, masks = prune(given, 2, start)
        method = pruned(relax.darts(), masks)
        found = relax.decode(space, method, given)
        for kind in ("normal", "reduce"):
            options = space.choice(kind).options
            kept = [(e, options.index(o)) for e, o in enumerate(found[kind]) if o != "none"]
            assert len(kept) == 8 and all(masks[kind][at] for at in kept)
        assert decode(method.mean(given)).keys() == {"normal", "reduce"}


def test_edge_weights_and_pruning_in_either_order(key: jax.Array) -> None:
    masks, given = random_masks(3), weighed(3)
    inner = with_edge_weights(pruned(make("drnas"), masks), {"operation": EDGES})
    outer = pruned(with_edge_weights(make("drnas"), {"operation": EDGES}), masks)
    for one, other in (
        (inner.mean(given), outer.mean(given)),
        (inner.mixture(given, key, jnp.int32(0)), outer.mixture(given, key, jnp.int32(0))),
    ):
        for choice in one:
            np.testing.assert_allclose(one[choice], other[choice], rtol=1e-5, atol=1e-7)
    assert inner.masks.keys() == outer.masks.keys() == masks.keys()


def test_masks_add_up() -> None:
    first, second = without(SPACE, "none"), without(SPACE, "b", 3)
    method = pruned(pruned(relax.darts(), first), second)
    mean = method.mean(alphas())
    np.testing.assert_array_equal(mean["operation"] > 0, [[False, True, False, True, True]] * 6)
    np.testing.assert_array_equal(mean["width"] > 0, [True, True, False])
    with pytest.raises(NasjaxError, match="a row of 'operation' has no option left"):
        pruned(method, without(SPACE, "a", "c", "d"))


def test_prune_keeps_the_best_as_they_are() -> None:
    given = weighed(4)
    after, masks = prune(given, {"operation": 3, "width": 2})
    for choice, number in (("operation", 3), ("width", 2)):
        mask = masks[choice]
        assert np.all(mask.sum(-1) == number)
        np.testing.assert_array_equal(after[choice], np.where(mask > 0, given[choice], 0))
        low = np.min(np.where(mask > 0, given[choice], np.inf), -1)
        assert np.all(low >= np.max(np.where(mask > 0, -np.inf, given[choice]), -1))
    np.testing.assert_array_equal(after["operation/edges"], given["operation/edges"])
    moved = {n: a + b for (n, a), b in zip(after.items(), weighed(5).values(), strict=True)}
    again, fewer = prune(moved, 2, masks)
    for choice in fewer:  # never one that was out already, however high it climbed
        assert np.all(fewer[choice] <= masks[choice]) and np.all(fewer[choice].sum(-1) == 2)
    np.testing.assert_array_equal(again["operation/edges"], moved["operation/edges"])
    same, all_left = prune(given, {"operation": 5})
    assert np.all(all_left["operation"] == 1) and "width" not in all_left
    np.testing.assert_array_equal(same["operation"], given["operation"])


def test_what_is_refused() -> None:
    given = weighed()
    _, masks = prune(given, 2)
    for keep, message in (
        ({"operation": 3}, "3 options of 'operation' cannot be kept; 1 to 2 were expected"),
        (0, "0 options of 'operation' cannot be kept"),
        ({"operation/edges": 2}, "'operation/edges' is no choice"),
        ({"widht": 2}, "did you mean 'width'"),
    ):
        with pytest.raises(NasjaxError, match=message):
            prune(given, keep, masks)
    with pytest.raises(NasjaxError, match="'waiting' learns nothing"):
        pruned(make("waiting"), masks)
    with pytest.raises(NasjaxError, match="mask of 'operation' has the shape \\(6, 5\\)"):
        pruned(relax.darts(), masks).mean({"operation": jnp.zeros((6, 4)), "width": given["width"]})
    with pytest.raises(NasjaxError, match="has an option 'non'; did you mean 'none'"):
        without(SPACE, "non")


def test_the_rest_of_the_base_stays() -> None:
    base = dataclasses.replace(make("drnas"), penalty=lambda alphas: jnp.float32(3.0))
    method = pruned(base, random_masks(0))
    assert float(method.penalty(alphas())) == 3.0
    assert method.init is base.init and method.learns
    assert pruned(make("gdas"), random_masks(0)).hard
