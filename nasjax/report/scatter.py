"""Accuracy against size: the network found among sampled and baseline networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from nasjax.report.formats import format_tick, is_number
from nasjax.report.record import Run
from nasjax.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAPER,
    PINK,
    RED,
    VIOLET,
    WIDTH,
    Sheet,
    figure_style,
    heading,
    message_svg,
    text_width,
    tick_format,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEIGHT, _LEFT = 3.6, 0.85
_KINDS = (  # Key of the row, name in the legend, marker, whether it is filled.
    ("inherited", "inherited weights", "o", False),
    ("fine_tuned", "fine-tuned", "^", True),
    ("retrained", "retrained", "s", True),
)


@dataclass(frozen=True)
class _Point:
    """A place taken by a network; its topmost point carries the label."""

    x: float
    y: float
    label: str
    colour: str


def accuracy_size_plot(run: Run) -> str:
    """Draws accuracy (per cent) over parameters and over multiply-adds.

    Grey dots are sampled sub-networks with inherited weights. The rows of the result table are
    drawn in colour and labelled, a thin line joining the accuracies of one network.
    """
    axes_of = {
        key: (title, billion)
        for key, title, billion in (("params", "parameters", "B"), ("flops", "multiply-adds", "G"))
        if any(is_number(item.get(key)) for item in [*run.samples, *run.rows])
    }
    if not axes_of:
        return message_svg("size", "No network has been measured yet.")
    with figure_style():
        sheet = Sheet(0.7 + _HEIGHT + 0.5)
        cell = WIDTH / len(axes_of)
        for index, (key, (title, billion)) in enumerate(axes_of.items()):
            room = cell - _LEFT - 0.3
            axes = sheet.panel(index * cell + _LEFT, 0.7, room, _HEIGHT)
            points = _draw(axes, run, key)
            axes.margins(x=0.08, y=0.12)
            axes.set_xlabel(title)
            axes.set_ylabel("accuracy (%)")
            axes.locator_params(axis="x", nbins=6)
            tick_format(axes.xaxis, partial(format_tick, billion=billion))
            heading(axes, f"Accuracy and {title}", _handles(run), room)
            _label(axes, points)
        return sheet.svg("size", "Accuracy of networks over their size")


def _colour(name: str, others: list[str]) -> str:
    for start, colour in (("found", RED), ("largest", BLUE), ("random", GREEN)):
        if name.startswith(start):
            return colour
    spare = (VIOLET, ORANGE, PINK)
    return spare[others.index(name) % len(spare)]


def _draw(axes: Axes, run: Run, key: str) -> list[_Point]:
    dots = [s for s in run.samples if is_number(s.get(key)) and is_number(s.get("accuracy"))]
    if dots:
        x, y = [s[key] for s in dots], [100.0 * s["accuracy"] for s in dots]
        axes.plot(x, y, "o", color=GREY, alpha=0.55, markersize=5, markeredgewidth=0)
    known = ("found", "largest", "random")
    names = [str(row.get("network", "?")) for row in run.rows]
    others = [name for name in names if not name.startswith(known)]
    points: list[_Point] = []
    # The network found last, so that it lies on top of the others.
    for row in sorted(run.rows, key=lambda row: row.get("network") == "found"):
        name = str(row.get("network", "?"))
        colour = _colour(name, others)
        points += _draw_row(axes, row, key, colour, name)
    return points


def _draw_row(axes: Axes, row: Mapping[str, Any], key: str, colour: str, name: str) -> list[_Point]:
    marks = [mark for mark in _KINDS if is_number(row.get(mark[0]))]
    if not is_number(row.get(key)) or not marks:
        return []
    x = float(row[key])
    heights = [100.0 * float(row[mark[0]]) for mark in marks]
    axes.plot([x, x], [min(heights), max(heights)], color=colour, linewidth=1.0, zorder=3)
    for (kind, _, marker, filled), y in zip(marks, heights, strict=True):
        std = row.get(f"{kind}_std")
        axes.errorbar(
            x, y, yerr=100.0 * std if is_number(std) else None, fmt=marker, color=colour,
            markerfacecolor=colour if filled else PAPER, markersize=8, markeredgewidth=1.8,
            elinewidth=1.2, capsize=4, zorder=4,
        )  # fmt: skip
    # Points along the line keep the labels of other networks off it. The number of runs behind a
    # mean stands in the table; without it the label is short enough to stay near its point.
    low, top = min(heights), max(heights)
    line = [_Point(x, low + (top - low) * part / 16, "", colour) for part in range(16)]
    return [*line, _Point(x, top, name.partition(" (")[0], colour)]


def _handles(run: Run) -> list[Any]:
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    if run.samples:
        dot: dict[str, Any] = {"marker": "o", "color": GREY, "alpha": 0.55, "markeredgewidth": 0}
        handles.append(Line2D([], [], linestyle="none", label="sampled", markersize=6, **dot))
    for key, label, marker, filled in _KINDS:
        if any(is_number(row.get(key)) for row in run.rows):
            face = INK if filled else PAPER
            handles.append(
                Line2D(
                    [], [], linestyle="none", label=label, marker=marker, color=INK,
                    markerfacecolor=face, markersize=7,
                )
            )  # fmt: skip
    return handles


def _label(axes: Axes, points: list[_Point]) -> None:
    """Writes each network's name at the first place around its point that is still free."""
    scale = 72.0
    axes.get_xlim(), axes.get_ylim()  # Settles the limits, which are worked out lazily.
    pixels: Any = axes.transData.transform([(p.x, p.y) for p in points]) if points else []
    dpi = axes.figure.dpi
    taken = [(x * scale / dpi - 7, y * scale / dpi - 7, 14.0, 14.0) for x, y in pixels]
    corner, end = axes.bbox.get_points() * scale / dpi
    for point, (px, py) in zip(points, pixels, strict=True):
        if not point.label:
            continue
        x, y = px * scale / dpi, py * scale / dpi
        width, height = 72.0 * text_width(point.label, 10, bold=True), 13.0
        spots = [
            (x + dx - width * anchor, y + dy - height / 2, width, height)
            for reach in (16, 30, 46)
            for dx, dy, anchor in (
                (0, reach, 0.5), (12, 0, 0.0), (-12, 0, 1.0), (10, reach, 0.0),
                (-10, reach, 1.0), (10, -reach, 0.0), (-10, -reach, 1.0), (0, -reach, 0.5),
            )
        ]  # fmt: skip
        inside = [
            spot for spot in spots
            if corner[0] <= spot[0] and spot[0] + width <= end[0] and spot[1] + height <= end[1]
        ]  # fmt: skip
        free = [s for s in inside if not any(_overlap(s, other) for other in taken)]
        spot = (free or inside or spots)[0]
        taken.append(spot)
        axes.annotate(
            point.label, (point.x, point.y), textcoords="offset points", va="center",
            xytext=(spot[0] + width / 2 - x, spot[1] + height / 2 - y), ha="center",
            color=point.colour, weight="bold", zorder=6,
        )  # fmt: skip


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    across = a[0] < b[0] + b[2] and b[0] < a[0] + a[2]
    return across and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
