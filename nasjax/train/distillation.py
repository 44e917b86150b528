"""Losses of distillation: pure functions of the logits of a student and of its teachers.

In-place distillation teaches the sub-networks of a super-network by its largest one, whose logits
are detached (NASViT, Appendix C.1). AlphaNet's adaptive alpha-divergence (Wang et al. 2021a) is the
loss of the paper; soft KL is what it is compared with (Table 8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from nasjax.core.errors import NasjaxError
from nasjax.core.precision import at_least_float32

ALPHAS = (-1.0, 1.0)
CLIP = 5.0
FACTOR = 5.0


def soft_kl(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """``-sum_k p log q``, the mean over the batch; p the teacher's, q the student's probabilities.

    The divergence of KL without the teacher's entropy, which has no gradient. The teacher is
    detached.

    Args:
      student: logits ``(batch, classes)``.
      teacher: likewise.
    """
    target = jax.nn.softmax(_detached(teacher))
    return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(at_least_float32(student)), -1))


def adaptive_alpha(
    student: jax.Array,
    teacher: jax.Array,
    *,
    alphas: tuple[float, float] = ALPHAS,
    clip: float = CLIP,
) -> jax.Array:
    """The larger of two alpha-divergences for each example, the mean over the batch (AlphaNet).

    A negative alpha punishes a student that is sure where its teacher is not, a positive one a
    student that is not sure where its teacher is. The value is that of the surrogate whose gradient
    is used, see :func:`alpha_divergence`: it falls where the student learns, but it is not the
    divergence and may be negative.

    Args:
      student: logits ``(batch, classes)``.
      teacher: likewise; detached.
      alphas: the lower and the upper one. The lower one is used where its divergence is strictly
        greater.
      clip: greatest importance weight.
    """
    (low, low_surrogate), (high, high_surrogate) = (
        alpha_divergence(student, teacher, alpha, clip) for alpha in alphas
    )
    return jnp.mean(jnp.where(low > high, low_surrogate, high_surrogate))


def alpha_divergence(
    student: jax.Array, teacher: jax.Array, alpha: float, clip: float = CLIP
) -> tuple[jax.Array, jax.Array]:
    """The alpha-divergence of each example, and the surrogate whose gradient is taken for it.

    With ``r = p / q`` and ``w = min(r^alpha, clip)`` the divergence is
    ``sum_k q (w - 1) / (alpha (alpha - 1))`` and the surrogate ``-sum_k q rho log q`` with
    ``rho = w / alpha + 1 / (alpha (alpha - 1))``, in which only ``log q`` has a gradient. At 1 they
    are ``sum_k p log r`` and the soft KL, with nothing clipped; at 0 ``-sum_k q log r`` with
    ``rho = log r - 1`` and r clipped.

    Args:
      student: logits ``(batch, classes)``.
      teacher: likewise; detached.
      alpha: order of the divergence.
      clip: greatest importance weight.

    Returns:
      Both ``(batch,)``; the first has no gradient.
    """
    log_p = jax.nn.log_softmax(_detached(teacher))
    trained = jax.nn.log_softmax(at_least_float32(student))
    log_q = jax.lax.stop_gradient(trained)
    p, q, log_r = jnp.exp(log_p), jnp.exp(log_q), log_p - log_q
    if alpha == 1.0:  # written so that a probability of zero gives zero, not infinity times zero
        divergence, weight = p * log_r, p
    elif alpha == 0.0:
        clipped = jnp.minimum(log_r, jnp.log(clip))
        divergence, weight = -q * clipped, q * (clipped - 1.0)
    else:
        base = 1.0 / (alpha * (alpha - 1.0))
        importance = jnp.minimum(jnp.exp(alpha * log_r), clip)
        divergence, weight = q * (importance - 1.0) * base, q * (importance / alpha + base)
    return jnp.sum(divergence, -1), -jnp.sum(weight * trained, -1)


def soft_target(teachers: Sequence[jax.Array], factor: float = FACTOR) -> jax.Array:
    """The mean of ``softmax(factor * logits)`` over teachers: labels for a network to learn from.

    The released code multiplies by 5, which sharpens; the paper does not say so.

    Args:
      teachers: logits of each, ``(batch, classes)``.
      factor: that logits are multiplied by.

    Returns:
      Probabilities ``(batch, classes)`` without gradient.

    Raises:
      NasjaxError: if there is no teacher.
    """
    if not teachers:
        raise NasjaxError("a soft target needs the logits of one teacher or more; none were given.")
    probabilities = [jax.nn.softmax(factor * _detached(t)) for t in teachers]
    return jnp.mean(jnp.stack(probabilities), 0)


Distillation = Callable[[jax.Array, jax.Array], jax.Array]
DISTILLATIONS: Mapping[str, Distillation] = {"alpha": adaptive_alpha, "kl": soft_kl}


def _detached(logits: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(at_least_float32(logits))
