"""A super-network: a search space joined to the Flax module it searches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import architecture, cost
from nasjax.core.architecture import Arch
from nasjax.core.cost import Term
from nasjax.core.errors import SpaceError, did_you_mean
from nasjax.core.mixture import Mixture
from nasjax.core.names import Tree, axis_names, leaves, name_axes
from nasjax.core.space import SearchSpace
from nasjax.core.superpose import extract, superpose


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
    """

    space: SearchSpace
    module: nn.Module
    network: Callable[[Arch], nn.Module]
    input_shape: tuple[int, ...]
    patterns: Mapping[str, tuple[str | None, ...]] | None = None
    costs: Mapping[str, Sequence[Term]] = field(default_factory=dict)
    published: Mapping[str, Arch] = field(default_factory=dict)

    @functools.cached_property
    def _boxed(self) -> Any:
        example = jax.ShapeDtypeStruct((1, *self.input_shape), jnp.float32)
        return jax.eval_shape(self.module.init, jax.random.key(0), example)

    @functools.cached_property
    def shapes(self) -> dict[str, Any]:
        """Shapes of the maximal variables, as a tree of ``jax.ShapeDtypeStruct``."""
        return nn.unbox(self._boxed)

    @functools.cached_property
    def names(self) -> dict[str, Any]:
        """Axis names of the maximal variables, checked against the space."""
        if self.patterns is not None:
            names = name_axes(self.shapes, self.patterns)
        else:
            names = axis_names(self._boxed)
        list(leaves(self.space, names, self.shapes))
        return names

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Draw maximal variables."""
        self.names  # noqa: B018 - a space that does not fit the module fails here, not later
        return self._init(key)

    @functools.cached_property
    def _init(self) -> Callable[[jax.Array], dict[str, Any]]:
        example = np.zeros((1, *self.input_shape), np.float32)
        return jax.jit(lambda key: nn.unbox(self.module.init(key, example)))

    def superpose(self, variables: Tree, mixture: Mixture) -> dict[str, Any]:
        """Variables of the super-network under ``mixture``; see :func:`superpose`."""
        return superpose(self.space, self.names, variables, mixture)

    def extract(self, variables: Tree, arch: Arch) -> dict[str, Any]:
        """Variables of ``network(arch)``; see :func:`extract`."""
        return extract(self.space, self.names, variables, arch)

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
        """``arch`` checked; or the one called so: largest, smallest, or a published name."""
        if not isinstance(arch, str):
            return architecture.validate(self.space, arch)
        if arch == "largest":
            return architecture.largest(self.space)
        if arch == "smallest":
            return architecture.smallest(self.space)
        if arch not in self.published:
            known = ["largest", "smallest", *self.published]
            raise architecture.ArchitectureError(
                f"space {self.space.name!r} has no architecture called {arch!r}; "
                f"{did_you_mean(arch, known)}"
            )
        return dict(self.published[arch])
