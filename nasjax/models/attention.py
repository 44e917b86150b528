"""Self-attention with scaled dot products, and AutoFormer's relative positions in it.

Source: Chen et al., "AutoFormer: Searching Transformers for Visual Recognition" (ICCV 2021), which
clips and sums vertical and horizontal distances as Shaw et al. 2018 do those along one direction.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core.errors import SpaceError
from nasjax.models.layers import (
    Dtype,
    Initializer,
    Linear,
    attention_map,
    kept,
    named,
    truncated_normal,
)

Scale = float | jax.Array

_CUDNN_STEP = 8  # cuDNN's flash attention takes heads of a multiple of so many channels


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, scale: Scale, backend: str = "xla"
) -> jax.Array:
    """``softmax(scale * query @ key.T) @ value`` in every head.

    Args:
      query: ``(batch, tokens, heads, head_dim)``.
      key: likewise.
      value: likewise.
      scale: factor of the logits, which may be traced.
      backend: ``"xla"``, or ``"cudnn"`` for flash attention, which never has the square of the
        tokens in memory. It has no second derivative.

    Returns:
      An array like ``query``.

    Raises:
      SpaceError: if ``backend`` is neither, or cuDNN cannot do this here.
    """
    if backend == "xla":
        factor: Any = scale  # a traced one will do
        return jax.nn.dot_product_attention(query, key, value, scale=factor)
    if backend != "cudnn":
        raise SpaceError(f'attention_backend is {backend!r}; "xla" or "cudnn" was expected.')
    if jax.default_backend() != "gpu":
        raise SpaceError(
            f'attention_backend is "cudnn", which needs an NVIDIA GPU, and there is only a '
            f'{jax.default_backend()} here; set space.attention_backend="xla".'
        )
    try:
        return _by_cudnn(query, key, value, scale)
    except (NotImplementedError, RuntimeError) as error:
        raise SpaceError(
            f'attention_backend is "cudnn", which cannot do this: {error} Set '
            'space.dtype="bfloat16" if it is not, or space.attention_backend="xla".'
        ) from error


def _by_cudnn(query: jax.Array, key: jax.Array, value: jax.Array, scale: Scale) -> jax.Array:
    batch, tokens, _, head_dim = query.shape
    if not isinstance(scale, float):  # as cuDNN needs it
        query, scale = query * scale.astype(query.dtype), 1.0
    # Of an odd number of tokens JAX has no gradients. One more is there and not attended to.
    odd = tokens % 2
    room = ((0, 0), (0, odd), (0, 0), (0, -head_dim % _CUDNN_STEP))
    query, key, value = (jnp.pad(x, room) for x in (query, key, value))
    lengths = jnp.full(batch, tokens, jnp.int32) if odd else None
    mixed = jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=scale,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return mixed[:, :tokens, :, :head_dim]


def attend_relatively(
    qkv: jax.Array,
    to_keys: jax.Array,
    to_values: jax.Array,
    places: jax.Array,
    scale: Scale,
    backend: str = "xla",
) -> jax.Array:
    """:func:`attend` with a vector of each pair of tokens added to its key and to its value.

    Args:
      qkv: queries, keys and values ``(batch, tokens, 3, heads, head_dim)``.
      to_keys: vectors of each query by the places of keys ``(tokens, places, head_dim)``, see
        :class:`RelativePosition`.
      to_values: likewise.
      places: of each token ``(tokens, places)``, see :func:`token_places`.
      scale: factor of the logits.
      backend: see :func:`attend`.

    Returns:
      An array ``(batch, tokens, heads, head_dim)``.

    Raises:
      SpaceError: see :func:`attend`.
    """
    if backend != "xla":
        # A key that says where it is, besides what, meets a query that knows what each place
        # adds to its logits; values that say so give the weight of each place. So this is plain
        # attention in heads of head_dim + places channels. (XLA would multiply for gradients of
        # the places that nobody asks for.)
        query, key, value = jnp.moveaxis(qkv, 2, 0)
        where = jnp.broadcast_to(places[:, None], (*query.shape[:-1], places.shape[-1]))
        added = jnp.einsum("bqhd,qpd->bqhp", query, to_keys)
        query, key, value = (
            jnp.concatenate(pair, -1) for pair in ((query, added), (key, where), (value, where))
        )
        mixed, weights = jnp.split(
            attend(query, key, value, scale, backend), [qkv.shape[-1]], axis=-1
        )
        return mixed + jnp.einsum("bqhp,qpd->bqhd", weights, to_values)
    # (batch, heads, tokens, head_dim) each; split, as an index would be padded on the way back.
    query, key, value = (x[0] for x in jnp.split(qkv.transpose(2, 0, 3, 1, 4), 3))
    query = query * scale
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, key)
    logits = logits + jnp.einsum("bhqd,qpd->bhqp", query, to_keys) @ places.T
    weights = attention_map(logits)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights, value)
    # (query, batch, heads, head_dim), which a CPU multiplies faster than what einsum would make.
    placed = jax.lax.dot_general(weights @ places, to_values, (((3,), (1,)), ((2,), (0,))))
    return jnp.moveaxis(mixed, 1, 2) + jnp.moveaxis(placed, 0, 1)


def relative_rows(places: int, reach: int) -> np.ndarray:
    """Rows of a table of relative positions for every pair (query, key) along one direction.

    Distances are clipped to ``reach``; row 0 is none of these, it belongs to the class token.

    Args:
      places: patches along the direction.
      reach: the greatest distance told apart, in patches.

    Returns:
      An int array ``(places, places)`` with entries in ``[1, 2 * reach + 1]``.
    """
    at = np.arange(places)
    return np.clip(at[None, :] - at[:, None], -reach, reach) + reach + 1


def token_places(grid: tuple[int, int]) -> np.ndarray:
    """Where each token is: ``(tokens, 2 + rows + columns)`` of zeros and ones.

    Ones are at 0 for the class token; at 1, at its row and at its column for a patch.
    """
    rows, columns = grid
    row, column = np.divmod(np.arange(rows * columns), columns)
    found = np.zeros((1 + rows * columns, 2 + rows + columns))
    found[0, 0] = 1
    found[1:, 1:] = np.column_stack((np.ones(row.size), np.eye(rows)[row], np.eye(columns)[column]))
    return found


class RelativePosition(nn.Module):
    """2-D relative positions: a pair of tokens has the sum of a vertical and a horizontal vector.

    A query meets few of them: one for each row, one for each column and one for the class token.
    Sums over keys are therefore sums over their places (:func:`token_places`), and no array of
    ``(tokens, tokens, head_dim)`` is needed.

    Attributes:
      head_dim: length of a vector; the tables are shared by all heads.
      reach: the greatest distance told apart, in patches.
      param_dtype: of the tables.
    """

    head_dim: int
    reach: int
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, grid: tuple[int, int]) -> jax.Array:
        """Vectors ``(tokens, 2 + rows + columns, head_dim)`` of each query by the places of keys.

        That of a pair is ``einsum("qpd,kp->qkd", vectors, token_places(grid))``.
        """
        shape = (2 * self.reach + 2, self.head_dim)
        init = named(truncated_normal, (None, "head_dim"))
        vertical = self.param("vertical", init, shape, self.param_dtype)
        horizontal = self.param("horizontal", init, shape, self.param_dtype)
        rows, columns = grid
        token = (vertical[0] + horizontal[0])[None, None]
        down = jnp.repeat(vertical[relative_rows(rows, self.reach)], columns, 0)
        across = jnp.tile(horizontal[relative_rows(columns, self.reach)], (rows, 1, 1))
        # A pair with the class token has the same vector whatever the other is.
        first = jnp.pad(jnp.repeat(token, 2, 1), ((0, 0), (0, rows + columns), (0, 0)))
        to_token = jnp.pad(token, ((0, 0), (0, 1), (0, 0))).repeat(rows * columns, 0)
        return jnp.concatenate((first, jnp.concatenate((to_token, down, across), 1)))


class Attention(nn.Module):
    """Multi-head self-attention with optional relative positions on keys and values.

    Attributes:
      num_heads: number of heads.
      head_dim: channels of a head; it does not change with the number of heads.
      features: channels of the result.
      reach: distance of relative positions in patches; 0 for none.
      qkv_bias: whether queries, keys and values have a bias.
      scale: factor of the logits [head_dim ** -0.5].
      backend: see :func:`attend` ["xla"].
      kernel_init: see :class:`~nasjax.models.layers.Linear`.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    num_heads: int
    head_dim: int
    features: int
    reach: int = 14
    qkv_bias: bool = True
    scale: float | None = None
    backend: str = "xla"
    kernel_init: Initializer | None = truncated_normal
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Attend within ``x (batch, 1 + patches, embed)``; ``grid`` is rows, columns of patches."""
        linear: Any = {
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
        }
        width = self.num_heads * self.head_dim
        qkv = Linear(
            (3, width),
            ("embed", None, "heads"),
            ("qkv_bias",),
            bias_shape=(3 * width,),
            use_bias=self.qkv_bias,
            name="qkv",
            **linear,
        )(x)
        qkv = qkv.reshape(*x.shape[:-1], 3, self.num_heads, self.head_dim)
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        if self.reach:
            shared: Any = {"head_dim": self.head_dim, "reach": self.reach}
            shared["param_dtype"] = self.param_dtype
            to_keys = RelativePosition(**shared, name="relative_key")(grid).astype(x.dtype)
            to_values = RelativePosition(**shared, name="relative_value")(grid).astype(x.dtype)
            places = jnp.asarray(token_places(grid), x.dtype)
            mixed = attend_relatively(qkv, to_keys, to_values, places, scale, self.backend)
        else:
            query, key, value = jnp.moveaxis(qkv, 2, 0)
            mixed = attend(query, key, value, scale, self.backend)
        return Linear(
            (self.features,), ("heads", "residual"), ("residual",), name="proj", **linear
        )(kept(mixed.reshape(*x.shape[:-1], width)))
