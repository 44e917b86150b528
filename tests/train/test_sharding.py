"""Placement: what lives where, and that it changes no number."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nasjax
from nasjax import spaces
from nasjax.train import sharding
from tests.core import scanned
from tests.toys import one_device
from tests.train.sharded import RULES, lines, searched, transformer

MESHES = {
    "replicated": (8, 1),
    "fully_sharded": (8, 1),
    "tensor": (4, 2),
    "fully_sharded_tensor": (2, 4),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, *searched(folder, sharding.REPLICATED, one_device())


def assert_same_run(found, expected, tolerance=1e-5):
    """Every number that was logged, relative to its size: losses, gradients, mixtures."""
    assert len(found) == len(expected) == 20
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in other.items():
            if name in ("phase", "architecture"):
                assert row[name] == value
                continue
            for a, b in zip(jax.tree.leaves(row[name]), jax.tree.leaves(value), strict=True):
                assert a == pytest.approx(b, rel=tolerance, abs=1e-6), (row["step"], name)


def assert_same_state(found, expected):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, jax.device_get(found.weights), jax.device_get(expected.weights))


@pytest.mark.parametrize("rule", MESHES)
def test_eight_devices_search_as_one_does(alone, tmp_path, rule):
    folder, expected, arch = alone
    state, found = searched(tmp_path, RULES[rule], sharding.make_mesh(*MESHES[rule]))
    assert found == arch
    assert_same_run(lines(tmp_path), lines(folder))
    assert_same_state(state, expected)


def test_fully_sharded_layers_gather_their_weights_when_they_read_them():
    net, mesh, rules = scanned.supernet(scanned.Own), sharding.make_mesh(8), sharding.FULLY_SHARDED
    weights, names = net.init(jax.random.key(0))["params"], net.names["params"]
    places = sharding.weight_shardings(weights, names, mesh, rules)

    def loss(weights, mixture, x):
        logits = net.module.apply(net.masked({"params": weights}, mixture), x)
        return jnp.mean(jnp.square(logits))

    given = jax.device_put(weights, places), scanned.mixture(0)
    x = jax.device_put(jnp.ones((64, scanned.WIDTH)), sharding.batches(mesh))
    step = jax.jit(jax.grad(loss, (0, 1)), out_shardings=(places, sharding.replicated(mesh)))
    with sharding.computing(weights, names, mesh, rules):
        compiled = step.lower(*given, x).compile()
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", compiled.as_text())
    assert f"{scanned.WIDTH},{4 * scanned.WIDTH}" in gathered  # a layer's kernel
    assert not any(shape.startswith(f"{scanned.LAYERS},") for shape in gathered)
    gradients = jax.tree.leaves(compiled(*given, x)[0])
    for array, place in zip(gradients, jax.tree.leaves(places), strict=True):
        assert array.sharding.is_equivalent_to(place, array.ndim)


def test_kernels_with_one_name_for_both_sides_are_gathered_too():
    net, mesh, rules = spaces.toy_cell(), sharding.make_mesh(4, 2), sharding.FULLY_SHARDED_TENSOR
    variables, mixture = net.shapes, nasjax.uniform(net.space)

    def logits(variables, x):
        return net.module.apply(net.masked(variables, mixture), x)

    with sharding.computing(variables["params"], net.names["params"], mesh, rules):
        traced = jax.jit(logits).trace(variables, jnp.ones((8, *net.input_shape)))
    assert "sharding_constraint" in str(traced.jaxpr)


@pytest.mark.slow
def test_a_transformer_divided_by_heads_and_over_all_devices_searches_as_a_whole_one(tmp_path):
    net = transformer()
    expected, arch = searched(tmp_path / "one", sharding.REPLICATED, one_device(), net)
    mesh = sharding.make_mesh(4, 2)
    state, found = searched(tmp_path / "many", sharding.FULLY_SHARDED_TENSOR, mesh, net)
    assert found == arch
    assert_same_run(lines(tmp_path / "many"), lines(tmp_path / "one"))
    assert_same_state(state, expected)
    kernel = state.weights["blocks"]["fc1"]["kernel"]
    assert set(kernel.sharding.spec) == {None, "data", "model"}
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
