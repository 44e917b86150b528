"""Inverted residual blocks (MBConv) with squeeze and excitation, of mobile networks.

Sources: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018); Hu et al.,
"Squeeze-and-Excitation Networks" (2018); the shortcuts are those of NASViT's released networks.

Names of axes are given to every module, since the first block of a stage has other inputs, and so
another hidden width, than the blocks after it. Kernels of one stage are centres of the largest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasjax.models.convolution import BatchNorm, Conv, DepthwiseConv
from nasjax.models.layers import Dtype, ask


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``value``, halves up; never below 0.9 of it.

    A value below half of the divisor becomes 1 or, since that is often below 0.9 of it, one more
    than the divisor: so do the released networks.
    """
    nearest = max(1, int(value + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * value else nearest


def hidden_width(inputs: int, expansion: float) -> int:
    """Channels between the expansion and the projection of a block with ``inputs`` channels."""
    return make_divisible(round(inputs * expansion))


def squeeze_width(hidden: int) -> int:
    """Channels that ``hidden`` ones are squeezed to."""
    return make_divisible(hidden // 4)


class BlockAxes(NamedTuple):
    """Names of the axes of a block.

    Attributes:
      inputs: its input channels.
      outputs: its output channels.
      hidden: between expansion and projection.
      squeeze: of squeeze and excitation.
      kernel: the side of the depthwise kernel.
      residual: output channels that the block writes, none where it does not exist.
      shortcut: output channels of the shortcut's convolution, none where it is an identity.
      same: channels of the shortcut where it is an identity, none where it is a convolution.
    """

    inputs: str | None = None
    outputs: str | None = None
    hidden: str | None = None
    squeeze: str | None = None
    kernel: str | None = None
    residual: str | None = None
    shortcut: str | None = None
    same: str | None = None


@dataclass(frozen=True)
class BlockSizes:
    """Sizes of a block; of a super-network the greatest.

    Attributes:
      features: output channels.
      hidden: between expansion and projection; the input channels where there is no expansion.
      kernel_size: side of the depthwise kernel.
      stride: 1 or 2.
      expand: whether a 1 x 1 convolution expands the inputs.
      squeeze: of squeeze and excitation; 0 for none.
      residual: whether there is a shortcut.
      shortcut: output channels of the shortcut's convolution; 0 for none, an identity.
      same: channels of the shortcut where a super-network may have an identity instead.
    """

    features: int
    hidden: int
    kernel_size: int = 3
    stride: int = 1
    expand: bool = True
    squeeze: int = 0
    residual: bool = True
    shortcut: int = 0
    same: int = 0


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalisation and, unless told otherwise, swish.

    Attributes:
      features: output channels.
      kernel_size: side of the kernel.
      inputs: name of the input channels' axis.
      outputs: name of the output channels' axis.
      norm: name of the normalisation's axis [``outputs``].
      stride: of both directions.
      activate: whether swish follows.
      dtype: of the computation (None: that of the input).
    """

    features: int
    kernel_size: int = 1
    inputs: str | None = None
    outputs: str | None = None
    norm: str | None = None
    stride: int = 1
    activate: bool = True
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map ``(batch, height, width, inputs)`` to ``(batch, height', width', features)``."""
        axes = (None, None, self.inputs, self.outputs)
        x = Conv(
            self.features, self.kernel_size, axes, stride=self.stride, dtype=self.dtype, name="conv"
        )(x)
        x = BatchNorm(axis=self.norm or self.outputs, dtype=self.dtype, name="norm")(x, train)
        return nn.swish(x) if self.activate else x


class SqueezeExcite(nn.Module):
    """Channels weighed by a perceptron of their means: ReLU within, hard sigmoid after it.

    Attributes:
      features: channels that the means are squeezed to.
      axis: name of the channels' axis.
      squeeze: name of the squeezed channels' axis.
      dtype: of the computation (None: that of the input).
    """

    features: int
    axis: str | None = None
    squeeze: str | None = None
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Weigh ``(batch, height, width, channels)``."""

        def conv(features: int, inputs: str | None, outputs: str | None, name: str) -> Conv:
            axes = (None, None, inputs, outputs)
            return Conv(features, 1, axes, outputs, use_bias=True, dtype=self.dtype, name=name)

        y = jnp.mean(x, (1, 2), keepdims=True)
        y = nn.relu(conv(self.features, self.axis, self.squeeze, "reduce")(y))
        y = conv(x.shape[-1], self.squeeze, self.axis, "expand")(y)
        return x * nn.hard_sigmoid(y)


class Shortcut(nn.Module):
    """What a block adds its input as: halved in size by means, mapped where the widths differ.

    In a super-network the widths may be equal in some architectures and not in others. Then the
    shortcut is a linear map whose matrix is the expected one of identities and convolutions.

    Attributes:
      features: output channels.
      stride: 1 or 2.
      conv: output channels of the convolution; 0 for none.
      same: channels where it may be an identity instead.
      axes: of the block.
      weighed: whether this is a super-network.
      dtype: of the computation (None: that of the input).
    """

    features: int
    stride: int = 1
    conv: int = 0
    same: int = 0
    axes: BlockAxes = BlockAxes()
    weighed: bool = False
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(batch, height, width, inputs)`` to ``(batch, height', width', features)``."""
        if self.stride == 2:  # zeros beyond the edge count in the means
            odd = [(side % 2,) * 2 for side in x.shape[1:3]]
            x = nn.avg_pool(x, (2, 2), (2, 2), odd)
        if not self.conv:
            return x
        either = self.weighed and self.same > 0
        identity = ask(self, either, "identity", (self.same,), (self.axes.same,))
        kernel = (None, None, self.axes.inputs, self.axes.shortcut)
        mapped = self._widen(Conv(self.conv, 1, kernel, dtype=self.dtype, name="conv")(x))
        if identity is not None:
            return mapped + self._widen(x[..., : self.same] * identity.astype(x.dtype))
        return x if either and x.shape[-1] == self.features else mapped

    def _widen(self, x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, 0)] * 3 + [(0, self.features - x.shape[-1])])


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze and excitation, projection, shortcut.

    Attributes:
      sizes: of the block.
      axes: names of its axes.
      weighed: whether this is a super-network.
      dtype: of the computation (None: that of the input).
    """

    sizes: BlockSizes
    axes: BlockAxes = BlockAxes()
    weighed: bool = False
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map ``(batch, height, width, inputs)`` to ``(batch, height', width', features)``.

        Sides are halved, and rounded up, where the stride is 2.
        """
        sizes, axes, y = self.sizes, self.axes, x
        if sizes.expand:
            y = ConvNorm(
                sizes.hidden, 1, axes.inputs, axes.hidden, dtype=self.dtype, name="expand"
            )(y, train)
        kernel = (axes.kernel, axes.kernel, None, axes.hidden)
        y = DepthwiseConv(
            sizes.kernel_size, kernel, sizes.stride, dtype=self.dtype, name="depthwise"
        )(y)
        y = BatchNorm(axis=axes.hidden, dtype=self.dtype, name="norm")(y, train)
        y = nn.swish(y)
        if sizes.squeeze:
            y = SqueezeExcite(
                sizes.squeeze, axes.hidden, axes.squeeze, dtype=self.dtype, name="squeeze"
            )(y)
        y = ConvNorm(
            sizes.features,
            1,
            axes.hidden,
            axes.outputs,
            axes.residual,
            activate=False,
            dtype=self.dtype,
            name="project",
        )(y, train)
        if not sizes.residual:
            return y
        return y + Shortcut(
            sizes.features,
            sizes.stride,
            sizes.shortcut,
            sizes.same,
            axes,
            self.weighed,
            self.dtype,
            name="shortcut",
        )(x)

    def written(self) -> list[jax.Array]:
        """What scales and shifts the output: zero where the block does not exist."""
        return list(jax.tree.leaves(nn.unbox(self.variables["params"]["project"]["norm"])))


def halved(side: int, stride: int) -> int:
    """The side of a map after a convolution of that stride."""
    return math.ceil(side / stride)
