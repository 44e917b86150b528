"""NAS-Bench-201 on CIFAR-10 with entangled convolutions (TangleNAS section 4.2).

    python launch/search.py --config configs/nas_bench_201.py --workdir DIR
    python launch/search.py --config configs/nas_bench_201.py:small --workdir DIR \
        --config.data.name=npz:cifar10.npz

With a table of the benchmark's accuracies, a CSV file with a column ``arch`` of its strings
(docs/oracle.md): ``--config.oracle.path=TABLE.csv --config.oracle.accuracy=COLUMN``. ``full`` is
TangleNAS's setting for DrNAS, 100 epochs; for the others add
``--config.search.recipe.optimizer.method=nesterov
--config.search.recipe.optimizer.weight_decay=5e-4`` and their epochs, DARTS 50, GDAS and SPOS 250.
``small`` searches a network of one cell a stage on 5,000 images and trains nothing afterwards. The
plain-weight-sharing baseline is ``--config.space.sharing=plain``, TangleNAS's own form of
entanglement ``--config.space.group_mass=inside``.

Retraining is the benchmark's own recipe: 200 epochs, SGD 0.1 to 0, decay 5e-4, batch 256.
Measured by us: not yet run.
"""

from ml_collections import ConfigDict

from nasjax import recipes


def get_config(size: str = "full") -> ConfigDict:
    """Search and retrain; ``size`` is "full" or "small"."""
    small = recipes.choose(size, {"full": False, "small": True})
    crop = {"shift": 4, "flip": True}
    search = recipes.cell_search(
        epochs=8 if small else 100,
        optimizer={"weight_decay": 3e-4},
        augmentation=crop,
    )
    retrain = recipes.retraining(
        epochs=200,
        batch_size=256,
        optimizer={
            **recipes.SGD,
            "method": "nesterov",
            "learning_rate": 0.1,
            "final_rate": 0.0,
            "clip": None,
        },
        augmentation=crop,
    )
    config = recipes.searched_run(
        {
            "name": "nas_bench_201",
            "sharing": "entangled",
            "group_mass": "outside",
            "channels": 16,
            "cells": 5,
        },
        {"name": "tfds:cifar10"},
        search,
        retrain,
    )
    if small:
        config["space"] |= {"cells": 1, "channels": 8}
        search["alphas"]["learning_rate"] = 3e-3
        recipes.without_training(config, train_examples=5000)
    return ConfigDict(recipes.separate(config))
