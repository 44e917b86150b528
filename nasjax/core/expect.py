"""Expectations over a mixture of masks and of lengths of axes: the mathematics of the library.

For axes ``a_1..a_k`` whose lengths depend on choices with mixture ``p``::

    E[mask_1 x ... x mask_k] = sum over joint options o of p(o) mask_1(o) x ... x mask_k(o)

A choice that only one axis depends on is summed out of that axis's mask beforehand. Only choices
that several axes share (the hidden width ``embed_dim * mlp_ratio`` and ``embed_dim`` itself) keep
a sum of outer products, over their options alone. This is the weight superposition and the
combi-superposition of TangleNAS (Algorithms 1 and 2, Figure 2).

Everything here is a :class:`Factor`, an array whose dimensions are letters: ``z`` is the layer,
lower-case letters are dimensions of the parameter, upper-case letters are choices.
"""

from __future__ import annotations

import functools
import itertools
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core.mixture import Mixture
from nasjax.core.names import Leaf
from nasjax.core.precision import at_least_float32
from nasjax.core.space import Option, SearchSpace

LAYERS = "z"
# Upper-case letters, of which a space of many choices needs more than the alphabet has.
_CHOICES = "".join(c for c in map(chr, range(0x250)) if c.isupper())
_HIGHEST = jax.lax.Precision.HIGHEST  # masks are exact numbers; bfloat16 products would round them


class Factor(NamedTuple):
    """An array and the letters of its dimensions."""

    array: jax.Array | np.ndarray
    letters: str


@functools.cache
def mask_table(space: SearchSpace, axis: str, layers: tuple[int, ...] | None) -> np.ndarray:
    """Masks of ``axis`` for all joint options of its choices: (options..., [layers,] size)."""

    def mask(values: Mapping[str, Option], layer: int | None) -> np.ndarray:
        row = np.zeros(space.axis_size(axis), np.float32)
        row[space.positions(axis, values, layer)] = 1.0
        return row

    return _table(space, axis, layers, mask)


@functools.cache
def length_table(space: SearchSpace, axis: str, layers: tuple[int, ...] | None) -> np.ndarray:
    """Lengths of ``axis`` for all joint options of its choices: (options..., [layers])."""

    def length(values: Mapping[str, Option], layer: int | None) -> np.float32:
        return np.float32(space.length(axis, values, layer))

    return _table(space, axis, layers, length)


def _table(
    space: SearchSpace,
    axis: str,
    layers: tuple[int, ...] | None,
    entry: Callable[[Mapping[str, Option], int | None], np.ndarray | np.float32],
) -> np.ndarray:
    shape = tuple(len(space.choice(c).options) for c in space.depends(axis))
    per_layer = [
        np.stack([entry(values, layer) for _, values in space.joint(axis)])
        for layer in (layers or (None,))
    ]
    per_layer = [t.reshape(shape + t.shape[1:]) for t in per_layer]
    return per_layer[0] if layers is None else np.stack(per_layer, axis=len(shape))


def _choice_letter(space: SearchSpace, choice: str) -> str:
    return _CHOICES[list(space.by_name).index(choice)]


def _axis_factor(space: SearchSpace, leaf: Leaf, axis: str, own: str) -> Factor:
    """The table of ``axis``: its mask along dimension ``own``, or its length if that is empty."""
    letters = "".join(_choice_letter(space, c) for c in space.depends(axis))
    layers = None
    if space.uses_layer(axis) and leaf.stack is not None:
        every = tuple(range(space.axis_size(leaf.stack)))
        layers = every if leaf.layer is None else (leaf.layer,)
    table = (mask_table if own else length_table)(space, axis, layers)
    if layers is not None and leaf.layer is not None:
        table = np.squeeze(table, axis=len(letters))
    return Factor(table, letters + (LAYERS if layers and leaf.layer is None else "") + own)


def _weight_factor(space: SearchSpace, mixture: Mixture, leaf: Leaf, choice: str) -> Factor:
    weights, letter = mixture[choice], _choice_letter(space, choice)
    if space.choice(choice).per is None:
        return Factor(weights, letter)
    return (
        Factor(weights, LAYERS + letter)
        if leaf.layer is None
        else Factor(weights[leaf.layer], letter)
    )


def _product(factors: Sequence[Factor], letters: str) -> Factor:
    """Multiply ``factors`` and sum over every letter that is not among ``letters``."""
    output = "".join(c for c in letters if any(c in f.letters for f in factors))
    terms = ",".join(f.letters for f in factors)
    arrays = [f.array for f in factors]
    return Factor(jnp.einsum(f"{terms}->{output}", *arrays, precision=_HIGHEST), output)


