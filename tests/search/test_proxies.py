"""Proxies: the same through a masked super-network and its extracted network, and as defined."""

import dataclasses
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax import search, spaces
from nasjax.core import architecture
from nasjax.core.mixture import one_hot
from nasjax.core.program import Program
from nasjax.core.supernet import Supernet
from nasjax.search import SearchError, proxies, scoring
from nasjax.search.proxies.nuclear import by_polar_factor, by_singular_values
from nasjax.search.scoring import Scorer
from nasjax.train.sharding import make_mesh

IMAGES = np.random.default_rng(0).standard_normal((6, 8, 8, 1)).astype(np.float32)
LABELS = np.arange(6) % 3
SMALL: dict[str, Any] = {"num_classes": 3, "channels": 1, "image_size": 8}
EVERY = {
    "dss": proxies.DSS(),
    "snip": proxies.snip(),
    "grasp": proxies.grasp(),
    "naswot": proxies.naswot(),
    "ntk": proxies.ntk(),
}
# Differentiated twice, or example by example: these take longest to compile.
SLOW = ("grasp", "ntk")


def transformer() -> Supernet:
    options = {
        "embed_dim": (8, 12),
        "depth": (1, 3),
        "num_heads": (1, 2),
        "mlp_ratio": (1.0, 1.5),
    }
    return spaces.vision_transformer(options, patch_size=4, head_dim=4, reach=2, **SMALL)


def pooled() -> Supernet:
    options = {
        "base_dim": (2, 3),
        "mlp_ratio": (1, 2),
        "heads_0": (1, 2),
        "heads_1": (2, 4),
        "heads_2": (4,),
        "depth_0": (1, 2),
        "depth_1": (1,),
        "depth_2": (1, 2),
    }
    return spaces.pit(options=options, patch_size=4, stride=2, **SMALL)


def private() -> Supernet:
    return spaces.vitas(
        patch_sizes=(4,),
        heads=(1, 2),
        ratios=(0.5, 1.0),
        embed_max=8,
        attention_max=24,
        mlp_max=8,
        depth=3,
        **SMALL,
    )


MADE = {"transformer": transformer, "pit": pooled, "vitas": private}


