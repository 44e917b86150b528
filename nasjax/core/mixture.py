"""Mixtures: for each choice, a point on the simplex over its options (a row per layer).

A mixture is a tree ``{choice: (options,)}`` or, for a choice made per layer,
``{choice: (layers, options)}`` with a row for every layer of the deepest network. Architecture
parameters (alphas) have the same shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import architecture
from nasjax.core.architecture import Arch
from nasjax.core.space import SearchSpace

Mixture = Mapping[str, jax.Array]
Alphas = Mapping[str, jax.Array]


def shapes(space: SearchSpace) -> dict[str, tuple[int, ...]]:
    """The shape of each choice's mixture: ``(options,)`` or ``(layers, options)``."""
    return {
        c.name: (len(c.options),) if c.per is None else (space.axis_size(c.per), len(c.options))
        for c in space.choices
    }


def uniform(space: SearchSpace) -> dict[str, jax.Array]:
    """The mixture that gives every option of a choice the same weight."""
    return {n: jnp.full(s, 1.0 / s[-1], jnp.float32) for n, s in shapes(space).items()}


def one_hot(space: SearchSpace, arch: Arch) -> dict[str, jax.Array]:
    """The mixture that is ``arch`` and nothing else.

    Rows of layers that do not exist take the first option; nothing depends on them.

    Raises:
      ArchitectureError: if ``arch`` does not lie in ``space``.
    """
    return one_hot_vector(space, architecture.encode(space, arch))


def one_hot_vector(space: SearchSpace, vector: Any) -> dict[str, jax.Array]:
    """The mixture of an encoded architecture; ``vector (..., genes)`` may be traced.

    Rows of layers that do not exist, -1 in the vector, take the first option.
    """
    index = {gene: i for i, gene in enumerate(architecture.genes(space))}
    mixture = {}
    for name, shape in shapes(space).items():
        rows = (
            [index[name, None]]
            if len(shape) == 1
            else [index[name, layer] for layer in range(shape[0])]
        )
        chosen = jnp.maximum(jnp.asarray(vector)[..., jnp.asarray(rows)], 0)
        hot = jax.nn.one_hot(chosen, shape[-1], dtype=jnp.float32)
        mixture[name] = hot[..., 0, :] if len(shape) == 1 else hot
    return mixture


def argmax(space: SearchSpace, mixture: Mixture) -> dict[str, Any]:
    """The architecture that a mixture speaks for: the heaviest option of every choice.

    A space may decide in another way, see ``SearchSpace.decoding``.
    """
    return architecture.decide(
        space, {n: np.asarray(jax.device_get(p)) for n, p in mixture.items()}
    )


def entropy(mixture: Mixture) -> jax.Array:
    """Mean entropy of all rows, each in units of its greatest possible value: 1 is uniform."""
    rows = []
    for weights in mixture.values():
        options = weights.shape[-1]
        if options > 1:
            weights = jnp.clip(weights, 1e-12, 1.0)
            row = -jnp.sum(weights * jnp.log(weights), -1) / np.log(options)
            rows.append(jnp.ravel(row))
    return jnp.mean(jnp.concatenate(rows)) if rows else jnp.zeros(())
