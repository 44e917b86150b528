"""The network found, drawn as a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nasjax.report.formats import format_value, is_number
from nasjax.report.graph import Cell, draw_cell
from nasjax.report.style import (
    BLUE,
    BRIGHT,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    PINK,
    RED,
    VIOLET,
    WIDTH,
    Sheet,
    figure_style,
    message_svg,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARGIN, _END = 1.75, 0.95  # Inches: lane names at the left; "input" and "output".
_LANE, _PAD = 1.0, 0.12  # Inches: height of the largest option's box; space around it.
_TILE = 1.0  # Inches: height of the line with the choices of the whole network.
_PER_ROW = 16  # Layers next to each other; a deeper network continues below.
_LANES = (BLUE, GREEN, VIOLET, RED, PINK, ORANGE)


@dataclass(frozen=True)
class _Group:
    """Layers that share an axis: the options picked in each lane, and how many layers exist."""

    title: str
    lanes: dict[str, list[Any]]
    largest: dict[str, float | None]
    used: int
    total: int

    @property
    def rows(self) -> int:
        return -(-self.total // _PER_ROW)

    @property
    def columns(self) -> int:
        """Layers in a row; rows are filled evenly."""
        return -(-self.total // max(self.rows, 1))

    @property
    def card(self) -> float:
        """Height in inches of the frame around one layer."""
        return len(self.lanes) * (_LANE + _PAD) + _PAD

    @property
    def height(self) -> float:
        return self.rows * (self.card + 0.5) - 0.15 + (0.35 if self.title else 0.0)


def architecture_plot(
    architecture: Mapping[str, Any],
    choices: Sequence[Mapping[str, Any]] = (),
    *,
    layers: Mapping[str, int] | None = None,
    nodes: Mapping[str, Sequence[Sequence[int]]] | None = None,
) -> str:
    """Draws a network with one frame per layer, from input to output, and cells as graphs.

    In a frame, each choice made per layer is a box whose height is the value picked relative to
    the choice's largest option. Layers that the network leaves out are dashed. Choices made once
    for the whole network are written above.

    Args:
        architecture: Name of each choice to the option picked, or to a list of one option per
            layer in use.
        choices: The choices of the space as in ``result.json`` (``name``, ``options``, ``per``).
            Without them, boxes are relative to the largest value picked.
        layers: Number of layers of the super-network per choice. Without it, it is the largest
            option of the choice that set the depth, where there is one.
        nodes: For each choice made per edge of a cell, the edges that end in each of its nodes.
    """
    if not architecture:
        return message_svg("architecture", "No network has been picked yet.")
    options = {str(c["name"]): list(c.get("options") or ()) for c in choices}
    single = {k: v for k, v in architecture.items() if not isinstance(v, list)}
    cells = [
        Cell(name, architecture[name], ends, options.get(name, []))
        for name, ends in (nodes or {}).items()
        if len(architecture.get(name, ())) == sum(map(len, ends))
    ]
    drawn = {cell.name for cell in cells}
    rest = {k: v for k, v in architecture.items() if k not in drawn}
    groups = _groups(rest, choices, options, layers or {})
    with figure_style():
        per_row = min(6, max(len(single), 1))
        tiles = _TILE * -(-len(single) // per_row)
        parts: list[_Group | Cell] = [*groups, *cells]
        sheet = Sheet(max(0.9, tiles + sum(p.height for p in parts) + 0.15 * len(parts[1:])))
        axes = sheet.canvas()
        for index, (name, value) in enumerate(single.items()):
            row, column = divmod(index, per_row)
            left = _PAD + column * min(2.6, (WIDTH - _PAD) / per_row)
            _tile(axes, left, row * _TILE, name, value, options.get(name, []))
        top = tiles
        for group in groups:
            _group(axes, top, group)
            top += group.height + 0.15
        for cell in cells:
            draw_cell(axes, top, cell)
            top += cell.height + 0.15
        return sheet.svg("architecture", "The network, layer by layer from input to output")


def _groups(
    architecture: Mapping[str, Any],
    choices: Sequence[Mapping[str, Any]],
    options: Mapping[str, list[Any]],
    layers: Mapping[str, int],
) -> list[_Group]:
    axis = {str(c["name"]): str(c.get("per") or "") for c in choices}
    members: dict[tuple[str, int], dict[str, list[Any]]] = {}
    for name, value in architecture.items():
        if isinstance(value, list):
            members.setdefault((axis.get(name, ""), len(value)), {})[name] = value
    groups = []
    for (per, used), lanes in members.items():
        known = [layers[name] for name in lanes if name in layers]
        total = max([used, *(known or [_total(architecture, options, per, used)])])
        largest: dict[str, float | None] = {}
        for name, picked in lanes.items():
            values = [*options.get(name, ()), *picked]
            numeric = bool(values) and all(is_number(v) and v >= 0 for v in values)
            largest[name] = max(map(float, values)) or 1.0 if numeric else None
        groups.append(_Group(per if len(members) > 1 else "", lanes, largest, used, total))
    return groups


def _total(
    architecture: Mapping[str, Any], options: Mapping[str, list[Any]], per: str, used: int
) -> int:
    for name, offered in options.items():
        # A count that merely happens to equal the depth (a kernel of 3) must not pass for it.
        sets_depth = name == per or re.search(r"depth|layers|blocks", name)
        if sets_depth and architecture.get(name) == used and all(map(is_number, offered)):
            return int(max(offered, default=used))
    return used


def _tile(axes: Axes, left: float, top: float, name: str, value: Any, offered: list[Any]) -> None:
    axes.text(left, top + 0.16, name, color=MUTED, size=10, va="center")
    axes.text(left, top + 0.45, format_value(value), size=17, weight="bold", va="center")
    if offered:
        texts = [format_value(option) for option in offered]
        listed = "of " + ", ".join(texts)
        if text_width(listed, 9) > 2.3:
            listed = f"of {len(texts)}: {texts[0]} to {texts[-1]}"
        axes.text(left, top + 0.71, listed, color=MUTED, size=9, va="center")


def _group(axes: Axes, top: float, group: _Group) -> None:
    if group.title:
        axes.text(_PAD, top + 0.12, f"per {group.title}", weight="bold", size=11, va="center")
        top += 0.35
    pitch = min(1.05, (WIDTH - _MARGIN - 2 * _END) / max(group.columns, 1))
    first = _MARGIN + _END
    for row in range(group.rows):
        layers = range(row * group.columns, min((row + 1) * group.columns, group.total))
        middle = top + group.card / 2
        _lane_names(axes, top, group)
        for column, layer in enumerate(layers):
            _layer(axes, first + column * pitch, top, pitch, group, layer)
        for column in range(1, len(layers)):
            _flow(axes, first + (column - 0.07) * pitch, first + (column + 0.07) * pitch, middle)
        last = first + len(layers) * pitch - 0.07 * pitch
        _end(axes, _MARGIN + 0.35, middle, "input" if row == 0 else "…")
        _end(axes, last + 0.6, middle, "output" if row == group.rows - 1 else "…")
        _flow(axes, _MARGIN + 0.67, first + 0.07 * pitch, middle, arrow=True)
        _flow(axes, last, last + 0.27, middle, arrow=True)
        top += group.card + 0.5


def _lane_names(axes: Axes, top: float, group: _Group) -> None:
    for lane, name in enumerate(group.lanes):
        y = top + _PAD + lane * (_LANE + _PAD) + _LANE / 2
        size = min(11.0, 11.0 * (_MARGIN - 0.2) / text_width(name, 11, bold=True))
        axes.text(_PAD, y - 0.1, name, weight="bold", size=size, va="center")
        largest = group.largest[name]
        if largest is not None:
            text = f"largest {format_value(largest)}"
            axes.text(_PAD, y + 0.13, text, color=MUTED, size=9, va="center")
    axes.text(_PAD, top + group.card + 0.17, "layer", color=MUTED, size=9.5, va="center")


def _layer(axes: Axes, left: float, top: float, pitch: float, group: _Group, layer: int) -> None:
    from matplotlib.patches import FancyBboxPatch, Rectangle

    unused = layer >= group.used
    # The boxstyle pads outwards by its rounding only when asked to; keep the corners small.
    frame = FancyBboxPatch(
        (left + 0.07 * pitch, top),
        0.86 * pitch,
        group.card,
        boxstyle="round,pad=0,rounding_size=0.06",
        facecolor="none",
        edgecolor=MUTED,
        linewidth=1.0,
        linestyle=(0, (4, 3)) if unused else "solid",
    )
    axes.add_patch(frame)
    centre, width = left + pitch / 2, 0.64 * pitch
    number = f"{layer + 1}"
    axes.text(
        centre, top + group.card + 0.17, number, color=MUTED, size=9.5, ha="center", va="center"
    )
    if unused:
        axes.text(
            centre, top + group.card / 2, "unused", color=MUTED, size=10, rotation=90,
            ha="center", va="center",
        )  # fmt: skip
        return
    for lane, (name, picked) in enumerate(group.lanes.items()):
        floor = top + (lane + 1) * (_LANE + _PAD)
        largest = group.largest[name]
        share = 1.0 if largest is None else float(picked[layer]) / largest
        rest = Rectangle((centre - width / 2, floor - _LANE), width, _LANE, color=GRID, lw=0)
        axes.add_patch(rest)
        box = (centre - width / 2, floor - _LANE * share)
        axes.add_patch(Rectangle(box, width, _LANE * share, color=_LANES[lane % len(_LANES)], lw=0))
        _value(axes, centre, floor, share, width, format_value(picked[layer]))


def _value(axes: Axes, x: float, floor: float, share: float, width: float, text: str) -> None:
    size = min(12.0, 12.0 * 0.95 * width / text_width(text, 12, bold=True))
    turned = size < 7.5
    if turned:
        size = min(11.0, 11.0 * 0.95 * _LANE / text_width(text, 11, bold=True))
    need = text_width(text, size, bold=True) if turned else 0.22
    inside = _LANE * share >= need
    y = floor - _LANE * share / 2 if inside else floor - _LANE * share - need / 2 - 0.02
    axes.text(
        x, max(y, floor - _LANE + need / 2), text, size=size, weight="bold", ha="center",
        va="center", rotation=90 if turned else 0, color=BRIGHT if inside else INK,
    )  # fmt: skip


def _end(axes: Axes, x: float, y: float, text: str) -> None:
    frame = {"boxstyle": "round,pad=0.35", "facecolor": "none", "edgecolor": MUTED, "lw": 1.0}
    axes.text(x, y, text, size=10, ha="center", va="center", bbox=frame)


def _flow(axes: Axes, start: float, end: float, y: float, arrow: bool = False) -> None:
    look = {"arrowstyle": "-|>" if arrow else "-", "color": MUTED, "lw": 1.4}
    props = {**look, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 10}
    axes.annotate("", (end, y), xytext=(start, y), arrowprops=props)
