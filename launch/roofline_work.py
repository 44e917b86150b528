"""The work of one training step of a super-network, counted from a trace: nothing is run."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from two_stage import make_sampler

import nasjax
from nasjax import relax, sampling, spaces
from nasjax.core import architecture
from nasjax.core.errors import NasjaxError
from nasjax.core.flops import inner_jaxprs, multiply_adds, products
from nasjax.core.names import Leaf, leaves
from nasjax.core.supernet import STATISTICS, Supernet
from nasjax.models.vit import VisionTransformer
from nasjax.train.losses import cross_entropy

_BATCH = 128  # traced: so many images that tiles cut across the batch are full
_ELEMENTWISE = ("add", "sub", "mul", "div")
_TENSOR = {"heads", "mlp"}  # axes that tensor parallelism divides
_ADAM = 28 + 4  # bytes a parameter: it reads g, w, m, v, writes w, m, v; g is read for its norm


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step does and keeps, apart from where. A pass is a forward and a backward pass.

    Attributes:
      passes: in a step.
      flops: FLOPs of a step for one image of each level, 6 for each multiply-add of a network.
      executed: the same as traced, rounded up to the tiles of the device's matrix unit.
      traffic: bytes of activations that products read and write, for one image of each level.
      kept: bytes an image that a forward pass keeps for its backward pass, of one network.
      params: parameters.
      dtype: of the computation.
      levels: batches of a step: two where alphas have their own.
      state: bytes a parameter of weights, moments, averages and gradients.
      update: bytes a parameter that optimizer, average and gradient sums move in a step.
      masks: bytes a parameter that superposition moves in a step.
      mask_flops: FLOPs of superposition in a step, over all parameters.
      layers: collectives of gradients in a pass, one for each layer.
      statistics: collectives of batch statistics in a pass, all of them small.
      divided: part of the parameters with an axis that tensor parallelism divides.
      stream: bytes of the residual stream an image, summed over layers; 0 if nothing is divided.
    """

    passes: int
    flops: float
    executed: float
    traffic: float
    kept: float
    params: int
    dtype: str
    levels: int
    state: int
    update: int
    masks: float
    mask_flops: float
    layers: int
    statistics: int = 0
    divided: float = 0.0
    stream: float = 0.0

    @property
    def bytes(self) -> int:
        """Bytes of a number in the computation."""
        return jnp.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Product:
    """``times`` as many products of ``batch`` pairs of matrices (rows, depth) x (depth, columns).

    A convolution is the product that it amounts to, its groups the batch.
    """

    batch: int
    rows: int
    columns: int
    depth: int
    bytes: int
    times: int = 1

    def executed(self, tile: tuple[int, int, int]) -> int:
        """Multiply-adds in tiles of (rows, columns, depth), either matrix taken for the left one.

        Zero where a matrix is a vector, as in depthwise convolutions: matrix units have no part in
        these, they cost their bytes.
        """
        if 1 in (self.rows, self.columns):
            return 0
        sides = [
            _up(a, tile[0]) * _up(b, tile[1])
            for a, b in itertools.permutations((self.rows, self.columns))
        ]
        return self.times * self.batch * min(sides) * _up(self.depth, tile[2])


def multiplied(jaxpr: Any) -> list[Product]:
    """The products of a jaxpr that count as multiply-adds, by their sizes."""
    return [_product(equation, times) for equation, times in products(jaxpr)]


