"""The DSS indicator of TF-TAS: diversity of attention, saliency of perceptrons."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from nasjax.core.architecture import Arch
from nasjax.core.errors import did_you_mean
from nasjax.core.mixture import Mixture
from nasjax.core.names import Leaf
from nasjax.core.supernet import Supernet
from nasjax.search.errors import SearchError
from nasjax.search.proxies._tables import LookUp, tabulate
from nasjax.search.proxies._view import LAYERS, Batch, Layers, Model, Path, View, matrices, view
from nasjax.search.proxies.nuclear import nuclear_norm

FORMS = ("paper", "released")
_TOKENS = ("class_token", "positions")
_PACKED = ("qkv", "query", "key", "value", "query_key", "query_key_value")


@dataclasses.dataclass(frozen=True, eq=False)
class DSS:
    """Synaptic diversity of attention plus synaptic saliency of perceptrons, of an input of ones.

    Source: Zhou et al., "Training-free Transformer Architecture Search" (CVPR 2022), equations 3 to
    6: with all parameters in absolute value and the sum of the logits as loss ``L``, the product of
    the nuclear norms of ``dL/dW`` and of ``W`` for each linear layer of attention, and the sum of
    ``|dL/dW * W|`` for each of a perceptron. Queries, keys and values that share one matrix are one
    layer.

    Differs from the paper: nothing. The released code, ``form="released"``, takes the absolute
    value of class token and positions alone and leaves queries, keys and values out.

    Attributes:
      form: ``"paper"`` or ``"released"``.
      head: whether the classifier counts as a layer of a perceptron [no; as released, unless it has
        1000 classes].
      layers: which layers are attention and perceptrons.
      norms: nuclear norms of weights that are known already, see :meth:`prepared`.

    Raises:
      SearchError: if there is no such form.
    """

    form: str = "paper"
    head: bool | None = None
    layers: Layers = LAYERS
    norms: Mapping[Path, LookUp] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise SearchError(f"DSS has no form {self.form!r}; {did_you_mean(self.form, FORMS)}")

    @property
    def _released(self) -> bool:
        return self.form == "released"

    def __call__(
        self, model: Model, variables: Any, arch: Any, batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The indicator and every layer's part of it; ``batch`` only tells the size of images."""
        seen = view(model, variables, arch, batch)
        diverse, salient = self._of(seen)
        used = seen.used(self._absolute(seen.params))
        ones = jnp.ones((1, *seen.shape))

        def loss(kernels: Any) -> tuple[jax.Array, int]:
            logits = seen.logits(seen.with_kernels(used, kernels), ones)
            return jnp.sum(logits), logits.shape[-1]

        weights = seen.of_kernels(used)
        gradients, classes = jax.grad(loss, has_aux=True)(weights)
        counted = (self._released and classes != 1000) if self.head is None else self.head
        salient += seen.chosen(self.layers.head) if counted else []
        slopes = seen.masked(gradients)
        values = {leaf.path: jnp.abs(slopes[leaf.path] * weights[leaf.path]) for leaf in salient}
        for leaf in diverse:
            known = self.norms.get(leaf.path)
            norm = known(arch) if known else _norm(seen, leaf, weights[leaf.path])
            values[leaf.path] = norm * _norm(seen, leaf, slopes[leaf.path])
        return seen.by_layer(values)

    def prepared(self, supernet: Supernet, variables: Any, arch: Arch) -> DSS:
        """The same proxy for one-hot mixtures with these weights, whose norms it tabulates.

        Args:
          supernet: the super-network.
          variables: its maximal ``{"params": ...}``.
          arch: any architecture with the static options that are meant.
        """
        params = self._absolute(variables["params"])

        def norm(leaf: Leaf, mixture: Mixture) -> jax.Array:
            seen = view(supernet, {"params": params}, mixture, {})
            return _norm(seen, leaf, seen.of_kernels(seen.used(params))[leaf.path])

        diverse, _ = self._of(view(supernet, variables, arch, {}))
        return dataclasses.replace(self, norms=tabulate(supernet.space, arch, diverse, norm))

    def _absolute(self, params: Any) -> Any:
        flat = traverse_util.flatten_dict(dict(params))
        return traverse_util.unflatten_dict(
            {
                path: jnp.abs(value) if not self._released or path[-1] in _TOKENS else value
                for path, value in flat.items()
            }
        )

    def _of(self, seen: View) -> tuple[list[Leaf], list[Leaf]]:
        """Kernels of attention and of perceptrons."""
        attention, salient = seen.chosen(self.layers.attention), seen.chosen(self.layers.mlp)
        if not attention or not salient:
            raise SearchError(
                f"DSS measures attention and perceptrons, and {type(seen.module).__name__} has no "
                f"{'attention' if not attention else 'perceptrons'}; score it with snip, grasp, "
                "naswot or ntk."
            )
        if self._released:
            attention = [leaf for leaf in attention if leaf.path[-2] not in _PACKED]
        return attention, salient


def _norm(seen: View, leaf: Leaf, value: jax.Array) -> jax.Array:
    """The nuclear norm of an array like ``leaf`` as a matrix; ``(layers,)`` where scanned."""
    flat = traverse_util.flatten_dict(dict(seen.params))
    beside = (*leaf.path[1:-1], "bias")
    bias = tuple(flat[beside].shape[leaf.scanned :]) if beside in flat else None
    return nuclear_norm(matrices(leaf, bias, value))
