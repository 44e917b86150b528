"""The convolutional and cell spaces: exactness, counts, gradients of masses, genotypes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nasjax
from nasjax import spaces
from nasjax.core import architecture, mixture
from nasjax.core.errors import ArchitectureError, SpaceError
from nasjax.core.program import Program
from nasjax.models import convolution, operations
from nasjax.spaces.darts import PUBLISHED

BUILD = {
    "toy_cell": functools.partial(spaces.toy_cell, image_size=8, channels=4),
    "toy_conv_macro": functools.partial(spaces.toy_conv_macro, image_size=16),
    "nas_bench_201": functools.partial(spaces.nas_bench_201, image_size=8, channels=4, cells=1),
    "darts": functools.partial(spaces.darts, image_size=8, channels=4, cells=3),
}
CELLS = ("toy_cell", "nas_bench_201", "darts")
# Networks of DARTS take longest to trace.
SAMPLED = {"toy_cell": 10, "toy_conv_macro": 5, "nas_bench_201": 10, "darts": 2}
# DARTS with plain sharing is by far the slowest to compile; its cells are those of the others.
SHARED = [(name, "entangled") for name in BUILD]
SHARED += [(name, "plain") for name in BUILD if name != "darts"]
SLOWEST = ("toy_conv_macro", "plain")
SLOW = [("toy_conv_macro", "entangled"), ("nas_bench_201", "plain"), ("darts", "entangled")]
EVERY_DAY = [
    pytest.param(*s, marks=pytest.mark.slow) if s in SLOW else s for s in SHARED if s != SLOWEST
]


def quiet(module):
    return module.clone(dropout=0.0) if hasattr(module, "dropout") else module


def randomise(variables):
    def one(path, x):
        name = jax.tree_util.keystr(path)
        z = np.random.default_rng(sum(map(ord, name))).standard_normal(x.shape).astype(np.float32)
        if name.endswith("['var']"):
            return jnp.asarray(0.5 + np.abs(z))
        if name.endswith(("['mean']", "['bias']")):
            return jnp.asarray(0.3 * z)
        return x + 0.1 * z

    return jax.tree_util.tree_map_with_path(one, variables)


@pytest.fixture(autouse=True)
def short_programs(monkeypatch):
    """XLA's grouped convolution compiles faster; that ours is the same is tested with it."""
    grouped = jax.jit(convolution._grouped, static_argnums=(2, 3))
    monkeypatch.setattr(convolution, "depthwise_conv", grouped)


@functools.cache
def searched(name, **options):
    """A super-network, random variables, images, and the super-network as one program."""
    net = BUILD[name](**options)
    drawn = net.init(jax.random.key(0))
    variables = randomise({c: t for c, t in drawn.items() if c != "active"})
    batch = 1 if name == "toy_conv_macro" else 4  # large images, and no statistics of batches
    images = jax.random.normal(jax.random.key(1), (batch, *net.input_shape))

    @functools.partial(Program, static_argnums=2)
    def apply(variables, weights, train):
        return quiet(net.module).apply(net.superpose(variables, weights), images, train=train)

    return net, variables, images, apply


def worst(actual, expected):
    return float(jnp.max(jnp.abs(actual - expected)) / jnp.max(jnp.abs(expected)))


@pytest.mark.parametrize(("name", "sharing"), EVERY_DAY)
def test_one_hot_equals_extracted_in_train_and_eval_mode(name, sharing):
    assert_exact(name, sharing, range(SAMPLED[name] if sharing == "entangled" else 3))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sharing"), [*((n, "entangled") for n in BUILD), SLOWEST])
def test_many_one_hots_equal_extracted(name, sharing):
    few = name == "darts" or sharing == "plain"
    assert_exact(name, sharing, range(15 if few else 50))


def assert_exact(name, sharing, seeds):
    net, variables, images, apply = searched(name, sharing=sharing)
    for seed in seeds:
        arch = nasjax.sample(net.space, jax.random.key(seed))
        alone, small = quiet(net.network(arch)), net.extract(variables, arch)
        for train in (False, True):
            inside = apply(variables, nasjax.one_hot(net.space, arch), train)
            assert worst(inside, alone.apply(small, images, train=train)) < 1e-5, (arch, train)
    assert apply.compiles == 2


