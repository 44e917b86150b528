"""NASViT's tensors: names, rows of scaling tables, round trips and what is wrong with weights."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from nasjax.core.supernet import Supernet
from nasjax.interop import WeightsError, import_weights
from nasjax.interop.nasvit import export_weights, tensors
from nasjax.spaces import nasvit, vitas
from nasjax.spaces.hybrid import Stage

STAGES = (
    Stage("mb1", (8, 16), (1, 2), (3, 5)),
    Stage("mb2", (16, 24), (2, 4), (3,), (4, 6), squeeze=True, stride=2, transformer=True),
)


@functools.cache
def small(**options: Any) -> Supernet:
    sizes: dict[str, Any] = {"first": (8, 16), "last": (16,), "resolutions": (32, 40, 48)}
    return nasvit(STAGES, **{**sizes, "num_classes": 5, **options})


@functools.cache
def drawn() -> Any:
    rng = np.random.default_rng(0)
    shapes = {c: small().shapes[c] for c in ("params", "batch_stats")}
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)


def test_what_is_written_is_read_again() -> None:
    weights = export_weights(drawn(), small())
    for read in (import_weights(weights, small()), import_weights(weights, small(), strict=False)):
        assert jax.tree.structure(read) == jax.tree.structure(drawn())
        for ours, again in zip(jax.tree.leaves(drawn()), jax.tree.leaves(read), strict=True):
            np.testing.assert_array_equal(ours, again)


def test_blocks_are_numbered_through_the_stages() -> None:
    weights, params = export_weights(drawn(), small()), drawn()["params"]
    assert len(weights) == len(tensors(small()))
    numbers = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    assert numbers == {str(i) for i in range(6)}
    name = "mobile_inverted_conv.depth_conv.conv.conv.weight"
    own = params["mb2_opening"]["depthwise"]["kernel"]
    np.testing.assert_array_equal(weights[f"blocks.2.{name}"], own.transpose(3, 2, 0, 1))
    query = params["mb2"]["attention"]["query"]["kernel"][2]
    np.testing.assert_array_equal(weights["blocks.5.attn.q.linear.weight"], query.T)
    # Their second perceptron comes first.
    up = params["mb2"]["mlp_1"]["up"]["kernel"][0]
    np.testing.assert_array_equal(weights["blocks.3.mlp2.linear1.linear.weight"], up.T)


def test_scaling_is_by_depth_and_by_the_remainder_of_the_tokens() -> None:
    """Depths 2 and 4; 64, 100 and 144 tokens, whose remainders by 8 are 0, 4 and 0."""
    table = export_weights(drawn(), small())["blocks.4.rescale_mlp"]
    assert table.shape == (10, 8, 24)
    own = drawn()["params"]["mb2"]["scale_mlp"][1]
    np.testing.assert_array_equal(table[np.ix_((2, 4), (0, 4))], own)
    assert np.count_nonzero(table) == own.size


def test_tensors_that_nothing_uses_are_left_out() -> None:
    weights = export_weights(drawn(), small())
    weights["blocks.1.shortcut.conv.conv.weight"] = np.zeros((16, 16, 1, 1))
    weights["first_conv.bn.bn.num_batches_tracked"] = np.zeros(())
    import_weights(weights, small())
    weights["blocks.9.attn.q.linear.weight"] = np.zeros((24, 24))
    with pytest.raises(WeightsError, match=r"hold 'blocks.9.attn.q.linear.weight', for which"):
        import_weights(weights, small())
    import_weights(weights, small(), strict=False)


def test_weights_that_do_not_fit() -> None:
    weights = export_weights(drawn(), small())
    with pytest.raises(WeightsError, match=r"'classifier.linear.linear.bias' has shape \(5,\)"):
        import_weights(weights, small(num_classes=7))
    lacking = {n: t for n, t in weights.items() if n != "blocks.3.rescale_attn"}
    with pytest.raises(WeightsError, match=r"the weights lack 'blocks.3.rescale_attn', which"):
        import_weights(lacking, small())
    with pytest.raises(WeightsError, match=r'have a scaling for each depth .* scaling="depth"'):
        import_weights(weights, small(scaling="width"))
    with pytest.raises(WeightsError, match=r"there are weights of nasjax.spaces.nasvit"):
        tensors(vitas(image_size=32, patch_sizes=(16,)))
