"""GraViT-E on CIFAR-10, AutoFormer-T space (Tables 1 to 3).

    python launch/search.py --config configs/gravite_cifar10.py --workdir DIR
    python launch/search.py --config configs/gravite_cifar10.py:224 --workdir DIR

The argument is the resolution: 32 pixels in patches of 2 (Tables 1 and 2, the default), or 224 in
patches of 16 (Table 3). Add ``--config.search.relaxation.name=gdas`` or ``darts`` for the other
rows. The published numbers, fine-tuned / retrained at 32 pixels: DARTS 98.25 / 98.03, DrNAS
98.29 / 97.96, GDAS 98.17 / 98.09 percent (Table 2).

Data: prepare it once with ``pip install "nasjax[prepare]"`` and tensorflow-datasets (docs/data.md).
Measured by us: not yet run.
"""

from ml_collections import ConfigDict

from nasjax import recipes


def get_config(resolution: str = "32") -> ConfigDict:
    """Search, fine-tune, retrain; ``resolution`` is "32" or "224"."""
    return ConfigDict(recipes.separate(recipes.gravite_cifar("tfds:cifar10", 10, resolution)))
