"""Costs: exact for an architecture, expected and differentiable under a mixture.

Any cost of a network that is a sum of products of axis lengths is a list of :class:`Term`.
Parameters are the plainest: a term for each array. Multiply-adds are terms too, one for each
matrix product, so both are counted, and expected, by the same two functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import architecture
from nasjax.core.architecture import Arch
from nasjax.core.expect import expected_product
from nasjax.core.mixture import Mixture
from nasjax.core.names import Leaf, Tree, leaves
from nasjax.core.space import SearchSpace


@dataclass(frozen=True)
class Term:
    """``times`` the product of the lengths of ``axes``, in every layer of ``stack`` that exists.

    Attributes:
      times: a constant factor; a fraction where lengths divide by another, to stay exact.
      axes: names of axes of the space; an axis that occurs twice is squared.
      stack: the stack in each of whose layers the cost arises; None for once in the network.
      layer: a single layer of the stack, where not all.
    """

    times: float | Fraction
    axes: tuple[str, ...] = ()
    stack: str | None = None
    layer: int | None = None


def parameter_terms(space: SearchSpace, names: Tree, variables: Tree) -> list[Term]:
    """The number of parameters as terms, one for each array (shapes suffice)."""
    terms = []
    for leaf in leaves(space, names, variables):
        times = 1
        for axis, size in zip(leaf.axes, leaf.shape[leaf.scanned :], strict=True):
            times *= 1 if axis is not None else size
        axes = (*filter(None, leaf.axes), *leaf.operations)
        terms.append(Term(times, axes, leaf.stack, leaf.layer))
    return terms


def exact(space: SearchSpace, terms: Iterable[Term], arch: Arch) -> int | float:
    """The cost of ``arch``, an integer where it is a whole number.

    It follows from the lengths alone, so ``arch`` may hold values that are no options of the
    space; published architectures do.
    """
    total: float | Fraction = 0
    for term in terms:
        layers: Sequence[int | None] = (None,)
        if term.stack is not None:
            deep = architecture.depth(space, term.stack, arch)
            layers = range(deep) if term.layer is None else [term.layer] * (term.layer < deep)
        for layer in layers:
            product = term.times
            for axis in term.axes:
                product *= architecture.axis_length(space, axis, arch, layer)
            total += product
    return int(total) if float(total).is_integer() else float(total)


def bounds(space: SearchSpace, terms: Sequence[Term]) -> tuple[int | float, int | float]:
    """The least and the greatest cost of all architectures.

    Gene by gene from the smallest and the largest architecture: exact where each gene lowers or
    raises the cost in the same direction whatever the others are, as all counts of a network do.
    """
    genes = architecture.genes(space)
    sizes = [len(space.choice(name).options) for name, _ in genes]

    def descend(start: Arch, sign: int) -> int | float:
        vector = np.maximum(architecture.encode(space, start), 0)
        least = sign * exact(space, terms, start)
        for gene, size in enumerate(sizes):
            for option in range(size):
                trial = vector.copy()
                trial[gene] = option
                value = sign * exact(space, terms, architecture.nearest(space, trial))
                if value < least:
                    least, vector = value, trial
        return sign * least

    return (
        descend(architecture.smallest(space), 1),
        descend(architecture.largest(space), -1),
    )


def expected(space: SearchSpace, terms: Iterable[Term], mixture: Mixture) -> jax.Array:
    """The mean cost over architectures drawn from ``mixture``, a differentiable scalar."""
    total = jnp.zeros((), jnp.float32)
    for term in terms:
        leaf = Leaf((), (), (), term.stack, term.layer)
        total = total + float(term.times) * expected_product(space, mixture, leaf, term.axes)
    return total
