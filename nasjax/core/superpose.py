"""Superposition and extraction: the two ways to read a sub-network out of maximal parameters."""

from __future__ import annotations

import dataclasses
import itertools
import string
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from nasjax.core import architecture
from nasjax.core.architecture import Arch
from nasjax.core.errors import SpaceError
from nasjax.core.expect import LAYERS, led_by, length_table, mask_factors
from nasjax.core.masked import Masked
from nasjax.core.mixture import Mixture
from nasjax.core.names import Leaf, Tree, leaves
from nasjax.core.space import SearchSpace

ACTIVE = "active"
_NEVER = 1e-12  # probabilities below are zero: their squares, which gradients divide by, underflow


def superpose(space: SearchSpace, names: Tree, variables: Tree, mixture: Mixture) -> dict[str, Any]:
    """Multiply every maximal array by the expected mask of its axes.

    The mask of an array in an operation is the expected one *given* that the operation is there.
    The probability that it is there is told to the operation, which weighs its output by it.

    ``module.apply(superpose(space, names, variables, mixture), x)`` is the super-network under
    ``mixture``; with a one-hot mixture it is the sampled sub-network, at maximal shapes. To train
    it, :func:`masked` takes its place: the same without a copy of all weights.

    Args:
      space: the search space.
      names: axis names of ``variables``.
      variables: maximal arrays, e.g. ``{"params": ...}``.
      mixture: weights of the options, see :mod:`nasjax.core.mixture`.

    Returns:
      ``variables`` of the same shapes, and a collection ``"active"`` beside them, which tells
      each normalisation layer how much of each channel is there (the expected mask, at the path
      of its parameter ``scale``), and each operation its ``mass`` (the probability that it is
      there).

    Raises:
      SpaceError: if a choice changes the length of no axis: masks cannot express it.
    """
    return nn.unbox(masked(space, names, variables, mixture))


def masked(space: SearchSpace, names: Tree, variables: Tree, mixture: Mixture) -> dict[str, Any]:
    """Put every maximal array and its expected mask in a box that Flax opens when it is read.

    :func:`superpose` with the products left to the module: ``module.apply`` of either is the same
    super-network, but layers that are scanned multiply one at a time. It takes, returns and raises
    the same, with parameters as :class:`~nasjax.core.masked.Masked`.
    """
    if space.inert:
        raise SpaceError(
            f"choice {space.inert[0]!r} of space {space.name!r} changes the length of no axis, so "
            "its options cannot be superposed; such networks can be built, extracted and counted."
        )
    flat = traverse_util.flatten_dict(dict(variables))
    plan = list(leaves(space, names, variables))
    parts = dict.fromkeys(leaf.operations for leaf in plan)
    within = {operations: _given(space, mixture, operations) for operations in parts}
    specs = traverse_util.flatten_dict(dict(names))
    weighed = {}
    for leaf in plan:
        if leaf.path[0] != ACTIVE:
            given = within[leaf.operations]
            box = _box(space, leaf, flat[leaf.path], given, tuple(specs[leaf.path]))
            # Other collections are written, too: a box is for reading.
            weighed[leaf.path] = box if leaf.path[0] == "params" else box.unbox()
    active = {
        (ACTIVE, *leaf.path[1:]): _weigh(space, leaf, jnp.ones(leaf.shape), within[leaf.operations])
        for leaf in plan
        if leaf.path[0] == "params" and leaf.path[-1] == "scale" and any(leaf.axes)
    }
    asked = {
        leaf.path: _weigh(space, leaf, jnp.ones(leaf.shape), within[leaf.operations])
        if any(leaf.axes)
        else _mass(space, leaf, mixture)
        for leaf in plan
        if leaf.path[0] == ACTIVE
    }
    return traverse_util.unflatten_dict({**weighed, **active, **asked})


