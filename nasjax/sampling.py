"""Samplers: which sub-networks a super-network is trained by, step by step.

A sampler is a pure function ``(key, step) -> architectures``: every host draws the same ones and
a resumed run goes on as it would have. They are drawn on the host, and the compiled step is given
them as vectors of numbers, so none of them is ever compiled for.

==========  ==========================================================  ======================
name        architectures of a step                                     source
==========  ==========================================================  ======================
uniform     one, every choice uniform                                   SPOS (Guo et al. 2020)
fair        several; every option equally often                         FairNAS (Chu et al. 2021)
identity    one, blocks skipped with the probability that meets a       ViTAS, section 3.2
            budget on average
sandwich    the largest, the smallest, and random ones                  Yu and Huang 2019; NASViT
==========  ==========================================================  ======================

Each can be confined to architectures that keep a budget, see :func:`within`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import architecture
from nasjax.core import mixture as mixtures
from nasjax.core.architecture import Key, generator
from nasjax.core.cost import bounds
from nasjax.core.errors import NasjaxError, did_you_mean
from nasjax.core.space import SearchSpace
from nasjax.core.supernet import Supernet

SANDWICH = "sandwich"
_TRIES = 10_000  # draws after which a budget is given up


@dataclass(frozen=True)
class Sampler:
    """How sub-networks are drawn while a super-network is trained.

    Attributes:
      name: of the method.
      draw: ``(key, step) -> architectures``, ``paths`` of them.
      paths: architectures whose gradients are averaged in a step.
      sample: ``key -> architecture``, a single draw of the same distribution, from which a search
        of the trained super-network starts; None for a uniform one.
    """

    name: str
    draw: Callable[[jax.Array, int], list[dict[str, Any]]]
    paths: int = 1
    sample: Callable[[Key], dict[str, Any]] | None = None

    def __call__(self, key: jax.Array, step: int) -> list[dict[str, Any]]:
        """The architectures of ``step`` in a training with the root ``key``."""
        return self.draw(key, step)


def uniform(space: SearchSpace, paths: int = 1) -> Sampler:
    """Architectures with every choice uniform (single path one-shot, SPOS; AutoFormer).

    Args:
      space: to draw from.
      paths: architectures a step.
    """
    return _independent("uniform", paths, lambda rng: architecture.sample(space, rng))


def weighted(space: SearchSpace, weights: Mapping[str, Sequence[float]], paths: int = 1) -> Sampler:
    """Architectures whose options have given probabilities, by choice.

    Args:
      space: to draw from.
      weights: probabilities of the options; uniform for choices that are not named.
      paths: architectures a step.

    Raises:
      NasjaxError: if ``weights`` names no choice, or holds no distribution over its options.
    """
    for name, row in weights.items():
        options = space.choice(name).options
        if len(row) != len(options) or min(row) < 0 or not math.isclose(sum(row), 1, abs_tol=1e-6):
            raise NasjaxError(
                f"the probabilities of {name!r} are {tuple(row)}; {len(options)} that add up to 1 "
                "were expected."
            )
    # NumPy takes no sum that is off by more than float64's rounding; rows of float32 are.
    exact = {n: [float(p) / math.fsum(row) for p in row] for n, row in weights.items()}
    return _independent("weighted", paths, lambda rng: architecture.sample(space, rng, exact))


def fair(space: SearchSpace, paths: int | None = None) -> Sampler:
    """Every option of every choice equally often: strict fairness (FairNAS, section 3.2).

    For each choice, in each layer, the options come in a random order, each once, then in another
    order, and so on. A step takes as many as the largest choice has, so that where all choices
    have equally many options each is trained exactly once a step, as in FairNAS; a choice of
    fewer is trained equally often over every multiple of its options. Static choices go round by
    steps. Layers beyond the depth of a path are not trained by it, nor is their turn made up for.

    Args:
      space: to draw from; one whose options follow a rule cannot be drawn from fairly.
      paths: architectures a step; as many as the largest choice has options where None.

    Raises:
      NasjaxError: if the space has a rule of decoding, or there is no path.
    """
    if paths is not None:
        _check_paths(paths)
    if space.decoding is not None:
        raise NasjaxError(
            f"space {space.name!r} allows only some combinations of options, so they cannot come "
            "up equally often; sample uniformly."
        )
    mixed = [c for c in space.choices if c.name not in space.static]
    count = paths or max((len(c.options) for c in mixed), default=1)
    genes = architecture.genes(space)

    def option(seed: Sequence[int], gene: int, turn: int) -> int:
        choice = space.choice(genes[gene][0])
        round_, place = divmod(turn, len(choice.options))
        rng = np.random.default_rng([*seed, gene, round_])
        return int(rng.permutation(len(choice.options))[place])

    def draw(key: jax.Array, step: int) -> list[dict[str, Any]]:
        seed = _seed(key)
        found = []
        for path in range(count):
            turns = [step if n in space.static else step * count + path for n, _ in genes]
            vector = [option(seed, gene, turn) for gene, turn in enumerate(turns)]
            found.append(architecture.nearest(space, np.array(vector)))
        return found

    return Sampler("fair", draw, count)


def within(
    sampler: Sampler, supernet: Supernet, name: str, minimum: float = 0, maximum: float = math.inf
) -> Sampler:
    """``sampler`` confined to architectures whose cost lies between two limits, both allowed.

    Draws outside are drawn again, so what is left keeps its proportions. Not for ``fair``, which
    would not be any more.

    Args:
      sampler: to be confined.
      supernet: that counts the cost.
      name: of the cost.
      minimum: the least cost.
      maximum: the greatest cost.

    Raises:
      NasjaxError: if no architecture has such a cost, or hardly any.
    """
    if sampler.name == "fair":
        raise NasjaxError("fair sampling cannot keep a budget and stay fair; sample uniformly.")
    if sampler.name == SANDWICH:
        raise NasjaxError(
            "a sandwich holds the largest network, whatever a budget says; confine the sampler of "
            "its random ones."
        )

    def draw(key: jax.Array, step: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for attempt in range(_TRIES):
            # The first attempt is what the sampler would have drawn.
            at = key if not attempt else jax.random.fold_in(key, attempt)
            drawn = sampler(at, step)
            found += [a for a in drawn if minimum <= supernet.count(name, a) <= maximum]
            if len(found) >= sampler.paths:
                return found[: sampler.paths]
        raise NasjaxError(
            f"none of {_TRIES:,} architectures drawn has {name} from {minimum:,g} to "
            f"{maximum:,g}; widen the limits."
        )

    least, greatest = bounds(supernet.space, supernet.terms(name))
    if maximum < least or minimum > greatest:
        raise NasjaxError(
            f"no architecture of space {supernet.space.name!r} has {name} from {minimum:,g} to "
            f"{maximum:,g}: they go from {least:,} to {greatest:,}; move the limits."
        )
    # A search has constraints of its own.
    return Sampler(f"{sampler.name} within {name}", draw, sampler.paths, sampler.sample)


def identity(
    supernet: Supernet, cost: str, target: float, choice: str = "heads", skip: Any = 0
) -> Sampler:
    """Blocks are skipped with the probability that makes the expected cost equal to a target.

    ViTAS (section 3.2) looks for that probability in steps of 0.01 over means of 1000 samples;
    here the expectation is exact, and solved for.

    Args:
      supernet: that counts the cost.
      cost: its name, e.g. ``"flops"``.
      target: its expectation.
      choice: made per block, one of whose options skips it.
      skip: that option.

    Raises:
      NasjaxError: if no probability reaches the target, or nothing can be skipped.
    """
    options = supernet.space.choice(choice).options
    if skip not in options or len(options) < 2:
        raise NasjaxError(
            f"choice {choice!r} of space {supernet.space.name!r} has the options {options}, among "
            f"which the identity {skip!r} is not; build the space with identity blocks."
        )
    probability = identity_probability(supernet, cost, target, choice, skip)
    weights = {choice: _with_identity(options, skip, probability)}
    return weighted(supernet.space, weights)


def sandwich(space: SearchSpace, randoms: Sampler | None = None) -> Sampler:
    """The largest architecture, the smallest, and some random ones: the sandwich rule.

    The random ones of a step share the options of static choices, those of the first of them, so
    that there are few programs to compile: others are drawn again, which leaves the proportions
    among equal options as they are.

    Args:
      space: to draw from; its options are numbers.
      randoms: sampler of the random ones; two uniform ones where None (NASViT).

    Raises:
      NasjaxError: if the options have no order, so that nothing is the largest.
    """
    if not architecture.has_order(space):
        raise NasjaxError(
            f"options of space {space.name!r} are no numbers, so it has no largest and smallest "
            "architecture to make a sandwich of; sample uniformly."
        )
    inner = uniform(space, 2) if randoms is None else randoms
    ends = [architecture.largest(space), architecture.smallest(space)]

    def static(arch: Mapping[str, Any]) -> list[Any]:
        return [arch[name] for name in space.static]

    def draw(key: jax.Array, step: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for attempt in range(_TRIES):
            at = key if not attempt else jax.random.fold_in(key, attempt)
            drawn = inner(at, step)
            found += [a for a in drawn if static(a) == static((found or drawn)[0])]
            if len(found) >= inner.paths:
                return [*ends, *found[: inner.paths]]
        raise NasjaxError(
            f"{_TRIES:,} draws gave no {inner.paths} architectures with the same "
            f"{', '.join(space.static)}; give the space fewer options of it."
        )

    return Sampler(SANDWICH, draw, 2 + inner.paths, inner.sample)


@functools.cache  # a run asks for its sampler more than once
def identity_probability(
    supernet: Supernet, cost: str, target: float, choice: str = "heads", skip: Any = 0
) -> float:
    """The probability of identity blocks at which the expected cost is ``target``.

    Raises:
      NasjaxError: if none is; it says which targets can be reached.
    """
    options = supernet.space.choice(choice).options
    mixture = mixtures.uniform(supernet.space)

    @jax.jit
    def expected(row: jax.Array) -> jax.Array:
        rows = jnp.broadcast_to(row, mixture[choice].shape)
        return supernet.expect(cost, {**mixture, choice: rows})

    def at(probability: float) -> float:
        return float(expected(jnp.asarray(_with_identity(options, skip, probability))))

    most, least = at(0.0), at(1.0)
    if not least <= target <= most:
        raise NasjaxError(
            f"no probability of identity blocks makes the expected {cost} {target:,g}: it goes "
            f"from {most:,.0f} without any to {least:,.0f} with nothing else; choose a target "
            "between the two."
        )
    low, high = 0.0, 1.0
    for _ in range(40):  # the cost falls with the probability; halved to float32's resolution
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) > target else (low, middle)
    return (low + high) / 2


SAMPLERS: Mapping[str, Callable[..., Sampler]] = {
    "uniform": lambda supernet, paths=1: uniform(supernet.space, paths),
    "fair": lambda supernet, paths=None: fair(supernet.space, paths),
    "identity": lambda supernet, **settings: identity(supernet, **settings),
    # Of its random ones, see sampler().
    SANDWICH: lambda supernet, paths=2: uniform(supernet.space, paths),
}


def sampler(
    kind: str,
    supernet: Supernet,
    limits: Mapping[str, tuple[float, float]] | None = None,
    **settings: Any,
) -> Sampler:
    """The sampler called ``kind``.

    Args:
      kind: one of ``SAMPLERS``.
      supernet: whose sub-networks are drawn.
      limits: by name of a cost its least and its greatest value, see :func:`within`; of a sandwich
        they are those of its random architectures, whose number its ``paths`` are.
      **settings: its further arguments.

    Raises:
      NasjaxError: if there is no such sampler or setting.
    """
    if kind not in SAMPLERS:
        raise NasjaxError(f"no sampler {kind!r}; {did_you_mean(kind, SAMPLERS)}")
    try:
        found = SAMPLERS[kind](supernet, **settings)
    except TypeError as error:
        raise NasjaxError(f"sampler {kind!r} cannot be made so: {error}.") from None
    for name, pair in (limits or {}).items():
        found = within(found, supernet, name, *pair)
    return sandwich(supernet.space, found) if kind == SANDWICH else found


def _independent(
    name: str, paths: int, sample: Callable[[np.random.Generator], dict[str, Any]]
) -> Sampler:
    _check_paths(paths)

    def draw(key: jax.Array, step: int) -> list[dict[str, Any]]:
        rng = np.random.default_rng([*_seed(key), step])
        return [sample(rng) for _ in range(paths)]

    return Sampler(name, draw, paths, lambda key: sample(generator(key)))


def _check_paths(paths: int) -> None:
    if paths < 1:
        raise NasjaxError(f"{paths} paths a step train nothing; 1 or more were expected.")


def _seed(key: jax.Array) -> list[int]:
    return [int(word) for word in np.asarray(jax.random.key_data(key))]


def _with_identity(options: Sequence[Any], skip: Any, probability: float) -> list[float]:
    """ViTAS's rule: identity with ``probability``, the other options uniform."""
    rest = (1.0 - probability) / (len(options) - 1)
    return [probability if option == skip else rest for option in options]
