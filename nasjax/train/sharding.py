"""Placement: one mesh of (data, model), and rules from axis names to mesh axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nasjax.core.errors import NasjaxError

Rules = Mapping[str, str | None]
REPLICATED: Rules = {}
TENSOR_PARALLEL: Rules = {"heads": "model", "mlp": "model"}


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


def state_shardings(state: Any, names: Mapping[str, Any], mesh: Mesh, rules: Rules) -> Any:
    """Where each array of a state lives: weights, and what the optimizer keeps of them, by rule.

    Args:
      state: a :class:`~nasjax.train.state.State` of arrays or shapes.
      names: axis names of the weights.
      mesh: the mesh.
      rules: mesh axis for each axis name; names without a rule are replicated.
    """
    table = [(axis, target) for axis, target in rules.items() if target is not None]
    # An axis may occur twice in an array (both sides of a kernel), which Flax refuses even where
    # no rule speaks of it.
    ruled = jax.tree.map(
        lambda spec: PartitionSpec(*(a if rules.get(a) else None for a in spec)),
        dict(names),
        is_leaf=lambda n: isinstance(n, PartitionSpec),
    )
    placed = nn.logical_to_mesh_sharding(ruled, mesh, table)
    # Moments mirror the weights: the end of an array's path in the state is its path in them.
    by_path = {
        tuple(p.key for p in path): (sharding, name)
        for (path, sharding), name in zip(
            jax.tree_util.tree_leaves_with_path(placed),
            jax.tree.leaves(dict(names), is_leaf=lambda n: isinstance(n, PartitionSpec)),
            strict=True,
        )
    }

    def one(path: Any, leaf: Any) -> NamedSharding:
        keys = tuple(getattr(p, "key", getattr(p, "name", None)) for p in path)
        for start in range(len(keys)):
            found = by_path.get(keys[start:])
            if found is not None and np.ndim(leaf) >= len(found[1]):
                return found[0]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, state)
