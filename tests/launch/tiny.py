"""The quickstart on a space of one or two narrow blocks, for tests of the launchers."""

import pathlib
import runpy

QUICKSTART = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"


def get_config():
    config = runpy.run_path(str(QUICKSTART))["get_config"]()
    config.space = {
        "name": "vision_transformer",
        "options": {
            "embed_dim": (8, 12),
            "depth": (1, 2),
            "num_heads": (1, 2),
            "mlp_ratio": (1.0, 2.0),
        },
        "image_size": 8,
        "patch_size": 4,
        "num_classes": 10,
        "channels": 1,
        "head_dim": 4,
        "reach": 1,
    }
    config.search.relaxation.name = "gdas"  # the fastest to compile
    config.search.recipe.epochs = 3.0
    config.search.recipe.log_every = 3
    config.search.recipe.save_every = 4
    config.search.recipe.warmup_epochs = 1.0
    config.finetune.epochs = 0.2
    config.finetune.warmup_epochs = 0.0
    config.retrain.epochs = 0.5
    config.retrain.warmup_epochs = 0.1
    config.compare.samples = 2
    config.compare.retrain_largest = False
    return config
