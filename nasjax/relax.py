"""Relaxations: from architecture parameters to a mixture.

A relaxation is a pure function ``(alphas, key, step) -> mixture``. It composes with any space,
since all it makes is a mixture. ``mean`` is the same without chance: what the relaxation believes,
from which entropy, expected costs and the decoded architecture follow.

==========  ==============================================================  ==================
name        mixture                                                         source
==========  ==============================================================  ==================
darts       softmax(alpha)                                                  Liu et al. 2019
sparse      sparsemax(alpha), as TangleNAS's code does where it says DARTS  released code
drnas       a draw of Dirichlet(elu(alpha) + 1), reparameterised            Chen et al. 2021
gdas        one-hot of the Gumbel-softmax, straight-through                 Dong and Yang 2019
snas        the Gumbel-softmax itself                                       Xie et al. 2019
fixed       one-hot of a given architecture                                 evaluation
==========  ==============================================================  ==================
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import mixture as mixtures
from nasjax.core.architecture import Arch
from nasjax.core.errors import NasjaxError, did_you_mean
from nasjax.core.mixture import Alphas, Mixture
from nasjax.core.space import SearchSpace

Schedule = Callable[[jax.Array], jax.Array | float]


def _no_penalty(alphas: Alphas) -> jax.Array:
    del alphas
    return jnp.zeros(())


def init_alphas(space: SearchSpace, key: jax.Array, scale: float = 1e-3) -> dict[str, jax.Array]:
    """Architecture parameters of ``space``: normal with standard deviation ``scale``."""
    return draw_alphas(mixtures.shapes(space), key, scale)


def draw_alphas(
    shapes: Mapping[str, tuple[int, ...]], key: jax.Array, scale: float = 1e-3
) -> dict[str, jax.Array]:
    """Arrays of given shapes, by name: normal with standard deviation ``scale``."""
    return {n: scale * jax.random.normal(_fold(key, n), shape) for n, shape in shapes.items()}


@dataclass(frozen=True)
class Relaxation:
    """How alphas become a mixture.

    Attributes:
      name: of the method.
      mixture: ``(alphas, key, step) -> mixture`` used in a training step.
      mean: ``alphas -> mixture`` without chance.
      penalty: ``alphas -> scalar`` added to the loss of the architecture step.
      hard: whether every mixture is one-hot: the super-network is then a sampled sub-network.
      learns: whether alphas receive a gradient.
      init: ``(space, key) -> alphas`` before the first step.
      masks: by choice, 1 for the options that may be decoded and 0 for the others; all may in a
        choice that is not named.
    """

    name: str
    mixture: Callable[[Alphas, jax.Array, jax.Array], dict[str, jax.Array]]
    mean: Callable[[Alphas], dict[str, jax.Array]]
    penalty: Callable[[Alphas], jax.Array] = _no_penalty
    hard: bool = False
    learns: bool = True
    init: Callable[[SearchSpace, jax.Array], dict[str, jax.Array]] = init_alphas
    masks: Mapping[str, np.ndarray] = field(default_factory=lambda: MappingProxyType({}))


def anneal(start: float, end: float, steps: int) -> Schedule:
    """A straight line from ``start`` at step 0 to ``end`` at the last of ``steps`` steps."""

    def schedule(step: jax.Array) -> jax.Array:
        part = jnp.clip(step / max(steps - 1, 1), 0.0, 1.0)
        return start + (end - start) * part

    return schedule


def sparsemax(logits: jax.Array) -> jax.Array:
    """Euclidean projection of each row (..., options) onto the simplex (Martins 2016)."""
    ordered = -jnp.sort(-logits, axis=-1)
    rank = jnp.arange(1, logits.shape[-1] + 1)
    total = jnp.cumsum(ordered, -1)
    support = jnp.sum(1 + rank * ordered > total, -1, keepdims=True)
    tau = (jnp.take_along_axis(total, support - 1, -1) - 1) / support
    return jnp.maximum(logits - tau, 0.0)


def concentration(alpha: jax.Array) -> jax.Array:
    """DrNAS's Dirichlet concentration, elu(alpha) + 1."""
    # Written out: (exp(alpha) - 1) + 1 is zero in float32 from alpha = -17 on, and a draw nan.
    return jnp.where(alpha > 0, alpha + 1.0, jnp.exp(jnp.where(alpha > 0, 0.0, alpha)))


