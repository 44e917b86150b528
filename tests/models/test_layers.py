"""The shared layers against Flax's own, closed forms, and counts of what was dropped."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nasjax.models.layers import DropPath, LayerNorm, Linear, ScaledDropout, layer_norm, per_layer


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
def test_linear_is_dense(lead: tuple[int, ...]) -> None:
    params = {"kernel": draw(4, 5), "bias": draw(5, seed=1)}
    x = draw(*lead, 4, seed=2)
    got = Linear((5,), (None, None)).apply({"params": params}, x)
    np.testing.assert_allclose(got, nn.Dense(5).apply({"params": params}, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_of_several_axes_is_dense_general(bias: bool) -> None:
    params = {"kernel": draw(3, 4, 5, 2)} | ({"bias": draw(5, 2, seed=1)} if bias else {})
    x = draw(6, 3, 4, seed=2)
    got = Linear((5, 2), (None,) * 4, contract=2, use_bias=bias).apply({"params": params}, x)
    theirs = nn.DenseGeneral((5, 2), axis=(-2, -1), use_bias=bias)
    np.testing.assert_allclose(got, theirs.apply({"params": params}, x), rtol=1e-5, atol=1e-5)


def test_linear_names_shapes_and_initialisation() -> None:
    layer = Linear((3, 50), ("embed", None, "heads"), ("packed",), bias_shape=(150,))
    variables = layer.init(jax.random.key(0), jnp.ones((2, 40)))
    names = nn.get_partition_spec(variables)["params"]
    assert names == {"kernel": P("embed", None, "heads"), "bias": P("packed")}
    params = nn.unbox(variables)["params"]
    assert params["kernel"].shape == (40, 3, 50) and params["bias"].shape == (150,)
    assert 0.017 < float(jnp.std(params["kernel"])) < 0.021
    assert not np.any(params["bias"])
    # The bias is added where its end-to-end layout says.
    params = {"kernel": jnp.zeros((40, 3, 50)), "bias": jnp.arange(150.0)}
    np.testing.assert_array_equal(
        layer.apply({"params": params}, jnp.ones((2, 40)))[1], np.arange(150.0).reshape(3, 50)
    )


def test_kernels_may_be_scaled_to_their_inputs() -> None:
    layer = Linear((40,), (None,) * 3, contract=2, kernel_init=None)
    params = nn.unbox(layer.init(jax.random.key(0), jnp.ones((1, 8, 16))))["params"]
    assert 0.85 < float(jnp.std(params["kernel"])) * math.sqrt(8 * 16) < 1.05


def test_linear_computes_in_its_dtype() -> None:
    params = {"kernel": draw(4, 5), "bias": draw(5)}
    layer = Linear((5,), (None, None), dtype=jnp.bfloat16)
    assert layer.apply({"params": params}, draw(2, 4)).dtype == jnp.bfloat16
    initial = nn.unbox(layer.init(jax.random.key(0), jnp.ones((1, 4))))
    assert {x.dtype for x in jax.tree.leaves(initial)} == {jnp.dtype(jnp.float32)}


def test_layer_norm_is_flaxs_where_all_is_active() -> None:
    params = {"scale": draw(6), "bias": draw(6, seed=1)}
    x = 3 + 2 * draw(4, 5, 6, seed=2)
    expected = nn.LayerNorm(epsilon=1e-5).apply({"params": params}, x)
    for active in ({}, {"active": {"scale": jnp.ones(6)}}, {"active": {"scale": jnp.full(6, 0.3)}}):
        got = LayerNorm().apply({"params": params, **active}, x)
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-5)


def test_layer_norm_of_the_first_channels_is_that_of_a_narrower_layer() -> None:
    params = {"scale": draw(6), "bias": draw(6, seed=1)}
    mask = np.float32([1, 1, 1, 1, 0, 0])
    x = (3 + 2 * draw(5, 6, seed=2)) * mask
    got = LayerNorm().apply(
        {"params": {n: p * mask for n, p in params.items()}, "active": {"scale": mask}}, x
    )
    small = {n: p[:4] for n, p in params.items()}
    np.testing.assert_allclose(
        got[:, :4], LayerNorm().apply({"params": small}, x[:, :4]), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(got[:, 4:], 0)


def test_layer_norm_weighs_channels_by_what_is_active() -> None:
    x, active = np.float64(draw(5, 6)), np.array([1, 1, 0.7, 0.7, 0.2, 0])
    scale, bias = np.float64(draw(6, seed=1)), np.float64(draw(6, seed=2))
    weight = active / active.sum()
    mean = (x * weight).sum(-1, keepdims=True)
    variance = ((x - mean) ** 2 * weight).sum(-1, keepdims=True)
    got = layer_norm(*(jnp.float32(v) for v in (x, scale, bias, active)), 1e-3)
    expected = (x - mean) / np.sqrt(variance + 1e-3) * scale + bias
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_gradients_pass_through_the_active_channels() -> None:
    def formula(x: Any, scale: Any, bias: Any, active: Any) -> jax.Array:
        mean = jnp.sum(x * active, -1, keepdims=True) / jnp.sum(active)
        variance = jnp.sum((x - mean) ** 2 * active, -1, keepdims=True) / jnp.sum(active)
        return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + bias

    push = draw(5, 6, seed=3)
    arguments = draw(5, 6), draw(6, seed=1), draw(6, seed=2), np.float32([1, 1, 0.7, 0.7, 0.2, 0])
    gradients = [
        jax.grad(lambda *a: jnp.sum(push * f(*a)), argnums=(0, 1, 2, 3))(*arguments)  # noqa: B023
        for f in (lambda *a: layer_norm(*a, 1e-5), formula)
    ]
    for got, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert np.any(np.abs(gradients[0][3]) > 1e-2)  # the architecture learns through it


def test_layer_norm_of_half_precision_has_float32_statistics() -> None:
    x = jnp.asarray(100 + draw(3, 64), jnp.bfloat16)
    params = {"scale": jnp.ones(64), "bias": jnp.zeros(64)}
    got = LayerNorm().apply({"params": params}, x)
    assert got.dtype == jnp.bfloat16
    expected = LayerNorm().apply({"params": params}, x.astype(jnp.float32))
    np.testing.assert_allclose(got.astype(jnp.float32), expected, atol=0.02)
    assert LayerNorm(dtype=jnp.float32).apply({"params": params}, x).dtype == jnp.float32


def test_active_fraction() -> None:
    class Fraction(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> Any:
            norm = LayerNorm(name="norm")
            return norm(x), norm.active_fraction()

    params = {"params": {"norm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}}
    assert Fraction().apply(params, jnp.ones((1, 4)))[1] == 1.0
    active = {"active": {"norm": {"scale": jnp.array([1.0, 1.0, 0.5, 0.0])}}}
    assert float(Fraction().apply({**params, **active}, jnp.ones((1, 4)))[1]) == 0.625


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_dropout_drops_in_proportion_to_the_width(fraction: float, key: jax.Array) -> None:
    x = jnp.full((200, 500), 3.0)
    rate = 0.4 * fraction
    run = jax.jit(lambda f: ScaledDropout(0.4).apply({}, x, f, True, rngs={"dropout": key}))
    y = np.asarray(run(jnp.float32(fraction)))  # the fraction may be traced
    deviation = math.sqrt(rate * (1 - rate) / y.size)
    assert abs(np.mean(y == 0) - rate) < 4 * deviation
    np.testing.assert_allclose(y[y != 0], 3 / (1 - rate), rtol=1e-6)
    rows = np.mean(y == 0, axis=1)
    assert rows.min() > 0 and rows.max() < 1  # entries, not rows


def test_drop_path_drops_whole_examples(key: jax.Array) -> None:
    x = jnp.ones((20_000, 2, 3))
    run = jax.jit(lambda r: DropPath().apply({}, x, r, True, rngs={"dropout": key}))
    y = np.asarray(run(jnp.float32(0.3)))
    dropped = y[:, 0, 0] == 0
    assert abs(dropped.mean() - 0.3) < 4 * math.sqrt(0.21 / len(y))
    np.testing.assert_array_equal(y[dropped], 0)
    np.testing.assert_allclose(y[~dropped], 1 / 0.7, rtol=1e-6)
    np.testing.assert_array_equal(run(jnp.float32(0.0)), x)


def test_nothing_is_dropped_in_evaluation_or_at_rate_zero(key: jax.Array) -> None:
    x = draw(4, 5)  # no random numbers are asked for
    assert ScaledDropout(0.9).apply({}, x, 1.0, False) is x
    assert ScaledDropout(0.0).apply({}, x, 1.0, True) is x
    assert DropPath().apply({}, x, 0.9, False) is x


@pytest.mark.parametrize("module", [ScaledDropout(0.5), DropPath()], ids=["dropout", "path"])
def test_dropping_keeps_the_dtype(module: nn.Module, key: jax.Array) -> None:
    x = jnp.ones((8, 4), jnp.bfloat16)
    y = module.apply({}, x, jnp.float32(0.5), True, rngs={"dropout": key})
    assert y.dtype == jnp.bfloat16


def test_sizes_per_layer() -> None:
    assert per_layer(3, 2) == (3, 3)
    assert per_layer([3, 4], 2) == (3, 4)
