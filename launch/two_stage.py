"""The two stages of a search by sampling, from their sections of a configuration."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import experiment
import jax

from nasjax import data, sampling, search, spaces
from nasjax.core.errors import NasjaxError, did_you_mean
from nasjax.core.supernet import Supernet
from nasjax.search import History, Oracle, Problem
from nasjax.train import one_shot, teachers
from nasjax.train import state as states
from nasjax.train.evaluate import Evaluator
from nasjax.train.metrics import JsonlWriter
from nasjax.train.probes import Probes, held_out
from nasjax.train.sandwich import Sandwich


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """``config.search.evaluation``: how sub-networks are scored with inherited weights.

    Attributes:
      examples: images of those that train no weights, at most; 0 for all.
      batch_size: images at once.
      chunk: architectures at once; 0 for what suits the device.
    """

    examples: int = 0
    batch_size: int = 500
    chunk: int = 0


@dataclasses.dataclass(frozen=True)
class Searching:
    """``config.search.searcher``: who searches the trained super-network, and for how long.

    Attributes:
      name: of the searcher.
      population: architectures of a generation.
      evaluations: different architectures evaluated in all.
      evolution: further settings of evolution.
      predictor: further settings of evolution guided by a predictor.
    """

    name: str = "evolution"
    population: int = 50
    evaluations: int = 1000
    evolution: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    predictor: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def make(self, problem: Problem, key: jax.Array) -> search.Searcher:
        """The searcher of ``problem``."""
        if self.evaluations < 1:
            raise NasjaxError(
                f"config.search.searcher.evaluations is {self.evaluations}; 1 or more was expected."
            )
        own = {"evolution": self.evolution, "predictor": self.predictor}.get(self.name, {})
        return search.searcher(self.name, problem, key, population=self.population, **own)


# Settings of a search by gradient that sampling would have to ignore; those of alphas say nothing
# where there are none.
_BY_GRADIENT = ("leave_out", "stages", "edge_weights")


def is_wanted(settings: Mapping[str, Any]) -> bool:
    """Whether ``config.search`` trains by sampling."""
    return bool((settings.get("sampler") or {}).get("kind"))


def train(run: experiment.Experiment, weights: Any = None) -> Any:
    """The super-network's weights after its training by sampling, from ``weights`` if given."""
    settings = run.config["search"]
    check(run)
    sandwich, teacher = make_sandwich(run)
    state = one_shot.train_supernet(
        run.session,
        run.supernet,
        make_sampler(run.supernet, settings["sampler"]),
        run.dataset,
        run.recipe("search"),
        weights_fraction=fraction(run),
        others=sides(run),
        weights=weights,
        probes=make_probes(settings.get("probes")),
        sandwich=sandwich,
        teacher=teacher,
    )
    return states.evaluated(state)


def check(run: experiment.Experiment) -> None:
    """Refuse now, not after days of training, what could not be searched then."""
    settings = run.config["search"]
    idle = [name for name in _BY_GRADIENT if settings.get(name)]
    if (settings.get("budget") or {}).get("target"):
        idle.append("budget.target")
    if idle:
        raise NasjaxError(
            f"config.search.{idle[0]} = {settings.get(idle[0], 'set')!r} is for a search by "
            "gradient; a training by sampling takes config.search.sampler.limits and "
            "config.search.constraints, so leave it empty."
        )
    problem = make_problem(run.supernet, settings)
    searching(settings).make(problem, jax.random.key(0))
    problem.draw(jax.random.key(0))
    make_evaluator(run, run.dataset)


def search_trained(
    run: experiment.Experiment, oracle: Oracle | None, trained: Any, seed: int | None = None
) -> dict[str, Any]:
    """The best architecture of a trained super-network.

    Writes history.jsonl as it goes, and pareto.json and pareto.csv.

    Args:
      run: the experiment.
      oracle: judges the best so far, which no searcher sees.
      trained: weights of the super-network.
      seed: of the run that trained them, where it is another.
    """
    settings, others = run.config["search"], sides(run)
    wanted = make_problem(run.supernet, settings)
    given = experiment.build(Evaluation, settings.get("evaluation") or {}, "search.evaluation")
    seed = run.session.seed if seed is None else seed
    evaluator = make_evaluator(run, held_out(run.dataset, fraction(run), seed, given.examples))

    def evaluate(archs: Any) -> Any:
        for arch, accuracy in evaluator.population(run.supernet, trained, archs, others):
            yield arch, {"accuracy": accuracy}

    chosen = searching(settings)
    identity = {**wanted.describe(), **dataclasses.asdict(chosen), "seed": run.session.seed}
    path = run.session.workdir / "history.jsonl"
    history = History(run.supernet.space, path, identity)
    searcher = chosen.make(wanted, run.session.key("searcher"))
    try:
        search.run(wanted, searcher, evaluate, chosen.evaluations, history, progress=chosen.name)
    finally:  # of a search that is stopped too
        if jax.process_index() == 0 and len(history):
            search.write_front(run.session.workdir, wanted, search.pareto_front(wanted, history))
    write_curve(run, wanted, history, oracle)
    if isinstance(searcher, search.Guided):
        write_predictors(run, searcher.predictors(history))
    return search.best(wanted, history).arch


def fraction(run: experiment.Experiment) -> float:
    """The part of the training images that trains the weights."""
    return run.config["search"].get("weights_fraction", 0.5)


