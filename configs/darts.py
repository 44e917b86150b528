"""The DARTS space on CIFAR-10 with entangled convolutions (TangleNAS section 4.2).

    python launch/search.py --config configs/darts.py --workdir DIR
    python launch/search.py --config configs/darts.py:small --workdir DIR \
        --config.data.name=npz:cifar10.npz
    python launch/train.py --config configs/darts.py --workdir DIR2 --arch DARTS_V2

``full`` is TangleNAS's setting for DrNAS, 50 epochs at 16 channels and 8 cells. The others end at
``--config.search.recipe.optimizer.final_rate=0.001``, and GDAS and SPOS have
``--config.search.recipe.epochs=250 --config.search.recipe.batch_size=256``. ``small`` searches
4 cells of 4 channels on 2,000 images and trains nothing afterwards. The plain-weight-sharing
baseline is ``--config.space.sharing=plain``, TangleNAS's own form of entanglement
``--config.space.group_mass=inside``.

PC-DARTS: ``--config.space.partial_channels=4 --config.search.relaxation.name=darts
--config.search.edge_weights=True --config.search.alphas_from_epoch=15``. ``progressive``
searches 36 channels and 20 cells in DrNAS's two stages (docs/relaxations.md).

Retraining is DARTS's protocol: 36 channels, 20 cells, 600 epochs, SGD 0.025 to 0, decay 3e-4,
batch 96, cutout of 16 pixels, dropped paths up to 0.2, an auxiliary head of weight 0.4.
Measured by us: not yet run.
"""

from ml_collections import ConfigDict

from nasjax import recipes


def get_config(size: str = "full") -> ConfigDict:
    """Search and retrain; ``size`` is "full", "small" or "progressive"."""
    small = recipes.choose(size, {"full": False, "small": True, "progressive": False})
    crop = {"shift": 4, "flip": True}
    search = recipes.cell_search(
        epochs=4 if small else 50, optimizer={"final_rate": 0.0}, augmentation=crop
    )
    retrain = recipes.retraining(
        epochs=600,
        batch_size=96,
        optimizer={**recipes.SGD, "final_rate": 0.0, "weight_decay": 3e-4},
        augmentation={**crop, "cutout": 16},
        auxiliary=0.4,
    )
    config = recipes.searched_run(
        {
            "name": "darts",
            "sharing": "entangled",
            "group_mass": "outside",
            "channels": 16,
            "cells": 8,
            "partial_channels": 1,
        },
        {"name": "tfds:cifar10"},
        search,
        retrain,
        finetune={**retrain, "epochs": 50.0, "auxiliary": 0.0},
    )
    if size == "progressive":
        config["space"] |= {"cells": 20, "channels": 36, "partial_channels": 4}
        search["leave_out"] = ("none",)
        search["stages"] = (
            {"epochs": 25.0, "partial_channels": 6, "alphas_from_epoch": 10.0},
            {"epochs": 25.0, "partial_channels": 4, "alphas_from_epoch": 10.0, "keep": 4},
        )
    if small:
        config["space"] |= {"cells": 4, "channels": 4}
        search["alphas"]["learning_rate"] = 3e-3
        recipes.without_training(config, train_examples=2000)
    return ConfigDict(recipes.separate(config))
