"""Reading the clock of several programs in turn, and comparing with what a device could do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

# Dense matrix products as published, in TFLOP/s by what they multiply in.
PEAKS: Mapping[str, Mapping[str, float]] = {
    "TPU v4": {"bfloat16": 275},
    "TPU v5 lite": {"bfloat16": 197},
    "TPU v5e": {"bfloat16": 197},
    "TPU v5": {"bfloat16": 459},
    "TPU v5p": {"bfloat16": 459},
    "TPU v6 lite": {"bfloat16": 918},
    "TPU v6e": {"bfloat16": 918},
    "NVIDIA A100-SXM4-40GB": {"bfloat16": 312, "tensorfloat32": 156, "float32": 19.5},
    "NVIDIA A100-SXM4-80GB": {"bfloat16": 312, "tensorfloat32": 156, "float32": 19.5},
    "NVIDIA A100-PCIE-40GB": {"bfloat16": 312, "tensorfloat32": 156, "float32": 19.5},
    "NVIDIA A100 80GB PCIe": {"bfloat16": 312, "tensorfloat32": 156, "float32": 19.5},
    "NVIDIA H100 PCIe": {"bfloat16": 756, "tensorfloat32": 378, "float32": 51.2},
    "NVIDIA H100 80GB HBM3": {"bfloat16": 989.4, "tensorfloat32": 494.7, "float32": 66.9},
    "NVIDIA H200": {"bfloat16": 989.4, "tensorfloat32": 494.7, "float32": 66.9},
}


def interleaved(programs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of a call of each program, read ``rounds`` times, one program after the other.

    Where a call is short, a reading spans as many as take a fifth of a second: they are dispatched
    one after the other, as in training. The first calls are not counted.
    """
    calls = {}
    for name, program in programs.items():
        jax.block_until_ready(program())
        calls[name] = max(1, min(100, round(0.2 / seconds(program))))
    found: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(1, rounds + 1):
        for name, program in programs.items():
            found[name].append(seconds(program, calls[name]))
        line = ", ".join(f"{name} {each[-1]:.4g} s" for name, each in found.items())
        print(f"pair {number}: {line}", flush=True)
    return found


def seconds(program: Callable[[], Any], calls: int = 1) -> float:
    """Seconds of a call, from ``calls`` of them."""
    began = time.perf_counter()
    for _ in range(calls - 1):
        program()
    jax.block_until_ready(program())
    return (time.perf_counter() - began) / calls


def ratio(found: Mapping[str, Sequence[float]], one: str, other: str) -> float | None:
    """Median over the rounds of ``one`` over ``other``; None where one was not measured."""
    if one not in found or other not in found:
        return None
    return float(np.median(np.divide(found[one], found[other])))


def medians(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each program's readings."""
    return {name: float(np.median(each)) for name, each in found.items()}


def published_peak(device_kind: str, dtype: str) -> float | None:
    """FLOP/s that a device reaches in dense products of ``dtype``, as published; None if unknown.

    At JAX's default precision, float32 is multiplied in bfloat16 on a TPU and in TensorFloat-32 on
    a GPU (:class:`jax.lax.Precision`).
    """
    known = PEAKS.get(device_kind, {})
    precision = jax.config.jax_default_matmul_precision
    if dtype == "float32" and precision in (None, "default", "fastest"):
        dtype = "bfloat16" if device_kind.startswith("TPU") else "tensorfloat32"
    elif dtype == "float32" and precision not in ("float32", "highest"):
        return None
    return known[dtype] * 1e12 if dtype in known else None


def utilisation(
    flops: float | None, seconds: float, peak: float | None, devices: int = 1
) -> float | None:
    """Part of the devices' peak that ``flops`` in so many seconds are; None where unknown."""
    if flops is None or peak is None:
        return None
    return flops / (seconds * peak * devices)


def percent(share: float | None) -> str:
    """A share as a cell of a table; empty where it is unknown."""
    return "" if share is None else f"{100 * share:.2f}%"


def mib(size: int | None) -> str:
    """Bytes as a cell of a table; empty where they are unknown."""
    return "" if size is None else f"{size / 2**20:,.1f} MiB"


def memory(compiled: Any) -> dict[str, int]:
    """Bytes that a compiled program takes on each device."""
    found = compiled.memory_analysis()
    return {
        "arguments": int(found.argument_size_in_bytes),
        "temporary": int(found.temp_size_in_bytes),
    }
