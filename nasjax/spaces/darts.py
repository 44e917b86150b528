"""The DARTS space: two cells of 14 edges, of which every node keeps two (Liu et al. 2019).

In an architecture the edges that are not kept have the operation ``none``; the super-network has
all edges and, as ``none`` is never decoded, a network always keeps two edges into every node.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nasjax.core.architecture import Arch
from nasjax.core.cost import Term
from nasjax.core.errors import ArchitectureError, SpaceError, did_you_mean
from nasjax.core.supernet import Supernet
from nasjax.models.cells import DartsNetwork, incoming
from nasjax.models.operations import NONE, Candidate, candidates
from nasjax.spaces import genotype

OPERATIONS = (
    NONE,
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
KINDS = ("normal", "reduce")
INPUTS, EDGES, KEPT = 2, 14, 2
NODES = incoming(INPUTS, EDGES)

# Genotypes that papers report: (operation, node it comes from), two for each of four nodes.
_GENOTYPES: Mapping[str, Mapping[str, str]] = {
    "DARTS_V1": {
        "normal": "sep_conv_3x3 1 sep_conv_3x3 0 skip_connect 0 sep_conv_3x3 1 "
        "skip_connect 0 sep_conv_3x3 1 sep_conv_3x3 0 skip_connect 2",
        "reduce": "max_pool_3x3 0 max_pool_3x3 1 skip_connect 2 max_pool_3x3 0 "
        "max_pool_3x3 0 skip_connect 2 skip_connect 2 avg_pool_3x3 0",
    },
    "DARTS_V2": {
        "normal": "sep_conv_3x3 0 sep_conv_3x3 1 sep_conv_3x3 0 sep_conv_3x3 1 "
        "sep_conv_3x3 1 skip_connect 0 skip_connect 0 dil_conv_3x3 2",
        "reduce": "max_pool_3x3 0 max_pool_3x3 1 skip_connect 2 max_pool_3x3 1 "
        "max_pool_3x3 0 skip_connect 2 skip_connect 2 max_pool_3x3 1",
    },
    "PC-DARTS": {
        "normal": "sep_conv_3x3 1 skip_connect 0 skip_connect 0 sep_conv_3x3 1 "
        "skip_connect 0 dil_conv_5x5 1 dil_conv_3x3 3 skip_connect 0",
        "reduce": "max_pool_3x3 0 max_pool_3x3 1 max_pool_3x3 0 avg_pool_3x3 1 "
        "max_pool_3x3 0 skip_connect 2 max_pool_3x3 0 skip_connect 2",
    },
}


def darts(
    *,
    image_size: int = 32,
    num_classes: int = 10,
    channels: int = 16,
    cells: int = 8,
    retrained: Mapping[str, Any] | None = None,
    partial_channels: int = 1,
    sharing: str = "entangled",
    group_mass: str = "outside",
) -> Supernet:
    """The super-network of the DARTS space.

    Args:
      image_size: side of the images in pixels, a multiple of 4.
      num_classes: number of classes.
      channels: of a node in the first cells.
      cells: number of cells, 3 at least.
      retrained: fields of the network that is trained from scratch [36 channels, 20 cells, an
        auxiliary head on images of 32 pixels, paths dropped at a rate of 0.2].
      partial_channels: only this fraction of the channels, one in so many, passes through the
        operations (PC-DARTS).
      sharing: ``"entangled"``, or ``"plain"`` for weights of its own for every operation.
      group_mass: ``"outside"``, or ``"inside"`` for TangleNAS's form, see
        :mod:`nasjax.models.operations`.

    Raises:
      SpaceError: if an option is unknown, or the images, channels or cells do not fit.
    """
    genotype.check_images(image_size)
    genotype.check_partial(partial_channels, channels)
    if cells < 3:
        raise SpaceError(f"cells is {cells}; 3 at least were expected, of which two reduce.")
    found = candidates(OPERATIONS, genotype.entangles(sharing, group_mass))
    space = genotype.cell_space(
        "darts",
        OPERATIONS,
        found,
        {kind: f"{kind}_edges" for kind in KINDS},
        EDGES,
        decoding=decode,
        legal=math.prod(math.comb(len(n), KEPT) * 7**KEPT for n in NODES) ** len(KINDS),
    )
    auxiliary = image_size == 32
    full = {"channels": 36, "cells": 20, "auxiliary": auxiliary, "drop_path": 0.2}
    full |= {"num_classes": num_classes, **(retrained or {})}
    known = [field.name for field in dataclasses.fields(DartsNetwork)]
    for name in full:
        if name not in known:
            raise SpaceError(f"retrained has no field {name!r}; {did_you_mean(name, known)}")
    small = {"channels": channels, "cells": cells, "num_classes": num_classes}
    searched = {"pool_norm": True}

    def build(edges: Sequence[Any], fields: Mapping[str, Any], **options: Any) -> DartsNetwork:
        normal, reduce = edges
        return DartsNetwork(normal, reduce, options=tuple(options.items()), **fields)

    def edges(arch: Arch) -> list[Any]:
        return [genotype.chosen(found, arch[kind]) for kind in KINDS]

    small["partial"] = partial_channels
    return Supernet(
        space,
        build([(found,) * EDGES] * 2, small, weighed=True, group_mass=group_mass, **searched),
        lambda arch: build(edges(arch), small, **searched),
        (image_size, image_size, 3),
        costs={
            "flops": _multiply_adds(
                found, image_size, channels, cells, num_classes, partial_channels
            )
        },
        published=PUBLISHED,
        retrained=lambda arch: build(edges(arch), full, affine=True),
        to_text=to_genotype,
        from_text=from_genotype,
        nodes={kind: NODES for kind in KINDS},
    )


def decode(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """DARTS's rule: into every node the two edges whose best operation but none scores highest.

    Args:
      scores: for each kind of cell an array (edges, operations).
    """
    decoded = {}
    for kind in KINDS:
        best = 1 + np.argmax(scores[kind][:, 1:], -1)  # the first operation is none
        height = scores[kind][np.arange(EDGES), best]
        indices = np.zeros(EDGES, int)
        for node in NODES:
            order = sorted(node, key=lambda edge: -height[edge])  # stable: the lower first on ties
            for edge in order[:KEPT]:
                indices[edge] = best[edge]
        decoded[kind] = indices
    return decoded


def to_genotype(arch: Arch) -> str:
    """``arch`` as DARTS prints genotypes."""
    normal, reduce = (
        [
            (arch[kind][edge], begin)
            for node in NODES
            for begin, edge in enumerate(node)
            if arch[kind][edge] != NONE
        ]
        for kind in KINDS
    )
    return genotype.write_genotype(normal, reduce, range(INPUTS, INPUTS + len(NODES)))


def from_genotype(text: str) -> dict[str, Any]:
    """The architecture of a genotype.

    Raises:
      ArchitectureError: if the text is no genotype of this space.
    """
    return {kind: _edges(kind, p) for kind, p in genotype.read_genotype(text).items()}


def _edges(kind: str, pairs: genotype.Pairs) -> list[str]:
    if len(pairs) != KEPT * len(NODES):
        raise ArchitectureError(
            f"the {kind} cell has {len(pairs)} edges; in space 'darts' it has {KEPT} into each of "
            f"{len(NODES)} nodes."
        )
    operations = [NONE] * EDGES
    for i, (operation, begin) in enumerate(pairs):
        node = NODES[i // KEPT]
        if begin >= len(node) or operations[node[begin]] != NONE:
            raise ArchitectureError(
                f"edge {i} of the {kind} cell comes from node {begin}; two different nodes below "
                f"{len(node)} were expected."
            )
        operations[node[begin]] = genotype.known_operation(operation, OPERATIONS[1:], "darts")
    return operations


def _arch(cells: Mapping[str, str]) -> dict[str, list[str]]:
    split = {kind: text.split() for kind, text in cells.items()}
    return {
        kind: _edges(kind, [(o, int(b)) for o, b in zip(w[::2], w[1::2], strict=True)])
        for kind, w in split.items()
    }


def _multiply_adds(
    found: Sequence[Candidate], side: int, channels: int, cells: int, classes: int, partial: int
) -> list[Term]:
    terms = [Term(27 * side**2 * 3 * channels)]
    before = last = 3 * channels
    features = channels
    for i in range(cells):
        reduction = i in (cells // 3, 2 * cells // 3)
        features *= 2 if reduction else 1
        terms.append(Term(side**2 * features * (before + last)))  # both at the size they come to
        side = side // 2 if reduction else side
        kind = "reduce" if reduction else "normal"
        for node in NODES:
            for begin, edge in enumerate(node):
                halved, mixed = reduction and begin < INPUTS, features // partial
                terms += genotype.multiply_adds(found, f"{kind}_edges", edge, mixed, mixed, side**2)
                if halved:  # the skip is two convolutions of half the width
                    skip = f"{kind}_edges/skip_connect"
                    terms.append(Term(side**2 * mixed**2, (skip,), f"{kind}_edges", edge))
        before, last = last, 4 * features
    return [*terms, Term(last * classes)]


PUBLISHED: Mapping[str, Arch] = {name: _arch(cells) for name, cells in _GENOTYPES.items()}
