"""ViTAS: a super-transformer trained by sampling for a budget, then searched by NSGA-II.

    python launch/search.py --config configs/vitas.py --workdir DIR
    python launch/search.py --config configs/vitas.py:block --workdir DIR
    python launch/search.py --config configs/vitas.py:small --workdir runs/vitas_small

``arch`` (the default) searches each block of the tiny space at 1.3G FLOPs, ``block`` one block for
all, ``small`` a smaller space on scikit-learn's digits, minutes on two cores. The recipe is the
paper's (Table 4): weak augmentation, cutmix and erasing alone, no stochastic depth; identity blocks
as often as makes the expected FLOPs the target; population 50, 40 generations, one objective. For
other budgets set ``config.search.sampler.target`` and the constraint on ``flops_vitas``. The
released code trains left and right slices together: ``--config.search.sides="('right',)"``.
Several objectives: ``--config.search.objectives="('accuracy','flops_vitas')"``.

A published network is retrained by ``launch/train.py --config configs/vitas.py --arch ViTAS-A``;
above 1.3G FLOPs the paper adds ``--config.retrain.augmentation.cutmix=1.0`` and ``mixup=0.8``.
Data: prepare ImageNet once (docs/data.md). ViTAS held 50,000 training images out for the search.

Published (top-1, retrained): ViTAS-A 71.2, B 71.7, C 74.7 (1.3G), D 76.2, E 77.4, F 80.5; block
74.6.
Measured by us, ``small`` on two cores (seed 0, at most 150k multiply-adds by the authors' counter):
found 53.9% inherited, 97.2% fine-tuned, 98.9% retrained, with 23,300 parameters; random ones 23.2%
inherited. ImageNet not yet.
"""

from typing import Any

from ml_collections import ConfigDict

from nasjax import recipes

TRAINING_IMAGES, CLASSES = 1_281_167, 1000


def get_config(variant: str = "arch") -> ConfigDict:
    """Search, fine-tune, retrain; ``variant`` is "arch", "block" or "small"."""
    recipes.choose(variant, dict.fromkeys(("arch", "block", "small")))
    small, block = variant == "small", variant == "block"
    search: dict[str, Any] = {
        "relaxation": {"name": "drnas", "temperature": (10.0, 0.1), "anchor": 0.0},
        "weights_fraction": 0.7 if small else 1 - 50_000 / TRAINING_IMAGES,
        "second_order": False,
        **recipes.two_stage("uniform" if block else "identity", evaluations=2000),
        "sides": (),
        "budget": {"cost": "params", "target": 0.0, "strength": 1.0},
        "alphas": {"learning_rate": 6e-4},
        "recipe": recipes.vitas_recipe(),
    }
    search["searcher"]["name"] = "nsga2"
    search["constraints"]["flops_vitas"] = (0.0, 1.3e9)
    if not block:
        search["sampler"] |= {"cost": "flops_vitas", "target": 1.3e9}
    config: dict[str, Any] = {
        "seed": 0,
        "space": {
            "name": "vitas",
            "level": "block" if block else "arch",
            "size": "tiny",
            "image_size": 224,
            "num_classes": CLASSES,
            "drop_path": 0.1,
            "attention_backend": "xla",
            "dtype": "bfloat16",
        },
        "data": {"name": "tfds:imagenet2012", "data_dir": "", "image_size": 224},
        "search": search,
        "finetune": {**recipes.vitas_recipe(strong=True), "epochs": 40.0},
        "retrain": recipes.vitas_recipe(strong=True),
        "compare": {**recipes.COMPARE, "batch_size": 1000},
        "mesh": {"data": -1, "model": 1},
        "sharding": "replicated",
    }
    if small:
        _shrink(config)
    return ConfigDict(recipes.separate(config))


def _shrink(config: dict[str, Any]) -> None:
    """Digits of 8 pixels, four blocks or identities, networks of thousands of parameters."""
    config["space"] = {
        "name": "vitas",
        "image_size": 8,
        "num_classes": 10,
        "channels": 1,
        "patch_sizes": (2, 4),
        "heads": (1, 2, 4),
        "ratios": (0.25, 0.5, 0.75, 1.0),
        "embed_max": 48,
        "attention_max": 144,
        "mlp_max": 96,
        "depth": 4,
        "drop_path": 0.0,
        "init_std": None,
    }
    config["data"] = {"name": "digits"}
    training = recipes.digits_recipe()
    search = config["search"]
    search["recipe"] = training
    search["sampler"]["target"] = 1.5e5
    search["constraints"]["flops_vitas"] = (0.0, 1.5e5)
    search["searcher"]["evaluations"] = 500
    search["probes"]["every"] = 200
    config["finetune"] = {**training, "epochs": 30.0, "warmup_epochs": 3.0}
    config["retrain"] = training
    config["compare"]["batch_size"] = 360
