"""NASViT: a hybrid space, conflict-aware training by the sandwich rule, then a search.

    python launch/search.py --config configs/nasvit.py --workdir DIR
    python launch/search.py --config configs/nasvit.py:cifar100 --workdir DIR
    python launch/search.py --config configs/nasvit.py:digits --workdir runs/nasvit_digits
    python launch/benchmark.py conflict --workdir runs/conflict

The argument is DATA or DATA,RECIPE. DATA is ``imagenet`` (the released space at 192 to 288
pixels), ``cifar100`` (32 pixels), ``flowers`` (64 pixels: an npz file of yours,
--config.data.name=npz:PATH), ``cifar10_small`` (12,500 images at 16 pixels) or ``digits``, minutes
on two cores. RECIPE is a column of the paper's Table 7, each on top of the one before but for the
last one:

``baseline``    strong augmentation and weight decay, gradients added up, no scaling layers
``weak``        RandAugment of one operation of magnitude 1, no weight decay
``scaling``     switchable scaling layers
``projection``  the super-network's gradient gives way to the sub-networks' (the default)
``supernet``    the other way round
``released``    as the authors' code: bounded factors, the sub-networks' gradient clipped, gradients
                added up for the first quarter

The baseline's augmentation is RandAugment with 2 operations of magnitude 9 in place of AlphaNet's
AutoAugment; its dropout and DropConnect of 0.2 are missing here. The paper's teacher is an
EfficientNet-B5, whose weights nasjax does not have: give its logits in
``config.search.sandwich.teacher`` or a network in Python (docs/conflict.md); without one the
largest network learns from labels. The search is by evolution guided by a random forest, for the
front of accuracy against multiply-adds; for latency make a predictor (docs/latency.md) and set
--config.search.latency and --config.search.objectives="('accuracy','latency')".

Published (ImageNet, smallest and largest): baseline 76.6 / 82.2, weak 77.4 / 82.5, scaling 77.6 /
82.6, projection 78.1 / 82.9, supernet 77.9 / 83.0; conflicts 34%, 30%, 29%, 0%, 0%.
Measured by us on two cores, three seeds, smallest / largest (docs/conflict.md): digits, 600 steps:
baseline 76.1 / 89.2, weak 87.1 / 94.2, scaling 83.8 / 94.0, projection 84.5 / 93.3, supernet 90.0 /
95.7; cifar10_small, 2,496 steps: 35.6 / 38.9, 39.5 / 42.6, 38.9 / 42.6, 37.9 / 41.4, 41.5 / 44.8.
A whole run on the digits (seed 0, 4 and a half minutes), inherited weights: found 92.8% with 0.87M
multiply-adds, largest 93.1%, random 81.7%. The others not yet.
"""

from typing import Any

from ml_collections import ConfigDict

from nasjax import recipes

TRAINING_IMAGES, HELD_OUT = 1_281_167, 50_000  # how many the paper held out it does not say
RECIPES = ("baseline", "weak", "scaling", "projection", "supernet", "released")


def get_config(argument: str = "imagenet") -> ConfigDict:
    """The whole run; ``argument`` is DATA or DATA,RECIPE."""
    data, _, recipe = argument.partition(",")
    recipe = recipes.choose(recipe or "projection", {name: name for name in RECIPES})
    makers = {
        "imagenet": _imagenet,
        "cifar100": _cifar100,
        "flowers": _flowers,
        "cifar10_small": _cifar10_small,
        "digits": _digits,
    }
    config = recipes.choose(data, makers)()
    _follow(config, recipe)
    return ConfigDict(recipes.separate(config))


def _follow(config: dict[str, Any], recipe: str) -> None:
    """Take from the whole recipe what its ablation ``recipe`` lacks."""
    search = config["search"]
    training, sandwich = search["recipe"], search["sandwich"]
    if recipe in ("baseline", "weak", "scaling"):
        sandwich["projection"] = "sum"
    if recipe in ("baseline", "weak"):
        config["space"]["scaling"] = None
    if recipe == "baseline":
        training["augmentation"] |= {"randaugment": (2, 9.0)}
        training["optimizer"] |= {"weight_decay": 1e-5}
    if recipe == "supernet":
        sandwich["first"] = "supernet"
    if recipe == "released":
        quarter = training["epochs"] / 4
        sandwich |= {"projection": "released", "clip": 1.0, "from_epoch": quarter}


def _run(
    space: dict[str, Any], data: dict[str, Any], training: dict[str, Any], fraction: float
) -> dict[str, Any]:
    search: dict[str, Any] = {
        "relaxation": {"name": "drnas", "temperature": (10.0, 0.1), "anchor": 0.0},
        "weights_fraction": fraction,
        "second_order": False,
        **recipes.two_stage("sandwich"),
        "budget": {"cost": "params", "target": 0.0, "strength": 1.0},
        "alphas": {"learning_rate": 6e-4},
        "recipe": training,
    }
    # Appendix C.1: 1024 random networks for the predictor; what it takes for the best is evaluated.
    search["searcher"] |= {"name": "predictor", "population": 1024, "evaluations": 1536}
    search["objectives"] = ("accuracy", "flops")
    # The paper's networks are used with inherited weights.
    return {
        "seed": 0,
        "space": {"name": "nasvit", "scaling": "depth", **space},
        "data": data,
        "search": search,
        "finetune": {**training, "epochs": training["epochs"] / 10, "warmup_epochs": 0.0},
        "retrain": training,
        "compare": {**recipes.COMPARE, "finetune": False, "retrain": False},
        "mesh": {"data": -1, "model": 1},
        "sharding": "replicated",
    }


