"""Errors of nasjax: each says what is wrong, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NasjaxError(ValueError):
    """Base class of every error nasjax raises for input it cannot use."""


class SpaceError(NasjaxError):
    """A search space contradicts itself, or does not fit the network it is used with."""


class ArchitectureError(NasjaxError):
    """An architecture does not lie in the search space it is used with."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A clause that lists the ``known`` names and, if one is near, suggests it."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    suggestion = f"did you mean {near[0]!r}? " if near else ""
    return f"{suggestion}Known: {', '.join(map(str, known)) or 'none'}."
