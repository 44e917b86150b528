"""The NASViT spaces: a one-hot super-network is the extracted network, at every resolution."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core import architecture
from nasjax.core.errors import SpaceError
from nasjax.core.flops import count_multiply_adds
from nasjax.core.mixture import one_hot, uniform
from nasjax.core.supernet import STATISTICS, Supernet
from nasjax.models.inverted_residual import Shortcut
from nasjax.models.nasvit import backbone, stage_axes
from nasjax.models.talking_attention import (
    TalkingAttention,
    TransformerSizes,
    resize_positions,
)
from nasjax.spaces import make
from nasjax.spaces.hybrid import Stage
from nasjax.spaces.nasvit import nasvit, nasvit_paper
from nasjax.train.calibrate import calibrate_batch_stats

# Widths before a stage are those of the stage: shortcuts are identities in some architectures.
CONVOLUTIONS = Stage("mb1", (8, 16), (1, 3), (3, 5), (2, 3), squeeze=True, stride=2)
STAGES = (
    CONVOLUTIONS,
    Stage("mb2", (16, 24), (1, 2, 3), expansion=(2, 3), squeeze=True, stride=2, transformer=True),
)
PAPER = (
    CONVOLUTIONS,
    Stage(
        "mb2",
        (16, 24),
        (2, 3),
        stride=2,
        shortcut=False,
        transformer=True,
        ratio=(1, 2),
        windows=(1, 4),
    ),
)
SMALL: dict[str, Any] = {
    "first": (8, 16),
    "last": (16, 24),
    "resolutions": (16, 28),
    "num_classes": 5,
    "position_side": 4,
}
SPACES: dict[str, Callable[..., Supernet]] = {"nasvit": nasvit, "nasvit_paper": nasvit_paper}
TABLES = {"nasvit": STAGES, "nasvit_paper": PAPER}
IMAGES = np.random.default_rng(9).standard_normal((2, 2, 20, 20, 3)).astype(np.float32)
PUSH = np.random.default_rng(1).standard_normal((2, 5)).astype(np.float32)


@functools.cache
def small(name: str = "nasvit", **options: Any) -> Supernet:
    """A small space; images have 20 x 20 pixels, and are resized."""
    return SPACES[name](**{"stages": TABLES[name], **SMALL, **options})


def randomised(net: Supernet) -> Any:
    """Every array random: scales away from one, the rest away from zero, or they test nothing."""
    rng = np.random.default_rng(0)

    def draw(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(shape.shape).astype(np.float32)
        return 1 + 0.3 * noise if path[-1].key == "scale" else 0.4 * noise

    return {"params": jax.tree.map_with_path(draw, net.shapes["params"])}


def with_statistics(net: Supernet) -> Any:
    """The random weights, and statistics as they begin."""
    ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), net.shapes[STATISTICS])
    return {**randomised(net), STATISTICS: ones}


class Program:
    """A super-network with random weights, compiled once for each combination of static options."""

    def __init__(self, name: str) -> None:
        self.net = small(name)
        self.weights = randomised(self.net)
        self.programs: dict[Any, Any] = {}
        self.superpose = jax.jit(self.net.superpose)

    def calibrated(self, arch: Any) -> Any:
        """Logits of the one-hot super-network, and its statistics, those of the images."""
        static = self.net.static(arch)
        if static not in self.programs:
            self.programs[static] = jax.jit(functools.partial(calibrated, self.net.maximal(arch)))
        given = {**self.weights, **self.net.empty_statistics}
        return self.programs[static](self.superpose(given, one_hot(self.net.space, arch)))


def calibrated(module: nn.Module, variables: Any) -> Any:
    """Logits of the first images with the statistics of all, and these statistics."""
    statistics = calibrate_batch_stats(module, variables, IMAGES)
    return module.apply({**variables, STATISTICS: statistics}, IMAGES[0]), statistics


@functools.cache
def program(name: str) -> Program:
    return Program(name)


def assert_same(got: Any, expected: Any, message: str = "") -> None:
    scale = float(np.max(np.abs(expected)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * scale, err_msg=message)


@pytest.mark.parametrize("name", ["nasvit", pytest.param("nasvit_paper", marks=pytest.mark.slow)])
def test_a_one_hot_super_network_is_the_extracted_network(name: str) -> None:
    """At every resolution and number of windows, with statistics calibrated for it."""
    net, outputs = program(name).net, []
    options = [net.space.choice(choice).options for choice in net.space.static]
    for seed, static in enumerate(list(zip(*options, strict=True)) * 4):
        drawn = architecture.sample(net.space, jax.random.key(seed))
        arch = {**drawn, **dict(zip(net.space.static, static, strict=True))}
        logits, statistics = program(name).calibrated(arch)
        outputs.append(np.asarray(logits))
        alone = net.extract({**program(name).weights, STATISTICS: statistics}, arch)
        network = net.network(arch)
        if seed:
            assert_same(logits, jax.jit(network.apply)(alone, IMAGES[0]), str(arch))
            continue
        own, calibration = jax.jit(functools.partial(calibrated, network))(alone)
        assert_same(logits, own, str(arch))
        for ours, theirs in zip(
            *map(jax.tree.leaves, (alone[STATISTICS], calibration)), strict=True
        ):
            assert_same(ours, theirs)
    assert len(program(name).programs) == len(outputs) / 4
    assert np.std(np.stack(outputs), axis=0).min() > 1e-3  # architectures do differ


def test_loops_compute_what_unrolled_layers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator layers run in a loop, which skips those beyond the depth in evaluation."""
    net = program("nasvit").net
    arch = {**architecture.largest(net.space), "mb1_depth": 1, "mb2_depth": 2}
    unrolled, statistics = program("nasvit").calibrated(arch)
    given = {**program("nasvit").weights, STATISTICS: statistics}
    mixed = program("nasvit").superpose(given, one_hot(net.space, arch))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    apply = functools.partial(net.maximal(arch).apply, {**mixed, STATISTICS: statistics})
    assert "cond[" in str(jax.make_jaxpr(apply)(IMAGES[0]))
    assert_same(jax.jit(apply)(IMAGES[0]), unrolled)


