"""Train one architecture as a network of its own.

    python launch/train.py --config configs/quickstart.py --workdir runs/retrained \
        --arch runs/quickstart/arch.json --init scratch
    python launch/train.py --config configs/quickstart.py --workdir runs/tuned \
        --arch runs/quickstart/arch.json --init inherit --weights runs/quickstart

From scratch it follows the configuration's section ``retrain``, with inherited weights
``finetune``. Writes network.json, metrics.jsonl and checkpoints; continues when started again.
"""

from __future__ import annotations

import json
from typing import Any

from absl import flags
from experiment import announce, open_experiment, plain, read_arch, read_weights
from ml_collections import config_flags
from process import launch

from nasjax.core.errors import NasjaxError
from nasjax.train import phases
from nasjax.train import state as states
from nasjax.train.evaluate import Evaluator

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration of the run.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run reads and writes.")
ARCH = flags.DEFINE_string(
    "arch", None, "An arch.json, a published name, a genotype, largest or smallest."
)
INIT = flags.DEFINE_enum("init", "scratch", ["scratch", "inherit"], "Where weights start.")
WEIGHTS = flags.DEFINE_string(
    "weights", None, "For --init inherit: a search's --workdir, or a file of weights."
)
TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "Whether to write TensorBoard events too.")
PROFILE = flags.DEFINE_integer("profile", 0, "Steps of each phase to trace.", lower_bound=0)


def main(argv: list[str]) -> None:
    """Train and evaluate."""
    del argv
    if (INIT.value == "inherit") != (WEIGHTS.value is not None):
        raise NasjaxError("--weights belongs to --init inherit, which needs it; give both or none.")
    job = {"arch": ARCH.value, "init": INIT.value, "weights": WEIGHTS.value}
    run = open_experiment(
        {**plain(CONFIG.value), "train": job},
        WORKDIR.value,
        tensorboard=TENSORBOARD.value,
        profile=PROFILE.value,
    )
    recipe = run.recipe("finetune" if INIT.value == "inherit" else "retrain")
    announce(run, recipe.batch_size)
    phases.check_images(run.supernet, run.dataset, recipe.augmentation)
    arch = read_arch(run.supernet, ARCH.value)
    start: Any = None
    module = run.supernet.from_scratch(arch)
    if WEIGHTS.value is not None:
        weights = read_weights(run.supernet, WEIGHTS.value, run.session.mesh)
        start = run.supernet.extract({"params": weights}, arch)["params"]
        module = run.supernet.network(arch)
    state = phases.train(
        run.session, "train", module, run.dataset, recipe, start, architecture=arch
    )
    evaluator = Evaluator(
        run.session, run.dataset, run.config["compare"]["batch_size"], recipe.augmentation.size
    )
    result = {
        "space": run.supernet.space.name,
        "architecture": arch,
        **{c: run.supernet.count(c, arch) for c in ("params", *run.supernet.costs)},
        "init": INIT.value,
        "test_accuracy": evaluator.network(module, states.evaluated(state), state.statistics),
    }
    run.session.write_json("network.json", result)
    print(json.dumps(result))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir", "arch"])
    launch(main)
