"""Costs: exact for an architecture, and the mean of the exact ones under a mixture."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core import architecture
from nasjax.core.cost import Term, bounds, exact, expected, parameter_terms
from nasjax.core.mixture import one_hot, uniform
from nasjax.core.space import Choice, SearchSpace
from nasjax.core.superpose import extract
from tests.core import brute
from tests.core.brute import TOWER

TERMS = [
    Term(2),
    Term(3.0, ("embed",)),
    Term(1, ("embed", "embed", "embed")),
    Term(5, (), "blocks"),
    Term(2, ("heads", "embed", "mlp"), "blocks"),
    Term(0.25, ("mlp", "mlp", "residual"), "blocks"),
    Term(7, ("mlp", "heads", "window"), "blocks", 1),
    Term(11, ("embed",), "blocks", 0),
]


def count(terms: Sequence[Term], a: dict[str, Any]) -> float:
    """A cost term by term, with the lengths written out in :mod:`tests.core.brute`."""

    def length(axis: str, layer: int) -> int:
        return len(brute.positions(axis, 0, a, layer)[0])

    total = 0.0
    for t in terms:
        layers = [0] if t.stack is None else range(a["depth"])
        total += sum(
            t.times * math.prod(length(axis, layer) for axis in t.axes)
            for layer in layers
            if t.layer in (None, layer)
        )
    return total


def parameters(variables: Any, a: dict[str, Any]) -> int:
    total = 0
    for _, path, axes, held in brute.arrays(variables):
        value = variables["params"]
        for part in path:
            value = value[part]
        for layer in held or (None,):
            one = value[0] if brute.is_scanned(held) else value
            if layer is None or layer < a["depth"]:
                total += math.prod(
                    len(brute.positions(x, n, a, layer or 0)[0])
                    for x, n in zip(axes, one.shape, strict=True)
                )
    return total


@pytest.fixture(scope="module", params=[True, False], ids=["scanned", "unrolled"])
def tower(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return brute.tower(0, request.param)


ARCHS = [architecture.sample(TOWER, jax.random.key(i)) for i in range(30)]


def test_parameters_are_the_entries_of_the_extracted_arrays(tower: tuple[Any, Any]) -> None:
    names, variables = tower
    terms = parameter_terms(TOWER, names, variables)
    for arch in ARCHS:
        assert exact(TOWER, terms, arch) == parameters(variables, arch)
    for arch in ARCHS[:2]:
        small = extract(TOWER, names, variables, arch)
        assert exact(TOWER, terms, arch) == sum(x.size for x in jax.tree.leaves(small))
    # As a fixed dtype the count of a large network would overflow.
    assert type(exact(TOWER, terms, ARCHS[0])) is int


def test_shapes_are_enough_to_count(tower: tuple[Any, Any]) -> None:
    names, variables = tower
    assert parameter_terms(TOWER, names, variables) == parameter_terms(
        TOWER, names, jax.eval_shape(lambda: variables)
    )


@pytest.mark.parametrize("arch", ARCHS[:10], ids=range(10))
def test_exact_is_term_by_term(arch: Any) -> None:
    assert exact(TOWER, TERMS, arch) == count(TERMS, arch)


def test_exact_is_an_integer_where_it_is_whole() -> None:
    arch = {"width": 6, "depth": 1, "heads": [1], "ratio": [0.5], "kernel": [1]}
    assert type(exact(TOWER, [Term(0.5, ("embed",))], arch)) is int
    assert exact(TOWER, [Term(0.75, ("embed",))], arch) == 4.5
    assert exact(TOWER, [], arch) == 0
    # Integers stay exact beyond what a float can hold.
    assert exact(TOWER, [Term(2**60, ("embed",)), Term(1)], arch) == 6 * 2**60 + 1


def test_exact_takes_values_that_are_no_options() -> None:
    arch = {"width": 5, "depth": 2, "heads": [1, 3], "ratio": [1.0, 1.5], "kernel": [1, 1]}
    assert exact(TOWER, [Term(1, ("mlp",), "blocks")], arch) == 5 + 7


def test_expected_at_a_corner_is_exact(tower: tuple[Any, Any]) -> None:
    names, variables = tower
    terms = parameter_terms(TOWER, names, variables)
    run = jax.jit(lambda p: (expected(TOWER, terms, p), expected(TOWER, TERMS, p)))
    for arch in ARCHS[:10]:
        got = run(one_hot(TOWER, arch))
        np.testing.assert_allclose(got[0], exact(TOWER, terms, arch), rtol=1e-6)
        np.testing.assert_allclose(got[1], exact(TOWER, TERMS, arch), rtol=1e-6)


@pytest.mark.parametrize("kind", ["uniform", "random"])
def test_expected_is_the_mean_over_everything(kind: str, tower: tuple[Any, Any]) -> None:
    # Uniform in each choice: not uniform over architectures, of which deep ones are more.
    names, variables = tower
    mixture = brute.random_mixture(TOWER, 5) if kind == "random" else uniform(TOWER)
    mixture = {n: np.asarray(p, np.float64) for n, p in mixture.items()}
    everything = brute.assignments(TOWER)
    weights = np.array([brute.probability(TOWER, mixture, a) for a in everything])
    assert weights.sum() == pytest.approx(1.0)
    means = [
        np.dot(weights, [float(parameters(variables, a)) for a in everything]),
        np.dot(weights, [count(TERMS, a) for a in everything]),
    ]
    single = {n: jnp.asarray(p, jnp.float32) for n, p in mixture.items()}
    np.testing.assert_allclose(
        expected(TOWER, parameter_terms(TOWER, names, variables), single), means[0], rtol=1e-5
    )
    np.testing.assert_allclose(expected(TOWER, TERMS, single), means[1], rtol=1e-5)


def test_gradient_is_the_change_of_the_mean() -> None:
    mixture = brute.random_mixture(TOWER, 6)
    everything = brute.assignments(TOWER)
    costs = np.array([count(TERMS, a) for a in everything])

    def mean(p: Any) -> float:
        return float(np.dot([brute.probability(TOWER, p, a) for a in everything], costs))

    single = {n: jnp.asarray(p, jnp.float32) for n, p in mixture.items()}
    gradient = jax.grad(lambda p: expected(TOWER, TERMS, p))(single)
    rng = np.random.default_rng(0)
    for name, weights in mixture.items():
        step = rng.standard_normal(weights.shape)
        step = 1e-3 * (step - step.mean(-1, keepdims=True))  # along the simplex
        change = mean({**mixture, name: weights + step}) - mean({**mixture, name: weights - step})
        got = float(np.sum(np.asarray(gradient[name], np.float64) * step))
        np.testing.assert_allclose(got, change / 2, rtol=2e-3, err_msg=name)


def test_no_terms_cost_nothing() -> None:
    assert float(expected(TOWER, [], uniform(TOWER))) == 0.0


SHRINKING = SearchSpace(
    "shrinking",
    (
        Choice("depth", (3, 1, 2)),
        Choice("groups", (2, 1, 4), per="blocks"),
        Choice("kind", ("wide", "narrow", "none"), per="blocks"),
    ),
    {
        "blocks": "depth",
        "each": lambda groups: 8 // groups,  # more of an option is less of a cost
        "own": lambda kind: len(kind),
    },
)


@pytest.mark.parametrize(
    ("space", "terms"),
    [
        (TOWER, TERMS),
        (TOWER, [Term(3, ("embed", "embed"))]),
        (TOWER, [Term(1, ("mlp", "heads"), "blocks", 2)]),  # of a layer that need not exist
        (TOWER, [Term(5)]),
        (SHRINKING, [Term(2, ("each", "each", "own"), "blocks"), Term(100)]),
        (SHRINKING, [Term(1, ("own",), "blocks", 0), Term(0.5, ("each",), "blocks")]),
    ],
)
def test_bounds_are_the_least_and_the_greatest_of_all(space: SearchSpace, terms: Any) -> None:
    counts = [exact(space, terms, arch) for arch in architecture.every(space)]
    assert len(counts) == space.size
    assert bounds(space, terms) == (min(counts), max(counts))


def test_bounds_of_parameters_are_counts_of_architectures(tower: tuple[Any, Any]) -> None:
    names, variables = tower
    terms = parameter_terms(TOWER, names, variables)
    # All but one axis grow with every choice.
    growing = [t for t in terms if "tied" not in t.axes]
    ends = [exact(TOWER, growing, architecture.smallest(TOWER)),
            exact(TOWER, growing, architecture.largest(TOWER))]  # fmt: skip
    assert list(bounds(TOWER, growing)) == ends
    assert all(type(count) is int for count in ends)
