"""A network as proxies see it: one function of its parameters, and its layers by name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from nasjax.core import mixture as mixtures
from nasjax.core.architecture import Arch
from nasjax.core.expect import mask_factors
from nasjax.core.initial import shapes_boxed
from nasjax.core.mixture import Mixture
from nasjax.core.names import Leaf, Tree, axis_names, leaves
from nasjax.core.space import SearchSpace
from nasjax.core.supernet import STATISTICS, Supernet
from nasjax.core.superpose import ACTIVE, unrolled
from nasjax.search.errors import SearchError
from nasjax.train.calibrate import without_dropout

Model = Supernet | nn.Module
Batch = Mapping[str, jax.Array]
Path = tuple[str, ...]
Flat = dict[Path, Any]


@dataclass(frozen=True)
class Layers:
    """Which layers do what: regular expressions, searched for in the slash-joined path.

    The path is that of the module which owns a kernel, with layers as an extracted network calls
    them: ``"blocks_0/attention/qkv"``. The defaults know every network of nasjax.

    Attributes:
      attention: linear maps of self-attention.
      mlp: linear maps of perceptrons.
      head: the classifier.
      outputs: layers whose outputs are activated next, in a network with attention.
      conv_outputs: the same in a network without.
      conv_inputs: layers of a network without attention whose inputs were activated just before.
    """

    attention: str = (
        r"(^|/)attention/(.*/)?(qkv|query|key|value|query_key|query_key_value|proj(ect)?)$"
    )
    mlp: str = r"(^|/)(fc1|fc2|up|down)$"
    head: str = r"^head$"
    outputs: str = r"(^|/)(fc1|up)$"
    conv_outputs: str = r"^(conv_[1-4]|hidden(_\d+)?)$"
    conv_inputs: str = r"/(conv|depthwise(_\d)?)$"


LAYERS = Layers()


@dataclass(frozen=True, eq=False)
class View:
    """A network and its parameters.

    Gradients are taken of the parameters as the network uses them, which in a super-network are
    superposed, and then masked: what a sub-network has no part of would have one all the same.

    Attributes:
      params: maximal arrays, or those of a network of its own.
      kernels: every array called ``kernel``.
      weigh: ``params -> variables`` to apply. It is linear in ``params``.
      module: the Flax module.
      shape: of one input.
      statistics: zeros for running statistics; empty where there are none.
      present: ``leaf -> (units,)`` or ``(layers, units)``: how much of each output unit there is.
    """

    params: Mapping[str, Any]
    kernels: tuple[Leaf, ...]
    weigh: Callable[[Any], dict[str, Any]]
    module: nn.Module
    shape: tuple[int, ...]
    statistics: Mapping[str, Any]
    present: Callable[[Leaf], Any]

    def used(self, params: Any) -> Any:
        """``params`` as the network uses them, or any tree like them masked in that way."""
        return self.weigh(params)["params"]

    def logits(self, used: Any, images: jax.Array) -> jax.Array:
        """Class logits without dropout; batch normalisations use the statistics of ``images``.

        Made to be differentiated: where the network can, it keeps what products gave for the
        backward pass, and nothing between them. On a CPU that is also faster (AutoFormer-T, of one
        image and of several).
        """
        lean = self
        if hasattr(self.module, "remat"):
            lean = dataclasses.replace(self, module=self.module.clone(remat="maps"))
        return lean.apply({**self.weigh(self.params), "params": used}, images)[0]

    def apply(
        self, variables: Any, images: jax.Array, mutable: tuple[str, ...] = ()
    ) -> tuple[jax.Array, Any]:
        """Logits, and the collections that were asked for."""
        given, training = dict(variables), bool(self.statistics)
        if self.statistics:
            given |= self.statistics
            mutable = (*mutable, STATISTICS)
        with nn.intercept_methods(without_dropout):
            logits: Any
            logits, changed = self.module.apply(
                given, images, mutable=list(mutable), train=training
            )
        return (logits[0] if isinstance(logits, tuple) else logits), changed

    def of_kernels(self, params: Any) -> Flat:
        """The kernels among ``params``, or a tree like them, by path."""
        flat = traverse_util.flatten_dict({"params": dict(params)})
        return {leaf.path: flat[leaf.path] for leaf in self.kernels}

    def with_kernels(self, used: Any, kernels: Flat) -> Any:
        """``used`` with other kernels, of which gradients can then be taken alone."""
        flat = traverse_util.flatten_dict({"params": dict(used)})
        return traverse_util.unflatten_dict({**flat, **kernels})["params"]

    def masked(self, kernels: Flat) -> Flat:
        """Arrays like the kernels, masked as the network uses them."""
        return self.of_kernels(self.used(self.with_kernels(self.params, kernels)))

    def chosen(self, pattern: str) -> list[Leaf]:
        """The kernels of the layers that ``pattern`` finds."""
        return [leaf for leaf in self.kernels if re.search(pattern, next(names(leaf)))]

    def by_layer(self, values: Mapping[Path, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The total of values of kernels, and each layer's by its name.

        Args:
          values: by path, of any shape; all but the leading axis of scanned layers is summed.
        """
        found: dict[str, jax.Array] = {}
        for leaf in self.kernels:
            if leaf.path not in values:
                continue
            value = jnp.asarray(values[leaf.path])
            if leaf.scanned:
                sums = jnp.sum(value.reshape(value.shape[0], -1), -1)
                found |= dict(zip(names(leaf), sums, strict=True))
            else:
                found[next(names(leaf))] = jnp.sum(value)
        total = sum(found.values(), start=jnp.zeros(()))
        return total, found


