"""Pareto sets: what no other architecture beats in every objective, and files of it."""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nasjax.search.history import Evaluated, History
from nasjax.search.objectives import Problem


def non_dominated(values: np.ndarray) -> np.ndarray:
    """Which rows of ``values (points, objectives)``, less being better, no other row dominates.

    A row dominates another that it is nowhere worse than and somewhere better; equal rows stay.
    """
    values = np.asarray(values, float)
    order = np.lexsort(values.T[::-1])
    front: list[int] = []
    for i in order:  # whoever dominates a row comes before it
        kept = values[front]
        beaten = (kept <= values[i]).all(-1) & (kept < values[i]).any(-1)
        if not beaten.any():
            front.append(int(i))
    mask = np.zeros(len(values), bool)
    mask[front] = True
    return mask


def by_rank(values: np.ndarray) -> Iterator[int]:
    """Places of rows of ``values (points, objectives)``, less being better, the best first.

    Those that nothing dominates come first, then those that nothing of the rest dominates, and so
    on; of a front the most isolated come first (Deb et al. 2002). Of equals the first comes first.
    """
    values = np.asarray(values, float)
    if values.shape[1] == 1:
        yield from np.argsort(values[:, 0], kind="stable").tolist()
        return
    left = np.arange(len(values))
    while left.size:
        best = non_dominated(values[left])
        front = left[best]
        yield from front[np.argsort(-_isolation(values[front]), kind="stable")].tolist()
        left = left[~best]


def _isolation(values: np.ndarray) -> np.ndarray:
    """Crowding distances: how far the neighbours of a row are apart, summed over objectives."""
    total = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        gaps = np.full(len(values), np.inf)  # the two ends have one neighbour
        gaps[1:-1] = (column[order[2:]] - column[order[:-2]]) / (span or 1.0)
        total[order] += gaps
    return total


def pareto_front(problem: Problem, history: History) -> list[Evaluated]:
    """The architectures of ``history`` that none dominates, best by the first objective first."""
    entries = list(history)
    values = problem.minimized([e.values for e in entries])
    front = [(tuple(values[i]), i) for i in np.flatnonzero(non_dominated(values))]
    return [entries[i] for _, i in sorted(front)]


def write_front(
    directory: pathlib.Path | str, problem: Problem, front: Sequence[Evaluated]
) -> tuple[pathlib.Path, pathlib.Path]:
    """Write ``pareto.json`` and ``pareto.csv``: whole architectures and all that is known of them.

    The CSV file has a column for each value and one with the architecture as JSON.

    Returns:
      The two paths.
    """
    directory = pathlib.Path(directory)
    content = {
        **problem.describe(),
        "architectures": [{"architecture": e.arch, **e.values} for e in front],
    }
    wanted = [o.name for o in problem.objectives]
    columns = [*wanted, *(n for n in (front[0].values if front else ()) if n not in wanted)]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([*columns, "architecture"])
    for entry in front:
        writer.writerow([*(entry.values.get(n, "") for n in columns), json.dumps(entry.arch)])
    paths = directory / "pareto.json", directory / "pareto.csv"
    _replace(paths[0], json.dumps(content, indent=2) + "\n")
    _replace(paths[1], table.getvalue())
    return paths


def _replace(path: pathlib.Path, text: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
