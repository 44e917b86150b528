"""The pooling-based vision transformer (PiT): three stages on ever fewer, ever wider tokens.

Source: Heo et al., "Rethinking Spatial Dimensions of Vision Transformers" (ICCV 2021), as TF-TAS
searches it (section 4.3). Patches overlap. Between stages a depthwise convolution of stride 2
shrinks the map of patches and multiplies its channels; the class token, which has no position,
goes through a linear map of its own. Sizes given as one number per stage build layers that are
scanned with ``nn.scan`` under the names ``stage_0, stage_1, ...``; with ``unrolled`` they are
``stage_0_0, stage_0_1, ...``, as extracted networks have them.

Axis names, for each stage ``i``: ``embed_i`` and ``residual_i`` (the stream as it is read, and as
a block writes to it), ``heads_i``, ``head_dim``, ``mlp_i``, ``stage_i``, and ``growth_i``, which
no parameter has: how much wider the stage is than the one before.
"""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasjax.core.precision import at_least_float32
from nasjax.models.attention import attend
from nasjax.models.convolution import Conv, depthwise_conv
from nasjax.models.layers import (
    DropPath,
    Dtype,
    Initializer,
    LayerNorm,
    Linear,
    ask,
    fan_in_normal,
    gelu,
    kept,
    kernel_initializer,
    named,
    truncated_normal,
)

_EPSILON = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention whose number of heads and channels of a head are both axes.

    Attributes:
      stage: index of the stage, in the axes' names.
      num_heads: number of heads.
      head_dim: channels of a head.
      backend: see :func:`~nasjax.models.attention.attend` ["xla"].
      weighed: whether this is a super-network, which asks how many channels a head has.
      kernel_init: see :class:`~nasjax.models.layers.Linear`.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    stage: int
    num_heads: int
    head_dim: int
    backend: str = "xla"
    weighed: bool = False
    kernel_init: Initializer | None = truncated_normal
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Attend within ``x (batch, tokens, embed)``."""
        options: Any = {
            "kernel_init": self.kernel_init,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        heads = (f"heads_{self.stage}", "head_dim")
        active = ask(self, self.weighed, "head_dim", (self.head_dim,), ("head_dim",))
        qkv = Linear(
            (3, self.num_heads, self.head_dim),
            (f"embed_{self.stage}", None, *heads),
            (None, *heads),
            name="qkv",
            **options,
        )(x)
        query, key, value = jnp.moveaxis(qkv, 2, 0)
        # Channels that are not there add nothing to the logits, but would to their number.
        size = self.head_dim if active is None else jnp.sum(active)
        query = query * jnp.asarray(size, jnp.float32).astype(query.dtype) ** -0.5
        mixed = attend(query, key, value, 1.0, self.backend)
        out = f"residual_{self.stage}"
        return Linear((x.shape[-1],), (*heads, out), (out,), contract=2, name="proj", **options)(
            kept(mixed)
        )


class Block(nn.Module):
    """A pre-norm transformer block: attention and a two-layer perceptron with exact GELU.

    Attributes:
      stage: index of the stage.
      num_heads: number of heads.
      head_dim: channels of a head.
      mlp_dim: hidden width of the perceptron.
      attention_backend: see :func:`~nasjax.models.attention.attend` ["xla"].
      weighed: whether this is a super-network.
      kernel_init: see :class:`~nasjax.models.layers.Linear`.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    stage: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    attention_backend: str = "xla"
    weighed: bool = False
    kernel_init: Initializer | None = truncated_normal
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, drop_path: jax.Array, train: bool) -> tuple[jax.Array, None]:
        """Map ``x (batch, tokens, embed)`` to the same shape; None is for ``nn.scan``."""
        dtypes: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        linear = {"kernel_init": self.kernel_init, **dtypes}
        embed, mlp, out = (f"{axis}_{self.stage}" for axis in ("embed", "mlp", "residual"))
        norm = {"axis": embed, "epsilon": _EPSILON, **dtypes}
        y = LayerNorm(name="norm_attention", **norm)(x)
        sizes = (self.stage, self.num_heads, self.head_dim, self.attention_backend)
        y = Attention(*sizes, self.weighed, name="attention", **linear)(y)
        x = x + DropPath()(y, drop_path, train)
        y = LayerNorm(name="norm_mlp", **norm)(x)
        y = Linear((self.mlp_dim,), (embed, mlp), (mlp,), name="fc1", **linear)(y)
        y = gelu(y)
        y = Linear((x.shape[-1],), (mlp, out), (out,), name="fc2", **linear)(y)
        return x + DropPath()(y, drop_path, train), None


