"""A single edge with partial channels and weights of its own for every operation, as DrNAS has it.

The reference's names: ``MODEL._ops.I.op.J.weight`` (a sequence of layers) and
``MODEL._ops.I.{conv_1,conv_2,bn}`` (the skip at stride 2).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from nasjax.core.names import axis_names
from nasjax.core.space import Choice, SearchSpace
from nasjax.core.superpose import superpose
from nasjax.models.operations import Candidate, Edge, axes, candidates
from nasjax.models.widen import widen_candidate
from tests.golden.fixture import Fixture, GoldenError
from tests.golden.outcome import Quantity

_LAYERS = {
    "max_pool": {"op.1": ("norm",)},
    "avg_pool": {"op.1": ("norm",)},
    "skip_connect": {
        "conv_1": ("reduce", "conv_1"),
        "conv_2": ("reduce", "conv_2"),
        "bn": ("reduce", "norm"),
    },
    "sep_conv": {
        "op.1": ("depthwise_1",),
        "op.2": ("pointwise_1",),
        "op.3": ("norm_1",),
        "op.5": ("depthwise_2",),
        "op.6": ("pointwise_2",),
        "op.7": ("norm_2",),
    },
    "dil_conv": {"op.1": ("depthwise",), "op.2": ("pointwise",), "op.3": ("norm",)},
}
_ARRAYS = {
    "weight": ("params", "kernel"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
STACK = "edges"


def is_edge(model: Mapping[str, Any]) -> bool:
    """Whether ``model`` describes an edge: a list of operations, and C, stride and k."""
    return "ops" in model and {"C", "stride", "k"} <= set(model.get("constructor", ()))


class OneEdge(nn.Module):
    """An edge in a stack of its own."""

    candidates: tuple[Candidate, ...]
    features: int
    stride: int
    partial: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map images ``(batch, height, width, features)`` to the output of the edge."""
        options = (("pool_norm", True), ("weighed", True))
        edge = Edge(
            self.candidates, self.features, self.stride, self.partial, options, name=f"{STACK}_0"
        )
        return edge(x, train)


def check(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Quantity]:
    """The output of the edge under a mixture, perhaps after its channels have been widened."""
    model = fixture.get("models")[case["model"]]
    found = candidates(model["ops"], entangled=False)
    built, features = model["constructor"], model["constructor"]["C"]
    images = jnp.moveaxis(jnp.asarray(_input(fixture, case["input"])), 1, -1)
    network = OneEdge(found, features, built["stride"], built["k"])
    variables = _variables(fixture, model, found)
    if "after" in case:
        wider = re.fullmatch(r"wider\((\d+)\)", case["after"])
        if wider is None:
            raise GoldenError(f"{case['after']!r} is not known; wider(NUMBER) was expected.")
        network = network.clone(partial=int(wider[1]))
        drawn = iter(case["indices_in_draw_order"])
        like = _shapes(network, images)
        variables = _widen(variables, like, found, lambda *_: fixture.array(next(drawn)))
        if rest := list(drawn):
            raise GoldenError(f"indices {rest} were not drawn.")
    space = SearchSpace(
        "edge",
        (Choice("operation", tuple(model["ops"]), per=STACK),),
        {STACK: 1, **axes("operation", STACK, found)},
        operations=tuple(f"{STACK}/{c.name}" for c in found),
    )
    names = axis_names(jax.eval_shape(network.init, jax.random.key(0), images))
    shapes = _shapes(network, images)
    given = {**variables, "active": shapes["active"]}
    mixture = {"operation": jnp.asarray(fixture.array(case["mixture"]))[None]}
    superposed = superpose(space, names, given, mixture)
    output = network.apply(superposed, images, train=case["mode"] == "train")
    expected = np.moveaxis(fixture.array(case["output"]), 1, -1)
    yield Quantity.of("output", "output", output, expected)


def _shapes(network: nn.Module, images: jax.Array) -> Any:
    return nn.unbox(jax.eval_shape(network.init, jax.random.key(0), images))


def _input(fixture: Fixture, tag: str) -> np.ndarray:
    """Inputs are listed as ``{tag: shape}`` or as entries with a ``tag``."""
    listed = fixture.get("input")
    if not isinstance(listed, Mapping):
        return fixture.input(tag)
    if tag not in listed:
        raise GoldenError(f"{fixture.path.name} lists no input {tag!r}.")
    return fixture.draw({"name": f"input:{tag}", "shape": listed[tag]})


def _variables(fixture: Fixture, model: Mapping[str, Any], found: Any) -> dict[str, Any]:
    """The drawn tensors of a model, in the layout of :class:`OneEdge`."""
    flat = {}
    for entry in model["params"]:
        name = re.search(r"_ops\.(\d+)\.(.+)\.(\w+)$", entry["name"])
        if name is None or name[3] not in _ARRAYS:
            raise GoldenError(f"{entry['name']!r} is no tensor of an edge.")
        candidate, (collection, leaf) = found[int(name[1])], _ARRAYS[name[3]]
        if name[2] not in _LAYERS[candidate.kind]:
            raise GoldenError(f"{entry['name']!r} is no layer of a {candidate.kind}.")
        value = fixture.draw(entry)
        value = np.transpose(value, (2, 3, 1, 0)) if value.ndim == 4 else value
        place = (f"{STACK}_0", candidate.name, *_LAYERS[candidate.kind][name[2]])
        flat[collection, *place, leaf] = jnp.asarray(value)
    return traverse_util.unflatten_dict(flat)


def _widen(variables: Any, like: Any, found: Any, draw: Any) -> dict[str, Any]:
    """Every operation widened, in their order."""
    edge = f"{STACK}_0"
    wide: dict[str, Any] = {collection: {edge: {}} for collection in variables}
    for candidate in found:
        own, target = (
            {
                c: tree[c][edge][candidate.name]
                for c in variables
                if candidate.name in variables[c][edge]
            }
            for tree in (variables, like)
        )
        for collection, part in widen_candidate(candidate.kind, own, target, draw).items():
            wide[collection][edge][candidate.name] = part
    return wide
