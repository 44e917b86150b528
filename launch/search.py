"""Search a super-network, by gradient or in two stages, then compare the network it found.

    python launch/search.py --config configs/quickstart.py --workdir runs/quickstart

Writes arch.json, metrics.jsonl, result.json, report.html and checkpoints to the working
directory. Interrupted in any way, the same command continues where it was. The super-network's
weights are drawn anew, or are those that ``--weights`` names. Where ``config.search.sampler`` names
a sampler, the super-network is trained by sampling and then searched: history.jsonl has all that
was evaluated, pareto.json and pareto.csv what nothing beats. ``--trained`` searches a super-network
that was trained before once more, for another budget or by another searcher. Where
``config.search.proxy`` names a proxy, untrained networks are scored by it: history.jsonl has all
scores, top.json the best.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import training_free
import two_stage
from absl import flags
from experiment import (
    Experiment,
    alphas_optimizer,
    announce,
    budget,
    edge_weights,
    left_out,
    open_experiment,
    open_oracle,
    plain,
    read_weights,
    stages,
)
from ml_collections import config_flags
from process import launch

import nasjax
from nasjax import relax, report
from nasjax.core import architecture
from nasjax.core.errors import NasjaxError
from nasjax.search import Oracle
from nasjax.train import phases
from nasjax.train import state as states
from nasjax.train.evaluate import Evaluator
from nasjax.train.progressive import progressive_search
from nasjax.train.rng import stream

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration of the run.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run reads and writes.")
WEIGHTS = flags.DEFINE_string(
    "weights", None, "What the super-network begins with: a search's --workdir, or a file."
)
TRAINED = flags.DEFINE_string(
    "trained", None, "A search's --workdir, or a file: a super-network to search without training."
)
TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "Whether to write TensorBoard events too.")
PROFILE = flags.DEFINE_integer("profile", 0, "Steps of each phase to trace.", lower_bound=0)


def main(argv: list[str]) -> None:
    """Search, compare, report."""
    del argv
    values = plain(CONFIG.value)
    if WEIGHTS.value is not None:
        values["search"]["weights"] = WEIGHTS.value
    if TRAINED.value is not None:
        if WEIGHTS.value is not None or not two_stage.is_wanted(values["search"]):
            raise NasjaxError(
                "--trained is for a search in two stages (config.search.sampler), whose first one "
                "it replaces; a training that begins with given weights takes --weights alone."
            )
        values["search"]["trained"] = TRAINED.value
    run = open_experiment(
        values, WORKDIR.value, tensorboard=TENSORBOARD.value, profile=PROFILE.value
    )
    oracle = open_oracle(run)
    announce(run, run.recipe("search").batch_size)
    _write_result(run, [], [], {})
    weights, arch = search(run, oracle)
    rows, samples = compare(run, weights, arch)
    judged = {} if oracle is None else oracle.verdict(arch)
    _write_result(run, rows, samples, judged)
    if jax.process_index() == 0:
        print("\n" + report.format_table(rows))
        if judged:
            print("\n" + report.format_oracle(judged))
        print(f"\nReport: {report.write_report(run.session.workdir)}")


def search(run: Experiment, oracle: Oracle | None = None) -> tuple[Any, dict[str, Any]]:
    """The weights of the searched super-network and the architecture found, also in arch.json."""
    settings = run.config["search"]
    plan, weights = stages(run.config), None
    untrained = training_free.is_wanted(settings)
    if untrained and (WEIGHTS.value or TRAINED.value):
        raise NasjaxError(
            "a search by a proxy scores networks as they are drawn; leave --weights and --trained "
            "out, or config.search.proxy.name empty."
        )
    if WEIGHTS.value is not None:
        weights = read_weights(
            run.widened(plan[0].partial_channels), WEIGHTS.value, run.session.mesh
        )
    if TRAINED.value is not None:
        two_stage.check(run)
        weights = read_weights(run.supernet, TRAINED.value, run.session.mesh)
        seed = two_stage.trained_seed(run, TRAINED.value)
        arch = two_stage.search_trained(run, oracle, weights, seed)
    elif untrained:
        arch = training_free.search_untrained(run, oracle)
    elif two_stage.is_wanted(settings):
        weights = two_stage.train(run, weights)
        arch = two_stage.search_trained(run, oracle, weights)
    else:
        weights, arch = _by_gradient(run, oracle, weights)
    costs = {c: run.supernet.count(c, arch) for c in ("params", *run.supernet.costs)}
    name = run.supernet.space.name
    text = {} if run.supernet.to_text is None else {"genotype": run.supernet.to_text(arch)}
    run.session.write_json("arch.json", {"space": name, "architecture": arch, **text, **costs})
    return weights, arch


def _by_gradient(
    run: Experiment, oracle: Oracle | None, weights: Any
) -> tuple[Any, dict[str, Any]]:
    settings = run.config["search"]
    state, method, _ = progressive_search(
        run.session,
        run.widened,
        settings["relaxation"],
        run.dataset,
        run.recipe("search"),
        alphas_optimizer(settings.get("alphas", {})),
        stages(run.config),
        masks=left_out(run.supernet, settings),
        modify=edge_weights(run.supernet, settings),
        weights=weights,
        weights_fraction=settings.get("weights_fraction", 0.5),
        budget=budget(settings.get("budget")),
        second_order=settings.get("second_order", False),
        judge=None if oracle is None else oracle.score,
        probes=two_stage.make_probes(settings.get("probes")),
    )
    return states.evaluated(state), relax.decode(run.supernet.space, method, state.alphas)


def compare(
    run: Experiment, weights: Any, found: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of the table (GraViT-E Table 2) and random sub-networks of the super-network.

    Without ``weights`` nothing is inherited, and what is random keeps the limits of the search.
    """
    settings, trained = run.config["compare"], weights is not None
    evaluator = Evaluator(
        run.session, run.dataset, settings["batch_size"], run.recipe("search").augmentation.size
    )

    def inherited(arch: dict[str, Any]) -> float | None:
        return evaluator.architecture(run.supernet, weights, arch) if trained else None

    key = stream(run.session.key("compare"), "samples")
    space = run.supernet.space
    if trained:
        numbers = range(settings["samples"])
        drawn = [architecture.sample(space, jax.random.fold_in(key, i)) for i in numbers]
    else:
        drawn = list(training_free.random_networks(run, settings["retrain_random"]))
    samples = [{**_describe(run, arch), "accuracy": inherited(arch)} for arch in drawn]
    rows = [
        {
            "network": "found",
            **_describe(run, found),
            "inherited": inherited(found),
            "fine_tuned": _trained(run, evaluator, "finetune", found, weights)
            if trained and settings.get("finetune", True)
            else None,
            "retrained": _trained(run, evaluator, "retrain", found)
            if settings.get("retrain", True)
            else None,
        }
    ]
    if architecture.has_order(space):
        largest = architecture.largest(space)
        rows.append(
            {
                "network": "largest",
                **_describe(run, largest),
                "inherited": inherited(largest),
                "fine_tuned": None,
                "retrained": _trained(run, evaluator, "retrain/largest", largest)
                if settings["retrain_largest"]
                else None,
            }
        )
    retrained = [
        _trained(run, evaluator, f"retrain/random_{i}", arch)
        for i, arch in enumerate(drawn[: settings["retrain_random"]])
    ]
    if samples:
        rows.append(_mean_row(samples, retrained))
    return rows, [s for s in samples if s["accuracy"] is not None]


