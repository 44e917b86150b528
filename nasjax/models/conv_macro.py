"""The convolutional network of TangleNAS's toy macro space: four convolutions to choose, no cells.

Axis names: ``kernel_1`` .. ``kernel_4`` (sides) and ``channels_1`` .. ``channels_4`` (outputs of
each convolution, inputs of the next). With plain weight sharing every combination of kernel size,
inputs and outputs has a kernel of its own, along the leading axes ``own_kernel_1``,
``own_channels_0`` and so on: since a convolution is linear in its kernel and no normalisation
follows, mixing outputs is mixing kernels.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nasjax.models.convolution import Conv, convolve
from nasjax.models.layers import dense, named, uniform

LARGEST = 7  # the side of the last convolution's kernel, which is not searched

Owners = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class OwnedConv(nn.Module):
    """A convolution whose options own their kernels and biases.

    Attributes:
      features: output channels.
      kernel_size: side of the largest kernel.
      layer: index from 1, in the names of the axes.
      owners: options of the inputs, of the outputs and of the kernel size, one each in a network
        of its own. Every combination's kernel is drawn for its own number of inputs.
      gain: of the initial kernels, see :class:`ConvMacroNetwork`.
    """

    features: int
    kernel_size: int
    layer: int
    owners: Owners
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(batch, height, width, inputs)`` to ``(batch, height, width, features)``."""
        before, after = f"channels_{self.layer - 1}", f"channels_{self.layer}"
        kernel = f"kernel_{self.layer}"
        axes = (f"own_{before}", f"own_{after}", f"own_{kernel}")
        side = (self.kernel_size,) * 2
        count = tuple(map(len, self.owners))
        inputs, _, kernels = self.owners
        fans = np.multiply.outer(inputs, np.ones(count[1])[:, None] * np.square(kernels))
        bounds = 1.0 / np.sqrt(fans)  # of each owner, by inputs, outputs and kernel size
        drawn = self.param(
            "kernel",
            named(_within(self.gain * bounds), (*axes, kernel, kernel, before, after)),
            (*count, *side, x.shape[-1], self.features),
        )
        biases = self.param("bias", named(_within(bounds), (*axes, after)), (*count, self.features))
        y = convolve(x, jnp.sum(drawn, (0, 1, 2)), 1, self.kernel_size // 2)
        return y + jnp.sum(biases, (0, 1, 2))


def _within(bounds: np.ndarray) -> Any:
    """Uniform with a bound for each index of the leading axes."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        drawn = jax.random.uniform(key, shape, dtype, -1.0, 1.0)
        each = bounds.reshape(bounds.shape + (1,) * (len(shape) - bounds.ndim))
        return drawn * jnp.asarray(each, dtype)

    return init


class ConvMacroNetwork(nn.Module):
    """Five convolutions and four linear layers (TangleNAS section 4.1, for images of 32 pixels).

    Attributes:
      channels: outputs of the first four convolutions.
      kernels: sides of their kernels.
      num_classes: classes.
      dropout: rate at which whole channels are dropped, twice.
      owners: for plain weight sharing, options (inputs, outputs, kernel) of each convolution.
      gain: by how much the initial kernels are larger than PyTorch's default, which loses five
        sixths of the signal's variance in every layer. sqrt(6) keeps it (He et al. 2015).
    """

    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    num_classes: int = 10
    dropout: float = 0.5
    owners: tuple[Owners, ...] | None = None
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits (batch, classes) of images ``(batch, height, width, 3)``."""
        for i in range(1, 5):
            x = nn.relu(self._conv(i)(x))
            if i == 3:
                x = self._drop(x, train)
            if i in (2, 3):
                x = nn.max_pool(x, (2, 2), (2, 2))
        axes, init = (None, None, "channels_4", None), uniform(self.gain)
        conv = Conv(256, LARGEST, axes, use_bias=True, padding=2, kernel_init=init, name="conv_5")
        x = self._drop(conv(x), train)
        x = x.reshape(x.shape[0], -1)
        for i, features in enumerate((256, 128, 64)):
            x = nn.relu(dense(features, f"hidden_{i + 1}", gain=self.gain)(x))
        return dense(self.num_classes, "head", gain=self.gain)(x)

    def _conv(self, i: int) -> nn.Module:
        features, side = self.channels[i - 1], self.kernels[i - 1]
        if self.owners is not None:
            return OwnedConv(features, side, i, self.owners[i - 1], self.gain, name=f"conv_{i}")
        kernel, before, after = f"kernel_{i}", f"channels_{i - 1}", f"channels_{i}"
        axes = (kernel, kernel, before, after)
        init = uniform(self.gain)
        return Conv(features, side, axes, after, True, kernel_init=init, name=f"conv_{i}")

    def _drop(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(x)
