"""Random streams: one root key, everything else folded in by purpose and step.

No key is stored or threaded through a run, so a resumed run draws what an uninterrupted one would
have drawn, and every host draws the same.
"""

from __future__ import annotations

import zlib

import jax


def stream(key: jax.Array, purpose: str, step: jax.Array | int | None = None) -> jax.Array:
    """The key for ``purpose`` (at ``step``) that follows from the root ``key``."""
    key = jax.random.fold_in(key, zlib.crc32(purpose.encode()))
    return key if step is None else jax.random.fold_in(key, step)
