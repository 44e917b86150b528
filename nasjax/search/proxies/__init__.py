"""Proxies: scores of networks that were never trained (docs/training_free.md).

A proxy is a pure function ``score(model, variables, arch, batch) -> (total, per_layer)``. ``model``
is a super-network, ``variables`` its maximal parameters and ``arch`` an architecture or a one-hot
mixture, which may be traced: one program scores all architectures. Or ``model`` is a Flax module,
``variables`` its own and ``arch`` None: both say the same. More is better. A proxy may have a
method ``prepared(supernet, variables, arch) -> proxy``: the same one for these weights, with all
worked out that does not change from one architecture to the next.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from nasjax.core.errors import did_you_mean
from nasjax.core.flops import count_multiply_adds
from nasjax.core.supernet import Supernet
from nasjax.search.errors import SearchError
from nasjax.search.proxies._view import LAYERS, Batch, Layers, Model
from nasjax.search.proxies.activations import activation_kernel, linear_regions, naswot
from nasjax.search.proxies.dss import DSS
from nasjax.search.proxies.ntk import ntk, tangent_kernel
from nasjax.search.proxies.nuclear import nuclear_norm
from nasjax.search.proxies.saliency import grasp, snip


class Proxy(Protocol):
    """A score of a network that was not trained."""

    def __call__(
        self, model: Model, variables: Any, arch: Any, batch: Batch
    ) -> tuple[Any, dict[str, jax.Array]]:
        """The score and, where it is a sum over layers, the part of each by its name."""


@dataclass(frozen=True)
class Count:
    """A cost as a proxy, the baseline of all others; exact of an architecture.

    Attributes:
      cost: ``"params"`` or ``"flops"``.
    """

    cost: str

    def __call__(
        self, model: Model, variables: Any, arch: Any, batch: Batch
    ) -> tuple[Any, dict[str, jax.Array]]:
        """The count; expected under a mixture."""
        if isinstance(model, Supernet):
            traced = any(hasattr(value, "dtype") for value in arch.values())
            return (model.expect if traced else model.count)(self.cost, arch), {}
        if self.cost == "params":
            return sum(leaf.size for leaf in jax.tree.leaves(variables["params"])), {}
        image = jax.ShapeDtypeStruct((1, *batch["image"].shape[1:]), jnp.float32)
        return count_multiply_adds(lambda v, x: model.apply(v, x), variables, image), {}


PROXIES: Mapping[str, Callable[..., Proxy]] = {
    "dss": DSS,
    "dss_released": functools.partial(DSS, "released"),
    "snip": snip,
    "grasp": grasp,
    "naswot": naswot,
    "ntk": ntk,
    "linear_regions": linear_regions,
    "params": lambda: Count("params"),
    "flops": lambda: Count("flops"),
}


def proxy(name: str, **options: Any) -> Proxy:
    """The proxy called ``name``.

    Args:
      name: one of ``PROXIES``.
      **options: of the function that makes it.

    Example:
      >>> from nasjax import spaces
      >>> net = spaces.make("quickstart")
      >>> variables = net.init(jax.random.key(0))
      >>> batch = {"image": jnp.zeros((1, 8, 8, 1))}
      >>> total, layers = proxy("dss")(net, variables, net.architecture("smallest"), batch)
      >>> bool(total > 0), "blocks_0/attention/qkv" in layers
      (True, True)

    Raises:
      SearchError: if there is no such proxy or option.
    """
    if name not in PROXIES:
        raise SearchError(f"no proxy {name!r}; {did_you_mean(name, PROXIES)}")
    try:
        return PROXIES[name](**options)
    except TypeError as error:
        raise SearchError(f"proxy {name!r} cannot be made so: {error}.") from None


__all__ = [
    "DSS",
    "LAYERS",
    "PROXIES",
    "Count",
    "Layers",
    "Proxy",
    "activation_kernel",
    "grasp",
    "linear_regions",
    "naswot",
    "ntk",
    "nuclear_norm",
    "proxy",
    "snip",
    "tangent_kernel",
]
