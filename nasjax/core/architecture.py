"""Architectures: plain mappings from choices to values, and what can be done with them.

An architecture is JSON-able: ``{"embed_dim": 192, "depth": 2, "num_heads": [3, 4]}``. A choice
made per layer holds a list with one value for each layer that exists, no more.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nasjax.core.errors import ArchitectureError, did_you_mean
from nasjax.core.space import Choice, Option, SearchSpace

Arch = Mapping[str, Any]
Key = jax.Array | np.random.Generator


def depth(space: SearchSpace, stack: str, arch: Arch) -> int:
    """The number of layers of ``stack`` that exist in ``arch``."""
    return space.length(stack, arch)


def axis_length(space: SearchSpace, axis: str, arch: Arch, layer: int | None = None) -> int:
    """Length of ``axis`` in ``arch``; in layer ``layer`` where it is chosen per layer."""
    return space.length(axis, values(space, axis, arch, layer), layer)


def values(space: SearchSpace, axis: str, arch: Arch, layer: int | None = None) -> dict[str, Any]:
    """The values in ``arch`` of the choices that the length of ``axis`` depends on."""
    return {
        name: arch[name] if space.choice(name).per is None else arch[name][layer]
        for name in space.depends(axis)
    }


def validate(space: SearchSpace, arch: Arch) -> dict[str, Any]:
    """Return ``arch`` in canonical form: every value the space's own object, lists for layers.

    Raises:
      ArchitectureError: naming the field, the value, the legal values and the nearest of them.
    """
    if not isinstance(arch, Mapping):
        raise ArchitectureError(
            f"an architecture is a mapping from choices to values, not {type(arch).__name__}."
        )
    for name in arch:
        if name not in space.by_name:
            raise ArchitectureError(
                f"{name!r} is no choice of space {space.name!r}; "
                f"{did_you_mean(name, space.by_name)}"
            )
    for name in space.by_name:
        if name not in arch:
            raise ArchitectureError(
                f"the architecture lacks {name!r}; one of {_options(space.by_name[name])} of "
                f"space {space.name!r} was expected."
            )
    legal: dict[str, Any] = {
        c.name: _legal(space, c, arch[c.name], c.name) for c in space.choices if c.per is None
    }
    for choice in space.choices:
        if choice.per is None:
            continue
        values, layers = _plain(arch[choice.name]), depth(space, choice.per, legal)
        if isinstance(values, str) or not hasattr(values, "__len__") or len(values) != layers:
            raise ArchitectureError(
                f"{choice.name!r} = {values!r} must be a list of {layers} values, one for each "
                f"layer of {choice.per!r}."
            )
        legal[choice.name] = [
            _legal(space, choice, v, f"{choice.name}[{i}]") for i, v in enumerate(values)
        ]
    legal = {c.name: legal[c.name] for c in space.choices}
    if space.decoding is not None and decide(space, _scores(space, legal)) != legal:
        raise ArchitectureError(
            f"{legal} breaks the rule by which architectures of space {space.name!r} are decoded; "
            f"the nearest that follows it is {decide(space, _scores(space, legal))}."
        )
    return legal


def decide(space: SearchSpace, scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The architecture that ``scores`` of all options speak for.

    Args:
      space: the search space; its decoding rule decides, the best option of every choice if none.
      scores: an array of the shape of each choice's mixture.
    """
    best = {n: np.argmax(s, -1) for n, s in scores.items()}
    if space.decoding is not None:
        best.update(space.decoding(scores))

    def pick(choice: Choice, layer: int | None) -> Option:
        index = best[choice.name] if layer is None else best[choice.name][layer]
        return choice.options[int(index)]

    return _assemble(space, pick)


def _scores(space: SearchSpace, arch: Arch) -> dict[str, np.ndarray]:
    """1 for the options of ``arch``, 0 for all others."""
    scores = {}
    for c in space.choices:
        rows = [arch[c.name]] if c.per is None else arch[c.name]
        deepest = 1 if c.per is None else space.axis_size(c.per)
        scores[c.name] = np.zeros((deepest, len(c.options)))
        for layer, value in enumerate(rows):
            scores[c.name][layer, c.options.index(value)] = 1.0
        if c.per is None:
            scores[c.name] = scores[c.name][0]
    return scores


def _plain(value: Any) -> Any:
    """Numbers and lists of numbers in place of arrays."""
    return value.tolist() if hasattr(value, "tolist") else value


def _options(choice: Choice) -> str:
    return "{" + ", ".join(map(repr, choice.options)) + "}"