class Pool(nn.Module):
    """From one stage to the next: half the rows and columns, a multiple of the channels.

    Channel ``j`` of the result is a 3 x 3 convolution of channel ``j // growth`` of the map. In a
    super-network the channel that is read depends on the growth, so the map is read once for each
    and weighed by the probability of that growth.

    Attributes:
      stage: index of the stage that follows.
      features: channels of the result.
      growths: how many times wider the stage may be than the one before, in ascending order; a
        single one in a network of its own.
      conv_std: standard deviation of the initial kernel of the convolution; None for 1 / 3.
      kernel_init: see :class:`~nasjax.models.layers.Linear`.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    stage: int
    features: int
    growths: tuple[int, ...]
    conv_std: float | None = None
    kernel_init: Initializer | None = truncated_normal
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, grid: int) -> tuple[jax.Array, int]:
        """Map ``tokens (batch, 1 + grid * grid, channels)`` of a map of ``grid`` rows.

        Returns:
          Tokens ``(batch, 1 + grid' * grid', features)``, and ``grid'``.
        """
        before, after = f"embed_{self.stage - 1}", f"embed_{self.stage}"
        several = len(self.growths) > 1
        axes = (f"growth_{self.stage}",)
        # The expected prefix mask of an axis as long as the place of the growth, from 1.
        least = ask(self, several, "growth", (len(self.growths),), axes)
        batch, _, channels = tokens.shape
        maps = tokens[:, 1:].reshape(batch, grid, grid, channels)
        if least is None:
            wide = self._widened(maps, self.growths[0])
        else:
            shares = least - jnp.append(least[1:], 0.0)
            parts = [
                share.astype(maps.dtype) * self._widened(maps, growth)
                for share, growth in zip(shares, self.growths, strict=True)
            ]
            wide = sum(parts[1:], start=parts[0])
        kernel = self.param(
            "kernel",
            named(self._conv_init(), (None, None, None, after)),
            (3, 3, 1, self.features),
            self.param_dtype,
        )
        zeros = named(nn.initializers.zeros_init(), (after,))
        bias = self.param("bias", zeros, (self.features,), self.param_dtype)
        wide, kernel, bias = nn.dtypes.promote_dtype(wide, kernel, bias, dtype=self.dtype)
        maps = depthwise_conv(wide, kernel, 2, 1) + bias
        token = Linear(
            (self.features,),
            (before, after),
            (after,),
            name="token",
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )(tokens[:, :1])
        side = maps.shape[1]
        maps = maps.reshape(batch, side * side, self.features)
        return jnp.concatenate([token, maps.astype(token.dtype)], axis=1), side

    def _conv_init(self) -> Initializer:
        return fan_in_normal(9) if self.conv_std is None else nn.initializers.normal(self.conv_std)

    def _widened(self, maps: jax.Array, growth: int) -> jax.Array:
        """Channel ``j // growth`` for each channel ``j`` of the result."""
        wide = jnp.repeat(maps, growth, axis=-1)[..., : self.features]
        missing = self.features - wide.shape[-1]  # in a super-network, where none is active
        return jnp.pad(wide, ((0, 0), (0, 0), (0, 0), (0, missing)))