@pytest.mark.parametrize("name", SPACES)
def test_counts_are_those_of_the_extracted_network(name: str) -> None:
    net = small(name)
    for seed in range(3):
        arch = architecture.sample(net.space, jax.random.key(seed))
        image = jax.ShapeDtypeStruct((1, arch["resolution"], arch["resolution"], 3), jnp.float32)
        network = net.network(arch)
        variables = nn.unbox(jax.eval_shape(network.init, jax.random.key(0), image))
        cut = jax.eval_shape(lambda v, a=arch: net.extract(v, a), net.shapes)
        assert jax.tree.map(lambda x: x.shape, cut) == jax.tree.map(lambda x: x.shape, variables)
        params = sum(x.size for x in jax.tree.leaves(variables["params"]))
        macs = count_multiply_adds(network.apply, variables, image)
        assert (net.count("params", arch), net.count("flops", arch)) == (params, macs)
        mixture = one_hot(net.space, arch)
        np.testing.assert_allclose(net.expect("params", mixture), params, rtol=1e-6)
        np.testing.assert_allclose(net.expect("flops", mixture), macs, rtol=1e-6)


def test_a_mixed_shortcut_is_the_mean_over_architectures() -> None:
    """Of identities where two widths are equal, and of convolutions where not."""
    net = small()
    weights = randomised(net)
    even = uniform(net.space)
    mixture = {**even, "first_width": jnp.array([0.25, 0.75]), "mb1_width": jnp.array([0.5, 0.5])}
    sizes, axes = net.module.stages[0].opening, stage_axes("mb1", "first_width").opening
    module = Shortcut(sizes.features, 1, sizes.shortcut, sizes.same, axes, weighed=True)
    x = np.random.default_rng(3).standard_normal((2, 3, 3, 16)).astype(np.float32)

    @jax.jit
    def run(mixture: Any) -> jax.Array:
        whole = net.superpose(weights, mixture)
        own = {c: whole[c]["mb1_opening"]["shortcut"] for c in ("params", "active")}
        return module.apply(own, x)

    mean = jnp.zeros((2, 3, 3, 16))
    for (i, inputs), (j, outputs) in itertools.product(enumerate((8, 16)), repeat=2):
        share = mixture["first_width"][i] * mixture["mb1_width"][j]
        arch = {**net.architecture("largest"), "first_width": inputs, "mb1_width": outputs}
        part = run(one_hot(net.space, arch))
        if inputs == outputs:
            np.testing.assert_array_equal(part[..., :inputs], x[..., :inputs])
        else:
            kernel = weights["params"]["mb1_opening"]["shortcut"]["conv"]["kernel"][0, 0]
            assert_same(part[..., :outputs], x[..., :inputs] @ kernel[:inputs, :outputs])
        assert not np.any(part[..., outputs:])
        mean += share * part
    assert_same(run(mixture), mean)


