"""Statistics of batch normalisations for weights that were trained in another network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasjax.core.supernet import STATISTICS
from nasjax.models.layers import DropPath, ScaledDropout


def calibrate_batch_stats(
    module: nn.Module, variables: Mapping[str, Any], batches: jax.Array
) -> dict[str, Any]:
    """Running statistics of ``module`` on ``batches``: the mean of the statistics of each batch.

    A pure function: nothing is changed, least of all a super-network's own statistics. For an
    extracted network, or a super-network under a one-hot mixture, whose running statistics are
    those of other architectures. Works with ``nn.BatchNorm`` and any module like it, whose running
    statistics are ``m * old + (1 - m) * new``.

    Args:
      module: called as ``module(images, train=True)``; its dropout is left out.
      variables: with a collection ``"batch_stats"``, of which only the shapes matter.
      batches: images ``(batches, batch, height, width, channels)``.

    Returns:
      The collection ``"batch_stats"``.
    """

    def after(start: Any, images: jax.Array) -> Any:
        given = {**variables, STATISTICS: start}
        with nn.intercept_methods(without_dropout):
            _, changed = module.apply(given, images, train=True, mutable=[STATISTICS])
        return changed[STATISTICS]

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables[STATISTICS])
    ones = jax.tree.map(jnp.ones_like, zeros)
    # What is left of the old statistics tells each module's momentum.
    kept = jax.tree.map(jnp.subtract, after(ones, batches[0]), after(zeros, batches[0]))

    def add(total: Any, images: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, after(zeros, images)), None

    total, _ = jax.lax.scan(add, zeros, batches)
    return jax.tree.map(lambda t, m: t / (len(batches) * (1.0 - m)), total, kept)


def without_dropout(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Interceptor that leaves dropout and stochastic depth out, in training too."""
    if isinstance(context.module, nn.Dropout | DropPath | ScaledDropout):
        return args[0]
    return next_fun(*args, **kwargs)
