"""NAS-Bench-201 on a few small images, searched in two stages, for tests of the launchers."""

import pathlib
import runpy

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "nas_bench_201.py"


def get_config():
    config = runpy.run_path(str(CONFIG))["get_config"]("small")
    config.space.image_size = 8
    config.space.channels = 4
    config.space.num_classes = 4
    config.space.partial_channels = 2
    config.data.train_examples = 64
    config.search.leave_out = ("none",)
    config.search.edge_weights = True
    config.search.stages = (
        {"epochs": 1.0, "partial_channels": 4},
        {"epochs": 2.0, "partial_channels": 2, "keep": 2, "alphas_from_epoch": 1.0},
    )
    config.search.recipe.batch_size = 16
    return config