def _given(space: SearchSpace, mixture: Mixture, operations: tuple[str, ...]) -> Mixture:
    """``mixture`` given that ``operations`` are there.

    An operation that is never there has no such mixture; its options are then equally likely, so
    that the gradient in its probability, which weighs its output, says what it would be worth.
    """
    given = dict(mixture)
    for operation in operations:
        (choice,) = space.depends(operation)
        there = length_table(space, operation, None)
        kept = given[choice] * there
        mass = jnp.sum(kept, -1, keepdims=True)
        known = mass > _NEVER
        even = jnp.broadcast_to(there / there.sum(), kept.shape).astype(kept.dtype)
        given[choice] = jnp.where(known, kept / jnp.where(known, mass, 1.0), even)
    return given


def _mass(space: SearchSpace, leaf: Leaf, mixture: Mixture) -> jax.Array:
    """The probability that the operations which ``leaf`` is part of are there."""
    one = leaf.shape[: leaf.scanned] + (1,) * len(leaf.operations)
    whole = dataclasses.replace(leaf, shape=one, axes=leaf.operations)
    return jnp.reshape(_weigh(space, whole, jnp.ones(one), mixture), leaf.shape)


def _weigh(space: SearchSpace, leaf: Leaf, value: jax.Array, mixture: Mixture) -> jax.Array:
    return _box(space, leaf, value, mixture).unbox()


def _box(
    space: SearchSpace,
    leaf: Leaf,
    value: jax.Array,
    mixture: Mixture,
    names: tuple[str | None, ...] = (),
) -> Masked:
    """``value``, whose axes the module calls ``names``, and its mask."""
    names = names + (None,) * (len(value.shape) - len(names))
    subscript = (LAYERS if leaf.scanned else "") + string.ascii_lowercase[: len(leaf.axes)]
    moved = [a for a in leaf.axes if a is not None and space.axis(a).put is not None]
    if moved:
        return Masked(_weigh_moved(space, leaf, moved, value, mixture), (), (), subscript, names)
    # What a module may map over leads every factor: layers, and what it alone has a name for.
    own = zip(leaf.axes, names[leaf.scanned :], strict=True)
    lead = leaf.scanned + sum(1 for _ in itertools.takewhile(lambda a: a[0] is None and a[1], own))
    leading = subscript[:lead], value.shape[:lead]
    factors = [led_by(factor, *leading) for factor in mask_factors(space, mixture, leaf)]
    arrays = tuple(factor.array for factor in factors)
    return Masked(value, arrays, tuple(factor.letters for factor in factors), subscript, names)


def _weigh_moved(
    space: SearchSpace, leaf: Leaf, moved: list[str], value: jax.Array, mixture: Mixture
) -> jax.Array:
    """Superpose an array one of whose axes is laid out differently in storage and in use.

    Each option's entries are moved to where the maximal network expects them before they are
    added up, so no mask can do it: a sum over the options of that axis.
    """
    if len(moved) > 1 or space.uses_layer(moved[0]):
        raise SpaceError(f"{leaf}: only one axis of an array may have `put`, found {moved}.")
    axis = moved[0]
    dim = leaf.axes.index(axis) + leaf.scanned
    size = leaf.shape[dim]
    rest = dataclasses.replace(leaf, axes=tuple(None if a == axis else a for a in leaf.axes))
    put = space.axis(axis).put
    assert put is not None
    total = jnp.zeros_like(value)
    for index, length in space.lengths(axis):
        source = np.full(size, size)  # out of bounds: filled with zero
        source[put(length, size)] = space.axis(axis).take(length, size)
        part = jnp.take(value, source, axis=dim, mode="fill", fill_value=0)
        given = dict(mixture)
        for name, option in zip(space.depends(axis), index, strict=True):
            weight = mixture[name][..., option]
            if space.choice(name).per is not None and not leaf.scanned:
                weight = weight[leaf.layer]
            part = part * jnp.reshape(weight, weight.shape + (1,) * (part.ndim - weight.ndim))
            given[name] = jnp.zeros_like(mixture[name]).at[..., option].set(1.0)
        total = total + _weigh(space, rest, part, given)
    return total.astype(value.dtype)