def test_mixtures_have_finite_gradients_that_reach_every_choice_and_weight() -> None:
    net, weights = small(), program("nasvit").weights
    arch = net.architecture("largest")
    module = net.maximal(arch)
    mixture = {**uniform(net.space), "resolution": one_hot(net.space, arch)["resolution"]}

    def loss(weights: Any, mixture: Any) -> jax.Array:
        given = net.superpose({**weights, **net.empty_statistics}, mixture)
        logits, _ = module.apply(given, IMAGES[0], train=True, mutable=[STATISTICS])
        return jnp.sum(logits * PUSH)

    by_weights, by_mixture = jax.jit(jax.grad(loss, argnums=(0, 1)))(weights, mixture)
    for path, gradient in jax.tree.leaves_with_path((by_weights, by_mixture)):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(gradient).all(), name
        if not name.endswith(("['talk_before']['bias']", "['key']['bias']")):  # unseen by a softmax
            assert np.max(np.abs(gradient)) > 1e-6, name


def test_rows_of_scaling_are_shared_by_resolutions_of_equal_remainders() -> None:
    net = nasvit()
    rows = {stage.name: stage.layer.rows for stage in net.module.stages[3:]}
    # Remainders by 8: 0, 4, 0, 4 of 144, 196, 256, 324 tokens; 4, 1, 0, 1 of 36, 49, 64, 81.
    assert rows == {"mb4": (4, 2), "mb5": (7, 3), "mb6": (6, 3), "mb7": (4, 2)}
    assert nasvit_paper().module.stages[3].layer.rows == (2, 1)
    plain = small(scaling=None).module.stages[-1].layer
    assert plain.rows == () and small(scaling="none").module.stages[-1].layer.rows == (1, 1)


def test_blocks_beyond_the_depth_write_nothing_without_scaling_either() -> None:
    net = small(scaling=None, resolutions=None, image_size=8)
    arch = {**net.architecture("largest"), "mb1_depth": 1, "mb2_depth": 2, "mb2_width": 16}
    variables, images = with_statistics(net), IMAGES[0][:, :8, :8]
    superposed = net.superpose(variables, one_hot(net.space, arch))
    alone = net.extract(variables, arch)
    assert {"mb2_0"} == {name for name in alone["params"] if name.startswith(("mb1_0", "mb2_"))} - {
        "mb2_opening"
    }
    inside = jax.jit(net.maximal(arch).apply)(superposed, images)
    assert_same(inside, jax.jit(net.network(arch).apply)(alone, images))


def test_features_of_images_of_any_size() -> None:
    net = small(resolutions=None, image_size=32)
    arch = {**net.architecture("largest"), "mb2_width": 16}
    variables = jax.eval_shape(lambda v: net.extract(v, arch), net.shapes)
    features = functools.partial(net.network(arch).apply, method="features")
    maps = jax.eval_shape(features, variables, jnp.zeros((2, 30, 17, 3)))
    sizes = {"first": (15, 9, 16), "mb1": (8, 5, 16), "mb2": (4, 3, 16)}
    assert {name: y.shape for name, y in maps.items()} == {n: (2, *s) for n, s in sizes.items()}