@pytest.mark.parametrize(("name", "sharing"), [s for s in SHARED if s != SLOWEST])
def test_counts_are_those_of_the_extracted_network(name, sharing):
    net, variables, images, _ = searched(name, sharing=sharing)
    for seed in range(3):
        arch = nasjax.sample(net.space, jax.random.key(seed))
        module, small = quiet(net.network(arch)), net.extract(variables, arch)
        shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), images))
        assert jax.tree.map(lambda x: x.shape, small) == jax.tree.map(lambda x: x.shape, shapes)
        hot = nasjax.one_hot(net.space, arch)
        params = sum(x.size for x in jax.tree.leaves(small["params"]))
        flops = nasjax.count_multiply_adds(functools.partial(module.apply, small), images[:1])
        for cost, exact in (("params", params), ("flops", flops)):
            assert net.count(cost, arch) == exact
            np.testing.assert_allclose(net.expect(cost, hot), exact, rtol=1e-6)


def spread(gradient):
    """How much a gradient with respect to mixtures tells options of a row apart."""
    return float(np.mean(np.std(np.asarray(gradient), -1)))


def test_gradients_reach_the_mass_of_a_group():
    """What separates separable from dilated convolutions: nearly nothing in the authors' form."""
    told = {}
    for form in ("outside", "inside"):
        net, variables, _, apply = searched("toy_cell", group_mass=form)
        target = jax.random.normal(jax.random.key(2), (4, 10))

        def loss(weights, apply=apply, variables=variables, target=target):
            return jnp.sum(apply(variables, weights, True) * target)

        gradient = jax.grad(loss)(mixture.uniform(net.space))["normal"]
        options = net.space.choice("normal").options
        groups = np.stack(
            [
                gradient[:, [i for i, o in enumerate(options) if o.startswith(kind)]].sum(-1)
                for kind in ("sep", "dil")
            ],
            -1,
        )
        within = gradient[:, [options.index("sep_conv_3x3"), options.index("sep_conv_5x5")]]
        told[form] = spread(groups) / spread(within)
    assert told["outside"] > 0.3
    assert told["inside"] < 0.1 * told["outside"]


def test_a_group_of_no_mass_drops_out_of_value_and_gradient():
    net, variables, _, apply = searched("toy_cell")
    arch = nasjax.sample(net.space, jax.random.key(0))

    def loss(variables, weights):
        return jnp.sum(apply(variables, weights, True) ** 2)

    gradients = jax.grad(loss, (0, 1))(variables, nasjax.one_hot(net.space, arch))
    # What the other group would be worth is told all the same: GDAS lives on it.
    assert np.all(np.asarray(gradients[1]["normal"]) != 0)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradients))
    chosen = "sep_conv" if arch["normal"][0].startswith("sep") else "dil_conv"
    other = ({"sep_conv", "dil_conv"} - {chosen}).pop()
    edge = gradients[0]["params"]["cell_1"]["normal_edges_0"]
    assert all(not jnp.any(g) for g in jax.tree.leaves(edge[other]))
    assert all(bool(jnp.any(g)) for g in jax.tree.leaves(edge[chosen]))


@pytest.mark.parametrize("name", CELLS)
def test_genotypes_both_ways(name):
    net = BUILD[name]()
    for seed in range(20):
        arch = nasjax.sample(net.space, jax.random.key(seed))
        assert net.architecture(net.to_text(arch)) == arch


def test_sizes_of_the_spaces():
    sizes = {name: build().space.size for name, build in BUILD.items()}
    assert sizes == {
        "toy_cell": 4096,
        "toy_conv_macro": 6561,
        "nas_bench_201": 15625,
        "darts": (180 * 7**8) ** 2,
    }


