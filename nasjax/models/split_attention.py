"""Attention whose number of heads is searched: what is private, what is shared, and the split.

Source: Su et al., "Vision Transformer Architecture Search" (2021), section 4.2, equations 7 and
8. The attention width is split among the heads, so where a head begins changes with the width and
with the number of heads, and no mask can say so. A super-network moves the channels of each head,
in the rows and columns of its linear maps, to where the widest network has them; weights are
fewer than activations.

Axis names: ``embed``, ``value`` (attention width), ``query_key`` (twice it) and
``query_key_value`` (three times it). Operations: ``heads_3``, ...
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasjax.core.precision import at_least_float32
from nasjax.models.attention import attend
from nasjax.models.layers import (
    Dtype,
    Initializer,
    Names,
    ask,
    fan_in_normal,
    kept,
    named,
    truncated_normal,
)

# What the numbers of heads share (Table 2 of the paper): the linear maps that all of them use,
# and those that each owns; together they make queries, keys and values, in this order.
SHARED: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "v": (("value",), ("query_key",)),
    "qk": (("query_key",), ("value",)),
    "qkv": (("query_key_value",), ()),
    "none": ((), ("query_key", "value")),
}
_PARTS = {"query_key": 2, "value": 1, "query_key_value": 3}
_NEVER = 1e-12  # probabilities below are zero, as where operations are superposed

Weights = tuple[jax.Array, jax.Array]  # kernel (inputs, outputs) and bias (outputs,)


class Projection(nn.Module):
    """Kernel and bias of a linear map that somebody else applies.

    Attributes:
      inputs: rows of the kernel.
      outputs: columns of the kernel.
      axes: names of the kernel's axes; the bias has the second.
      kernel_init: see :class:`~nasjax.models.layers.Linear`.
      param_dtype: of the parameters.
    """

    inputs: int
    outputs: int
    axes: Names
    kernel_init: Initializer | None = truncated_normal
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self) -> Weights:
        """The kernel ``(inputs, outputs)`` and the bias ``(outputs,)``."""
        shape = (self.inputs, self.outputs)
        init = fan_in_normal(self.inputs) if self.kernel_init is None else self.kernel_init
        kernel = self.param("kernel", named(init, self.axes), shape, self.param_dtype)
        zeros = named(nn.initializers.zeros_init(), self.axes[1:])
        return kernel, self.param("bias", zeros, shape[1:], self.param_dtype)


class HeadCount(nn.Module):
    """What a number of heads owns: its linear maps and, in a super-network, its mass.

    Attributes:
      roles: of its linear maps, see ``SHARED``.
      width: the attention width.
      weighed: whether this is a super-network.
      kernel_init: see :class:`~nasjax.models.layers.Linear`.
      param_dtype: of the parameters.
    """

    roles: tuple[str, ...]
    width: int
    weighed: bool
    kernel_init: Initializer | None = truncated_normal
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: int) -> tuple[dict[str, Weights], Any]:
        """Weights by role for ``inputs`` channels, and the mass; None where nobody told it."""
        mass = ask(self, self.weighed, "mass")
        options = {"kernel_init": self.kernel_init, "param_dtype": self.param_dtype}
        return _projections(self.roles, inputs, self.width, options), mass


def _projections(
    roles: Sequence[str], inputs: int, width: int, options: Mapping[str, Any]
) -> dict[str, Weights]:
    """Weights by role, of submodules of the module that calls this."""
    return {
        role: Projection(inputs, _PARTS[role] * width, ("embed", role), name=role, **options)()
        for role in roles
    }


class Split:
    """How an attention width is split among ``heads``, and where their channels are stored.

    A network of its own has ``active`` None and all of its channels in use, head by head. In a
    super-network the active channels are the leading or the trailing ones of ``width``. Under a
    mixture that is not one-hot the width is the mean one: the heads are as wide as the nearest
    whole number, and channels beyond the last head take no part.

    Args:
      heads: number of heads.
      width: the maximal attention width.
      active: the expected mask of the channels (width,), or None.

    Raises:
      ValueError: if the width does not divide into the heads.
    """

    def __init__(self, heads: int, width: int, active: jax.Array | None) -> None:
        if width % heads:
            raise ValueError(
                f"attention of {width} channels does not divide into {heads} heads; a multiple of "
                "every number of heads was expected."
            )
        self.heads, self.width, self.active = heads, width, active
        self.room = width // heads  # channels of a head in the widest network
        self.head_dim: Any = self.room
        if active is not None:
            mean = jnp.sum(at_least_float32(active))
            self.head_dim = jnp.clip(jnp.round(mean / heads), 1, self.room).astype(jnp.int32)

    def take(self, array: jax.Array, part: int = 0, parts: int = 1, axis: int = -1) -> jax.Array:
        """Channels of one of ``parts`` packed in ``array``, ``room`` for each head.

        The parts lie end to end in the active channels (queries, then keys), so where the second
        one begins moves with the width too.

        Args:
          array: ``axis`` has ``parts * width`` entries.
          part: which.
          parts: how many there are.
          axis: of the channels.

        Returns:
          An array with ``heads * room`` entries along ``axis``, zero where a head has fewer.
        """
        size = parts * self.width
        if self.active is None:
            begin = part * self.width
            return jax.lax.slice_in_dim(array, begin, begin + self.width, axis=axis % array.ndim)
        used = self.heads * self.head_dim
        leading = self.active[0] >= self.active[-1]
        begin = jnp.where(leading, 0, size - parts * used) + part * used
        slots = jnp.arange(self.heads * self.room)
        head, offset = jnp.divmod(slots, self.room)
        # Out of bounds where a head has no such channel, and no index twice: gradients scatter.
        source = jnp.where(
            offset < self.head_dim, begin + head * self.head_dim + offset, size + slots
        )
        return jnp.take(array, source, axis, mode="fill", fill_value=0, unique_indices=True)


class SplitAttention(nn.Module):
    """Self-attention with one of several numbers of heads (equations 7 and 8).

    The outputs of the numbers of heads are mixed by their share in the probability that there is
    a block at all. One of no probability is not computed, so its gradient is zero, also that in
    its probability; under ``vmap`` it is computed and dropped.

    Attributes:
      heads: the numbers of heads; one of them in a network of its own.
      width: the attention width, split among the heads.
      shared: a key of ``SHARED``.
      scale: factor of the logits [head dimension ** -0.5].
      backend: see :func:`~nasjax.models.attention.attend` ["xla"].
      weighed: whether this is a super-network.
      kernel_init: see :class:`~nasjax.models.layers.Linear`.
      dtype: of the computation (None: that of the input).
      param_dtype: of the parameters.
    """

    heads: tuple[int, ...]
    width: int
    shared: str = "v"
    scale: float | None = None
    backend: str = "xla"
    weighed: bool = False
    kernel_init: Initializer | None = truncated_normal
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Attend within ``x (batch, tokens, embed)``."""
        features = x.shape[-1]
        active = ask(self, self.weighed, "width", (self.width,), ("value",))
        roles, private = SHARED[self.shared]
        options: Any = {"kernel_init": self.kernel_init, "param_dtype": self.param_dtype}
        common = _projections(roles, features, self.width, options)
        output, bias = Projection(
            self.width, features, ("value", "embed"), name="proj", **options
        )()
        owned, masses = [], []
        for heads in self.heads:
            own, mass = HeadCount(
                private, self.width, self.weighed, name=f"heads_{heads}", **options
            )(features)
            owned.append(own)
            masses.append(mass)
        total: Any = nn.dtypes.promote_dtype(bias, x, dtype=self.dtype)[0]
        for heads, own, share in zip(self.heads, owned, _shares(masses), strict=True):
            split = Split(heads, self.width, active)
            operands = (x, {**common, **own}, output)

            mix = functools.partial(self._mix, split)
            if isinstance(share, float):
                total = total + share * mix(operands)
                continue
            part = _if_present(mix, share > 0, operands)
            total = total + share.astype(part.dtype) * part
        return total

    def _mix(
        self, split: Split, operands: tuple[jax.Array, Mapping[str, Weights], jax.Array]
    ) -> jax.Array:
        x, weights, output = operands
        roles = [role for role in _PARTS if role in weights]
        kernel, bias = (
            jnp.concatenate(
                [
                    split.take(weights[role][i], part, _PARTS[role])
                    for role in roles
                    for part in range(_PARTS[role])
                ],
                -1,
            )
            for i in range(2)
        )
        output = split.take(output, axis=0)
        x, kernel, bias, output = nn.dtypes.promote_dtype(x, kernel, bias, output, dtype=self.dtype)
        batch, tokens, features = x.shape
        qkv = kept(x.reshape(-1, features) @ kernel) + bias
        query, key, value = jnp.moveaxis(
            qkv.reshape(batch, tokens, 3, split.heads, split.room), 2, 0
        )
        scale = split.head_dim**-0.5 if self.scale is None else self.scale
        mixed = attend(query, key, value, scale, self.backend)
        mixed = kept(kept(mixed.reshape(-1, split.heads * split.room)) @ output)
        return mixed.reshape(batch, tokens, features)


# Recomputed in the backward pass: what a conditional keeps for it is kept for the branches that
# were not taken too, and attention keeps a square of the tokens for every head.
@functools.partial(jax.checkpoint, static_argnums=(0,), prevent_cse=False)
def _if_present(function: Any, present: jax.Array, operands: Any) -> jax.Array:
    return jax.lax.cond(present, function, functools.partial(_zeros, function), operands)


def _zeros(function: Any, operands: Any) -> jax.Array:
    like = jax.eval_shape(function, operands)
    return jnp.zeros(like.shape, like.dtype)


def _shares(masses: Sequence[Any]) -> list[Any]:
    """Masses as parts of their sum; even ones where there is none."""
    even = 1.0 / len(masses)
    if any(mass is None for mass in masses):
        return [even] * len(masses)
    total = sum(masses)
    known = total > _NEVER
    return [jnp.where(known, mass / jnp.where(known, total, 1.0), even) for mass in masses]
