"""What a run left in its working directory, read back without any of the code that wrote it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nasjax.report.formats import format_value, is_number

Record = Mapping[str, Any]

_ABSENT = {
    "metrics.jsonl": "metrics.jsonl is not there yet: no step has been logged.",
    "arch.json": "arch.json is not there yet: the search has not picked its network.",
    "result.json": "result.json is not there yet: the networks have not been measured.",
    "config.json": "config.json is not there: the settings of this run are unknown.",
}

_STAGE = re.compile(r"search_\d+")  # of a search in stages, but the last


@dataclass(frozen=True)
class Run:
    """One run, as recorded so far.

    Attributes:
        name: Name of the working directory.
        metrics: The readable lines of ``metrics.jsonl`` in the order written.
        arch: Contents of ``arch.json``; empty when it is missing.
        result: Contents of ``result.json``; empty when it is missing.
        config: Contents of ``config.json``; empty when it is missing.
        history: Values of each architecture in ``history.jsonl``, in the order of evaluation.
        objectives: Name, direction and unit of what was searched for, as the history has them.
        notes: One sentence for each thing that is missing or unreadable.
    """

    name: str
    metrics: tuple[Record, ...] = ()
    arch: Record = field(default_factory=dict)
    result: Record = field(default_factory=dict)
    config: Record = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    history: tuple[Record, ...] = ()
    objectives: tuple[Record, ...] = ()

    @classmethod
    def load(cls, workdir: str | Path) -> Run:
        """Reads the working directory of a run that is finished, running or was killed.

        Args:
            workdir: Directory with ``metrics.jsonl`` and whichever other files exist already.

        Raises:
            FileNotFoundError: If there is no such directory.
        """
        folder = Path(workdir)
        if not folder.is_dir():
            raise FileNotFoundError(f"no run to report on: {folder} is not a directory")
        notes: list[str] = []
        metrics = _read_lines(folder / "metrics.jsonl", notes)
        arch, result, config = (
            _read_object(folder / f"{stem}.json", notes) for stem in ("arch", "result", "config")
        )
        name = folder.resolve().name
        history: tuple[Record, ...] = ()
        objectives: tuple[Record, ...] = ()
        if (folder / "history.jsonl").is_file():  # only a search in two stages has one
            lines = _read_lines(folder / "history.jsonl", notes)
            history = tuple(_objects([line.get("values") for line in lines]))
            for header in _objects([line.get("history") for line in lines]):
                objectives = tuple(_objects(header.get("objectives")))
        return cls(name, metrics, arch, result, config, tuple(notes), history, objectives)

    @property
    def phases(self) -> tuple[str, ...]:
        """Names of the phases logged so far, in order of first appearance; stages are one."""
        names = dict.fromkeys(str(line.get("phase", "")) for line in self.metrics)
        return tuple(dict.fromkeys("search" if _STAGE.fullmatch(name) else name for name in names))

    def lines(self, phase: str) -> list[dict[str, Any]]:
        """Lines of one phase with strictly increasing ``step``, one per step.

        A search in stages (``search_1``, ..., ``search``) is one phase, its steps counted through.
        A run resumed from a checkpoint logs some steps twice; the later lines replace the earlier
        ones. Lines of the same step (training values, then test accuracy) are merged.
        """
        names = dict.fromkeys(str(line.get("phase", "")) for line in self.metrics)
        stages = [n for n in names if phase == "search" and _STAGE.fullmatch(n)]
        joined: list[dict[str, Any]] = []
        for name in (*stages, phase):
            before = joined[-1]["step"] if joined else 0
            joined += [{**line, "step": before + line["step"]} for line in self._own_lines(name)]
        return joined

    def _own_lines(self, phase: str) -> list[dict[str, Any]]:
        kept: list[dict[str, Any]] = []
        for line in self.metrics:
            if line.get("phase") != phase or not is_number(line.get("step")):
                continue
            while kept and kept[-1]["step"] > line["step"]:
                kept.pop()
            if kept and kept[-1]["step"] == line["step"]:
                kept[-1] = {**kept[-1], **line}
            else:
                kept.append(dict(line))
        return kept

    def series(self, phase: str, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one logged number; steps without that number are left out."""
        pairs = [(r["step"], r[key]) for r in self.lines(phase) if is_number(r.get(key))]
        return [float(step) for step, _ in pairs], [float(value) for _, value in pairs]

    @property
    def rows(self) -> list[Record]:
        """Rows of the result table (accuracies as fractions), empty before there are results."""
        return _objects(self.result.get("rows"))

    @property
    def samples(self) -> list[Record]:
        """Sampled sub-networks with their size and accuracy (a fraction)."""
        return _objects(self.result.get("samples"))

    @property
    def space(self) -> Record:
        """Description of the search space; empty before there are results."""
        space = self.result.get("space")
        return space if isinstance(space, Mapping) else {}

    @property
    def space_name(self) -> str:
        """Name of the search space, or an empty string when no file tells it yet."""
        configured = self.config.get("space")
        name = self.space.get("name") or self.arch.get("space") or configured
        return name if isinstance(name, str) else ""

    @property
    def choices(self) -> list[Record]:
        """Choices of the search space (name, options, per); empty before there are results."""
        return [c for c in _objects(self.space.get("choices")) if "name" in c]

    @property
    def nodes(self) -> dict[str, list[list[int]]]:
        """Of choices made per edge of a cell, the edges that end in each of its nodes."""
        nodes = self.space.get("nodes")
        return dict(nodes) if isinstance(nodes, Mapping) else {}

    @property
    def architecture(self) -> Record:
        """The network found; while the search runs, the most probable one at its last step."""
        candidates: list[Any] = [self.arch, *(r for r in self.rows if r.get("network") == "found")]
        candidates += reversed(self.lines("search"))
        for candidate in candidates:
            found = candidate.get("architecture")
            if isinstance(found, Mapping) and found:
                return found
        return {}

    @property
    def layers(self) -> dict[str, int]:
        """Layers of the super-network for each choice made per layer, as far as logged."""
        for line in reversed(self.metrics):
            mixture = line.get("mixture")
            if isinstance(mixture, Mapping):
                return {name: len(m) for name, m in mixture.items() if m and isinstance(m[0], list)}
        return {}

    def option_labels(self, name: str, count: int) -> list[str]:
        """Labels of the ``count`` options of a choice.

        Before ``result.json`` names the options, those that were ever the most probable are read
        off the logged lines; the others are called by their number.
        """
        for choice in self.choices:
            options = choice.get("options")
            if choice["name"] == name and isinstance(options, list) and len(options) == count:
                return [format_value(option) for option in options]
        labels = [f"option {index + 1}" for index in range(count)]
        for line in self.lines("search"):
            mixture, chosen = (
                (line.get(key) or {}).get(name) for key in ("mixture", "architecture")
            )
            if isinstance(mixture, list) and mixture and chosen is not None:
                per_layer = isinstance(mixture[0], list)
                weights = mixture if per_layer else [mixture]
                values = chosen if isinstance(chosen, list) else [chosen] * len(weights)
                for row, value in zip(weights, values, strict=False):
                    ranked = sorted(row, reverse=True)
                    # Near a tie the logged arg-max may stem from digits that were rounded away.
                    if len(row) == count > 1 and ranked[0] - ranked[1] > 1e-3:
                        labels[row.index(ranked[0])] = format_value(value)
        return labels


def _objects(value: Any) -> list[Record]:
    items: Sequence[Any] = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, Mapping)]


def _read_lines(path: Path, notes: list[str]) -> tuple[Record, ...]:
    if not path.is_file():
        notes.append(_ABSENT[path.name])
        return ()
    # A run killed while writing may leave half a line, even half a character.
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines: list[Record] = []
    skipped = 0
    for index, text in enumerate(texts):
        try:
            line = json.loads(text) if text.strip() else None
        except ValueError:
            # The last line may just be in the middle of being written: nothing to report.
            skipped += index < len(texts) - 1
            continue
        if isinstance(line, Mapping):
            lines.append(line)
    if skipped:
        notes.append(f"{path.name}: unreadable lines skipped: {skipped}.")
    if not lines:
        notes.append(f"{path.name} holds no complete line yet.")
    return tuple(lines)


def _read_object(path: Path, notes: list[str]) -> Record:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(_ABSENT[path.name])
        return {}
    except ValueError:
        notes.append(f"{path.name} cannot be read: it is not complete JSON.")
        return {}
    if not isinstance(content, Mapping):
        notes.append(f"{path.name} cannot be read: it does not hold a JSON object.")
        return {}
    return content
