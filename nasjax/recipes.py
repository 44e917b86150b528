"""Published training recipes as plain values, for configuration files to start from.

Source: the released configurations of AutoFormer, TangleNAS and GraViT-E. Learning rates are for
the batch sizes given and scale in proportion (``lr x batch / 512``). Of the published augmentation
two pieces are missing here: repeated augmentation, and RandAugment's equalisation.
"""

from __future__ import annotations

from typing import Any

# What is measured once a network is found.
COMPARE: dict[str, Any] = {
    "batch_size": 500,
    "samples": 20,
    "finetune": True,
    "retrain": True,
    "retrain_largest": False,
    "retrain_random": 0,
}


def separate(values: Any) -> Any:
    """The same nested values with no part that is another one too.

    A ``ConfigDict`` keeps two sections made of one dictionary as one section, and what is set in
    one of them, also from the command line, is then set in the other.
    """
    if isinstance(values, dict):
        return {name: separate(value) for name, value in values.items()}
    return values


def digits_recipe() -> dict[str, Any]:
    """Our own, for small transformers on scikit-learn's digits: minutes on two cores."""
    return {
        "epochs": 90.0,
        "batch_size": 64,
        "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.1},
        "warmup_epochs": 5.0,
        "augmentation": {"shift": 1, "label_smoothing": 0.1},
        "parts": 1,
        "together": 1,
        "log_every": 50,
        "save_every": 500,
    }


def digits_search(sampler: str = "", *, evaluations: int = 1000) -> dict[str, Any]:
    """The search section that goes with it; the arguments are those of :func:`two_stage`."""
    return {
        "relaxation": {"name": "drnas", "temperature": (10.0, 0.1), "anchor": 0.0},
        "weights_fraction": 0.5,
        "second_order": False,
        **two_stage(sampler, evaluations=evaluations),
        "budget": {"cost": "params", "target": 0.0, "strength": 1.0},
        "alphas": {"learning_rate": 1e-2},
        "recipe": digits_recipe(),
    }


def vit_augmentation(*, shift: int = 0, size: int | None = None) -> dict[str, Any]:
    """AutoFormer's augmentation: RandAugment, erasing, mixup, cutmix, label smoothing.

    Args:
      shift: greatest shift in pixels, for images that are not cropped at random when read.
      size: side the images are resized to inside the step.
    """
    return {
        "shift": shift,
        "flip": True,
        "randaugment": (2, 9.0),
        "erasing": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
        "label_smoothing": 0.1,
        "size": size,
    }


def vit_recipe(
    augmentation: dict[str, Any], *, epochs: float, warmup_epochs: float, batch_size: int
) -> dict[str, Any]:
    """AdamW as AutoFormer trains: 5e-4 for 512 images, weight decay 0.05, cosine to 1e-5.

    Args:
      augmentation: fields of :class:`nasjax.data.Augmentation`.
      epochs: length of the training.
      warmup_epochs: of linear warm-up from 1e-6.
      batch_size: images of a step, over all devices.
    """
    return {
        "epochs": float(epochs),
        "batch_size": batch_size,
        "optimizer": {
            "learning_rate": 5e-4 * batch_size / 512,
            "weight_decay": 0.05,
            "warmup_rate": 1e-6,
            "final_rate": 1e-5,
        },
        "warmup_epochs": float(warmup_epochs),
        "augmentation": augmentation,
        "parts": 1,
        "together": 1,
        "log_every": 50,
        "save_every": 1000,
        "workers": 0,
    }


def vit_search(
    augmentation: dict[str, Any], *, relaxation: str = "drnas", weights_fraction: float = 0.5
) -> dict[str, Any]:
    """The search of TangleNAS's scripts: 500 epochs of 1024 images, Adam 6e-4 for the alphas.

    Args:
      augmentation: fields of :class:`nasjax.data.Augmentation`.
      relaxation: name of the relaxation.
      weights_fraction: part of the training data whose gradient the weights see; GraViT-E
        divides in half (A.2).
    """
    return {
        "relaxation": {"name": relaxation, "temperature": (10.0, 0.1), "anchor": 0.0},
        "weights_fraction": weights_fraction,
        "second_order": False,
        **two_stage(""),
        "budget": {"cost": "params", "target": 0.0, "strength": 1.0},
        "alphas": {"learning_rate": 6e-4, "weight_decay": 1e-3, "betas": (0.5, 0.999)},
        "recipe": vit_recipe(augmentation, epochs=500, warmup_epochs=20, batch_size=1024),
    }


