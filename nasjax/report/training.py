"""Curves of the search and of the trainings that followed it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nasjax.report.formats import format_tick, is_number
from nasjax.report.record import Run
from nasjax.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PINK,
    RED,
    VIOLET,
    WIDTH,
    Sheet,
    figure_style,
    heading,
    message_svg,
    step_axis,
    text_width,
    thin,
    tick_format,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Title and unit of each panel, then its curves: key in the log, name in the legend, colour.
_SEARCH: tuple[tuple[str, str, tuple[tuple[str, str, str], ...]], ...] = (
    ("Loss", "loss", (("train_loss", "training", BLUE), ("val_loss", "validation", ORANGE))),
    (
        "Accuracy",
        "accuracy (%)",
        (("train_accuracy", "training", BLUE), ("val_accuracy", "validation", ORANGE)),
    ),
    ("Entropy of the mixtures", "entropy (1 = even)", (("entropy", "mean of all", GREEN),)),
    ("Expected parameters", "parameters", (("expected_params", "mixture", VIOLET),)),
    ("Expected multiply-adds", "multiply-adds", (("expected_flops", "mixture", VIOLET),)),
    ("Learning rate", "learning rate", (("learning_rate", "network weights", GREY),)),
)
_LEFT, _PANEL, _HEIGHT, _HEAD, _FOOT = 0.85, 2.95, 1.75, 0.6, 0.68
_DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))


def training_plot(run: Run) -> str:
    """Draws losses, accuracies (per cent), entropy, expected size and learning rate over steps.

    The search comes first; below it the loss and accuracy of fine-tuning and retraining, for the
    network found and the baselines.
    """
    searched = bool(run.lines("search"))
    later = [
        p for p in run.phases if p not in ("search", "evaluations", "predictor") and run.lines(p)
    ]
    if not searched and not later:
        return message_svg("training", "No step has been logged yet.")
    with figure_style():
        groups = _groups(later)
        handles = _handles(groups) if later else []
        widest = max((text_width(str(h.get_label()), 9.5) for h in handles), default=0.0) + 0.45
        columns = max(1, int((WIDTH - 1.0) / widest))
        legend = 0.3 + 0.21 * -(-len(handles) // columns)
        panels = _panels(run) if searched else []
        height = (_HEAD + _HEIGHT + _FOOT) * -(-len(panels) // 3)
        sheet = Sheet(height + (legend + 0.35 + 2.2 + _FOOT if later else 0.0))
        _draw_search(sheet, run, panels)
        if later:
            _draw_later(sheet, run, groups, height, legend, handles)
        return sheet.svg("training", "Losses, accuracies, entropy and expected size over steps")


def _panels(run: Run) -> list[tuple[str, str, tuple[tuple[str, str, str], ...]]]:
    """All panels; of a training by sampling, which has no mixture, those that were logged."""
    sampled = not any("mixture" in line or "val_loss" in line for line in run.lines("search"))
    logged = [p for p in _SEARCH if any(run.series("search", key)[0] for key, _, _ in p[2])]
    return logged if sampled and logged else list(_SEARCH)


def _draw_search(sheet: Sheet, run: Run, panels: Sequence[Any]) -> None:
    from matplotlib.lines import Line2D

    found = {"expected_params": run.arch.get("params"), "expected_flops": run.arch.get("flops")}
    for index, (title, unit, curves) in enumerate(panels):
        row, column = divmod(index, 3)
        left = _LEFT + column * (WIDTH - 0.05) / 3
        top = _HEAD + row * (_HEAD + _HEIGHT + _FOOT)
        axes = sheet.panel(left, top, _PANEL, _HEIGHT)
        handles: list[Any] = []
        for key, name, colour in curves:
            steps, values = run.series("search", key)
            if not steps:
                continue
            scale = 100.0 if key.endswith("accuracy") else 1.0
            handles += _curve(axes, steps, [scale * v for v in values], color=colour, label=name)
            goal = found.get(key)
            if is_number(goal):
                axes.axhline(float(goal), color=RED, linewidth=1.4, linestyle=_DASHES[1])
                handles.append(
                    Line2D([], [], color=RED, linewidth=1.4, linestyle="--", label="found")
                )
        _finish(axes, f"Search: {title[0].lower()}{title[1:]}", unit, handles)
        if unit.startswith("entropy"):
            axes.set_ylim(0.0, 1.05)
        if unit == "learning rate":
            axes.set_ylim(bottom=0.0)


def _finish(axes: Axes, title: str, unit: str, handles: list[Any]) -> None:
    heading(axes, title, handles, _PANEL)
    axes.set_ylabel(unit)
    step_axis(axes)
    axes.margins(x=0.02)
    axes.locator_params(axis="y", nbins=6)
    if unit == "parameters":
        tick_format(axes.yaxis, lambda value: format_tick(value, "B"))
    elif unit == "multiply-adds":
        tick_format(axes.yaxis, format_tick)
    else:
        tick_format(axes.yaxis, lambda value: f"{value:g}")
    if not axes.has_data():
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color=MUTED)


def _curve(axes: Axes, steps: list[float], values: list[float], **look: Any) -> list[Any]:
    marker = "o" if len(steps) == 1 else None
    return list(axes.plot(*thin(steps, values), marker=marker, **look))


def _groups(phases: list[str]) -> dict[str, list[str]]:
    # retrain/random_0, retrain/random_1, ... are one entry of the legend.
    groups: dict[str, list[str]] = {}
    for phase in phases:
        groups.setdefault(re.sub(r"_\d+$", "", phase), []).append(phase)
    return groups


def _look(group: str, groups: dict[str, list[str]]) -> dict[str, Any]:
    """Colour tells whose training it is, the dashes tell which kind."""
    kinds = list(dict.fromkeys(name.partition("/")[0] for name in groups))
    whose = list(dict.fromkeys(name.partition("/")[2] for name in groups))
    kind, _, owner = group.partition("/")
    known = {"": RED, "found": RED, "largest": BLUE, "random": GREEN}
    spare = [ORANGE, PINK, VIOLET, GREY]
    others = [name for name in whose if name not in known]
    colour = known.get(owner) or spare[others.index(owner) % len(spare)]
    # The last kind (retraining) is the one that counts: it gets the solid line.
    dash = _DASHES[(len(kinds) - 1 - kinds.index(kind)) % len(_DASHES)]
    many = len(groups[group]) > 1
    return {
        "color": colour,
        "linestyle": dash,
        "linewidth": 1.1 if many else 1.9,
        "zorder": 4 if colour == RED else 3 if many else 3.5,
    }


def _handles(groups: dict[str, list[str]]) -> list[Any]:
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    for group, phases in groups.items():
        kind, _, owner = group.partition("/")
        text = f"{kind}: {owner or 'found'}" + (f" ({len(phases)})" if len(phases) > 1 else "")
        handles.append(Line2D([], [], label=text, **_look(group, groups)))
    dot: dict[str, Any] = {"color": INK, "marker": "D", "markersize": 6, "linestyle": "none"}
    return [*handles, Line2D([], [], label="test accuracy", **dot)]


def _draw_later(
    sheet: Sheet,
    run: Run,
    groups: dict[str, list[str]],
    top: float,
    legend: float,
    handles: list[Any],
) -> None:
    panels = [("train_loss", "training loss", "loss"), ("train_accuracy", "accuracy", None)]
    for column, (key, title, unit) in enumerate(panels):
        left = _LEFT + column * WIDTH / 2
        axes = sheet.panel(left, top + legend + 0.35, WIDTH / 2 - _LEFT - 0.2, 2.2)
        scale = 1.0 if unit else 100.0
        for group, phases in groups.items():
            look = _look(group, groups)
            for phase in phases:
                steps, values = run.series(phase, key)
                if steps:
                    _curve(axes, steps, [scale * v for v in values], **look)
                steps, values = run.series(phase, "test_accuracy")
                if steps and not unit:
                    dot = {
                        "marker": "D",
                        "color": look["color"],
                        "zorder": look["zorder"] + 2,
                        "ls": "",
                    }
                    axes.plot(steps, [100.0 * v for v in values], markersize=6, **dot)
        _finish(axes, f"After the search: {title}", unit or "accuracy (%)", [])
    place = (_LEFT / WIDTH, 1.0 - (top + 0.05) / sheet.height)
    widest = max(text_width(str(h.get_label()), 9.5) for h in handles) + 0.45
    sheet.figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=place, borderaxespad=0.0,
        ncols=max(1, min(len(handles), int((WIDTH - 1.0) / widest))), handlelength=2.4,
    )  # fmt: skip
