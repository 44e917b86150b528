"""How the mixtures over the options moved during the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from nasjax.report.record import Run
from nasjax.report.style import (
    INK,
    MUTED,
    PAPER,
    WIDTH,
    Sheet,
    figure_style,
    heading,
    message_svg,
    palette,
    step_axis,
    text_width,
    thin,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AREA = 1.7  # Height in inches of a panel for one choice of the whole network.
_LAYER = 0.25  # Height in inches of one layer's row.
_COLUMNS = 240  # Points in time drawn in a row.


@dataclass(frozen=True)
class _Track:
    """Probabilities of one choice: ``weights[time, layer, option]`` at ``steps[time]``."""

    name: str
    steps: np.ndarray
    weights: np.ndarray
    labels: list[str]
    per_layer: bool

    @property
    def height(self) -> float:
        return max(1.5, _LAYER * self.weights.shape[1]) if self.per_layer else _AREA


def mixture_plot(run: Run) -> str:
    """Draws the probability of every option over the steps of the search.

    A choice made once for the network is a stacked area. A choice made in every layer has one row
    per layer, input at the top: the colour is the most probable option, the stronger the more
    certain, and the option that leads at the end stands at the right.
    """
    tracks = _tracks(run)
    if not tracks:
        return message_svg("mixture", "No mixture has been logged yet.")
    rows = _rows([t for t in tracks if not t.per_layer], 3)
    rows += _rows([t for t in tracks if t.per_layer], 2)
    with figure_style():
        rooms = [_room(row) for row in rows]
        heads = [max(_head(t, room) for t in row) for row, room in zip(rows, rooms, strict=True)]
        heights = [max(t.height for t in row) for row in rows]
        sheet = Sheet(sum(heads) + sum(heights) + 0.68 * len(rows) - 0.15)
        top = 0.0
        for row, room, head, height in zip(rows, rooms, heads, heights, strict=True):
            cell = WIDTH / len(row)
            for index, track in enumerate(row):
                left = index * cell + 0.65
                axes = sheet.panel(left, top + head, room, track.height)
                (_draw_layers if track.per_layer else _draw_area)(axes, track, run)
                _decorate(axes, track, room)
            top += head + height + 0.68
        return sheet.svg("mixture", "Probabilities of the options over the steps of the search")


def _room(row: Sequence[_Track]) -> float:
    # Left of a panel: its axis label. Right: the name of the leading option.
    widest = max(text_width(label, 10) for track in row for label in track.labels)
    return WIDTH / len(row) - 0.65 - min(max(0.85, widest + 0.2), 1.8)


def _head(track: _Track, room: float) -> float:
    entry = max(text_width(label, 9.5) for label in track.labels) + 0.45
    per_line = max(1, min(len(track.labels), int(room / entry)))
    return 0.38 + 0.21 * -(-len(track.labels) // per_line)


def _rows(tracks: Sequence[_Track], most: int) -> list[list[_Track]]:
    if not tracks:
        return []
    count = -(-len(tracks) // most)
    # Evenly filled rows: four panels become two and two, not three and one.
    edges = np.linspace(0, len(tracks), count + 1).round().astype(int)
    return [list(tracks[a:b]) for a, b in pairwise(edges)]


def _tracks(run: Run) -> list[_Track]:
    logged = [(r["step"], r["mixture"]) for r in run.lines("search") if r.get("mixture")]
    tracks = []
    for name in logged[-1][1] if logged else ():
        last = np.asarray(logged[-1][1][name], float)
        # Lines of another shape stem from an earlier run with other settings in the same folder.
        kept = [(s, m[name]) for s, m in logged if name in m and np.shape(m[name]) == last.shape]
        if last.ndim not in (1, 2) or last.size == 0:
            continue
        steps, weights = thin([s for s, _ in kept], np.asarray([w for _, w in kept], float))
        if last.ndim == 1:
            weights = weights[:, None, :]
        if len(steps) == 1:
            steps, weights = np.array([steps[0] - 0.5, steps[0] + 0.5]), weights.repeat(2, 0)
        labels = run.option_labels(name, last.shape[-1])
        tracks.append(_Track(name, steps, weights, labels, last.ndim == 2))
    return tracks


def _decorate(axes: Axes, track: _Track, room: float) -> None:
    from matplotlib.patches import Patch

    colours = palette(len(track.labels))
    handles = [Patch(color=c, label=t) for c, t in zip(colours, track.labels, strict=True)]
    heading(axes, track.name, handles, room)
    axes.set_xlim(float(track.steps[0]), float(track.steps[-1]))
    step_axis(axes)


def _draw_area(axes: Axes, track: _Track, run: Run) -> None:
    weights = track.weights[:, 0, :]
    colours = palette(len(track.labels))
    axes.stackplot(track.steps, weights.T, colors=colours, edgecolor=PAPER, linewidth=0.8)
    axes.set_ylim(0.0, 1.0)
    axes.set_ylabel("probability")
    last = weights[-1]
    best = int(last.argmax())
    middle = float(last[:best].sum() + last[best] / 2)
    _beside(axes, middle, track.labels[best], weight="bold")
    _beside(axes, middle, f"p = {last[best]:.2f}", dy=-13, color=MUTED, size=9)


def _draw_layers(axes: Axes, track: _Track, run: Run) -> None:
    layers, options = track.weights.shape[1:]
    colours = np.array([_rgb(colour) for colour in palette(options)])
    grid = np.linspace(track.steps[0], track.steps[-1], _COLUMNS)
    times = np.searchsorted(track.steps, grid, side="right") - 1
    weights = track.weights[times].transpose(1, 0, 2)
    even = 1.0 / options
    certainty = (weights.max(-1) - even) / max(1.0 - even, 1e-9)
    # Opacity rather than a mixture with white, so that it also works on a dark page.
    opacity = np.clip(0.18 + 0.82 * np.nan_to_num(certainty), 0.0, 1.0)
    image = np.concatenate([colours[weights.argmax(-1)], opacity[..., None]], -1)
    extent = (float(grid[0]), float(grid[-1]), layers + 0.5, 0.5)
    axes.imshow(image, aspect="auto", interpolation="none", extent=extent)
    axes.grid(False)
    axes.set_yticks(range(1, layers + 1))
    axes.tick_params(axis="y", length=0)
    axes.set_ylabel("layer")
    axes.hlines(np.arange(1, layers) + 0.5, *extent[:2], colors=PAPER, linewidth=1.5)
    picked = run.architecture.get(track.name)
    used = len(picked) if isinstance(picked, list) else layers
    for layer in range(layers):
        best = int(track.weights[-1, layer].argmax())
        label = track.labels[best] if layer < used else "unused"
        _beside(axes, layer + 1, label, color=INK if layer < used else MUTED)


def _beside(axes: Axes, y: float, text: str, dy: float = 0.0, **look: Any) -> None:
    end = axes.get_yaxis_transform()
    axes.annotate(
        text, (1.0, y), xycoords=end, xytext=(6, dy), textcoords="offset points", va="center",
        annotation_clip=False, **look,
    )  # fmt: skip


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue
