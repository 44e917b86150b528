"""TangleNAS's toy cell space on Fashion-MNIST (section 4.1), judged by the true accuracies.

    python launch/search.py --config configs/toy_cell.py --workdir DIR --config.data.name=idx:FOLDER
    python launch/search.py --config configs/toy_cell.py:small --workdir DIR ... \
        --config.oracle.path=toy_cell_fashion_mnist.csv

``FOLDER`` holds Fashion-MNIST's four idx files (docs/data.md); the table is optional
(docs/oracle.md). ``full`` is the paper's setting for DrNAS, 100 epochs; the others' epochs are
DARTS 50, GDAS and SPOS 250, and SPOS ends at a rate of 0.01. ``small`` searches at 16 channels for
4 epochs of 15,000 images, the alphas from the second on, and trains nothing afterwards. The
plain-weight-sharing baseline is ``--config.space.sharing=plain``, TangleNAS's own form of
entanglement ``--config.space.group_mass=inside``.

Published: TangleNAS 91.30 (mean true accuracy of the found networks), DrNAS with plain weight
sharing 91.19, SPOS with random search 90.68; the best architecture has 91.63, the mean is 90.02.
Measured by us, ``small`` on two CPU cores, 6 to 12 minutes each, five seeds: entangled 90.60 (90.32
to 90.97), plain 90.59 (90.14 to 90.89); see docs/papers/tanglenas.md. The paper's settings not yet.
"""

from ml_collections import ConfigDict

from nasjax import recipes


def get_config(size: str = "full") -> ConfigDict:
    """Search and retrain; ``size`` is "full" or "small"."""
    small = recipes.choose(size, {"full": False, "small": True})
    # As the table's networks were trained: no augmentation, a constant rate.
    retrain = recipes.retraining(
        epochs=200,
        batch_size=256,
        optimizer={**recipes.SGD, "learning_rate": 0.01, "cosine": False, "clip": None},
    )
    search = recipes.cell_search(epochs=100, optimizer={"method": "nesterov"})
    config = recipes.searched_run(
        {
            "name": "toy_cell",
            "sharing": "entangled",
            "group_mass": "outside",
            "channels": 32,
            "dropout": 0.2,
        },
        {"name": "tfds:fashion_mnist"},
        search,
        retrain,
    )
    if small:
        config["space"]["channels"] = 16
        search["recipe"] |= {"epochs": 4.0, "batch_size": 32}
        search["alphas"]["learning_rate"] = 2e-2
        search["alphas_from_epoch"] = 1.0
        recipes.without_training(config, train_examples=30000)
    return ConfigDict(recipes.separate(config))
