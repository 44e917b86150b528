"""The ViTAS spaces: a one-hot super-network is the extracted network, from either side."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core import architecture
from nasjax.core.errors import ArchitectureError, SpaceError
from nasjax.core.flops import count_multiply_adds
from nasjax.core.mixture import argmax, one_hot, uniform
from nasjax.core.supernet import Supernet
from nasjax.models.vitas import ViTAS
from nasjax.spaces import make
from nasjax.spaces.vitas import BLOCKS, NET_IDS, RATIOS, from_net_id, vitas
from tests.models import numpy_vitas

SMALL: dict[str, Any] = {
    "image_size": 4,
    "channels": 1,
    "num_classes": 5,
    "patch_sizes": (2, 4),
    "heads": (1, 2),
    "ratios": (0.5, 1.0),
    "embed_max": 8,
    "attention_max": 24,
    "mlp_max": 8,
    "depth": 3,
}
IMAGES = np.random.default_rng(9).standard_normal((3, 4, 4, 1)).astype(np.float32)
PUSH = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
ARCH = {
    "patch_size": 2,
    "embed_ratio": 0.5,
    "heads": [2, 0, 1],
    "attn_ratio": [0.5, 0.5, 1.0],
    "mlp_ratio": [1.0, 0.5, 0.5],
}


@functools.cache
def small(**options: Any) -> Supernet:
    """A small space on images of 4 x 4 pixels."""
    return vitas(**{**SMALL, **options})


def randomised(net: Supernet) -> Any:
    """Every array random: scales away from one, the rest away from zero, or they test nothing."""
    rng = np.random.default_rng(0)

    def draw(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(shape.shape).astype(np.float32)
        return 1 + 0.3 * noise if path[-1].key == "scale" else 0.4 * noise

    return {"params": jax.tree.map_with_path(draw, net.shapes["params"])}


class Compiled(NamedTuple):
    """Left-hand and right-hand super-networks, their weights, their outputs and the traces."""

    nets: dict[str, Supernet]
    variables: Any
    run: dict[int, Callable[[Any], jax.Array]]
    traces: list[Any]

    def output(self, arch: Any, side: str) -> jax.Array:
        """The outputs of the one-hot super-network of ``side``."""
        net = self.nets[side]
        variables = superposition(net)(self.variables, one_hot(net.space, arch))
        return self.run[arch["patch_size"]](variables)


@functools.cache
def superposition(net: Supernet) -> Callable[..., Any]:
    """Variables of the super-network under a mixture, compiled."""
    return jax.jit(net.superpose)


@pytest.fixture(scope="module")
def program() -> Compiled:
    nets, traces = {side: small(side=side) for side in ("left", "right")}, []

    def run(patch_size: int, variables: Any) -> jax.Array:
        traces.append(patch_size)
        module = nets["left"].maximal({"patch_size": patch_size})
        return module.apply(variables, IMAGES)

    programs = {size: jax.jit(functools.partial(run, size)) for size in SMALL["patch_sizes"]}
    return Compiled(nets, randomised(nets["left"]), programs, traces)


def assert_same(got: Any, expected: Any, message: str = "") -> None:
    scale = float(np.max(np.abs(expected)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * scale, err_msg=message)


def extracted(net: Supernet, variables: Any, arch: Any) -> np.ndarray:
    return numpy_vitas.forward(net.extract(variables, arch), arch, IMAGES)


def test_a_one_hot_super_network_is_the_extracted_network(program: Compiled) -> None:
    outputs = []
    for seed in range(50):
        side = "left" if seed % 2 else "right"
        net = program.nets[side]
        arch = architecture.sample(net.space, jax.random.key(seed))
        outputs.append(np.asarray(program.output(arch, side)))
        assert_same(outputs[-1], extracted(net, program.variables, arch), f"{side} {arch}")
    # One program for each patch size serves all architectures, and both sides.
    assert sorted(program.traces) == [2, 4]
    assert np.std(np.stack(outputs), axis=0).min() > 1e-3  # architectures do differ


def test_the_sides_meet_in_the_largest_network_alone(program: Compiled) -> None:
    largest = {**program.nets["left"].architecture("largest"), "patch_size": 2}
    assert_same(program.output(largest, "left"), program.output(largest, "right"))
    sides = [np.asarray(program.output(ARCH, side)) for side in ("left", "right")]
    assert np.max(np.abs(sides[0] - sides[1])) > 0.1


def test_a_network_of_identities_is_its_embedding(program: Compiled) -> None:
    arch = program.nets["left"].architecture("smallest")
    assert arch["heads"] == [0, 0, 0]
    small_tree = program.nets["left"].extract(program.variables, arch)
    assert set(small_tree["params"]) == {"head", "norm", "patch_2"}
    assert_same(
        program.output(arch, "left"), extracted(program.nets["left"], program.variables, arch)
    )


def test_networks_are_those_of_the_equations(program: Compiled) -> None:
    net = program.nets["right"]
    small_tree = net.extract(program.variables, ARCH)
    got = jax.jit(net.network(ARCH).apply)(small_tree, IMAGES)
    assert_same(got, extracted(net, program.variables, ARCH))


def test_so_it_is_where_heads_share_nothing() -> None:
    net = small(shared="none")
    variables = randomised(net)
    superposed = superposition(net)(variables, one_hot(net.space, ARCH))
    assert_same(
        jax.jit(net.maximal(ARCH).apply)(superposed, IMAGES), extracted(net, variables, ARCH)
    )


def loss(module: nn.Module, variables: Any) -> jax.Array:
    return jnp.sum(module.apply(variables, IMAGES) * PUSH)


@functools.cache
def weight_gradient(module: nn.Module) -> Callable[[Any], Any]:
    return jax.jit(jax.grad(functools.partial(loss, module)))


@pytest.mark.parametrize(("side", "remat"), [("left", "none"), ("right", "full")])
def test_gradients_are_those_of_the_extracted_network(
    side: str, remat: str, program: Compiled
) -> None:
    net, variables = program.nets[side], program.variables
    by_weights = weight_gradient(net.maximal(ARCH).clone(remat=remat))
    superposed, pull_back = jax.vjp(lambda v: net.superpose(v, one_hot(net.space, ARCH)), variables)
    (large,) = pull_back(by_weights(superposed))
    small_tree = net.extract(variables, ARCH)
    expected = weight_gradient(net.network(ARCH))(small_tree)
    got = net.extract(large, ARCH)
    scale = max(float(np.max(np.abs(x))) for x in jax.tree.leaves(expected))
    for (path, x), y in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        message = jax.tree_util.keystr(path)
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * scale, err_msg=message)
    # Nothing reaches the weights of others: what was cut out is all there is.
    sums = [sum(float(np.sum(np.square(x))) for x in jax.tree.leaves(t)) for t in (large, got)]
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-6)


def test_mixtures_are_finite_and_tend_to_the_architecture(program: Compiled) -> None:
    net = program.nets["left"]

    score = jax.jit(
        jax.value_and_grad(lambda m: loss(net.module, net.superpose(program.variables, m)))
    )
    value, gradient = score(uniform(net.space))
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradient.values())
    assert all(np.any(gradient[c] != 0) for c in gradient if c != "patch_size")
    hard, even = one_hot(net.space, ARCH), uniform(net.space)
    near = {c: 0.9999 * hard[c] + 0.0001 * even[c] for c in hard}
    expected = float(np.sum(program.output(ARCH, "left") * PUSH))
    np.testing.assert_allclose(score(near)[0], expected, rtol=0.01)
    assert argmax(net.space, near) == ARCH


def test_one_program_maps_over_architectures(program: Compiled) -> None:
    net = program.nets["right"]
    archs = [architecture.sample(net.space, jax.random.key(i)) for i in range(4)]
    archs = [{**arch, "patch_size": 4} for arch in archs]
    mixtures = [one_hot(net.space, arch) for arch in archs]
    stacked = jax.tree.map(lambda *m: jnp.stack(m), *mixtures)
    module = net.maximal(archs[0])

    def forward(mixture: Any) -> jax.Array:
        return module.apply(net.superpose(program.variables, mixture), IMAGES)

    together = jax.jit(jax.vmap(forward))(stacked)
    for arch, output in zip(archs, together, strict=True):
        assert_same(output, program.output(arch, "right"))


def test_counts_are_those_of_the_extracted_network() -> None:
    net = small(shared="v")
    image = jax.ShapeDtypeStruct((1, *net.input_shape), jnp.float32)
    for seed in range(4):
        arch = architecture.sample(net.space, jax.random.key(seed))
        network = net.network(arch)
        variables = nn.unbox(jax.eval_shape(network.init, jax.random.key(0), image))
        cut = jax.eval_shape(lambda v, a=arch: net.extract(v, a), net.shapes)
        assert jax.tree.map(lambda x: x.shape, cut) == jax.tree.map(lambda x: x.shape, variables)
        params = sum(x.size for x in jax.tree.leaves(variables))
        macs = count_multiply_adds(network.apply, variables, image)
        assert (net.count("params", arch), net.count("flops", arch)) == (params, macs)
        mixture = one_hot(net.space, arch)
        np.testing.assert_allclose(net.expect("params", mixture), params, rtol=1e-6)
        np.testing.assert_allclose(net.expect("flops", mixture), macs, rtol=1e-6)


def test_ratios_of_an_identity_block_are_the_first() -> None:
    net = small()
    broken = {**ARCH, "mlp_ratio": [1.0, 1.0, 0.5]}
    with pytest.raises(ArchitectureError, match=r"breaks the rule by which .* are decoded"):
        net.architecture(broken)
    for seed in range(20):
        arch = architecture.sample(net.space, jax.random.key(seed))
        other = architecture.mutate(net.space, jax.random.key(seed), arch, 0.5)
        child = architecture.crossover(net.space, jax.random.key(seed), arch, other)
        for found in (arch, other, child):
            assert net.architecture(found) == found
            assert argmax(net.space, one_hot(net.space, found)) == found
    even = architecture.sample(net.space, jax.random.key(0), {"heads": (1.0, 0.0, 0.0)})
    assert even["heads"] == [0, 0, 0] and even["attn_ratio"] == [0.5, 0.5, 0.5]


def test_networks_drop_paths_by_their_position_and_the_super_network_none() -> None:
    net = small(drop_path=0.2)
    assert net.module.drop_path == ()
    assert net.network(ARCH).drop_path == pytest.approx((0.0, 0.1, 0.2))


def test_sizes_of_the_published_spaces() -> None:
    sizes = {("arch", "tiny"): 30 * 401**16, ("arch", "large"): 30 * 400**13}
    sizes |= {("block", "tiny"): 4000, ("block", "large"): 4000}
    for (level, size), expected in sizes.items():
        net = make("vitas", level=level, size=size)
        assert net.space.size == expected and net.space.static == ("patch_size",)
    assert make("vitas", image_size=8, patch_sizes=(2, 4), channels=1).input_shape == (8, 8, 1)


@pytest.mark.parametrize("size", ["tiny", "large"])
def test_published_networks_lie_in_their_space(size: str) -> None:
    arch, block = vitas(size=size), vitas("block", size=size)
    assert set(arch.published) == set(NET_IDS[size]) and set(block.published) == set(BLOCKS[size])
    for name in arch.published:
        assert arch.architecture(arch.published[name]) == arch.published[name]
    for name in block.published:
        assert (block.published[name]["mlp_ratio"] in RATIOS) != name.startswith("DeiT")
        assert isinstance(block.network(block.architecture(name)), ViTAS)
    assert not vitas(size=size, depth=4).published


@pytest.mark.parametrize("text", ["", "1 2 3", "1 4 0 0 3 1 x", "1 5 0 0 3 1 1", "3 4 0 0 3 1 1"])
def test_a_text_that_is_no_net_id(text: str) -> None:
    assert from_net_id("1 4 0 0 3 1 1")["attn_ratio"] == [0.1]
    with pytest.raises(ArchitectureError, match="is no net_id: the indices"):
        from_net_id(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "blok"}, "no level 'blok' of a ViTAS space; did you mean 'block'"),
        ({"size": "huge"}, "no size 'huge' of a ViTAS space"),
        ({"side": "top"}, "no side 'top' of a ViTAS space"),
        ({"heads": ()}, "heads is \\(\\); numbers from 1 were expected"),
        ({"heads": (0, 2)}, "numbers from 1 were expected \\(identity=True"),
        ({"attention_max": 25}, "attention_max is 25, .* a multiple of 3"),
        ({"heads": (3,)}, "attention of 4 channels .* does not divide into 3 heads; choose"),
        ({"embed_max": 0}, "ratio 0.5 of embed_max=0 is no channel at all"),
        ({"ratios": (0.5, 2.0)}, "numbers above 0 and up to 1"),
        ({"patch_sizes": (2, 3)}, "4 x 4 pixels do not divide into patches of 3 x 3; resize"),
        ({"patch_sizes": ()}, "patch_sizes is empty"),
        ({"depth": 0}, "depth is 0; 1 block at least"),
        ({"shared": "q"}, "shared='q' is unknown; did you mean 'qk"),
        ({"level": "block", "identity": True}, "none can be an identity"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        small(**options)


def test_blocks_that_come_back_have_random_ratios() -> None:
    """Ratios of identity blocks are all the first option; children must not inherit that."""
    space = small().space
    parent = architecture.validate(space, {**ARCH, "heads": [0, 0, 0], **_ratios(0.5)})
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        full = architecture.with_silent_genes(space, rng, parent)
        assert architecture.nearest(space, _vector(space, full)) == parent
        child = architecture.mutate(space, rng, parent, 0.5, 0.0)
        other = {**ARCH, "heads": [2, 2, 2], **_ratios(1.0)}
        crossed = architecture.crossover(space, rng, parent, other)
        assert architecture.validate(space, crossed) == crossed
        heads, ratios = child["heads"], child["attn_ratio"]
        found += [r for h, r in zip(heads, ratios, strict=True) if h]
    assert 0.4 < np.mean(np.array(found) == 0.5) < 0.6  # of two options
    active = architecture.validate(space, {**ARCH, "heads": [1, 2, 1]})
    assert architecture.with_silent_genes(space, rng, active) == active


def _ratios(value: float) -> dict[str, list[float]]:
    return {"attn_ratio": [value] * 3, "mlp_ratio": [value] * 3}


def _vector(space: Any, arch: Any) -> np.ndarray:
    at = {(n, i): arch[n] if i is None else arch[n][i] for n, i in architecture.genes(space)}
    return np.array([space.choice(n).options.index(value) for (n, _), value in at.items()])
