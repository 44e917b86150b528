"""Maximal arrays with their masks: what modules read of them, and what it costs."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

import nasjax
from nasjax.core.errors import SpaceError
from nasjax.core.masked import Masked
from nasjax.core.space import Choice, SearchSpace
from tests.core.scanned import SPACE, WIDTH, Foreign, Own, mixture, supernet


def gradients(read: Any, net: nasjax.Supernet, x: jax.Array) -> Any:
    """``(weights, mixture) -> loss and gradients`` of what ``read`` makes of the two."""

    def loss(weights: Any, mixture: Any) -> jax.Array:
        logits: Any = net.module.apply(read({"params": weights}, mixture), x)
        return jnp.mean(jnp.square(logits))

    return jax.jit(jax.value_and_grad(loss, (0, 1)))


@pytest.mark.parametrize("remat", [False, True], ids=["kept", "remat"])
@pytest.mark.parametrize("layer", [Foreign, Own])
def test_modules_read_the_superposed_arrays(layer: Any, remat: bool) -> None:
    net = supernet(layer, remat)
    weights, x = net.init(jax.random.key(0))["params"], jnp.ones((3, WIDTH)) * jnp.arange(WIDTH)
    lazy, eager = (gradients(read, net, x) for read in (net.masked, net.superpose))
    for given in (mixture(0), nasjax.one_hot(SPACE, nasjax.sample(SPACE, jax.random.key(1)))):
        for got, expected in zip(
            *(jax.tree.leaves(both(weights, given)) for both in (lazy, eager)), strict=True
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_no_copy_of_all_weights_is_made() -> None:
    net = supernet(Own)
    weights, x = net.init(jax.random.key(0))["params"], jnp.ones((1, WIDTH))
    size = sum(array.nbytes for array in jax.tree.leaves(weights))

    def temporary(program: Any) -> float:
        return program.lower(weights, mixture(0)).compile().memory_analysis().temp_size_in_bytes

    plain, lazy, eager = (
        temporary(gradients(read, net, x))
        for read in (lambda variables, _: variables, net.masked, net.superpose)
    )
    assert lazy - plain < 0.6 * size < eager - plain


def test_a_box_is_opened_and_sliced_as_flax_does() -> None:
    net = supernet(Own)
    weights, given = net.init(jax.random.key(0)), mixture(2)
    kernel = net.masked(weights, given)["params"]["layers"]["wide"]["kernel"]
    assert isinstance(kernel, Masked) and kernel.scanned
    one = jax.tree.map(lambda array: array[3], kernel.remove_axis(0, {}))
    assert not one.scanned
    np.testing.assert_allclose(one.unbox(), kernel.unbox()[3], rtol=1e-6)
    stack = {nn.PARTITION_NAME: "layers"}
    again = kernel.remove_axis(0, stack).add_axis(0, stack)
    assert jax.tree.structure(again) == jax.tree.structure(kernel)


def test_what_has_no_mask_is_read_as_it_is_and_what_is_written_stays_an_array() -> None:
    space = SearchSpace("one", (Choice("width", (2, 4)),), {"embed": "width"})
    names = {
        "params": {"kernel": jax.P("embed", None), "head": jax.P(None)},
        "batch_stats": {"mean": jax.P("embed")},
    }
    ones = {
        "params": {"kernel": jnp.ones((4, 3)), "head": jnp.ones(3)},
        "batch_stats": {"mean": jnp.ones(4)},
    }
    found = nasjax.masked(space, names, ones, nasjax.one_hot(space, {"width": 2}))
    assert isinstance(found["params"]["kernel"], Masked)
    assert found["params"]["head"].unbox() is ones["params"]["head"]
    np.testing.assert_array_equal(found["batch_stats"]["mean"], [1, 1, 0, 0])


def test_flax_still_compares_shapes() -> None:
    net = supernet(Own)
    boxes = net.masked(net.init(jax.random.key(0)), mixture(0))
    with pytest.raises(ScopeParamShapeError):
        net.module.apply(boxes, jnp.ones((1, 2 * WIDTH)))


class Experts(nn.Module):
    """Layers of Flax's own, made by ``nn.vmap`` over an axis that no space knows."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        experts = nn.vmap(
            Foreign,
            in_axes=None,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            axis_size=3,
            metadata_params={nn.PARTITION_NAME: "experts"},
        )
        return jnp.sum(experts(name="experts")(x)[0], 0)


def test_modules_may_map_over_axes_that_the_space_does_not_know() -> None:
    space = SearchSpace(
        "experts",
        (Choice("width", (16, WIDTH)), Choice("ratio", (1, 4))),
        {"embed": "width", "hidden": lambda width, ratio: width * ratio},
    )
    net = nasjax.Supernet(space, Experts(), lambda arch: Experts(), (WIDTH,))
    weights, x = net.init(jax.random.key(0)), jnp.ones((2, WIDTH))
    given = {"width": jnp.array([0.25, 0.75]), "ratio": jnp.array([0.5, 0.5])}
    got = net.module.apply(net.masked(weights, given), x)
    np.testing.assert_allclose(got, net.module.apply(net.superpose(weights, given), x), rtol=1e-5)


def test_an_axis_that_is_searched_cannot_be_mapped_over() -> None:
    space = SearchSpace(
        "experts",
        (Choice("width", (16, WIDTH)), Choice("experts", (1, 3))),
        {"embed": "width", "hidden": lambda width: 4 * width, "experts": "experts"},
    )
    net = nasjax.Supernet(space, Experts(), lambda arch: Experts(), (WIDTH,))
    weights = net.init(jax.random.key(0))
    boxes = net.masked(weights, nasjax.one_hot(space, {"width": 16, "experts": 3}))
    kernel = boxes["params"]["experts"]["wide"]["kernel"]
    with pytest.raises(SpaceError, match="is mapped over axis 0"):
        kernel.remove_axis(0, {})


class Normalised(nn.Module):
    """Flax's own weight normalisation, which maps over the parameters of another module."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", None))
        dense = nn.Dense(3, kernel_init=init, use_bias=False, name="dense")
        return nn.WeightNorm(dense, use_scale=False)(x)


def test_modules_that_do_not_read_by_param_can_have_arrays() -> None:
    space = SearchSpace("one", (Choice("width", (2, 4)),), {"embed": "width"})
    net = nasjax.Supernet(space, Normalised(), lambda arch: Normalised(), (4,), lazy=False)
    variables, mixture = net.init(jax.random.key(0)), {"width": jnp.array([0.5, 0.5])}
    given = net.masked(variables, mixture)
    assert all(isinstance(array, jax.Array) for array in jax.tree.leaves(given))
    kernel = given["params"]["dense"]["kernel"]
    np.testing.assert_allclose(kernel[2:], 0.5 * variables["params"]["dense"]["kernel"][2:])
