"""The benchmark of compilation, and of the memory that remat policies save."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measuring import memory, mib
from workbench import PASSES, Workbench, add_arguments, open_workbench, submesh

from nasjax import report, spaces
from nasjax.models import layers
from nasjax.models.vit import VisionTransformer
from nasjax.train import sharding

REMAT = ("none", *layers.REMAT)  # policies: values of ``space.remat``


def compilation(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to trace, lower and compile a step, and its memory by remat policy."""
    bench = open_workbench(options)
    kind = options.step or bench.searched
    bench.require(kind)
    chosen = options.remat or REMAT
    # A model without policies has the one that it has.
    named = chosen if hasattr(bench.supernet.module, "remat") else ["as it is"]
    rows = []
    for name in named:
        sized = bench
        if name in REMAT:
            space = {**bench.config["space"], "remat": name}
            sized = dataclasses.replace(bench, supernet=spaces.make(**space))
        rows.append({"remat": name, **_compiled(sized, kind), "predicted": kept_bytes(sized, name)})
        row = rows[-1]
        print(f"{name}: {row['seconds']:.3g} s, {mib(row['bytes']['temporary'])}", flush=True)
    first = rows[0]
    for row in rows:
        foreseen = row["predicted"] and first["predicted"] - row["predicted"]
        saved = first["bytes"]["temporary"] - row["bytes"]["temporary"]
        row["saved"] = saved
        row["saved_to_predicted"] = saved / foreseen if foreseen else None
        row["seconds_to_first"] = row["seconds"] / first["seconds"]
    lines = [
        (
            row["remat"],
            *(f"{row[part]:.3g}" for part in ("trace", "lower", "compile", "seconds")),
            mib(row["bytes"]["temporary"]),
            mib(row["predicted"]),
            mib(row["saved"]),
            "" if row["saved_to_predicted"] is None else f"{row['saved_to_predicted']:.2f}",
        )
        for row in rows
    ]
    head = ("remat", "trace", "lower", "compile", "seconds", "temporary", "kept, predicted")
    print(report.format_columns((*head, "saved", "/ predicted"), lines))
    sizes = {**bench.sizes, "depth": getattr(bench.supernet.module, "depth", None)}
    return {"config": options.config, **sizes, "step": kind, "policies": rows}


def _compiled(bench: Workbench, kind: str) -> dict[str, Any]:
    """Seconds to trace, lower and compile a step from nothing, and its bytes."""
    mesh = submesh(1)
    jitted, shapes = bench.program(kind, mesh, sharding.REPLICATED)
    with _no_compilation_cache(), bench.computing(mesh, sharding.REPLICATED):
        jax.clear_caches()
        clock = [time.perf_counter()]
        traced = jitted.trace(*shapes)
        clock.append(time.perf_counter())
        lowered = traced.lower()
        clock.append(time.perf_counter())
        compiled = lowered.compile()
        clock.append(time.perf_counter())
    parts = dict(zip(("trace", "lower", "compile"), np.diff(clock).tolist(), strict=True))
    return {**parts, "seconds": clock[-1] - clock[0], "bytes": memory(compiled)}


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Compile anew what is compiled, also what is on disk."""
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # which remembers whether it is in use
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def kept_bytes(bench: Workbench, remat: str) -> int | None:
    """Bytes that the backward pass of a ViT's blocks finds, as docs/performance.md counts them.

    For a token of a block, with residual stream E, heads W = h * d in all, perceptron M, N tokens
    and R places of relative positions, numbers of s bytes:

    ``full``: the block's input, ``s E``. ``dots``: besides it what dense layers and attention give,
    ``s (2 E + 4 W + M)``. ``maps``: besides them a softmax in float32, ``4 h N``. ``none``: input
    and result of both norms, queries, keys, values and what is mixed of them, two arrays of the
    perceptron, a softmax in float32 and in the network's precision:
    ``s (4 E + 4 W + 2 M + h R) + (4 + s) h N``, of which ``attention_map`` keeps one where both are
    the same; stochastic depth keeps ``(2 s + 2) E`` more. What is not kept is there once, while its
    block is recomputed.

    Args:
      bench: whose super-network it is.
      remat: name of the policy.

    Returns:
      The bytes of a batch, or of a part of it; None for another network or policy.
    """
    module = bench.supernet.module
    if not isinstance(module, VisionTransformer):
        return None
    height, width, _ = bench.supernet.input_shape
    rows, columns = height // module.patch_size, width // module.patch_size
    tokens, size = 1 + rows * columns, jnp.dtype(bench.dtype).itemsize
    (heads, head_dim, hidden) = (_largest(module, n) for n in ("num_heads", "head_dim", "mlp_dim"))
    embed, inner, places = module.embed_dim, heads * head_dim, 2 + rows + columns
    named = bool(module.reach)  # its softmax is ``attention_map``, and not JAX's own
    whole = size * (4 * embed + 4 * inner + 2 * hidden + heads * places * named)
    whole += (4 if named and size == 4 else 4 + size) * heads * tokens
    if any(module.drop_path):
        whole += (2 * size + 2) * embed
    dots = size * (3 * embed + 4 * inner + hidden)
    kept = {
        "none": whole,
        "maps": dots + 4 * heads * tokens * named,
        "dots": dots,
        "full": size * embed,
    }
    if remat not in kept:
        return None
    once = 0 if remat == "none" else whole
    images = bench.recipe.batch_size // bench.recipe.parts
    return images * tokens * (module.depth * kept[remat] + once)


def _largest(module: Any, name: str) -> int:
    value = getattr(module, name)
    return max(value) if isinstance(value, Sequence) else value


def add_commands(commands: Any) -> None:
    """Add this benchmark to the command line of ``benchmark.py``."""
    command = commands.add_parser("compile", help=compilation.__doc__)
    add_arguments(command, pairs=0)
    command.add_argument("--remat", nargs="+", default=[], choices=REMAT, help="all if none")
    text = "which one; that of the configuration's search if left out"
    command.add_argument("--step", default="", choices=list(PASSES), help=text)
    command.set_defaults(run=compilation)
