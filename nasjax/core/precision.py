"""Precision: where float32 is the least that will do."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
    """``x`` in float32, or as it is where it is wider (checks in float64)."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
