"""The PiT spaces: a one-hot super-network is the extracted network; counts; heads that divide."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core import architecture
from nasjax.core.errors import ArchitectureError, SpaceError
from nasjax.core.flops import count_multiply_adds
from nasjax.core.mixture import argmax, one_hot, uniform
from nasjax.core.program import Program
from nasjax.core.supernet import Supernet
from nasjax.interop import WeightsError
from nasjax.interop import pit as interop
from nasjax.models.pit import PiT
from nasjax.spaces.pit import OPTIONS, PUBLISHED, pit

SMALL: dict[str, Any] = {
    "base_dim": (2, 3),
    "mlp_ratio": (1, 2),
    "heads_0": (1, 2),
    "heads_1": (2, 4),
    "heads_2": (2, 4),
    "depth_0": (1, 2),
    "depth_1": (1,),
    "depth_2": (1, 2),
}
IMAGES = np.random.default_rng(9).standard_normal((2, 12, 12, 1)).astype(np.float32)
ARCH = {
    "base_dim": 2,
    "mlp_ratio": 2,
    "heads_0": 1,
    "heads_1": 2,
    "heads_2": 4,
    "depth_0": 1,
    "depth_1": 1,
    "depth_2": 2,
}


@functools.cache
def small() -> Supernet:
    return pit(options=SMALL, image_size=12, patch_size=4, stride=2, num_classes=3, channels=1)


@functools.cache
def variables() -> Any:
    rng = np.random.default_rng(0)

    def draw(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(shape.shape).astype(np.float32)
        return 1 + 0.3 * noise if path[-1].key == "scale" else 0.4 * noise

    return {"params": jax.tree.map_with_path(draw, small().shapes["params"])}


def test_a_one_hot_super_network_is_the_extracted_network() -> None:
    net, outputs = small(), []
    inside = Program(lambda mixture: net.module.apply(net.superpose(variables(), mixture), IMAGES))
    # Every growth of the width, at either pool.
    heads = [(1, 2, 2), (1, 2, 4), (1, 4, 4), (2, 2, 2), (2, 4, 4), (2, 2, 4)]
    for i, chosen in enumerate(heads):
        arch = architecture.sample(net.space, jax.random.key(i))
        arch |= {f"heads_{stage}": number for stage, number in enumerate(chosen)}
        own = net.extract(variables(), arch)
        expected = net.network(arch).apply(own, IMAGES) if i < 2 else None
        found = inside(one_hot(net.space, arch))
        outputs.append(np.asarray(found))
        assert net.count("params", arch) == sum(a.size for a in jax.tree.leaves(own))
        if expected is not None:
            scale = float(np.max(np.abs(expected)))
            np.testing.assert_allclose(
                found, expected, rtol=0, atol=1e-5 * scale, err_msg=f"{arch}"
            )
    assert inside.compiles == 1
    assert np.std(np.stack(outputs), axis=0).min() > 1e-3


def test_multiply_adds_are_those_of_the_network() -> None:
    net = small()
    for name in ("smallest", "largest", ARCH):
        arch = net.architecture(name)
        own = jax.eval_shape(lambda v, arch=arch: net.extract(v, arch), variables())
        image = jax.ShapeDtypeStruct((1, 12, 12, 1), jnp.float32)
        counted = count_multiply_adds(net.network(arch).apply, own, image)
        assert counted == net.count("flops", arch)


def test_heads_divide_those_of_the_next_stage() -> None:
    space = small().space
    chains = [(a, b, c) for a in (1, 2) for b in (2, 4) for c in (2, 4) if not c % b]
    assert space.size == 2 * 2 * len(chains) * 4
    drawn = [architecture.sample(space, jax.random.key(i)) for i in range(60)]
    seen = {tuple(arch[f"heads_{stage}"] for stage in range(3)) for arch in drawn}
    assert seen == set(chains)
    with pytest.raises(ArchitectureError, match="breaks the rule"):
        architecture.validate(space, {**ARCH, "heads_1": 4, "heads_2": 2})
    assert argmax(space, one_hot(space, ARCH)) == ARCH
    assert architecture.validate(space, argmax(space, uniform(space)))


@pytest.mark.parametrize("variant", OPTIONS)
def test_published_networks_lie_in_their_space(variant: str) -> None:
    net = pit(variant)
    for name, arch in PUBLISHED[variant].items():
        assert net.architecture(name) == arch
    assert net.module.widths[-1] == max(OPTIONS[variant]["base_dim"]) * max(
        OPTIONS[variant]["heads_2"]
    )
    assert not pit(variant, options={"mlp_ratio": (2,)}).published


def test_gradients_reach_every_choice() -> None:
    net = small()

    def loss(mixture: Any) -> jax.Array:
        logits = net.module.apply(net.superpose(variables(), mixture), IMAGES)
        return jnp.sum(jnp.square(logits))

    slopes = jax.jit(jax.grad(loss))(uniform(net.space))
    for name, options in SMALL.items():
        assert len(options) == 1 or np.ptp(slopes[name]) > 0, name


def test_weights_go_and_come_back() -> None:
    net = small()
    own = net.extract(variables(), ARCH)
    tensors = interop.export_weights(own, net)
    assert tensors["transformers.2.blocks.1.attn.qkv.weight"].shape == (24, 8)
    assert tensors["pools.1.conv.weight"].shape == (8, 1, 3, 3)
    back = interop.import_weights(tensors, net, ARCH)
    jax.tree.map(np.testing.assert_array_equal, back, own)
    maximal = interop.import_weights(interop.export_weights(variables(), net), net)
    jax.tree.map(np.testing.assert_array_equal, maximal, variables())
    with pytest.raises(WeightsError, match=r"the weights lack 'transformers.0.blocks.1"):
        interop.import_weights(tensors, net, {**ARCH, "depth_0": 2})
    with pytest.raises(WeightsError, match=r"hold 'transformers.2.blocks.1.*no place"):
        interop.import_weights(tensors, net, {**ARCH, "depth_2": 1})
    with pytest.raises(WeightsError, match=r"has shape .* give the architecture"):
        interop.import_weights(tensors, net, {**ARCH, "mlp_ratio": 1})


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(SpaceError, match="no PiT space 'B'"):
        pit("B")
    with pytest.raises(SpaceError, match="'heads' is no choice here; did you mean"):
        pit(options={"heads": (2,)})
    with pytest.raises(SpaceError, match="images of 8 pixels are smaller than a patch of 16"):
        pit(image_size=8)
    with pytest.raises(SpaceError, match="none divide one another"):
        pit(options={"heads_0": (3,), "heads_1": (4,)})
    module = PiT(3, (2, 3, 2), (1, 1, 1), (1, 1, 1), (2, 2, 2), patch_size=4, stride=2)
    with pytest.raises(ValueError, match="3 channels cannot follow one of 2"):
        module.init(jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match="square images, no smaller than a patch"):
        module.init(jax.random.key(0), IMAGES[:, :6])