class PiT(nn.Module):
    """A pooling-based vision transformer: a super-network, or a network of its own.

    Attributes:
      num_classes: number of classes.
      base_dims: channels of a head in each stage.
      depth: blocks of each stage.
      heads: heads of each stage; a stage is ``base_dims * heads`` channels wide.
      mlp_dim: hidden width of the perceptron in each stage.
      growths: for each stage but the first how many times it may be wider than the one before
        [what its width is, in a network of its own].
      patch_size: side of a square patch in pixels.
      stride: distance of neighbouring patches in pixels.
      drop_path: rate of stochastic depth in each block of all stages; empty for none.
      init_std: standard deviation of initial linear maps, before they are truncated at twice that;
        None for 1 / sqrt(inputs), which narrow networks need to train in few epochs [0.02].
      conv_std: standard deviation of initial convolutions, 1 in TF-TAS's released code [None:
        1 / sqrt(inputs)].
      unrolled: whether layers are modules of their own: extracted networks [False].
      weighed: whether this is a super-network [False].
      attention_backend: ``"xla"``, or ``"cudnn"`` for flash attention, see
        :func:`~nasjax.models.attention.attend` [xla].
      dtype: of the computation (None: float32).
      param_dtype: of the parameters [float32].

    Example:
      >>> model = PiT(num_classes=10, base_dims=(8, 8, 8), depth=(1, 2, 1), heads=(1, 2, 4),
      ...             mlp_dim=(16, 32, 64), patch_size=8, stride=4)
      >>> images = jnp.zeros((2, 48, 48, 3))
      >>> model.apply(model.init(jax.random.key(0), images), images).shape
      (2, 10)
    """

    num_classes: int
    base_dims: tuple[int, ...]
    depth: tuple[int, ...]
    heads: tuple[int, ...]
    mlp_dim: tuple[int, ...]
    growths: tuple[tuple[int, ...], ...] = ()
    patch_size: int = 16
    stride: int = 8
    drop_path: tuple[float, ...] = ()
    init_std: float | None = 0.02
    conv_std: float | None = None
    unrolled: bool = False
    weighed: bool = False
    attention_backend: str = "xla"
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Class logits ``(batch, num_classes)`` of ``images (batch, side, side, channels)``.

        Raises:
          ValueError: if the images are not square or smaller than a patch, or a stage is not a
            whole number of times as wide as the one before.
        """
        if images.shape[1] != images.shape[2] or images.shape[1] < self.patch_size:
            raise ValueError(
                f"images of {images.shape[1]} x {images.shape[2]} pixels do not suit patches of "
                f"{self.patch_size}; square images, no smaller than a patch, were expected."
            )
        dtypes: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        linear: Any = {"kernel_init": kernel_initializer(self.init_std), **dtypes}
        widths = self.widths
        growths = self.growths or tuple(
            (after // before,) for before, after in itertools.pairwise(widths)
        )
        x, grid = self._embed(images, widths[0])
        train = train and bool(self.drop_path)
        for stage, width in enumerate(widths):
            if stage:
                pool = Pool(
                    stage, width, growths[stage - 1], self.conv_std, name=f"pool_{stage}", **linear
                )
                x, grid = pool(x, grid)
            x = self._stage(stage, x, train)
        last = f"embed_{len(widths) - 1}"
        x = LayerNorm(axis=last, epsilon=_EPSILON, name="norm", **dtypes)(x[:, 0])
        head = Linear((self.num_classes,), (last, None), (None,), name="head", **linear)
        return at_least_float32(head(x))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        widths = tuple(b * h for b, h in zip(self.base_dims, self.heads, strict=True))
        for before, after in itertools.pairwise(widths):
            if after % before and not self.weighed:
                raise ValueError(
                    f"a stage of {after} channels cannot follow one of {before}; a multiple of it "
                    "was expected."
                )
        return widths

    def _embed(self, images: jax.Array, width: int) -> tuple[jax.Array, int]:
        inputs = self.patch_size**2 * images.shape[-1]
        std = inputs**-0.5 if self.conv_std is None else self.conv_std
        x = Conv(
            width,
            self.patch_size,
            (None, None, None, "embed_0"),
            "embed_0",
            use_bias=True,
            stride=self.stride,
            padding=0,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(std),
            name="patches",
        )(images)
        batch, grid = x.shape[:2]
        init = named(truncated_normal, (None, None, "embed_0"))
        positions = self.param("positions", init, x.shape[1:], self.param_dtype)
        x = (x + positions.astype(x.dtype)).reshape(batch, grid * grid, width)
        init = named(truncated_normal, ("embed_0",))
        token = self.param("class_token", init, (width,), self.param_dtype)
        token = jnp.broadcast_to(token.astype(x.dtype), (batch, 1, width))
        return jnp.concatenate([token, x], axis=1), grid

    def _stage(self, stage: int, x: jax.Array, train: bool) -> jax.Array:
        depth, first = self.depth[stage], sum(self.depth[:stage])
        rates = jnp.asarray(self.drop_path or (0.0,) * sum(self.depth), jnp.float32)
        rates = rates[first : first + depth]
        sizes = (stage, self.heads[stage], self.base_dims[stage], self.mlp_dim[stage])
        rest: Any = (self.attention_backend, self.weighed, kernel_initializer(self.init_std))
        rest += (self.dtype, self.param_dtype)
        name = f"stage_{stage}"
        if self.unrolled:
            for i in range(depth):
                x, _ = Block(*sizes, *rest, name=f"{name}_{i}")(x, rates[i], train)
            return x
        blocks: Any = nn.scan(
            Block,
            variable_axes={"params": 0, "active": 0, "activations": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=depth,
            metadata_params={nn.PARTITION_NAME: name},
        )
        x, _ = blocks(*sizes, *rest, name=name)(x, rates, train)
        return x
