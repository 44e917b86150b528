"""The split of heads, what is not computed, and the options of the ViTAS module."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core.mixture import one_hot
from nasjax.core.superpose import ACTIVE
from nasjax.models.split_attention import Split
from nasjax.models.vitas import ViTAS
from tests.spaces.test_vitas import ARCH, IMAGES, randomised, small, superposition


@pytest.mark.parametrize("leading", [True, False])
@pytest.mark.parametrize(("heads", "width"), [(1, 12), (3, 6), (2, 6), (6, 12), (3, 12)])
def test_a_split_finds_the_channels_of_every_head(heads: int, width: int, leading: bool) -> None:
    size, parts = 12, 2
    active = np.zeros(size, np.float32)
    active[slice(width) if leading else slice(size - width, None)] = 1
    split = Split(heads, size, jnp.asarray(active))
    array = np.arange(parts * size) + 1.0
    used = array[: parts * width] if leading else array[-parts * width :]
    for part in range(parts):
        found = np.asarray(split.take(jnp.asarray(array), part, parts)).reshape(heads, -1)
        expected = used[part * width : (part + 1) * width].reshape(heads, -1)
        np.testing.assert_array_equal(found[:, : width // heads], expected)
        assert not found[:, width // heads :].any()
    assert int(split.head_dim) == width // heads


def test_a_split_of_a_mixture_is_that_of_the_mean_width() -> None:
    active = jnp.concatenate([jnp.ones(4), jnp.full(4, 0.5), jnp.zeros(4)])  # 4 or 8 channels
    found = np.asarray(Split(2, 12, active).take(jnp.arange(1.0, 13.0)))
    np.testing.assert_array_equal(found, [1, 2, 3, 0, 0, 0, 4, 5, 6, 0, 0, 0])
    with pytest.raises(ValueError, match="12 channels does not divide into 5 heads"):
        Split(5, 12, None)


def test_what_has_no_mass_is_not_computed() -> None:
    """Weights that are no numbers would show."""
    net = small()
    superposed = superposition(net)(randomised(net), one_hot(net.space, ARCH))
    run = jax.jit(net.module.apply)
    clean = run(superposed, IMAGES)
    block = superposed["params"]["blocks"]["block"]
    heads = block["attention"]["heads_1"]["query_key"]
    heads["kernel"] = heads["kernel"].at[:2].set(np.nan)  # only the last layer has one head
    block["fc1"]["kernel"] = block["fc1"]["kernel"].at[1].set(np.nan)  # of the identity
    np.testing.assert_array_equal(run(superposed, IMAGES), clean)
    assert np.isfinite(clean).all()


def test_the_super_network_declares_what_it_asks_for() -> None:
    net = small()
    names = net.names[ACTIVE]["blocks"]["block"]
    assert tuple(names["mass"]) == ("blocks",)
    assert tuple(names["attention"]["heads_2"]["mass"]) == ("blocks",)
    assert tuple(names["attention"]["width"]) == ("blocks", "value")
    active = superposition(net)(randomised(net), one_hot(net.space, ARCH))[ACTIVE]["blocks"][
        "block"
    ]
    np.testing.assert_array_equal(active["mass"], [1, 0, 1])
    np.testing.assert_array_equal(active["attention"]["heads_2"]["mass"], [1, 0, 0])
    np.testing.assert_array_equal(active["attention"]["width"].sum(-1), [4, 4, 8])
    assert ACTIVE not in jax.eval_shape(net.network(ARCH).init, jax.random.key(0), IMAGES)


def test_initial_values() -> None:
    network = ViTAS(5, 64, 1, (2,), (8,), (200,), patch_size=2)
    params = nn.unbox(jax.jit(network.init)(jax.random.key(0), IMAGES))["params"]
    assert not params["patch_2"]["class_token"].any() and not params["patch_2"]["positions"].any()
    block = params["blocks_0"]["block"]
    for kernel in (block["fc1"]["kernel"], block["attention"]["heads_2"]["query_key"]["kernel"]):
        assert 0.016 < float(jnp.std(kernel)) < 0.02  # a normal distribution of 0.02, cut off
        assert float(jnp.max(jnp.abs(kernel))) <= 0.04
    assert not block["attention"]["proj"]["bias"].any()


def test_half_precision_changes_rounding_alone() -> None:
    net = small(patch_sizes=(2,))
    superposed = superposition(net)(randomised(net), one_hot(net.space, ARCH))
    full, half = (
        jax.jit(net.module.clone(dtype=dtype).apply)(superposed, IMAGES)
        for dtype in (None, jnp.bfloat16)
    )
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, full, atol=0.1 * float(jnp.max(jnp.abs(full))))


def test_scale_and_drop_path_of_a_network() -> None:
    network = ViTAS(5, 6, 1, (3,), (6,), (4,), patch_size=2, drop_path=(0.9,))
    shapes = nn.unbox(jax.eval_shape(network.init, jax.random.key(0), IMAGES))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)
    scaled = jax.jit(network.clone(attention_scale=(3.0,)).apply)(variables, IMAGES)
    own = jax.tree.map(np.array, variables)
    query_key = own["params"]["blocks_0"]["block"]["attention"]["heads_3"]["query_key"]
    for array in query_key.values():
        array[..., :6] *= 3.0 * 2**0.5  # queries, whose heads have two channels
    run = jax.jit(network.apply)
    plain, other = run(variables, IMAGES), run(own, IMAGES)
    np.testing.assert_allclose(other, scaled, rtol=1e-4, atol=1e-5)
    train = jax.jit(functools.partial(network.apply, train=True))
    dropped = train(variables, IMAGES, rngs={"dropout": jax.random.key(1)})
    assert np.max(np.abs(scaled - plain)) > 1e-4 and np.max(np.abs(dropped - plain)) > 1e-4


def test_images_that_do_not_divide_into_patches() -> None:
    network = ViTAS(3, 4, 1, (2,), (4,), (4,), patch_size=3)
    with pytest.raises(ValueError, match="do not divide into patches of 3 x 3"):
        network.init(jax.random.key(0), IMAGES)
