"""Benchmarks of entanglement beside plain weight sharing, and of searches judged by a table."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from nasjax import relax, report, spaces
from nasjax.train.losses import cross_entropy

LAUNCH = pathlib.Path(__file__).parent.absolute()
STOPPED = 130  # status of a search that saved and left
SIZES: dict[str, dict[str, Any]] = {
    "nas_bench_201": {"channels": 16, "cells": 5},
    "darts": {"channels": 16, "cells": 8},
    "toy_cell": {},
    "toy_conv_macro": {},
}


def oracle(options: argparse.Namespace) -> dict[str, Any]:
    """Searches of every method and kind of sharing, judged by a table of true accuracies."""
    if options.seeds < 1:
        sys.exit(f"error: --seeds is {options.seeds}; a number of seeds from 1 was expected.")
    rows, curves, judged = [], {}, {}
    for method in options.method:
        for sharing in options.sharing:
            seeds = range(options.first_seed, options.first_seed + options.seeds)
            runs = [_searched(options, method, sharing, seed) for seed in seeds]
            name = f"{method}/{sharing}"
            rows.append({"method": name, **_summary(runs)})
            curves[name] = [run["curve"] for run in runs]
            judged = runs[0]["oracle"]
    folder = pathlib.Path(options.workdir)
    lines = [
        (
            r["method"],
            f"{r['mean_test_acc']:.2f} ± {r['std_test_acc']:.2f}",
            f"{r['mean_regret']:.2f}",
            f"{r['mean_rank']:.0f}",
            f"{r['mean_seconds']:.0f}",
            f"{r['peak_memory_bytes'] / 2**30:.2f} GiB",
        )
        for r in rows
    ]
    for draws, value in judged["random"].items():
        name = "random" if draws == "1" else f"random, best of {draws}"
        lines.append((name, f"{value:.2f}", f"{judged['best'] - value:.2f}", "", "", ""))
    header = ("method", "accuracy", "regret", "rank", "seconds", "memory")
    table = report.format_columns(header, lines)
    (folder / "oracle.txt").write_text(table + "\n")
    (folder / "oracle.svg").write_text(report.regret_plot(curves, judged))
    print(f"{table}\n\nFigure: {folder / 'oracle.svg'}")
    return {
        "space": options.space,
        "seeds": options.seeds,
        "first_seed": options.first_seed,
        "methods": rows,
        "random": judged["random"],
        "best": judged["best"],
    }


# Sampler and searcher of a search in two stages; any other method is a relaxation.
SEARCHES = {
    "spos": ("uniform", "random"),
    "spos+rs": ("uniform", "random"),
    "spos+es": ("uniform", "evolution"),
    "fair+rs": ("fair", "random"),
    "fair+es": ("fair", "evolution"),
}


def method_settings(method: str) -> list[str]:
    """What the method called so sets in a configuration."""
    if method not in SEARCHES:
        return ["search.sampler.kind=", f"search.relaxation.name={method}"]
    sampler, searcher = SEARCHES[method]
    return [f"search.sampler.kind={sampler}", f"search.searcher.name={searcher}"]


FORMS = {
    "entangled": ["space.sharing=entangled"],
    "inside": ["space.sharing=entangled", "space.group_mass=inside"],
    "plain": ["space.sharing=plain"],
}


def _searched(options: argparse.Namespace, method: str, sharing: str, seed: int) -> dict[str, Any]:
    """What one search found; run in a process of its own, which resumes by itself."""
    workdir = pathlib.Path(options.workdir) / f"{method}_{sharing}_{seed}"
    values = [
        f"seed={seed}",
        *method_settings(method),
        *FORMS[sharing],
        f"data.name={options.data}",
        f"oracle.path={options.table}",
        "compare.samples=0",
        "compare.finetune=False",
        "compare.retrain=False",
        *options.set,
    ]
    config = LAUNCH.parent / "configs" / f"{options.space}.py"
    arguments = [f"--config={config}:{options.size}"]
    arguments += [f"--config.{value}" for value in values]
    found = searched(workdir, arguments)
    result = json.loads((workdir / "result.json").read_text())
    curve = report.anytime(report.Run.load(workdir))
    memory = result.get("peak_device_bytes") or found["peak_host_bytes"]
    return {**found, "peak_memory_bytes": memory, "oracle": result["oracle"], "curve": curve}


def searched(workdir: pathlib.Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Run launch/search.py in ``workdir``, unless that is over; its seconds and peak memory."""
    measured = workdir / "measured.json"
    if not measured.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(LAUNCH / "search.py"), *arguments, f"--workdir={workdir}"]
        began = time.perf_counter()
        status, resident = _run(command)
        if status == STOPPED:
            sys.exit(f"Stopped in {workdir}; run the same command again to continue.")
        if status:
            sys.exit(f"error: the search of {workdir} failed; its message is above.")
        found = {
            "arguments": list(arguments),
            "seconds": time.perf_counter() - began,
            "peak_host_bytes": resident,
        }
        measured.write_text(json.dumps(found))
    found = json.loads(measured.read_text())
    before = found.get("arguments", [])
    if before != list(arguments):
        pairs = itertools.zip_longest(before, arguments)
        was, now = next(pair for pair in pairs if pair[0] != pair[1])
        sys.exit(f"error: {workdir} holds another search ({was}, not {now}); give a new --workdir.")
    return found


