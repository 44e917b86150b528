"""The result table, for the terminal and for the web page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nasjax.report.formats import format_accuracy, format_flops, format_params

_HEADER = ("network", "parameters", "multiply-adds", "inherited", "fine-tuned", "retrained")
_ACCURACIES = ("inherited", "fine_tuned", "retrained")


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        str(row.get("network", "?")),
        format_params(row.get("params")),
        format_flops(row.get("flops")),
        *(format_accuracy(row.get(key), row.get(f"{key}_std")) for key in _ACCURACIES),
    ]


def _aligned(column: list[str]) -> list[str]:
    # Pads cells without a deviation, so that right-aligned percentages stay below each other.
    tails = [len(cell) - len(cell.partition(" ±")[0]) for cell in column]
    widest = max(tails, default=0)
    return [cell + " " * (widest - tail) for cell, tail in zip(column, tails, strict=True)]


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats result rows as aligned columns for the terminal.

    Args:
        rows: Rows of ``result.json``: ``network``, ``params`` (a count), ``flops`` (multiply-adds
            of one forward pass), and ``inherited``, ``fine_tuned``, ``retrained`` accuracies
            (fractions), each optionally with its standard deviation under ``<name>_std``. A value
            that is missing or null is shown as a dash.

    Returns:
        Lines joined by newlines, without a final newline. Accuracies are in per cent.
    """
    if not rows:
        return "no results yet"
    return format_columns(_HEADER, [_cells(row) for row in rows])


def format_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats cells as aligned columns: the first one to the left, the others to the right.

    Args:
        header: Names of the columns.
        rows: As many cells in each row; a deviation stands behind " ±".

    Returns:
        Lines joined by newlines, without a final newline.
    """
    columns = [_aligned(list(column)) for column in zip(*rows, strict=True)]
    widths = [max(map(len, [head, *col])) for head, col in zip(header, columns, strict=True)]

    def line(cells: Sequence[str]) -> str:
        name, *values = cells
        padded = [name.ljust(widths[0])]
        padded += [v.rjust(w) for v, w in zip(values, widths[1:], strict=True)]
        return "  ".join(padded).rstrip()

    rule = "  ".join("─" * width for width in widths)
    return "\n".join([line(header), rule, *map(line, zip(*columns, strict=True))])


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats result rows as an HTML ``<table>``; see ``format_table`` for the keys and units.

    The row of the network named ``found`` carries the class ``found``.
    """
    if not rows:
        return "<p>No results yet.</p>"
    head = "".join(f'<th scope="col">{escape(name.capitalize())}</th>' for name in _HEADER)
    columns = list(zip(*map(_cells, rows), strict=True))[1:]
    blanks = [max((c.partition(" ±")[2] for c in column), key=len) for column in columns]
    body = []
    for row in rows:
        name, *values = _cells(row)
        cells = "".join(
            f"<td>{_spread(value, blank)}</td>" for value, blank in zip(values, blanks, strict=True)
        )
        mark = ' class="found"' if name == "found" else ""
        body.append(f'<tr{mark}><th scope="row">{escape(name)}</th>{cells}</tr>')
    lines = "\n".join(body)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>"


def _spread(cell: str, blank: str) -> str:
    value, _, std = cell.partition(" ±")
    if not blank:
        return escape(value)
    # An invisible deviation keeps the percentages of a column below each other.
    hidden = "" if std else ' style="visibility:hidden" aria-hidden="true"'
    return f"{escape(value)}<small{hidden}> ±{escape(std or blank)}</small>"
