"""Name tables: which tensor of theirs is which parameter of ours, for any kind of network.

A table is a list of :class:`Entry`. Everything else follows from it and from the axis names of
the super-network: layers are stacked where ours are scanned, and a tensor stored larger than the
space's largest option is cut along the axes that are searched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flax import traverse_util

from nasjax.core.names import Leaf, Tree, leaves
from nasjax.core.space import SearchSpace
from nasjax.core.supernet import Supernet
from nasjax.core.superpose import ACTIVE
from nasjax.interop.errors import WeightsError
from nasjax.interop.layout import Layout

SHOWN = 4  # names listed in a message before it says "..."


@dataclass(frozen=True)
class Entry:
    """One parameter of ours and the tensor of theirs that it is.

    Attributes:
      path: path below ``params``, with layers of a stack as they are called when scanned:
        ``"blocks/fc1/kernel"``.
      layout: how it is laid out there and here.
      names: their names for it, ``{}`` in place of the layer's index. The first is written; any
        of them is read.
    """

    path: str
    layout: Layout
    names: tuple[str, ...]


@dataclass(frozen=True)
class NameTable:
    """The tensors of one kind of network.

    Attributes:
      kind: what the networks are called in messages.
      entries: one for every parameter that such a network can have.
    """

    kind: str
    entries: tuple[Entry, ...]

    def entry(self, path: tuple[str, ...]) -> Entry:
        """The entry of our parameter ``path``, which starts with ``"params"``.

        Raises:
          WeightsError: if there is none.
        """
        joined = "/".join(path[1:])
        for entry in self.entries:
            if path[0] == "params" and entry.path == joined:
                return entry
        raise WeightsError(
            f"{'/'.join(path)} has no counterpart in {self.kind}; the network is of another kind."
        )

    def locate(self, name: str) -> tuple[tuple[str, ...], int | None] | None:
        """Our path of their tensor ``name`` and the layer it belongs to; None if it is unknown."""
        for entry in self.entries:
            for template in entry.names:
                match = re.fullmatch(re.escape(template).replace(r"\{\}", r"(\d+)"), name)
                if match:
                    layer = int(match[1]) if match.groups() else None
                    return ("params", *entry.path.split("/")), layer
        return None


def import_tensors(
    table: NameTable, state_dict: Mapping[str, np.ndarray], supernet: Supernet, strict: bool
) -> dict[str, dict]:
    """Maximal variables ``{"params": ...}`` of ``supernet`` from their tensors.

    Raises:
      WeightsError: if tensors are missing, do not fit or (where ``strict``) have no place here.
    """
    found = leaves(supernet.space, supernet.names, supernet.shapes)
    plan = [leaf for leaf in found if leaf.path[0] != ACTIVE]  # which hold no weights
    _check_names(table, state_dict, plan, supernet.space, strict)
    dtypes = traverse_util.flatten_dict(supernet.shapes)
    flat = {}
    for leaf in plan:
        entry = table.entry(leaf.path)
        names = [_found(entry, layer, state_dict) for layer in _layers(supernet.space, leaf)]
        parts = [
            _read(entry.layout, name, state_dict[name], leaf, supernet.space)
            for name in filter(None, names)
        ]
        value = np.stack(parts) if leaf.scanned else parts[0]
        flat[leaf.path] = np.ascontiguousarray(value, dtype=dtypes[leaf.path].dtype)
    return traverse_util.unflatten_dict(flat)


def export_tensors(
    table: NameTable, variables: Tree, stacks: Iterable[str]
) -> dict[str, np.ndarray]:
    """Their tensors of ``variables``, whose layers may be scanned or unrolled.

    Args:
      table: the names.
      variables: ``{"params": ...}`` of a super-network or of an extracted network.
      stacks: names of the stacks of layers.

    Raises:
      WeightsError: if a parameter has no counterpart.
    """
    tensors = {}
    for path, value in traverse_util.flatten_dict(dict(variables)).items():
        value = np.asarray(value)
        scanned, layer, stacked = canonical(path, tuple(stacks))
        entry = table.entry(stacked)
        layers = range(value.shape[0]) if scanned else (layer,)
        for i in layers:
            part = value[i] if scanned else value
            tensors[entry.names[0].format(i)] = entry.layout.write(part)
    return tensors


def read_network(
    table: NameTable,
    state_dict: Mapping[str, np.ndarray],
    shapes: Tree,
    stacks: tuple[str, ...],
    strict: bool,
) -> dict[str, dict]:
    """Variables of a network on its own, of exactly the sizes of its tensors.

    Args:
      table: names and layouts of the tensors.
      state_dict: tensors by their PyTorch names.
      shapes: of the network's variables, whose layers may be scanned.
      stacks: of its space.
      strict: whether a tensor that the network has no place for is an error.

    Raises:
      WeightsError: if tensors are missing, have a shape that does not fit, or have no place.
    """
    flat, used = {}, set()
    for path, leaf in traverse_util.flatten_dict(dict(shapes)).items():
        scanned, layer, stacked = canonical(path, stacks)
        entry, parts = table.entry(stacked), []
        shape = leaf.shape[1:] if scanned else leaf.shape
        for i in range(leaf.shape[0]) if scanned else (layer,):
            name = entry.names[0].format(i)
            if name not in state_dict:
                raise WeightsError(
                    f"the weights lack {name!r}, which the network has; they hold "
                    f"{listed(state_dict)}."
                )
            tensor = np.asarray(state_dict[name])
            sizes = entry.layout.stored(tensor.shape, shape)
            if sizes is None:
                raise WeightsError(
                    f"tensor {name!r} has shape {tensor.shape}, but {'/'.join(path)} needs "
                    f"{entry.layout.shape(shape)}; give the architecture of the weights."
                )
            used.add(name)
            parts.append(entry.layout.read(tensor, sizes))
        value = np.stack(parts) if scanned else parts[0]
        flat[path] = np.ascontiguousarray(value, dtype=leaf.dtype)
    foreign = [name for name in state_dict if name not in used]
    if foreign and strict:
        raise WeightsError(
            f"the weights hold {listed(foreign)}, for which the network has no place: give the "
            "architecture of the weights, or pass strict=False to leave these tensors out."
        )
    return traverse_util.unflatten_dict(flat)


def canonical(
    path: tuple[str, ...], stacks: tuple[str, ...]
) -> tuple[bool, int | None, tuple[str, ...]]:
    """Whether ``path`` is scanned, else its layer's index, and the path it has when scanned."""
    for at, part in enumerate(path):
        if part in stacks:
            return True, None, path
        name, _, index = part.rpartition("_")
        if name in stacks and index.isdigit():
            return False, int(index), (*path[:at], name, *path[at + 1 :])
    return False, None, path


