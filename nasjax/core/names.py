"""Names of parameter axes: from Flax's own metadata, or from a table of path patterns.

A tree of names mirrors the variables, with a ``PartitionSpec`` of axis names for every array:
``P("embed", "mlp")``. It is the logical-axis tree that Flax's sharding rules read, so one
annotation serves superposition, extraction, counting and sharding.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util
from jax.sharding import PartitionSpec

from nasjax.core.errors import SpaceError
from nasjax.core.space import SearchSpace

Tree = Mapping[str, Any]


def axis_names(variables: Tree) -> dict[str, Any]:
    """Axis names of ``variables`` from their logical-partitioning metadata.

    Args:
      variables: what ``module.init`` (or ``jax.eval_shape`` of it) returned, boxes included.

    Returns:
      A tree of ``PartitionSpec``; arrays without metadata have no named axes.
    """
    specs = nn.get_partition_spec(variables)
    return jax.tree.map(
        lambda s: s if isinstance(s, PartitionSpec) else PartitionSpec(),
        dict(specs),
        is_leaf=lambda s: s is None or isinstance(s, PartitionSpec),
    )


def name_axes(variables: Tree, patterns: Mapping[str, tuple[str | None, ...]]) -> dict[str, Any]:
    """Axis names of a model that cannot be edited, from a table of path patterns.

    Args:
      variables: a tree of arrays, e.g. ``{"params": ...}``.
      patterns: regular expressions searched for in the slash-joined path of each array, in order;
        the first that is found gives the names of the array's axes (None for an unnamed one).

    Returns:
      A tree of ``PartitionSpec``; arrays that no pattern matches have no named axes.

    Raises:
      SpaceError: if a pattern matches nothing, or names another number of axes than an array has.
    """
    unused, named = set(patterns), {}
    for path, array in traverse_util.flatten_dict(dict(variables)).items():
        named[path] = PartitionSpec()
        for pattern, axes in patterns.items():
            if re.search(pattern, "/".join(path)):
                if len(axes) != len(array.shape):
                    raise SpaceError(
                        f"pattern {pattern!r} names {len(axes)} axes {axes}, but "
                        f"{'/'.join(path)} has shape {tuple(array.shape)}."
                    )
                named[path] = PartitionSpec(*axes)
                unused.discard(pattern)
                break
    if unused:
        paths = ["/".join(p) for p in named]
        raise SpaceError(
            f"no parameter matches {sorted(unused)}; the parameters are {', '.join(paths)}."
        )
    return traverse_util.unflatten_dict(named)


@dataclass(frozen=True)
class Leaf:
    """One array of a super-network, and where it stands in the search space.

    Attributes:
      path: keys from the root of the variables.
      shape: its maximal shape.
      axes: for each dimension the name of an axis of the space, or None where the dimension is
        constant. The leading axis of scanned layers is not among them.
      stack: the stack of layers it belongs to, if any.
      layer: its layer's index where layers are unrolled; None where they are scanned.
      operations: the operations that it is part of, as axes: it exists where all have length 1.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    stack: str | None = None
    layer: int | None = None
    operations: tuple[str, ...] = ()

    @property
    def scanned(self) -> bool:
        """Whether the array's leading dimension runs over the layers of its stack."""
        return self.stack is not None and self.layer is None

    def __str__(self) -> str:
        return "/".join(self.path)


def leaves(space: SearchSpace, names: Tree, variables: Tree) -> Iterator[Leaf]:
    """Every array of ``variables`` with its axes resolved in ``space``.

    Raises:
      SpaceError: if an axis has another size in an array than the space gives it, or ``names``
        lacks an array.
    """
    flat_names = traverse_util.flatten_dict(dict(names))
    for path, array in traverse_util.flatten_dict(dict(variables)).items():
        if path not in flat_names:
            raise SpaceError(f"the axis names lack {'/'.join(path)}; name the whole tree.")
        yield _leaf(space, path, tuple(array.shape), tuple(flat_names[path]))


def _leaf(
    space: SearchSpace, path: tuple[str, ...], shape: tuple[int, ...], spec: tuple[Any, ...]
) -> Leaf:
    if len(spec) > len(shape):
        raise SpaceError(f"{'/'.join(path)} has shape {shape}, but {len(spec)} named axes {spec}.")
    stack, layer = None, None
    if spec and spec[0] in space.stacks:
        stack = spec[0]
    else:
        for part in path:
            match = re.fullmatch(rf"({'|'.join(map(re.escape, space.stacks))})_(\d+)", part)
            if space.stacks and match:
                stack, layer = match[1], int(match[2])
    if layer is not None and layer >= space.axis_size(stack):
        raise SpaceError(
            f"{'/'.join(path)} is in layer {layer} of {stack!r}, but in space {space.name!r} the "
            f"deepest network has {space.axis_size(stack)} layers, counted from 0."
        )
    named = (space.in_stack(a, stack) if a else None for a in spec)
    axes = tuple(a if a in space.axes else None for a in named) + (None,) * (len(shape) - len(spec))
    within = [space.in_stack(part, stack) for part in path]
    operations = tuple(dict.fromkeys(a for a in within if a in space.operations))
    for dim, axis in enumerate(axes):
        if axis is not None and shape[dim] != space.axis_size(axis):
            raise SpaceError(
                f"axis {axis!r} of {'/'.join(path)} has {shape[dim]} entries, but its largest "
                f"length in space {space.name!r} is {space.axis_size(axis)}; "
                "build the module at its maximal size."
            )
    leaf = Leaf(path, shape, axes, stack, layer, operations)
    for axis in (*axes, *operations):
        if axis is not None and axis not in space.stacks:
            _check_layers(space, axis, leaf)
    return dataclasses.replace(leaf, axes=axes[1:]) if leaf.scanned else leaf


def _check_layers(space: SearchSpace, axis: str, leaf: Leaf) -> None:
    per = {p for c in space.depends(axis) if (p := space.choice(c).per) is not None}
    if (space.uses_layer(axis) and leaf.stack is None) or per - {leaf.stack}:
        where = " or ".join(sorted(per)) or "a stack"
        raise SpaceError(
            f"axis {axis!r} of {leaf} is chosen per layer of {where}, but the parameter is in no "
            "such layer: give it the stack as its leading axis, or put it in a module called "
            "STACK_0, STACK_1, ..."
        )
