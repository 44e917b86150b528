"""Benchmarks of conflict-aware training: the ablation of NASViT's Table 7, and a step's cost."""

from __future__ import annotations

import argparse
import pathlib
import runpy
import sys
import time
from typing import Any

import benchmark_oracle
import jax
import jax.numpy as jnp
import numpy as np
from experiment import plain, recipe

from nasjax import report, sampling, spaces
from nasjax.core import architecture
from nasjax.core.program import Program
from nasjax.core.supernet import STATISTICS, Supernet
from nasjax.train import optim
from nasjax.train import state as states
from nasjax.train.losses import cross_entropy
from nasjax.train.sandwich import no_conflicts, sandwich_step

CONFIG = pathlib.Path(__file__).parent.parent / "configs" / "nasvit.py"
# The columns of Table 7, each on top of the one before, but for the last one.
VARIANTS = ("baseline", "weak", "scaling", "projection", "supernet")


def conflict(options: argparse.Namespace) -> dict[str, Any]:
    """The variants of NASViT's Table 7: accuracy of both ends, and conflicts while they train.

    Accuracies are on the training images that train no weights, by which nothing is chosen here.
    """
    rows, curves, ends = [], {}, {}
    for variant in options.variants:
        runs = [_trained(options, variant, seed) for seed in range(options.seeds)]
        curves[variant] = [report.conflict_curve(report.Run.load(r["workdir"])) for r in runs]
        ends[variant] = {end: [r[end] for r in runs] for end in ("smallest", "largest")}
        rows.append({"variant": variant, **_mean(runs)})
    lines = [
        (
            row["variant"],
            report.format_accuracy(row["smallest"], row["smallest_std"]),
            report.format_accuracy(row["largest"], row["largest_std"]),
            f"{100 * row['conflict_ratio']:.1f}%",
            f"{row['seconds']:.0f}",
        )
        for row in rows
    ]
    table = report.format_columns(("variant", "smallest", "largest", "conflicts", "seconds"), lines)
    folder = pathlib.Path(options.workdir)
    (folder / "conflict.txt").write_text(table + "\n")
    (folder / "conflict.svg").write_text(report.conflict_variants_plot(curves, ends))
    print(f"{table}\n\nFigure: {folder / 'conflict.svg'}")
    return {"config": options.config, "seeds": options.seeds, "variants": rows}


