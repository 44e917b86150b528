"""TangleNAS's toy macro space on CIFAR-10 (section 4.1), judged by the true accuracies.

    python launch/search.py --config configs/toy_conv_macro.py --workdir DIR
    python launch/search.py --config configs/toy_conv_macro.py:small --workdir DIR \
        --config.data.name=npz:cifar10.npz --config.oracle.path=toy_conv_macro_cifar10.csv

The table is optional (docs/oracle.md). ``full`` is the paper's setting for DrNAS, 100 epochs; the
others' epochs are DARTS 50, GDAS and SPOS 250, and SPOS begins at a rate of 1e-3. ``small``
searches by DARTS for 3.5 epochs of 10,000 images of 16 pixels, the alphas from 1.25 on, without
dropout and with larger initial kernels, and trains nothing afterwards. The plain-weight-sharing
baseline is ``--config.space.sharing=plain``.

Published: TangleNAS 82.50 (mean true accuracy of the found networks), SPOS with random search
81.25, with evolution 81.89; the best architecture has 84.41, the mean is 77.90.
Measured by us, ``small`` on two CPU cores, five seeds: entangled 81.91 (80.86 to 82.89), plain
80.41 (78.66 to 82.01); entangled for 6 epochs, with five other seeds, 82.15 (81.41 to 83.79); the
best of 10 at random has 81.79. A run takes about 10 minutes entangled, 30 plain; see
docs/papers/tanglenas.md. The paper's settings not yet.
"""

from ml_collections import ConfigDict

from nasjax import recipes


def get_config(size: str = "full") -> ConfigDict:
    """Search and retrain; ``size`` is "full" or "small"."""
    small = recipes.choose(size, {"full": False, "small": True})
    adam = {
        "method": "adam",
        "learning_rate": 3e-4,
        "betas": (0.9, 0.995),
        "weight_decay": 5e-4,
    }
    crop = {"shift": 4, "flip": True, "size": 16 if small else None}
    search = recipes.cell_search(
        epochs=100,
        optimizer={**adam, "final_rate": 1e-4, "clip": 5.0},
        augmentation=crop,
    )
    # As the table's networks were trained: the rate hardly moves.
    retrain = recipes.retraining(
        epochs=100, batch_size=64, optimizer={**adam, "cosine": False}, augmentation=crop
    )
    config = recipes.searched_run(
        {
            "name": "toy_conv_macro",
            "sharing": "entangled",
            "image_size": 32,
            "dropout": 0.5,
            "gain": 1.0,
        },
        {"name": "tfds:cifar10"},
        search,
        retrain,
    )
    if small:
        # Larger kernels, or hundreds of steps pass before a signal gets through the mixtures.
        config["space"] |= {"image_size": 16, "dropout": 0.0, "gain": 6**0.5}
        search["recipe"]["epochs"] = 3.5
        search["relaxation"]["name"] = "darts"
        search["alphas"]["learning_rate"] = 2e-2
        search["alphas_from_epoch"] = 1.25
        recipes.without_training(config, train_examples=20000)
    return ConfigDict(recipes.separate(config))
