"""Partial channels, and how a network with few of them becomes one with more."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import nasjax
from nasjax import spaces
from nasjax.core.errors import NasjaxError, SpaceError
from nasjax.models.operations import Edge, Operation, candidates
from nasjax.models.widen import widen, widen_candidate
from tests.models.tiny_cell import tiny_cell

BUILD: dict[str, Any] = {
    "darts": functools.partial(spaces.darts, image_size=8, channels=12, cells=3),
    "nas_bench_201": functools.partial(spaces.nas_bench_201, image_size=8, channels=12, cells=1),
}
KINDS = ("sep_conv_3x3", "dil_conv_5x5", "nor_conv_3x3", "skip_connect", "max_pool_3x3")


def filled(shapes: Any) -> dict[str, Any]:
    """Arrays of these shapes, none of them alike; variances are positive."""
    flat = traverse_util.flatten_dict({c: t for c, t in shapes.items() if c != "active"})
    rng = np.random.default_rng(0)
    drawn = {p: rng.standard_normal(x.shape).astype(np.float32) for p, x in flat.items()}
    return traverse_util.unflatten_dict(
        {p: jnp.asarray(abs(x) + 0.5 if p[-1] == "var" else x) for p, x in drawn.items()}
    )


def shapes_of(module: nn.Module, shape: tuple[int, ...]) -> Any:
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    call = functools.partial(module.init, train=False)
    return nn.unbox(jax.eval_shape(call, jax.random.key(0), image))


@pytest.mark.parametrize(
    ("name", "sharing", "narrow", "wide"),
    [
        pytest.param("darts", "entangled", 6, 4, marks=pytest.mark.slow),
        ("nas_bench_201", "entangled", 4, 2),
        ("nas_bench_201", "plain", 3, 1),
    ],
)
def test_the_whole_network_grows(name: str, sharing: str, narrow: int, wide: int) -> None:
    before, after = (BUILD[name](sharing=sharing, partial_channels=k) for k in (narrow, wide))
    variables = filled(before.shapes)
    found = widen(variables, after.shapes, jax.random.key(0))
    old, new = (traverse_util.flatten_dict(tree) for tree in (variables, found))
    shapes = traverse_util.flatten_dict(after.shapes)
    assert set(old) == set(new) == {p for p in shapes if p[0] != "active"}
    grown = 0
    for path, array in new.items():
        assert array.shape == shapes[path].shape
        if old[path].shape == array.shape:
            np.testing.assert_array_equal(array, old[path])
            continue
        grown += 1
        assert any(part.startswith(("edges_", "normal_edges_", "reduce_edges_")) for part in path)
        if path[-3:-1] != ("reduce", "norm"):  # old channels come first, as they were
            first = array[tuple(slice(n) for n in old[path].shape)]
            np.testing.assert_array_equal(first, old[path])
        assert set(np.ravel(array).tolist()) == set(np.ravel(old[path]).tolist())  # all is copied
    assert grown > 10


def test_which_channels_are_copied_follows_from_the_key() -> None:
    before, after = (BUILD["nas_bench_201"](partial_channels=k) for k in (4, 1))
    variables = {"params": filled(before.shapes)["params"]}
    first, again, other = (widen(variables, after.shapes, jax.random.key(k)) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    cells = first["params"]["stage_0_cell_0"], other["params"]["stage_0_cell_0"]
    kernels = [c["edges_0"]["nor_conv"]["conv"]["kernel"] for c in cells]
    assert not np.array_equal(*kernels)
    # Edges draw apart: the same channels in all of them would be a coincidence.
    numbered = jax.tree.map(
        lambda x: jnp.broadcast_to(jnp.arange(float(x.shape[-1])), x.shape), variables
    )
    cell = widen(numbered, after.shapes, jax.random.key(0))["params"]["stage_0_cell_0"]
    copied = {str(cell[f"edges_{i}"]["nor_conv"]["conv"]["kernel"][0, 0, 0]) for i in range(6)}
    assert len(copied) > 3


def test_a_network_of_the_same_width_stays() -> None:
    net = BUILD["nas_bench_201"](partial_channels=2)
    variables = filled(net.shapes)
    found = widen(variables, net.shapes, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, found, variables)


@pytest.mark.parametrize("operation", KINDS)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_new_channel_does_what_the_one_it_copies_does(operation: str, stride: int) -> None:
    """With statistics, scale and shift: outputs drawn alike are alike in the wider network."""
    (candidate,) = candidates([operation])
    fields: dict[str, Any] = {"affine": True, "pool_norm": True, "use_bias": True}
    narrow, wide = (Operation(candidate, n, stride, **fields) for n in (4, 10))
    variables = filled(shapes_of(narrow, (2, 6, 6, 4)))
    drawn: list[Any] = []

    def draw(name: str, old: int, new: int) -> np.ndarray:
        drawn.append(np.random.default_rng(len(drawn)).integers(0, old, new))
        return drawn[-1]

    found = widen_candidate(candidate.kind, variables, shapes_of(wide, (2, 6, 6, 10)), draw)
    images = np.random.default_rng(9).standard_normal((2, 6, 6, 10)).astype(np.float32)
    if not drawn:
        assert operation == "skip_connect" and stride == 1
        return
    if candidate.kind == "max_pool":  # its channels are the image's; the statistics are copied
        images[..., 4:] = images[..., drawn[0]]
    output = np.asarray(wide.apply(found, images, train=False))
    if candidate.kind == "skip_connect":  # two halves, each with its new channels at its end
        halves = zip((output[..., :5], output[..., 5:]), (drawn[1], drawn[3]), strict=True)
    else:
        halves = zip((output,), (drawn[-1],), strict=True)
    for half, indices in halves:
        old = half.shape[-1] - len(indices)
        np.testing.assert_allclose(half[..., old:], half[..., indices], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("partial", "like", "message"),
    [
        (2, {"partial_channels": 4}, "cannot grow from .* only the channels of candidates can"),
        (2, {"num_classes": 5}, "head/.* cannot grow from .* only the channels of candidates can"),
        (2, {"sharing": "plain"}, "has no .*/edges_0/nor_conv/.*; is it another one?"),
    ],
)
def test_what_cannot_grow(partial: int, like: dict[str, Any], message: str) -> None:
    build = BUILD["nas_bench_201"]
    variables = filled(build(partial_channels=partial).shapes)
    with pytest.raises(NasjaxError, match=message):
        widen(variables, build(**{"partial_channels": partial, **like}).shapes, jax.random.key(0))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("partial", [2, 4])
def test_channels_that_are_not_mixed_pass_by(stride: int, partial: int) -> None:
    edge = Edge(candidates(["skip_connect"]) if stride == 1 else (), 8, stride, partial)
    images = np.random.default_rng(0).standard_normal((2, 6, 6, 8)).astype(np.float32)
    output = np.asarray(edge.apply({}, images, train=True))
    mixed = 8 // partial
    bypass = images if stride == 1 else images.reshape(2, 3, 2, 3, 2, 8).max((2, 4))
    joined = bypass.copy()
    joined[..., :mixed] *= stride == 1  # an edge without candidates is zero
    order = np.arange(8).reshape(partial, mixed).T.ravel()  # dealt out to as many groups
    np.testing.assert_array_equal(output, joined[..., order])


@pytest.mark.parametrize(("partial", "reduction"), [(2, True), (4, False)])
def test_a_partial_network_under_a_one_hot_mixture_is_the_extracted_one(
    partial: int, reduction: bool
) -> None:
    net = tiny_cell(partial, reduction=reduction)
    variables = filled(net.shapes)
    images = jax.random.normal(jax.random.key(1), (4, *net.input_shape))

    @jax.jit
    def apply(weights: Any) -> jax.Array:
        return net.module.apply(net.superpose(variables, weights), images, train=True)

    for seed in range(3):
        arch = nasjax.sample(net.space, jax.random.key(seed))
        alone, small = net.network(arch), net.extract(variables, arch)
        expected = jax.jit(functools.partial(alone.apply, train=True))(small, images)
        found = apply(nasjax.one_hot(net.space, arch))
        assert np.max(np.abs(found - expected)) < 1e-5 * np.max(np.abs(expected))


@pytest.mark.parametrize("name", BUILD)
def test_partial_networks_are_counted(name: str) -> None:
    build = functools.partial(BUILD[name], channels=4)
    net = build(partial_channels=2)
    image = jax.ShapeDtypeStruct((1, *net.input_shape), jnp.float32)
    for seed in range(2):
        arch = nasjax.sample(net.space, jax.random.key(seed))
        alone = net.network(arch)
        small = shapes_of(alone, image.shape)
        flops = nasjax.count_multiply_adds(alone.apply, small, image)
        params = sum(x.size for x in jax.tree.leaves(small["params"]))
        assert (net.count("flops", arch), net.count("params", arch)) == (flops, params)
        assert build().count("flops", arch) > flops
        assert net.from_scratch(arch).partial == 1


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("partial", [0, 5])
def test_channels_must_divide(name: str, partial: int) -> None:
    with pytest.raises(SpaceError, match=f"partial_channels is {partial}; a divisor of the 12"):
        BUILD[name](partial_channels=partial)
