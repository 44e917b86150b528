"""Expectations over a mixture of masks and of lengths of axes: the mathematics of the library.

For axes ``a_1..a_k`` whose lengths depend on choices with mixture ``p``::

    E[mask_1 x ... x mask_k] = sum over joint options o of p(o) mask_1(o) x ... x mask_k(o)

Axes that share no choice factorise into an outer product; axes that do (the hidden width
``embed_dim * mlp_ratio`` and ``embed_dim`` itself) stay under one sum. This is the weight
superposition and the combi-superposition of TangleNAS (Algorithms 1 and 2, Figure 2).
"""

from __future__ import annotations

import functools
import string
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core.mixture import Mixture
from nasjax.core.names import Leaf
from nasjax.core.space import SearchSpace


@functools.lru_cache(maxsize=None)
def mask_table(space: SearchSpace, axis: str, layers: tuple[int, ...] | None) -> np.ndarray:
    """Masks of ``axis`` for all joint options of its choices: (options..., [layers,] size)."""
    def mask(length: int) -> np.ndarray:
        row = np.zeros(space.axis_size(axis), np.float32)
        row[space.axes[axis].take(length, row.size)] = 1.0
        return row

    return _table(space, axis, layers, mask)


@functools.lru_cache(maxsize=None)
def length_table(space: SearchSpace, axis: str, layers: tuple[int, ...] | None) -> np.ndarray:
    """Lengths of ``axis`` for all joint options of its choices: (options..., [layers])."""
    return _table(space, axis, layers, np.float32)


def _table(space, axis, layers, entry) -> np.ndarray:  # type: ignore[no-untyped-def]
    shape = tuple(len(space.choice(c).options) for c in space.depends(axis))
    per_layer = [
        np.stack([entry(length) for _, length in space.lengths(axis, layer)])
        for layer in (layers or (None,))
    ]
    per_layer = [t.reshape(shape + t.shape[1:]) for t in per_layer]
    return per_layer[0] if layers is None else np.stack(per_layer, axis=len(shape))


def _layers(space: SearchSpace, axis: str, leaf: Leaf) -> tuple[int, ...] | None:
    if not space.uses_layer(axis):
        return None
    assert leaf.stack is not None
    return tuple(range(space.axis_size(leaf.stack))) if leaf.scanned else (leaf.layer or 0,)


def components(space: SearchSpace, axes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Split ``axes`` into groups that share choices; groups are independent of each other."""
    groups: list[tuple[set[str], list[str]]] = []
    for axis in axes:
        choices, members = set(space.depends(axis)), [axis]
        for group in [g for g in groups if g[0] & choices]:
            groups.remove(group)
            choices, members = choices | group[0], group[1] + members
        groups.append((choices, members))
    yield from (tuple(members) for _, members in groups)


def expectation(
    space: SearchSpace,
    mixture: Mixture,
    leaf: Leaf,
    masked: Sequence[str] = (),
    measured: Sequence[str] = (),
    exists: bool = False,
) -> tuple[jax.Array, bool]:
    """E[product of masks and lengths of axes] of one array, as one ``einsum`` over small tables.

    Args:
      space: the search space.
      mixture: weights of the options.
      leaf: the array; its stack and layer say which rows of the mixture it sees.
      masked: axes that contribute their mask, each a dimension of the result.
      measured: axes that contribute their length.
      exists: whether the event that the array's layer exists contributes as well.

    Returns:
      An array ``([layers,] sizes of masked axes...)`` and whether it has the layers' dimension.
    """
    letters = iter(string.ascii_letters)
    layer_letter = next(letters)
    choice_letter: dict[str, str] = {}
    terms: list[str] = []
    operands: list[jax.Array | np.ndarray] = []

    def add(axis: str, table: np.ndarray, has_layers: bool, own: str) -> None:
        for c in space.depends(axis):
            choice_letter.setdefault(c, next(letters))
        term = "".join(choice_letter[c] for c in space.depends(axis))
        if has_layers and not leaf.scanned:
            table, has_layers = np.squeeze(table, axis=len(term)), False
        terms.append(term + layer_letter * has_layers + own)
        operands.append(table)

    own = {axis: next(letters) for axis in masked}
    for axis in masked:
        layers = _layers(space, axis, leaf)
        add(axis, mask_table(space, axis, layers), layers is not None, own[axis])
    for axis in measured:
        layers = _layers(space, axis, leaf)
        add(axis, length_table(space, axis, layers), layers is not None, "")
    if exists and leaf.stack is not None:
        table = mask_table(space, leaf.stack, None)
        if leaf.scanned:
            add(leaf.stack, table, False, layer_letter)
        else:
            add(leaf.stack, table[..., leaf.layer], False, "")
    for name, letter in choice_letter.items():
        weights = mixture[name]
        per_layer = space.choice(name).per is not None
        if per_layer and not leaf.scanned:
            weights, per_layer = weights[leaf.layer], False
        terms.append(layer_letter * per_layer + letter)
        operands.append(weights)
    has_layers = any(layer_letter in term for term in terms)
    output = layer_letter * has_layers + "".join(own[a] for a in masked)
    result = jnp.einsum(
        f"{','.join(terms)}->{output}", *operands, precision=jax.lax.Precision.HIGHEST
    ) if terms else jnp.ones(())
    return result, has_layers
