"""Attention by itself: relative positions, and flash attention as far as it can be told here."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax import relax, spaces
from nasjax.core import architecture
from nasjax.core.errors import NasjaxError, SpaceError
from nasjax.models import attention
from nasjax.models.attention import Attention, RelativePosition, attend, token_places
from nasjax.train import steps
from tests.models.test_vit import draw, randomised


def rows_read(grid: tuple[int, int], reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the vertical and of the horizontal table that each pair of tokens reads."""
    rows = np.arange(2.0 * reach + 2)[:, None]
    tables = {"vertical": rows, "horizontal": 100 * rows}
    module = RelativePosition(head_dim=1, reach=reach)
    vectors = module.apply({"params": tables}, grid)
    sums = np.einsum("qpd,kp->qkd", vectors, token_places(grid))[..., 0]
    return np.mod(sums, 100), sums // 100


def test_rows_of_relative_positions_by_hand() -> None:
    # Tokens: the class token, then the patches 0 1 2 of the first row and 3 4 5 of the second.
    down, across = rows_read((2, 3), reach=1)
    near = [[0] * 7, *[[0, 2, 2, 2, 3, 3, 3]] * 3, *[[0, 1, 1, 1, 2, 2, 2]] * 3]
    np.testing.assert_array_equal(down, near)
    row = [[2, 3, 3], [1, 2, 3], [1, 1, 2]]  # from column 0, 1, 2; two columns away counts as one
    np.testing.assert_array_equal(across, [[0] * 7, *[[0, *r, *r] for r in row * 2]])
    far = [[15, 16, 17], [14, 15, 16], [13, 14, 15]]
    np.testing.assert_array_equal(rows_read((1, 3), reach=14)[1][1:, 1:], far)
    np.testing.assert_array_equal(rows_read((3, 1), reach=14)[0][1:, 1:], far)


def test_relative_positions_are_added_to_keys_and_values() -> None:
    model = Attention(num_heads=2, head_dim=4, features=5, reach=1)
    x = draw(3, 7, 6)
    shape = jax.eval_shape(lambda: model.init(jax.random.key(0), x, (2, 3)))
    params = randomised(nn.unbox(shape), 0.5)["params"]
    got = model.apply({"params": params}, x, (2, 3))

    p = jax.tree.map(np.float64, params)
    qkv = np.einsum("bne,ejw->bnjw", x, p["qkv"]["kernel"]) + p["qkv"]["bias"].reshape(3, 8)
    q, k, v = (qkv[:, :, i].reshape(3, 7, 2, 4) for i in range(3))
    mixed = np.zeros((3, 7, 2, 4))
    down, across = (rows.astype(int) for rows in rows_read((2, 3), 1))
    tables = [
        p[n]["vertical"][down] + p[n]["horizontal"][across]
        for n in ("relative_key", "relative_value")
    ]
    for i in range(7):
        logits = np.einsum("bhd,bkhd->bhk", q[:, i], k + tables[0][i][None, :, None]) / 2
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        mixed[:, i] = np.einsum("bhk,bkhd->bhd", weights, v + tables[1][i][None, :, None])
    expected = mixed.reshape(3, 7, 8) @ p["proj"]["kernel"] + p["proj"]["bias"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_no_reach_is_tables_of_zeros(bias: bool, scale: float | None) -> None:
    fields: dict[str, Any] = {"num_heads": 2, "head_dim": 4, "features": 5, "qkv_bias": bias}
    far, none = (Attention(**fields, scale=scale, reach=r) for r in (2, 0))
    x = draw(3, 7, 6)
    shape = jax.eval_shape(lambda: far.init(jax.random.key(0), x, (2, 3)))
    params = randomised(nn.unbox(shape), 0.5)["params"]
    params |= {
        n: jax.tree.map(np.zeros_like, t) for n, t in params.items() if n.startswith("relative")
    }
    assert ("bias" in params["qkv"]) == bias
    plain = {n: t for n, t in params.items() if not n.startswith("relative")}
    np.testing.assert_allclose(
        far.apply({"params": params}, x, (2, 3)),
        none.apply({"params": plain}, x, (2, 3)),
        rtol=1e-5,
        atol=1e-6,
    )


SPACES: dict[str, dict[str, Any]] = {
    "autoformer": {
        "variant": "T", "options": {"embed_dim": (24, 48), "depth": (1, 2)}, "patch_size": 8,
    },
    "pit": {"variant": "T"},
    "vitas": {"level": "arch", "size": "tiny", "depth": 2, "patch_sizes": (16,)},
}  # fmt: skip


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """A GPU whose cuDNN is XLA: the shapes and options of what is asked of it."""
    asked, by_xla = [], jax.nn.dot_product_attention

    def by_cudnn(query: jax.Array, *rest: jax.Array, **options: Any) -> jax.Array:
        if options.get("implementation") == "cudnn":
            asked.append((query.shape, dict(options)))
            options["implementation"] = "xla"
        return by_xla(query, *rest, **options)

    monkeypatch.setattr(attention.jax.nn, "dot_product_attention", by_cudnn)
    monkeypatch.setattr(attention.jax, "default_backend", lambda: "gpu")
    return asked


@pytest.mark.parametrize("tokens", [6, 7])
@pytest.mark.parametrize("scale", [0.7, np.float32(0.7)], ids=["static", "traced"])
def test_flash_attention_gets_what_it_takes(flash: Any, tokens: int, scale: Any) -> None:
    operands = [draw(2, tokens, 3, 5, seed=i) for i in range(3)]
    weigh = draw(2, tokens, 3, 5, seed=3)

    def loss(backend: str, operands: Any, scale: Any) -> jax.Array:
        return jnp.sum(attend(*operands, scale, backend) * weigh)

    results = []
    for backend in ("xla", "cudnn"):
        value = functools.partial(loss, backend)
        if isinstance(scale, float):
            value = functools.partial(value, scale=scale)
            results.append(jax.jit(jax.value_and_grad(value))(operands))
        else:
            results.append(jax.jit(jax.value_and_grad(value))(operands, jnp.asarray(scale)))
    ((shape, options),) = flash
    assert shape == (2, tokens + tokens % 2, 3, 8)  # even, and a multiple of eight
    assert isinstance(options["scale"], float)
    assert (options["key_value_seq_lengths"] is None) == (tokens == 6)
    for x, y in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SPACES)
