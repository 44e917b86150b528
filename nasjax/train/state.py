"""The state of a run: arrays only, so that it can be donated, sharded and saved as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from nasjax.train import optim

Tree = Mapping[str, Any]


@flax.struct.dataclass
class State:
    """What a training step maps to its successor.

    Attributes:
      step: steps done (scalar int32).
      weights: parameters of the network.
      alphas: architecture parameters; empty when a single network is trained.
      opt_state: of :func:`~nasjax.train.optim.partitioned`.
      statistics: running statistics of batch normalisations; empty in a search, where those of
        the batch are used and no mixture's would serve another. A training by the sandwich rule
        counts its conflicts here.
      average: exponential moving average of the weights; None where none is kept.
      skipped: how many of the last steps in a row had a non-finite gradient (scalar int32).
      key: the root key of all random streams.
    """

    step: jax.Array
    weights: Any
    alphas: Any
    opt_state: Any
    statistics: Any
    average: Any
    skipped: jax.Array
    key: jax.Array

    @property
    def trained(self) -> dict[str, Any]:
        """The two partitions of the optimizer."""
        return {optim.WEIGHTS: self.weights, optim.ALPHAS: self.alphas}


def create(
    key: jax.Array,
    weights: Tree,
    tx: optax.GradientTransformation,
    *,
    alphas: Tree | None = None,
    statistics: Tree | None = None,
    average: bool = False,
) -> State:
    """The state before the first step.

    Args:
      key: root of all random streams.
      weights: initial parameters.
      tx: the partitioned optimizer.
      alphas: initial architecture parameters.
      statistics: initial running statistics.
      average: whether to keep a moving average of the weights.
    """
    trained = {optim.WEIGHTS: weights, optim.ALPHAS: alphas or {}}
    return State(
        step=jnp.zeros((), jnp.int32),
        weights=weights,
        alphas=alphas or {},
        opt_state=tx.init(trained),
        statistics=statistics or {},
        average=jax.tree.map(jnp.copy, weights) if average else None,
        skipped=jnp.zeros((), jnp.int32),
        key=key,
    )


def evaluated(state: State) -> Any:
    """The weights to evaluate: the moving average where one is kept."""
    return state.weights if state.average is None else state.average
