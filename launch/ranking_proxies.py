"""How well proxies rank networks: scores of untrained networks beside their true accuracies."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import training_free
import two_stage
from experiment import Experiment, read_weights
from tqdm import tqdm

from nasjax import report
from nasjax.core import architecture
from nasjax.core.errors import NasjaxError
from nasjax.search import History, Oracle, proxies
from nasjax.search.ranking import ranking_study
from nasjax.train.alone import Alone
from nasjax.train.errors import Stopped
from nasjax.train.evaluate import Evaluator
from nasjax.train.interrupt import Interrupt
from nasjax.train.probes import held_out

Archs = Sequence[Mapping[str, Any]]


def study(run: Experiment, oracle: Oracle | None) -> dict[str, Any]:
    """Rank correlations of proxies with accuracies, and of the parameter count beside them.

    The accuracies are those of the table, if there is one, or else of networks trained alone by
    ``config.retrain``; and with inherited weights where the job names some. Writes ranking.json,
    ranking.txt and ranking.svg.
    """
    job, supernet = run.config["ranking"], run.supernet
    bands = [_band(text) for text in job["bands"]]
    made = {name: proxies.proxy(name) for name in job["proxies"]}
    archs = _distinct(run, job["networks"])
    params = [supernet.count("params", arch) for arch in archs]
    given = training_free.proxying(run.config["search"])
    drawn = [
        training_free.make_scorer(run, made, given, seed).scores(archs)
        for seed in range(job["seeds"])
    ]
    scores = {name: [values[name] for values in drawn] for name in made}
    truth: dict[str, Any] = {}
    if job["weights"]:
        truth["inherited"] = _inherited(run, archs)
    if oracle is not None:
        truth["table"] = [oracle.accuracy(arch) for arch in archs]
    elif not truth:
        truth["trained alone"] = _alone(run, archs, job["seeds"])
    rows = ranking_study(scores, truth, params, bands, seed=run.session.seed)
    networks = [
        {
            "architecture": arch,
            "params": params[i],
            "scores": {name: [seed[i] for seed in values] for name, values in scores.items()},
            "truth": {n: np.atleast_2d(values)[:, i].tolist() for n, values in truth.items()},
        }
        for i, arch in enumerate(archs)
    ]
    found = {"space": supernet.space.name, "networks": len(archs), "seeds": job["seeds"]}
    run.session.write_json("ranking.json", {**found, "rows": rows, "per_network": networks})
    if jax.process_index() == 0:
        table = report.format_ranking(rows)
        (run.session.workdir / "ranking.txt").write_text(table + "\n")
        (run.session.workdir / "ranking.svg").write_text(report.ranking_plot(rows, networks))
        print(f"\n{table}\n\nFigure: {run.session.workdir / 'ranking.svg'}")
    return {**found, "rows": rows}


def _distinct(run: Experiment, count: int) -> list[dict[str, Any]]:
    """Random architectures within the limits of the search, none of them twice."""
    problem = training_free.make_problem(run, training_free.proxying(run.config["search"]))
    key, found = run.session.key("ranking"), {}
    for i in range(100 * count):
        arch = problem.draw(jax.random.fold_in(key, i))
        found.setdefault(architecture.code(problem.space, arch), arch)
        if len(found) == count:
            break
    return list(found.values())


def _inherited(run: Experiment, archs: Archs) -> list[float]:
    source = run.config["ranking"]["weights"]
    weights = read_weights(run.supernet, source, run.session.mesh)
    seed = two_stage.trained_seed(run, source)
    unseen = held_out(run.dataset, two_stage.fraction(run), seed)
    size = run.recipe("search").augmentation.size
    evaluator = Evaluator(run.session, unseen, run.config["compare"]["batch_size"], size)
    return evaluator.architectures(run.supernet, weights, list(archs))


def _alone(run: Experiment, archs: Archs, seeds: int) -> list[list[float]]:
    """Accuracies trained alone, seed by seed; each is written down as soon as it is known."""
    trainer = Alone(run.supernet, run.dataset, run.recipe("retrain"))
    identity = {n: run.config[n] for n in ("space", "data", "retrain", "seed")}
    found = []
    bar = tqdm(total=seeds * len(archs), desc="alone", unit="network", dynamic_ncols=True)
    with Interrupt().watch() as interrupt, bar:
        for seed in range(seeds):
            path = run.session.workdir / f"alone_{seed}.jsonl"
            history = History(run.supernet.space, path, {**identity, "training": seed})
            for arch in archs:
                if history.get(arch) is None:
                    # Of the architecture, so that more networks leave these as they are.
                    code = architecture.code(run.supernet.space, arch)
                    key = jax.random.fold_in(run.session.key("alone"), seed)
                    for gene in code:
                        key = jax.random.fold_in(key, gene + 1)
                    history.add(arch, {"accuracy": trainer.accuracy(arch, key)})
                bar.update(1)
                stop = interrupt.stops()
                if stop is not None:
                    raise Stopped(
                        f"{stop}: stopped after {bar.n} of {bar.total} trainings, all "
                        "of them saved; run the same command again to continue."
                    )
            found.append([(history.get(arch) or {})["accuracy"] for arch in archs])
    return found


def _band(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split("-"))
    except ValueError:
        raise NasjaxError(
            f"--bands has {text!r}; LEAST-MOST parameters were expected, e.g. 5e6-7e6."
        ) from None
    return low, high


if __name__ == "__main__":
    sys.exit("ranking_proxies.py only helps the launchers; run evaluate.py ranking --proxies.")
