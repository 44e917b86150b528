"""A cell drawn as a graph: its nodes down the diagonal, its edges as steps between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nasjax.report.formats import format_value
from nasjax.report.style import BRIGHT, CYCLE, MUTED, PAPER, WIDTH, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW, _TITLE, _PAD = 0.46, 0.4, 0.12  # Inches: of a node, of the title, around all.
_WIDEST = 1.9  # Inches between two nodes.
NOTHING = "none"


@dataclass(frozen=True)
class Cell:
    """The operations of a cell.

    Attributes:
      name: of the choice.
      operations: of each edge.
      ends: for each node that is no input, its edges, one from every node before it.
      options: every operation there is, whose order says the colours.
    """

    name: str
    operations: Sequence[Any]
    ends: Sequence[Sequence[int]]
    options: Sequence[Any]

    @property
    def inputs(self) -> int:
        """Nodes that no edge ends in."""
        return len(self.ends[0])

    @property
    def nodes(self) -> int:
        """All nodes."""
        return self.inputs + len(self.ends)

    @property
    def height(self) -> float:
        """In inches, title included."""
        return _TITLE + self.nodes * _ROW + _PAD


def draw_cell(axes: Axes, top: float, cell: Cell) -> None:
    """Draws ``cell``, ``top`` inches below the top of the figure.

    The edge from a node goes to the right along its row, then down to the node it ends in; its
    operation stands in the corner. Edges without an operation are left out.
    """
    axes.text(_PAD, top + 0.16, cell.name, weight="bold", size=11, va="center")
    pitch = min(_WIDEST, (WIDTH - 1.2 - 2 * _PAD) / (cell.nodes - 1))
    first = _PAD + 0.6

    def at(node: int) -> tuple[float, float]:
        return first + node * pitch, top + _TITLE + (node + 0.5) * _ROW

    for node, edges in enumerate(cell.ends, start=cell.inputs):
        for begin, edge in enumerate(edges):
            operation = cell.operations[edge]
            if operation == NOTHING:
                continue
            (x, y), (corner, end) = at(begin), at(node)
            axes.plot([x, corner, corner], [y, y, end], color=MUTED, lw=1.1, zorder=1)
            axes.annotate(
                "",
                (corner, end - 0.13),
                xytext=(corner, end - 0.2),
                arrowprops={"arrowstyle": "-|>", "color": MUTED, "lw": 1.1, "mutation_scale": 9},
            )
            _operation(axes, corner, y, pitch, cell, operation)
    for node in range(cell.nodes):
        x, y = at(node)
        name = "input" if cell.inputs == 1 else f"input {node + 1}"
        text = name if node < cell.inputs else f"{node - cell.inputs + 1}"
        frame = {"boxstyle": "round,pad=0.3", "facecolor": PAPER, "edgecolor": MUTED, "lw": 1.0}
        axes.text(x, y, text, size=9.5, ha="center", va="center", bbox=frame, zorder=3)


def _operation(axes: Axes, x: float, y: float, pitch: float, cell: Cell, operation: Any) -> None:
    text = format_value(operation)
    kinds = [option for option in cell.options if option != NOTHING]
    colour = CYCLE[kinds.index(operation) % len(CYCLE)] if operation in kinds else MUTED
    size = min(9.0, 9.0 * 0.86 * pitch / text_width(text, 9, bold=True))
    frame = {"boxstyle": "round,pad=0.25", "facecolor": colour, "edgecolor": "none"}
    axes.text(
        x, y, text, size=size, weight="bold", color=BRIGHT, ha="center", va="center",
        bbox=frame, zorder=2,
    )  # fmt: skip
