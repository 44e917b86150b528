"""The vision transformer of AutoFormer: class token, absolute and 2-D relative positions.

Source: Chen et al., "AutoFormer: Searching Transformers for Visual Recognition" (ICCV 2021),
which GraViT-E, TangleNAS and TF-TAS search. Sizes given as one number build layers that are all
alike, scanned with ``nn.scan`` under the name ``blocks``; sizes given per layer build them
unrolled, as ``blocks_0, blocks_1, ...``. A super-network is the former at its maximal sizes, an
extracted network the latter; both are this class.

Axis names: ``embed`` (residual stream as it is read), ``residual`` (as a block writes to it: of
length zero in blocks that do not exist), ``heads`` (all channels of all heads, head by head),
``mlp``, ``qkv_bias``, and ``blocks``.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasjax.core.precision import at_least_float32
from nasjax.models.attention import Attention
from nasjax.models.layers import (
    DropPath,
    Dtype,
    Initializer,
    LayerNorm,
    Linear,
    ScaledDropout,
    gelu,
    kernel_initializer,
    named,
    per_layer,
    rematerialized,
    truncated_normal,
    writes,
)


class Block(nn.Module):
    """A pre-norm transformer block: attention and a two-layer perceptron with exact GELU.

    Attributes:
      num_heads: number of heads.
      mlp_dim: hidden width of the perceptron.
      attention: further fields of :class:`Attention`.
      dropout: rate at the sub-network's largest width.
      kernel_init: see :class:`~nasjax.models.layers.Linear`.
      dtype: of the computation.
      param_dtype: of the parameters.
      optional: whether it is skipped where all that it writes is zero: in the evaluation of a
        sub-network at maximal shapes, the blocks beyond its depth.
    """

    num_heads: int
    mlp_dim: int
    attention: Any
    dropout: float = 0.0
    kernel_init: Initializer | None = truncated_normal
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32
    optional: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, drop_path: jax.Array, grid: tuple[int, int], train: bool
    ) -> tuple[jax.Array, None]:
        """Map ``x (batch, tokens, embed)`` to the same shape; None is for ``nn.scan``."""

        def whole(block: Block, x: jax.Array) -> jax.Array:
            return block._transform(x, drop_path, grid, train)

        # A block that is skipped has no activations, so none is where they are asked for.
        asked = self.is_mutable_collection("activations")
        if not self.optional or self.is_initializing() or asked:
            return whole(self, x), None
        params: Any = self.variables["params"]
        there = writes(jax.tree.leaves(nn.unbox((params["attention"]["proj"], params["fc2"]))))
        return nn.cond(there, whole, lambda block, x: x, self, x), None

    def _transform(
        self, x: jax.Array, drop_path: jax.Array, grid: tuple[int, int], train: bool
    ) -> jax.Array:
        dtypes: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        linear = {**dtypes, "kernel_init": self.kernel_init}
        norm = LayerNorm(name="norm_attention", **dtypes)
        y = norm(x)
        width = norm.active_fraction()
        y = Attention(
            self.num_heads, features=x.shape[-1], name="attention", **self.attention, **linear
        )(y, grid)
        y = ScaledDropout(self.dropout)(y, width, train)
        x = x + DropPath()(y, drop_path, train)
        y = LayerNorm(name="norm_mlp", **dtypes)(x)
        y = Linear((self.mlp_dim,), ("embed", "mlp"), ("mlp",), name="fc1", **linear)(y)
        y = gelu(y)
        y = ScaledDropout(self.dropout)(y, width, train)
        y = Linear((x.shape[-1],), ("mlp", "residual"), ("residual",), name="fc2", **linear)(y)
        y = ScaledDropout(self.dropout)(y, width, train)
        return x + DropPath()(y, drop_path, train)


class VisionTransformer(nn.Module):
    """AutoFormer's vision transformer for images of any size divisible by the patch.

    Attributes:
      num_classes: number of classes.
      embed_dim: width of the residual stream.
      depth: number of blocks.
      num_heads: heads of each block; a number (blocks alike, scanned) or one per block.
      mlp_dim: hidden width of each block's perceptron; likewise.
      patch_size: side of a square patch in pixels.
      head_dim: channels of a head; a number or one per block.
      reach: distance of relative positions in patches; 0 for none [14].
      absolute: whether to add a table of absolute positions [True].
      pool: ``"mean"`` over the patches' tokens, or ``"token"`` for the class token [mean].
      qkv_bias: whether queries, keys and values have a bias [True].
      attention_scale: factor of the logits; a number or one per block [head_dim ** -0.5].
      dropout: rate after embedding, projections and activations [0].
      drop_path: rate of stochastic depth in each block; empty for none.
      init_std: standard deviation of initial kernels, before they are truncated at twice that,
        0.02 as in AutoFormer; None scales it to 1 / sqrt(inputs), which narrow networks need to
        train in few epochs [0.02].
      remat: what of each block is computed again in the backward pass: ``"none"``, ``"maps"``,
        ``"dots"`` or ``"full"``, see :func:`~nasjax.models.layers.rematerialized` [none].
      attention_backend: ``"xla"``, or ``"cudnn"`` for flash attention, see
        :func:`~nasjax.models.attention.attend` [xla].
      dtype: of the computation (None: float32).
      param_dtype: of the parameters [float32].

    Example:
      >>> model = VisionTransformer(num_classes=10, embed_dim=64, depth=2, num_heads=2,
      ...                           mlp_dim=128, patch_size=4, head_dim=32)
      >>> images = jnp.zeros((8, 16, 16, 3))
      >>> model.apply(model.init(jax.random.key(0), images), images).shape
      (8, 10)
    """

    num_classes: int
    embed_dim: int
    depth: int
    num_heads: int | tuple[int, ...]
    mlp_dim: int | tuple[int, ...]
    patch_size: int = 16
    head_dim: int | tuple[int, ...] = 64
    reach: int = 14
    absolute: bool = True
    pool: str = "mean"
    qkv_bias: bool = True
    attention_scale: float | tuple[float, ...] | None = None
    dropout: float = 0.0
    drop_path: tuple[float, ...] = ()
    init_std: float | None = 0.02
    remat: str = "none"
    attention_backend: str = "xla"
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Class logits ``(batch, num_classes)`` of ``images (batch, height, width, channels)``.

        Raises:
          ValueError: if the images are not divisible into patches, or ``pool`` is neither.
        """
        if self.pool not in ("mean", "token"):
            raise ValueError(f'pool is {self.pool!r}; "mean" or "token" was expected.')
        dtypes: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        patches, grid = split_patches(images, self.patch_size)
        x = Linear(
            (self.embed_dim,),
            (None, None, None, "embed"),
            ("embed",),
            contract=3,
            name="patches",
            kernel_init=kernel_initializer(self.init_std),
            **dtypes,
        )(patches)
        init = named(truncated_normal, ("embed",))
        token = self.param("class_token", init, (self.embed_dim,), self.param_dtype)
        token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.embed_dim))
        x = jnp.concatenate([token, x], axis=1)
        if self.absolute:
            init = named(truncated_normal, (None, "embed"))
            x = x + self.param("positions", init, x.shape[1:], self.param_dtype).astype(x.dtype)
        norm = LayerNorm(name="norm", **dtypes)
        x = ScaledDropout(self.dropout)(x, norm.active_fraction(), train)
        x = norm(self._blocks(x, grid, train))
        x = x[:, 0] if self.pool == "token" else jnp.mean(x[:, 1:], axis=1)
        head = Linear(
            (self.num_classes,),
            ("embed", None),
            (None,),
            name="head",
            kernel_init=kernel_initializer(self.init_std),
            **dtypes,
        )
        return at_least_float32(head(x))

    def _blocks(self, x: jax.Array, grid: tuple[int, int], train: bool) -> jax.Array:
        scales = self.attention_scale
        sizes = zip(
            per_layer(self.num_heads, self.depth),
            per_layer(self.mlp_dim, self.depth),
            per_layer(self.head_dim, self.depth),
            scales if isinstance(scales, tuple) else (scales,) * self.depth,
            strict=True,
        )
        rates = jnp.asarray(self.drop_path or (0.0,) * self.depth, jnp.float32)
        evaluated, train = not train, train and bool(self.drop_path or self.dropout)
        block = rematerialized(Block, self.remat, static_argnums=(3, 4))

        chosen = (self.num_heads, self.mlp_dim, self.head_dim, scales)
        alike = not any(isinstance(s, tuple) for s in chosen)

        def build(size: tuple[Any, ...], name: str, block: Any = block) -> nn.Module:
            heads, mlp, head_dim, scale = size
            attention = {"head_dim": head_dim, "reach": self.reach, "qkv_bias": self.qkv_bias}
            attention |= {"scale": scale, "backend": self.attention_backend}
            return block(
                heads,
                mlp,
                attention,
                self.dropout,
                kernel_initializer(self.init_std),
                self.dtype,
                self.param_dtype,
                alike and evaluated,
                name=name,
            )

        if not alike:
            for i, size in enumerate(sizes):
                x, _ = build(size, f"blocks_{i}")(x, rates[i], grid, train)
            return x
        scanned = nn.scan(
            block,
            variable_axes={"params": 0, "active": 0, "activations": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: "blocks"},
        )
        x, _ = build(next(sizes), "blocks", scanned)(x, rates, grid, train)
        return x


def split_patches(images: jax.Array, size: int) -> tuple[jax.Array, tuple[int, int]]:
    """Patches ``(batch, rows * columns, size, size, channels)``, and how many rows and columns.

    Raises:
      ValueError: if the images do not divide into patches of this size.
    """
    batch, height, width, channels = images.shape
    if height % size or width % size:
        raise ValueError(
            f"images of {height} x {width} pixels do not divide into patches of {size} x {size}; "
            "resize them or choose another patch size."
        )
    grid = (height // size, width // size)
    x = images.reshape(batch, grid[0], size, grid[1], size, channels).swapaxes(2, 3)
    return x.reshape(batch, grid[0] * grid[1], size, size, channels), grid