def _trained(options: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """A training in a process of its own, which resumes by itself, and what its ends are worth."""
    workdir = pathlib.Path(options.workdir) / f"{variant}_{seed}"
    values = [
        f"seed={seed}",
        "search.searcher.name=random",  # nothing is searched for, only the two ends are looked at
        "search.searcher.population=1",
        "search.searcher.evaluations=1",
        "search.probes.examples=0",
        "compare.samples=0",
        "compare.finetune=False",
        "compare.retrain=False",
        *options.set,
    ]
    config = f"{options.config},{variant}"
    arguments = [f"--config={config}", *(f"--config.{value}" for value in values)]
    benchmark_oracle.searched(workdir, arguments)
    run = report.Run.load(workdir)
    _, ratios = report.conflict_curve(run)
    probes = run.lines("search")[-1]["probes"]
    return {
        "smallest": probes["smallest"],
        "largest": probes["largest"],
        "conflict_ratio": float(np.mean(ratios)) / 100,
        "seconds": report.search_seconds(run),
        "workdir": str(workdir),
    }


def _mean(runs: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("smallest", "largest", "conflict_ratio", "seconds"):
        values = [run[name] for run in runs]
        found |= {
            name: float(np.mean(values)),
            f"{name}_std": float(np.std(values)),
            f"{name}_all": values,
        }
    return found


def sandwich(options: argparse.Namespace) -> dict[str, Any]:
    """Time and memory of a sandwich step, beside one pass of the plain largest network.

    A pass is forward and backward; a step has one for each of its networks, at the maximal size,
    and the optimizer's update.
    """
    values = read_config(options.config)
    supernet = spaces.make(**values["space"])
    sampler = sampling.sandwich(supernet.space, sampling.uniform(supernet.space, options.random))
    archs = sampler(jax.random.key(0), 0)
    images = jax.random.normal(jax.random.key(1), (options.batch, *supernet.input_shape))
    classes = values["space"].get("num_classes", 10)
    labels = jax.nn.one_hot(jnp.arange(options.batch) % classes, classes)
    tx = optim.partitioned(recipe(values["search"]["recipe"], "search").transformation(1000))
    weights = supernet.init(jax.random.key(0))["params"]
    state = states.create(jax.random.key(2), weights, tx, statistics=no_conflicts(supernet))
    step = sandwich_step(supernet, archs, tx, lambda key, batch: (images, labels))
    paths = _encoded(supernet, archs)
    largest = jax.jit(_pass(supernet, archs[0], images, labels))
    jitted = Program(step)
    batch = {"label": labels}
    memory = [
        f.lower(*given).compile().memory_analysis().temp_size_in_bytes
        for f, given in ((largest, (weights,)), (jitted, (state, batch, paths)))
    ]
    times: list[tuple[float, float]] = []
    number = 0
    for pair in range(options.pairs + 1):
        while True:  # other random ones each time, of the static options that were compiled for
            number += 1
            drawn = sampler(jax.random.key(0), number)
            if [supernet.static(a) for a in drawn] == [supernet.static(a) for a in archs]:
                break
        given = (state, batch, _encoded(supernet, drawn))
        seconds = (_seconds(largest, weights), _seconds(jitted, *given))
        if pair:  # the first pair compiles
            times.append(seconds)
            print(
                f"pair {pair}: plain {seconds[0]:.3f} s, step {seconds[1]:.3f} s, ratio "
                f"{seconds[1] / seconds[0]:.2f}",
                flush=True,
            )
    return {
        "config": options.config,
        "space": supernet.space.name,
        "batch": options.batch,
        "networks": len(archs),
        "pairs": options.pairs,
        "time_ratio": float(np.median([s / p for p, s in times])),
        "memory_ratio": memory[1] / memory[0],
        "step_seconds": float(np.median([s for _, s in times])),
        "plain_seconds": float(np.median([p for p, _ in times])),
        "step_bytes": memory[1],
        "plain_bytes": memory[0],
        "compiles": jitted.compiles,
    }


def _pass(supernet: Supernet, largest: Any, images: jax.Array, labels: jax.Array) -> Any:
    """Loss and gradient of the largest network alone, without any mask."""
    module = supernet.network(largest)
    rngs = {"dropout": jax.random.key(3)}

    def run(weights: Any) -> Any:
        def loss(weights: Any) -> jax.Array:
            given = supernet.extract({"params": weights, **supernet.empty_statistics}, largest)
            logits, _ = module.apply(given, images, train=True, rngs=rngs, mutable=[STATISTICS])
            return cross_entropy(logits, labels)

        return jax.value_and_grad(loss)(weights)

    return run


def _encoded(supernet: Supernet, archs: Any) -> jax.Array:
    return jnp.asarray(np.stack([architecture.encode(supernet.space, arch) for arch in archs]))


def read_config(config: str) -> dict[str, Any]:
    """A configuration, FILE or FILE:VARIANT."""
    path, _, variant = config.partition(":")
    if not pathlib.Path(path).is_file():
        sys.exit(f"error: there is no configuration {path}; give FILE or FILE:VARIANT.")
    get_config = runpy.run_path(path)["get_config"]
    return plain(get_config(variant) if variant else get_config())


def _seconds(function: Any, *arguments: Any) -> float:
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began


def add_commands(commands: Any) -> None:
    """Add these benchmarks to the command line of ``benchmark.py``."""
    command = commands.add_parser("conflict", help="the ablation of NASViT's Table 7")
    command.add_argument(
        "--config", default=f"{CONFIG}:digits", help="FILE:VARIANT, to which ,NAME is added"
    )
    command.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--workdir", default="runs/conflict")
    command.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="overrides of the configuration"
    )
    command.set_defaults(run=conflict)
    command = commands.add_parser("sandwich", help="cost of a sandwich step")
    command.add_argument("--config", default=f"{CONFIG}:digits", help="FILE:VARIANT")
    command.add_argument("--batch", type=int, default=64)
    command.add_argument("--random", type=int, default=2, help="random networks of a step")
    command.add_argument("--pairs", type=int, default=9)
    command.set_defaults(run=sandwich)
