"""Kinds of golden files, one module each.

A kind is a module of this package without a leading underscore that has ::

    def matches(fixture: Fixture) -> bool      # by structure, never by the file's name
    def check(fixture: Fixture) -> Iterator[Case]

A new kind is a new file here, nothing else.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import ModuleType

from tests.golden.fixture import Fixture, GoldenError


@functools.cache
def kinds() -> dict[str, ModuleType]:
    """All kinds by name."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def kind_of(fixture: Fixture) -> ModuleType:
    """The kind of ``fixture``.

    Raises:
      GoldenError: if it is of no known kind.
    """
    for kind in kinds().values():
        if kind.matches(fixture):
            return kind
    raise GoldenError(f"this is no golden file of a known kind: {', '.join(kinds())}.")
