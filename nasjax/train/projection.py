"""Gradients in conflict: how often they are, and projecting one off the other, tensor by tensor.

NASViT (section 3) adds the gradient of the super-network and the sum of those of its sub-networks.
Where the two point in opposite directions, one of them gives way: equation (1) takes from the
super-network's gradient its component along that of the sub-networks. Everything here works on any
two trees of one structure.

The released code departs from the paper: its factor is bounded by 2 and its denominator has an
epsilon, so that conflicts may remain, and it clips the sub-networks' gradient first.

Where layers are scanned, one array holds the parameters of all of them; ``stacked`` says so, and
each layer's part is a tensor by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core.errors import NasjaxError, did_you_mean
from nasjax.core.precision import at_least_float32

Tree = Any
Rule = Callable[[jax.Array, jax.Array], jax.Array]
FIRST = ("subnets", "supernet")
_EPSILON, _GREATEST = 1e-6, 2.0  # of the released code


def published(product: jax.Array, square: jax.Array) -> jax.Array:
    """The factor of equation (1): ``-product / square`` in a conflict, otherwise 0.

    Args:
      product: scalar product of the gradient to project with the one that it gives way to.
      square: squared norm of the latter.
    """
    conflict = (product < 0) & (square > 0)
    return jnp.where(conflict, -product / jnp.where(conflict, square, 1.0), 0.0)


def released(product: jax.Array, square: jax.Array) -> jax.Array:
    """The factor of the released code, ``-product / (1e-6 + square)`` between 0 and 2."""
    return jnp.clip(-product / (_EPSILON + square), 0.0, _GREATEST)


RULES: Mapping[str, Rule] = {"published": published, "released": released}


def factors(gradient: Tree, against: Tree, rule: Rule = published, stacked: Tree = None) -> Tree:
    """What of ``against`` is to be added to each tensor of ``gradient``.

    Args:
      gradient: the gradient that gives way.
      against: the one that it gives way to, of the same structure.
      rule: ``(scalar product, squared norm) -> factor``.
      stacked: of the same structure, whether a tensor's first axis runs over layers; None for no.

    Returns:
      A scalar for each tensor, ``(layers,)`` for stacked ones.
    """

    given = _products(gradient, against, stacked)
    return _split(rule(given, _products(against, against, stacked)), gradient, stacked)


def project(gradient: Tree, against: Tree, rule: Rule = published, stacked: Tree = None) -> Tree:
    """``gradient`` without what is in conflict with ``against``; arguments as of :func:`factors`.

    By equation (1) no tensor of the result has a negative cosine with that of ``against``, to
    rounding.
    """

    def one(a: jax.Array, b: jax.Array, factor: jax.Array) -> jax.Array:
        factor = factor.reshape(factor.shape + (1,) * (b.ndim - factor.ndim))
        return a + (factor * b).astype(a.dtype)

    return jax.tree.map(one, gradient, against, factors(gradient, against, rule, stacked))


def combine(
    subnets: Tree,
    supernet: Tree,
    *,
    first: str = "subnets",
    rule: Rule = published,
    stacked: Tree = None,
) -> Tree:
    """The gradient of a step: both added up, one of them projected (equation 1, Table 7).

    Args:
      subnets: sum of the gradients of the sub-networks.
      supernet: gradient of the largest network.
      first: which one has priority: ``"subnets"``, and the super-network gives way, or
        ``"supernet"``, the other way round.
      rule: as of :func:`factors`.
      stacked: likewise.

    Raises:
      NasjaxError: if ``first`` is neither.
    """
    if first not in FIRST:
        raise NasjaxError(f"{first!r} can have no priority; {did_you_mean(first, FIRST)}")
    kept, given = (subnets, supernet) if first == "subnets" else (supernet, subnets)
    return jax.tree.map(jnp.add, kept, project(given, kept, rule, stacked))


def clip_norm(gradient: Tree, norm: float) -> Tree:
    """``gradient`` scaled down so that its norm over all tensors is at most ``norm``.

    The release does this to the sub-networks' gradient alone, with a norm of 1.
    """
    squares = [_product(g, g, False) for g in jax.tree.leaves(gradient)]
    scale = jnp.minimum(1.0, norm / (jnp.sqrt(sum(squares)) + _EPSILON))
    return jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradient)


def cosines(one: Tree, other: Tree, stacked: Tree = None) -> Tree:
    """The cosine of each tensor of two gradients; 0 where one of them is zero.

    The share of negative ones is the conflict ratio (Table 4 counts it per layer, over batches).
    Gradients that are zero but for rounding (biases that a softmax or a batch normalisation
    removes) count as they come.

    Returns:
      A scalar for each tensor, ``(layers,)`` for stacked ones.
    """

    squares = _products(one, one, stacked), _products(other, other, stacked)
    norms = jnp.sqrt(squares[0]) * jnp.sqrt(squares[1])
    known = norms > 0
    flat = _products(one, other, stacked) / jnp.where(known, norms, 1.0)
    return _split(jnp.where(known, flat, 0.0), one, stacked)


def conflict_ratio(cosines: Tree) -> jax.Array:
    """The share of tensors with a negative cosine among those that have one; 0 without any."""
    every = jnp.concatenate([jnp.ravel(c) for c in jax.tree.leaves(cosines)])
    return jnp.sum(every < 0) / jnp.maximum(jnp.sum(every != 0), 1)


def _product(a: jax.Array, b: jax.Array, stack: bool) -> jax.Array:
    axes = tuple(range(int(stack), a.ndim))
    return jnp.sum(at_least_float32(a) * at_least_float32(b), axes)


def _products(one: Tree, other: Tree, stacked: Tree) -> jax.Array:
    """The scalar products of all tensors as one vector: what follows is compiled once, not each."""
    found = jax.tree.map(_product, one, other, _stacked(one, stacked))
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(found)] or [jnp.zeros(0)])


def _split(flat: jax.Array, tree: Tree, stacked: Tree) -> Tree:
    """The entries of such a vector in the place of their tensors."""
    shapes = jax.tree.map(lambda x, s: x.shape[: int(s)], tree, _stacked(tree, stacked))
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    ends = np.cumsum([math.prod(shape) for shape in leaves])
    parts = jnp.split(flat, ends[:-1]) if leaves else []
    pieces = [p.reshape(s) for p, s in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, pieces)


def _stacked(tree: Tree, stacked: Tree) -> Tree:
    return jax.tree.map(lambda _: False, tree) if stacked is None else stacked
