"""One look for all figures: fonts, colour-blind-safe colours, panels placed in inches, SVG text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 12.0  # Inches of every figure: 1152 CSS pixels.

# These four are exchanged for the page's colours when a figure is put into a report, so that it
# follows the reader's light or dark theme. BRIGHT is white that stays white in both.
INK, MUTED, GRID, PAPER = "#1f2933", "#5d6b79", "#dfe5ec", "#ffffff"
BRIGHT = "#fffffe"

# Okabe and Ito's colours, a little darker where white text or thin lines need it.
BLUE, ORANGE, GREEN, PINK = "#1f77b4", "#e08e0b", "#0a9274", "#c2609a"
SKY, RED, VIOLET, GREY = "#56b4e9", "#d1520a", "#7a5cc0", "#8795a1"
CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, RED, VIOLET, GREY)

_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
_RC: dict[str, Any] = {
    # DejaVu comes with matplotlib, so layout does not depend on the fonts of the machine. It is
    # wider than the fonts a browser will use in its place, so text can only shrink.
    "font.family": ["DejaVu Sans"],
    "font.size": 10.0,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "nasjax",
}


def require_matplotlib() -> ModuleType:
    """Imports matplotlib, or says in one sentence how to get it."""
    try:
        import matplotlib
    except ImportError as error:
        message = 'figures need matplotlib: pip install "nasjax[report]"'
        raise ImportError(message) from error
    return matplotlib


@contextmanager
def figure_style() -> Iterator[None]:
    """Makes figures drawn and saved inside independent of the user's matplotlib settings."""
    matplotlib = require_matplotlib()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


class Sheet:
    """A figure ``WIDTH`` inches wide on which panels are placed in inches from the top left."""

    def __init__(self, height: float) -> None:
        """Starts an empty sheet ``height`` inches high; call it inside ``figure_style``."""
        from matplotlib.figure import Figure

        self.height = height
        self.figure: Figure = Figure(figsize=(WIDTH, height))
        self.figure.patch.set_visible(False)

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        """Adds axes with a transparent background."""
        bottom = self.height - top - height
        box = (left / WIDTH, bottom / self.height, width / WIDTH, height / self.height)
        axes = self.figure.add_axes(box)
        axes.patch.set_visible(False)
        return axes

    def canvas(self) -> Axes:
        """Adds axes without frame over the whole sheet, in inches with the y axis downwards."""
        axes = self.panel(0.0, 0.0, WIDTH, self.height)
        axes.set_axis_off()
        axes.set_xlim(0.0, WIDTH)
        axes.set_ylim(self.height, 0.0)
        return axes

    def svg(self, name: str, title: str) -> str:
        """Renders the sheet as SVG text.

        Args:
            name: Short word put before every id, so that figures can share one HTML page.
            title: What the figure shows, for screen readers.
        """
        buffer = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        self.figure.savefig(buffer, format="svg", metadata=nothing)
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        # Named after their content, so that equal images would share an id; nothing refers to it.
        text = re.sub(r' id="image[0-9a-f]+"', "", text)
        text = re.sub(r'\bid="', f'id="{name}-', text)
        text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
        # Inside an HTML page the rule for "*" would reach beyond the figure.
        text = text.replace("*{stroke", f"#{name}-figure_1 *{{stroke")
        text = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", _FONTS, text)
        label = f'<svg role="img" aria-label="{escape(title)}"'
        return text.replace("<svg", label, 1).strip() + "\n"


def message_svg(name: str, text: str) -> str:
    """A figure that says why there is nothing to draw yet."""
    with figure_style():
        sheet = Sheet(0.8)
        sheet.canvas().text(WIDTH / 2, 0.4, text, ha="center", va="center", color=MUTED, size=11)
        return sheet.svg(name, text)


def palette(count: int) -> list[str]:
    """``count`` colours that differ also for colour-blind readers."""
    if count <= len(CYCLE):
        return list(CYCLE[:count])
    import numpy as np

    matplotlib = require_matplotlib()
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.92, count))
    return ["#" + "".join(f"{round(255 * part):02x}" for part in row[:3]) for row in shades]


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Inches that ``text`` takes in a font of ``size`` points, rather too many than too few."""
    return len(text) * size * (0.72 if bold else 0.64) / 72


def heading(axes: Axes, title: str, handles: Sequence[Any] = (), room: float = 3.0) -> None:
    """Writes the panel's title and, between it and the data, a legend that wraps at ``room``.

    Args:
        axes: The panel.
        title: The title.
        handles: Legend handles with labels; no legend when empty.
        room: Inches available for the legend.
    """
    per_line = 1
    if handles:
        entry = max(text_width(str(h.get_label()), 9.5) for h in handles) + 0.45
        per_line = max(1, min(len(handles), int(room / entry)))
        axes.legend(
            handles=list(handles),
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            borderaxespad=0.35,
            borderpad=0.0,
            ncols=per_line,
            handlelength=1.3,
            handletextpad=0.5,
            columnspacing=1.3,
            labelspacing=0.3,
        )
    lines = -(-len(handles) // per_line)
    axes.set_title(title, pad=6.0 + 15.0 * lines)


def step_axis(axes: Axes) -> None:
    """Labels the x axis as optimiser steps, with few, whole, readable ticks."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    tick_format(axes.xaxis, lambda value: f"{value:,.0f}")
    axes.set_xlabel("step")


def tick_format(axis: Any, write: Callable[[float], str]) -> None:
    """Writes the tick labels of one axis with ``write``."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _position: write(value)))


def thin(steps: Sequence[float], values: Any, most: int = 400) -> tuple[Any, Any]:
    """At most ``most`` evenly spaced points of a curve, ends included, to keep files small."""
    import numpy as np

    most = min(most, len(steps))
    keep = np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int))
    return np.asarray(steps)[keep], np.asarray(values)[keep]
