"""The AutoFormer spaces: their sizes, and that a one-hot super-network is the extracted network."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from nasjax import relax
from nasjax.core import architecture
from nasjax.core.errors import SpaceError
from nasjax.core.flops import count_multiply_adds
from nasjax.core.mixture import argmax, one_hot, uniform
from nasjax.core.supernet import Supernet
from nasjax.models.vit import VisionTransformer
from nasjax.spaces.autoformer import OPTIONS, PUBLISHED, autoformer, quickstart, vision_transformer

SMALL: dict[str, tuple[Any, ...]] = {
    "embed_dim": (10, 6),  # few sizes: each compiles some thirty operations of a small network
    "depth": (1, 2, 3),
    "num_heads": (1, 3),
    "mlp_ratio": (1.5, 0.5),
}
IMAGES = np.random.default_rng(9).standard_normal((3, 4, 6, 2)).astype(np.float32)


def small(*, unrolled: bool = False, **fields: Any) -> Supernet:
    """A small space on images of 2 x 3 patches."""
    sizes = {"head_dim": 2, "reach": 2, **fields}
    net = vision_transformer(
        SMALL, image_size=(4, 6), patch_size=2, num_classes=5, channels=2, **sizes
    )
    if not unrolled:
        return net
    module = net.module.clone(num_heads=(3,) * 3, mlp_dim=(15,) * 3)
    return Supernet(net.space, module, net.network, net.input_shape, costs=net.costs)


def randomised(net: Supernet, seed: int = 0) -> Any:
    """Every array random: scales away from one and biases away from zero, or they test nothing."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(shape.shape).astype(np.float32)
        return 1 + 0.3 * noise if path[-1].key == "scale" else 0.4 * noise

    return jax.tree.map_with_path(draw, net.shapes)


class Compiled(NamedTuple):
    """A super-network with weights, its compiled outputs, and how often that was traced."""

    net: Supernet
    variables: Any
    run: Callable[[Any], jax.Array]
    traces: list[int]

    def expected(self, arch: Any) -> jax.Array:
        """The outputs of the extracted network."""
        network = self.net.network(arch).clone(remat="none")  # which is slow where not compiled
        return network.apply(self.net.extract(self.variables, arch), IMAGES)


def compiled(net: Supernet, train: bool = False) -> Compiled:
    variables, traces = randomised(net), []

    def forward(mixture: Any) -> jax.Array:
        traces.append(1)
        return net.module.apply(net.superpose(variables, mixture), IMAGES, train=train)

    return Compiled(net, variables, jax.jit(forward), traces)


@pytest.fixture(scope="module")
def vit() -> Compiled:
    return compiled(small())


