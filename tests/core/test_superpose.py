"""Superposition is an expectation: here it is compared with the sum over everything, in float64."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nasjax.core import architecture
from nasjax.core.errors import ArchitectureError, SpaceError
from nasjax.core.mixture import one_hot, one_hot_vector, uniform
from nasjax.core.space import Axis, Choice, SearchSpace
from nasjax.core.supernet import Supernet
from nasjax.core.superpose import extract, superpose
from tests.core import brute
from tests.core.brute import TOWER

ALL = {label for label in brute.PER_LAYER} | {label for label in brute.ONCE}


class Truth(NamedTuple):
    """The sums over all assignments, and what they are sums of."""

    names: Any
    superpose: Any  # compiled, of arrays and a mixture
    variables: Any
    mixture: Any  # float64
    cotangent: Any
    direction: Any  # of a change of the mixture
    mean: Any  # of the sub-networks' arrays
    by_value: Any  # gradient of <cotangent, mean> with respect to the arrays
    by_mixture: Any  # ... to the mixture
    mixed: Any  # gradient of <direction, by_mixture> with respect to the arrays


@pytest.fixture(scope="module", params=[True, False], ids=["scanned", "unrolled"])
def truth(request: pytest.FixtureRequest) -> Truth:
    names, variables = brute.tower(1, scanned=request.param)
    _, cotangent = brute.tower(2, scanned=request.param)
    mixture = brute.random_mixture(TOWER, 3)
    rng = np.random.default_rng(4)
    direction = {n: rng.standard_normal(p.shape) for n, p in mixture.items()}
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    push = jax.tree.map(lambda x: np.asarray(x, np.float64), cotangent)
    mean, by_value, mixed = (jax.tree.map(np.zeros_like, wide) for _ in range(3))
    by_mixture = {n: np.zeros_like(p) for n, p in mixture.items()}
    direction = {n: d - d.mean(-1, keepdims=True) for n, d in direction.items()}
    terms: dict[Any, list[Any]] = {}  # for each array and layer: assignments that treat it alike
    for a in brute.assignments(TOWER):
        weight = brute.probability(TOWER, mixture, a)
        picks = [
            (name, (*row, TOWER.choice(name).options.index(v)))
            for name, value in a.items()
            for row, v in (
                [((), value)] if np.ndim(value) == 0 else [((i,), v) for i, v in enumerate(value)]
            )
        ]
        along = sum(weight / mixture[n][i] * direction[n][i] for n, i in picks)
        share = 0.0
        for label, path, axes, held in brute.arrays(variables):
            for layer in held or (0,):
                values = {n: v[layer] if isinstance(v, tuple) else v for n, v in a.items()}
                term = terms.setdefault((label, layer, *values.values()), [])
                if not term:
                    at = (layer,) if brute.is_scanned(held) else ()
                    value, target = _at(wide, path)[at], _at(push, path)[at]
                    placed = brute.place(value, axes, a, layer)
                    returned = brute.place(target, axes, a, layer, back=True)
                    term += [path, at, placed, returned, np.sum(target * placed), 0.0, 0.0]
                term[-2] += weight
                term[-1] += along
                share += term[-3]
        for n, i in picks:
            by_mixture[n][i] += weight / mixture[n][i] * share
    for path, at, placed, returned, _, weight, along in terms.values():
        _at(mean, path)[at] += weight * placed
        _at(by_value, path)[at] += weight * returned
        _at(mixed, path)[at] += along * returned
    run = jax.jit(lambda v, p: superpose(TOWER, names, v, p))
    return Truth(
        names, run, variables, mixture, cotangent, direction, mean, by_value, by_mixture, mixed
    )


def _whole(value: np.ndarray, axes: Any, held: range | None, a: Any) -> np.ndarray:
    if brute.is_scanned(held):
        return np.stack([brute.place(value[i], axes, a, i) for i in held])
    return brute.place(value, axes, a, held[0] if held else 0)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for part in ("params", *path):
        tree = tree[part]
    return tree


def _single(mixture: Any) -> Any:
    return {n: jnp.asarray(p, jnp.float32) for n, p in mixture.items()}


def _superposed(truth: Truth, variables: Any, mixture: Any) -> Any:
    return jax.device_get(truth.superpose(variables, _single(mixture)))


def _tangent(gradient: Any) -> Any:
    """The part of a gradient that keeps rows on the simplex: all that a softmax can see."""
    return {n: g - np.mean(g, -1, keepdims=True) for n, g in gradient.items()}


def _inner(truth: Truth, variables: Any, mixture: Any) -> jax.Array:
    weighed = truth.superpose(variables, mixture)["params"]
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), weighed, truth.cotangent["params"])
    return jax.tree.reduce(jnp.add, products)


def _assert_close(got: Any, expected: Any, tolerance: float = 2e-6) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, x), y in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            x,
            y,
            rtol=0,
            atol=tolerance * max(1e-6, float(np.max(np.abs(y)))),
            err_msg=jax.tree_util.keystr(path),
        )


def test_superposition_is_the_mean_over_all_sub_networks(truth: Truth) -> None:
    got = _superposed(truth, truth.variables, truth.mixture)
    _assert_close(got["params"], truth.mean["params"])


def test_active_is_the_mean_mask_at_the_path_of_each_scale(truth: Truth) -> None:
    got = _superposed(truth, truth.variables, truth.mixture)
    width = truth.mixture["width"]
    expected = width[0] * (np.arange(6) < 6) + width[1] * (np.arange(6) < 4)
    paths = {jax.tree_util.keystr(p): x for p, x in jax.tree.leaves_with_path(got["active"])}
    blocks = ["blocks"] if "blocks" in got["params"] else [f"blocks_{i}" for i in range(3)]
    assert set(paths) == {"['scale']", *(f"['{b}']['scale']" for b in blocks)}
    for value in paths.values():
        np.testing.assert_allclose(value, np.broadcast_to(expected, value.shape), rtol=1e-6)


def test_gradients_are_those_of_the_sum(truth: Truth) -> None:
    gradient = jax.jit(jax.grad(lambda v, p: _inner(truth, v, p), argnums=(0, 1)))
    values, mixture = gradient(truth.variables, _single(truth.mixture))
    _assert_close(values, truth.by_value)
    _assert_close(_tangent(mixture), _tangent(truth.by_mixture), 1e-5)


def test_the_gradient_can_be_differentiated(truth: Truth) -> None:
    # The second-order step of DARTS differentiates through a gradient of the weights.
    def along(variables: Any) -> jax.Array:
        gradient = jax.grad(lambda p: _inner(truth, variables, p))(_single(truth.mixture))
        return sum(jnp.sum(gradient[n] * truth.direction[n]) for n in gradient)

    _assert_close(jax.jit(jax.grad(along))(truth.variables), truth.mixed, 1e-5)


def test_linear_in_the_arrays(truth: Truth) -> None:
    mixture = _single(truth.mixture)
    both = jax.tree.map(lambda x, y: 2.0 * x - 3.0 * y, truth.variables, truth.cotangent)
    got, x, y = (
        _superposed(truth, v, mixture)["params"] for v in (both, truth.variables, truth.cotangent)
    )
    _assert_close(got, jax.tree.map(lambda x, y: 2.0 * x - 3.0 * y, x, y))


@pytest.mark.parametrize("choice", list(TOWER.by_name))
def test_linear_in_each_row_of_the_mixture(truth: Truth, choice: str) -> None:
    mixture = _single(truth.mixture)
    other = _single(brute.random_mixture(TOWER, 9))[choice]
    row = (1,) if TOWER.choice(choice).per else ()
    ends = [mixture, {**mixture, choice: mixture[choice].at[row].set(other[row])}]
    middle = jax.tree.map(lambda x, y: 0.25 * x + 0.75 * y, *ends)
    got, first, last = (_superposed(truth, truth.variables, m) for m in (middle, *ends))
    _assert_close(got, jax.tree.map(lambda x, y: 0.25 * x + 0.75 * y, first, last))
    assert any(
        not np.allclose(x, y)
        for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(last), strict=True)
    )


def test_one_hot_superposition_is_the_sub_network_and_zeros(truth: Truth) -> None:
    for seed in range(5):
        arch = architecture.sample(TOWER, jax.random.key(seed))
        a = {  # absent layers take anything
            n: (*v, *v[:1] * 2)[: brute.LAYERS] if isinstance(v, list) else v
            for n, v in arch.items()
        }
        got = _superposed(truth, truth.variables, one_hot(TOWER, arch))["params"]
        for label, path, axes, held in brute.arrays(truth.variables):
            value = np.asarray(_at(truth.variables, path))
            expected, array = _whole(value, axes, held, a), _at({"params": got}, path)
            if held is not None:  # the entries of absent layers are nobody's business ...
                present = [i < arch["depth"] for i in held]
                if not brute.is_scanned(held):
                    expected, array = expected[None], array[None]
                kept = np.flatnonzero(present)
                expected, array = expected[kept], array[kept]
            np.testing.assert_array_equal(array, expected, err_msg=label)
        for path, x in jax.tree.leaves_with_path(got):  # ... but for what they write, which is zero
            name = jax.tree_util.keystr(path)
            if any(leaf in name for leaf in ("fc2", "proj", "all", "packed_fc")):
                index = [i for i in range(3) if f"blocks_{i}" in name]
                outside = x[arch["depth"] :] if not index else x[None][: index[0] >= arch["depth"]]
                assert not np.any(outside), name


def test_extraction_is_what_the_one_hot_superposition_keeps(truth: Truth) -> None:
    for seed in range(5):
        arch = architecture.sample(TOWER, jax.random.key(seed))
        small = extract(TOWER, truth.names, truth.variables, arch)["params"]
        for label, path, axes, held in brute.arrays(truth.variables):
            value = np.asarray(_at(truth.variables, path))
            for layer in held or (None,):
                if layer is not None and layer >= arch["depth"]:
                    assert f"blocks_{layer}" not in small
                    continue
                one = value[layer] if brute.is_scanned(held) else value
                where = [
                    list(brute.positions(x, n, arch, layer or 0)[0])
                    for x, n in zip(axes, one.shape, strict=True)
                ]
                node = small if layer is None else small[f"blocks_{layer}"]
                np.testing.assert_array_equal(
                    node[path[-1]], one[np.ix_(*where)] if where else one, err_msg=label
                )


def test_mapped_over_mixtures(truth: Truth) -> None:
    archs = [architecture.sample(TOWER, jax.random.key(i)) for i in range(3)]
    vectors = np.stack([architecture.encode(TOWER, arch) for arch in archs])
    mixtures = jax.device_get(one_hot_vector(TOWER, np.maximum(vectors, 0)))
    together = jax.jit(jax.vmap(truth.superpose, (None, 0)))(truth.variables, mixtures)
    for i in range(3):
        row = jax.tree.map(lambda x: x[i], mixtures)  # noqa: B023
        _assert_close(
            jax.tree.map(lambda x: x[i], jax.device_get(together)),  # noqa: B023
            truth.superpose(truth.variables, row),
            1e-6,
        )


def test_half_precision_stays_and_the_mixture_has_a_float32_gradient(truth: Truth) -> None:
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), truth.variables)
    mixture = _single(truth.mixture)
    got = jax.eval_shape(truth.superpose, half, mixture)["params"]
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
    if "blocks" in half["params"]:
        got = _superposed(truth, half, mixture)["params"]
        _assert_close(jax.tree.map(np.float32, got), truth.mean["params"], 2e-2)
    gradient = jax.grad(lambda v, p: _inner(truth, v, p), argnums=(0, 1))
    values, weights = jax.eval_shape(gradient, half, mixture)
    assert {x.dtype for x in jax.tree.leaves(values)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in weights.values()} == {jnp.dtype(jnp.float32)}


def test_masks_are_never_multiplied_in_reduced_precision(truth: Truth) -> None:
    # Accelerators round the operands of a product unless told not to; a CPU would not show it.
    gradient = jax.grad(lambda v, p: _inner(truth, v, p), argnums=(0, 1))
    text = str(jax.make_jaxpr(gradient)(truth.variables, _single(truth.mixture)))
    products = text.count("= dot_general[")
    highest = text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")
    assert products == highest > 20


def test_arrays_without_named_axes_pass_untouched(key: jax.Array) -> None:
    space = SearchSpace("s", (Choice("width", (2, 4)),), {"embed": "width"})
    count = jnp.arange(3)
    got = superpose(
        space,
        {"state": {"count": P()}, "params": {"scale": P(None), "bias": P("vocabulary")}},
        {"state": {"count": count}, "params": {"scale": jnp.ones(2), "bias": jnp.ones(5)}},
        uniform(space),
    )
    assert got["state"]["count"] is count
    assert "active" not in got
    np.testing.assert_array_equal(got["params"]["bias"], np.ones(5))


def test_a_space_of_more_choices_than_letters(key: jax.Array) -> None:
    choices = tuple(Choice(f"c{i}", (1, 2)) for i in range(60))
    axes: dict[str, Any] = {f"a{i}": f"c{i}" for i in range(59)}
    space = SearchSpace("wide", choices, axes | {"last": lambda c58, c59: c58 * c59})
    weights = {f"c{i}": jnp.asarray([0.1 + i / 100, 0.9 - i / 100]) for i in range(60)}
    got = superpose(
        space,
        {"params": {"x": P("a58", "last"), "y": P("a40", "a3")}},
        {"params": {"x": jnp.ones((2, 4)), "y": jnp.ones((2, 2))}},
        weights,
    )["params"]
    p, q = (np.asarray(weights[c]) for c in ("c58", "c59"))
    expected = sum(
        p[i] * q[j] * np.outer(np.arange(2) <= i, np.arange(4) < (i + 1) * (j + 1))
        for i in range(2)
        for j in range(2)
    )
    np.testing.assert_allclose(got["x"], expected, rtol=1e-6)
    np.testing.assert_allclose(
        got["y"], np.outer([1, weights["c40"][1]], [1, weights["c3"][1]]), rtol=1e-6
    )


def test_two_stacks_keep_their_own_choices_and_depths() -> None:
    space = SearchSpace(
        "towers",
        (
            Choice("left", (1, 2)),
            Choice("right", (2, 3)),
            Choice("heads", (1, 2), per="first"),
            Choice("groups", (1, 3), per="second"),
        ),
        {
            "first": "left",
            "second": "right",
            "heads": "heads",
            "groups": "groups",
            "write": lambda right, layer: 2 * (layer < right),
        },
    )
    names = {
        "params": {
            "first": {"k": P("first", "heads")},
            "second_0": {"k": P("groups", "write")},
            "second_1": {"k": P("groups", "write")},
            "second_2": {"k": P("groups", "write")},
        }
    }
    variables = {
        "params": {
            "first": {"k": jnp.arange(1.0, 5.0).reshape(2, 2)},
            **{f"second_{i}": {"k": jnp.full((3, 2), 1.0 + i)} for i in range(3)},
        }
    }
    mixture = {
        "left": jnp.asarray([0.3, 0.7]),
        "right": jnp.asarray([0.6, 0.4]),
        "heads": jnp.asarray([[0.2, 0.8], [0.9, 0.1]]),
        "groups": jnp.asarray([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]),
    }
    got = superpose(space, names, variables, mixture)["params"]
    np.testing.assert_allclose(got["first"]["k"], [[1, 1.6], [3, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(got["second_0"]["k"], np.outer([1, 0.5, 0.5], [1, 1]), rtol=1e-6)
    np.testing.assert_allclose(got["second_1"]["k"], 2 * np.outer([1, 0.75, 0.75], [1, 1]))
    np.testing.assert_allclose(got["second_2"]["k"], 3 * np.outer([0.4, 0, 0], [1, 1]), rtol=1e-6)

    arch = {"left": 1, "right": 3, "heads": [2], "groups": [1, 3, 1]}
    small = extract(space, names, variables, arch)["params"]
    assert set(small) == {"first_0", "second_0", "second_1", "second_2"}
    assert [small[n]["k"].shape for n in sorted(small)] == [(2,), (1, 2), (3, 2), (1, 2)]


def test_extraction_refuses_what_is_not_in_the_space(key: jax.Array) -> None:
    names, variables = brute.tower(0, scanned=True)
    arch = architecture.sample(TOWER, key)
    with pytest.raises(ArchitectureError, match="width = 5"):
        extract(TOWER, names, variables, {**arch, "width": 5})


def test_scanned_layers_must_be_called_after_their_stack() -> None:
    choice = Choice("width", (2, 4), per="blocks")
    space = SearchSpace("s", (choice,), {"embed": "width", "blocks": 2})
    names = {"params": {"layers": {"k": P("blocks", "embed")}}}
    variables = {"params": {"layers": {"k": jnp.ones((2, 4))}}}
    with pytest.raises(SpaceError, match=r"params/layers/k .* must be called 'blocks' too"):
        extract(space, names, variables, {"width": [2, 2]})


def test_only_one_axis_of_an_array_may_move() -> None:
    put = Axis(lambda heads: 3 * heads, put=brute.thirds)
    space = SearchSpace("s", (Choice("heads", (1, 2)),), {"a": put, "b": put})
    with pytest.raises(SpaceError, match=r"params/k: only one axis .* \['a', 'b'\]"):
        superpose(
            space,
            {"params": {"k": P("a", "b")}},
            {"params": {"k": jnp.ones((6, 6))}},
            uniform(space),
        )


class Asking(nn.Module):
    """A layer that asks for the mask of its output, of a product of axes, and for nothing."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        def ask(name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> jax.Array:
            if self.is_initializing():
                self.variable("active", name, nn.with_logical_partitioning(jnp.ones, axes), shape)
                return jnp.ones(shape)
            found: Any = self.get_variable("active", name, jnp.ones(shape))
            self.sow("intermediates", name, found)
            return found

        init = nn.with_logical_partitioning(nn.initializers.ones, ("embed", "heads"))
        y = x @ self.param("kernel", init, (4, 2))
        y = y * ask("heads", (2,), ("heads",))
        ask("both", (4, 2), ("embed", "heads"))
        ask("nobody", (), ())
        return x + jnp.sum(y, -1, keepdims=True), None