def mask_factors(space: SearchSpace, mixture: Mixture, leaf: Leaf) -> list[Factor]:
    """Factors whose product, summed over upper-case letters, is the expected mask of an array.

    One factor for each axis that varies: its expected mask given the choices that it shares with
    other axes. The first factor that has a shared choice carries its weights.
    """
    axes = [
        (axis, string.ascii_lowercase[dim])
        for dim, axis in enumerate(leaf.axes)
        if axis is not None and space.depends(axis)
    ]
    users = Counter(choice for axis, _ in axes for choice in space.depends(axis))
    weighted: set[str] = set()
    factors = []
    for axis, own in axes:
        table = _axis_factor(space, leaf, axis, own)
        new = [c for c in space.depends(axis) if users[c] == 1 or c not in weighted]
        weighted.update(new)
        shared = "".join(_choice_letter(space, c) for c in space.depends(axis) if users[c] > 1)
        weights = [_weight_factor(space, mixture, leaf, c) for c in new]
        factors.append(_product([table, *weights], shared + LAYERS + own))
    return factors


def led_by(factor: Factor, letters: str, sizes: Sequence[int]) -> Factor:
    """``factor`` with axes ``letters`` of these ``sizes`` in front, where it need not have them."""
    rest = "".join(c for c in factor.letters if c not in letters)
    present = [c for c in letters if c in factor.letters]
    array = jnp.transpose(factor.array, [factor.letters.index(c) for c in (*present, *rest)])
    array = jnp.expand_dims(array, [i for i, c in enumerate(letters) if c not in present])
    return Factor(jnp.broadcast_to(array, (*sizes, *array.shape[len(letters) :])), letters + rest)


def expected_product(
    space: SearchSpace, mixture: Mixture, leaf: Leaf, axes: Sequence[str]
) -> jax.Array:
    """E[product of the lengths of ``axes``], summed over the layers of the stack that exist."""
    factors = [_axis_factor(space, leaf, axis, "") for axis in axes]
    choices = dict.fromkeys(c for axis in axes for c in space.depends(axis))
    if leaf.stack is not None:
        choices |= dict.fromkeys(space.depends(leaf.stack))
        table, letters = _axis_factor(space, Leaf((), (), ()), leaf.stack, LAYERS)
        if leaf.layer is not None:
            table, letters = table[..., leaf.layer], letters[:-1]
        factors.append(Factor(table, letters))
    factors += [_weight_factor(space, mixture, leaf, c) for c in choices]
    return jnp.asarray(_product(factors, "").array) if factors else jnp.ones(())


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scale(
    subscript: str, letters: tuple[str, ...], value: jax.Array, factors: tuple[jax.Array, ...]
) -> jax.Array:
    """``value`` times the product of ``factors``, summed over their upper-case letters.

    The mask is never made: the few outer products are one fused element-wise loop. Its gradient
    is a handful of thin matrix products, where differentiating the loop would be slow reductions
    (five times the cost on a CPU).

    Args:
      subscript: letters of the dimensions of ``value``.
      letters: letters of the dimensions of each factor; of a ``value`` with layers, each has them.
      value: an array.
      factors: small arrays over some of its dimensions and over shared choices.
    """
    shared = sorted({c for sub in letters for c in sub if c.isupper()})
    sizes = {
        c: f.shape[sub.index(c)]
        for sub, f in zip(letters, factors, strict=True)
        for c in sub
        if c.isupper()
    }
    total: jax.Array | None = None
    for index in itertools.product(*(range(sizes[c]) for c in shared)):
        at = dict(zip(shared, index, strict=True))
        product: jax.Array | None = None
        for sub, factor in zip(letters, factors, strict=True):
            row = factor[tuple(at.get(c, slice(None)) for c in sub)]
            row = _broadcast(row, "".join(c for c in sub if not c.isupper()), subscript)
            product = row if product is None else product * row
        total = product if total is None else total + product  # type: ignore[operator]
    return value if total is None else value * total.astype(value.dtype)


def _broadcast(array: jax.Array, letters: str, subscript: str) -> jax.Array:
    present = [c for c in subscript if c in letters]
    array = jnp.transpose(array, [letters.index(c) for c in present])
    return jnp.expand_dims(array, [i for i, c in enumerate(subscript) if c not in present])


def _scale_forward(subscript, letters, value, factors):  # type: ignore[no-untyped-def]
    return scale(subscript, letters, value, factors), (value, factors)


def _scale_backward(subscript, letters, saved, cotangent):  # type: ignore[no-untyped-def]
    value, factors = saved
    product = Factor(at_least_float32(cotangent * value), subscript)
    # Every contraction is kept within a layer: across layers it would transpose the product.
    spread = [Factor(factor, sub) for factor, sub in zip(factors, letters, strict=True)]
    gradients = [
        _product([product, *spread[:i], *spread[i + 1 :]], sub).array
        for i, sub in enumerate(letters)
    ]
    return scale(subscript, letters, cotangent, factors), tuple(gradients)


scale.defvjp(_scale_forward, _scale_backward)
