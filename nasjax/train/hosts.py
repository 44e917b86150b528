"""What the processes of one run agree on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec


def from_first(values: Mapping[str, float]) -> dict[str, float]:
    """Numbers as the first process has them: what each measures differs, such as a latency.

    Counts of integers stay integers, exact up to 2**53.
    """
    if jax.process_count() == 1:
        return dict(values)
    names = sorted(values)
    bits = np.array([values[name] for name in names], np.float64).view(np.uint32)
    shared = np.asarray(multihost_utils.broadcast_one_to_all(bits)).view(np.float64)
    found = dict(zip(names, shared.tolist(), strict=True))
    return {n: int(found[n]) if isinstance(v, int) else found[n] for n, v in values.items()}


def fetched(tree: Any) -> Any:
    """A tree of arrays on the host, whole, wherever its parts live."""

    def whole(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return x
        everywhere = NamedSharding(x.sharding.mesh, PartitionSpec())  # type: ignore[attr-defined]
        return jax.jit(lambda x: x, out_shardings=everywhere)(x)

    return jax.device_get(jax.tree.map(whole, tree))