def test_darts_keeps_two_edges_into_every_node():
    space = BUILD["darts"]().space
    first, second = (nasjax.sample(space, jax.random.key(seed)) for seed in (0, 1))
    mutant = nasjax.mutate(space, jax.random.key(2), first, 0.5)
    child = nasjax.crossover(space, jax.random.key(3), first, second)
    smallest, largest = architecture.smallest(space), architecture.largest(space)
    for arch in (first, second, mutant, child, smallest, largest, *PUBLISHED.values()):
        assert nasjax.validate(space, arch) == arch
        assert nasjax.argmax(space, nasjax.one_hot(space, arch)) == arch
        for kind in ("normal", "reduce"):
            kept = [o != "none" for o in arch[kind]]
            assert [sum(kept[a:b]) for a, b in ((0, 2), (2, 5), (5, 9), (9, 14))] == [2] * 4
    assert mutant != first and child not in (first, second)
    broken = {**first, "normal": ["skip_connect"] * 14}
    with pytest.raises(ArchitectureError, match=r"breaks the rule .*; the nearest that follows it"):
        nasjax.validate(space, broken)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("nas_bench_201", "|skip_connect~0|", r"is no architecture of NAS-Bench-201; \|op~0"),
        (
            "nas_bench_201",
            "|nor_conv_3x3~0|+|nor_conv_7x7~0|none~1|+|none~0|none~1|none~2|",
            "no operation 'nor_conv_7x7'; did you mean 'nor_conv_3x3'",
        ),
        ("darts", "Genotype(normal=[('sep_conv_3x3', 0)], reduce=[])", "has 1 edges; in space"),
        ("darts", "Genotype(normal=oops(", "is no genotype; Genotype"),
        ("toy_cell", "Genotype(normal=[('none', 0)], reduce=[])", "edges from the nodes"),
        ("toy_cell", "Genotype(normal=[('sep_conv_3x3', -1)], reduce=[])", "is no genotype"),
        ("toy_cell", "Genotype(normal=[('sep_conv_3x3', 0.9)], reduce=[])", "is no genotype"),
        ("toy_cell", "Genome(normal=[], reduce=[])", "is no genotype"),
        (
            "nas_bench_201",
            "x|none~0|+|none~0|none~1|+|none~0|none~1|none~2|y",
            "is no architecture of NAS-Bench-201",
        ),
        (
            "toy_cell",
            "Genotype(normal=[('none', 0), ('none', 0), ('none', 1)], reduce=[])",
            "'toy_cell' has no operation 'none'",
        ),
    ],
)
def test_a_bad_genotype_is_one_sentence(name, text, message):
    with pytest.raises(ArchitectureError, match=message):
        BUILD[name]().architecture(text)


def test_a_genotype_of_another_space_is_refused():
    toy, darts = BUILD["toy_cell"](), BUILD["darts"]()
    arch = nasjax.sample(toy.space, jax.random.key(0))
    with pytest.raises(ArchitectureError, match="has 3 edges; in space 'darts'"):
        darts.architecture(toy.to_text(arch))


def test_unknown_options_are_named():
    with pytest.raises(SpaceError, match="sharing is 'entagled'; did you mean 'entangled'"):
        spaces.toy_cell(sharing="entagled")
    with pytest.raises(SpaceError, match="group_mass is 'out'"):
        spaces.darts(group_mass="out")


@pytest.mark.parametrize("name", BUILD)
def test_images_that_cannot_be_halved_twice(name):
    with pytest.raises(SpaceError, match="image_size is 30; a multiple of 4 from"):
        BUILD[name](image_size=30)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"cells": 2}, "cells is 2; 3 at least"),
        ({"channels": 0}, "channels is 0; 1 at least"),
        (
            {"retrained": {"chanels": 4}},
            "retrained has no field 'chanels'; did you mean 'channels'",
        ),
    ],
)
def test_sizes_that_make_no_network(option, message):
    with pytest.raises(SpaceError, match=message):
        BUILD["darts"](**option)


@pytest.mark.slow
def test_every_kernel_of_the_plain_macro_space_is_drawn_for_its_own_inputs():
    net = spaces.toy_conv_macro(image_size=12, sharing="plain")
    arch = net.architecture("smallest")
    inherited = net.extract(net.init(jax.random.key(0)), arch)["params"]
    own = nn.unbox(net.network(arch).init(jax.random.key(1), jnp.zeros((1, 12, 12, 3))))["params"]
    for layer in ("conv_2", "conv_3", "conv_4"):
        shared, alone = (np.std(tree[layer]["kernel"]) for tree in (inherited, own))
        np.testing.assert_allclose(shared, alone, rtol=0.1)


@pytest.mark.parametrize("sharing", ["entangled", pytest.param("plain", marks=pytest.mark.slow)])
def test_gain_makes_the_first_kernels_larger(sharing):
    small, large = (
        spaces.toy_conv_macro(image_size=12, sharing=sharing, gain=gain).init(jax.random.key(0))
        for gain in (1.0, 2.0)
    )
    for name, layer in large["params"].items():
        expected = 2.0 * small["params"][name]["kernel"]
        np.testing.assert_allclose(layer["kernel"], expected, rtol=1e-6)


def test_an_unknown_operation_is_named():
    with pytest.raises(SpaceError, match="no operation is called 'sep_conv_4x4'; there are none"):
        operations.candidates(("sep_conv_3x3", "sep_conv_4x4"))
