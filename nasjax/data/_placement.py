"""Where batches go: the shards of a batch, this process's part of it, and the transfer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nasjax.data.errors import DataError


def along_batch(sharding: NamedSharding | None) -> NamedSharding | None:
    """The sharding reduced to its first axis, so that it suits images and labels alike."""
    if sharding is None:
        return None
    if not isinstance(sharding, NamedSharding):
        raise DataError(
            f"sharding is a {type(sharding).__name__}, but a jax.sharding.NamedSharding over the "
            "batch axis is expected, for example NamedSharding(mesh, PartitionSpec('data'))."
        )
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))


def replicated(sharding: NamedSharding | None) -> NamedSharding | None:
    """A whole copy on every device of the sharding's mesh."""
    return None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())


def stacked(sharding: NamedSharding | None) -> NamedSharding | None:
    """The sharding of several batches along a new first axis, which is not divided."""
    if sharding is None:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def check_batch_size(batch_size: int, sharding: NamedSharding | None) -> None:
    """Raises DataError unless the batch is divided evenly over the devices."""
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}, but at least 1 is expected.")
    shards = _batch_shards(sharding)
    if batch_size % shards:
        raise DataError(
            f"batch_size is {batch_size}, which is not divisible by the {shards} devices that "
            f"share a batch: use {max(1, batch_size // shards) * shards} or another multiple of "
            f"{shards}."
        )


def check_seed(seed: int) -> None:
    """Raises DataError for a seed that numpy or Grain would refuse."""
    if not 0 <= seed < 2**32:
        raise DataError(f"seed is {seed}, but an integer from 0 to 2**32 - 1 is expected.")


def check_steps(examples: int, batch_size: int) -> int:
    """Full batches in an epoch; raises DataError if there is none."""
    if examples < batch_size:
        raise DataError(
            f"batch_size is {batch_size}, but the source has only {examples} examples: use a "
            f"batch_size of at most {examples}."
        )
    return examples // batch_size


def _batch_shards(sharding: NamedSharding | None) -> int:
    axes = sharding.spec[0] if sharding is not None and len(sharding.spec) else None
    names = () if axes is None else (axes,) if isinstance(axes, str) else axes
    return math.prod(sharding.mesh.shape[name] for name in names) if sharding else 1


def process_share(batch_size: int, sharding: NamedSharding | None) -> tuple[int, int]:
    """Which part of each batch this process has to read: (index of the part, number of parts).

    Processes whose devices hold the same rows, as when a model is spread over several hosts, get
    the same part. Parts are numbered in the order of their rows.
    """
    if sharding is None:
        return 0, 1
    placement: Mapping[Any, Any] = sharding.devices_indices_map((batch_size,))
    rows: dict[int, set[tuple[int, int, int]]] = {}
    for device, (index,) in placement.items():
        rows.setdefault(device.process_index, set()).add(index.indices(batch_size))
    parts = {process: frozenset(part) for process, part in rows.items()}
    ordered = sorted(set(parts.values()), key=min)
    return ordered.index(parts[jax.process_index()]), len(ordered)


def place_part(
    part: Mapping[str, np.ndarray], batch_size: int, sharding: NamedSharding | None
) -> dict[str, jax.Array]:
    """Sends this process's part of a batch, `(batch / parts, ...)`, to the devices."""
    if sharding is None:
        return {name: jax.device_put(rows) for name, rows in part.items()}
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))
        for name, rows in part.items()
    }


def place_whole(array: np.ndarray, sharding: NamedSharding | None) -> jax.Array:
    """Sends an array that every process holds whole to the devices."""
    if sharding is None:
        return jax.device_put(array)
    # Unlike device_put, this compares nothing between processes: the arrays are large.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
