"""The two stages of a search by sampling, from their sections of a configuration."""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import experiment
import jax

from nasjax import report, sampling, search, spaces
from nasjax.core.errors import NasjaxError
from nasjax.core.supernet import Supernet
from nasjax.search import History, Oracle, Problem
from nasjax.train import one_shot
from nasjax.train import state as states
from nasjax.train.evaluate import Evaluator
from nasjax.train.metrics import JsonlWriter
from nasjax.train.probes import Probes, held_out


def is_wanted(settings: Mapping[str, Any]) -> bool:
    """Whether ``config.search`` trains by sampling."""
    return bool((settings.get("sampler") or {}).get("kind"))


def train(run: experiment.Experiment, weights: Any = None) -> Any:
    """The super-network's weights after its training by sampling, from ``weights`` if given."""
    settings = run.config["search"]
    # What could not be searched later is refused now, not after days of training.
    make_searcher(make_problem(run.supernet, settings), settings["searcher"], jax.random.key(0))
    state = one_shot.train_supernet(
        run.session,
        run.supernet,
        make_sampler(run.supernet, settings["sampler"]),
        run.dataset,
        run.recipe("search"),
        weights_fraction=settings["weights_fraction"],
        others=sides(run),
        weights=weights,
        probes=make_probes(settings.get("probes")),
    )
    return states.evaluated(state)


def search_trained(
    run: experiment.Experiment, oracle: Oracle | None, trained: Any
) -> dict[str, Any]:
    """The best architecture of a trained super-network.

    Writes history.jsonl as it goes, and pareto.json and pareto.csv.

    Args:
      run: the experiment.
      oracle: judges the best so far, which no searcher sees.
      trained: weights of the super-network.
    """
    settings, others = run.config["search"], sides(run)
    fraction = settings["weights_fraction"]
    wanted = make_problem(run.supernet, settings)
    given = dict(settings.get("evaluation") or {})
    unseen = held_out(run.session, run.dataset, fraction, given.get("examples", 0))
    evaluator = Evaluator(
        run.session,
        unseen,
        given.get("batch_size", 500),
        run.recipe("search").augmentation.size,
        given.get("chunk") or None,
    )

    def evaluate(archs: Any) -> Any:
        for arch, accuracy in evaluator.population(run.supernet, trained, archs, others):
            yield arch, {"accuracy": accuracy}

    chosen = dict(settings["searcher"])
    history = History(
        run.supernet.space,
        run.session.workdir / "history.jsonl",
        {**wanted.describe(), "searcher": chosen, "seed": run.session.seed},
    )
    began = time.perf_counter()
    search.run(
        wanted,
        make_searcher(wanted, chosen, run.session.key("searcher")),
        evaluate,
        chosen["evaluations"],
        history,
        progress=chosen["name"],
    )
    lines = report.Run.load(run.session.workdir).lines("evaluations")
    if not lines or lines[-1]["step"] != len(history):
        write_curve(run, wanted, history, oracle, time.perf_counter() - began)
    if jax.process_index() == 0:
        search.write_front(run.session.workdir, wanted, search.pareto_front(wanted, history))
    return search.best(wanted, history).arch


def sides(run: experiment.Experiment) -> list[Supernet]:
    """The super-networks whose logits are added in training: other ends of the same weights."""
    named = run.config["search"].get("sides") or ()
    return [spaces.make(**{**run.config["space"], "side": side}) for side in named]


def make_sampler(supernet: Supernet, values: Mapping[str, Any]) -> sampling.Sampler:
    """The sampler that ``config.search.sampler`` describes."""
    given = {n: v for n, v in values.items() if v is not None}
    return sampling.sampler(given.pop("kind"), supernet, given.pop("limits", None), **given)


def make_probes(values: Mapping[str, Any] | None) -> Probes | None:
    """What is looked at while the super-network trains; nothing where ``every`` is 0."""
    if not values or not values.get("every"):
        return None
    return experiment.build(Probes, values, "search.probes")


def make_problem(supernet: Supernet, settings: Mapping[str, Any]) -> Problem:
    """The problem of ``config.search``; constraints with a maximum of 0 are left out."""
    objectives = settings.get("objectives") or ("accuracy",)
    objectives = (objectives,) if isinstance(objectives, str) else tuple(objectives)
    limits = {n: v for n, v in (settings.get("constraints") or {}).items() if v and v[1]}
    costs: dict[str, Any] = {}
    if settings.get("latency"):
        predictor = read_predictor(supernet, settings["latency"])
        costs = {"latency": predictor, "throughput": predictor.throughput}
    elif {"latency", "throughput"} & {*objectives, *limits}:
        raise NasjaxError(
            "latency and throughput need a predictor in config.search.latency; make one with "
            "launch/benchmark.py latency."
        )
    drawn = make_sampler(supernet, settings["sampler"])
    return search.problem(supernet, objectives, limits, costs, drawn.sample)


def read_predictor(supernet: Supernet, path: str) -> Any:
    """The latency predictor in a file that launch/benchmark.py latency wrote."""
    try:
        content = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise NasjaxError(
            f"config.search.latency = {path!r} cannot be read ({error}); give the latency.json of "
            "launch/benchmark.py latency."
        ) from None
    return search.LatencyPredictor.from_json(supernet, content)


def make_searcher(problem: Problem, values: Mapping[str, Any], key: jax.Array) -> search.Searcher:
    """The searcher that ``config.search.searcher`` describes."""
    name = values["name"]
    own = values.get(name) or {}
    return search.searcher(name, problem, key, population=values["population"], **own)


def write_curve(
    run: experiment.Experiment,
    problem: Problem,
    history: History,
    oracle: Oracle | None,
    seconds: float,
) -> None:
    """Log the any-time curve: the best so far wherever it changes, over evaluations.

    ``seconds`` is what all of them took, of a search that was continued its last part.
    """
    first = problem.objectives[0]
    for writer in run.session.writers:
        if isinstance(writer, JsonlWriter):
            writer.rewind("evaluations", 0)
    best = None
    entries = list(history)
    for number, entry in enumerate(entries, start=1):
        value = first.sign * entry.values[first.name]
        if best is not None and value >= best[0] and number < len(entries):
            continue
        if best is None or value < best[0]:
            best = value, entry
        spent = seconds * number / len(entries)
        line = {"architecture": best[1].arch, **best[1].values, "seconds": spent}
        if oracle is not None:
            line["oracle"] = dict(oracle.score(best[1].arch))
        for writer in run.session.writers:
            writer.write("evaluations", number, line)


if __name__ == "__main__":
    sys.exit("two_stage.py only helps the launchers; run search.py with a sampler.")
