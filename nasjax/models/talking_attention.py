"""The transformer block of NASViT: talking heads, relative positions, switchable scaling.

Source: "NASViT: Neural Architecture Search for Efficient Vision Transformers with Gradient
Conflict-aware Supernet Training" (2022), section 3.2 and Appendix B. Tokens keep their places on
the map, ``(batch, height, width, channels)``. Heads lie one after another in the channels, 8 of
each in queries and keys, four times as many in values, so fewer heads are the leading channels.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from nasjax.models.convolution import DepthwiseConv
from nasjax.models.layers import (
    Dtype,
    LayerNorm,
    Linear,
    attention_map,
    kept,
    kernel_initializer,
    named,
    truncated_normal,
)
from nasjax.models.split_attention import Projection

_POSITIONS = "positions"  # what the tables of relative positions are called


class TransformerAxes(NamedTuple):
    """Names of the axes of a transformer block.

    Attributes:
      width: channels of the stream.
      heads: number of heads.
      value: channels of the values.
      mlp: hidden channels of the perceptrons.
      residual: channels of the stream that the block writes, none where it does not exist.
      switch: rows of the scaling tables, by the choice that switches them.
      resolution: further rows of the scaling tables, by the number of tokens.
    """

    width: str = "width"
    heads: str | None = None
    value: str | None = None
    mlp: str | None = None
    residual: str | None = None
    switch: str | None = None
    resolution: str | None = None


@dataclass(frozen=True)
class TransformerSizes:
    """Sizes of a transformer block, of a super-network the greatest, and which of its forms it has.

    Attributes:
      width: channels of the stream.
      mlp: hidden channels of the perceptrons.
      rows: rows of the scaling tables, by the choice that switches them and by the number of
        tokens; empty for a block without scaling.
      factor: scaling is multiplied by this over the active width; None for no such factor.
      head_dim: channels of a head's queries and keys.
      value_ratio: channels of values by those of queries.
      windows: groups of tokens that attention is within, a square number.
      window_size: the greatest side of the groups in tokens, whatever the map's size; it takes the
        place of ``windows``.
      position_side: side of the largest map, or window, that the table of positions covers.
      mlp_conv: whether the perceptrons have a 3 x 3 depthwise convolution.
      swish_first: whether swish comes before the projection of attention's output, not after it.
    """

    width: int
    mlp: int
    rows: tuple[int, ...] = (1, 1)
    factor: float | None = 8.0
    head_dim: int = 8
    value_ratio: int = 4
    windows: int = 1
    window_size: int | None = None
    position_side: int = 18
    mlp_conv: bool = False
    swish_first: bool = True


def relative_rows(height: int, width: int, side: int) -> np.ndarray:
    """The rows of a table of relative positions that the pairs of a map's tokens read.

    Args:
      height: of the map or window.
      width: of the map or window.
      side: of the largest map that the table covers.

    Returns:
      ``(height * width, height * width)`` rows, of queries and keys row by row, of a table with
      ``(2 side - 1) ** 2``.

    Raises:
      ValueError: if the map is larger than the table covers.
    """
    if max(height, width) > side:
        raise ValueError(
            f"attention over {height} x {width} tokens, but the table of relative positions covers "
            f"{side} x {side}: give windows of a size (window_size=7), or resize the tables "
            "(resize_positions) and build the network with that position_side."
        )
    y, x = (i.reshape(-1) for i in np.indices((height, width)))
    down, right = y[:, None] - y + side - 1, x[:, None] - x + side - 1
    return down * (2 * side - 1) + right


def resize_position_table(table: jax.Array, side: int) -> jax.Array:
    """A table of relative positions for maps of another size, by bicubic interpolation.

    Args:
      table: ``(..., (2 old - 1) ** 2, heads)``.
      side: of the largest map that the new table is to cover.

    Returns:
      ``(..., (2 side - 1) ** 2, heads)``.
    """
    *lead, rows, heads = table.shape
    old, new = math.isqrt(rows), 2 * side - 1
    square = table.reshape(*lead, old, old, heads)
    resized = resize_cubic(square, (new, new))
    return resized.reshape(*lead, new * new, heads)


def resize_positions(variables: Any, side: int) -> dict[str, Any]:
    """``variables`` of a network with all its tables of relative positions resized.

    See :func:`resize_position_table`; the network is to be built with ``position_side=side``.
    """
    flat = traverse_util.flatten_dict(dict(variables))
    resized = {
        path: resize_position_table(value, side) if path[-1] == _POSITIONS else value
        for path, value in flat.items()
    }
    return traverse_util.unflatten_dict(resized)


def resize_cubic(maps: jax.Array, sides: tuple[int, int]) -> jax.Array:
    """Resize ``maps (..., height, width, channels)`` as PyTorch's bicubic interpolation does.

    Coefficient -0.75, pixels' centres aligned, borders repeated, and no smoothing where the size
    shrinks.
    """
    shape = (*maps.shape[:-3], *sides, maps.shape[-1])
    if shape == maps.shape:
        return maps
    return jax.image.resize(maps, shape, "cubic-pytorch", antialias=False)


def window_grid(side: int, windows: int, window_size: int | None = None) -> int:
    """How many windows lie along a side of ``side`` tokens.

    Args:
      side: of the map.
      windows: of the whole map, a square number.
      window_size: the greatest side of a window in tokens, decisive where it is given.
    """
    if window_size is not None:
        return math.ceil(side / window_size)
    return min(math.isqrt(windows), side)


def _split(x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """``x (batch, height, width, channels)`` as ``(batch, windows, tokens, channels)``.

    Windows at the far edges are filled up with zeros.
    """
    batch, height, width, channels = x.shape
    rows, columns = (math.ceil(n / g) for n, g in zip((height, width), grid, strict=True))
    edges = [(0, 0), (0, grid[0] * rows - height), (0, grid[1] * columns - width), (0, 0)]
    x = jnp.pad(x, edges).reshape(batch, grid[0], rows, grid[1], columns, channels)
    return x.swapaxes(2, 3).reshape(batch, grid[0] * grid[1], rows * columns, channels)


def _join(x: jax.Array, grid: tuple[int, int], height: int, width: int) -> jax.Array:
    """The inverse of :func:`_split`."""
    rows, columns = (math.ceil(n / g) for n, g in zip((height, width), grid, strict=True))
    x = x.reshape(x.shape[0], *grid, rows, columns, x.shape[-1]).swapaxes(2, 3)
    x = x.reshape(x.shape[0], grid[0] * rows, grid[1] * columns, x.shape[-1])
    return x[:, :height, :width]


class TalkingAttention(nn.Module):
    """Self-attention whose heads are mixed before and after the softmax (talking heads).

    Relative positions are added to the logits, and values pass a depthwise convolution.

    Attributes:
      sizes: of the block.
      axes: names of its axes.
      init_std: of initial kernels; None for 1 / sqrt(inputs).
      dtype: of the computation (None: that of the input).
    """

    sizes: TransformerSizes
    axes: TransformerAxes = TransformerAxes()
    init_std: float | None = 0.02
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(batch, height, width, channels)`` to the same shape.

        Raises:
          ValueError: if the map, or a window of it, is larger than the table of positions covers.
        """
        sizes, axes = self.sizes, self.axes
        heads = sizes.width // sizes.head_dim
        value_width = sizes.value_ratio * sizes.width
        out = axes.width if sizes.rows else axes.residual
        linear = functools.partial(
            Linear, kernel_init=kernel_initializer(self.init_std), dtype=self.dtype
        )

        def project(width: int, axis: str | None, name: str) -> jax.Array:
            return linear((width,), (axes.width, axis), (axis,), name=name)(x)

        query = project(sizes.width, axes.width, "query") * sizes.head_dim**-0.5
        key = project(sizes.width, axes.width, "key")
        value = project(value_width, axes.value, "value")
        kernel = (None, None, None, axes.value)
        value = DepthwiseConv(3, kernel, dtype=self.dtype, name="value_conv")(value)

        height, width = x.shape[1:3]
        windows = (sizes.windows, sizes.window_size)
        grid = (window_grid(height, *windows), window_grid(width, *windows))

        def by_head(y: jax.Array) -> jax.Array:
            y = _split(y, grid)
            return y.reshape(*y.shape[:3], heads, -1)

        logits = jnp.einsum("bwnhd,bwmhd->bwhnm", by_head(query), by_head(key))
        logits = logits + self._positions(height, width, grid, heads).astype(logits.dtype)
        logits = self._talk(logits, heads, "talk_before")
        present = _split(jnp.ones((1, height, width, 1), bool), grid)[:, :, None, None, :, 0]
        if height % grid[0] or width % grid[1]:
            logits = jnp.where(present, logits, jnp.finfo(logits.dtype).min)
        weights = self._talk(attention_map(logits), heads, "talk_after")
        mixed = jnp.einsum("bwhnm,bwmhd->bwnhd", weights, by_head(value))
        mixed = _join(mixed.reshape(*mixed.shape[:3], value_width), grid, height, width)

        mixed = kept(mixed)
        if sizes.swish_first:
            mixed = nn.swish(mixed)
        mixed = linear((sizes.width,), (axes.value, out), (out,), name="project")(mixed)
        return mixed if sizes.swish_first else nn.swish(mixed)

    def _positions(self, height: int, width: int, grid: tuple[int, int], heads: int) -> jax.Array:
        """What is added to the logits, (heads, queries, keys)."""
        side = self.sizes.position_side
        init = named(truncated_normal, (None, self.axes.heads))
        table = self.param(_POSITIONS, init, ((2 * side - 1) ** 2, heads))
        rows = relative_rows(math.ceil(height / grid[0]), math.ceil(width / grid[1]), side)
        return jnp.moveaxis(table[rows], -1, 0)

    def _talk(self, x: jax.Array, heads: int, name: str) -> jax.Array:
        """Mix the heads of ``x (batch, windows, heads, queries, keys)``."""
        own = (self.axes.heads, self.axes.heads)
        kernel, bias = Projection(heads, heads, own, kernel_init=None, name=name)()
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return jnp.einsum("bwhnm,hk->bwknm", x, kernel) + bias[:, None, None]