def names(leaf: Leaf) -> Iterator[str]:
    """The names of the layers of a kernel: several where they are scanned."""
    if not leaf.scanned:
        yield "/".join(leaf.path[1:-1])
        return
    for layer in range(leaf.shape[0]):
        yield "/".join(unrolled(leaf.path, str(leaf.stack), layer)[1:-1])


def matrices(leaf: Leaf, bias: tuple[int, ...] | None, value: jax.Array) -> jax.Array:
    """A kernel of a linear map as a matrix (inputs, outputs); ``(layers, ...)`` where scanned.

    Args:
      leaf: the kernel.
      bias: shape of one layer's bias, which tells the outputs; None for a map of one axis.
      value: of the kernel's shape.
    """
    shape = leaf.shape[leaf.scanned :]
    outputs = int(np.prod(shape[1:]))
    if bias is not None:
        outputs = int(np.prod(bias))
    return value.reshape(*leaf.shape[: leaf.scanned], -1, outputs)


def view(model: Model, variables: Tree, arch: Arch | Mixture | None, batch: Batch) -> View:
    """``model`` as proxies see it.

    Args:
      model: a super-network, or a Flax module.
      variables: ``{"params": ...}``: maximal, or of the module.
      arch: of a super-network an architecture or a mixture, which may be traced; None of a module.
      batch: with ``"image"`` (batch, height, width, channels).

    Raises:
      SearchError: if a super-network comes without an architecture, or a module with one.
    """
    if isinstance(model, Supernet) == (arch is None):
        raise SearchError(
            "a super-network is scored with an architecture, and a network of its own without; "
            f"{type(model).__name__} came {'without' if arch is None else 'with'} one."
        )
    params = nn.unbox(variables["params"])  # as ``init`` of a module gives them
    if isinstance(model, Supernet):
        return _of_supernet(model, params, arch)
    shape = tuple(batch["image"].shape[1:])
    boxed = shapes_boxed(model, shape)
    kernels = tuple(_alone(axis_names(boxed)["params"], params))
    stats = {STATISTICS: nn.unbox(boxed[STATISTICS])} if STATISTICS in boxed else {}
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), stats)

    def weigh(params: Any) -> dict[str, Any]:
        return {"params": params}

    return View(params, kernels, weigh, model, shape, zeros, lambda leaf: 1.0)


def _of_supernet(supernet: Supernet, params: Any, arch: Any) -> View:
    module, space = supernet.module, supernet.space
    mixture = arch
    if not any(isinstance(value, jax.Array | np.ndarray) for value in arch.values()):
        module, mixture = supernet.maximal(arch), mixtures.one_hot(space, arch)
    shapes = {"params": supernet.shapes["params"]}
    kernels = tuple(
        leaf for leaf in leaves(space, supernet.names, shapes) if leaf.path[-1] == "kernel"
    )

    def weigh(params: Any) -> dict[str, Any]:
        return supernet.superpose({"params": params}, mixture)

    def present(leaf: Leaf) -> Any:
        return _present(space, mixture, leaf)

    statistics = supernet.empty_statistics
    return View(params, kernels, weigh, module, supernet.input_shape, statistics, present)


def _alone(named: Tree, params: Tree) -> Iterator[Leaf]:
    """Kernels of a network of its own, whose layers may be scanned all the same."""
    specs = traverse_util.flatten_dict(dict(named))
    for path, value in traverse_util.flatten_dict(dict(params)).items():
        if path[-1] == "kernel":
            spec = specs.get(path, ())
            stack = spec[0] if spec and spec[0] in path else None
            shape = tuple(value.shape)
            yield Leaf(("params", *path), shape, (None,) * (len(shape) - bool(stack)), stack)


def _present(space: SearchSpace, mixture: Mixture, leaf: Leaf) -> Any:
    """How much of each output unit of ``leaf`` is there, none of it in layers beyond the depth."""

    def expected(axis: str, within: Leaf) -> Any:
        one = Leaf((), (space.axis_size(axis),), (axis,), within.stack, within.layer)
        factors = mask_factors(space, mixture, one)
        return factors[0].array if factors else jnp.ones(one.shape)

    units: Any = jnp.ones(leaf.shape[-1:])
    if leaf.axes[-1] is not None:
        units = expected(leaf.axes[-1], leaf)
    for operation in leaf.operations:
        units = units * expected(operation, leaf)
    if leaf.stack is not None:
        depth = expected(leaf.stack, Leaf((), (), ()))
        units = units * (depth[:, None] if leaf.scanned else depth[leaf.layer])
    shape = (*leaf.shape[: leaf.scanned], leaf.shape[-1])
    return jnp.broadcast_to(units, shape)


def told(variables: dict[str, Any], found: Mapping[Path, Any]) -> dict[str, Any]:
    """``variables`` with further entries of the collection ``"active"``."""
    flat = traverse_util.flatten_dict(variables)
    flat |= {(ACTIVE, *path): value for path, value in found.items()}
    return traverse_util.unflatten_dict(flat)