def assert_same(got: Any, expected: Any, message: str = "") -> None:
    scale = float(np.max(np.abs(expected)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * scale, err_msg=message)


def check(program: Compiled, seeds: range) -> None:
    """The first property of every space."""
    space, outputs = program.net.space, []
    for seed in seeds:
        arch = architecture.sample(space, jax.random.key(seed))
        outputs.append(np.asarray(program.run(one_hot(space, arch))))
        assert_same(outputs[-1], program.expected(arch), str(arch))
    assert len(program.traces) == 1, "an architecture recompiled the program"
    assert np.std(np.stack(outputs), axis=0).min() > 1e-3  # architectures do differ


def test_a_one_hot_super_network_is_the_extracted_network(vit: Compiled) -> None:
    check(vit, range(50))


@pytest.mark.parametrize(
    ("fields", "train"),
    [
        ({"pool": "token", "absolute": False}, True),
        ({"reach": 0, "qkv_bias": False}, False),
        ({"unrolled": True, "attention_scale": 0.3}, True),
        ({"remat": "dots", "dropout": 0.3, "drop_path": 0.2}, False),
    ],
    ids=["token", "no reach", "unrolled", "dropout"],
)
def test_so_it_is_with_every_option(fields: dict[str, Any], train: bool) -> None:
    check(compiled(small(**fields), train), range(100, 106))


def test_the_ends_of_the_space_are_exact(vit: Compiled) -> None:
    for name in ("smallest", "largest"):
        arch = vit.net.architecture(name)
        got = vit.run(one_hot(vit.net.space, arch))
        assert_same(got, vit.expected(arch))
    assert_same(got, vit.net.module.apply(vit.variables, IMAGES))  # which is the module itself


def test_every_hard_mixture_is_the_network_it_decodes_to(vit: Compiled) -> None:
    space = vit.net.space
    draw = jax.jit(relax.relaxation("gdas", steps=10).mixture)
    alphas = relax.init_alphas(space, jax.random.key(0), scale=1.0)
    for seed in range(8):
        mixture = draw(alphas, jax.random.key(seed), jnp.int32(seed))
        arch = argmax(space, mixture)
        assert_same(vit.run(mixture), vit.expected(arch), str(arch))


def test_one_program_maps_over_architectures(vit: Compiled) -> None:
    archs = [architecture.sample(vit.net.space, jax.random.key(i)) for i in range(4)]
    mixtures = [one_hot(vit.net.space, a) for a in archs]
    stacked = {n: np.stack([m[n] for m in mixtures]) for n in mixtures[0]}
    together = jax.jit(jax.vmap(vit.run))(stacked)
    for i, mixture in enumerate(mixtures):
        assert_same(together[i], vit.run(mixture))


def test_gradients_of_the_weights_are_those_of_the_extracted_network() -> None:
    net = small()
    variables = randomised(net)
    push = np.random.default_rng(1).standard_normal((3, 5))

    def loss(module: nn.Module, variables: Any) -> jax.Array:
        return jnp.sum(module.apply(variables, IMAGES) * push)

    gradient = jax.jit(jax.grad(lambda v, p: loss(net.module, net.superpose(v, p))))
    arch = {"embed_dim": 6, "depth": 2, "num_heads": [3, 1], "mlp_ratio": [0.5, 1.5]}
    large = jax.device_get(gradient(variables, one_hot(net.space, arch)))
    network, inside = net.network(arch), net.extract(variables, arch)
    expected = jax.jit(jax.grad(functools.partial(loss, network)))(inside)
    got = net.extract(large, arch)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    scale = max(float(np.max(np.abs(x))) for x in jax.tree.leaves(expected))
    for (path, x), y in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            x, y, rtol=1e-4, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path)
        )
    # Nothing reaches the weights of others: what was cut out is all there is.
    sums = [
        sum(float(np.sum(np.square(x, dtype=np.float64))) for x in jax.tree.leaves(t))
        for t in (large, got)
    ]
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-6)


def test_a_narrowed_super_network_has_the_same_sub_networks() -> None:
    net = small(dropout=0.2, drop_path=0.3)
    variables = randomised(net)
    for width in SMALL["embed_dim"]:
        smaller, own = net.narrow(variables, "embed_dim", width)
        assert smaller.space.axis_size("embed") == width and not smaller.narrowed
        assert jax.tree.map(jnp.shape, own["params"]) == jax.tree.map(
            lambda s: s.shape, smaller.shapes["params"]
        )
        for key in jax.random.split(jax.random.key(width), 4):
            arch = {**architecture.sample(net.space, key), "embed_dim": width}
            assert smaller.network(arch) == net.network(arch)
            jax.tree.map(
                np.testing.assert_array_equal,
                smaller.extract(own, arch),
                net.extract(variables, arch),
            )


def test_a_space_is_narrowed_by_its_own_options_alone() -> None:
    net = small()
    with pytest.raises(SpaceError, match="cannot be narrowed by 'embed'; did you mean 'embed_dim'"):
        net.narrow({}, "embed", 6)
    with pytest.raises(SpaceError, match="7 is no option of 'embed_dim'; one of"):
        net.narrow({}, "embed_dim", 7)
    with pytest.raises(SpaceError, match="cannot be narrowed by 'depth'"):
        net.narrow({}, "depth", 2)


