"""Compiled functions that know how often they were compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


class Program:
    """``jax.jit(function)``, counting its programs: "one compile for all architectures".

    JAX traces a function once for all arguments of equal shapes and types, and compiles what it
    traced.

    Args:
      function: a pure function.
      **options: those of :func:`jax.jit`.

    Attributes:
      compiles: how often the function was traced so far.
    """

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        def traced(*args: Any, **kwargs: Any) -> Any:
            self.compiles += 1
            return function(*args, **kwargs)

        # The name that compilations are logged by.
        traced.__name__ = getattr(function, "__name__", "program")
        self.compiles = 0
        self._jitted = jax.jit(traced, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self._jitted(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """As the method of the same name of what :func:`jax.jit` returns."""
        return self._jitted.lower(*args, **kwargs)
