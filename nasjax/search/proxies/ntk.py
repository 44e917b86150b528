"""The neural tangent kernel at initialisation, and the TE-score that follows from it."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp

from nasjax.search.errors import SearchError
from nasjax.search.proxies._view import Batch, Flat, Model, names, view

_NOTHING = r"(?!)"  # a pattern that is found nowhere


def ntk(leave_out: str = _NOTHING) -> Any:
    """Minus the condition number of the neural tangent kernel: how well a network trains.

    Source: Chen et al., "Neural architecture search on ImageNet in four GPU hours" (TE-NAS, ICLR
    2021), section 3.1, which TF-TAS compares as the TE-score. Gradients are those of kernels, of
    each image by itself; TF-TAS's released code adds them up from image to image and leaves
    queries, keys and values out.

    Args:
      leave_out: a pattern of layers that do not count, e.g. ``"qkv"``.
    """

    def score(
        model: Model, variables: Any, arch: Any, batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The score; it is no sum over layers, so there are no parts."""
        values = jnp.linalg.eigvalsh(tangent_kernel(model, variables, arch, batch, leave_out))
        return -values[-1] / values[0], {}

    return score


def tangent_kernel(
    model: Model, variables: Any, arch: Any, batch: Batch, leave_out: str = _NOTHING
) -> jax.Array:
    """Products of the gradients of the sum of the logits of each pair of images.

    Args:
      model: a super-network or a module, see :func:`nasjax.search.proxies.proxy`.
      variables: its parameters.
      arch: of a super-network the architecture or its mixture.
      batch: with ``"image"``, two images at least.
      leave_out: a pattern of layers that do not count.

    Returns:
      The kernel ``(images, images)``.

    Raises:
      SearchError: if the batch is too small.
    """
    images = batch["image"]
    if images.shape[0] < 2:
        raise SearchError(
            f"the tangent kernel of {images.shape[0]} image has no condition; give 2 or more."
        )
    seen = view(model, variables, arch, batch)
    kept = [leaf for leaf in seen.kernels if not re.search(leave_out, next(names(leaf)))]

    used = seen.used(seen.params)
    weights = seen.of_kernels(used)

    def sums(kernels: Flat, images: jax.Array) -> jax.Array:
        return jnp.sum(seen.logits(seen.with_kernels(used, kernels), images), -1)

    if seen.statistics:  # of the whole batch, so the images cannot be taken apart
        slopes = jax.jacrev(sums)(weights, images)
    else:
        slope = jax.grad(lambda kernels, image: sums(kernels, image[None])[0])
        slopes = jax.vmap(slope, (None, 0))(weights, images)
    flat = jax.vmap(seen.masked)(slopes)
    total = jnp.zeros((images.shape[0],) * 2)
    for leaf in kept:
        rows = flat[leaf.path].reshape(images.shape[0], -1)
        total = total + jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
    return total