def test_maps_larger_than_the_table_of_positions() -> None:
    net = small(resolutions=None, image_size=32)
    arch = net.architecture("largest")
    network, variables = net.network(arch), net.extract(with_statistics(net), arch)
    large = jax.ShapeDtypeStruct((1, 40, 44, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"attention over 5 x 6 tokens, .* covers 4 x 4: give"):
        jax.eval_shape(network.apply, variables, large)
    resized = resize_positions(variables, 6)
    (stage,) = (s for s in network.stages if s.name == "mb2")
    covering = dataclasses.replace(stage.layer, position_side=6)
    stages = (*network.stages[:-1], dataclasses.replace(stage, layer=covering))
    for module, given in (
        (network.clone(stages=stages), resized),
        (backbone(network, 3), variables),
    ):
        assert jax.eval_shape(module.apply, given, large).shape == (1, 5)
    sized = small().network(small().architecture("largest"))
    maps = jax.eval_shape(
        functools.partial(backbone(sized, 2).apply, method="features"), variables, large
    )
    assert maps["mb2"].shape == (1, 5, 6, 24)


def attend(sizes: TransformerSizes, variables: Any, x: Any) -> jax.Array:
    return jax.jit(TalkingAttention(sizes).apply)(variables, x)


def test_windows_are_attention_within_them() -> None:
    """Attention within 4 windows is global attention on each quarter of the map."""
    whole = TransformerSizes(16, 16, position_side=4)
    x = np.random.default_rng(2).standard_normal((2, 6, 4, 16)).astype(np.float32)
    init = jax.jit(TalkingAttention(whole).init)
    variables = nn.unbox(init(jax.random.key(0), x[:, :4]))
    values = variables["params"]["value_conv"]
    values["kernel"] = jnp.zeros((3, 3, 1, 64)).at[1, 1].set(1.0)  # which would cross windows
    parts = [[attend(whole, variables, x[:, i : i + 3, j : j + 2]) for j in (0, 2)] for i in (0, 3)]
    joined = jnp.concatenate([jnp.concatenate(row, 2) for row in parts], 1)
    quarters = dataclasses.replace(whole, windows=4)
    assert_same(attend(quarters, variables, x), joined)
    # Where the last windows are smaller, what fills them up takes no part.
    sized = attend(dataclasses.replace(whole, window_size=4), variables, x[:, :5])
    assert_same(sized[:, :3], attend(whole, variables, x[:, :3]))
    assert_same(sized[:, 3:], attend(whole, variables, x[:, 3:5]))


def test_the_published_spaces() -> None:
    released, printed = make("nasvit"), make("nasvit_paper")
    assert released.space.size == 48_157_949_952
    assert released.count("flops", released.architecture("smallest")) == 189_789_040
    assert released.count("flops", released.architecture("largest")) == 1_881_708_502
    assert (
        set(released.published) == set(printed.published) == {f"NASViT-A{i}" for i in range(1, 5)}
    )
    for net in (released, printed):
        assert net.space.static[0] == "resolution"
        for name in net.published:
            assert net.architecture(name) == net.published[name]
    assert not small().published
    assert printed.space.static == ("resolution", "mb4_windows")
    row = {"name": "mb1", "width": [8, 16], "depth": [1, 2]}  # as configurations write it
    assert nasvit([row], **SMALL).space.size == 2**5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": "layer"}, "scaling='layer' is unknown; depth, width, none or None"),
        ({"stages": ()}, "the stages are called \\[\\]; one at least"),
        ({"stages": (STAGES[0], STAGES[0])}, "each by a name of its own"),
        ({"stages": ({"widht": (8,)},)}, "no field 'widht'; did you mean 'width'"),
        ({"stages": ({"name": "a", "width": (8,)},)}, "lacks its depth; give it"),
        ({"first": ()}, "first_width has the options \\(\\); one at least"),
        ({"last": (0, 8)}, "numbers from 1 were expected"),
        ({"resolutions": None}, "neither a resolution nor an image_size"),
        ({"resolutions": (80,)}, "mb2 has maps with a side of 10, .* give position_side=10"),
        ({"stages": (Stage("a", (8,), (1,), stride=3),)}, "the stride 3; 1 or 2"),
        ({"stages": (Stage("a", (8,), (1,), kernel=(4,)),)}, "odd sides"),
        ({"stages": (Stage("a", (12,), (2,), transformer=True),)}, "12 channels, .* heads of 8"),
        (
            {"stages": (Stage("a", (8,), (2,), transformer=True, windows=(2,)),)},
            "2 windows; a square number",
        ),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        nasvit(**{"stages": STAGES, **SMALL, **options})
