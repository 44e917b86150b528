"""NAS-Bench-201: five operations on the six edges of one cell (Dong and Yang 2020).

Source: the benchmark's paper; the super-network is TangleNAS's (section 4.2): inside the cells its
batch normalisations do not scale and its convolutions have a bias, while the benchmark's networks
scale and have none. So ``network`` is what is inherited and ``retrained`` the benchmark's network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nasjax.core.architecture import Arch
from nasjax.core.cost import Term
from nasjax.core.errors import ArchitectureError
from nasjax.core.supernet import Supernet
from nasjax.models.cells import NasBench201, incoming
from nasjax.models.operations import Candidate, candidates
from nasjax.spaces import genotype

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
ENDS = ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))  # (to, from) of each edge
CHOICE, STACK = "operation", "edges"


def nas_bench_201(
    *,
    image_size: int = 32,
    num_classes: int = 10,
    channels: int = 16,
    cells: int = 5,
    partial_channels: int = 1,
    sharing: str = "entangled",
    group_mass: str = "outside",
) -> Supernet:
    """The super-network of NAS-Bench-201.

    Args:
      image_size: side of the images in pixels, a multiple of 4.
      num_classes: number of classes.
      channels: of the first stage.
      cells: cells in each of the three stages.
      partial_channels: only this fraction of the channels, one in so many, passes through the
        operations of the searched and of inherited networks (PC-DARTS).
      sharing: ``"entangled"``, where the 1x1 convolution is the centre of the 3x3, or ``"plain"``.
      group_mass: ``"outside"``, or ``"inside"`` for TangleNAS's form, see
        :mod:`nasjax.models.operations`.

    Raises:
      SpaceError: if an option is unknown, or the images or channels cannot be divided so.
    """
    genotype.check_images(image_size)
    genotype.check_partial(partial_channels, channels)
    found = candidates(OPERATIONS, genotype.entangles(sharing, group_mass))
    space = genotype.cell_space("nas_bench_201", OPERATIONS, found, {CHOICE: STACK}, len(ENDS))
    sizes: dict[str, Any] = {"channels": channels, "cells": cells, "num_classes": num_classes}
    searched: dict[str, Any] = {"use_bias": True}
    small = {**sizes, "partial": partial_channels}

    def build(edges: Any, fields: Mapping[str, Any], **options: Any) -> NasBench201:
        return NasBench201(edges, options=tuple(options.items()), **fields)

    widths = [channels * 2**stage for stage in range(3)]
    flops = _multiply_adds(found, image_size, widths, cells, num_classes)
    searched_flops = _multiply_adds(found, image_size, widths, cells, num_classes, partial_channels)
    return Supernet(
        space,
        build((found,) * len(ENDS), small, weighed=True, group_mass=group_mass, **searched),
        lambda arch: build(genotype.chosen(found, arch[CHOICE]), small, **searched),
        (image_size, image_size, 3),
        costs={
            "flops": searched_flops,
            "flops_nas_bench_201": [*flops, Term(num_classes)],
            "params_nas_bench_201": _parameters(found, widths, cells, num_classes),
        },
        retrained=lambda arch: build(genotype.chosen(found, arch[CHOICE]), sizes, affine=True),
        to_text=to_string,
        from_text=from_string,
        nodes={CHOICE: incoming(1, len(ENDS))},
        columns={"arch": to_string},
    )


def to_string(arch: Arch) -> str:
    """``arch`` as the benchmark writes it, ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``."""
    nodes: dict[int, list[str]] = {}
    for (end, begin), operation in zip(ENDS, arch[CHOICE], strict=True):
        nodes.setdefault(end, []).append(f"{operation}~{begin}")
    return "+".join(f"|{'|'.join(edges)}|" for edges in nodes.values())


def from_string(text: str) -> dict[str, Any]:
    """The architecture that a string of the benchmark stands for.

    Raises:
      ArchitectureError: if the text is no such string.
    """
    nodes = text.strip().split("+")
    whole = all(re.fullmatch(r"\|([^|~]+~\d+\|)+", node) for node in nodes)
    pairs = [re.findall(r"([^|~]+)~(\d+)", node) for node in nodes]
    found = [(end, int(begin)) for end, node in enumerate(pairs, start=1) for _, begin in node]
    if not whole or tuple(found) != ENDS:
        raise ArchitectureError(
            f"{text!r} is no architecture of NAS-Bench-201; "
            "|op~0|+|op~0|op~1|+|op~0|op~1|op~2| was expected."
        )
    operations = [operation for node in pairs for operation, _ in node]
    return {CHOICE: [genotype.known_operation(o, OPERATIONS, "nas_bench_201") for o in operations]}


def _multiply_adds(
    found: Sequence[Candidate],
    side: int,
    widths: Sequence[int],
    cells: int,
    classes: int,
    partial: int = 1,
) -> list[Term]:
    terms = [Term(27 * side**2 * widths[0]), Term(widths[-1] * classes)]
    for stage, features in enumerate(widths):
        if stage:
            side, inputs = side // 2, widths[stage - 1]
            terms.append(Term(side**2 * (10 * inputs * features + 9 * features**2)))
        for edge in range(len(ENDS)):
            mixed = features // partial
            each = genotype.multiply_adds(found, STACK, edge, mixed, mixed, side**2)
            terms += [Term(t.times * cells, t.axes, t.stack, t.layer) for t in each]
    return terms


def _parameters(
    found: Sequence[Candidate], widths: Sequence[int], cells: int, classes: int
) -> list[Term]:
    """Parameters of the benchmark's own network: kernels without bias, norms that scale."""
    terms = [Term(29 * widths[0]), Term(widths[-1] * (classes + 2) + classes)]
    for stage, features in enumerate(widths):
        if stage:
            inputs = widths[stage - 1]
            terms.append(Term(10 * inputs * features + 9 * features**2 + 4 * features))
        for edge in range(len(ENDS)):
            each = genotype.multiply_adds(found, STACK, edge, features, features, 1)
            terms += [Term(t.times * cells, t.axes, t.stack, t.layer) for t in each]
            convolutions = [c for c in found if c.kind == "nor_conv"]
            norms = [Term(2 * features * cells, (f"{STACK}/{c.name}",)) for c in convolutions]
            terms += [Term(t.times, t.axes, STACK, edge) for t in norms]
    return terms