def _run(command: Sequence[str]) -> tuple[int, int]:
    """Exit status and peak resident bytes of a process, to which signals are passed on."""
    # In a session of its own, or Ctrl-C would reach it twice, and end it at once.
    process = subprocess.Popen(command, start_new_session=True)
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(n, lambda number, _: process.send_signal(number)) for n in signals]
    try:
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
    unit = 1 if sys.platform == "darwin" else 1024
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * unit


def _summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = [run["oracle"]["found"] for run in runs]
    accuracies = [f["accuracy"] for f in found]
    return {
        "mean_test_acc": float(np.mean(accuracies)),
        "std_test_acc": float(np.std(accuracies)),
        "test_acc": accuracies,
        "mean_regret": float(np.mean([f["regret"] for f in found])),
        "mean_rank": float(np.mean([f["rank"] for f in found])),
        "mean_seconds": float(np.mean([run["seconds"] for run in runs])),
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
    }


def sharing(options: argparse.Namespace) -> dict[str, Any]:
    """Time and memory of the search step, entangled beside plain weight sharing."""
    steps = {}
    for kind in ("entangled", "plain"):
        supernet = spaces.make(options.space, sharing=kind, **SIZES[options.space])
        images = jax.random.normal(jax.random.key(1), (options.batch, *supernet.input_shape))
        labels = jax.nn.one_hot(np.arange(options.batch) % 10, 10)
        weights = supernet.init(jax.random.key(0))["params"]
        alphas = relax.init_alphas(supernet.space, jax.random.key(2))

        def step(
            weights: Any, alphas: Any, supernet: Any = supernet, images: Any = images,
            labels: Any = labels,
        ) -> Any:  # fmt: skip
            def loss(weights: Any, alphas: Any) -> jax.Array:
                mixed = {n: jax.nn.softmax(a) for n, a in alphas.items()}
                given = {
                    **supernet.masked({"params": weights}, mixed),
                    **supernet.empty_statistics,
                }
                rngs = {"dropout": jax.random.key(3)}
                logits, _ = supernet.module.apply(
                    given, images, train=True, rngs=rngs, mutable=["batch_stats"]
                )
                return cross_entropy(logits, labels)

            return jax.value_and_grad(loss, (0, 1))(weights, alphas)

        compiled = jax.jit(step).lower(weights, alphas).compile()
        analysis = compiled.memory_analysis()
        steps[kind] = (compiled, weights, alphas, analysis)
        print(f"{kind}: {analysis.temp_size_in_bytes / 2**20:,.0f} MiB of activations", flush=True)
    times: list[tuple[float, float]] = []
    for pair in range(options.pairs + 1):
        seconds = []
        for kind in ("entangled", "plain"):
            compiled, weights, alphas, _ = steps[kind]
            began = time.perf_counter()
            jax.block_until_ready(compiled(weights, alphas))
            seconds.append(time.perf_counter() - began)
        if pair:
            times.append((seconds[0], seconds[1]))
            print(
                f"pair {pair}: {seconds[0]:.2f} s entangled, {seconds[1]:.2f} s plain", flush=True
            )
    sizes = {
        kind: a.temp_size_in_bytes + a.argument_size_in_bytes + a.output_size_in_bytes
        for kind, (_, _, _, a) in steps.items()
    }
    return {
        "space": options.space,
        "batch": options.batch,
        "pairs": options.pairs,
        "time_ratio": float(np.median([e / p for e, p in times])),
        "memory_ratio": sizes["entangled"] / sizes["plain"],
        "activations_ratio": steps["entangled"][3].temp_size_in_bytes
        / steps["plain"][3].temp_size_in_bytes,
        "entangled_seconds": float(np.median([e for e, _ in times])),
        "plain_seconds": float(np.median([p for _, p in times])),
        "entangled_bytes": sizes["entangled"],
        "plain_bytes": sizes["plain"],
    }


def add_commands(commands: Any) -> None:
    """Add these benchmarks to the command line of ``benchmark.py``."""
    command = commands.add_parser("oracle", help=oracle.__doc__)
    command.add_argument("--space", required=True, choices=sorted(SIZES))
    command.add_argument("--table", required=True, help="CSV file of true accuracies")
    command.add_argument("--data", required=True, help="dataset, e.g. idx:FOLDER")
    command.add_argument("--size", default="small", help="variant of the configuration")
    command.add_argument("--method", nargs="+", default=["drnas"])
    command.add_argument(
        "--sharing", nargs="+", default=["entangled", "plain"], choices=FORMS,
        help="inside: entangled in TangleNAS's own form",
    )  # fmt: skip
    command.add_argument("--seeds", type=int, default=5, help="number of seeds")
    command.add_argument("--first-seed", type=int, default=0)
    command.add_argument("--workdir", default="runs/oracle")
    command.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="overrides of the configuration"
    )
    command.set_defaults(run=oracle)
    command = commands.add_parser("sharing", help=sharing.__doc__)
    command.add_argument("--space", default="nas_bench_201", choices=sorted(SIZES))
    command.add_argument("--batch", type=int, default=64)
    command.add_argument("--pairs", type=int, default=5)
    command.set_defaults(run=sharing)