def _legal(space: SearchSpace, choice: Choice, value: Any, field: str) -> Option:
    value = _plain(value)
    for option in choice.options:
        if not isinstance(value, bool) and option == value:
            return option
    numeric = all(isinstance(o, int | float) for o in choice.options)
    nearest = ""
    if numeric and isinstance(value, int | float) and not isinstance(value, bool):
        near = min(choice.options, key=lambda o: abs(o - value))  # type: ignore[operator]
        nearest = f"; the nearest is {near!r}"
    raise ArchitectureError(
        f"{field} = {value!r} is not an option of space {space.name!r}; "
        f"legal values are {_options(choice)}{nearest}."
    )


def _build(space: SearchSpace, pick: Any, rng: np.random.Generator | None = None) -> dict[str, Any]:
    """A legal architecture from ``pick(choice, layer) -> value``; ``rng`` breaks ties."""
    arch = _assemble(space, pick)
    if space.decoding is None:
        return arch
    scores = _scores(space, arch)
    if rng is not None:
        scores = {n: s + 0.5 * rng.random(s.shape) for n, s in scores.items()}
    return decide(space, scores)


def _assemble(space: SearchSpace, pick: Any) -> dict[str, Any]:
    """An architecture from ``pick(choice, layer) -> value``, per-network choices first."""
    arch: dict[str, Any] = {c.name: pick(c, None) for c in space.choices if c.per is None}
    for c in space.choices:
        if c.per is not None:
            arch[c.name] = [pick(c, layer) for layer in range(depth(space, c.per, arch))]
    return {c.name: arch[c.name] for c in space.choices}


def has_order(space: SearchSpace) -> bool:
    """Whether all options are numbers, so that there is a smallest and a largest architecture."""
    return all(isinstance(o, int | float) for c in space.choices for o in c.options)


def _ordered(choice: Choice) -> tuple[Option, ...]:
    numeric = all(isinstance(o, int | float) for o in choice.options)
    return tuple(sorted(choice.options)) if numeric else choice.options  # type: ignore[type-var]


def smallest(space: SearchSpace) -> dict[str, Any]:
    """The architecture with every choice at its least value (the first one, if not a number)."""
    return _build(space, lambda c, layer: _ordered(c)[0])


def largest(space: SearchSpace) -> dict[str, Any]:
    """The architecture with every choice at its greatest value (the last one, if no number)."""
    return _build(space, lambda c, layer: _ordered(c)[-1])


def generator(key: Key) -> np.random.Generator:
    """The generator of draws on the host that follows from a key; a generator is itself.

    Decisions on the host must cost no dispatch to a device each, so who draws thousands of
    architectures makes one generator of its key and hands it on.
    """
    if isinstance(key, np.random.Generator):
        return key
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())


def sample(
    space: SearchSpace, key: Key, weights: Mapping[str, Sequence[float]] | None = None
) -> dict[str, Any]:
    """A random architecture, each choice drawn by itself: uniformly (SPOS, AutoFormer) or weighed.

    Args:
      space: to draw from.
      key: of the draw.
      weights: probabilities of the options by choice; uniform for a choice that is not named.
    """
    rng, weights = generator(key), weights or {}

    def pick(choice: Choice, layer: int | None) -> Option:
        if choice.name in weights:
            return choice.options[rng.choice(len(choice.options), p=weights[choice.name])]
        return choice.options[rng.integers(len(choice.options))]

    return _build(space, pick, rng)


def with_silent_genes(space: SearchSpace, key: Key, arch: Arch) -> dict[str, Any]:
    """``arch`` with a random option wherever any option would give the same architecture.

    Where a rule of decoding leaves something out (the ratios of an identity block), a legal
    architecture holds the first option for it. Children that bring it back would inherit that one;
    from this, which is not legal itself, they inherit a random one.
    """
    if space.decoding is None:
        return dict(arch)
    rng = generator(key)
    found = {n: list(v) if isinstance(v, list) else v for n, v in arch.items()}
    scores = _scores(space, arch)
    for name, layer in genes(space):
        row = scores[name] if layer is None else scores[name][layer]
        before, option = row.copy(), rng.integers(len(row))
        row[:] = 0.0
        row[option] = 1.0
        if decide(space, scores) != arch:
            row[:] = before
        elif layer is None:
            found[name] = space.choice(name).options[option]
        elif layer < len(found[name]):
            found[name][layer] = space.choice(name).options[option]
    return found


