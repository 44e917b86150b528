"""Optimizers: the weights and the alphas as two partitions of one optax transformation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nasjax.core.errors import NasjaxError, did_you_mean

WEIGHTS = "weights"
ALPHAS = "alphas"
METHODS = ("adamw", "adam", "sgd", "nesterov")
DECAYED = ("kernel", "embedding")  # biases, norms, tokens and position tables do not decay


@dataclass(frozen=True)
class Optimizer:
    """AdamW, or SGD, with warm-up, cosine decay and clipping.

    Attributes:
      method: ``"adamw"``, ``"adam"``, ``"sgd"`` (with momentum) or ``"nesterov"`` (SGD with
        Nesterov's).
      learning_rate: at its peak.
      weight_decay: of kernels and embeddings; decoupled for AdamW, else added to the gradient.
      betas: decay rates of the two moments; of SGD the first is the momentum.
      warmup_steps: steps of linear warm-up from ``warmup_rate``.
      warmup_rate: learning rate at step 0 of a warm-up.
      final_rate: learning rate at the last step.
      cosine: whether to decay along a cosine; otherwise the rate stays at its peak.
      clip: greatest global norm of the gradient; None for any.
      eps_root: added under the square root. The exact second-order step differentiates through
        the update, and the root's derivative at zero is infinite: give 1e-12 there.
    """

    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    warmup_rate: float = 1e-6
    final_rate: float = 1e-5
    cosine: bool = True
    clip: float | None = None
    eps_root: float = 0.0
    method: str = "adamw"

    def schedule(self, steps: int) -> Callable[[Any], jax.Array]:
        """The learning rate as a function of the step, over ``steps`` steps.

        Raises:
          NasjaxError: if the warm-up is not shorter than the run.
        """
        if self.warmup_steps >= steps:
            raise NasjaxError(
                f"warm-up takes {self.warmup_steps} of {steps} steps; it must be shorter."
            )
        if not self.cosine:
            after: Any = optax.constant_schedule(self.learning_rate)
        else:
            floor = min(self.final_rate, self.learning_rate) / self.learning_rate
            after = optax.cosine_decay_schedule(
                self.learning_rate, steps - self.warmup_steps, alpha=floor
            )
        if not self.warmup_steps:
            return after
        warmup = optax.linear_schedule(self.warmup_rate, self.learning_rate, self.warmup_steps)
        return optax.join_schedules([warmup, after], [self.warmup_steps])

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation for a run of ``steps`` steps."""
        parts = [] if self.clip is None else [optax.clip_by_global_norm(self.clip)]
        decay = optax.add_decayed_weights(self.weight_decay, mask=decays)
        first, second = self.betas
        if self.method not in METHODS:
            raise NasjaxError(
                f"no optimizer is called {self.method!r}; {did_you_mean(self.method, METHODS)}"
            )
        if self.method in ("sgd", "nesterov"):
            parts += [decay, optax.trace(first, nesterov=self.method == "nesterov")]
        else:
            adam = optax.scale_by_adam(first, second, eps_root=self.eps_root)
            parts += [adam, decay] if self.method == "adamw" else [decay, adam]
        return optax.chain(*parts, optax.scale_by_learning_rate(self.schedule(steps)))


def alphas_optimizer(
    learning_rate: float = 3e-4,
    weight_decay: float = 1e-3,
    betas: tuple[float, float] = (0.5, 0.999),
) -> Optimizer:
    """Adam as DARTS and TangleNAS use it: constant rate, L2 decay, betas (0.5, 0.999)."""
    return Optimizer(learning_rate, weight_decay, betas, cosine=False, method="adam")


def decays(tree: Any) -> Any:
    """Which arrays decay: kernels and embeddings of a network; every one of the alphas."""

    def one(path: Any, leaf: Any) -> bool:
        keys = [getattr(p, "key", getattr(p, "name", None)) for p in path]
        return keys[0] == ALPHAS or keys[-1] in DECAYED

    return jax.tree_util.tree_map_with_path(one, tree)


def partitioned(
    weights: optax.GradientTransformation, alphas: optax.GradientTransformation | None = None
) -> optax.GradientTransformation:
    """One transformation over ``{"weights": ..., "alphas": ...}``, each with its own optimizer."""
    transforms = {WEIGHTS: weights, ALPHAS: alphas or optax.set_to_zero()}
    return optax.partition(transforms, {WEIGHTS: WEIGHTS, ALPHAS: ALPHAS})


def update_partition(
    tx: optax.GradientTransformation, name: str, gradients: Any, opt_state: Any, trained: Any
) -> tuple[Any, Any]:
    """Update one partition and leave the other as it is, moments included.

    Args:
      tx: made by :func:`partitioned`.
      name: the partition, ``"weights"`` or ``"alphas"``.
      gradients: of that partition.
      opt_state: state of ``tx``.
      trained: both partitions.

    Returns:
      The partition's new values and the new state.
    """
    padded = {n: jax.tree.map(jnp.zeros_like, tree) for n, tree in trained.items()}
    padded[name] = gradients
    updates, new = tx.update(padded, opt_state, trained)
    # What was computed for the other partition is used nowhere, and XLA drops it.
    inner = {**opt_state.inner_states, name: new.inner_states[name]}
    updated = optax.apply_updates(trained[name], updates[name])
    return updated, opt_state._replace(inner_states=inner)