def two_stage(sampler: str = "uniform", *, evaluations: int = 1000) -> dict[str, Any]:
    """How a super-network is trained by sampling and then searched, as in AutoFormer.

    Keys of ``config.search``. With no sampler the search is by gradient, and the rest is idle.

    Args:
      sampler: its kind, see :data:`nasjax.sampling.SAMPLERS`.
      evaluations: architectures evaluated in the second stage: 20 generations of 50.
    """
    return {
        "sampler": {
            "kind": sampler,
            "paths": 0,
            "cost": "flops",
            "target": 0.0,
            "limits": {"params": (0.0, 0.0), "flops": (0.0, 0.0)},
        },
        "sandwich": sandwich(),
        "searcher": {
            "name": "evolution",
            "population": 50,
            "evaluations": evaluations,
            "evolution": {
                "parents": 10,
                "mutations": 25,
                "crossovers": 25,
                "probability": 0.2,
                "whole": None,
            },
            "predictor": {
                "batch": 50,
                "near": 0.5,
                "parents": 128,
                "mutations": 128,
                "crossovers": 128,
                "probability": 0.2,
                "rounds": 40,
            },
        },
        "objectives": ("accuracy",),
        "constraints": {"params": (0.0, 0.0), "flops": (0.0, 0.0)},
        "latency": "",
        "evaluation": {"examples": 0, "batch_size": 500, "chunk": 0},
        "probes": {"every": 0, "random": 3, "batch_size": 500, "examples": 2000},
    }


def sandwich(
    *, projection: str = "published", first: str = "subnets", distillation: str = "alpha"
) -> dict[str, Any]:
    """How a super-network is trained where the sampler is a sandwich.

    Args:
      projection: what is done where gradients are in conflict; ``"sum"`` for nothing.
      first: which gradient has priority then.
      distillation: loss of the sub-networks.

    Returns:
      Fields of :class:`nasjax.train.sandwich.Sandwich`.
    """
    return {
        "distillation": distillation,
        "projection": projection,
        "first": first,
        "from_epoch": 0.0,
        "clip": 0.0,
        "teacher": "",
        "factor": 5.0,
    }


def gravite_cifar(name: str, classes: int, resolution: str) -> dict[str, Any]:
    """The whole run of GraViT-E on CIFAR-10 or CIFAR-100 (Tables 1 to 3).

    Args:
      name: of the dataset.
      classes: their number.
      resolution: ``"32"`` (patches of 2) or ``"224"`` (patches of 16).

    Raises:
      ValueError: for another resolution.
    """
    if resolution not in ("32", "224"):
        raise ValueError(f'the argument is "32" or "224", not {resolution!r}.')
    large = resolution == "224"
    augmentation = vit_augmentation(shift=4, size=224 if large else None)
    training = vit_recipe(augmentation, epochs=300, warmup_epochs=5, batch_size=64)
    return {
        "seed": 0,
        "space": {
            "name": "autoformer",
            "variant": "T",
            "image_size": int(resolution),
            "patch_size": 16 if large else 2,
            "num_classes": classes,
            "remat": "none",
            "attention_backend": "xla",
            "dtype": "float32",
        },
        "data": {"name": name, "data_dir": ""},
        "search": vit_search(augmentation),
        "finetune": training,
        "retrain": training,
        "compare": dict(COMPARE),
        "mesh": {"data": -1, "model": 1},
        "sharding": "replicated",
    }


def vitas_recipe(*, strong: bool = False) -> dict[str, Any]:
    """ViTAS's training (Table 4): AdamW 1e-3 for 1024 images, 300 epochs, cosine to 0.

    Args:
      strong: DeiT's augmentation, for retraining networks of up to 1.3G FLOPs, rather than the
        weak one of the super-transformer, cutmix and erasing alone.
    """
    weak = {"flip": True, "erasing": 0.25, "cutmix": 1.0, "label_smoothing": 0.1}
    augmentation = {**weak, "cutmix": 0.0, "randaugment": (2, 9.0), "mixup": 0.0}
    recipe = vit_recipe(
        augmentation if strong else {**weak, "mixup": 0.0},
        epochs=300,
        warmup_epochs=5,
        batch_size=1024,
    )
    optimizer = {
        **recipe["optimizer"],
        "learning_rate": 1e-3,
        "warmup_rate": 0.0,
        "final_rate": 0.0,
    }
    return {**recipe, "optimizer": optimizer, "workers": 16}