def mutate(
    space: SearchSpace,
    key: Key,
    arch: Arch,
    probability: float = 0.2,
    whole: float | None = None,
) -> dict[str, Any]:
    """Draw each value of ``arch`` anew with ``probability``; added layers are drawn at random.

    Args:
      space: of the architecture.
      key: of the draws.
      arch: the parent.
      probability: for each value.
      whole: for the choices of the whole network; None for the same.
    """
    rng = generator(key)
    arch = with_silent_genes(space, rng, arch)
    for_whole = probability if whole is None else whole

    def pick(choice: Choice, layer: int | None) -> Option:
        drawn = choice.options[rng.integers(len(choice.options))]
        if layer is not None and layer >= len(arch[choice.name]):
            return drawn
        old = arch[choice.name] if layer is None else arch[choice.name][layer]
        likely = for_whole if choice.per is None else probability
        return drawn if rng.random() < likely else old

    return _build(space, pick, rng)


def crossover(space: SearchSpace, key: Key, first: Arch, second: Arch) -> dict[str, Any]:
    """Take each value from one of two parents at random.

    In layers that only the deeper parent has, its value is taken; in layers that neither has
    (where the depth follows from several choices) one is drawn.
    """
    rng = generator(key)
    first, second = (with_silent_genes(space, rng, parent) for parent in (first, second))

    def pick(choice: Choice, layer: int | None) -> Option:
        parents = [first, second] if rng.integers(2) else [second, first]
        if layer is None:
            return parents[0][choice.name]
        for parent in parents:
            if layer < len(parent[choice.name]):
                return parent[choice.name][layer]
        return choice.options[rng.integers(len(choice.options))]

    return _build(space, pick, rng)


@functools.cache
def genes(space: SearchSpace) -> tuple[tuple[str, int | None], ...]:
    """The ``(choice, layer)`` that each entry of an encoded architecture stands for."""
    return tuple(_genes(space))


def _genes(space: SearchSpace) -> Iterator[tuple[str, int | None]]:
    for choice in space.choices:
        if choice.per is None:
            yield choice.name, None
        else:
            for layer in range(space.axis_size(choice.per)):
                yield choice.name, layer


def every(space: SearchSpace) -> Iterator[dict[str, Any]]:
    """All architectures of ``space``, in lexicographic order of the options of its choices.

    Raises:
      ArchitectureError: if a decoding rule leaves some combinations of options out.
    """
    if space.decoding is not None:
        raise ArchitectureError(
            f"the architectures of space {space.name!r} cannot be listed: its rule of decoding "
            "leaves some combinations of options out."
        )
    whole = [choice for choice in space.choices if choice.per is None]
    for picked in itertools.product(*(choice.options for choice in whole)):
        arch = {choice.name: option for choice, option in zip(whole, picked, strict=True)}
        layered = {
            choice.name: itertools.product(choice.options, repeat=depth(space, choice.per, arch))
            for choice in space.choices
            if choice.per is not None
        }
        for rows in itertools.product(*layered.values()):
            lists = {name: list(row) for name, row in zip(layered, rows, strict=True)}
            yield validate(space, {**arch, **lists})


def encode(space: SearchSpace, arch: Arch) -> np.ndarray:
    """Option indices of ``arch`` as an int32 vector of the same length for every architecture.

    Layers that do not exist hold -1, so that equal architectures have equal vectors and
    different ones different vectors.
    """
    arch = validate(space, arch)
    vector = []
    for name, layer in genes(space):
        value = arch[name]
        if layer is not None:
            if layer >= len(value):
                vector.append(-1)
                continue
            value = value[layer]
        vector.append(space.choice(name).options.index(value))
    return np.asarray(vector, np.int32)


def code(space: SearchSpace, arch: Arch) -> tuple[int, ...]:
    """:func:`encode` as something that can be a key: equal for equal architectures alone."""
    return tuple(encode(space, arch).tolist())


def decode(space: SearchSpace, vector: np.ndarray) -> dict[str, Any]:
    """The architecture of a vector made by :func:`encode`."""
    index = dict(zip(genes(space), np.asarray(vector).tolist(), strict=True))
    return validate(space, _assemble(space, lambda c, layer: c.options[index[c.name, layer]]))


def nearest(space: SearchSpace, vector: np.ndarray) -> dict[str, Any]:
    """The legal architecture nearest to any vector of option indices, one for each gene.

    Genes of layers that do not exist are ignored, and the space's rule of decoding is applied:
    what a searcher needs that knows vectors of integers and nothing of architectures.
    """
    index = dict(zip(genes(space), np.asarray(vector).tolist(), strict=True))
    return _build(space, lambda c, layer: c.options[index[c.name, layer]])