def test_extracted_trees_are_those_that_the_network_makes_itself() -> None:
    net = small()
    for seed in range(3):
        arch = architecture.sample(net.space, jax.random.key(seed))
        own = nn.unbox(jax.eval_shape(net.network(arch).init, jax.random.key(0), IMAGES))
        cut = jax.eval_shape(lambda v: net.extract(v, arch), net.shapes)  # noqa: B023
        assert jax.tree.map(lambda x: x.shape, cut) == jax.tree.map(lambda x: x.shape, own)


@pytest.mark.parametrize(
    "fields", [{}, {"reach": 0, "absolute": False}, {"qkv_bias": False}], ids=str
)
def test_counts_are_those_of_the_extracted_network(fields: dict[str, Any]) -> None:
    net = small(**fields)
    image = jax.ShapeDtypeStruct((1, *net.input_shape), jnp.float32)
    for seed in range(4):
        arch = architecture.sample(net.space, jax.random.key(seed))
        network = net.network(arch)
        variables = nn.unbox(jax.eval_shape(network.init, jax.random.key(0), image))
        params = sum(x.size for x in jax.tree.leaves(variables))
        macs = count_multiply_adds(network.apply, variables, image)
        assert net.count("params", arch) == params
        assert net.count("flops", arch) == macs
        mixture = one_hot(net.space, arch)
        np.testing.assert_allclose(net.expect("params", mixture), params, rtol=1e-6)
        np.testing.assert_allclose(net.expect("flops", mixture), macs, rtol=1e-6)
    whole = count_multiply_adds(net.module.apply, net.shapes, image)
    assert whole == net.count("flops", net.architecture("largest"))  # scanned layers count each


def test_expected_costs_lie_between_the_ends_and_have_gradients() -> None:
    net = small()
    for name in ("params", "flops"):
        ends = [net.count(name, net.architecture(a)) for a in ("smallest", "largest")]
        value, gradient = jax.value_and_grad(lambda p: net.expect(name, p))(uniform(net.space))  # noqa: B023
        assert ends[0] < float(value) < ends[1]
        assert gradient["embed_dim"][0] > gradient["embed_dim"][1]
        assert np.all(np.diff(gradient["num_heads"], axis=-1) > 0)
        assert np.all(np.diff(gradient["num_heads"][:, 0]) < 0)  # later layers are rarer


def test_networks_drop_as_the_super_network_does() -> None:
    net = small(dropout=0.4, drop_path=0.2)
    assert net.module.drop_path == (0.0, 0.1, 0.2) and net.module.dropout == 0.4
    arch = {"embed_dim": 6, "depth": 2, "num_heads": [1, 1], "mlp_ratio": [0.5, 0.5]}
    network = net.network(arch)
    assert network.drop_path == (0.0, 0.1)
    assert network.dropout == pytest.approx(0.4 * 6 / 10)
    # The super-network finds the same rate in the active part of its width.
    mixture = one_hot(net.space, arch)
    norm = {"params": {"norm": net.shapes["params"]["norm"]}}
    ones = jax.tree.map(lambda s: np.ones(s.shape, np.float32), norm)
    active = net.superpose(ones, mixture)["active"]["norm"]["scale"]
    assert float(np.mean(active)) == pytest.approx(6 / 10)


@pytest.mark.parametrize(
    ("variant", "size"),
    [("T", 1_056_964_608), ("S", 77_103_263_459_313), ("B", 10_108_977_168_384)],
)
def test_sizes_of_the_published_spaces(variant: str, size: int) -> None:
    assert autoformer(variant).space.size == size


