"""Sub-networks seen while a super-network trains, and all that a search of it evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nasjax.report.formats import format_tick, is_number
from nasjax.report.record import Run
from nasjax.report.style import (
    BLUE,
    GREEN,
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

_LEFT, _TOP, _HEIGHT, _FOOT = 0.85, 0.8, 3.2, 0.68
_PER_CENT = 100.0


def probes_plot(run: Run) -> str:
    """Draws the accuracy (per cent) of single sub-networks over the steps of the search."""
    lines = [r for r in run.lines("search") if isinstance(r.get("probes"), Mapping)]
    names = list(dict.fromkeys(name for r in lines for name in r["probes"]))
    if not names:
        return message_svg("probes", "No sub-network has been looked at.")
    from matplotlib.lines import Line2D

    fixed = {"current": RED, "largest": BLUE, "smallest": GREEN}
    others = [n for n in names if n not in fixed]
    colours = fixed | dict.fromkeys(others, GREY)
    with figure_style():
        sheet = Sheet(_TOP + _HEIGHT + _FOOT)
        width = WIDTH - _LEFT - 0.4
        axes = sheet.panel(_LEFT, _TOP, width, _HEIGHT)
        handles = []
        for name in names:
            pairs = [(r["step"], r["probes"].get(name)) for r in lines]
            pairs = [(s, _PER_CENT * v) for s, v in pairs if is_number(v)]
            look: dict[str, Any] = {"color": colours[name], "marker": "o", "markersize": 3}
            look["linewidth"] = 1.1 if name in others else 1.9
            axes.plot(*thin([s for s, _ in pairs], [v for _, v in pairs]), **look)
            if name in fixed or name == others[0]:
                label = name if name in fixed else f"{len(others)} random"
                handles.append(Line2D([], [], label=label, **look))
        heading(axes, "Accuracy of sub-networks while the weights train", handles, width)
        axes.set_ylabel("accuracy (%)")
        step_axis(axes)
        axes.margins(x=0.02)
        return sheet.svg("probes", "Accuracy of sub-networks over steps")


def population_plot(run: Run) -> str:
    """Draws all that was evaluated: in its order with the best so far, and against the cost.

    The cost is the second objective, or the parameters where there is one objective. The Pareto
    set of the two is a line.
    """
    objectives = run.objectives
    if not run.history or not objectives:
        return message_svg("population", "No architecture has been evaluated yet.")
    first = objectives[0]
    second = objectives[1] if len(objectives) > 1 else {"name": "params", "unit": "parameters"}
    entries = [e for e in run.history if is_number(e.get(first["name"]))]
    values = [_shown(first, e[first["name"]]) for e in entries]
    both = [
        (_shown(first, e[first["name"]]), _shown(second, e[second["name"]]))
        for e in entries
        if is_number(e.get(second["name"]))
    ]
    with figure_style():
        sheet = Sheet(_TOP + _HEIGHT + _FOOT)
        width = WIDTH / 2 - _LEFT - 0.3
        axes = sheet.panel(_LEFT, _TOP, width, _HEIGHT)
        _draw_order(axes, first, values)
        if both:
            axes = sheet.panel(WIDTH / 2 + _LEFT, _TOP, width, _HEIGHT)
            _draw_front(axes, first, second, both)
        return sheet.svg("population", "Architectures evaluated, and their Pareto set")


def predictors(run: Run) -> list[str]:
    """Sentences on how well predictors of a guided search ranked what they had not seen."""
    return [
        f"A random forest of {line['fitted']} random architectures ranks "
        f"{line['architectures']} others by their {line['objective']} with Spearman's rho "
        f"{line['spearman']:.2f} and Kendall's tau {line['kendall']:.2f}."
        for line in run.lines("predictor")
    ]


def _draw_order(axes: Any, first: Mapping[str, Any], values: list[float]) -> None:
    from matplotlib.lines import Line2D

    better = max if first.get("direction") == "max" else min
    best = [values[0]]
    for value in values[1:]:
        best.append(better(best[-1], value))
    numbers = list(range(1, len(values) + 1))
    dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "color": GREY, "markersize": 3}
    line: dict[str, Any] = {"color": RED, "linewidth": 1.9}
    axes.plot(*thin(numbers, values, 2000), alpha=0.6, **dot)
    axes.step(*thin(numbers, best), where="post", **line)
    handles = [Line2D([], [], label="evaluated", **dot), Line2D([], [], label="best", **line)]
    heading(axes, f"{_title(first)} in the order of evaluation", handles, 4.0)
    axes.set_ylabel(_label(first))
    step_axis(axes)
    axes.set_xlabel("evaluations")


def _draw_front(
    axes: Any,
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    pairs: list[tuple[float, float]],
) -> None:
    from matplotlib.lines import Line2D

    up = first.get("direction") == "max"
    more = second.get("direction") == "max"
    front: list[tuple[float, float]] = []
    for y, x in sorted(pairs, key=lambda p: (-p[1] if more else p[1], -p[0] if up else p[0])):
        if not front or (y > front[-1][0] if up else y < front[-1][0]):
            front.append((y, x))
    dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "color": GREY, "markersize": 3}
    line: dict[str, Any] = {"color": RED, "linewidth": 1.5, "marker": "o", "markersize": 5}
    axes.plot(*thin([x for _, x in pairs], [y for y, _ in pairs], 2000), alpha=0.6, **dot)
    axes.plot([x for _, x in front], [y for y, _ in front], **line)
    handles = [Line2D([], [], label="evaluated", **dot), Line2D([], [], label="Pareto set", **line)]
    heading(axes, f"{_title(first)} against {second['name']}", handles, 4.0)
    axes.set_xlabel(_label(second))
    axes.set_ylabel(_label(first))
    tick_format(axes.xaxis, format_tick)
    axes.locator_params(axis="x", nbins=6)


def _shown(objective: Mapping[str, Any], value: float) -> float:
    return _PER_CENT * value if objective["name"] == "accuracy" else float(value)


def _title(objective: Mapping[str, Any]) -> str:
    return str(objective["name"]).capitalize()


def _label(objective: Mapping[str, Any]) -> str:
    unit = "%" if objective["name"] == "accuracy" else objective.get("unit", "")
    name = str(objective["name"])
    return f"{name} ({unit})" if unit and unit != "parameters" else str(unit or name)


def search_seconds(run: Run) -> float:
    """How long the steps of the search took, from the logged steps per second."""
    return sum(seconds for _, seconds in _timed(run))


def _timed(run: Run) -> Iterator[tuple[Mapping[str, Any], float]]:
    """The lines of the search, and the seconds since the line before."""
    step = 0.0
    for line in run.lines("search"):
        rate = line.get("steps_per_second")
        yield line, (line["step"] - step) / rate if is_number(rate) and rate > 0 else 0.0
        step = line["step"]


def anytime_accuracy(run: Run) -> tuple[list[float], list[float]]:
    """Seconds since the start, and the accuracy (per cent) of what would have been found by then.

    With inherited weights on training images that train no weights: of the current architecture
    of a search by gradient (its probe), of the best so far of a search of a trained super-network.
    """
    seconds = 0.0
    at: list[float] = []
    values: list[float] = []
    for line, passed in _timed(run):
        seconds += passed
        current = (line.get("probes") or {}).get("current")
        if is_number(current):
            at.append(seconds)
            values.append(_PER_CENT * current)
    for line in run.lines("evaluations"):
        spent = line.get("seconds")
        at.append(seconds + (spent if is_number(spent) else 0.0))
        values.append(_PER_CENT * line["accuracy"])
    return at, values


def anytime_plot(curves: Mapping[str, Sequence[tuple[list[float], list[float]]]]) -> str:
    """Draws accuracy over seconds, a line for each run: TangleNAS's any-time curves.

    Args:
        curves: For each name its runs, as :func:`anytime_accuracy` gives them.
    """
    from matplotlib.lines import Line2D

    with figure_style():
        sheet = Sheet(_TOP + _HEIGHT + _FOOT)
        width = WIDTH - _LEFT - 0.4
        axes = sheet.panel(_LEFT, _TOP, width, _HEIGHT)
        handles = []
        for colour, (name, runs) in zip(palette(max(len(curves), 1)), curves.items(), strict=True):
            for seconds, values in runs:
                axes.step(seconds, values, where="post", color=colour, linewidth=1.3, alpha=0.8)
            handles.append(Line2D([], [], color=colour, linewidth=1.9, label=name))
        heading(axes, "What would have been found by then", handles, width)
        axes.set_xlabel("seconds")
        axes.set_ylabel("accuracy, inherited (%)")
        axes.margins(x=0.02)
        return sheet.svg("anytime", "Accuracy of what is found over seconds")


def searchers_plot(curves: Mapping[str, np.ndarray]) -> str:
    """Draws how far the best so far is from the best there is, over evaluations.

    Args:
        curves: For each searcher its regrets in percentage points, an array ``(seeds,
            evaluations)``. A line is their mean, its band a standard error to either side.
    """
    from matplotlib.lines import Line2D

    with figure_style():
        sheet = Sheet(_TOP + _HEIGHT + _FOOT)
        width = WIDTH - _LEFT - 0.4
        axes = sheet.panel(_LEFT, _TOP, width, _HEIGHT)
        handles = []
        for colour, (name, regrets) in zip(palette(len(curves)), curves.items(), strict=True):
            numbers = np.arange(1, regrets.shape[1] + 1)
            mean, error = regrets.mean(0), regrets.std(0) / len(regrets) ** 0.5
            axes.plot(numbers, mean, color=colour, linewidth=1.9)
            band: dict[str, Any] = {"color": colour, "alpha": 0.2, "linewidth": 0}
            axes.fill_between(numbers, mean - error, mean + error, **band)
            handles.append(Line2D([], [], color=colour, linewidth=1.9, label=name))
        heading(axes, "Regret of the best so far", handles, width)
        axes.set_xlabel("evaluations")
        axes.set_ylabel("regret (percentage points)")
        # The first few are far off, whoever searches.
        top = max(float(r.mean(0)[min(49, r.shape[1] - 1)]) for r in curves.values())
        axes.set_ylim(0, 1.1 * max(top, 1e-6))
        axes.margins(x=0.02)
        return sheet.svg("regret", "Regret of searchers over evaluations")