@functools.cache
def made(name: str) -> tuple[Supernet, Any]:
    """A super-network and random parameters, none of them at a special value."""
    net, rng = MADE[name](), np.random.default_rng(1)

    def draw(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(shape.shape).astype(np.float32)
        return 1 + 0.2 * noise if path[-1].key == "scale" else 0.4 * noise

    return net, {"params": jax.tree.map_with_path(draw, net.shapes["params"])}


def batch() -> dict[str, jax.Array]:
    return {"image": jnp.asarray(IMAGES), "label": jnp.asarray(LABELS)}


def archs(net: Supernet, count: int = 2) -> list[dict[str, Any]]:
    return [architecture.sample(net.space, jax.random.key(i)) for i in range(count)]


@pytest.mark.parametrize(
    "name", ["transformer", *(pytest.param(n, marks=pytest.mark.slow) for n in ("pit", "vitas"))]
)
def test_inside_a_super_network_or_alone(name: str) -> None:
    net, variables = made(name)
    chosen = {n: p for n, p in EVERY.items() if name == "transformer" or n not in SLOW}

    known = proxies.DSS().prepared(net, variables, archs(net)[0])
    assert known.norms  # as a search has it
    scored = {**chosen, "dss": known}
    inside = Program(lambda m: {n: p(net, variables, m, batch()) for n, p in scored.items()})
    different = []
    for number, arch in enumerate(archs(net)):
        found = inside(one_hot(net.space, arch))
        module, own = net.network(arch), net.extract(variables, arch)
        compared = {n: p for n, p in chosen.items() if not number or n not in SLOW}
        alone = jax.jit(
            lambda own, module=module, compared=compared: {
                n: p(module, own, None, batch()) for n, p in compared.items()
            }
        )(own)
        for proxy in compared:
            (total, layers), (expected, parts) = found[proxy], alone[proxy]
            np.testing.assert_allclose(total, expected, rtol=1e-3, err_msg=f"{proxy} {arch}")
            beyond = {n: float(v) for n, v in layers.items() if n not in parts}
            assert set(parts) <= set(layers) and not any(beyond.values()), beyond
            scale = max(map(abs, map(float, parts.values())), default=0.0)
            for layer, value in parts.items():
                np.testing.assert_allclose(
                    layers[layer], value, rtol=1e-3, atol=1e-5 * scale, err_msg=f"{proxy} {layer}"
                )
        different.append([float(total) for total, _ in found.values()])
    assert inside.compiles == 1  # one program for all architectures
    assert np.ptp(np.array(different), axis=0).min() > 0


def test_dss_is_what_the_paper_writes() -> None:
    """Equations 3 to 6, with singular values and gradients of an extracted network."""
    net, variables = made("transformer")
    arch = net.architecture("largest")
    module = net.network(arch)
    own = jax.tree.map(jnp.abs, net.extract(variables, arch)["params"])

    def loss(params: Any) -> jax.Array:
        return jnp.sum(module.apply({"params": params}, jnp.ones((1, 8, 8, 1))))

    slopes, expected = jax.jit(jax.grad(loss))(own), 0.0
    for i in range(arch["depth"]):
        weights, gradients = own[f"blocks_{i}"], slopes[f"blocks_{i}"]
        for layer in ("qkv", "proj"):
            pair = (weights["attention"][layer]["kernel"], gradients["attention"][layer]["kernel"])
            norms = [
                np.linalg.svd(np.reshape(a, (a.shape[0], -1)), compute_uv=False).sum() for a in pair
            ]
            expected += norms[0] * norms[1]
        for layer in ("fc1", "fc2"):
            expected += np.abs(weights[layer]["kernel"] * gradients[layer]["kernel"]).sum()
    total, layers = jax.jit(lambda v: proxies.DSS()(net, v, arch, batch()))(variables)
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    np.testing.assert_allclose(sum(layers.values()), total, rtol=1e-6)
    released, parts = jax.jit(lambda v: proxies.DSS("released")(net, v, arch, batch()))(variables)
    assert not any("qkv" in n for n in parts) and "head" in parts and released != total


class Rectified(nn.Module):
    """Two layers of rectifiers and a head."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = images.reshape(images.shape[0], -1)
        for i in (1, 2):
            x = nn.relu(nn.Dense(5, name=f"hidden_{i}")(x))
        return nn.Dense(3, name="head")(x)


def test_activations_and_gradients_of_a_network_of_rectifiers() -> None:
    module = Rectified()
    given = {"image": batch()["image"][jnp.array([0, 1, 2, 2, 3])]}
    variables = module.init(jax.random.key(0), given["image"])
    x, codes = np.reshape(given["image"], (5, -1)), []
    for i in (1, 2):
        layer = variables["params"][f"hidden_{i}"]
        x = x @ layer["kernel"] + layer["bias"]
        codes.append(x > 0)
        x = np.maximum(x, 0)
    code = np.concatenate(codes, 1).astype(float)
    expected = code @ code.T + (1 - code) @ (1 - code).T
    kernel, units = proxies.activation_kernel(module, variables, None, given)
    np.testing.assert_array_equal(kernel, expected)
    assert int(units) == 10
    regions = len(np.unique(code, axis=0))
    assert regions <= 4  # one image is there twice
    assert int(proxies.linear_regions()(module, variables, None, given)[0]) == regions
    one, two = ({"image": given["image"][rows]} for rows in (jnp.array([0, 1]), jnp.array([0, 4])))
    for pair in (one, two):
        slope = jax.jit(jax.grad(lambda p, image: module.apply(p, image[None]).sum()))
        rows = [slope(variables, image)["params"] for image in pair["image"]]
        flat = np.stack([np.concatenate([r[n]["kernel"].ravel() for n in r]) for r in rows])
        np.testing.assert_allclose(
            proxies.tangent_kernel(module, variables, None, pair), flat @ flat.T, rtol=1e-4
        )


def test_nuclear_norms() -> None:
    rng = np.random.default_rng(2)
    rows, columns = (np.linalg.qr(rng.standard_normal((n, 24)))[0] for n in (24, 40))
    for decay in (0.0, 0.3, 1.0):  # to 1e-10 of the first
        values = np.exp(-decay * np.arange(24))
        matrix = jnp.asarray((rows * values) @ columns.T, jnp.float32)
        padded = jnp.pad(matrix, ((0, 5), (0, 3)))
        for norm in (by_singular_values, by_polar_factor):
            for given in (matrix, matrix.T, padded, 1e-6 * matrix):
                expected = values.sum() * (
                    1e-6 if given is not matrix and given.max() < 1e-5 else 1
                )
                np.testing.assert_allclose(norm(given), expected, rtol=1e-4)
    assert float(by_polar_factor(jnp.zeros((3, 4)))) == 0.0
    stack = jnp.asarray(rng.standard_normal((2, 3, 6, 5)), jnp.float32)
    np.testing.assert_allclose(by_polar_factor(stack), by_singular_values(stack), rtol=1e-4)


def test_lapack_is_given_one_matrix_at_a_time() -> None:
    """Of several batches at once, each would wait for threads that the others hold."""
    traced = jax.jit(jax.vmap(by_singular_values)).trace(jnp.ones((2, 3, 8, 4)))
    text = traced.lower(lowering_platforms=("cpu",)).as_text()
    calls = re.findall(r"@lapack_\w+.*?: \(tensor<([\dx]+)xf32>", text)
    assert calls and all(shape.count("x") == 1 for shape in calls), calls


@pytest.mark.parametrize("name", ["snip", pytest.param("grasp", marks=pytest.mark.slow)])
def test_saliency_is_the_same_in_parts_of_a_batch(name: str, monkeypatch: Any) -> None:
    net, variables = made("transformer")
    chance = np.random.default_rng(1)
    images = chance.standard_normal((16, 8, 8, 1)).astype(np.float32)
    given = {"image": images, "label": np.arange(16) % 3}
    mixture = one_hot(net.space, archs(net, 1)[0])

    def score() -> Any:
        return jax.jit(lambda m: EVERY[name](net, variables, m, given))(mixture)

    in_parts = score()
    monkeypatch.setattr("nasjax.search.proxies.saliency._TOGETHER", 16)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4), in_parts, score())


def test_scores_depend_on_neither_chunks_nor_devices_nor_widths() -> None:
    net, variables = made("transformer")
    wanted = archs(net, 7)
    used = {n: EVERY[n] for n in ("dss", "naswot")} | {"params": proxies.proxy("params")}
    found = []
    for mesh, chunk, narrow in ((None, 4, None), (make_mesh(), 1, True), (None, 3, True)):
        scorer = Scorer(net, variables, used, batch(), mesh, chunk, narrow)
        found.append(scorer.scores(wanted))
        assert set(scorer.compiles.values()) == {0, 1} and not scorer.compiles["params"]
    for name in used:
        for other in found[1:]:
            np.testing.assert_allclose(other[name], found[0][name], rtol=1e-4)
    assert found[0]["params"] == [net.count("params", arch) for arch in wanted]


def test_large_networks_are_scored_at_their_own_width() -> None:
    large = spaces.make("autoformer", variant="T")
    assert scoring.is_large(large) and not scoring.is_large(transformer())
    assert list(large.narrowed) == ["embed_dim"]
    assert not scoring.is_large(dataclasses.replace(large, costs={}))


def test_counts_are_baselines() -> None:
    net, variables = made("transformer")
    arch = archs(net)[0]
    for cost in ("params", "flops"):
        count = proxies.proxy(cost)
        total, parts = count(net, variables, arch, batch())
        assert total == net.count(cost, arch) and not parts
        own = net.extract(variables, arch)
        assert count(net.network(arch), own, None, batch())[0] == total
        expected, _ = count(net, variables, one_hot(net.space, arch), batch())
        np.testing.assert_allclose(expected, total, rtol=1e-6)


def test_of_a_module_as_init_gives_it() -> None:
    net, _ = made("transformer")
    module = net.network(net.architecture("smallest"))
    boxed = jax.eval_shape(module.init, jax.random.key(0), batch()["image"])
    assert jax.tree.structure(boxed) != jax.tree.structure(nn.unbox(boxed))
    for name in ("dss", "snip", "naswot"):
        score = jax.eval_shape(lambda v, name=name: EVERY[name](module, v, None, batch())[0], boxed)
        assert score.shape == ()


def test_what_is_wrong_is_said() -> None:
    net, variables = made("transformer")
    arch, one = net.architecture("smallest"), {"image": batch()["image"][:1]}
    with pytest.raises(SearchError, match=r"no proxy 'ds'; did you mean 'dss'"):
        proxies.proxy("ds")
    with pytest.raises(SearchError, match="proxy 'snip' cannot be made so"):
        proxies.proxy("snip", form="paper")
    with pytest.raises(SearchError, match="no form 'papers'; did you mean 'paper'"):
        proxies.proxy("dss", form="papers")
    with pytest.raises(SearchError, match=r"a batch of 1 tells nothing.*2 or more"):
        proxies.naswot()(net, variables, arch, one)
    with pytest.raises(SearchError, match="1 image has no condition; give 2 or more"):
        proxies.ntk()(net, variables, arch, one)
    with pytest.raises(SearchError, match="needs labels"):
        proxies.snip()(net, variables, arch, one)
    with pytest.raises(SearchError, match="Supernet came without one"):
        proxies.snip()(net, variables, None, batch())
    module = Rectified()
    own = module.init(jax.random.key(0), IMAGES)
    with pytest.raises(SearchError, match="Rectified has no attention; score it with snip"):
        proxies.DSS()(module, own, None, batch())
    layers = proxies.Layers(conv_inputs="nothing", conv_outputs="nothing")
    with pytest.raises(SearchError, match="not known which layers of Rectified are activated"):
        proxies.naswot(layers)(module, own, None, batch())
    assert search.SearchError is SearchError


def test_a_convolutional_super_network() -> None:
    net = spaces.make("toy_conv_macro", image_size=12, num_classes=3)
    variables = net.init(jax.random.key(0))
    images = np.random.default_rng(3).standard_normal((6, 12, 12, 3)).astype(np.float32)
    given = {"image": jnp.asarray(images), "label": batch()["label"]}
    arch = archs(net)[0]
    module, own = net.network(arch), net.extract(variables, arch)
    for name in ("snip", "naswot", "ntk"):
        inside, _ = jax.jit(lambda v, name=name: EVERY[name](net, v, arch, given))(variables)
        alone, _ = jax.jit(lambda v, name=name: EVERY[name](module, v, None, given))(own)
        np.testing.assert_allclose(inside, alone, rtol=1e-3, err_msg=name)
    with pytest.raises(SearchError, match="has no attention"):
        EVERY["dss"](net, variables, arch, given)
