"""Growing the searched part of networks with partial channels, between stages of a search.

With ``partial`` channels only one in ``k`` passes through the candidates of an edge. When ``k``
falls, every candidate gets more channels, and each new one is a copy of an old one that is drawn.
Source: DrNAS (Chen et al. 2021, section 4), after Net2Net (Chen et al. 2016). Unlike Net2Net a
copied input is not divided by the number of its copies, so the function is not preserved.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from nasjax.core.errors import NasjaxError
from nasjax.models.operations import CONVOLUTIONS, POOLS, SKIP, parse

Tree = Mapping[str, Any]
Draw = Callable[[str, int, int], np.ndarray]

# What is drawn for a candidate of each kind, in this order. Channels that copies are drawn for on
# the way out of one module are those on the way into the next, or of its normalisation.
_DRAWN = {
    **dict.fromkeys(POOLS, ("norm.out",)),
    SKIP: ("reduce/conv_1.in", "reduce/conv_1.out", "reduce/conv_2.in", "reduce/conv_2.out"),
    "nor_conv": ("conv.in", "conv.out norm.out"),
    "sep_conv": (
        "depthwise_1.out pointwise_1.in",
        "pointwise_1.out norm_1.out",
        "depthwise_2.out pointwise_2.in",
        "pointwise_2.out norm_2.out",
    ),
    "dil_conv": ("depthwise.out pointwise.in", "pointwise.out norm.out"),
}
_DIMENSION = {"in": -2, "out": -1}
_HALVES = ("reduce/conv_1.out", "reduce/conv_2.out")


def widen(variables: Tree, like: Tree, key: jax.Array) -> dict[str, Any]:
    """Variables of the same network with more channels in every candidate.

    Args:
      variables: of a network with partial channels, ``{"params": ..., "batch_stats": ...}`` or
        some of its collections; made for :class:`~nasjax.models.operations.Edge`.
      like: variables, or their shapes, of the network with a smaller ``partial``, for example
        ``spaces.darts(partial_channels=4).shapes``.
      key: which channels are copied follows from it.

    Returns:
      ``variables`` in the shapes of ``like``; old channels come first and are as they were.

    Raises:
      NasjaxError: if ``like`` is another network, or a narrower one.
    """
    flat, wide = (traverse_util.flatten_dict(dict(tree)) for tree in (variables, like))
    result = dict(flat)
    candidates: dict[tuple[str, ...], str] = {}
    for path in flat:
        if path not in wide:
            raise NasjaxError(f"the wider network has no {'/'.join(path)}; is it another one?")
        for i, part in enumerate(path):
            if kind := _kind(part):
                candidates[path[1 : i + 1]] = kind
    for place, kind in candidates.items():
        own = {p: (p[0], *p[1 + len(place) :]) for p in flat if p[1 : 1 + len(place)] == place}
        before = traverse_util.unflatten_dict({own[p]: flat[p] for p in own})
        target = traverse_util.unflatten_dict({own[p]: wide[p] for p in own})
        after = widen_candidate(kind, before, target, _drawing(key, place))
        grown = traverse_util.flatten_dict(after)
        result |= {p: grown[own[p]] for p in own}
    _check(result, wide)
    return traverse_util.unflatten_dict(result)


def widen_candidate(kind: str, variables: Tree, like: Tree, draw: Draw) -> dict[str, Any]:
    """Variables of one candidate with more channels.

    Args:
      kind: of the :class:`~nasjax.models.operations.Candidate`.
      variables: collections of its variables.
      like: their wider shapes.
      draw: ``(name, old, new) -> indices (new,)`` below ``old``: which of the old channels the
        new ones copy. It is called in DrNAS's order.

    Returns:
      ``variables`` in the shapes of ``like``.
    """
    flat, wide = (traverse_util.flatten_dict(dict(tree)) for tree in (variables, like))
    drawn: dict[str, np.ndarray] = {}
    for name in _DRAWN[kind]:
        for path, dim in _sides(name, flat):
            old, new = flat[path].shape[dim], wide[path].shape[dim]
            if name not in drawn and new != old:
                drawn[name] = np.asarray(draw(name, old, new - old), np.int32)
            if name in drawn:
                flat[path] = _append(flat[path], drawn[name], dim)
    if all(name in drawn for name in _HALVES):
        # Its channels are those of one convolution, then those of the other.
        half = variables["params"]["reduce"]["conv_1"]["kernel"].shape[-1]
        for path in flat:
            if path[1:-1] == ("reduce", "norm"):
                parts = (flat[path][:half], flat[path][half:])
                grown = [_append(p, drawn[n], -1) for p, n in zip(parts, _HALVES, strict=True)]
                flat[path] = jnp.concatenate(grown)
    _check(flat, wide)
    return traverse_util.unflatten_dict(flat)


def _kind(name: str) -> str | None:
    """The kind of the candidate that a module called ``name`` is, if it is one."""
    if name in CONVOLUTIONS:  # an entangled one has no kernel size in its name
        return name
    try:
        kind = parse(name)[0]
    except ValueError:
        return None
    return kind if kind in _DRAWN else None


def _sides(name: str, flat: Mapping[tuple[str, ...], Any]) -> list[tuple[tuple[str, ...], int]]:
    """The arrays and dimensions that one draw extends."""
    found = []
    for end in name.split():
        module, side = end.split(".")
        for path in flat:
            if "/".join(path[1:-1]) == module and (side == "out" or path[-1] == "kernel"):
                found.append((path, _DIMENSION[side]))
    return found


def _append(array: jax.Array, indices: np.ndarray, dim: int) -> jax.Array:
    return jnp.take(array, np.concatenate([np.arange(array.shape[dim]), indices]), axis=dim)


def _drawing(key: jax.Array, place: tuple[str, ...]) -> Draw:
    # On the host: a network has a thousand of these draws.
    seed = np.asarray(jax.random.key_data(key)).tolist()

    def draw(name: str, old: int, new: int) -> np.ndarray:
        rng = np.random.default_rng([*seed, zlib.crc32("/".join((*place, name)).encode())])
        return rng.integers(0, old, max(new, 0))

    return draw


def _check(flat: Mapping[tuple[str, ...], Any], wide: Mapping[tuple[str, ...], Any]) -> None:
    for path, array in flat.items():
        if tuple(array.shape) != tuple(wide[path].shape):
            raise NasjaxError(
                f"{'/'.join(path)} cannot grow from {tuple(array.shape)} to "
                f"{tuple(wide[path].shape)}; only the channels of candidates can, and only grow."
            )
