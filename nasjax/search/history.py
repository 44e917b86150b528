"""The history of a search: everything it evaluated, once each, on disk as soon as it is known."""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from nasjax.core import architecture
from nasjax.core.architecture import Arch
from nasjax.core.errors import NasjaxError
from nasjax.core.space import SearchSpace
from nasjax.search.errors import SearchError


@dataclass(frozen=True)
class Evaluated:
    """An architecture, all that is known of it, and when that was.

    Attributes:
      arch: the architecture.
      values: by name.
      seconds: of searching until then; of a search that was continued, without the pauses.
    """

    arch: dict[str, Any]
    values: dict[str, float]
    seconds: float = field(default=0.0, compare=False)


class History:
    """Architectures in the order in which they were evaluated, none of them twice.

    With a path it is a file of a header and one line of JSON for each, which a search that was
    killed reads again. Only the first process of several writes.

    Args:
      space: of the architectures.
      path: of the file; None for memory alone.
      identity: JSON-able facts that tell this search from others.

    Raises:
      SearchError: if the file holds another search, or no history.
    """

    def __init__(
        self,
        space: SearchSpace,
        path: pathlib.Path | str | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self._space = space
        self._found: dict[tuple[int, ...], Evaluated] = {}
        self._path = None if path is None else pathlib.Path(path)
        self._began = time.perf_counter()
        if self._path is not None:
            self._open(json.loads(json.dumps(dict(identity or {}))))

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Evaluated]:
        return iter(self._found.values())

    def get(self, arch: Arch) -> dict[str, float] | None:
        """What is known of ``arch``; None if it was not evaluated."""
        found = self._found.get(self._code(arch))
        return None if found is None else found.values

    def add(self, arch: Arch, values: Mapping[str, float]) -> None:
        """Write down what ``arch`` was found to be; it must be new."""
        code = self._code(arch)
        assert code not in self._found, "an architecture is evaluated once"
        entry = Evaluated(
            architecture.validate(self._space, arch),
            {n: _number(v) for n, v in values.items()},
            round(time.perf_counter() - self._began, 3),
        )
        self._found[code] = entry
        self._write(
            {"architecture": entry.arch, "values": entry.values, "seconds": entry.seconds}, "a"
        )

    def _code(self, arch: Arch) -> tuple[int, ...]:
        return architecture.code(self._space, arch)

    def _write(self, content: Any, mode: str) -> None:
        if self._path is None or jax.process_index() != 0:
            return
        try:
            with self._path.open(mode) as file:
                file.write(json.dumps(content) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SearchError(
                f"{self._path} cannot be written ({error.strerror}); free space, then start the "
                "search again: it continues from what is there."
            ) from None

    def _open(self, identity: dict[str, Any]) -> None:
        assert self._path is not None
        if not self._path.exists() or not self._path.stat().st_size:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._write({"history": identity}, "w")
            return
        text = self._path.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text and jax.process_index() == 0:
            # A kill in the middle of a line; what it told is lost, and evaluated again.
            with self._path.open("r+") as file:
                file.truncate(len(whole.encode()))
        lines = whole.splitlines()
        if not lines:
            self._write({"history": identity}, "w")
            return
        try:
            header, *entries = (json.loads(line) for line in lines)
            theirs = header["history"]
            read = [
                (e["architecture"], dict(e["values"]), float(e.get("seconds", 0.0)))
                for e in entries
            ]
        except (ValueError, KeyError, TypeError):
            raise SearchError(
                f"{self._path} is no history of a search; move it away or choose another path."
            ) from None
        if theirs != identity:
            keys = [k for k in {**theirs, **identity} if theirs.get(k) != identity.get(k)]
            what = "; ".join(f"{k} was {theirs.get(k)!r}, is {identity.get(k)!r}" for k in keys[:2])
            raise SearchError(
                f"{self._path} is the history of another search ({what}); move it away or choose "
                "another path."
            )
        for number, (arch, values, seconds) in enumerate(read, start=2):
            try:
                entry = Evaluated(architecture.validate(self._space, arch), values, seconds)
            except NasjaxError as error:
                raise SearchError(f"line {number} of {self._path}: {error}") from None
            self._found[self._code(entry.arch)] = entry
            self._began = time.perf_counter() - seconds


def _number(value: Any) -> float:
    """An integer where it is one, so that counts stay exact in JSON."""
    return value if isinstance(value, int) else float(value)
