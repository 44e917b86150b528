"""What the cell spaces share: edges, their costs, and genotypes."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nasjax.core.cost import Term
from nasjax.core.errors import ArchitectureError, SpaceError, did_you_mean
from nasjax.core.space import Axis, Choice, Length, SearchSpace
from nasjax.models.cells import Edges
from nasjax.models.operations import GROUP_MASS, Candidate, axes, parse

SHARING = ("entangled", "plain")
Pairs = list[tuple[str, int]]


def entangles(sharing: str, group_mass: str) -> bool:
    """Whether weights are entangled.

    Raises:
      SpaceError: if either option is unknown.
    """
    for name, value, known in (
        ("sharing", sharing, SHARING),
        ("group_mass", group_mass, GROUP_MASS),
    ):
        if value not in known:
            raise SpaceError(f"{name} is {value!r}; {did_you_mean(value, known)}")
    return sharing == "entangled"


def cell_space(
    name: str,
    operations: Sequence[str],
    found: Sequence[Candidate],
    stacks: Mapping[str, str],
    edges: int,
    **rule: Any,
) -> SearchSpace:
    """The space of one operation on every edge.

    Args:
      name: of the space.
      operations: the options of every edge.
      found: the candidates that stand for them.
      stacks: by choice, one for each kind of cell, the stack of the edges it is made for.
      edges: their number.
      **rule: further fields of :class:`~nasjax.core.space.SearchSpace`.
    """
    table: dict[str, Axis | Length] = dict.fromkeys(stacks.values(), edges)
    for choice, stack in stacks.items():
        table |= axes(choice, stack, found)
    return SearchSpace(
        name,
        choices=tuple(Choice(choice, tuple(operations), per=s) for choice, s in stacks.items()),
        axes=table,
        operations=tuple(f"{stack}/{c.name}" for stack in stacks.values() for c in found),
        **rule,
    )


def check_images(image_size: int, smallest: int = 4) -> None:
    """Raise where images cannot be halved twice.

    Raises:
      SpaceError: then, and if they are smaller than ``smallest``.
    """
    if image_size < smallest or image_size % 4:
        raise SpaceError(
            f"image_size is {image_size}; a multiple of 4 from {smallest} was expected."
        )


def check_partial(partial_channels: int, channels: int) -> None:
    """Raise where ``channels`` are not a multiple of ``partial_channels``.

    Raises:
      SpaceError: then, and if either number is less than 1.
    """
    if channels < 1:
        raise SpaceError(f"channels is {channels}; 1 at least was expected.")
    if partial_channels < 1 or channels % partial_channels:
        raise SpaceError(
            f"partial_channels is {partial_channels}; a divisor of the {channels} channels was "
            "expected."
        )


def chosen(found: Sequence[Candidate], operations: Iterable[str]) -> Edges:
    """Candidates of a network of its own: for each edge the one of its operation, at its size."""
    edges = []
    for operation in operations:
        own = [c for c in found if operation in c.options]
        edges.append(
            tuple(Candidate(c.name, c.kind, parse(operation)[1], (operation,)) for c in own)
        )
    return tuple(edges)


def multiply_adds(
    found: Sequence[Candidate], stack: str, layer: int, inputs: int, features: int, pixels: int
) -> list[Term]:
    """Exact multiply-adds of one edge: its convolutions, nothing else.

    Args:
      found: its candidates.
      stack: of the edges.
      layer: its index among them.
      inputs: channels that come in.
      features: channels that go out; other than ``inputs`` only where a skip halves the image.
      pixels: height times width of its output.
    """
    terms = []
    for c in found:
        there = f"{stack}/{c.name}"
        sides = (there, *[f"{stack}/{c.kernel_axis}"] * 2) if c.kernel_axis else (there,)
        taps = 1 if c.kernel_axis else c.kernel_size**2
        if c.kind == "nor_conv":
            terms.append(Term(pixels * inputs * features * taps, sides, stack, layer))
        elif c.kind in ("sep_conv", "dil_conv"):
            terms.append(Term(pixels * inputs * taps, sides, stack, layer))
            terms.append(Term(pixels * inputs * features, (there,), stack, layer))
            if c.kind == "sep_conv":
                terms.append(Term(pixels * features * taps, sides, stack, layer))
                terms.append(Term(pixels * features**2, (there,), stack, layer))
    return terms


def write_genotype(normal: Pairs, reduce: Pairs, concat: range) -> str:
    """A genotype as DARTS prints it: pairs (operation, node that it comes from) of both cells."""
    span = f"range({concat.start}, {concat.stop})"
    return f"Genotype(normal={normal}, normal_concat={span}, reduce={reduce}, reduce_concat={span})"


def read_genotype(text: str) -> dict[str, Pairs]:
    """Pairs (operation, node that it comes from) of a genotype as DARTS prints it.

    Raises:
      ArchitectureError: if the text is no genotype.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        assert isinstance(call, ast.Call) and ast.unparse(call.func) == "Genotype"
        given = {k.arg: k.value for k in call.keywords}
        cells = {name: ast.literal_eval(given[name]) for name in ("normal", "reduce")}
        for operation, begin in (pair for pairs in cells.values() for pair in pairs):
            assert type(operation) is str and type(begin) is int and begin >= 0
        return {name: [tuple(pair) for pair in pairs] for name, pairs in cells.items()}
    except (SyntaxError, AssertionError, KeyError, ValueError, TypeError):
        raise ArchitectureError(
            f"{text!r} is no genotype; Genotype(normal=[('sep_conv_3x3', 0), ...], "
            "normal_concat=..., reduce=[...], reduce_concat=...) was expected."
        ) from None


def known_operation(operation: str, operations: Sequence[str], space: str) -> str:
    """``operation``, if ``space`` has it.

    Raises:
      ArchitectureError: if not.
    """
    if operation not in operations:
        raise ArchitectureError(
            f"space {space!r} has no operation {operation!r}; {did_you_mean(operation, operations)}"
        )
    return operation


def at(
    choice: str, edge: int, of: Callable[[str], Any] = str
) -> Callable[[Mapping[str, Any]], Any]:
    """A table's column: ``of`` the operation on an edge."""
    return lambda arch: of(arch[choice][edge])
