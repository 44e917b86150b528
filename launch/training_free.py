"""A search without training (TF-TAS), from its section of a configuration."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import experiment
import jax
import numpy as np
import two_stage

from nasjax import data, search, spaces
from nasjax.core.errors import NasjaxError
from nasjax.search import History, Objective, Oracle, Problem, proxies
from nasjax.search.scoring import Scorer
from nasjax.train.rng import stream

_WITHOUT_IMAGES = ("dss", "dss_released", "params", "flops")


@dataclasses.dataclass(frozen=True)
class Proxying:
    """``config.search.proxy``: by what untrained networks are scored.

    Attributes:
      name: of the proxy; empty for another kind of search.
      batch_size: training images that it sees.
      chunk: architectures at once on a device; 0 for what suits it.
      top: how many of the best are written to top.json.
    """

    name: str = ""
    batch_size: int = 64
    chunk: int = 0
    top: int = 10

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.top < 1 or self.chunk < 0:
            raise NasjaxError(
                f"config.search.proxy has batch_size={self.batch_size}, top={self.top} and "
                f"chunk={self.chunk}; 1 or more, and a chunk from 0, were expected."
            )


def is_wanted(settings: Mapping[str, Any]) -> bool:
    """Whether ``config.search`` scores untrained networks."""
    return bool((settings.get("proxy") or {}).get("name"))


def search_untrained(run: experiment.Experiment, oracle: Oracle | None) -> dict[str, Any]:
    """The architecture that the proxy likes best.

    Writes history.jsonl as it goes, and top.json: the best, with their costs.

    Args:
      run: the experiment.
      oracle: judges the best so far, which no searcher sees.
    """
    settings = run.config["search"]
    if two_stage.is_wanted(settings):
        raise NasjaxError(
            "config.search names a sampler, which trains, and a proxy, which does not; leave "
            "config.search.sampler.kind or config.search.proxy.name empty."
        )
    given, chosen = proxying(settings), two_stage.searching(settings)
    wanted = make_problem(run, given)
    scorer = make_scorer(run, {given.name: proxies.proxy(given.name)}, given)
    identity = {
        **wanted.describe(),
        **dataclasses.asdict(chosen),
        "proxy": dataclasses.asdict(given),
        "seed": run.session.seed,
    }
    history = History(run.supernet.space, run.session.workdir / "history.jsonl", identity)
    searcher = chosen.make(wanted, run.session.key("searcher"))
    try:
        search.run(
            wanted, searcher, scorer.population, chosen.evaluations, history, progress=given.name
        )
    finally:  # of a search that is stopped too
        _write_top(run, given, history)
    two_stage.write_curve(run, wanted, history, oracle)
    return search.best(wanted, history).arch


def proxying(settings: Mapping[str, Any]) -> Proxying:
    """By what is scored, as ``config.search.proxy`` says."""
    return experiment.build(Proxying, settings.get("proxy") or {}, "search.proxy")


def make_problem(run: experiment.Experiment, given: Proxying) -> Problem:
    """The largest score within ``config.search.constraints``."""
    kept = two_stage.limits(run.config["search"].get("constraints"), "constraints")
    objective = Objective(given.name, maximize=True, unit="untrained")
    return search.problem(run.supernet, [objective], kept)


def make_scorer(
    run: experiment.Experiment,
    wanted: Mapping[str, proxies.Proxy],
    given: Proxying,
    seed: int = 0,
) -> Scorer:
    """What scores architectures at initial parameters, drawn from the run's seed and ``seed``."""
    key = jax.random.fold_in(run.session.key("proxy"), seed)
    supernet, space = run.supernet, run.config["space"]
    # Scores are float32, whatever the training is.
    plain = {n: v for n, v in {"dtype": None, "attention_backend": "xla"}.items() if n in space}
    if plain:
        supernet = spaces.make(**{**space, **plain})
    variables = supernet.init(stream(key, "init"))
    batch = {}
    if not set(wanted) <= set(_WITHOUT_IMAGES):
        batch = training_batch(run, given.batch_size, stream(key, "batch"))
    mesh, chunk = run.session.mesh, given.chunk or None
    return Scorer(supernet, variables, wanted, batch, mesh, chunk)


def training_batch(run: experiment.Experiment, size: int, key: jax.Array) -> dict[str, Any]:
    """``size`` random training images without augmentation, as networks get them, and labels."""
    dataset, side = run.dataset, run.recipe("search").augmentation.size
    if size > len(dataset.train):
        raise NasjaxError(
            f"config.search.proxy.batch_size is {size}, but there are {len(dataset.train)} "
            "training images; take fewer."
        )
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    part = dataset.train.take(np.sort(rng.choice(len(dataset.train), size, replace=False)))
    side = side or dataset.image_shape[0]
    options = [side] if isinstance(part, data.RecordSource) else []
    (batch,) = data.evaluation_batches(part, size, None, *options)
    images = batch["image"] if options else data.resize(batch["image"], side)
    images = data.normalize(images, dataset.mean, dataset.std)
    found = {"image": np.asarray(images), "label": np.asarray(batch["label"])}
    if found["image"].shape[1:] != tuple(run.supernet.input_shape):
        raise NasjaxError(
            f"dataset {dataset.name!r} gives images of {found['image'].shape[1:]}, but space "
            f"{run.supernet.space.name!r} is built for {run.supernet.input_shape}; set "
            "space.image_size and space.channels."
        )
    return found


def _write_top(run: experiment.Experiment, given: Proxying, history: History) -> None:
    entries = sorted(history, key=lambda e: (-e.values[given.name], e.values["params"]))
    rows = [{"architecture": e.arch, **e.values} for e in entries[: given.top]]
    content = {"space": run.supernet.space.name, "proxy": given.name, "architectures": rows}
    if rows:
        run.session.write_json("top.json", content)


def random_networks(run: experiment.Experiment, count: int) -> Sequence[dict[str, Any]]:
    """Random architectures within the limits of the search, to compare what it found with."""
    problem = make_problem(run, proxying(run.config["search"]))
    key = stream(run.session.key("compare"), "samples")
    return [problem.draw(jax.random.fold_in(key, i)) for i in range(count)]


if __name__ == "__main__":
    sys.exit("training_free.py only helps the launchers; run search.py with a proxy.")
