"""Every shipped configuration builds, and its first steps run when it is shrunk."""

import pathlib
import runpy

import experiment
import jax
import numpy as np
import pytest
import two_stage
from ml_collections import ConfigDict

from nasjax import data, spaces
from nasjax.core.errors import NasjaxError
from nasjax.train import phases
from nasjax.train.progressive import Stage
from nasjax.train.session import open_session

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))
ARGUMENTS = {
    "gravite_cifar10": ["32", "224"],
    "gravite_cifar100": ["32", "224"],
    "autoformer_imagenet": ["T", "S", "B"],
    **{name: ["full", "small"] for name in ("toy_cell", "toy_conv_macro", "nas_bench_201")},
    "darts": ["full", "small", "progressive"],
    "two_stage": ["digits", "cifar10"],
    "nasvit": [
        "imagenet",
        "cifar100",
        "flowers,supernet",
        "digits",
        "digits,baseline",
        "digits,released",
    ],
    "vitas": ["arch", "block", "small"],
    "tf_tas": ["T", "S", "B", "pit-T", "pit-XS", "pit-S", "digits"],
}
CASES = [(p, a) for p in CONFIGS for a in ARGUMENTS.get(p.stem, [None])]


def load(path, argument):
    get_config = runpy.run_path(str(path))["get_config"]
    return experiment.plain(get_config() if argument is None else get_config(argument))


def sampler_of(search):
    """That of the configuration; of one that searches by gradient what its sampler would be."""
    sampler = search["sampler"]
    return sampler if two_stage.is_wanted(search) else {**sampler, "kind": "uniform"}


@pytest.mark.parametrize(("path", "argument"), CASES, ids=lambda x: getattr(x, "stem", x))
def test_every_config_builds_its_objects_and_documents_itself(path, argument):
    config = load(path, argument)
    supernet = spaces.make(**config["space"])
    assert supernet.names["params"]
    for section in ("finetune", "retrain"):
        assert experiment.recipe(config[section], section).transformation(100)
    recipe = experiment.recipe(config["search"]["recipe"], "search")
    assert recipe.transformation(100)
    assert experiment.alphas_optimizer(config["search"]["alphas"]).build(10)
    assert experiment.stages(config)
    search = config["search"]
    problem = two_stage.make_problem(supernet, {**search, "sampler": sampler_of(search)})
    searcher = two_stage.searching(search).make(problem, jax.random.key(0))
    assert not two_stage.is_wanted(search) or searcher.ask()
    size = recipe.augmentation.size or supernet.input_shape[0]
    assert size == supernet.input_shape[0]
    text = path.read_text()
    assert f"configs/{path.name}" in text and "easured" in text


@pytest.mark.parametrize(("path", "argument"), CASES, ids=lambda x: getattr(x, "stem", x))
def test_a_section_can_be_overridden_alone(path, argument):
    get_config = runpy.run_path(str(path))["get_config"]
    config = get_config() if argument is None else get_config(argument)

    def sections(config):
        yield config
        for value in config.values():
            if isinstance(value, ConfigDict):
                yield from sections(value)

    found = list(sections(config))
    assert len({id(section) for section in found}) == len(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if p.stem == "gravite_cifar10"], ids=lambda p: p.stem
)
def test_shrunk_config_searches(path, tmp_path):
    """The real recipe and step, on a narrow two-layer space and random images of the real size."""
    config = load(path, None if path.stem not in ARGUMENTS else ARGUMENTS[path.stem][0])
    options = {
        "embed_dim": (16, 24),
        "depth": (1, 2),
        "num_heads": (1, 2),
        "mlp_ratio": (1.0, 2.0),
    }
    space = {k: v for k, v in config["space"].items() if k not in ("name", "variant", "image_size")}
    space["patch_size"] = 16
    supernet = spaces.vision_transformer(options, image_size=32, head_dim=8, **space)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(64, dtype=np.int32) % 10
    dataset = data.from_arrays(
        images, labels, images, labels, num_classes=config["space"]["num_classes"]
    )
    recipe = experiment.recipe(
        {**config["search"]["recipe"], "epochs": 2, "batch_size": 16, "warmup_epochs": 0.5},
        "search",
    )
    session = open_session(
        tmp_path,
        {},
        mesh=jax.make_mesh((8, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2),
    )
    state, _ = phases.search(
        session,
        supernet,
        config["search"]["relaxation"],
        dataset,
        recipe,
        experiment.alphas_optimizer(config["search"]["alphas"]),
    )
    assert int(state.step) == 4
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state.trained)))


def test_without_stages_a_search_has_one():
    config = load(CONFIGS[0].with_name("darts.py"), "small")
    config["space"]["partial_channels"] = 2
    config["search"]["alphas_from_epoch"] = 1.5
    (stage,) = experiment.stages(config)
    assert stage == Stage(config["search"]["recipe"]["epochs"], 2, alphas_from_epoch=1.5)


def test_stages_that_end_in_another_network_are_refused():
    config = load(CONFIGS[0].with_name("darts.py"), "progressive")
    config["space"]["partial_channels"] = 1
    with pytest.raises(NasjaxError, match="partial_channels=4, but config"):
        experiment.stages(config)
    config["search"]["stages"] = [{"partial_channels": 1}]
    with pytest.raises(NasjaxError, match="a mapping with epochs was expected"):
        experiment.stages(config)
    config["search"] |= {"stages": [{"epochs": 3}], "alphas_from_epoch": 1.0}
    with pytest.raises(NasjaxError, match="give each stage its own"):
        experiment.stages(config)
    config["search"] |= {"stages": [{"epochs": 3, "epoch": 3}], "alphas_from_epoch": 0.0}
    with pytest.raises(NasjaxError, match="'epoch'; did you mean 'epochs'"):
        experiment.stages(config)


def test_core_knows_no_config_dict():
    for path in (pathlib.Path(__file__).parents[2] / "nasjax").rglob("*.py"):
        assert "ml_collections" not in path.read_text(), path
