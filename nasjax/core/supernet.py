"""A super-network: a search space joined to the Flax module it searches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasjax.core import architecture, cost
from nasjax.core.architecture import Arch
from nasjax.core.cost import Term
from nasjax.core.errors import SpaceError, did_you_mean
from nasjax.core.initial import draw, shapes_boxed
from nasjax.core.mixture import Mixture
from nasjax.core.names import Tree, axis_names, leaves, name_axes
from nasjax.core.space import Option, SearchSpace
from nasjax.core.superpose import ACTIVE, extract, masked, narrow, superpose

STATISTICS = "batch_stats"


@dataclass(frozen=True, eq=False)
class Supernet:
    """A module at its maximal size, the space of its sub-networks, and how to build each of them.

    Everything training and search need to know of a network. It holds no arrays: parameters are
    always arguments.

    Attributes:
      space: the search space.
      module: the Flax module at its maximal size, called as ``module(inputs, train=...)``.
      network: builds the module of an architecture at its own size.
      input_shape: shape of one input, without the batch.
      patterns: axis names by path pattern, for modules without metadata (``name_axes``).
      costs: named costs besides the parameters, as terms (``"flops"``: multiply-adds).
      published: named architectures from the literature.
      retrained: builds the module that is trained from scratch, where it is not ``network``: cell
        spaces search at one size and train at another.
      to_text: an architecture as the literature writes it, a genotype.
      from_text: the architecture that such a text stands for.
      nodes: for each choice made per edge of a cell, the edges that end in each of its nodes.
      columns: how tables of this space know an architecture: values of their columns.
      variant: the maximal module for the static choices of an architecture, where the space has
        some; it reads the same parameters as ``module``.
      narrowed: by choice of the whole network, the super-network of the architectures with one of
        its options: equal but for its shapes, see :meth:`narrow`.
      lazy: whether training leaves the products of superposition to the module, as it reads its
        parameters; False for modules that get them otherwise than by ``self.param``, from
        ``self.variables`` or through ``nn.map_variables`` (``nn.WeightNorm``) [True].
    """

    space: SearchSpace
    module: nn.Module
    network: Callable[[Arch], nn.Module]
    input_shape: tuple[int, ...]
    patterns: Mapping[str, tuple[str | None, ...]] | None = None
    costs: Mapping[str, Sequence[Term]] = field(default_factory=dict)
    published: Mapping[str, Arch] = field(default_factory=dict)
    retrained: Callable[[Arch], nn.Module] | None = None
    to_text: Callable[[Arch], str] | None = None
    from_text: Callable[[str], Arch] | None = None
    nodes: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    columns: Mapping[str, Callable[[Arch], Any]] = field(default_factory=dict)
    variant: Callable[[Arch], nn.Module] | None = None
    narrowed: Mapping[str, Callable[[Option], Supernet]] = field(default_factory=dict)
    lazy: bool = True

    def __post_init__(self) -> None:
        for name in self.space.static:
            if self.variant is None and len(self.space.choice(name).options) > 1:
                raise SpaceError(
                    f"choice {name!r} of space {self.space.name!r} is static, but the "
                    "super-network has no variant: give what makes its maximal module."
                )

    @functools.cached_property
    def _boxed(self) -> Any:
        return shapes_boxed(self.module, self.input_shape)

    @functools.cached_property
    def shapes(self) -> dict[str, Any]:
        """Shapes of the maximal variables, as a tree of ``jax.ShapeDtypeStruct``."""
        return nn.unbox(self._boxed)

    @property
    def empty_statistics(self) -> dict[str, Any]:
        """Zeros for the running statistics of batch normalisations; empty where there are none."""
        if STATISTICS not in self.shapes:
            return {}
        shapes = self.shapes[STATISTICS]
        return {STATISTICS: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)}

    @functools.cached_property
    def names(self) -> dict[str, Any]:
        """Axis names of the maximal variables, checked against the space."""
        if self.patterns is not None:
            names = name_axes(self.shapes, self.patterns)
        else:
            names = axis_names(self._boxed)
        found = {o for leaf in leaves(self.space, names, self.shapes) for o in leaf.operations}
        for operation in self.space.operations:
            if operation not in found:
                raise SpaceError(
                    f"no parameter is in an operation {operation!r} of space {self.space.name!r}; "
                    "call the module of the operation after it."
                )
        return names

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Draw maximal variables."""
        self.names  # noqa: B018 - a space that does not fit the module fails here, not later
        return draw(self.module, key, self.input_shape)

    def masked(self, variables: Tree, mixture: Mixture) -> dict[str, Any]:
        """:meth:`superpose` for a module to multiply when it reads; see :func:`masked`."""
        if not self.lazy:
            return self.superpose(variables, mixture)
        return masked(self.space, self.names, self._asked(variables), mixture)

    def superpose(self, variables: Tree, mixture: Mixture) -> dict[str, Any]:
        """Variables of the super-network under ``mixture``; see :func:`superpose`."""
        return superpose(self.space, self.names, self._asked(variables), mixture)

    def _asked(self, variables: Tree) -> Tree:
        """``variables`` and what the module asks for besides."""
        return {**variables, ACTIVE: self.shapes[ACTIVE]} if ACTIVE in self.shapes else variables

    def extract(self, variables: Tree, arch: Arch) -> dict[str, Any]:
        """Variables of ``network(arch)``; see :func:`extract`."""
        return extract(self.space, self.names, variables, arch)

    def narrow(self, variables: Tree, choice: str, option: Option) -> tuple[Supernet, Tree]:
        """The super-network of the architectures with ``option`` of ``choice``, and its variables.

        Its sub-networks are the same ones; at maximal shapes they cost less there.

        Raises:
          SpaceError: if the space cannot be narrowed by ``choice``, or has no such option.
        """
        if choice not in self.narrowed:
            raise SpaceError(
                f"space {self.space.name!r} cannot be narrowed by {choice!r}; "
                f"{did_you_mean(choice, self.narrowed)}"
            )
        if option not in self.space.choice(choice).options:
            raise SpaceError(
                f"{option!r} is no option of {choice!r}; one of "
                f"{self.space.choice(choice).options} was expected."
            )
        smaller = self.narrowed[choice](option)
        return smaller, narrow(self.space, self.names, variables, smaller.space)

    def static(self, arch: Arch) -> tuple[Any, ...]:
        """The options that ``arch`` takes of the static choices: each has a program of its own."""
        return tuple(arch[name] for name in self.space.static)

    def maximal(self, arch: Arch) -> nn.Module:
        """The maximal module that ``arch`` runs in: ``module`` where no choice is static."""
        return self.module if self.variant is None else self.variant(arch)

    def from_scratch(self, arch: Arch) -> nn.Module:
        """The module of an architecture that inherits nothing: ``retrained``, or ``network``."""
        return (self.retrained or self.network)(arch)

    @functools.cache  # noqa: B019 - super-networks are few and live as long as the run
    def terms(self, name: str) -> Sequence[Term]:
        """The terms of the cost called ``name``: ``"params"`` or a key of ``costs``."""
        if name == "params":
            params = {"params": self.shapes["params"]}
            return cost.parameter_terms(self.space, self.names, params)
        if name not in self.costs:
            known = ["params", *self.costs]
            raise SpaceError(
                f"space {self.space.name!r} counts no {name!r}; {did_you_mean(name, known)}"
            )
        return self.costs[name]

    def count(self, name: str, arch: Arch) -> int | float:
        """The exact cost called ``name`` of an architecture."""
        return cost.exact(self.space, self.terms(name), arch)

    def expect(self, name: str, mixture: Mixture) -> jax.Array:
        """The expected cost called ``name`` under a mixture; differentiable."""
        return cost.expected(self.space, self.terms(name), mixture)

    def architecture(self, arch: Arch | str) -> dict[str, Any]:
        """``arch`` checked; or the one called so: largest, smallest, a published name, a genotype.

        Raises:
          ArchitectureError: if it does not lie in the space, or none is called so.
        """
        if not isinstance(arch, str):
            return architecture.validate(self.space, arch)
        if arch == "largest":
            return architecture.largest(self.space)
        if arch == "smallest":
            return architecture.smallest(self.space)
        if arch not in self.published and self.from_text is not None and set("|(") & set(arch):
            return architecture.validate(self.space, self.from_text(arch))
        if arch not in self.published:
            known = ["largest", "smallest", *self.published]
            raise architecture.ArchitectureError(
                f"space {self.space.name!r} has no architecture called {arch!r}; "
                f"{did_you_mean(arch, known)}"
            )
        return dict(self.published[arch])