def test_a_super_network_is_the_same_function(flash: Any, name: str) -> None:
    options: dict[str, Any] = {**SPACES[name], "image_size": 32, "num_classes": 5}
    plain, fused = (
        spaces.make(name, **options, attention_backend=backend) for backend in ("xla", "cudnn")
    )
    variables = {"params": randomised(plain.shapes["params"], 0.1)}
    image = draw(1, *plain.input_shape)
    mixture = relax.darts().mean(relax.init_alphas(plain.space, jax.random.key(0)))

    def loss(supernet: Any, variables: Any) -> jax.Array:
        masked = supernet.masked(variables, mixture)
        return jnp.sum(supernet.module.apply(masked, image) ** 2)

    results = [
        jax.jit(jax.value_and_grad(functools.partial(loss, s)))(variables) for s in (plain, fused)
    ]
    assert flash and all(shape[1] % 2 == shape[3] % 8 == 0 for shape, _ in flash)
    asked = len(flash)
    for x, y in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * max(1.0, np.max(np.abs(x))))
    arch = architecture.largest(fused.space)
    shapes = jax.eval_shape(fused.network(arch).init, jax.random.key(0), image)
    assert shapes and len(flash) > asked  # an extracted network has it too


def test_what_flash_attention_cannot_do_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    operand = draw(2, 6, 3, 8)
    with pytest.raises(SpaceError, match="attention_backend is 'fast'"):
        attend(operand, operand, operand, 1.0, "fast")
    with pytest.raises(SpaceError, match="needs an NVIDIA GPU, and there is only a cpu here; set"):
        attend(operand, operand, operand, 1.0, "cudnn")
    monkeypatch.setattr(attention.jax, "default_backend", lambda: "gpu")
    with pytest.raises(SpaceError, match=r'cannot do this: .* Set space.dtype="bfloat16" if'):
        attend(operand, operand, operand, 1.0, "cudnn")  # JAX finds no cuDNN
    supernet = spaces.make("pit", variant="T", image_size=32, attention_backend="cudnn")
    given: Any = (supernet, relax.darts(), None, None, None)
    with pytest.raises(NasjaxError, match=r"second_order differentiates twice.*set space\.att"):
        steps.bilevel_step(*given, second_order=True)
    steps.bilevel_step(*given)
