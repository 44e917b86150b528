"""Placement: one mesh of (data, model), and rules from axis names to mesh axes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nasjax.core.errors import NasjaxError
from nasjax.core.masked import gathering


@dataclasses.dataclass(frozen=True)
class Rules:
    """Where parameters live, and with them their gradients, moments and averages.

    Attributes:
      names: mesh axis of each axis name; names without one are not divided.
      spread: mesh axis over which each array is divided on top of that, along its longest axis that
        divides evenly; None for no more than ``names`` says. Networks gather what they read and
        return to each device its own part of the gradient.
    """

    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    spread: str | None = None


REPLICATED = Rules()
TENSOR_PARALLEL = Rules({"heads": "model", "mlp": "model"})
FULLY_SHARDED = Rules(spread="data")
FULLY_SHARDED_TENSOR = Rules(TENSOR_PARALLEL.names, spread="data")
RULES: Mapping[str, Rules] = {
    "replicated": REPLICATED,
    "tensor": TENSOR_PARALLEL,
    "fully_sharded": FULLY_SHARDED,
    "fully_sharded_tensor": FULLY_SHARDED_TENSOR,
}


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
    """A mesh of all devices, ``data`` of them along the batch and ``model`` along the parameters.

    Args:
      data: devices along the batch; -1 for all that are left.
      model: devices along the parameters.

    Raises:
      NasjaxError: if the two do not multiply to the number of devices.
    """
    devices = jax.device_count()
    data = devices // model if data == -1 else data
    if data * model != devices:
        raise NasjaxError(
            f"a mesh of data={data} x model={model} does not use {devices} devices exactly; "
            "choose two numbers whose product is that, or data=-1."
        )
    # Flax's Linen modules do not annotate shardings of activations, which Explicit would ask for.
    types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((data, model), ("data", "model"), axis_types=types)


def batches(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis along ``data``."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def weight_shardings(shapes: Any, names: Any, mesh: Mesh, rules: Rules) -> Any:
    """Where each array of a tree of weights lives.

    Args:
      shapes: the weights, or their shapes.
      names: axis names of each, a ``PartitionSpec``; an array without any is divided by ``spread``
        alone.
      mesh: the mesh.
      rules: what is divided over which mesh axis.
    """

    def one(leaf: Any, axes: PartitionSpec) -> NamedSharding:
        spec: list[str | None] = [None] * len(leaf.shape)
        for i, axis in enumerate(axes):
            target = rules.names.get(axis)
            # An axis may occur twice in an array (both sides of a kernel): the first is divided.
            if target and target not in spec and leaf.shape[i] % mesh.shape[target] == 0:
                spec[i] = target
        if rules.spread is not None:
            share = mesh.shape[rules.spread]
            free = [i for i, s in enumerate(spec) if s is None and leaf.shape[i] % share == 0]
            if free:
                spec[max(free, key=lambda i: leaf.shape[i])] = rules.spread
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(one, shapes, names)


def state_shardings(state: Any, names: Mapping[str, Any], mesh: Mesh, rules: Rules) -> Any:
    """Where each array of a state lives: weights, and what the optimizer keeps of them, by rule.

    Args:
      state: a :class:`~nasjax.train.state.State` of arrays or shapes.
      names: axis names of the weights.
      mesh: the mesh.
      rules: what is divided over which mesh axis.
    """
    placed = weight_shardings(dict(state.weights), dict(names), mesh, rules)
    # Moments mirror the weights: the end of an array's path in the state is its path in them.
    by_path = {
        tuple(p.key for p in path): (sharding, leaf.shape)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(dict(state.weights)),
            jax.tree.leaves(placed),
            strict=True,
        )
    }

    def one(path: Any, leaf: Any) -> NamedSharding:
        keys = tuple(getattr(p, "key", getattr(p, "name", None)) for p in path)
        for start in range(len(keys)):
            found = by_path.get(keys[start:])
            if found is not None and np.shape(leaf) == found[1]:
                return found[0]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, state)


def gathering_weights(
    step: Callable[..., Any], names: Mapping[str, Any], mesh: Mesh, rules: Rules
) -> Callable[..., Any]:
    """``step`` of a network of its own, whose weights are gathered first, as far as ``spread``.

    Those of a super-network are gathered where they are read, see :func:`computing`.
    """
    if rules.spread is None:
        return step

    def gathered(state: Any, *batches: Any) -> Any:
        places = _unspread(state.weights, names, mesh, rules)
        weights = jax.lax.with_sharding_constraint(state.weights, places)
        return step(dataclasses.replace(state, weights=weights), *batches)

    return gathered


def _unspread(weights: Any, names: Mapping[str, Any], mesh: Mesh, rules: Rules) -> Any:
    """Where weights are computed with: divided by the rules for names alone."""
    return weight_shardings(weights, dict(names), mesh, dataclasses.replace(rules, spread=None))


@contextlib.contextmanager
def computing(weights: Any, names: Mapping[str, Any], mesh: Mesh, rules: Rules) -> Iterator[None]:
    """The context that steps are traced in.

    In it, a super-network's layers gather their weights after they are masked, one at a time as
    they come to them: see :class:`~nasjax.core.masked.Masked`. A network of its own reads plain
    arrays, which do not know their names; :func:`gathering_weights` is for its step.

    Args:
      weights: or their shapes.
      names: axis names of each.
      mesh: the mesh.
      rules: what is divided over which mesh axis.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        if rules.spread is not None:
            stack.enter_context(gathering(_mesh_axes(weights, names, mesh, rules)))
        yield


def _mesh_axes(
    weights: Any, names: Mapping[str, Any], mesh: Mesh, rules: Rules
) -> dict[str, str | None]:
    """The mesh axis of each axis name; what stays whole in one array is gathered in all."""
    found: dict[str, str | None] = {}
    places = jax.tree.leaves(_unspread(weights, names, mesh, rules))
    for axes, place in zip(jax.tree.leaves(dict(names)), places, strict=True):
        for axis, target in zip(axes, place.spec, strict=False):
            if axis is not None:
                found[axis] = found.get(axis, target) and target
    return found
