"""Mixtures: shapes, corners of the simplex, and the way back to an architecture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core import architecture
from nasjax.core.errors import ArchitectureError
from nasjax.core.mixture import argmax, entropy, one_hot, one_hot_vector, shapes, uniform
from nasjax.core.space import Choice, SearchSpace
from tests.core.brute import TOWER

ARCHS = [architecture.sample(TOWER, jax.random.key(i)) for i in range(20)]


def test_shapes() -> None:
    assert shapes(TOWER) == {
        "width": (2,),
        "depth": (2,),
        "heads": (3, 2),
        "ratio": (3, 2),
        "kernel": (3, 2),
    }


def test_uniform() -> None:
    space = SearchSpace("s", (Choice("a", (1, 2, 3)), Choice("b", (1, 2), per="l")), {"l": 4})
    mixture = uniform(space)
    np.testing.assert_allclose(mixture["a"], np.full(3, 1 / 3), rtol=1e-6)
    np.testing.assert_allclose(mixture["b"], np.full((4, 2), 1 / 2))


def test_one_hot_by_example() -> None:
    arch = {"width": 4, "depth": 1, "heads": [2], "ratio": [0.5], "kernel": [1]}
    mixture = one_hot(TOWER, arch)
    np.testing.assert_array_equal(mixture["width"], [0, 1])
    np.testing.assert_array_equal(mixture["depth"], [1, 0])
    np.testing.assert_array_equal(mixture["heads"], [[0, 1], [1, 0], [1, 0]])
    np.testing.assert_array_equal(mixture["kernel"], [[1, 0], [1, 0], [1, 0]])


@pytest.mark.parametrize("arch", ARCHS, ids=range(len(ARCHS)))
def test_the_corner_of_an_architecture_leads_back_to_it(arch: architecture.Arch) -> None:
    mixture = one_hot(TOWER, arch)
    for name, weights in mixture.items():
        assert weights.shape == shapes(TOWER)[name] and weights.dtype == jnp.float32
        np.testing.assert_array_equal(np.sort(weights, -1)[..., :-1], 0)
        np.testing.assert_array_equal(np.max(weights, -1), 1)
    assert argmax(TOWER, mixture) == arch
    soft = jax.tree.map(lambda p: 0.6 * p + 0.4 * (1 - p), mixture)
    assert argmax(TOWER, soft) == arch


def test_vectors_may_be_batched_traced_and_mapped() -> None:
    vectors = np.maximum(np.stack([architecture.encode(TOWER, a) for a in ARCHS]), 0)
    single = [one_hot(TOWER, a) for a in ARCHS]
    stacked = {n: np.stack([m[n] for m in single]) for n in single[0]}
    for batched in (
        one_hot_vector(TOWER, vectors),
        jax.jit(lambda v: one_hot_vector(TOWER, v))(vectors),
        jax.vmap(lambda v: one_hot_vector(TOWER, v))(vectors),
    ):
        assert batched.keys() == stacked.keys()
        for name in stacked:
            np.testing.assert_array_equal(batched[name], stacked[name])


def test_only_architectures_of_the_space_have_a_corner() -> None:
    with pytest.raises(ArchitectureError, match="width = 5"):
        one_hot(TOWER, {**ARCHS[0], "width": 5})


def test_entropy() -> None:
    assert float(entropy(uniform(TOWER))) == pytest.approx(1.0, abs=1e-6)
    assert float(entropy(one_hot(TOWER, ARCHS[0]))) == pytest.approx(0.0, abs=1e-6)
    mixture = {"a": jnp.array([0.5, 0.25, 0.25]), "b": jnp.array([[1.0, 0.0], [0.5, 0.5]])}
    row = 1.5 * np.log(2) / np.log(3)
    assert float(entropy(mixture)) == pytest.approx((row + 0 + 1) / 3, abs=1e-6)  # a mean of rows
    assert float(entropy({"a": jnp.ones(1)})) == 0.0
    gradient = jax.grad(lambda p: entropy({"a": p}))(jnp.array([1.0, 0.0]))
    assert np.all(np.isfinite(gradient))
