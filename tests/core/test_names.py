"""Axis names: from patterns, from metadata, and what is said where they do not fit."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nasjax.core import architecture
from nasjax.core.errors import SpaceError
from nasjax.core.mixture import one_hot
from nasjax.core.names import axis_names, leaves, name_axes
from nasjax.core.space import Choice, SearchSpace
from nasjax.core.supernet import Supernet
from nasjax.models.layers import active_statistics
from tests.core.user_model import PATTERNS, Model

SPACE = SearchSpace(
    "user",
    (
        Choice("width", (8, 12)),
        Choice("depth", (1, 2)),
        Choice("heads", (1, 4), per="layer"),
        Choice("hidden", (5, 9), per="layer"),
    ),
    {
        "embed": "width",
        "residual": lambda width, depth, layer: width * (layer < depth),
        "heads": "heads",
        "hidden": "hidden",
        "layer": "depth",
    },
)


def supernet(named: bool, **change: Any) -> Supernet:
    def network(arch: architecture.Arch) -> nn.Module:
        return Model(arch["width"], tuple(arch["heads"]), tuple(arch["hidden"]))

    fields = {"patterns": None if named else PATTERNS, **change}
    return Supernet(SPACE, Model(12, (4, 4), (9, 9), named=named), network, (6, 5), **fields)


def randomised(shapes: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: np.float32(0.5 * rng.standard_normal(s.shape)), shapes)


@pytest.fixture(scope="module", params=[False, True], ids=["patterns", "metadata"])
def user(request: pytest.FixtureRequest) -> Supernet:
    return supernet(request.param)


def test_patterns_and_metadata_say_the_same() -> None:
    patterns, metadata = supernet(False), supernet(True)
    # Names that only fill up a shape may be left out.
    full = [
        {str(leaf): leaf for leaf in leaves(SPACE, net.names, net.shapes)}
        for net in (patterns, metadata)
    ]
    assert full[0] == full[1]
    assert full[0]["params/layer_1/attention/query/kernel"].axes == ("embed", "heads", None)
    assert full[0]["params/layer_1/attention/query/kernel"].layer == 1
    assert full[0]["params/layer_1/attention/query/kernel"].stack == "layer"
    assert full[0]["params/stem/kernel"].stack is None
    assert not any(leaf.scanned for leaf in full[0].values())


def test_a_model_nobody_wrote_for_nasjax_is_exact(user: Supernet) -> None:
    variables = randomised(user.shapes)
    x = np.random.default_rng(1).standard_normal((3, 6, 5)).astype(np.float32)
    traces = []

    @jax.jit
    def forward(variables: Any, mixture: Any) -> jax.Array:
        traces.append(1)
        with nn.intercept_methods(active_statistics):
            return user.module.apply(user.superpose(variables, mixture), x)

    plain = []
    for seed in range(6):
        arch = architecture.sample(SPACE, jax.random.key(seed))
        got = forward(variables, one_hot(SPACE, arch))
        network, small = user.network(arch), user.extract(variables, arch)
        expected = network.apply(small, x)
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.max(np.abs(expected)), rtol=0)
        assert jax.tree.map(jnp.shape, small) == jax.tree.map(
            jnp.shape, nn.unbox(jax.eval_shape(network.init, jax.random.key(0), x))
        )
        assert user.count("params", arch) == sum(v.size for v in jax.tree.leaves(small))
        if arch["width"] == 8 and not plain:  # without the interceptor the statistics are wrong
            plain.append(user.module.apply(user.superpose(variables, one_hot(SPACE, arch)), x))
            assert not np.allclose(plain[0], expected, rtol=1e-2)
    assert plain and len(traces) == 1


def test_interception_changes_nothing_without_active_channels() -> None:
    user = supernet(False)
    variables, x = randomised(user.shapes), jnp.ones((2, 6, 5)) * jnp.arange(5.0)
    expected = user.module.apply(variables, x)
    with nn.intercept_methods(active_statistics):
        np.testing.assert_array_equal(user.module.apply(variables, x), expected)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("inputs", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("bias", [True, False])
def test_interception_keeps_dtype_and_value_where_all_is_active(
    dtype: Any, inputs: Any, bias: bool
) -> None:
    layer = nn.LayerNorm(dtype=dtype, use_bias=bias, epsilon=1e-3)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)), inputs)
    params = {"scale": jnp.array([1.0, 2.0, -1.0, 0.5])}
    params |= {"bias": jnp.array([0.5, -1.0, 2.0, 0.0])} if bias else {}
    expected = layer.apply({"params": params}, x)
    with nn.intercept_methods(active_statistics):
        got = layer.apply({"params": params, "active": {"scale": jnp.ones(4)}}, x)
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(np.float32(got), np.float32(expected), rtol=2e-2, atol=1e-5)
    if got.dtype == jnp.float32 and inputs == jnp.float32:
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_other_normalisations_are_left_to_flax() -> None:
    x = jnp.arange(12.0).reshape(2, 2, 3)
    for layer in (nn.RMSNorm(), nn.LayerNorm(reduction_axes=(-2, -1))):
        variables = layer.init(jax.random.key(0), x)
        expected = layer.apply(variables, x)
        active = {"scale": jnp.array([1.0, 1.0, 0.0])}
        with nn.intercept_methods(active_statistics):
            np.testing.assert_array_equal(layer.apply({**variables, "active": active}, x), expected)


TREE = {"params": {"stem": {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)}, "scale": jnp.ones(3)}}


def test_patterns_by_example() -> None:
    names = name_axes(TREE, {"stem/bias$": ("embed",), "stem": (None, "embed")})
    assert names == {
        "params": {"stem": {"kernel": P(None, "embed"), "bias": P("embed")}, "scale": P()}
    }


def test_the_first_pattern_that_is_found_counts() -> None:
    names = name_axes(TREE, {"bias": ("first",), "stem/(bias|kernel)": (None, "second")})
    assert names["params"]["stem"] == {"kernel": P(None, "second"), "bias": P("first")}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            {"kernal": (None, "embed"), "bias": ("embed",)},
            r"no parameter matches \['kernal'\]; .* params/stem/kernel",
        ),
        ({"kernel": ("embed",)}, r"'kernel' names 1 axes .*params/stem/kernel has shape \(2, 4\)"),
        ({"bias": (None, "embed")}, r"'bias' names 2 axes .*params/stem/bias has shape \(4,\)"),
        ({"stem": ("embed",)}, "'stem' names 1 axes"),
    ],
)
def test_patterns_that_do_not_fit(patterns: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        name_axes(TREE, patterns)


def test_names_from_metadata() -> None:
    class Mixed(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            boxed = nn.with_logical_partitioning(nn.initializers.ones_init(), ("embed", None))
            x = nn.Dense(3, kernel_init=boxed)(x)
            self.variable("state", "seen", jnp.zeros, ())
            return x

    variables = jax.eval_shape(Mixed().init, jax.random.key(0), jnp.ones((1, 2)))
    names = axis_names(variables)
    assert names["params"]["Dense_0"] == {"kernel": P("embed", None), "bias": P()}
    assert names["state"] == {"seen": P()}


STACKED = SearchSpace(
    "stacked",
    (Choice("width", (2, 4)), Choice("heads", (1, 2), per="blocks")),
    {
        "embed": "width",
        "heads": "heads",
        "blocks": 3,
        "late": lambda width, layer: width * (layer < 2),
    },
)


@pytest.mark.parametrize(
    ("path", "shape", "spec", "message"),
    [
        ("stem/kernel", (3, 8), P(None, "embed"), "'embed' of params/stem/.* has 8 entries.* is 4"),
        ("blocks/kernel", (2, 4), P("blocks", "embed"), "'blocks' of .* has 2 entries.* is 3"),
        ("stem/kernel", (3, 2), P(None, "heads"), "'heads' of params/stem.* is chosen per layer"),
        ("stem/kernel", (3, 4), P(None, "late"), "'late' of .* is chosen per layer of a stack"),
        ("other_0/kernel", (2,), P("heads"), "chosen per layer of blocks.*STACK_0, STACK_1"),
        ("blocks_x/kernel", (2,), P("heads"), "chosen per layer of blocks"),
        ("blocks_3/kernel", (2,), P("heads"), "in layer 3 of 'blocks'.* has 3 layers"),
        ("stem/bias", (4,), P("embed", "embed"), r"stem/bias has shape \(4,\), but 2 named axes"),
    ],
)
def test_names_that_do_not_fit_the_space(
    path: str, shape: tuple[int, ...], spec: P, message: str
) -> None:
    names: Any = spec
    variables: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
    for part in reversed(["params", *path.split("/")]):
        names, variables = {part: names}, {part: variables}
    with pytest.raises(SpaceError, match=message):
        list(leaves(STACKED, names, variables))


def test_every_array_needs_names() -> None:
    with pytest.raises(SpaceError, match="axis names lack params/scale"):
        list(leaves(STACKED, {"params": {"stem": {"kernel": P(), "bias": P()}}}, TREE))


def test_names_that_are_no_axes_of_the_space_are_constant() -> None:
    variables = {"params": {"blocks_2": {"k": jax.ShapeDtypeStruct((5, 2, 4), jnp.float32)}}}
    names = {"params": {"blocks_2": {"k": P("vocabulary", "heads")}}}
    (leaf,) = leaves(STACKED, names, variables)
    assert leaf.axes == (None, "heads", None) and (leaf.stack, leaf.layer) == ("blocks", 2)
    assert not leaf.scanned and str(leaf) == "params/blocks_2/k"
    names = {"params": {"blocks": {"k": P("blocks", None, "embed")}}}
    variables = {"params": {"blocks": {"k": jax.ShapeDtypeStruct((3, 5, 4), jnp.float32)}}}
    (leaf,) = leaves(STACKED, names, variables)
    assert leaf.axes == (None, "embed") and leaf.scanned and leaf.shape == (3, 5, 4)


def test_a_super_network_that_does_not_fit_fails_before_it_is_drawn() -> None:
    small = supernet(False, patterns=PATTERNS | {"head/bias": ("embed",)})
    with pytest.raises(SpaceError, match="'embed' of params/head/bias has 4 entries"):
        small.init(jax.random.key(0))
