"""The DSS indicator of TF-TAS: diversity of attention, saliency of perceptrons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from nasjax.core.errors import did_you_mean
from nasjax.core.names import Leaf
from nasjax.search.errors import SearchError
from nasjax.search.proxies._view import LAYERS, Batch, Layers, Model, View, matrices, view
from nasjax.search.proxies.nuclear import nuclear_norm

FORMS = ("paper", "released")
_TOKENS = ("class_token", "positions")
_PACKED = ("qkv", "query", "key", "value", "query_key", "query_key_value")


def dss(form: str = "paper", head: bool | None = None, layers: Layers = LAYERS) -> Any:
    """Synaptic diversity of attention plus synaptic saliency of perceptrons, of an input of ones.

    Source: Zhou et al., "Training-free Transformer Architecture Search" (CVPR 2022), equations 3 to
    6: with all parameters in absolute value and the sum of the logits as loss ``L``, the product of
    the nuclear norms of ``dL/dW`` and of ``W`` for each linear layer of attention, and the sum of
    ``|dL/dW * W|`` for each of a perceptron. Queries, keys and values that share one matrix are one
    layer.

    Differs from the paper: nothing. The released code, ``form="released"``, takes the absolute
    value of class token and positions alone and leaves queries, keys and values out.

    Args:
      form: ``"paper"`` or ``"released"``.
      head: whether the classifier counts as a layer of a perceptron [no; as released, unless it has
        1000 classes].
      layers: which layers are attention and perceptrons.

    Raises:
      SearchError: if there is no such form.
    """
    if form not in FORMS:
        raise SearchError(f"DSS has no form {form!r}; {did_you_mean(form, FORMS)}")
    released = form == "released"

    def absolute(path: tuple[str, ...], value: jax.Array) -> jax.Array:
        return jnp.abs(value) if not released or path[-1] in _TOKENS else value

    def score(
        model: Model, variables: Any, arch: Any, batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The indicator and every layer's part of it; ``batch`` only tells the size of images."""
        seen = view(model, variables, arch, batch)
        diverse, salient = _layers(seen, layers, released)
        flat = traverse_util.flatten_dict(dict(seen.params))
        params = traverse_util.unflatten_dict({p: absolute(p, v) for p, v in flat.items()})
        ones = jnp.ones((1, *seen.shape))

        def loss(kernels: Any) -> tuple[jax.Array, int]:
            logits = seen.logits(seen.with_kernels(used, kernels), ones)
            return jnp.sum(logits), logits.shape[-1]

        used = seen.used(params)
        weights = seen.of_kernels(used)
        gradients, classes = jax.grad(loss, has_aux=True)(weights)
        counted = (released and classes != 1000) if head is None else head
        salient += seen.chosen(layers.head) if counted else []
        slopes = seen.masked(gradients)
        values = {leaf.path: jnp.abs(slopes[leaf.path] * weights[leaf.path]) for leaf in salient}
        for leaf in diverse:
            bias = _bias(leaf, flat)
            norms = [nuclear_norm(matrices(leaf, bias, of[leaf.path])) for of in (slopes, weights)]
            values[leaf.path] = norms[0] * norms[1]
        return seen.by_layer(values)

    return score


def _layers(seen: View, layers: Layers, released: bool) -> tuple[list[Leaf], list[Leaf]]:
    attention, salient = seen.chosen(layers.attention), seen.chosen(layers.mlp)
    if not attention or not salient:
        raise SearchError(
            f"DSS measures attention and perceptrons, and {type(seen.module).__name__} has no "
            f"{'attention' if not attention else 'perceptrons'}; score it with snip, grasp, naswot "
            "or ntk."
        )
    if released:
        attention = [leaf for leaf in attention if leaf.path[-2] not in _PACKED]
    return attention, salient


def _bias(leaf: Leaf, flat: Mapping[tuple[str, ...], Any]) -> tuple[int, ...] | None:
    """The shape of one layer's bias."""
    beside = (*leaf.path[1:-1], "bias")
    return tuple(flat[beside].shape[leaf.scanned :]) if beside in flat else None