def make_evaluator(run: experiment.Experiment, dataset: data.Dataset) -> Evaluator:
    """What scores architectures on the test part of ``dataset``, as ``config.search`` says."""
    values = run.config["search"].get("evaluation") or {}
    given = experiment.build(Evaluation, values, "search.evaluation")
    size = run.recipe("search").augmentation.size
    return Evaluator(run.session, dataset, given.batch_size, size, given.chunk or None)


def trained_seed(run: experiment.Experiment, source: str) -> int:
    """The seed of the run ``source`` that trained a super-network: it says who saw which images.

    Raises:
      NasjaxError: if that run divided its images in another way, so that scores would be on
        images that trained the weights.
    """
    path = pathlib.Path(source) / "config.json"
    if not path.is_file():
        return run.session.seed
    theirs = json.loads(path.read_text())
    pairs = {
        "data": (theirs.get("data"), run.session.config.get("data")),
        "search.weights_fraction": (
            theirs.get("search", {}).get("weights_fraction", 0.5),
            fraction(run),
        ),
    }
    for name, (was, now) in pairs.items():
        if was != now:
            raise NasjaxError(
                f"the super-network of {source} was trained with {name} = {was!r}, but it is "
                f"{now!r} here: the images to score on would have trained it; use the same."
            )
    return int(theirs["seed"])


def sides(run: experiment.Experiment) -> list[Supernet]:
    """The super-networks whose logits are added in training: other ends of the same weights."""
    named = run.config["search"].get("sides") or ()
    return [spaces.make(**{**run.config["space"], "side": side}) for side in named]


def make_sampler(supernet: Supernet, values: Mapping[str, Any]) -> sampling.Sampler:
    """The sampler that ``config.search.sampler`` describes."""
    known = ("kind", "paths", "cost", "target", "limits")
    for name in values:
        if name not in known:
            raise NasjaxError(
                f"config.search.sampler has no key {name!r}; {did_you_mean(name, known)}"
            )
    given = {n: values[n] for n in ("cost", "target") if values["kind"] == "identity"}
    if values.get("paths"):
        given["paths"] = values["paths"]
    found = limits(values.get("limits"), "sampler.limits")
    return sampling.sampler(values["kind"], supernet, found, **given)


def make_sandwich(run: experiment.Experiment) -> tuple[Sandwich | None, teachers.Teacher | None]:
    """What ``config.search.sandwich`` describes, and its teacher; nothing for other samplers."""
    settings = run.config["search"]
    if settings["sampler"]["kind"] != sampling.SANDWICH:
        return None, None
    found = experiment.build(Sandwich, settings.get("sandwich") or {}, "search.sandwich")
    if not found.teacher:
        return found, None
    sizes = run.dataset.num_classes, len(run.dataset.train)
    logits = teachers.read_logits(found.teacher, *sizes)
    return found, teachers.stored_teacher(logits, factor=found.factor)


def limits(values: Mapping[str, Any] | None, section: str) -> dict[str, tuple[float, float]]:
    """Limits by cost; those of two zeros are left out, and a maximum of 0 is none."""
    found = {}
    for name, pair in (values or {}).items():
        low, high = search.limits(f"config.search.{section}.{name}", pair)
        if low or high:
            found[name] = (low, high or math.inf)
    return found


def make_probes(values: Mapping[str, Any] | None) -> Probes | None:
    """What is looked at while the super-network trains; nothing where ``every`` is 0."""
    if not values or not values.get("every"):
        return None
    return experiment.build(Probes, values, "search.probes")


def make_problem(supernet: Supernet, settings: Mapping[str, Any]) -> Problem:
    """The problem of ``config.search``."""
    objectives = settings.get("objectives") or ("accuracy",)
    objectives = (objectives,) if isinstance(objectives, str) else tuple(objectives)
    kept = limits(settings.get("constraints"), "constraints")
    costs: dict[str, Any] = {}
    if settings.get("latency"):
        predictor = read_predictor(supernet, settings["latency"])
        costs = {"latency": predictor, "throughput": predictor.throughput}
    elif {"latency", "throughput"} & {*objectives, *kept}:
        raise NasjaxError(
            "latency and throughput need a predictor in config.search.latency; make one with "
            "launch/benchmark.py latency."
        )
    drawn = make_sampler(supernet, settings["sampler"])
    return search.problem(supernet, objectives, kept, costs, drawn.sample)


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


def searching(settings: Mapping[str, Any]) -> Searching:
    """Who searches, as ``config.search.searcher`` says."""
    return experiment.build(Searching, settings.get("searcher") or {}, "search.searcher")


def write_curve(
    run: experiment.Experiment, problem: Problem, history: History, oracle: Oracle | None
) -> None:
    """Log the any-time curve: the best so far wherever it changes, over evaluations."""
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
        line = {"architecture": best[1].arch, **best[1].values, "seconds": entry.seconds}
        if oracle is not None:
            line["oracle"] = dict(oracle.score(best[1].arch))
        for writer in run.session.writers:
            writer.write("evaluations", number, line)


def write_predictors(
    run: experiment.Experiment, predictors: Mapping[str, search.AccuracyPredictor]
) -> None:
    """Log how well architectures held out were ranked, a line for each objective predicted."""
    for writer in run.session.writers:
        if isinstance(writer, JsonlWriter):
            writer.rewind("predictor", 0)
    for number, (name, predictor) in enumerate(predictors.items(), start=1):
        if predictor.held_out is not None:
            line = {"objective": name, **dataclasses.asdict(predictor.held_out)}
            for writer in run.session.writers:
                writer.write("predictor", number, line)


if __name__ == "__main__":
    sys.exit("two_stage.py only helps the launchers; run search.py with a sampler.")
