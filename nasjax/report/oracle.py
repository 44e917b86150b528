"""What a table of true accuracies says of a search, while it ran and at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nasjax.report.formats import is_number
from nasjax.report.record import Run
from nasjax.report.style import (
    GREY,
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
_DASHES = ((0, (1, 1.2)), (0, (4, 1.5)), (0, (6, 1.5, 1, 1.5)))
_LEFT, _TOP, _HEIGHT, _FOOT = 0.85, 0.8, 2.9, 0.68


def format_oracle(judged: Mapping[str, Any]) -> str:
    """One sentence on the architecture found, for the terminal.

    Args:
      judged: the entry ``"oracle"`` of ``result.json``.
    """
    found, draws = judged["found"], judged["random"]
    chance = ", ".join(f"{value:.2f}% the best of {n}" for n, value in draws.items())
    return (
        f"Table {judged['table']}: the network found is {found['accuracy']:.2f}% accurate, rank "
        f"{found['rank']:,} of {judged['architectures']:,} (top {found['percentile']:.1f}%), "
        f"{found['regret']:.2f} points below the best; at random: {chance}."
    )


def anytime(run: Run) -> Curve:
    """Steps, and the regret in points of the architecture that led at each of them.

    Of a search in two stages, where no architecture leads while the weights train, evaluations.
    """
    every = [*run.lines("search"), *run.lines("evaluations")]
    lines = [r for r in every if isinstance(r.get("oracle"), Mapping)]
    pairs = [(r["step"], r["oracle"].get("regret")) for r in lines]
    pairs = [(step, regret) for step, regret in pairs if is_number(regret)]
    return [float(s) for s, _ in pairs], [float(r) for _, r in pairs]


def oracle_plot(run: Run) -> str:
    """Draws the regret of the leading architecture over steps, with random choice beside it.

    The any-time curve of TangleNAS, Figures 3 and 4.
    """
    curve = anytime(run)
    if not curve[0]:
        return message_svg("oracle", "No step has been judged yet.")
    return regret_plot({"leading in the search": [curve]}, run.result.get("oracle") or {})


def regret_plot(curves: Mapping[str, Sequence[Curve]], judged: Mapping[str, Any]) -> str:
    """Draws regret over steps: for each name the mean of its runs, and the runs themselves.

    Args:
        curves: For each name its runs, as :func:`anytime` gives them.
        judged: The entry ``"oracle"`` of a ``result.json``, for the lines of random choice.
    """
    from matplotlib.lines import Line2D

    with figure_style():
        sheet = Sheet(_TOP + _HEIGHT + _FOOT)
        width = WIDTH - _LEFT - 0.4
        axes = sheet.panel(_LEFT, _TOP, width, _HEIGHT)
        handles = []
        colours = [RED, *palette(max(len(curves) - 1, 1))]
        for colour, (name, runs) in zip(colours, curves.items(), strict=False):
            for steps, regrets in runs:
                faint = {"linewidth": 0.7, "alpha": 0.5}
                look: dict[str, Any] = {"linewidth": 1.9} if len(runs) == 1 else faint
                marker = "o" if len(steps) == 1 else None
                axes.plot(*thin(steps, regrets), color=colour, marker=marker, **look)
            if len(runs) > 1 and len({tuple(steps) for steps, _ in runs}) == 1:
                mean = [sum(at) / len(runs) for at in zip(*(r for _, r in runs), strict=True)]
                axes.plot(*thin(runs[0][0], mean), color=colour, linewidth=2.2, zorder=3)
            handles.append(Line2D([], [], color=colour, linewidth=1.9, label=name))
        if is_number(judged.get("best")):
            for dash, (draws, value) in zip(_DASHES, judged["random"].items(), strict=False):
                name = "mean of all" if draws == "1" else f"best of {draws} at random"
                line: dict[str, Any] = {"color": GREY, "linewidth": 1.3, "linestyle": dash}
                axes.axhline(judged["best"] - value, **line)
                handles.append(Line2D([], [], label=name, **line))
        axes.set_ylim(bottom=0.0)
        heading(axes, "Regret: points below the best architecture", handles, width)
        axes.set_ylabel("regret (points)")
        step_axis(axes)
        axes.margins(x=0.02)
        tick_format(axes.yaxis, lambda value: f"{value:g}")
        return sheet.svg("oracle", "Regret of the leading architecture over steps")
