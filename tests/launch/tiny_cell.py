"""The toy cell space on a few small images, for tests of the launchers."""

import pathlib
import runpy

TOY_CELL = pathlib.Path(__file__).parents[2] / "configs" / "toy_cell.py"


def get_config():
    config = runpy.run_path(str(TOY_CELL))["get_config"]("small")
    config.space.channels = 4
    config.space.image_size = 8
    config.space.num_classes = 4
    config.data.train_examples = 128
    config.search.recipe.epochs = 3.0
    config.search.recipe.batch_size = 16
    config.search.alphas.learning_rate = 0.1
    config.search.alphas_from_epoch = 0.0  # one program instead of two
    config.retrain.epochs = config.finetune.epochs = 1.0
    config.retrain.batch_size = config.finetune.batch_size = 32
    config.compare.samples = 1
    config.compare.retrain = True
    return config
