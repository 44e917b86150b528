"""TF-TAS: search without training. Random networks are scored by the DSS indicator, untrained.

    python launch/search.py --config configs/tf_tas.py:digits --workdir runs/tf_tas_digits
    python launch/search.py --config configs/tf_tas.py:T --workdir DIR
    python launch/train.py --config configs/tf_tas.py:T --arch TF-TAS-T --workdir DIR

``T``, ``S`` and ``B`` are AutoFormer's spaces, ``pit-T``, ``pit-XS`` and ``pit-S`` those on PiT, at
224 pixels: 8,000 random networks within limits of parameters, the best of which is retrained by the
released recipe (300 epochs of 2,048 images). ``digits`` is the space of configs/quickstart.py
on scikit-learn's digits. Another proxy is ``--config.search.proxy.name=snip``, evolution
``--config.search.searcher.name=evolution``, the indicator as released
``--config.search.proxy.name=dss_released``. DSS sees no images: to search alone, without ImageNet,
add ``--config.data.name=digits --config.compare.retrain=False``.

The limits of T, S and B are 6, 23 and 54 times 2**20 parameters: the published sizes are in that
unit, and the published networks lie within. Of PiT they are 5, 11 and 25 million.

How well proxies rank 60 networks of ``digits``: docs/training_free.md.

Published (top-1 on ImageNet, retrained): T 75.3, S 81.9, B 82.2; PiT T 73.7, XS 77.7, S 80.5.
Not yet measured by us on ImageNet.
"""

from typing import Any

from ml_collections import ConfigDict

from nasjax import recipes

MEBI = 2**20
LIMITS = {"T": 6 * MEBI, "S": 23 * MEBI, "B": 54 * MEBI}
PIT_LIMITS = {"T": 5e6, "XS": 11e6, "S": 25e6}
VARIANTS = (*LIMITS, *(f"pit-{name}" for name in PIT_LIMITS), "digits")


def get_config(variant: str = "digits") -> ConfigDict:
    """Search and retrain; ``variant`` is "digits", "T", "S", "B", "pit-T", "pit-XS" or "pit-S"."""
    recipes.choose(variant, dict.fromkeys(VARIANTS))
    if variant == "digits":
        return ConfigDict(recipes.separate(_digits()))
    pooled, _, size = variant.rpartition("-")
    training = recipes.vit_recipe(
        recipes.vit_augmentation(), epochs=300, warmup_epochs=5, batch_size=2048
    )
    space: dict[str, Any] = {"variant": size, "image_size": 224, "num_classes": 1000}
    space |= {"attention_backend": "xla", "dtype": "bfloat16"}
    space |= (
        {"name": "pit", "conv_std": 1.0} if pooled else {"name": "autoformer", "patch_size": 16}
    )
    return ConfigDict(
        recipes.separate(
            {
                "seed": 0,
                "space": space,
                "data": {"name": "tfds:imagenet2012", "data_dir": "", "image_size": 224},
                "search": _search(training, (PIT_LIMITS if pooled else LIMITS)[size], 8000),
                "finetune": training,
                "retrain": training,
                "compare": {**recipes.COMPARE, "batch_size": 1000, "samples": 0, "finetune": False},
                "mesh": {"data": -1, "model": 1},
                "sharding": "replicated",
            }
        )
    )


def _search(training: dict[str, Any], limit: float, evaluations: int) -> dict[str, Any]:
    found = {
        "relaxation": {"name": "drnas", "temperature": (10.0, 0.1), "anchor": 0.0},
        "weights_fraction": 0.5,
        "second_order": False,
        **recipes.two_stage("", evaluations=evaluations),
        "proxy": {
            "name": "dss",
            "batch_size": 64,
            "chunk": 0,
            "top": 10,
        },
        "budget": {"cost": "params", "target": 0.0, "strength": 1.0},
        "alphas": {"learning_rate": 6e-4},
        "recipe": training,
    }
    found["searcher"]["name"] = "random"
    found["searcher"]["population"] = 200
    found["constraints"]["params"] = (0.0, float(limit))
    return found


def _digits() -> dict[str, Any]:
    training = recipes.digits_recipe()
    return {
        "seed": 0,
        "space": {"name": "quickstart"},
        "data": {"name": "digits"},
        "search": _search(training, 50_000, 500),
        "finetune": {**training, "epochs": 30.0, "warmup_epochs": 3.0},
        "retrain": training,
        "compare": {**recipes.COMPARE, "batch_size": 360, "samples": 0, "finetune": False},
        "mesh": {"data": -1, "model": 1},
        "sharding": "replicated",
    }
