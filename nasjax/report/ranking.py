"""How well scores rank networks: the table and the figure of a ranking study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nasjax.report.formats import is_number
from nasjax.report.style import BLUE, GREY, WIDTH, Sheet, figure_style
from nasjax.report.tables import format_columns

_HEADER = ("score", "accuracy", "parameters", "networks", "Kendall's tau", "Spearman's rho")
_COLUMNS, _HEIGHT, _GAP = 4, 2.1, 1.0


def format_ranking(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of a ranking study in columns (TF-TAS, Tables 5 and 6).

    Args:
        rows: Of :func:`nasjax.search.ranking_study`. Behind a correlation stand its confidence
            interval and, over several seeds, its standard deviation.
    """
    lines = [
        [
            str(row["score"]),
            str(row["truth"]),
            "all" if row["band"] is None else "{:,.0f}-{:,.0f}".format(*row["band"]),
            str(row["networks"]),
            _correlation(row, "kendall_tau"),
            _correlation(row, "spearman_rho"),
        ]
        for row in rows
    ]
    return format_columns(_HEADER, lines)


def _correlation(row: Mapping[str, Any], name: str) -> str:
    if not is_number(row.get(name)):
        return "-"
    text = f"{row[name]:+.3f}"
    if is_number(row.get(f"{name}_low")):
        text += f" [{row[f'{name}_low']:+.2f}, {row[f'{name}_high']:+.2f}]"
    return text + (f" ±{row[f'{name}_std']:.3f}" if row.get(f"{name}_std") else "")


def ranking_plot(rows: Sequence[Mapping[str, Any]], networks: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy over every score, a panel for each with its Kendall's tau (TF-TAS, Figure 3).

    Args:
        rows: Of :func:`nasjax.search.ranking_study`.
        networks: For each network ``params``, ``scores`` (by name, one for each seed) and ``truth``
            (likewise), of which the means are drawn.
    """
    accuracy = next(iter(networks[0]["truth"]))
    names = [*networks[0]["scores"], "params"]
    down = -(-len(names) // _COLUMNS)
    with figure_style():
        sheet = Sheet(down * (_HEIGHT + _GAP) + 0.2)
        width = WIDTH / _COLUMNS
        for place, name in enumerate(names):
            row, column = divmod(place, _COLUMNS)
            axes = sheet.panel(
                column * width + 0.7, 0.4 + row * (_HEIGHT + _GAP), width - 0.9, _HEIGHT
            )
            own = name == "params"
            across = [n["params"] if own else _mean(n["scores"][name]) for n in networks]
            up = [100 * _mean(n["truth"][accuracy]) for n in networks]
            axes.scatter(across, up, s=9, color=GREY if own else BLUE, linewidths=0)
            found = next(
                r
                for r in rows
                if r["score"] == name and r["truth"] == accuracy and r["band"] is None
            )
            tau = "-" if found["kendall_tau"] is None else f"{found['kendall_tau']:+.2f}"
            axes.set_title(f"{name}: tau {tau}")
            axes.locator_params(axis="x", nbins=4)
            axes.ticklabel_format(axis="x", scilimits=(-3, 4))
            if column == 0:
                axes.set_ylabel(f"{accuracy} (%)")
        return sheet.svg("ranking", "Accuracy of networks over scores of untrained ones")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