def extract(space: SearchSpace, names: Tree, variables: Tree, arch: Arch) -> dict[str, Any]:
    """Cut the sub-network ``arch`` out of maximal arrays.

    Args:
      space: the search space.
      names: axis names of ``variables``.
      variables: maximal arrays.
      arch: the architecture.

    Returns:
      Small arrays for the same module class at the sub-network's own sizes. Scanned layers come
      out unrolled, as ``NAME_0, NAME_1, ...``, since each has its own shapes; layers beyond the
      depth are gone, operations that were not chosen, and arrays an axis of which has length 0.

    Raises:
      ArchitectureError: if ``arch`` does not lie in ``space``.
    """
    arch = architecture.validate(space, arch)
    flat = traverse_util.flatten_dict(dict(variables))
    small = {}
    plan = list(leaves(space, names, variables))
    for leaf in plan:
        value = flat[leaf.path]
        if leaf.path[0] == ACTIVE:
            continue
        if leaf.stack is None:
            layers: list[int | None] = [None]
        elif leaf.layer is None:
            layers = list(range(architecture.depth(space, leaf.stack, arch)))
        else:
            layers = [leaf.layer] * (leaf.layer < architecture.depth(space, leaf.stack, arch))
        for layer in layers:
            if not all(architecture.axis_length(space, a, arch, layer) for a in leaf.operations):
                continue
            path, own = leaf.path, value
            if leaf.scanned:
                path, own = unrolled(leaf.path, str(leaf.stack), int(layer or 0)), value[layer]
            cut = _cut(space, leaf, own, arch, layer)
            if cut.size:
                small[path] = cut
    return traverse_util.unflatten_dict(small)


def narrow(
    space: SearchSpace, names: Tree, variables: Tree, smaller: SearchSpace
) -> dict[str, Any]:
    """Cut maximal arrays of ``space`` to those of ``smaller``, which has fewer of its options.

    Args:
      space: the search space.
      names: axis names of ``variables``.
      variables: maximal arrays.
      smaller: the same space with shorter axes, and as many layers.
    """
    flat = traverse_util.flatten_dict(dict(variables))
    for leaf in leaves(space, names, variables):
        for dim, axis in enumerate(leaf.axes, leaf.scanned):
            if axis is not None and smaller.axis_size(axis) < space.axis_size(axis):
                keep = space.axis(axis).take(smaller.axis_size(axis), space.axis_size(axis))
                flat[leaf.path] = _kept(flat[leaf.path], keep, dim)
    return traverse_util.unflatten_dict(flat)


def unrolled(path: tuple[str, ...], stack: str, layer: int) -> tuple[str, ...]:
    """Path of layer ``layer``'s own copy of an array of scanned layers.

    Raises:
      SpaceError: if the module whose layers are scanned is not called after its stack.
    """
    if stack not in path:
        raise SpaceError(
            f"{'/'.join(path)} has the leading axis {stack!r}, so the module whose layers are "
            f"scanned must be called {stack!r} too."
        )
    at = path.index(stack)
    return (*path[:at], f"{stack}_{layer}", *path[at + 1 :])


def _cut(
    space: SearchSpace, leaf: Leaf, value: jax.Array, arch: Arch, layer: int | None
) -> jax.Array:
    for dim, axis in enumerate(leaf.axes):
        if axis is None or axis in space.stacks:
            continue
        keep = space.positions(axis, architecture.values(space, axis, arch, layer), layer)
        value = _kept(value, keep, dim)
    return value


def _kept(value: jax.Array, keep: np.ndarray, dim: int) -> jax.Array:
    """The entries ``keep`` of dimension ``dim``."""
    if keep.size and np.array_equal(keep, np.arange(keep[0], keep[0] + keep.size)):
        return jax.lax.slice_in_dim(value, int(keep[0]), int(keep[-1]) + 1, axis=dim)
    return jnp.take(value, keep, axis=dim)