def test_largest_networks_fit_their_modules() -> None:
    for variant in OPTIONS:
        net = autoformer(variant, image_size=32, num_classes=10)
        net.names  # noqa: B018 - checks every axis against the module
        module = net.module
        assert (module.embed_dim, module.depth, module.num_heads) == tuple(
            max(OPTIONS[variant][n]) for n in ("embed_dim", "depth", "num_heads")
        )


@pytest.mark.parametrize(
    ("name", "millions"),
    [("AutoFormer-T", 5.9), ("AutoFormer-S", 22.9), ("AutoFormer-B", 53.7)],
)
def test_published_networks_have_their_published_size(name: str, millions: float) -> None:
    net = autoformer(name[-1])
    assert round(net.count("params", net.architecture(name)) / 1e6, 1) == millions


def test_published_architectures_are_consistent() -> None:
    for name, arch in PUBLISHED.items():
        options = {**OPTIONS[name[-1]], "mlp_ratio": (3.0, 3.5, 4.0)}
        net = autoformer(name[-1], options=options, image_size=32)
        assert net.architecture(net.architecture(name)) == arch
        assert set(net.published) == {n for n in PUBLISHED if n[-1] == name[-1]}


def test_options_may_be_replaced_and_are_checked() -> None:
    net = autoformer("T", options={"depth": (12,)}, image_size=32)
    assert net.space.choice("depth").options == (12,) and net.module.depth == 12
    with pytest.raises(SpaceError, match="no AutoFormer space 'XL'"):
        autoformer("XL")
    with pytest.raises(SpaceError, match="'mlp_ratios' is no choice here; did you mean"):
        autoformer("T", options={"mlp_ratios": (1,)})


def test_the_quickstart_space() -> None:
    net = quickstart()
    assert net.input_shape == (8, 8, 1) and net.module.num_classes == 10
    assert net.space.size == 3 * (9 + 9**2 + 9**3 + 9**4)
    net.names  # noqa: B018
    assert isinstance(net.network(net.architecture("smallest")), VisionTransformer)


RULES = (
    ("embed", None),
    ("residual", None),
    ("heads", "model"),
    ("qkv_bias", None),
    ("mlp", "model"),
    ("blocks", None),
)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
def test_the_same_names_shard_and_sharding_changes_nothing() -> None:
    options = {**SMALL, "embed_dim": (8, 12), "num_heads": (2, 4), "mlp_ratio": (1, 2)}
    net = vision_transformer(
        options, image_size=4, patch_size=2, num_classes=5, channels=2, head_dim=2, reach=0
    )
    variables = randomised(net)
    alphas = relax.init_alphas(net.space, jax.random.key(0), scale=1.0)
    mixture = relax.darts().mean(alphas)
    images = np.random.default_rng(0).standard_normal((8, 4, 4, 2)).astype(np.float32)

    @jax.jit
    def forward(variables: Any, mixture: Any, images: Any) -> jax.Array:
        return net.module.apply(net.superpose(variables, mixture), images)

    expected = jax.device_get(forward(variables, mixture, images))

    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    shardings = nn.logical_to_mesh_sharding(net.names, mesh, RULES)
    placed = jax.device_put(variables, shardings)
    blocks = placed["params"]["blocks"]
    for value, local in (
        (blocks["fc1"]["kernel"], (3, 12, 24 // 4)),
        (blocks["fc2"]["kernel"], (3, 24 // 4, 12)),
        (blocks["attention"]["qkv"]["kernel"], (3, 12, 3, 8 // 4)),
        (blocks["attention"]["proj"]["kernel"], (3, 8 // 4, 12)),
        (blocks["fc1"]["bias"], (3, 24 // 4)),
        (placed["params"]["positions"], (5, 12)),
    ):
        assert value.sharding.shard_shape(value.shape) == local
    data = NamedSharding(mesh, P("data"))
    got = forward(placed, mixture, jax.device_put(images, data))
    assert len(got.sharding.device_set) == 8
    assert_same(jax.device_get(got), expected)
