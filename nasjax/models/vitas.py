"""The vision transformer of ViTAS, whose class tokens and self-attention maps are private.

Source: Su et al., "Vision Transformer Architecture Search" (2021), section 4.2. Every patch size
owns its patch embedding, class token and table of positions; every number of heads owns its
queries and keys, and all of them share the values (:mod:`nasjax.models.split_attention`). Sizes
given as one number build a super-network, whose layers are alike and scanned with ``nn.scan``
under the name ``blocks``; sizes given per layer build a network of its own, unrolled as
``blocks_0, blocks_1, ...``, in which identity blocks are absent. Both are one class.

Axis names: ``embed``, ``mlp``, ``blocks`` and those of the attention. Operations: ``block``, which
is no identity, and ``patch_16``, ... beside those of the attention.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasjax.core.precision import at_least_float32
from nasjax.models.layers import (
    DropPath,
    Dtype,
    Initializer,
    LayerNorm,
    Linear,
    ask,
    gelu,
    kernel_initializer,
    named,
    rematerialized,
    truncated_normal,
)
from nasjax.models.split_attention import SplitAttention
from nasjax.models.vit import split_patches

_BLOCK_EPSILON = 1e-6  # of the normalisations in blocks; the last one has 1e-5


class Block(nn.Module):
    """What a pre-norm transformer block adds to its input (equations 1 and 2).

    Attributes:
      attention: fields of :class:`~nasjax.models.split_attention.SplitAttention`.
      mlp_dim: hidden width of the perceptron.
      weighed: whether this is a super-network.
      kernel_init: see :class:`~nasjax.models.layers.Linear`.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    attention: Any
    mlp_dim: int
    weighed: bool = False
    kernel_init: Initializer | None = truncated_normal
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, drop_path: jax.Array, train: bool) -> jax.Array:
        """Map ``x (batch, tokens, embed)`` to what is to be added to it."""
        ask(self, self.weighed, "mass")
        dtypes: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = {"epsilon": _BLOCK_EPSILON, **dtypes}
        linear: Any = {"kernel_init": self.kernel_init, **dtypes}
        y = LayerNorm(name="norm_attention", **norm)(x)
        y = SplitAttention(weighed=self.weighed, name="attention", **self.attention, **linear)(y)
        attended = DropPath()(y, drop_path, train)
        y = LayerNorm(name="norm_mlp", **norm)(x + attended)
        y = Linear((self.mlp_dim,), ("embed", "mlp"), ("mlp",), name="fc1", **linear)(y)
        y = gelu(y)
        y = Linear((x.shape[-1],), ("mlp", "embed"), ("embed",), name="fc2", **linear)(y)
        return attended + DropPath()(y, drop_path, train)

    def mass(self) -> Any:
        """The probability that this is no identity; None where nobody told it."""
        return self.get_variable("active", "mass")