def gumbel_softmax(
    alpha: jax.Array, gumbel: jax.Array, temperature: jax.Array | float
) -> jax.Array:
    """Softmax of perturbed log-probabilities (..., options) at ``temperature``."""
    return jax.nn.softmax((jax.nn.log_softmax(alpha) + gumbel) / temperature)


def straight_through(soft: jax.Array) -> jax.Array:
    """One-hot of the greatest entry of each row (..., options), with the gradient of ``soft``."""
    hard = jax.nn.one_hot(jnp.argmax(soft, -1), soft.shape[-1], dtype=soft.dtype)
    return hard + (soft - jax.lax.stop_gradient(soft))


def dirichlet_anchor_kl(alphas: Alphas) -> jax.Array:
    """Sum over rows of KL(Dirichlet(elu(alpha) + 1) || Dirichlet(1)), DrNAS's regulariser."""
    total = jnp.zeros(())
    for alpha in alphas.values():
        beta = concentration(alpha)
        whole = jnp.sum(beta, -1, keepdims=True)
        gammaln, digamma = jax.scipy.special.gammaln, jax.scipy.special.digamma
        log_ratio = gammaln(whole[..., 0]) - jnp.sum(gammaln(beta), -1) - gammaln(beta.shape[-1])
        spread = jnp.sum((beta - 1.0) * (digamma(beta) - digamma(whole)), -1)
        total = total + jnp.sum(log_ratio + spread)
    return total


def _fold(key: jax.Array, name: str) -> jax.Array:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _rows(function: Callable[[jax.Array], jax.Array]) -> Callable[[Alphas], dict[str, jax.Array]]:
    return lambda alphas: {name: function(alpha) for name, alpha in alphas.items()}


