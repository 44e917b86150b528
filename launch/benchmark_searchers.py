"""Benchmark of searchers alone, on a table of true accuracies."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from nasjax import report, search, spaces
from nasjax.core import architecture
from nasjax.core.supernet import Supernet

_SAMPLE = 500  # random architectures, half of which a forest is fitted to
_EVERY = 50  # evaluations between the budgets that are printed


def searchers(options: argparse.Namespace) -> dict[str, Any]:
    """Searchers on a table used directly as the fitness: no training, the searchers alone."""
    supernet = spaces.make(options.space)
    key = search.TableKey.by_column(supernet.columns)
    oracle = search.Oracle.read(options.table, key, size=supernet.space.size)
    problem = search.problem(supernet)
    curves: dict[str, np.ndarray] = {}
    for name in ("random", "evolution", "predictor"):
        curves[name] = np.stack(
            [_regrets(problem, oracle, name, options, seed) for seed in range(options.seeds)]
        )
        at = {n: float(curves[name][:, n - 1].mean()) for n in _budgets(options.evaluations)}
        print(f"{name}: regret {', '.join(f'{r:.3f} at {n}' for n, r in at.items())}", flush=True)
    folder = pathlib.Path(options.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    figure = folder / f"searchers_{options.space}.svg"
    figure.write_text(report.searchers_plot(curves))
    print(f"Figure: {figure}")
    means = {name: float(curve[:, -1].mean()) for name, curve in curves.items()}
    return {
        "space": options.space,
        "seeds": options.seeds,
        "evaluations": options.evaluations,
        "mean_regret": means,
        "regret_ratio": means["evolution"] / means["random"],
        "regret_at": {
            name: {n: float(curve[:, n - 1].mean()) for n in _budgets(options.evaluations)}
            for name, curve in curves.items()
        },
        "predictor": _predictor(supernet, oracle, options.seeds),
        **(_fronts(supernet, oracle, options) if options.front_seeds else {}),
    }


def _regrets(
    problem: search.Problem,
    oracle: search.Oracle,
    name: str,
    options: argparse.Namespace,
    seed: int,
) -> np.ndarray:
    """The regret of the best so far after each evaluation."""
    who = search.searcher(name, problem, jax.random.key(seed))
    evaluate = search.one_by_one(oracle.accuracy)
    history = search.run(problem, who, evaluate, options.evaluations)
    return oracle.best - np.maximum.accumulate([e.values["accuracy"] for e in history])


def _budgets(evaluations: int) -> Sequence[int]:
    return sorted({*range(_EVERY, evaluations + 1, _EVERY), evaluations})


def _predictor(supernet: Supernet, oracle: search.Oracle, seeds: int) -> dict[str, Any]:
    """The rank correlations of architectures held out, of as many samples as there are seeds."""
    found = []
    for seed in range(seeds):
        rng = architecture.generator(jax.random.key(seed))
        archs = [architecture.sample(supernet.space, rng) for _ in range(_SAMPLE)]
        accuracies = [oracle.accuracy(arch) for arch in archs]
        fitted = search.AccuracyPredictor.fit(supernet.space, archs, accuracies, seed=seed)
        found.append(fitted.held_out)
    rhos, taus = ([getattr(f, n) for f in found if f] for n in ("spearman", "kendall"))
    print(
        f"random forest of {_SAMPLE} random architectures, one half ranked by the other: "
        f"Spearman {np.mean(rhos):.3f} ({min(rhos):.3f} to {max(rhos):.3f}), "
        f"Kendall {np.mean(taus):.3f}",
        flush=True,
    )
    return {
        "sample": _SAMPLE,
        "spearman_mean": float(np.mean(rhos)),
        "spearman_min": min(rhos),
        "kendall_mean": float(np.mean(taus)),
    }


def _fronts(
    supernet: Supernet, oracle: search.Oracle, options: argparse.Namespace
) -> dict[str, Any]:
    """The part of the true front's hypervolume that searchers of two objectives find."""
    from pymoo.indicators.hv import HV

    problem = search.problem(supernet, ["accuracy", "params"])
    every = [
        {"accuracy": oracle.accuracy(arch), "params": supernet.count("params", arch)}
        for arch in architecture.every(supernet.space)
    ]
    values = problem.minimized(every)
    low, high = values.min(0), values.max(0)
    volume = HV(ref_point=np.ones(2))
    true = volume((values[search.non_dominated(values)] - low) / (high - low))

    def part(entries: Sequence[search.Evaluated]) -> float:
        found = problem.minimized([e.values for e in entries])
        return float(volume((found[search.non_dominated(found)] - low) / (high - low)) / true)

    parts: dict[str, list[tuple[float, float]]] = {}
    few = options.evaluations
    # Many evaluations are for NSGA-II, which is quick; few are for both.
    for name, count in (("nsga2", max(few, options.front_evaluations)), ("predictor", few)):
        parts[name] = []
        for seed in range(options.front_seeds):
            who = search.searcher(name, problem, jax.random.key(seed))
            found = list(search.run(problem, who, search.one_by_one(oracle.accuracy), count))
            parts[name].append((part(found[:few]), part(found)))
        early, late = np.mean(parts[name], axis=0)
        print(
            f"{name}: hypervolume {early:.4f} of the true front's at {few}, {late:.4f} at {count}",
            flush=True,
        )
    return {
        "front_evaluations": options.front_evaluations,
        "mean_hypervolume": float(np.mean([late for _, late in parts["nsga2"]])),
        "hypervolumes": [late for _, late in parts["nsga2"]],
        "hypervolume_at": {
            name: {few: float(np.mean([early for early, _ in pairs]))}
            for name, pairs in parts.items()
        },
    }


def add_commands(commands: Any) -> None:
    """Add this benchmark to the command line of ``benchmark.py``."""
    command = commands.add_parser("searchers", help=searchers.__doc__)
    command.add_argument("--space", required=True, choices=["toy_cell", "toy_conv_macro"])
    command.add_argument("--table", required=True, help="CSV file of true accuracies")
    command.add_argument("--seeds", type=int, default=20)
    command.add_argument("--evaluations", type=int, default=300)
    command.add_argument("--front-seeds", type=int, default=10, help="0 for no fronts")
    command.add_argument("--front-evaluations", type=int, default=2000)
    command.add_argument("--workdir", default="runs/searchers", help="where the figure goes")
    command.set_defaults(run=searchers)