class Layer(nn.Module):
    """A block or, in a super-network, as much of one as there is.

    An identity is not computed, and so the gradient in the probability of its block is zero.

    Attributes:
      attention: fields of :class:`~nasjax.models.split_attention.SplitAttention`.
      mlp_dim: hidden width of the perceptron.
      weighed: whether this is a super-network.
      kernel_init: see :class:`~nasjax.models.layers.Linear`.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    attention: Any
    mlp_dim: int
    weighed: bool = False
    kernel_init: Initializer | None = truncated_normal
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, drop_path: jax.Array, train: bool) -> tuple[jax.Array, None]:
        """Map ``x (batch, tokens, embed)`` to the same shape; None is for ``nn.scan``."""
        block = Block(
            self.attention,
            self.mlp_dim,
            self.weighed,
            self.kernel_init,
            self.dtype,
            self.param_dtype,
            name="block",
        )
        mass = None if self.is_initializing() else block.mass()
        if mass is None:
            return x + block(x, drop_path, train), None
        if self.is_mutable_collection("activations"):  # of which a block that is skipped has none
            return x + mass.astype(x.dtype) * block(x, drop_path, train), None
        added = nn.cond(
            mass > 0,
            lambda block, x: block(x, drop_path, train).astype(x.dtype),
            lambda block, x: jnp.zeros_like(x),
            block,
            x,
        )
        return x + mass.astype(x.dtype) * added, None


class PatchEmbedding(nn.Module):
    """What a patch size owns: patch embedding, class token and table of positions.

    Attributes:
      patch_size: side of a patch in pixels.
      features: channels.
      kernel_init: see :class:`~nasjax.models.layers.Linear`.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    patch_size: int
    features: int
    kernel_init: Initializer | None = truncated_normal
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Map ``(batch, height, width, channels)`` to ``(batch, 1 + patches, features)``."""
        patches, _ = split_patches(images, self.patch_size)
        x = Linear(
            (self.features,),
            (None, None, None, "embed"),
            ("embed",),
            contract=3,
            name="patches",
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )(patches)
        zeros = nn.initializers.zeros_init()
        token = self.param(
            "class_token", named(zeros, ("embed",)), (self.features,), self.param_dtype
        )
        token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.features))
        x = jnp.concatenate([token, x], axis=1)
        positions = named(zeros, (None, "embed"))
        table = self.param("positions", positions, x.shape[1:], self.param_dtype)
        return x + table.astype(x.dtype)


class ViTAS(nn.Module):
    """A vision transformer of the ViTAS space: a super-network, or a network of its own.

    Attributes:
      num_classes: number of classes.
      embed_dim: channels of the residual stream.
      depth: number of layers, identities included.
      heads: of a super-network the numbers of heads that its blocks choose from; else the number
        of each layer, 0 for an identity.
      value_dim: attention width, a number or one for each layer.
      mlp_dim: hidden width of the perceptron, a number (a super-network) or one for each layer.
      patch_size: side of a patch in pixels.
      patch_sizes: all patch sizes of a super-network, whose embeddings are initialised together
        [``patch_size`` alone].
      shared: what the numbers of heads share, a key of
        :data:`nasjax.models.split_attention.SHARED` ["v": the values].
      attention_scale: factor of the logits, one for all layers or one for each [head dimension
        ** -0.5; the released networks have (embed_dim // heads) ** -0.5].
      drop_path: stochastic depth, a rate for each layer, identities included [none].
      init_std: standard deviation of initial kernels; None for 1 / sqrt(inputs), which narrow
        networks need to train in few epochs [0.02].
      remat: what of a super-network's layers the backward pass computes again: ``"none"``,
        ``"maps"``, ``"dots"`` or ``"full"``, see :func:`~nasjax.models.layers.rematerialized`.
      attention_backend: ``"xla"``, or ``"cudnn"`` for flash attention, see
        :func:`~nasjax.models.attention.attend` [xla].
      dtype: of the computation (None: that of the images).
      param_dtype: of the parameters.
    """

    num_classes: int
    embed_dim: int
    depth: int
    heads: tuple[int, ...]
    value_dim: int | tuple[int, ...]
    mlp_dim: int | tuple[int, ...]
    patch_size: int = 16
    patch_sizes: tuple[int, ...] = ()
    shared: str = "v"
    attention_scale: float | tuple[float, ...] | None = None
    drop_path: tuple[float, ...] = ()
    init_std: float | None = 0.02
    remat: str = "none"
    attention_backend: str = "xla"
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Logits ``(batch, num_classes)`` of ``images (batch, height, width, channels)``.

        Raises:
          ValueError: if the images do not divide into patches.
        """
        dtypes: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = self._embed(images, self.patch_size)
        if self.is_initializing():
            for size in self.patch_sizes:
                if size != self.patch_size:
                    self._embed(images, size)
        x = self._layers(x, train and bool(self.drop_path))
        x = LayerNorm(name="norm", **dtypes)(x[:, 0])  # of the class token alone
        init = kernel_initializer(self.init_std)
        head = Linear(
            (self.num_classes,), ("embed", None), (None,), name="head", kernel_init=init, **dtypes
        )
        return at_least_float32(head(x))

    def _embed(self, images: jax.Array, size: int) -> jax.Array:
        init = kernel_initializer(self.init_std)
        return PatchEmbedding(
            size, self.embed_dim, init, self.dtype, self.param_dtype, name=f"patch_{size}"
        )(images)

    def _layers(self, x: jax.Array, train: bool) -> jax.Array:
        rates = jnp.asarray(self.drop_path or (0.0,) * self.depth, jnp.float32)
        scanned = not isinstance(self.mlp_dim, tuple)

        def build(layer: Any, name: str, sizes: tuple[Any, ...]) -> Any:
            heads, value, mlp, scale = sizes
            attention = {"heads": heads, "width": value, "shared": self.shared, "scale": scale}
            attention["backend"] = self.attention_backend
            init = kernel_initializer(self.init_std)
            return layer(attention, mlp, scanned, init, self.dtype, self.param_dtype, name=name)

        sizes = (self.value_dim, self.mlp_dim, self.attention_scale)

        if scanned:
            layer = rematerialized(Layer, self.remat, static_argnums=(3,))
            layers = nn.scan(
                layer,
                variable_axes={"params": 0, "active": 0, "activations": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, nn.broadcast),
                length=self.depth,
                metadata_params={nn.PARTITION_NAME: "blocks"},
            )
            x, _ = build(layers, "blocks", (self.heads, *sizes))(x, rates, train)
            return x
        for i, heads in enumerate(self.heads):
            if heads:
                own = (size[i] if isinstance(size, tuple) else size for size in sizes)
                x, _ = build(Layer, f"blocks_{i}", ((heads,), *own))(x, rates[i], train)
        return x
