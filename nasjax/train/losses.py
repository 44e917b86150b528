"""Losses and measures of classification."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nasjax.core.precision import at_least_float32


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of ``logits`` against soft ``labels``, both (batch, classes)."""
    return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(at_least_float32(logits)), -1))


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of examples whose likeliest class is the heaviest of soft ``labels``."""
    return jnp.mean((jnp.argmax(logits, -1) == jnp.argmax(labels, -1)).astype(jnp.float32))
