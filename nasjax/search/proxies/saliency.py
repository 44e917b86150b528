"""Saliency of weights at initialisation: SNIP and GraSP, summed over a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nasjax.search.errors import SearchError
from nasjax.search.proxies._view import Batch, Flat, Model, View, view
from nasjax.train.accumulate import in_parts
from nasjax.train.losses import cross_entropy

_TOGETHER = 4  # images

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
        loss, weights = _loss(seen)
        # Masked by the weights, which are zero where a sub-network has none.
        slopes = _over_batch(seen, batch, lambda part: jax.grad(loss)(weights, part))
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
        loss, weights = _loss(seen)
        slope = jax.grad(loss)
        slopes = _over_batch(seen, batch, lambda part: slope(weights, part))
        direction = seen.masked(slopes)

        def along(kernels: Flat, part: Batch) -> jax.Array:
            slopes = slope(kernels, part)
            return sum((jnp.vdot(slopes[p], direction[p]) for p in slopes), jnp.zeros(()))

        # Backwards twice: depthwise convolutions have no forward rule.
        curves = _over_batch(seen, batch, lambda part: jax.grad(along)(weights, part))
        return seen.by_layer({path: -curves[path] * weights[path] for path in curves})

    return score


def _loss(seen: View) -> tuple[Callable[[Flat, Batch], jax.Array], Flat]:
    """The cross-entropy of examples as a function of the kernels, and the kernels."""
    used = seen.used(seen.params)

    def loss(kernels: Flat, batch: Batch) -> jax.Array:
        logits = seen.logits(seen.with_kernels(used, kernels), batch["image"])
        labels = batch["label"]
        soft = labels if labels.ndim == 2 else jax.nn.one_hot(labels, logits.shape[-1])
        return cross_entropy(logits, soft)

    return loss, seen.of_kernels(used)


def _over_batch(seen: View, batch: Batch, gradient: Callable[[Batch], Flat]) -> Flat:
    """The ``gradient`` of a batch: a few images at a time, in less memory and on a CPU faster.

    Batch normalisations need the whole batch at once.
    """
    if "label" not in batch:
        raise SearchError("this proxy needs labels; give a batch with an image and a label each.")
    examples = {name: jnp.asarray(batch[name]) for name in ("image", "label")}
    count = len(examples["image"])
    parts = 1 if seen.statistics or count % _TOGETHER else count // _TOGETHER
    return in_parts(lambda part, _: gradient(part), examples, jax.random.key(0), parts)