# DARTS's, for weights.
SGD: dict[str, Any] = {
    "method": "sgd",
    "learning_rate": 0.025,
    "final_rate": 0.001,
    "betas": (0.9, 0.999),
    "weight_decay": 5e-4,
    "clip": 5.0,
}


def cell_search(
    *,
    epochs: float,
    relaxation: str = "drnas",
    optimizer: dict[str, Any] | None = None,
    batch_size: int = 64,
    augmentation: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A search as TangleNAS's on cell spaces: Adam 3e-4 for the alphas, half of the data each.

    Args:
      epochs: of the search, in passes over the weights' half.
      relaxation: name of the relaxation.
      optimizer: fields of :class:`nasjax.train.optim.Optimizer` that differ from ``SGD``.
      batch_size: images of a step at either level.
      augmentation: fields of :class:`nasjax.data.Augmentation`.
    """
    return {
        "relaxation": {"name": relaxation, "temperature": (10.0, 0.1), "anchor": 0.0},
        "weights_fraction": 0.5,
        "second_order": False,
        "alphas_from_epoch": 0.0,
        "edge_weights": False,
        "leave_out": (),
        "stages": (),
        **two_stage(""),
        "budget": {"cost": "params", "target": 0.0, "strength": 1.0},
        "alphas": {"learning_rate": 3e-4, "weight_decay": 1e-3, "betas": (0.5, 0.999)},
        "recipe": {
            "epochs": float(epochs),
            "batch_size": batch_size,
            "optimizer": {**SGD, **(optimizer or {})},
            "augmentation": augmentation or {},
            "parts": 1,
            "together": 1,
            "log_every": 0,
            "save_every": 1000,
        },
    }


def retraining(
    *,
    epochs: float,
    batch_size: int,
    optimizer: dict[str, Any],
    augmentation: dict[str, Any] | None = None,
    auxiliary: float = 0.0,
) -> dict[str, Any]:
    """The training of a found network: fields of :class:`nasjax.train.phases.Recipe`."""
    return {
        "epochs": float(epochs),
        "batch_size": batch_size,
        "optimizer": optimizer,
        "augmentation": augmentation or {},
        "auxiliary": auxiliary,
        "parts": 1,
        "together": 1,
        "log_every": 50,
        "save_every": 1000,
    }


def searched_run(
    space: dict[str, Any],
    data: dict[str, Any],
    search: dict[str, Any],
    retrain: dict[str, Any],
    finetune: dict[str, Any] | None = None,
    table: str = "",
) -> dict[str, Any]:
    """A whole run of a space whose networks are retrained by their own recipe.

    Args:
      space: name and arguments of the space.
      data: name and options of the dataset.
      search: see :func:`cell_search`.
      retrain: fields of :class:`nasjax.train.phases.Recipe`.
      finetune: the same; a tenth of the retraining's epochs where None.
      table: path of a table of true accuracies, see docs/oracle.md.
    """
    tenth = {**retrain, "epochs": retrain["epochs"] / 10}
    return {
        "seed": 0,
        "space": space,
        "data": data,
        "oracle": {"path": table, "accuracy": "test_acc"},
        "search": search,
        "finetune": finetune or tenth,
        "retrain": retrain,
        "compare": dict(COMPARE),
        "mesh": {"data": -1, "model": 1},
        "sharding": "replicated",
    }


def without_training(config: dict[str, Any], *, train_examples: int) -> None:
    """Make ``config`` a search on the first ``train_examples`` images and nothing after it."""
    config["data"]["train_examples"] = train_examples
    config["compare"] |= {"samples": 0, "finetune": False, "retrain": False}


def choose(name: str, variants: dict[str, Any]) -> Any:
    """The variant called ``name`` of a configuration file that has several.

    Raises:
      ValueError: if there is none.
    """
    if name not in variants:
        raise ValueError(f"the argument is {' or '.join(map(repr, variants))}, not {name!r}.")
    return variants[name]
