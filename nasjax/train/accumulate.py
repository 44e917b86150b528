"""Gradients of a batch that does not fit in memory: part by part, and their mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def in_parts(
    gradient: Callable[[Any, jax.Array], Any], examples: Any, key: jax.Array, parts: int
) -> Any:
    """The mean of ``gradient(examples, key)`` over equal parts of a batch, in the memory of one.

    Where nothing but means over examples enters, it is the gradient of the whole batch; a batch
    normalisation sees the statistics of a part.

    Args:
      gradient: of some examples; ``key`` is of what is drawn for them.
      examples: a tree of arrays whose first axes are the batch.
      key: of the whole batch, and of a single part the same.
      parts: how many; they divide the batch.
    """
    if parts == 1:
        return gradient(examples, key)

    def split(x: jax.Array) -> jax.Array:
        # Every parts-th example, so that a batch spread over devices stays where it is.
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    # Traced once, for the shapes of its result and for the loop.
    @jax.jit
    def one(number: jax.Array, part: Any) -> Any:
        return gradient(part, jax.random.fold_in(key, number))

    def add(total: Any, given: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(*given)), None

    numbered = (jnp.arange(parts), jax.tree.map(split, examples))
    shapes = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], numbered))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, numbered)
    return jax.tree.map(lambda x: x / parts, total)
