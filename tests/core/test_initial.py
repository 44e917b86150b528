"""Variables are drawn as Flax draws them, from one trace and without running the network."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core import initial
from nasjax.core.errors import NasjaxError
from nasjax.core.initial import draw, draw_boxed, shapes_boxed
from nasjax.models.pit import PiT
from nasjax.models.vit import VisionTransformer

TRACED = []


class Repeated(nn.Module):
    widths: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        TRACED.append(self.widths)
        for width in self.widths:
            x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(width)(x))
        if train:
            x = nn.BatchNorm(use_running_average=False)(x)
        return x


class Centred(nn.Module):
    """Its bias begins at the mean of the first inputs."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x - self.param("centre", lambda _: jnp.mean(x))


class Free(nn.Module):
    """Its scale has the precision that JAX is set to."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("scale", lambda key: jax.random.normal(key, (2,)))


def test_shapes_of_equal_modules_are_worked_out_once() -> None:
    once, again = (shapes_boxed(Repeated((4, 3)), (2,)) for _ in range(2))
    assert once is again
    assert once["params"]["Dense_0"]["kernel"].shape == (2, 4)
    assert shapes_boxed(Repeated((4, 3)), (5,))["params"]["Dense_0"]["kernel"].shape == (5, 4)
    varying = Repeated(np.array([4, 3]))  # has no hash, and need not stay as it is
    assert shapes_boxed(varying, (2,))["params"]["Dense_1"]["kernel"].shape == (4, 3)
    varying.widths[1] = 6
    assert shapes_boxed(varying, (2,))["params"]["Dense_1"]["kernel"].shape == (4, 6)


def test_shapes_and_draws_take_one_trace(key: jax.Array) -> None:
    TRACED.clear()
    module = Repeated((7, 2))
    shapes_boxed(module, (2,))
    for seed in range(3):
        draw(Repeated((7, 2)), jax.random.fold_in(key, seed), (2,))
    assert TRACED == [(7, 2)]
    assert set(draw(module, key, (2,), train=True)) == {"params", "batch_stats"}


def test_a_trace_without_float64_does_not_serve_where_it_is_enabled(key: jax.Array) -> None:
    module = Free()
    for enabled, dtype in ((False, np.float32), (True, np.float64)):
        with jax.enable_x64(enabled):
            assert draw(module, key, (2,))["params"]["scale"].dtype == dtype


SIZES: dict[str, Any] = {"num_classes": 5, "depth": 2, "patch_size": 2, "head_dim": 2, "reach": 2}
MODULES: dict[str, tuple[nn.Module, tuple[int, ...], dict[str, Any]]] = {
    "dense": (Repeated((4, 3)), (2,), {"train": True}),
    "scanned": (VisionTransformer(embed_dim=6, num_heads=2, mlp_dim=4, **SIZES), (4, 4, 1), {}),
    "unrolled": (
        VisionTransformer(embed_dim=6, num_heads=(2, 1), mlp_dim=4, **SIZES), (4, 4, 1), {},
    ),
    "stages": (
        PiT(num_classes=5, base_dims=(2, 4), depth=(1, 2), heads=(2, 2), mlp_dim=(4, 8),
            patch_size=2, stride=2),
        (8, 8, 1), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_they_are_those_of_flax(name: str, key: jax.Array) -> None:
    module, shape, options = MODULES[name]
    keys = {"params": key, "dropout": jax.random.fold_in(key, 1)}
    expected = module.init(keys, jnp.zeros((1, *shape)), **options)
    got = draw_boxed(module, keys, shape, **options)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    within = jax.jit(lambda k: draw(module, k, shape, **options))(keys)
    alone = draw(module, key, shape, **options)
    for rest in (nn.unbox(got), within, alone):
        for x, y in zip(*map(jax.tree.leaves, (rest, nn.unbox(expected))), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_the_network_is_not_run(key: jax.Array) -> None:
    module, shape, options = MODULES["scanned"]
    keys = (("dropout", (), key.dtype), ("params", (), key.dtype))
    drawing, _ = initial._traced(module, shape, keys, options)
    assert "random_bits" in str(drawing) and "dot_general" not in str(drawing)


def test_what_depends_on_the_input_is_one_sentence(key: jax.Array) -> None:
    with pytest.raises(NasjaxError, match="variables of Centred depend on its input"):
        draw(Centred(), key, (3,))
