"""Evaluate an architecture with weights inherited from a super-network.

    python launch/evaluate.py --config configs/quickstart.py --weights runs/quickstart \
        --arch runs/quickstart/arch.json

``--weights`` is the working directory of launch/search.py, or a file with the AutoFormer authors'
super-network (.pth, .safetensors). Prints one JSON line.
"""

from __future__ import annotations

import json
import tempfile

from absl import flags
from experiment import launch, open_experiment, read_arch, read_weights
from ml_collections import config_flags

from nasjax.train import phases
from nasjax.train.evaluate import Evaluator

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration of the run.", lock_config=True
)
WEIGHTS = flags.DEFINE_string("weights", None, "A search's --workdir, or a file of weights.")
ARCH = flags.DEFINE_string(
    "arch", None, "An arch.json, a published name, a genotype, largest or smallest."
)


def main(argv: list[str]) -> None:
    """Evaluate and print."""
    del argv
    with tempfile.TemporaryDirectory() as scratch:  # nothing is kept of an evaluation
        run = open_experiment(CONFIG.value, scratch)
        augmentation = run.recipe("search").augmentation
        phases.check_images(run.supernet, run.dataset, augmentation)
        arch = read_arch(run.supernet, ARCH.value)
        weights = read_weights(run.supernet, WEIGHTS.value)
        evaluator = Evaluator(
            run.session, run.dataset, run.config["compare"]["batch_size"], augmentation.size
        )
        result = {
            "space": run.supernet.space.name,
            "architecture": arch,
            **{c: run.supernet.count(c, arch) for c in ("params", *run.supernet.costs)},
            "test_accuracy": evaluator.architecture(run.supernet, weights, arch),
            "test_examples": len(run.dataset.test),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "weights", "arch"])
    launch(main)
