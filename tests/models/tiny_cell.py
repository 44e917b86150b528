"""A space of one small cell with few operations, quick to compile; it can have partial channels."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasjax.core.space import Choice, SearchSpace
from nasjax.core.supernet import Supernet
from nasjax.models.cells import Cell, Edges, Options, incoming
from nasjax.models.convolution import Conv
from nasjax.models.layers import dense
from nasjax.models.operations import axes, candidates
from nasjax.spaces import genotype

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "max_pool_3x3")
NODES = incoming(1, 3)


class Network(nn.Module):
    edges: Edges
    features: int
    partial: int
    reduction: bool
    options: Options = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = Conv(self.features, 3, name="stem")(x)
        fields = (self.reduction, 1, self.partial, self.options)
        x = Cell("edges", self.edges, self.features, *fields, name="cell")([x], train)
        return dense(4, name="head")(jnp.mean(x, (1, 2)))


def tiny_cell(partial: int = 1, sharing: str = "entangled", reduction: bool = False) -> Supernet:
    """Three edges over two nodes, four channels, images of four by four pixels."""
    found = candidates(OPERATIONS, genotype.entangles(sharing, "outside"))
    space = SearchSpace(
        "tiny_cell",
        (Choice("operation", OPERATIONS, per="edges"),),
        {"edges": 3, **axes("operation", "edges", found)},
        operations=tuple(f"edges/{c.name}" for c in found),
    )

    def build(edges: Edges, **options: Any) -> Network:
        given = (("pool_norm", True), *options.items())
        return Network(edges, 4, partial, reduction, given)

    return Supernet(
        space,
        build((found,) * 3, weighed=True),
        lambda arch: build(genotype.chosen(found, arch["operation"])),
        (4, 4, 1),
    )
