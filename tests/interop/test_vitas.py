"""Weights of ViTAS's networks, from and to PyTorch."""

from typing import Any

import jax
import numpy as np
import pytest

from nasjax.interop import WeightsError, import_weights
from nasjax.interop import vitas as interop
from nasjax.spaces import quickstart, vitas

SMALL: dict[str, Any] = {
    "image_size": 4,
    "num_classes": 5,
    "patch_sizes": (2, 4),
    "heads": (1, 2),
    "ratios": (0.5, 1.0),
    "embed_max": 10,
    "attention_max": 24,
    "mlp_max": 6,
    "depth": 3,
}
ARCH = {
    "patch_size": 4,
    "embed_ratio": 0.5,
    "heads": [2, 0, 1],
    "attn_ratio": [0.5, 0.5, 1.0],
    "mlp_ratio": [1.0, 0.5, 0.5],
}


def drawn(shapes: Any) -> Any:
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes)


def assert_equal(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("shared", ["v", "qk", "qkv"])
def test_a_super_network_comes_back(shared: str) -> None:
    net = vitas(shared=shared, **SMALL)
    variables = drawn({"params": net.shapes["params"]})
    tensors = interop.export_weights(variables, net)
    private, block = {"v": "qk1", "qk": "v1", "qkv": "qkv"}[shared], "net.backbone_Block_id_2.0"
    rows = {"v": 16, "qk": 8, "qkv": 24}[shared]
    assert tensors[f"{block}.attn.{private}.weight"].shape == (rows, 10)
    assert tensors["net.backbone_init_stem_Patch_init_0.1.cls_token"].shape == (1, 1, 10)
    assert_equal(import_weights(tensors, net), variables)


def test_wider_weights_are_cut_on_their_side() -> None:
    wide = vitas(**{**SMALL, "embed_max": 20})
    variables = drawn({"params": wide.shapes["params"]})
    tensors = interop.export_weights(variables, wide)
    for side, kept in (("left", slice(10)), ("right", slice(10, None))):
        found = import_weights(tensors, vitas(side=side, **SMALL))["params"]
        expected = variables["params"]["head"]["kernel"][kept]
        np.testing.assert_array_equal(found["head"]["kernel"], expected)


def test_a_network_on_its_own_has_one_matrix_of_queries_keys_and_values() -> None:
    net = vitas(**SMALL)
    variables = drawn(jax.eval_shape(lambda v: net.extract(v, ARCH), net.shapes))
    tensors = interop.export_weights(variables, net, ARCH)
    block, attention = "net.backbone_Block_Block_0.0", variables["params"]["blocks_0"]["block"]
    attention = attention["attention"]
    weight = tensors[f"{block}.attn.qkv.weight"]
    assert weight.shape == (12, 5)
    np.testing.assert_array_equal(weight[:8].T, attention["heads_2"]["query_key"]["kernel"])
    np.testing.assert_array_equal(weight[8:].T, attention["value"]["kernel"])
    assert not any("Block_Block_1" in name for name in tensors)
    assert sum(t.size for t in tensors.values()) == net.count("params", ARCH)
    assert_equal(interop.import_weights(tensors, net, ARCH), variables)


def test_the_released_scale() -> None:
    net = vitas(**SMALL)
    assert interop.released_network(net, ARCH).attention_scale == (2**-0.5, 1.0, 5**-0.5)
    assert net.network(ARCH).attention_scale is None
    with pytest.raises(WeightsError, match=r"super-network of nasjax\.spaces\.vitas was expected"):
        interop.released_network(quickstart(), "largest")


def test_what_is_wrong_is_named() -> None:
    net = vitas(**SMALL)
    variables = drawn(jax.eval_shape(lambda v: net.extract(v, ARCH), net.shapes))
    tensors = interop.export_weights(variables, net, ARCH)
    other = {**ARCH, "heads": [2, 1, 1]}
    with pytest.raises(WeightsError, match=r"lack 'net.backbone_Block_Block_1.0.*they hold"):
        interop.import_weights(tensors, net, other)
    other = {**ARCH, "heads": [2, 0, 0], "attn_ratio": [0.5, 0.5, 0.5]}
    with pytest.raises(WeightsError, match=r"hold 'net.backbone_Block_Block_2.0.*no place"):
        interop.import_weights(tensors, net, other)
    assert "blocks_2" not in interop.import_weights(tensors, net, other, strict=False)["params"]
    other = {**ARCH, "mlp_ratio": [0.5, 0.5, 0.5]}
    with pytest.raises(WeightsError, match=r"fc1.* has shape \(6,.*give the architecture"):
        interop.import_weights(tensors, net, other)
    with pytest.raises(WeightsError, match="the weights lack"):
        import_weights(tensors, net)