class Perceptron(nn.Module):
    """Two linear maps with swish and, in the paper's form, a depthwise convolution between them.

    Attributes:
      sizes: of the block.
      axes: names of its axes.
      init_std: of initial kernels; None for 1 / sqrt(inputs).
      dtype: of the computation (None: that of the input).
    """

    sizes: TransformerSizes
    axes: TransformerAxes = TransformerAxes()
    init_std: float | None = 0.02
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(batch, height, width, channels)`` to the same shape."""
        sizes, axes = self.sizes, self.axes
        out = axes.width if sizes.rows else axes.residual
        options: Any = {"kernel_init": kernel_initializer(self.init_std), "dtype": self.dtype}
        y = Linear((sizes.mlp,), (axes.width, axes.mlp), (axes.mlp,), name="up", **options)(x)
        if sizes.mlp_conv:
            kernel = (None, None, None, axes.mlp)
            y = DepthwiseConv(3, kernel, dtype=self.dtype, name="conv")(y)
        y = nn.swish(y)
        return Linear((sizes.width,), (axes.mlp, out), (out,), name="down", **options)(y)


class TransformerBlock(nn.Module):
    """Attention and two perceptrons, each normalised, scaled and added to the stream.

    Mean and variance of a normalisation are those of all tokens and channels of an example. The
    scaling of each output channel is switched: its table has a row for every option that owns one,
    of which a sub-network keeps its own. Both perceptrons have the same.

    Attributes:
      sizes: of the block.
      axes: names of its axes.
      init_std: of initial kernels; None for 1 / sqrt(inputs) [0.02].
      init_scale: initial entries of the scaling tables [1e-4].
      dtype: of the computation (None: that of the input).
    """

    sizes: TransformerSizes
    axes: TransformerAxes = TransformerAxes()
    init_std: float | None = 0.02
    init_scale: float = 1e-4
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map ``(batch, height, width, channels)`` to the same shape; ``train`` changes nothing.

        Raises:
          ValueError: if the map, or a window of it, is larger than the table of positions covers.
        """
        norm = functools.partial(LayerNorm, axis=self.axes.width, whole=True, dtype=self.dtype)
        parts: Any = (self.sizes, self.axes, self.init_std, self.dtype)
        first = norm(name="norm_attention")
        y = TalkingAttention(*parts, name="attention")(first(x))
        fraction = first.active_fraction()
        x = x + y * self._scaling("scale_attention", fraction, y.dtype)
        scaling = self._scaling("scale_mlp", fraction, y.dtype)
        for part in (1, 2):
            y = norm(name=f"norm_mlp_{part}")(x)
            x = x + Perceptron(*parts, name=f"mlp_{part}")(y) * scaling
        return x

    def written(self) -> list[jax.Array]:
        """What is multiplied with, or makes, all output: zero where the block does not exist."""
        params: Any = self.variables["params"]
        if self.sizes.rows:
            return [nn.unbox(params[name]) for name in ("scale_attention", "scale_mlp")]
        maps = (params["attention"]["project"], params["mlp_1"]["down"], params["mlp_2"]["down"])
        return list(jax.tree.leaves(nn.unbox(maps)))

    def _scaling(self, name: str, active: Any, dtype: Dtype) -> Any:
        """Factors of the channels (width,), of which ``active`` is the part that is there."""
        sizes, axes = self.sizes, self.axes
        if not sizes.rows:
            return 1.0
        init = nn.initializers.constant(self.init_scale)
        names = (axes.switch, axes.resolution, axes.residual)
        table = self.param(name, named(init, names), (*sizes.rows, sizes.width))
        scaling = jnp.sum(table, (0, 1))
        if sizes.factor is not None:
            scaling = scaling * (sizes.factor / (sizes.width * active))
        return scaling.astype(dtype)
