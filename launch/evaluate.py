"""Evaluate a super-network: one architecture with inherited weights, or how well it ranks them.

    python launch/evaluate.py --config configs/quickstart.py --weights runs/quickstart \
        --arch runs/quickstart/arch.json
    python launch/evaluate.py ranking --config configs/two_stage.py --weights runs/two_stage \
        --networks 20 --workdir runs/ranking

``--weights`` is the working directory of launch/search.py, or a file with the AutoFormer authors'
super-network (.pth, .safetensors). ``ranking`` draws random sub-networks, scores them with
inherited weights on training images that trained no weights, and compares the order with that of
their true accuracy: of the table that ``config.oracle`` names, or else on the test images after
training each alone by ``config.retrain``, in ``--workdir``, where it continues when started again.
With ``--proxies`` it compares the scores of untrained networks with the same accuracies, over
``--seeds`` and within ``--bands`` of parameters (TF-TAS, Tables 5 and 6):

    python launch/evaluate.py ranking --config configs/tf_tas.py:digits --networks 60 --seeds 3 \
        --proxies dss,dss_released,snip,grasp,naswot,ntk,linear_regions --workdir runs/proxies

Each prints one JSON line.
"""

from __future__ import annotations

import json
import tempfile
from typing import Any

import jax
import numpy as np
import ranking_proxies
import two_stage
from absl import flags
from experiment import Experiment, open_experiment, open_oracle, plain, read_arch, read_weights
from ml_collections import config_flags
from process import launch

from nasjax.core import architecture
from nasjax.core.errors import NasjaxError
from nasjax.search.ranking import rank_correlations
from nasjax.train import phases
from nasjax.train import state as states
from nasjax.train.evaluate import Evaluator
from nasjax.train.probes import held_out

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration of the run.", lock_config=True
)
WEIGHTS = flags.DEFINE_string("weights", None, "A search's --workdir, or a file of weights.")
ARCH = flags.DEFINE_string(
    "arch", None, "An arch.json, a published name, a genotype, largest or smallest."
)
NETWORKS = flags.DEFINE_integer("networks", 20, "For ranking: random sub-networks.", lower_bound=3)
WORKDIR = flags.DEFINE_string("workdir", None, "For ranking: where networks are trained.")

PROXIES = flags.DEFINE_list("proxies", [], "For ranking: proxies of untrained networks.")
SEEDS = flags.DEFINE_integer(
    "seeds", 3, "For ranking of proxies: draws of weights, and trainings.", lower_bound=1
)
BANDS = flags.DEFINE_list("bands", [], "For ranking of proxies: LEAST-MOST parameters, several.")


def main(argv: list[str]) -> None:
    """Evaluate and print."""
    ranked = argv[1:] == ["ranking"]
    if ranked == (ARCH.value is not None):
        raise NasjaxError("give either --arch, to evaluate it, or ranking, to compare many.")
    if ranked and WORKDIR.value is None:
        raise NasjaxError("ranking needs a --workdir, where it can continue.")
    if WEIGHTS.value is None and not PROXIES.value:
        raise NasjaxError("--weights is missing: what is evaluated, unless --proxies are ranked.")
    if ranked:
        job = {"weights": WEIGHTS.value, "networks": NETWORKS.value}
        if PROXIES.value:
            job |= {"proxies": PROXIES.value, "seeds": SEEDS.value, "bands": BANDS.value}
        values = {**plain(CONFIG.value), "ranking": job}
        if PROXIES.value:
            run = open_experiment(values, WORKDIR.value)
            print(json.dumps(ranking_proxies.study(run, open_oracle(run))))
            return
        print(json.dumps(ranking(open_experiment(values, WORKDIR.value))))
        return
    with tempfile.TemporaryDirectory() as scratch:  # nothing is kept of an evaluation
        print(json.dumps(evaluate(open_experiment(CONFIG.value, scratch))))


def evaluate(run: Experiment) -> dict[str, Any]:
    """Test accuracy of one architecture with inherited weights, and its costs."""
    augmentation = run.recipe("search").augmentation
    phases.check_images(run.supernet, run.dataset, augmentation)
    arch = read_arch(run.supernet, ARCH.value)
    weights = read_weights(run.supernet, WEIGHTS.value, run.session.mesh)
    batch_size = run.config["compare"]["batch_size"]
    evaluator = Evaluator(run.session, run.dataset, batch_size, augmentation.size)
    return {
        "space": run.supernet.space.name,
        "architecture": arch,
        **{c: run.supernet.count(c, arch) for c in ("params", *run.supernet.costs)},
        "test_accuracy": evaluator.architecture(run.supernet, weights, arch),
        "test_examples": len(run.dataset.test),
    }


def ranking(run: Experiment) -> dict[str, Any]:
    """Rank correlations between the super-network's scores and true accuracies."""
    supernet, batch_size = run.supernet, run.config["compare"]["batch_size"]
    size = run.recipe("search").augmentation.size
    weights = read_weights(supernet, WEIGHTS.value, run.session.mesh)
    oracle = open_oracle(run)
    archs = _distinct(run, NETWORKS.value)
    seed = two_stage.trained_seed(run, WEIGHTS.value)
    unseen = held_out(run.dataset, two_stage.fraction(run), seed)
    scores = Evaluator(run.session, unseen, batch_size, size).architectures(
        supernet, weights, archs
    )
    if oracle is not None:
        truth = [oracle.accuracy(arch) for arch in archs]
    else:
        truth = []
        evaluator = Evaluator(run.session, run.dataset, batch_size, size)
        for i, arch in enumerate(archs):
            module = supernet.from_scratch(arch)
            phase = f"ranking/network_{i}"
            recipe = run.recipe("retrain")
            state = phases.train(run.session, phase, module, run.dataset, recipe, architecture=arch)
            truth.append(evaluator.network(module, states.evaluated(state), state.statistics))
    found = {
        "space": supernet.space.name,
        "networks": len(archs),
        **rank_correlations(scores, truth),
        "truth": "table" if oracle is not None else "trained alone",
        "mean_score": float(np.mean(scores)),
        "mean_truth": float(np.mean(truth)),
    }
    rows = [
        {"architecture": arch, "score": score, "truth": true}
        for arch, score, true in zip(archs, scores, truth, strict=True)
    ]
    run.session.write_json("ranking.json", {**found, "rows": rows})
    return found


def _distinct(run: Experiment, count: int) -> list[dict[str, Any]]:
    """Random architectures, none of them twice; fewer in a space that has fewer."""
    space, key = run.supernet.space, run.session.key("ranking")
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    for i in range(100 * count):
        arch = architecture.sample(space, jax.random.fold_in(key, i))
        found.setdefault(architecture.code(space, arch), arch)
        if len(found) == count:
            break
    return list(found.values())


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch(main, commands=("ranking",))