def _product(equation: Any, times: int) -> Product:
    left, right = (v.aval for v in equation.invars[:2])
    out, params = equation.outvars[0].aval, equation.params
    size = sum(math.prod(a.shape) * a.dtype.itemsize for a in (left, right, out))
    if equation.primitive.name == "dot_general":
        (contract, _), (shared, _) = params["dimension_numbers"]
        batch = math.prod(left.shape[d] for d in shared)
        depth = math.prod(left.shape[d] for d in contract)
        rows, columns = (math.prod(a.shape) // (batch * depth) for a in (left, right))
    else:
        batch = params["feature_group_count"] * params["batch_group_count"]
        features = right.shape[params["dimension_numbers"].rhs_spec[0]]
        rows, columns = math.prod(out.shape) // features, features // batch
        depth = math.prod(right.shape) // features
    return Product(batch, rows, columns, depth, size, times)


def _up(length: int, tile: int) -> int:
    return math.ceil(length / tile) * tile


def of_config(values: Mapping[str, Any], dtype: str, tile: tuple[int, int, int]) -> Work:
    """The work of a step of the search that ``values`` configure.

    Args:
      values: of the configuration, as plain values.
      dtype: of the computation; parameters and their moments are float32.
      tile: of the device's matrix unit, (rows, columns, depth).

    Raises:
      NasjaxError: if the step is one of the exact second order, which is not modelled.
    """
    # Of attention by XLA, which can be traced on any machine.
    sizes = {k: v for k, v in values["space"].items() if k != "attention_backend"}
    supernet = spaces.make(**{**sizes, "dtype": dtype})
    search, space = values["search"], supernet.space
    if search["second_order"]:
        raise NasjaxError("steps of the exact second order are not modelled; set second_order off.")
    sampled = bool(search["sampler"]["kind"])
    sandwich = search["sampler"]["kind"] == sampling.SANDWICH
    average = search["recipe"].get("average", 0.0) > 0
    networks = _networks(supernet, search)
    passes = round(sum(networks.values()))
    plan = list(leaves(space, supernet.names, supernet.shapes))
    arrays = [leaf for leaf in plan if leaf.path[0] == "params"]
    params = sum(map(_size, arrays))
    means = [leaf for leaf in plan if leaf.path[0] == STATISTICS and leaf.path[-1] == "mean"]
    width = jnp.dtype(dtype).itemsize
    largest = architecture.largest(space)
    flops, executed, traffic, kept = 0.0, 0.0, 0.0, 0.0
    for static, number in networks.items():
        arch = {**largest, **dict(static)}
        flops += 6 * number * supernet.count("flops", arch)
        tiled, moved, held = _trace(supernet, arch, tile, params * width)
        executed += 2 * number * tiled
        traffic += number * moved
        kept = max(kept, held)
    # Gradients of the networks after the first are added up. Where two sums are projected, both
    # are read for their angle, then read and written as they are combined.
    sums = 12 * (passes - 1) * sampled + 20 * sandwich
    module = supernet.module
    stream = 0.0
    if isinstance(module, VisionTransformer):
        height, long, _ = supernet.input_shape
        tokens = 1 + height * long // module.patch_size**2
        stream = module.depth * tokens * module.embed_dim * width
    return Work(
        passes=passes,
        flops=flops,
        executed=executed,
        traffic=traffic,
        kept=kept,
        params=params,
        dtype=dtype,
        levels=1 if sampled else passes,
        state=4 + 8 + 4 + 4 * average + 4 * sandwich,
        update=_ADAM + 12 * average + sums,
        # A loop reads the weights and writes what the products read, in their precision, and once
        # more for the way back; there it reads what the products write. The gradient of a mixture
        # takes the weights once more.
        masks=passes * (2 * (4 + width) + width + 4 + 4 * (not sampled)),
        mask_flops=passes * _mask_flops(supernet, not sampled),
        layers=1 + sum({leaf.stack: leaf.shape[0] for leaf in arrays if leaf.scanned}.values()),
        statistics=2 * sum(leaf.shape[0] if leaf.scanned else 1 for leaf in means),
        divided=sum(_size(leaf) for leaf in arrays if _TENSOR & set(leaf.axes)) / params,
        stream=stream,
    )


Static = tuple[tuple[str, Any], ...]


def _networks(supernet: Supernet, search: Mapping[str, Any]) -> dict[Static, float]:
    """How many networks of a step have each combination of the static options, on average."""
    space = supernet.space
    kind = search["sampler"]["kind"]
    if not kind:
        learns = relax.relaxation(**{**search["relaxation"], "steps": 1}).learns
        ends, random = [architecture.largest(space)] * (1 + learns), 0
    else:
        random = len(make_sampler(supernet, search["sampler"])(jax.random.key(0), 0))
        ends = []
        if kind == sampling.SANDWICH:
            ends = [architecture.largest(space), architecture.smallest(space)]
    options = [[(name, o) for o in space.choice(name).options] for name in space.static]
    every = list(itertools.product(*options))
    found = dict.fromkeys(every, (random - len(ends)) / len(every) if random else 0.0)
    for arch in ends:
        found[tuple((name, arch[name]) for name in space.static)] += 1
    return {static: number for static, number in found.items() if number}


def _trace(
    supernet: Supernet, arch: Mapping[str, Any], tile: tuple[int, int, int], fixed: float
) -> tuple[float, float, float]:
    """Of a pass of one network: executed multiply-adds, traffic and kept bytes, for each image.

    ``fixed`` are the bytes of the weights as products read them, which do not depend on the batch:
    a pass reads them twice and writes their gradients.
    """
    module, weights = supernet.maximal(dict(arch)), supernet.shapes["params"]
    rngs = {"dropout": jax.random.key(0)}

    def loss(weights: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        given = {"params": weights, **supernet.empty_statistics}
        logits, _ = module.apply(given, images, train=True, rngs=rngs, mutable=[STATISTICS])
        return cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]))

    def step(weights: Any, images: jax.Array, labels: jax.Array) -> Any:
        value, pull_back = jax.vjp(lambda w: loss(w, images, labels), weights)
        # What the backward pass is given: the arrays that the forward pass keeps for it.
        return jax.tree.leaves(pull_back), pull_back(jnp.ones_like(value))

    images = jax.ShapeDtypeStruct((_BATCH, *supernet.input_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((_BATCH,), jnp.int32)
    jaxpr, (kept, _) = jax.make_jaxpr(step, return_shape=True)(weights, images, labels)
    found = multiplied(jaxpr.jaxpr)
    return (
        sum(p.executed(tile) for p in found) / _BATCH,
        (sum(p.times * p.bytes for p in found) - 3 * fixed) / _BATCH,
        (sum(math.prod(x.shape) * x.dtype.itemsize for x in kept) - fixed) / _BATCH,
    )


def _mask_flops(supernet: Supernet, searched: bool) -> float:
    """FLOPs of superposition and its gradients, those of the mixture where that is searched."""
    weights = {"params": supernet.shapes["params"]}
    mixture = jax.eval_shape(lambda: nasjax.uniform(supernet.space))

    def both(weights: Any, mixture: Any, cotangent: Any) -> Any:
        def superposed(weights: Any, mixture: Any) -> Any:
            return supernet.superpose(weights, mixture)["params"]

        if searched:
            return jax.vjp(superposed, weights, mixture)[1](cotangent)
        return jax.vjp(lambda w: superposed(w, mixture), weights)[1](cotangent)

    jaxpr = jax.make_jaxpr(both)(weights, mixture, weights["params"]).jaxpr
    thin = sum(2 * times * multiply_adds(equation) for equation, times in products(jaxpr))
    return thin + _elementwise(jaxpr)


def _elementwise(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name in _ELEMENTWISE:
            total += math.prod(equation.outvars[0].aval.shape)
        total += sum(_elementwise(inner) for inner in inner_jaxprs(equation.params))
    return total


def _size(leaf: Leaf) -> int:
    return math.prod(leaf.shape)
