"""Patterns of activation: NASWOT, and the number of linear regions of TE-NAS.

Two images share a linear region of a network of rectifiers where the same units are positive. The
kernel of both proxies counts, for each pair of images, the units on which the two agree.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasjax.search.errors import SearchError
from nasjax.search.proxies._view import LAYERS, Batch, Layers, Model, View, told, view

_SOWN = "activations"
_UNITS = "units"


def naswot(layers: Layers = LAYERS) -> Any:
    """``log |det K|``, ``K`` the agreement of the activations of each pair of images.

    Source: Mellor et al., "Neural architecture search without training" (ICML 2021), on the outputs
    of the first layer of every perceptron, as TF-TAS takes it to transformers.
    """

    def score(
        model: Model, variables: Any, arch: Any, batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The score; it is no sum over layers, so there are no parts."""
        agreement, _ = activation_kernel(model, variables, arch, batch, layers)
        return jnp.linalg.slogdet(agreement)[1], {}

    return score


def linear_regions(layers: Layers = LAYERS) -> Any:
    """How many different patterns of activation the images of a batch have.

    Source: Chen et al., "Neural architecture search on ImageNet in four GPU hours" (ICLR 2021),
    section 3.2.
    """

    def score(
        model: Model, variables: Any, arch: Any, batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The number; it is no sum over layers, so there are no parts."""
        agreement, units = activation_kernel(model, variables, arch, batch, layers)
        same = jnp.tril(agreement > units - 0.5, -1)
        return jnp.sum(~jnp.any(same, -1)).astype(jnp.float32), {}

    return score


def activation_kernel(
    model: Model, variables: Any, arch: Any, batch: Batch, layers: Layers = LAYERS
) -> tuple[jax.Array, jax.Array]:
    """``sum X X^T + (1 - X)(1 - X)^T`` over layers, ``X`` the signs of the activations.

    Args:
      model: a super-network or a module, see :func:`nasjax.search.proxies.proxy`.
      variables: its parameters.
      arch: of a super-network the architecture or its mixture.
      batch: with ``"image"``, two images at least.
      layers: which layers are activated.

    Returns:
      The kernel ``(images, images)``, and how many units there are.

    Raises:
      SearchError: if the batch is too small, or no layer is activated.
    """
    images = batch["image"]
    if images.shape[0] < 2:
        raise SearchError(
            f"a batch of {images.shape[0]} tells nothing of how images differ; patterns of "
            "activation need 2 or more."
        )
    seen = view(model, variables, arch, batch)
    entering, leaving = _activated(seen, layers)
    given = told(seen.weigh(seen.params), _units(seen, entering | leaving, entering))
    watch = functools.partial(_watch, entering, leaving)
    with nn.intercept_methods(watch):
        _, found = seen.apply(given, images, (_SOWN,))
    kernels, units = _collected(found.get(_SOWN, {}))
    if kernels is None:
        raise SearchError(
            f"{type(seen.module).__name__} keeps no activations: let its scanned layers carry "
            f"the collection {_SOWN!r}, or score it with snip or ntk."
        )
    return kernels, units


def _activated(seen: View, layers: Layers) -> tuple[set[str], set[str]]:
    """Modules of whose inputs, and of whose outputs, the signs are taken; as they are scanned."""
    entering, leaving = "", layers.outputs
    if not seen.chosen(layers.attention):
        entering, leaving = layers.conv_inputs, layers.conv_outputs
    found: list[set[str]] = []
    for pattern in (entering, leaving):
        paths = {"/".join(leaf.path[1:-1]) for leaf in seen.chosen(pattern)} if pattern else set()
        found.append(paths)
    if not any(found):
        raise SearchError(
            f"it is not known which layers of {type(seen.module).__name__} are activated; name "
            "them in Layers(outputs=...), or score it with snip or ntk."
        )
    return found[0], found[1]


def _units(seen: View, watched: set[str], entering: set[str]) -> dict[tuple[str, ...], Any]:
    """How much of each watched unit is there, for the collection ``"active"``."""
    found = {}
    for leaf in seen.kernels:
        if "/".join(leaf.path[1:-1]) in watched:
            there = jnp.asarray(seen.present(leaf))
            if "/".join(leaf.path[1:-1]) in entering and there.ndim > leaf.scanned:
                there = jnp.max(there, -1)  # the units are those of the input, all of them there
            found[(*leaf.path[1:-1], _UNITS)] = there
    return found


def _watch(
    entering: set[str],
    leaving: set[str],
    next_fun: Any,
    args: Any,
    kwargs: Any,
    context: nn.module.InterceptorContext,
) -> Any:
    y = next_fun(*args, **kwargs)
    module, path = context.module, "/".join(context.module.path)
    if context.method_name != "__call__" or path not in entering | leaving:
        return y
    activated = args[0] if path in entering else y
    there: Any = module.get_variable("active", _UNITS)
    signs = jnp.where(activated > 0, 1.0, -1.0)
    weights = jnp.broadcast_to(there, activated.shape[1:])
    rows = signs.reshape(signs.shape[0], -1)
    # Agreements less disagreements are the product of the signs.
    units = jnp.sum(weights)
    agreement = (units + (rows * weights.reshape(-1)) @ rows.T) / 2
    module.sow(_SOWN, "agreement", agreement)
    module.sow(_SOWN, "number", units)
    return y


def _collected(sown: Any) -> tuple[Any, Any]:
    agreement: Any = None
    units: Any = 0.0
    for path, value in jax.tree.leaves_with_path(sown):
        kind = next((str(k.key) for k in reversed(path) if hasattr(k, "key")), "")
        if kind == "agreement":
            value = value if value.ndim == 2 else jnp.sum(value, 0)
            agreement = value if agreement is None else agreement + value
        elif kind == "number":
            units = units + jnp.sum(value)
    return agreement, units