def _training(batch_size: int, epochs: float, **augmentation: Any) -> dict[str, Any]:
    """AdamW without weight decay, 3e-4 for 512 images, cosine to 5e-6 (appendix C, released)."""
    scale = batch_size / 512
    return {
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": {
            "learning_rate": 3e-4 * scale,
            "weight_decay": 0.0,
            "warmup_rate": 0.0,
            "final_rate": 5e-6 * scale,
        },
        "warmup_epochs": 5.0,
        "augmentation": {"randaugment": (1, 1.0), **augmentation},
        "parts": 1,
        "together": 1,
        "log_every": 50,
        "save_every": 1000,
        "workers": 0,
    }


def _imagenet() -> dict[str, Any]:
    # In the released code mixup and cutmix are all but off, at 0.01, and so is erasing.
    training = _training(1024, 360.0, flip=True, erasing=0.01, mixup=0.01, cutmix=0.01)
    training |= {"average": 0.99985, "workers": 16}
    config = _run(
        {"num_classes": 1000, "dtype": "bfloat16"},
        {"name": "tfds:imagenet2012", "data_dir": "", "image_size": 288},
        training,
        1 - HELD_OUT / TRAINING_IMAGES,
    )
    config["search"]["probes"]["every"] = 5000
    return config


def _cifar100() -> dict[str, Any]:
    """Stages of the released space with fewer strides, for maps of 32 to 4 pixels."""
    space = {
        "stages": (
            {"name": "mb1", "width": (16, 24), "depth": (1, 2), "kernel": (3, 5)},
            {
                "name": "mb2", "width": (24, 32), "depth": (2, 3, 4), "kernel": (3, 5),
                "expansion": (4, 5, 6),
            },
            {
                "name": "mb3", "width": (64, 72), "depth": (2, 3, 4), "expansion": (4, 5, 6),
                "stride": 2, "transformer": True,
            },
            {
                "name": "mb4", "width": (112, 120, 128), "depth": (2, 3, 4, 5, 6),
                "expansion": (4, 5, 6), "squeeze": True, "stride": 2, "transformer": True,
            },
        ),
        "last": (1024, 1280),
        "resolutions": (24, 32),
        "num_classes": 100,
        "position_side": 8,
    }  # fmt: skip
    training = _training(256, 300.0, flip=True, shift=4)
    config = _run(space, {"name": "tfds:cifar100", "data_dir": ""}, training, 0.9)
    config["search"]["probes"]["every"] = 1000
    return config


def _flowers() -> dict[str, Any]:
    """TensorFlow's flowers, or other images of 64 pixels, in an npz file."""
    config = _cifar100()
    config["space"] |= {"resolutions": (48, 64), "num_classes": 5, "position_side": 16}
    config["data"] = {"name": "npz:flowers64.npz"}
    config["search"]["recipe"] = _training(64, 100.0, flip=True, shift=8)
    config["search"]["probes"]["every"] = 500
    return config


def _digits() -> dict[str, Any]:
    """Digits of 8 pixels, resized to 16; transformers on maps of 4 pixels."""
    space = {
        "stages": (
            {"name": "mb1", "width": (8, 16), "depth": (1, 2), "kernel": (3, 5)},
            {
                "name": "mb2", "width": (16, 24, 32), "depth": (2, 3), "expansion": (2, 3),
                "stride": 2, "transformer": True,
            },
        ),
        "first": (8, 16),
        "last": (64, 96),
        "resolutions": (16,),
        "image_size": 8,
        "channels": 1,
        "num_classes": 10,
        "position_side": 4,
    }  # fmt: skip
    training = _training(64, 40.0, shift=1)
    # The published rate would need hundreds of epochs of so few images.
    training["optimizer"] |= {"learning_rate": 2e-3, "final_rate": 1e-5}
    training |= {"log_every": 25, "save_every": 500}
    config = _run(space, {"name": "digits"}, training, 0.7)
    config["search"]["searcher"] |= {"population": 50, "evaluations": 200}
    config["search"]["probes"]["every"] = 100
    config["compare"]["batch_size"] = 360
    return config


def _cifar10_small() -> dict[str, Any]:
    """A part of CIFAR-10 at half its size, for the ablations: the space of the digits."""
    config = _digits()
    config["space"] |= {"image_size": 32, "channels": 3}
    config["data"] = {"name": "tfds:cifar10", "data_dir": "", "train_examples": 12_500}
    training = config["search"]["recipe"]
    training |= {"epochs": 16.0, "warmup_epochs": 1.0, "log_every": 50}
    training["augmentation"] |= {"flip": True, "shift": 4}
    config["search"]["weights_fraction"] = 0.8
    return config