def _mean_row(samples: list[dict[str, Any]], retrained: list[float]) -> dict[str, Any]:
    few = f", {len(retrained)} retrained" if retrained else ""
    row = {
        "network": f"random (mean of {len(samples)}{few})",
        "architecture": None,
        **{c: float(np.mean([s[c] for s in samples])) for c in ("params", "flops")},
        "inherited": None,
        "fine_tuned": None,
        "retrained": None,
    }
    if all(s["accuracy"] is not None for s in samples):
        row["inherited"] = float(np.mean([s["accuracy"] for s in samples]))
        row["inherited_std"] = float(np.std([s["accuracy"] for s in samples]))
    if retrained:
        row["retrained"] = float(np.mean(retrained))
        row["retrained_std"] = float(np.std(retrained))
    return row


def _describe(run: Experiment, arch: dict[str, Any]) -> dict[str, Any]:
    costs = {c: run.supernet.count(c, arch) for c in ("params", "flops")}
    return {"architecture": arch, **costs}


def _trained(
    run: Experiment, evaluator: Evaluator, phase: str, arch: dict[str, Any], weights: Any = None
) -> float:
    """Test accuracy of ``arch`` trained as its own network, from inherited weights if given."""
    start, module = None, run.supernet.from_scratch(arch)
    if weights is not None:
        start = run.supernet.extract({"params": weights}, arch)["params"]
        module = run.supernet.network(arch)
    recipe = run.recipe("finetune" if weights is not None else "retrain")
    state = phases.train(run.session, phase, module, run.dataset, recipe, start, architecture=arch)
    accuracy = evaluator.network(module, states.evaluated(state), state.statistics)
    for writer in run.session.writers:
        writer.write(phase, int(state.step), {"test_accuracy": accuracy})
    return accuracy


def _write_result(
    run: Experiment, rows: list[Any], samples: list[Any], oracle: dict[str, Any]
) -> None:
    space = run.supernet.space
    choices = [{"name": c.name, "options": list(c.options), "per": c.per} for c in space.choices]
    run.session.write_json(
        "result.json",
        {
            "space": {
                "name": space.name,
                "choices": choices,
                "size": str(space.size),
                "nodes": run.supernet.nodes,
            },
            "rows": rows,
            "samples": samples,
            **({"oracle": oracle} if oracle else {}),
            "test_examples": len(run.dataset.test),
            "peak_device_bytes": (jax.local_devices()[0].memory_stats() or {}).get(
                "peak_bytes_in_use"
            ),
            "versions": {"nasjax": nasjax.__version__, "jax": jax.__version__},
            "device": jax.devices()[0].device_kind,
        },
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    launch(main)
