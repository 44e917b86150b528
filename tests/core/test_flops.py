"""The counter of multiply-adds against closed forms."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from nasjax.core.flops import count_multiply_adds as count
from nasjax.models.layers import layer_norm


def shape(*size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(size, jnp.float32)


@pytest.mark.parametrize(
    ("spec", "left", "right", "expected"),
    [
        ("ij,jk->ik", (2, 3), (3, 5), 30),
        ("i,i->", (7,), (7,), 7),
        ("bij,bjk->bik", (4, 2, 3), (4, 3, 5), 120),
        ("bqhd,bkhd->bhqk", (2, 5, 3, 4), (2, 7, 3, 4), 2 * 3 * 5 * 7 * 4),
        ("abc,bcd->ad", (2, 3, 4), (3, 4, 5), 2 * 3 * 4 * 5),
        ("i,j->ij", (3,), (4,), 12),
    ],
)
def test_contractions(spec: str, left: Any, right: Any, expected: int) -> None:
    assert count(lambda a, b: jnp.einsum(spec, a, b), shape(*left), shape(*right)) == expected


@pytest.mark.parametrize(
    ("module", "image", "expected"),
    [
        (nn.Conv(8, (3, 3)), (2, 6, 6, 4), 2 * 36 * 8 * 9 * 4),
        (nn.Conv(8, (3, 3), padding="VALID"), (1, 6, 6, 4), 16 * 8 * 9 * 4),
        (nn.Conv(8, (3, 3), strides=2), (1, 6, 6, 4), 9 * 8 * 9 * 4),
        (nn.Conv(8, (3, 3), feature_group_count=2), (1, 6, 6, 4), 36 * 8 * 9 * 2),
        (nn.Conv(4, (5, 3), feature_group_count=4), (1, 6, 6, 4), 36 * 4 * 15),
        (nn.Conv(8, (4,)), (1, 10, 3), 10 * 8 * 4 * 3),
    ],
    ids=["same", "valid", "strided", "grouped", "depthwise", "1-D"],
)
def test_convolutions(module: nn.Module, image: tuple[int, ...], expected: int) -> None:
    variables = jax.eval_shape(module.init, jax.random.key(0), shape(*image))
    assert count(module.apply, variables, shape(*image)) == expected


def test_loops_are_multiplied_out() -> None:
    def inner(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
        return x @ kernel, None

    def outer(x: jax.Array, kernels: jax.Array) -> jax.Array:
        return jax.lax.scan(inner, x, kernels)[0] @ kernels[0]

    def twice(x: jax.Array, kernels: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, _: (outer(c, kernels), None), x, None, length=2)[0]

    arguments = shape(2, 4), shape(5, 4, 4)
    assert count(outer, *arguments) == 6 * 2 * 16
    assert count(twice, *arguments) == 12 * 2 * 16


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.vmap, jax.named_call])
def test_wrappers_are_looked_into(wrap: Any) -> None:
    def function(x: jax.Array) -> jax.Array:
        return x.reshape(-1, 4) @ jnp.ones((4, 3))

    assert count(wrap(function), shape(2, 4)) == 2 * 12


def test_custom_gradients_are_looked_into() -> None:
    @jax.custom_vjp
    def function(x: jax.Array) -> jax.Array:
        return x @ x

    function.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))
    assert count(function, shape(3, 3)) == 27
    square = jax.custom_jvp(lambda x: x @ x)
    square.defjvp(lambda x, t: (x[0] @ x[0], t[0]))
    assert count(square, shape(3, 3)) == 27
    # Forward once, then two products in the gradient.
    assert count(jax.grad(lambda x: jnp.sum(function(x))), shape(3, 3)) == 3 * 27


def test_other_operations_are_free() -> None:
    assert count(lambda x: jnp.sum(jnp.exp(x) * x + jnp.cumsum(x)), shape(50)) == 0


def test_arguments_by_name_and_scanned_flax_layers() -> None:
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, None]:
            return nn.Dense(6, use_bias=False)(x), None

    model = nn.scan(
        nn.remat(Layer, static_argnums=(2,)),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=3,
    )()
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, True), shape(2, 6))
    assert count(lambda v, *, x: model.apply(v, x, True)[0], variables, x=shape(2, 6)) == 3 * 72


def test_of_branches_the_dearest_counts_and_of_platforms_the_default() -> None:
    def cheap(a: jax.Array, b: jax.Array) -> jax.Array:
        return a @ b

    def dear(a: jax.Array, b: jax.Array) -> jax.Array:
        return (a @ b) @ b

    square = (shape(3, 3), shape(3, 3))
    chosen = lambda a, b: jax.lax.cond(a[0, 0] > 0, cheap, dear, a, b)  # noqa: E731
    assert count(chosen, *square) == 2 * 27
    written = lambda a, b: jax.lax.platform_dependent(a, b, cpu=dear, default=cheap)  # noqa: E731
    assert count(written, *square) == 27


def test_the_means_of_a_normalisation_are_not_counted() -> None:
    x, scale = jnp.ones((2, 5, 8)), jnp.ones(8)

    def loss(x: jax.Array, active: jax.Array | None) -> jax.Array:
        return jnp.sum(layer_norm(x, scale, scale, active, 1e-5))

    for active in (None, jnp.linspace(0.0, 1.0, 8)):
        assert count(loss, x, active) == 0
        assert count(jax.grad(loss), x, active) == 0
