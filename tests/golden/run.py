"""Checking files: pick the kind, run its cases, print a line for each."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from nasjax.core.errors import NasjaxError
from tests.golden.fixture import Fixture, GoldenError
from tests.golden.kinds import kind_of

Wanted = Callable[[Mapping[str, Any]], bool]


def check_file(path: str | os.PathLike[str], wanted: Wanted = bool) -> bool:
    """Check one file and print its cases; whether all that count are within their bars.

    Args:
      path: of the json.
      wanted: which of its cases are checked.

    Raises:
      GoldenError: if the file cannot be handled.
    """
    fixture, passed = Fixture(path), True
    if "cases" in fixture.document:
        fixture.document["cases"] = [case for case in fixture.document["cases"] if wanted(case)]
    # Accelerators would otherwise round the factors of matrix products beyond the bars.
    with jax.default_matmul_precision("highest"):
        for case in kind_of(fixture).check(fixture):
            print(case.line(fixture.path.stem), flush=True)
            passed = passed and case.status != "FAIL"
    return passed


def check_files(paths: Iterable[str | os.PathLike[str]], wanted: Wanted = bool) -> int:
    """Check all files; the exit status: 1 if any failed or could not be handled, else 0."""
    status = 0
    for path in paths:
        try:
            passed = check_file(path, wanted)
        except (GoldenError, NasjaxError) as error:
            print(f"{path}: {error}", flush=True)
            passed = False
        except Exception as error:  # the other files are to be checked all the same
            traceback.print_exc()
            print(f"{path}: {type(error).__name__}: {error}", flush=True)
            passed = False
        status = status if passed else 1
    return status
