"""Gradient conflicts while a super-network trains by the sandwich rule: NASViT's Tables 4 and 7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nasjax.report.formats import is_number
from nasjax.report.record import Run
from nasjax.report.style import (
    GREY,
    INK,
    MUTED,
    RED,
    WIDTH,
    Sheet,
    figure_style,
    heading,
    message_svg,
    palette,
    step_axis,
    thin,
    tick_format,
)

Curve = tuple[list[float], list[float]]
_LEFT, _TOP, _HEIGHT, _FOOT = 0.85, 0.8, 2.9, 0.68
_PER_CENT = 100.0


def conflict_curve(run: Run) -> Curve:
    """Steps, and the conflict ratio (per cent) since the line before."""
    steps, ratios = run.series("search", "conflict_ratio")
    return steps, [_PER_CENT * r for r in ratios]


def conflict_plot(run: Run) -> str:
    """Draws the conflict ratio (per cent) over steps, and by part of the network.

    At the right every part that was logged, in the order of the network, its ratio over the whole
    training.
    """
    steps, ratios = conflict_curve(run)
    parts = _parts(run)
    if not steps:
        return message_svg("conflict", "No conflict has been counted.")
    with figure_style():
        sheet = Sheet(_TOP + _HEIGHT + _FOOT)
        width = WIDTH / 2 - _LEFT - 0.3
        axes = sheet.panel(_LEFT, _TOP, width, _HEIGHT)
        axes.plot(*thin(steps, ratios), color=RED)
        heading(axes, "Conflicts of the two gradients")
        _finish(axes)
        axes = sheet.panel(WIDTH / 2 + _LEFT, _TOP, width, _HEIGHT)
        axes.bar(range(len(parts)), list(parts.values()), color=GREY, width=0.75)
        heading(axes, "By part of the network, over the whole training")
        axes.set_ylim(0.0, max(50.0, *parts.values()) * 1.05 if parts else 50.0)
        axes.axhline(50.0, color=MUTED, linewidth=1.0, linestyle=(0, (4, 1.5)))
        axes.set_ylabel("tensors in conflict (%)")
        every = max(1, -(-len(parts) // 16))
        axes.set_xticks(range(0, len(parts), every), list(parts)[::every], rotation=60, ha="right")
        axes.tick_params(axis="x", labelsize=8.0)
        axes.grid(axis="x", visible=False)
        return sheet.svg("conflict", "Conflicts between gradients over steps and by layer")


def _parts(run: Run) -> dict[str, float]:
    """The mean ratio (per cent) of each part over all lines that have it."""
    found: dict[str, list[float]] = {}
    for line in run.lines("search"):
        for name, ratio in (line.get("conflicts") or {}).items():
            if is_number(ratio):
                found.setdefault(name, []).append(_PER_CENT * ratio)
    return {name: sum(each) / len(each) for name, each in found.items()}


def conflict_variants_plot(
    curves: Mapping[str, Sequence[Curve]],
    accuracies: Mapping[str, Mapping[str, Sequence[float]]],
) -> str:
    """Draws conflict ratios over steps, and the accuracy of both ends, of variants of a training.

    Args:
        curves: For each variant its runs, as :func:`conflict_curve` gives them.
        accuracies: For each variant the accuracies (fractions) of its runs by name of the network,
            ``{"smallest": ..., "largest": ...}``.
    """
    from matplotlib.lines import Line2D

    colours = dict(zip(curves, palette(max(len(curves), 1)), strict=True))
    with figure_style():
        sheet = Sheet(_TOP + _HEIGHT + _FOOT + 0.25)
        width = WIDTH / 2 - _LEFT - 0.3
        axes = sheet.panel(_LEFT, _TOP + 0.25, width, _HEIGHT)
        handles: list[Any] = []
        for name, runs in curves.items():
            for steps, ratios in runs:
                axes.plot(*thin(steps, ratios), color=colours[name], linewidth=0.7, alpha=0.45)
            if runs and len({tuple(steps) for steps, _ in runs}) == 1:
                mean = [sum(at) / len(runs) for at in zip(*(r for _, r in runs), strict=True)]
                axes.plot(*thin(runs[0][0], mean), color=colours[name], linewidth=2.0, zorder=3)
            handles.append(Line2D([], [], color=colours[name], linewidth=1.9, label=name))
        heading(axes, "Tensors in conflict, before any projection", handles, width)
        _finish(axes)
        axes = sheet.panel(WIDTH / 2 + _LEFT, _TOP + 0.25, width, _HEIGHT)
        _draw_ends(axes, accuracies, colours)
        heading(axes, "Accuracy with inherited weights", _ends(), width)
        return sheet.svg("conflict", "Conflicts and accuracies of variants of a training")


def _ends() -> list[Any]:
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"linestyle": "none", "color": INK, "markersize": 7}
    return [
        Line2D([], [], marker="s", label="largest", **look),
        Line2D([], [], marker="o", label="smallest", **look),
    ]


def _draw_ends(
    axes: Any, accuracies: Mapping[str, Mapping[str, Sequence[float]]], colours: Mapping[str, str]
) -> None:
    for place, (name, ends) in enumerate(accuracies.items()):
        for kind, marker in (("largest", "s"), ("smallest", "o")):
            values = [_PER_CENT * v for v in ends.get(kind, ())]
            look: dict[str, Any] = {"linestyle": "none", "color": colours[name], "marker": marker}
            axes.plot([place] * len(values), values, markersize=4, alpha=0.45, **look)
            if values:
                axes.plot([place], [sum(values) / len(values)], markersize=9, zorder=3, **look)
    axes.set_xticks(range(len(accuracies)), list(accuracies))
    axes.set_xlim(-0.5, len(accuracies) - 0.5)
    axes.set_ylabel("accuracy (%)")
    axes.grid(axis="x", visible=False)
    axes.locator_params(axis="y", nbins=6)


def _finish(axes: Any) -> None:
    axes.set_ylabel("tensors in conflict (%)")
    axes.set_ylim(bottom=0.0)
    step_axis(axes)
    axes.margins(x=0.02)
    tick_format(axes.yaxis, lambda value: f"{value:g}")
