"""Measures of weights, worked out once for all options instead of for every architecture."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import architecture
from nasjax.core import mixture as mixtures
from nasjax.core.architecture import Arch
from nasjax.core.mixture import Mixture
from nasjax.core.names import Leaf
from nasjax.core.space import SearchSpace
from nasjax.search.proxies._view import Path

LookUp = Callable[[Mixture], jax.Array]

_LIMIT = 64  # combinations of options; what depends on more is left to be measured each time


def tabulate(
    space: SearchSpace,
    arch: Arch,
    leaves: Iterable[Leaf],
    measure: Callable[[Leaf, Mixture], jax.Array],
) -> dict[Path, LookUp]:
    """Functions that look up what ``measure`` finds of an array under a one-hot mixture.

    Args:
      space: the search space.
      arch: any architecture with the static options that are meant.
      leaves: arrays, of which only the choices that their axes name matter.
      measure: of an array, ``()``, or ``(layers,)`` where its layers are scanned.

    Returns:
      By path, for the arrays that depend on no more than 64 combinations of options.
    """
    groups: dict[tuple[str, ...], list[Leaf]] = {}
    for leaf in leaves:
        groups.setdefault(_choices(space, leaf), []).append(leaf)
    found: dict[Path, LookUp] = {}
    for names, group in groups.items():
        sizes = [len(space.choice(name).options) for name in names]
        if np.prod(sizes, dtype=int) > _LIMIT:
            continue
        tables = _measured(space, _vectors(space, arch, names, sizes), group, measure)
        for leaf, table in zip(group, tables, strict=True):
            table = np.asarray(table)
            found[leaf.path] = _look_up(leaf, names, table.reshape(*sizes, *table.shape[1:]))
    return found


def _choices(space: SearchSpace, leaf: Leaf) -> tuple[str, ...]:
    """The choices that a mask of ``leaf`` depends on, without the static ones."""
    axes = [*filter(None, leaf.axes), *leaf.operations, *filter(None, [leaf.stack])]
    names = dict.fromkeys(name for axis in axes for name in space.depends(axis))
    return tuple(name for name in names if name not in space.static)


def _vectors(
    space: SearchSpace, arch: Arch, names: tuple[str, ...], sizes: list[int]
) -> np.ndarray:
    """``arch`` encoded with all combinations of options of ``names``, alike in all layers."""
    genes = architecture.genes(space)
    base = architecture.encode(space, arch)
    vectors = []
    for options in itertools.product(*map(range, sizes)):
        chosen = dict(zip(names, options, strict=True))
        vectors.append([chosen.get(name, base[i]) for i, (name, _) in enumerate(genes)])
    return np.array(vectors)


def _measured(
    space: SearchSpace,
    vectors: np.ndarray,
    leaves: list[Leaf],
    measure: Callable[[Leaf, Mixture], jax.Array],
) -> Any:
    def one(vector: jax.Array) -> list[jax.Array]:
        mixture = mixtures.one_hot_vector(space, vector)
        return [measure(leaf, mixture) for leaf in leaves]

    return jax.jit(lambda vectors: jax.lax.map(one, vectors))(vectors)


def _look_up(leaf: Leaf, names: tuple[str, ...], table: np.ndarray) -> LookUp:
    """``table (options of the first choice, ..., [layers])`` at the options of a mixture."""

    def look_up(mixture: Mapping[str, Any]) -> jax.Array:
        found = jnp.asarray(table)
        for name in names:
            weights = mixture[name]
            if leaf.scanned:
                weights = jnp.broadcast_to(weights, (found.shape[-1], weights.shape[-1]))
                found = jnp.einsum("o...l,lo->...l", found, weights)
            else:
                weights = weights if weights.ndim == 1 else weights[leaf.layer]
                found = jnp.tensordot(weights, found, 1)
        return found

    return look_up
