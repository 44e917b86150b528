"""How numbers are written in reports."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

DASH = "—"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a JSON value is a finite number (``true`` and ``NaN`` are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _scaled(value: float, units: list[tuple[float, str, int]]) -> str:
    for factor, suffix, digits in units:
        scaled = value / factor
        # Three figures are enough: 5.87M, 58.7M, 587M.
        places = min(digits, 0 if abs(scaled) >= 100.0 else 1 if abs(scaled) >= 10.0 else digits)
        text = f"{scaled:.{places}f}"
        # Judged after rounding, so that 999,999 becomes 1.00M and not 1000.0k.
        if float(text) < 1000.0:
            return text + suffix
    return f"{value:.2e}"


def format_params(value: Any) -> str:
    """Writes a number of parameters: ``999``, ``51.2k``, ``5.87M``, ``350M``, ``1.34B``."""
    if not is_number(value):
        return DASH
    return _scaled(float(value), [(1.0, "", 0), (1e3, "k", 1), (1e6, "M", 2), (1e9, "B", 2)])


def format_flops(value: Any) -> str:
    """Writes a number of multiply-adds: ``5.0k``, ``0.81M``, ``1.34G``, ``2.00T``."""
    if not is_number(value):
        return DASH
    units = [(1e6, "M", 2), (1e9, "G", 2), (1e12, "T", 2)]
    if abs(value) < 1e5:
        units = [(1.0, "", 0), (1e3, "k", 1)]
    return _scaled(float(value), units)


def format_accuracy(value: Any, std: Any = None) -> str:
    """Writes a fraction as per cent with one decimal: ``97.5%`` or ``97.5% ± 0.4``."""
    if not is_number(value):
        return DASH
    spread = f" ± {100 * std:.1f}" if is_number(std) else ""
    return f"{100 * value:.1f}%{spread}"


def format_tick(value: float, billion: str = "G") -> str:
    """Writes a tick label with as many digits as it needs: ``40k``, ``1.125G``."""
    for factor, suffix in ((1e12, "T"), (1e9, billion), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.6g}{suffix}"
    return f"{value:.6g}"


def format_value(value: Any) -> str:
    """Writes one option of a choice; whole floats lose their ``.0``."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return " ".join(format_value(item) for item in value)
    return DASH if value is None else str(value)
