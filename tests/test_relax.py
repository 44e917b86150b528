"""Relaxations: always a mixture, random only in the key, true to the distributions they name."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nasjax import relax
from nasjax.core import architecture
from nasjax.core import mixture as mixtures
from nasjax.core.errors import NasjaxError
from nasjax.core.space import Choice, SearchSpace

SPACE = SearchSpace(
    "space",
    (
        Choice("width", (1, 2, 3)),
        Choice("depth", (1, 4, 2)),
        Choice("heads", (1, 2, 3, 4), per="blocks"),
        Choice("ratio", (1, 2, 3, 4), per="blocks"),
    ),
    {"blocks": "depth", "embed": "width"},
)
NAMES = list(relax.RELAXATIONS)
DRAWN = ["drnas", "gdas", "snas"]
STEPS = 11


def alphas(seed: int = 0, scale: float = 1.0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        n: jnp.asarray(scale * rng.standard_normal(s), jnp.float32)
        for n, s in mixtures.shapes(SPACE).items()
    }


def assert_mixture(mixture: Any) -> None:
    assert {n: p.shape for n, p in mixture.items()} == mixtures.shapes(SPACE)
    for weights in mixture.values():
        assert weights.dtype == jnp.float32
        assert np.min(weights) >= 0
        np.testing.assert_allclose(np.sum(weights, -1), 1, atol=1e-5)


@functools.cache
def compiled(name: str) -> Any:
    return jax.jit(relax.relaxation(name, steps=STEPS).mixture)


@pytest.fixture(params=NAMES)
def method(request: pytest.FixtureRequest) -> relax.Relaxation:
    return relax.relaxation(request.param, steps=STEPS)


def test_rows_lie_on_the_simplex(method: relax.Relaxation) -> None:
    draw = compiled(method.name)
    for seed in range(5):
        for step in (0, STEPS - 1, 10 * STEPS):
            mixture = draw(alphas(seed), jax.random.key(seed), jnp.int32(step))
            assert_mixture(mixture)
            if method.hard:  # exactly
                for weights in mixture.values():
                    np.testing.assert_array_equal(np.sort(weights, -1)[..., :-1], 0)
                    np.testing.assert_array_equal(np.max(weights, -1), 1)
    assert_mixture(method.mean(alphas()))


def test_which_are_hard_and_which_learn() -> None:
    methods = {n: relax.relaxation(n, steps=STEPS) for n in NAMES}
    assert {n for n, m in methods.items() if m.hard} == {"gdas"}
    assert all(m.learns for m in methods.values())
    assert all(m.name == n for n, m in methods.items())


def test_gradients(method: relax.Relaxation, key: jax.Array) -> None:
    push = alphas(7)

    def loss(a: Any) -> jax.Array:
        mixture = method.mixture(a, key, jnp.int32(5))
        return sum(jnp.sum(push[n] * mixture[n]) for n in mixture)

    some = {n: a for n, a in alphas(scale=0.3).items() if n in ("width", "heads")}
    gradient = jax.jit(jax.grad(loss))(some)
    for name, slope in gradient.items():
        assert np.all(np.isfinite(slope))
        rows = np.max(np.abs(slope), axis=-1)
        assert np.all(rows > 1e-6), name


def test_same_key_same_draw_other_key_other_draw(method: relax.Relaxation) -> None:
    draw = compiled(method.name)
    first, again, other = (draw(alphas(), jax.random.key(k), jnp.int32(0)) for k in (1, 1, 2))
    same = {n: np.array_equal(first[n], again[n]) for n in first}
    assert all(same.values())
    moved = any(not np.array_equal(first[n], other[n]) for n in first)
    assert moved == (method.name in DRAWN)


@pytest.mark.parametrize("name", DRAWN)
def test_choices_and_layers_are_drawn_apart(name: str) -> None:
    zeros = {n: jnp.zeros(s) for n, s in mixtures.shapes(SPACE).items()}
    several = [compiled(name)(zeros, jax.random.key(i), jnp.int32(0)) for i in range(20)]
    draws = {n: np.stack([d[n] for d in several]) for n in zeros}
    assert not np.array_equal(draws["heads"], draws["ratio"])
    assert not np.array_equal(draws["width"], draws["depth"])
    for layer in range(1, 4):
        assert not np.array_equal(draws["heads"][:, 0], draws["heads"][:, layer])


@pytest.mark.parametrize("name", NAMES)
def test_the_architecture_that_alphas_have_settled_on(name: str) -> None:
    method = relax.relaxation(name, steps=STEPS)
    for seed in range(10):
        arch = architecture.sample(SPACE, jax.random.key(seed))
        corner = mixtures.one_hot(SPACE, arch)
        settled = {n: 4 * corner[n] + a for n, a in alphas(seed, 0.3).items()}
        found = relax.decode(SPACE, method, settled)
        assert architecture.validate(SPACE, found) == found
        assert found == arch


def test_fixed_is_always_the_architecture(key: jax.Array) -> None:
    arch = architecture.sample(SPACE, key)
    method = relax.fixed(SPACE, arch)
    assert method.hard and not method.learns
    expected = mixtures.one_hot(SPACE, arch)
    for mixture in (method.mixture(alphas(), key, jnp.int32(3)), method.mean(alphas(1))):
        for name, weights in mixture.items():
            np.testing.assert_array_equal(weights, expected[name])
    assert relax.decode(SPACE, method, alphas()) == arch


def test_darts_is_the_softmax() -> None:
    a = alphas()
    for mixture in (relax.darts().mixture(a, None, None), relax.darts().mean(a)):
        for name, weights in mixture.items():
            e = np.exp(np.float64(a[name]))
            np.testing.assert_allclose(weights, e / e.sum(-1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_sparsemax_is_the_projection_onto_the_simplex(scale: float) -> None:
    logits = scale * np.random.default_rng(0).standard_normal((20, 5))
    low, high = logits.min(-1, keepdims=True) - 1, logits.max(-1, keepdims=True)
    for _ in range(60):  # the threshold at which what sticks out sums to one
        middle = (low + high) / 2
        over = np.maximum(logits - middle, 0).sum(-1, keepdims=True) > 1
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    expected = np.maximum(logits - low, 0)
    got = relax.sparsemax(jnp.float32(logits))
    np.testing.assert_allclose(got, expected, atol=1e-5 * scale + 1e-6)
    if scale > 1:
        assert np.mean(got == 0) > 0.5


def test_drnas_draws_have_its_mean() -> None:
    a, method = {"width": jnp.array([-1.0, 0.0, 1.5])}, relax.drnas()
    beta = np.array([np.exp(-1.0), 1.0, 2.5])  # elu + 1
    np.testing.assert_allclose(relax.concentration(a["width"]), beta, rtol=1e-6)
    np.testing.assert_allclose(method.mean(a)["width"], beta / beta.sum(), rtol=1e-6)
    keys = jax.random.split(jax.random.key(0), 5000)
    draws = np.float64(jax.jit(jax.vmap(lambda k: method.mixture(a, k, 0)))(keys)["width"])
    law = scipy.stats.dirichlet(beta)
    deviation = np.sqrt(law.var())
    np.testing.assert_array_less(
        np.abs(draws.mean(0) - law.mean()), 4 * deviation / np.sqrt(len(draws))
    )
    np.testing.assert_allclose(draws.std(0), deviation, rtol=0.05)


def test_concentrations_stay_positive() -> None:
    low = jnp.array([-5.0, -17.0, -30.0, 0.0, 3.0])
    np.testing.assert_allclose(
        relax.concentration(low), [*np.exp([-5.0, -17.0, -30.0]), 1.0, 4.0], rtol=1e-5
    )
    np.testing.assert_allclose(
        jax.vmap(jax.grad(relax.concentration))(low),
        [*np.exp([-5.0, -17.0, -30.0]), 1, 1],
        rtol=1e-5,
    )
    a = {"width": jnp.full(3, -20.0)}
    assert np.all(np.isfinite(relax.drnas(1e-3).mixture(a, jax.random.key(0), 0)["width"]))
    assert np.isfinite(relax.dirichlet_anchor_kl(a))


def test_the_anchor_is_the_divergence_from_the_flat_dirichlet() -> None:
    divergence = jax.jit(relax.dirichlet_anchor_kl)
    a = alphas(3)
    zeros = jax.tree.map(jnp.zeros_like, a)
    assert float(divergence(zeros)) == pytest.approx(0, abs=1e-4)  # a sum of rows
    expected = 0.0
    for alpha in a.values():
        for row in np.float64(alpha).reshape(-1, alpha.shape[-1]):
            beta = np.where(row > 0, row + 1, np.exp(row))
            # The flat density is (options - 1)! everywhere.
            expected -= scipy.stats.dirichlet(beta).entropy() + math.lgamma(len(row))
    assert float(divergence(a)) == pytest.approx(expected, rel=1e-4)
    penalty = relax.drnas(1e-3).penalty
    row = {"a": jnp.array([2.0, -1.0, 0.0])}
    value, gradient = (jax.jit(f)(row) for f in (penalty, jax.grad(penalty)))
    assert float(value) == pytest.approx(1e-3 * float(divergence(row)), rel=1e-4)
    gradient = gradient["a"]
    assert gradient[0] > 0 > gradient[1]  # it pulls to zero


def test_only_an_anchored_drnas_has_a_penalty() -> None:
    for name in NAMES:
        assert float(relax.relaxation(name, steps=1).penalty(alphas())) == 0
    assert float(relax.relaxation("drnas", steps=1, anchor=0.1).penalty(alphas())) > 0


def test_gdas_picks_options_with_their_softmax_at_any_temperature() -> None:
    a = {"width": jnp.array([1.0, 0.0, -1.0])}
    keys = jax.random.split(jax.random.key(0), 4000)
    p = np.exp([1.0, 0, -1]) / np.exp([1.0, 0, -1]).sum()
    for temperature in (10.0, 0.1):
        method = relax.gdas(lambda step: temperature)  # noqa: B023
        picks = jax.vmap(lambda k: method.mixture(a, k, 0)["width"])(keys)  # noqa: B023
        bound = 4 * np.sqrt(p * (1 - p) / len(keys))
        np.testing.assert_array_less(np.abs(np.mean(picks, 0) - p), bound)


def test_gdas_is_snas_made_hard_with_its_gradient() -> None:
    a, push = alphas(), alphas(5)

    def loss(a: Any, name: str, step: jax.Array) -> jax.Array:
        mixture = compiled(name)(a, jax.random.key(1), step)
        return sum(jnp.sum(push[n] * mixture[n]) for n in mixture)

    slope = jax.jit(jax.grad(loss), static_argnums=1)
    for step in (0, 5, 10):
        hard, soft = (compiled(n)(a, jax.random.key(1), jnp.int32(step)) for n in ("gdas", "snas"))
        slopes = [slope(a, n, jnp.int32(step)) for n in ("gdas", "snas")]
        for n in a:
            np.testing.assert_array_equal(np.argmax(soft[n], -1), np.argmax(hard[n], -1))
            np.testing.assert_allclose(slopes[0][n], slopes[1][n], rtol=1e-5, atol=1e-7)


def test_temperature_hardens_the_gumbel_softmax() -> None:
    gumbel = jnp.array([0.3, -0.2, 0.1])
    alpha = jnp.array([0.5, 0.1, -0.3])
    soft, hard = (relax.gumbel_softmax(alpha, gumbel, t) for t in (1.0, 0.01))
    np.testing.assert_allclose(soft, jax.nn.softmax(alpha + gumbel), rtol=1e-5)
    np.testing.assert_allclose(hard, [1, 0, 0], atol=1e-6)


def test_annealing_from_end_to_end() -> None:
    schedule = relax.anneal(10.0, 0.1, 5)
    got = [float(schedule(jnp.int32(s))) for s in (0, 1, 2, 4, 9)]
    np.testing.assert_allclose(got, [10, 7.525, 5.05, 0.1, 0.1], rtol=1e-5)
    assert float(relax.anneal(3.0, 1.0, 1)(jnp.int32(0))) == 3.0
    assert float(jax.jit(schedule)(4)) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("name", ["gdas", "snas"])
def test_temperature_is_an_option(name: str) -> None:
    a, key = {"width": alphas()["width"]}, jax.random.key(0)

    def slope(step: int, **options: Any) -> Any:
        method = relax.relaxation(name, steps=STEPS, **options)
        return jax.grad(lambda a: method.mixture(a, key, jnp.int32(step))["width"][0])(a)["width"]

    np.testing.assert_allclose(slope(0), slope(3, temperature=(10.0, 10.0)), rtol=1e-5)
    np.testing.assert_allclose(slope(10, temperature=(9.0, 2.0)), slope(0, temperature=(2.0, 9.0)))
    assert not np.allclose(slope(0), slope(10))


def test_first_alphas() -> None:
    a = relax.init_alphas(SPACE, jax.random.key(0), scale=0.1)
    assert {n: x.shape for n, x in a.items()} == mixtures.shapes(SPACE)
    values = np.concatenate([np.ravel(x) for x in a.values()])
    assert 0.05 < values.std() < 0.2
    assert not np.array_equal(a["heads"], a["ratio"])
    again = relax.init_alphas(SPACE, jax.random.key(0), scale=0.1)
    other = relax.init_alphas(SPACE, jax.random.key(1), scale=0.1)
    assert all(np.array_equal(a[n], again[n]) for n in a)
    assert not any(np.array_equal(a[n], other[n]) for n in a)
    assert np.std(np.ravel(relax.init_alphas(SPACE, jax.random.key(0))["heads"])) < 0.01


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dart", {}, "no relaxation 'dart'; did you mean 'darts'.*Known: .*drnas"),
        ("fixed", {}, "no relaxation 'fixed'"),
        (
            "spos",
            {},
            "spos is no relaxation: it samples. Give config.search.sampler .kind uniform.",
        ),
        ("gdas", {"temperature": 5.0}, "temperature is 5.0; two numbers above 0"),
        ("snas", {"temperature": (1.0, 0.0)}, "two numbers above 0"),
        ("darts", {"anchr": 1}, "no setting 'anchr'; did you mean 'anchor'"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(NasjaxError, match=message):
        relax.relaxation(name, steps=STEPS, **options)


def test_mixtures_map_over_keys() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(lambda k: compiled("gdas")(alphas(), k, jnp.int32(1))))(keys)
    for i in range(3):
        alone = compiled("gdas")(alphas(), keys[i], jnp.int32(1))
        assert all(np.array_equal(together[n][i], alone[n]) for n in alone)
