"""A golden file: its description, its arrays, and the tensors that are drawn by name."""

from __future__ import annotations

import functools
import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class GoldenError(Exception):
    """A golden file cannot be read, or is not what its kind needs."""


def draw(
    seed: int,
    name: str,
    shape: Sequence[int],
    scale: float = 1.0,
    offset: float = 0.0,
    kind: str = "normal",
) -> np.ndarray:
    """The tensor called ``name``: normal, or its absolute value, from a stream of its own."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    z = rng.standard_normal(tuple(shape), dtype=np.float32)
    if kind not in ("normal", "abs"):
        raise GoldenError(f"tensor {name!r} is of kind {kind!r}; normal or abs was expected.")
    return np.float32(offset) + np.float32(scale) * (abs(z) if kind == "abs" else z)


class Fixture:
    """One golden file.

    Attributes:
      path: of the json.
      document: the json.
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path = pathlib.Path(path)
        try:
            self.document: dict[str, Any] = json.loads(self.path.read_text())
        except (OSError, ValueError) as error:
            raise GoldenError(f"{self.path} cannot be read as json: {error}.") from error
        if not isinstance(self.document, dict):
            raise GoldenError(f"{self.path} holds no json object.")

    @functools.cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        beside = self.path.with_suffix(".npz")
        if not beside.exists():
            return {}
        with np.load(beside) as arrays:
            return dict(arrays)

    @property
    def constructor(self) -> Mapping[str, Any]:
        """How the reference's network was built; empty where the file does not say."""
        return self.document.get("constructor") or {}

    def get(self, key: str) -> Any:
        """A part of the document that cannot be done without."""
        if key not in self.document:
            raise GoldenError(f"{self.path.name} lacks {key!r}.")
        return self.document[key]

    def array(self, key: str) -> np.ndarray:
        """The array ``key`` of the npz."""
        if key not in self._arrays:
            raise GoldenError(f"{self.path.with_suffix('.npz').name} lacks the array {key!r}.")
        return self._arrays[key]

    def draw(self, entry: Mapping[str, Any]) -> np.ndarray:
        """The tensor that ``entry`` (name, shape, scale, offset, kind) describes."""
        rule = {k: entry[k] for k in ("scale", "offset", "kind") if k in entry}
        return draw(self.get("seed"), entry["name"], entry["shape"], **rule)

    def weights(self, variant: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """All drawn tensors by name, with what ``variant`` lacks or changes."""
        variant = variant or {}
        entries = {p["name"]: p for p in self.get("params") if "recipe" not in p}
        for name in variant.get("params_absent", ()):
            entries.pop(name, None)
        entries |= {p["name"]: p for p in variant.get("params_changed", ())}
        return {name: self.draw(entry) for name, entry in entries.items()}

    def input(self, tag: str) -> np.ndarray:
        """The input called ``tag``."""
        for entry in self.get("input"):
            if entry["tag"] == tag:
                return self.draw({"name": f"input:{tag}", **entry})
        raise GoldenError(f"{self.path.name} lists no input {tag!r}.")