def _drawn(
    draw: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> Callable[[Alphas, jax.Array, jax.Array], dict[str, jax.Array]]:
    def mixture(alphas: Alphas, key: jax.Array, step: jax.Array) -> dict[str, jax.Array]:
        return {name: draw(a, _fold(key, name), step) for name, a in alphas.items()}

    return mixture


_softmax = _rows(jax.nn.softmax)


def darts() -> Relaxation:
    """Softmax of the alphas (DARTS)."""
    return Relaxation("darts", lambda alphas, key, step: _softmax(alphas), _softmax)


def sparse() -> Relaxation:
    """Sparsemax of the alphas: what TangleNAS's released code calls DARTS."""
    mean = _rows(sparsemax)
    return Relaxation("sparse", lambda alphas, key, step: mean(alphas), mean)


def drnas(anchor: float = 0.0) -> Relaxation:
    """A Dirichlet draw per row, anew in each forward pass (DrNAS).

    Args:
      anchor: factor of the Kullback-Leibler divergence to the flat Dirichlet, 1e-3 in DrNAS and
        off in TangleNAS.
    """

    def mixture(alphas: Alphas, key: jax.Array, step: jax.Array) -> dict[str, jax.Array]:
        # All choices at once: one gamma draw is a hundred kernels to compile, whatever its size.
        names = sorted(alphas)
        beta = concentration(jnp.concatenate([jnp.ravel(alphas[name]) for name in names]))
        # jax.random.dirichlet, over the options whose concentration has not underflowed.
        there = beta > 0
        logs = jax.random.loggamma(key, jnp.where(there, beta, 1.0))
        ends = np.cumsum([alphas[name].size for name in names])[:-1]
        rows = zip(names, jnp.split(jnp.where(there, logs, -jnp.inf), ends), strict=True)
        return {name: jax.nn.softmax(row.reshape(alphas[name].shape)) for name, row in rows}

    def mean(alpha: jax.Array) -> jax.Array:
        beta = concentration(alpha)
        return beta / jnp.sum(beta, -1, keepdims=True)

    def penalty(alphas: Alphas) -> jax.Array:
        return anchor * dirichlet_anchor_kl(alphas)

    return Relaxation("drnas", mixture, _rows(mean), penalty if anchor else _no_penalty)


def gdas(temperature: Schedule) -> Relaxation:
    """One sampled path per step, straight-through (GDAS).

    Args:
      temperature: of the Gumbel-softmax as a function of the step; 10 to 0.1 in GDAS.
    """

    def draw(alpha: jax.Array, key: jax.Array, step: jax.Array) -> jax.Array:
        gumbel = jax.random.gumbel(key, alpha.shape)
        return straight_through(gumbel_softmax(alpha, gumbel, temperature(step)))

    return Relaxation("gdas", _drawn(draw), _softmax, hard=True)


def snas(temperature: Schedule) -> Relaxation:
    """The Gumbel-softmax without the hard step (SNAS)."""

    def draw(alpha: jax.Array, key: jax.Array, step: jax.Array) -> jax.Array:
        return gumbel_softmax(alpha, jax.random.gumbel(key, alpha.shape), temperature(step))

    return Relaxation("snas", _drawn(draw), _softmax)


def fixed(space: SearchSpace, arch: Arch) -> Relaxation:
    """Always ``arch``."""
    hot = mixtures.one_hot(space, arch)
    return Relaxation(
        "fixed", lambda alphas, key, step: hot, lambda alphas: hot, hard=True, learns=False
    )


@dataclass(frozen=True)
class Settings:
    """What a run tells a relaxation; each takes what concerns it.

    Attributes:
      steps: length of the search, over which temperatures are annealed.
      temperature: of gdas and snas at the first and the last step.
      anchor: of drnas.
    """

    steps: int
    temperature: tuple[float, float] = (10.0, 0.1)
    anchor: float = 0.0

    def __post_init__(self) -> None:
        pair = self.temperature
        if not isinstance(pair, tuple | list) or len(pair) != 2 or min(pair) <= 0:
            raise NasjaxError(
                f"temperature is {pair!r}; two numbers above 0 were expected: at the first and at "
                "the last step."
            )


RELAXATIONS: dict[str, Callable[[Settings], Relaxation]] = {
    "darts": lambda settings: darts(),
    "sparse": lambda settings: sparse(),
    "drnas": lambda settings: drnas(settings.anchor),
    "gdas": lambda settings: gdas(anneal(*settings.temperature, settings.steps)),
    "snas": lambda settings: snas(anneal(*settings.temperature, settings.steps)),
}


def relaxation(name: str, **settings: Any) -> Relaxation:
    """The relaxation called ``name``.

    Args:
      name: one of ``RELAXATIONS``.
      **settings: fields of :class:`Settings`.

    Raises:
      NasjaxError: if there is no such relaxation or setting.
    """
    if name == "spos":
        raise NasjaxError(
            "spos is no relaxation: it samples. Give config.search.sampler (kind uniform) in place "
            "of config.search.relaxation, and search what was trained (docs/two_stage.md)."
        )
    if name not in RELAXATIONS:
        raise NasjaxError(f"no relaxation {name!r}; {did_you_mean(name, RELAXATIONS)}")
    known = [field.name for field in dataclasses.fields(Settings)]
    for setting in settings:
        if setting not in known:
            raise NasjaxError(
                f"a relaxation has no setting {setting!r}; {did_you_mean(setting, known)}"
            )
    return RELAXATIONS[name](Settings(**settings))


def decode(space: SearchSpace, method: Relaxation, alphas: Mixture) -> dict[str, Any]:
    """The architecture that ``alphas`` have settled on: the likeliest option of every choice."""
    scores = method.mean(alphas)
    left_out = {n: jnp.where(mask > 0, scores[n], -jnp.inf) for n, mask in method.masks.items()}
    return mixtures.argmax(space, {**scores, **left_out})
