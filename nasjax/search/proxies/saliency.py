"""Saliency of weights at initialisation: SNIP and GraSP, summed over a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nasjax.search.errors import SearchError
from nasjax.search.proxies._view import Batch, Flat, Model, View, view
from nasjax.train.losses import cross_entropy

Scored = tuple[jax.Array, dict[str, jax.Array]]


def snip() -> Any:
    """The sum of ``|dL/dW * W|`` over all kernels, ``L`` the cross-entropy of a batch.

    Source: Lee et al., "SNIP: Single-shot Network Pruning" (ICLR 2019), summed over the network as
    TF-TAS compares it (section 4.6). Its released driver sums the means of ten chunks of the batch,
    which is about ten times as much and ranks about the same.
    """

    def score(model: Model, variables: Any, arch: Any, batch: Batch) -> Scored:
        """The sum and every layer's part; ``batch`` has images and labels."""
        seen = view(model, variables, arch, batch)
        loss, weights = _loss(seen, batch)
        # Masked by the weights, which are zero where a sub-network has none.
        slopes = jax.grad(loss)(weights)
        return seen.by_layer({path: jnp.abs(slopes[path] * weights[path]) for path in slopes})

    return score


def grasp() -> Any:
    """The sum of ``-W * (H g)`` over all kernels: how the norm of the gradient would change.

    Source: Wang et al., "Picking winning tickets before training by preserving gradient flow"
    (ICLR 2020), with the gradient ``g`` and the Hessian ``H`` of one batch, of kernels alone.
    """

    def score(model: Model, variables: Any, arch: Any, batch: Batch) -> Scored:
        """The sum and every layer's part; ``batch`` has images and labels."""
        seen = view(model, variables, arch, batch)
        loss, weights = _loss(seen, batch)
        slope = jax.grad(loss)
        direction = jax.lax.stop_gradient(seen.masked(slope(weights)))

        def along(kernels: Flat) -> jax.Array:
            slopes = slope(kernels)
            return sum((jnp.vdot(slopes[p], direction[p]) for p in slopes), jnp.zeros(()))

        # Backwards twice: depthwise convolutions have no forward rule.
        curves = jax.grad(along)(weights)
        return seen.by_layer({path: -curves[path] * weights[path] for path in curves})

    return score


def _loss(seen: View, batch: Batch) -> tuple[Callable[[Flat], jax.Array], Flat]:
    """The cross-entropy as a function of the kernels, and the kernels."""
    if "label" not in batch:
        raise SearchError("this proxy needs labels; give a batch with an image and a label each.")
    labels, used = jnp.asarray(batch["label"]), seen.used(seen.params)

    def loss(kernels: Flat) -> jax.Array:
        logits = seen.logits(seen.with_kernels(used, kernels), batch["image"])
        soft = labels if labels.ndim == 2 else jax.nn.one_hot(labels, logits.shape[-1])
        return cross_entropy(logits, soft)

    return loss, seen.of_kernels(used)