def _layers(space: SearchSpace, leaf: Leaf) -> Iterable[int | None]:
    if leaf.scanned and leaf.stack is not None:
        return range(space.axis_size(leaf.stack))
    return (leaf.layer,)


def _found(entry: Entry, layer: int | None, state_dict: Mapping[str, np.ndarray]) -> str | None:
    names = (template.format(layer) for template in entry.names)
    return next((name for name in names if name in state_dict), None)


def _read(
    layout: Layout, name: str, tensor: np.ndarray, leaf: Leaf, space: SearchSpace
) -> np.ndarray:
    """One tensor in our layout, cut to the largest option along the axes that are searched."""
    tensor = np.asarray(tensor)
    shape = leaf.shape[1:] if leaf.scanned else leaf.shape
    searched = {
        dim for dim, axis in enumerate(leaf.axes) if axis is not None and space.depends(axis)
    }
    sizes = layout.stored(tensor.shape, shape, searched)
    if sizes is None:
        least = "at least " if searched else ""
        raise WeightsError(
            f"tensor {name!r} has shape {tensor.shape}, but {leaf} of space {space.name!r} needs "
            f"{least}{layout.shape(shape)}; build the super-network with the sizes of the weights."
        )
    value = layout.read(tensor, sizes)
    for dim in searched:
        axis = leaf.axes[dim]
        keep = space.axes[axis].take(shape[dim], value.shape[dim])  # type: ignore[index, union-attr]
        value = np.take(value, keep, axis=dim)
    return value


def _check_names(
    table: NameTable,
    state_dict: Mapping[str, np.ndarray],
    plan: list[Leaf],
    space: SearchSpace,
    strict: bool,
) -> None:
    missing = []
    for leaf in plan:
        entry = table.entry(leaf.path)
        for layer in _layers(space, leaf):
            if _found(entry, layer, state_dict) is None:
                missing.append(entry.names[0].format(layer))
    if missing:
        raise WeightsError(
            f"the weights lack {listed(missing)}, which the largest network of space "
            f"{space.name!r} has; they hold {listed(state_dict)}."
        )
    paths = {leaf.path for leaf in plan}
    foreign = [n for n in state_dict if (table.locate(n) or ((), None))[0] not in paths]
    if foreign and strict:
        raise WeightsError(
            f"the weights hold {listed(foreign)}, for which the network of space {space.name!r} "
            "has no place: build it with the parts the weights were trained with, or pass "
            "strict=False to leave these tensors out."
        )


def listed(names: Iterable[str]) -> str:
    """The first few of ``names`` and how many there are, for a message."""
    names = list(names)
    shown = ", ".join(map(repr, names[:SHOWN]))
    more = f", ... ({len(names)} tensors)" if len(names) > SHOWN else ""
    return (shown + more) or "no tensor"
