"""Single-stage search of the AutoFormer spaces on ImageNet-1k, 224 pixels in patches of 16.

    python launch/search.py --config configs/autoformer_imagenet.py:T --workdir DIR

The argument is the space: T, S or B. The alphas see 100 images of each class of the training set,
as in TangleNAS's scripts; a step takes 1024 images at either level.
Published: TangleNAS Table 6 for the T space; the networks AutoFormer-T/S/B, found in two stages,
reach 74.7 / 81.7 / 82.4 percent (as TF-TAS reports them) and can be retrained here by

    python launch/train.py --config configs/autoformer_imagenet.py:S --workdir DIR \\
        --arch AutoFormer-S

Data: imagenet2012, prepared once (docs/data.md). Measured by us: not yet run.
"""

from ml_collections import ConfigDict

from nasjax import recipes

TRAINING_IMAGES, CLASSES = 1_281_167, 1000


def get_config(variant: str = "T") -> ConfigDict:
    """Search, fine-tune, retrain in space ``variant``: "T", "S" or "B"."""
    augmentation = recipes.vit_augmentation()
    search = recipes.vit_search(augmentation, weights_fraction=1 - 100 * CLASSES / TRAINING_IMAGES)
    training = recipes.vit_recipe(augmentation, epochs=500, warmup_epochs=20, batch_size=1024)
    tuning = recipes.vit_recipe(augmentation, epochs=40, warmup_epochs=5, batch_size=1024)
    for recipe in (search["recipe"], training, tuning):
        recipe["workers"] = 16
    return ConfigDict(
        recipes.separate(
            {
                "seed": 0,
                "space": {
                    "name": "autoformer",
                    "variant": variant,
                    "image_size": 224,
                    "patch_size": 16,
                    "num_classes": CLASSES,
                    "remat": "none",
                    "attention_backend": "xla",
                    "dtype": "bfloat16",
                },
                "data": {
                    "name": "tfds:imagenet2012",
                    "data_dir": "",
                    "image_size": 224,
                },
                "search": search,
                "finetune": tuning,
                "retrain": training,
                "compare": {
                    "batch_size": 1000,
                    "samples": 20,
                    "retrain_largest": False,
                    "retrain_random": 0,
                },
                "mesh": {"data": -1, "model": 1},
                "sharding": "replicated",
            }
        )
    )
