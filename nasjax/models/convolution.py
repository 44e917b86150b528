"""Convolutions with named axes, the depthwise one written for speed, and batch normalisation."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasjax.core.precision import at_least_float32
from nasjax.models.layers import Dtype, Initializer, Names, named, uniform

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Conv(nn.Module):
    """A 2-D convolution whose padding keeps the size: ``(kernel - 1) / 2`` pixels a side.

    Attributes:
      features: output channels.
      kernel_size: side of the kernel; of the largest one where smaller ones are its centre.
      axes: names of the kernel's axes (height, width, inputs, outputs).
      bias_axis: name of the bias's axis.
      use_bias: whether to add a bias [False].
      stride: of both directions [1].
      padding: pixels on each side [what keeps the size].
      dtype: of the computation (None: that of the input).
      kernel_init: initialiser [uniform with bound 1 / sqrt(inputs), PyTorch's default].
    """

    features: int
    kernel_size: int
    axes: Names = ()
    bias_axis: str | None = None
    use_bias: bool = False
    stride: int = 1
    padding: int | None = None
    dtype: Dtype = None
    kernel_init: Initializer = uniform()

    @nn.compact
    def __call__(self, x: jax.Array, factor: jax.Array | None = None) -> jax.Array:
        """Map ``(batch, height, width, inputs)`` to ``(batch, height', width', features)``.

        ``factor`` multiplies the kernel.
        """
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", named(self.kernel_init, self.axes), shape)
        bias = None
        if self.use_bias:
            init = _bias_init(math.prod(shape[:3]))
            bias = self.param("bias", named(init, (self.bias_axis,)), (self.features,))
        kernel = kernel if factor is None else kernel * factor
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        pad = self.kernel_size // 2 if self.padding is None else self.padding
        y = convolve(x, kernel, self.stride, pad)
        return y if bias is None else y + bias


class DepthwiseConv(nn.Module):
    """One kernel for every channel; the padding keeps the size.

    Attributes:
      kernel_size: side of the kernel; of the largest one where smaller ones are its centre.
      axes: names of the kernel's axes (height, width, 1, channels).
      stride: of both directions [1].
      dilation: distance of neighbouring taps [1].
      dtype: of the computation (None: that of the input).
    """

    kernel_size: int
    axes: Names = ()
    stride: int = 1
    dilation: int = 1
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array, factor: jax.Array | None = None) -> jax.Array:
        """Map ``(batch, height, width, channels)`` to ``(batch, height', width', channels)``.

        ``factor`` multiplies the kernel.
        """
        shape = (self.kernel_size, self.kernel_size, 1, x.shape[-1])
        kernel = self.param("kernel", named(uniform(), self.axes), shape)
        kernel = kernel if factor is None else kernel * factor
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return depthwise_conv(x, kernel, self.stride, self.dilation)


def convolve(x: jax.Array, kernel: jax.Array, stride: int, pad: int) -> jax.Array:
    """2-D convolution with a square kernel.

    Where its result is smaller than the kernel, XLA's CPU code for the gradient runs tens of
    times slower than it could, so there every window is copied into a row and multiplied.

    Args:
      x: images (batch, height, width, inputs).
      kernel: (side, side, inputs, outputs).
      stride: of both directions.
      pad: pixels of zeros on each side.
    """

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,) * 2, [(pad, pad)] * 2, dimension_numbers=_LAYOUT
        )

    def windows(x: jax.Array, kernel: jax.Array) -> jax.Array:
        padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        taps = [tap for _, _, tap in _taps(padded, side, stride, 1)]
        rows = jnp.concatenate(taps, -1)
        return rows @ kernel.reshape(rows.shape[-1], -1)

    side = kernel.shape[0]
    smallest = (min(x.shape[1:3]) + 2 * pad - side) // stride + 1
    if smallest >= side:
        return plain(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=windows, default=plain)


def _bias_init(inputs: int) -> Any:
    bound = inputs**-0.5

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, w: _shifted(_pad(x, w, dilation), w, stride, dilation),
        default=lambda x, w: _grouped(x, w, stride, dilation),
    )


# Compiled on its own outside of jit, and traced once for all layers of a shape inside.
@functools.partial(jax.jit, static_argnums=(2, 3))
def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """Depthwise convolution whose padding keeps the size.

    XLA's CPU code for grouped convolutions is ten to forty times slower than adding shifted
    images, so there it is written out; elsewhere it is XLA's.

    Args:
      x: images (batch, height, width, channels).
      kernel: (side, side, 1, channels), the side odd.
      stride: of both directions.
      dilation: distance of neighbouring taps.
    """
    return _depthwise(x, kernel, stride, dilation)


def _grouped(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    pad = dilation * (kernel.shape[0] // 2)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride,) * 2,
        [(pad, pad)] * 2,
        rhs_dilation=(dilation,) * 2,
        dimension_numbers=_LAYOUT,
        feature_group_count=x.shape[-1],
    )


def _pad(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    pad = dilation * (kernel.shape[0] // 2)
    return jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def _taps(
    x: jax.Array, side: int, stride: int, dilation: int
) -> Iterator[tuple[int, int, jax.Array]]:
    """The padded image as every tap of the kernel sees it."""
    reach = dilation * (side - 1)
    for i in range(side):
        for j in range(side):
            top, left = i * dilation, j * dilation
            bottom, right = x.shape[1] - reach + top, x.shape[2] - reach + left
            stop = (x.shape[0], bottom, right, x.shape[3])
            yield i, j, jax.lax.slice(x, (0, top, left, 0), stop, (1, stride, stride, 1))


def _shifted(padded: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    taps = _taps(padded, kernel.shape[0], stride, dilation)
    return sum(tap * kernel[i, j, 0] for i, j, tap in taps)  # type: ignore[return-value]


def _forward(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> Any:
    return _depthwise(x, kernel, stride, dilation), (x, kernel)


def _backward(stride: int, dilation: int, saved: Any, cotangent: jax.Array) -> Any:
    def grouped(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> Any:
        _, pull_back = jax.vjp(lambda x, w: _grouped(x, w, stride, dilation), x, kernel)
        return pull_back(cotangent)

    def shifted(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> Any:
        reach = dilation * (kernel.shape[0] - 1)
        low = reach - reach // 2
        edges = [
            (low, n + reach - low - ((m - 1) * stride + 1), stride - 1)
            for n, m in zip(x.shape[1:3], cotangent.shape[1:3], strict=True)
        ]
        zero = jnp.zeros((), cotangent.dtype)
        spread = jax.lax.pad(cotangent, zero, [(0, 0, 0), *edges, (0, 0, 0)])
        by_x = _shifted(spread, kernel[::-1, ::-1], 1, dilation)
        return by_x, _correlate(x, kernel, cotangent, stride, dilation)

    return jax.lax.platform_dependent(*saved, cotangent, cpu=shifted, default=grouped)


def _correlate(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, stride: int, dilation: int
) -> jax.Array:
    """Gradient of the kernel: for each channel, the image correlated with the cotangent.

    A plain convolution whose kernel is the cotangent and whose inputs are the examples; the
    obvious sums over the image run six times slower.
    """
    pad = dilation * (kernel.shape[0] // 2)
    # Rows beyond the last tap of a stride would make the result longer than the kernel.
    used = [(m - 1) * stride + 1 + 2 * pad for m in cotangent.shape[1:3]]
    padded = _pad(x, kernel, dilation)[:, : used[0], : used[1]]
    images, kernels = padded.transpose(3, 1, 2, 0), cotangent.transpose(3, 1, 2, 0)

    def channel(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        image, kernel = pair
        return jax.lax.conv_general_dilated(
            image[None],
            kernel[..., None],
            (dilation,) * 2,
            "VALID",
            rhs_dilation=(stride,) * 2,
            dimension_numbers=_LAYOUT,
        )[0, ..., 0]

    return jax.lax.map(channel, (images, kernels)).transpose(1, 2, 0)[:, :, None]


_depthwise.defvjp(_forward, _backward)


class BatchNorm(nn.Module):
    """Batch normalisation over all but the last axis, with PyTorch's running statistics.

    In training the statistics of the batch are used, and enter the running ones (collection
    ``"batch_stats"``) where that collection is mutable; its variance is the unbiased one.

    Attributes:
      affine: whether to scale and shift the result.
      axis: name of the channels' axis.
      momentum: of the running statistics, ``momentum * old + (1 - momentum) * new`` [0.9].
      epsilon: added to the variance [1e-5].
      dtype: of the result (None: that of the input); statistics are float32.
    """

    affine: bool = True
    axis: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalise ``(batch, ..., channels)``."""
        init, names, shape = nn.initializers, (self.axis,), (x.shape[-1],)
        running = [
            self.variable("batch_stats", n, named(i, names), None, shape, jnp.float32)
            for n, i in (("mean", init.zeros_init()), ("var", init.ones_init()))
        ]
        dtype, y = self.dtype or x.dtype, at_least_float32(x)
        if train:
            over = tuple(range(x.ndim - 1))
            mean = jnp.mean(y, over)
            var = jnp.mean(jnp.square(y - mean), over)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                count = y.size // y.shape[-1]
                for old, new in zip(running, (mean, var * count / max(count - 1, 1)), strict=True):
                    old.value = self.momentum * old.value + (1 - self.momentum) * new
        else:
            mean, var = (r.value for r in running)
        y = (y - mean) * jax.lax.rsqrt(var + self.epsilon)
        if self.affine:
            y = y * self.param("scale", named(init.ones_init(), names), shape)
            y = y + self.param("bias", named(init.zeros_init(), names), shape)
        return y.astype(dtype)