class Stacked(nn.Module):
    scanned: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        if self.scanned:
            layers = nn.scan(
                Asking,
                variable_axes={"params": 0, "active": 0, "intermediates": 0},
                split_rngs={"params": True},
                length=2,
                metadata_params={nn.PARTITION_NAME: "blocks"},
            )
            return layers(name="blocks")(x, None)[0]
        for i in range(2):
            x, _ = Asking(name=f"blocks_{i}")(x)
        return x


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
def test_a_variable_that_a_module_asks_for_is_the_expected_mask(scanned: bool) -> None:
    space = SearchSpace(
        "asking",
        (Choice("width", (2, 4)), Choice("heads", (1, 2), per="blocks")),
        {"embed": "width", "heads": "heads", "blocks": 2},
    )
    net = Supernet(space, Stacked(scanned), lambda arch: Stacked(False), (4,))
    weights = {"params": net.init(jax.random.key(0))["params"]}
    mixture = {
        "width": jnp.asarray([0.25, 0.75]),
        "heads": jnp.asarray([[0.5, 0.5], [0.875, 0.125]]),
    }
    mixed = net.superpose(weights, mixture)
    x = jnp.ones((1, 4))
    _, state = net.module.apply(mixed, x, mutable=["intermediates"])
    sown = state["intermediates"]
    embed = np.array([1, 1, 0.75, 0.75])
    for layer, heads in enumerate((np.array([1, 0.5]), np.array([1, 0.125]))):
        if scanned:
            seen = {name: value[0][layer] for name, value in sown["blocks"].items()}
        else:
            seen = {name: value[0] for name, value in sown[f"blocks_{layer}"].items()}
        np.testing.assert_allclose(seen["heads"], heads, rtol=1e-6)
        np.testing.assert_allclose(seen["both"], np.outer(embed, heads), rtol=1e-6)
        assert float(seen["nobody"]) == 1.0  # it is part of no operation, so it is always there
    # What is asked for is no parameter, and no part of a network of its own.
    arch = {"width": 2, "heads": [1, 2]}
    assert set(net.extract(net.init(jax.random.key(0)), arch)) == {"params"}
    assert net.count("params", arch) == 2 * 1 + 2 * 2
    # Its mixture's gradient goes through the mask.
    gradient = jax.grad(
        lambda p: jnp.sum(net.module.apply(net.superpose(weights, {**mixture, "heads": p}), x))
    )(mixture["heads"])
    assert np.all(np.abs(gradient[:, 1]) > 0)
