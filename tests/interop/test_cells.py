"""Weights of the cell and toy spaces from PyTorch's names and layouts."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from nasjax import interop, spaces
from nasjax.core.errors import ArchitectureError
from nasjax.core.initial import shapes_boxed
from nasjax.interop import WeightsError, cells
from nasjax.spaces.autoformer import quickstart

BUILD = {
    "toy_cell": functools.partial(spaces.toy_cell, image_size=16, channels=4),
    "toy_conv_macro": spaces.toy_conv_macro,
    "nas_bench_201": functools.partial(spaces.nas_bench_201, image_size=8, channels=4, cells=2),
    "darts": functools.partial(
        spaces.darts, image_size=8, channels=4, cells=3, retrained={"channels": 4, "cells": 3}
    ),
}
STRING = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"
PAIRS = [("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 0), ("dil_conv_5x5", 2)]
PAIRS += [("max_pool_3x3", 3), ("sep_conv_5x5", 1), ("sep_conv_3x3", 4), ("dil_conv_3x3", 0)]


def genotype(normal=PAIRS, reduce=PAIRS):
    span = "range(2, 6)"
    return f"Genotype(normal={normal}, normal_concat={span}, reduce={reduce}, reduce_concat={span})"


GENOTYPES = {"nas_bench_201": STRING, "darts": genotype()}


@functools.cache
def supernet(name, sharing="entangled"):
    return BUILD[name](sharing=sharing)


@functools.cache
def tensors(name, sharing="entangled", text=None):
    return cells.tensors(supernet(name, sharing), text)


def their_shape(tensor):
    shape = tensor.shape
    if len(shape) == 4:
        rows, columns, inputs, outputs = shape
        return outputs, inputs, rows, columns
    return shape[::-1]


def draw(name, sharing="entangled", text=None, which=0):
    """Every tensor by the first (or last) of its names."""
    rng = np.random.default_rng(0)
    found = tensors(name, sharing, text)
    return {t.names[which]: rng.normal(size=their_shape(t)).astype(np.float32) for t in found}


def load(weights, name, sharing="entangled", text=None, **options):
    return cells.import_weights(weights, supernet(name, sharing), text, **options)


# What the authors' modules call their tensors, one of every kind.
NAMES = {
    ("toy_cell", "entangled", None): (
        "cells.0.preprocess.op.1.weight",
        "cells.2.preprocess.op.2.running_var",
        "cells.1._ops.2._ops.sep_conv_5x5.op.op.op.1.weight",
        "cells.0._ops.0._ops.sep_conv_5x5.op.op.op.7.running_mean",
        "cells.2._ops.1._ops.dil_conv_5x5.op.op.op.2.weight",
        "proj.weight",
        "classifier.bias",
    ),
    ("toy_cell", "plain", None): (
        "cells.1._ops.2._ops.sep_conv_3x3.op.5.weight",
        "cells.0._ops.1._ops.dil_conv_5x5.op.3.running_mean",
        "cells.0._ops.1._ops.3.op.3.running_mean",
        "cells.2._ops.0._ops.0.op.6.weight",
    ),
    ("toy_conv_macro", "entangled", None): ("conv1_mixture.op.weight", "conv5.bias", "fc4.weight"),
    ("nas_bench_201", "entangled", None): (
        "stem.0.weight",
        "stem.1.running_var",
        "cells.1.edges.3<-1._ops.nor_conv_3x3.op.op.op.1.bias",
        "cells.2.conv_b.op.2.weight",
        "cells.5.downsample.1.weight",
        "cells.7.edges.2<-0._ops.nor_conv_3x3.op.op.op.2.running_mean",
        "lastact.0.bias",
    ),
    ("nas_bench_201", "plain", None): ("cells.3.edges.1<-0._ops.nor_conv_1x1.op.1.weight",),
    ("nas_bench_201", "entangled", STRING): (
        "cells.0.layers.0.op.1.weight",
        "cells.7.layers.5.op.2.bias",
        "cells.4.layers.2.op.2.weight",
    ),
    ("darts", "entangled", None): (
        "cells.0.preprocess0.op.1.weight",
        "cells.2.preprocess0.conv_2.weight",
        "cells.2.preprocess0.bn.running_mean",
        "cells.1._ops.13._ops.max_pool_3x3.1.running_var",
        "cells.1._ops.3._ops.skip_connect.conv_1.weight",
        "cells.1._ops.3._ops.skip_connect.bn.running_mean",
    ),
    ("darts", "plain", None): ("cells.0._ops.13._ops.dil_conv_3x3.op.2.weight",),
    ("darts", "entangled", genotype()): (
        "cells.0._ops.0.op.1.weight",
        "cells.1._ops.2.conv_1.weight",
        "cells.1._ops.3.op.3.bias",
        "cells.2._ops.7.op.3.running_mean",
    ),
}


@pytest.mark.parametrize("key", NAMES, ids=lambda key: "-".join(map(str, key[:2])))
def test_names_are_the_authors(key):
    known = {name for tensor in tensors(*key) for name in tensor.names}
    assert set(NAMES[key]) <= known
    assert len({tensor.path for tensor in tensors(*key)}) == len(tensors(*key))
    assert len(known) == sum(len(tensor.names) for tensor in tensors(*key))


@pytest.mark.parametrize("key", NAMES, ids=lambda key: "-".join(map(str, key[:2])))
@pytest.mark.parametrize("which", [0, -1])
def test_the_network_is_filled(key, which):
    name, sharing, text = key
    net, variables = supernet(name, sharing), load(draw(*key, which=which), *key)
    module, shapes = net.module, {k: v for k, v in net.shapes.items() if k != "active"}
    if text is not None:
        module = net.from_scratch(net.architecture(text))
        shapes = nn.unbox(shapes_boxed(module, net.input_shape))
    shapes = jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert jax.tree.map(np.shape, variables) == shapes
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    count = sum(t.size for n, t in draw(*key).items() if "running" not in n)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


def test_layouts():
    weights = draw("toy_cell")
    variables = load(weights, "toy_cell")
    edge = variables["params"]["cell_1"]["normal_edges_2"]
    theirs = weights["cells.1._ops.2._ops.sep_conv_5x5.op.op.op.1.weight"]  # (C, 1, 5, 5)
    np.testing.assert_array_equal(
        edge["sep_conv"]["depthwise_1"]["kernel"][:, :, 0], np.moveaxis(theirs[:, 0], 0, -1)
    )
    theirs = weights["cells.1._ops.2._ops.dil_conv_5x5.op.op.op.2.weight"][:, :, 0, 0]
    np.testing.assert_array_equal(edge["dil_conv"]["pointwise"]["kernel"][0, 0], theirs.T)
    theirs = weights["cells.0.preprocess.op.2.running_var"]
    np.testing.assert_array_equal(variables["batch_stats"]["preprocess_0"]["norm"]["var"], theirs)
    norm = load(draw("nas_bench_201"), "nas_bench_201")["params"]["norm"]
    weights = draw("nas_bench_201")
    np.testing.assert_array_equal(norm["scale"], weights["lastact.0.weight"])
    np.testing.assert_array_equal(norm["bias"], weights["lastact.0.bias"])


@pytest.mark.parametrize(
    ("name", "theirs", "ours", "shape"),
    [
        ("toy_cell", "proj", "hidden", (2, 16, 2, 2)),
        ("toy_conv_macro", "fc1", "hidden_1", (2, 256, 6, 6)),
    ],
)
def test_flattened_images_are_reordered(name, theirs, ours, shape):
    images, weights = np.random.default_rng(1).normal(size=shape), draw(name)
    kernel = load(weights, name)["params"][ours]["kernel"]
    expected = images.reshape(2, -1) @ weights[f"{theirs}.weight"].T
    actual = np.moveaxis(images, 1, -1).reshape(2, -1) @ kernel
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_edges_of_a_genotype_are_counted_as_it_lists_them():
    weights = draw("darts", text=genotype())
    first = load(weights, "darts", text=genotype())["params"]["cell_0"]
    edges = [0 if begin == 0 else 1 for _, begin in PAIRS[:2]]
    for place, edge in enumerate(edges):
        theirs = weights[f"cells.0._ops.{place}.op.2.weight"][:, :, 0, 0].T
        ours = first[f"normal_edges_{edge}"]["sep_conv"]["pointwise_1"]["kernel"][0, 0]
        np.testing.assert_array_equal(ours, theirs)
    swapped = genotype(normal=[PAIRS[1], PAIRS[0], *PAIRS[2:]])
    second = load(weights, "darts", text=swapped)["params"]["cell_0"]
    jax.tree.map(np.testing.assert_array_equal, first["normal_edges_0"], second["normal_edges_1"])


def test_an_auxiliary_head_is_part_of_the_network():
    net = spaces.darts(channels=4, cells=3, retrained={"channels": 4, "cells": 3})
    plan = cells.tensors(net, genotype())
    weights = {t.names[0]: np.ones(their_shape(t), np.float32) for t in plan}
    assert weights["auxiliary_head.features.5.weight"].shape == (768, 128, 2, 2)
    assert weights["auxiliary_head.classifier.weight"].shape == (10, 768)
    variables = cells.import_weights(weights, net, genotype())
    assert "auxiliary_head" in variables["params"] and "auxiliary_head" in variables["batch_stats"]


def test_missing_and_foreign_tensors():
    weights = draw("nas_bench_201")
    lacking = {n: w for n, w in weights.items() if n != "cells.2.conv_a.op.1.weight"}
    with pytest.raises(WeightsError, match=r"lack 'cells\.2\.conv_a\.op\.1\.weight', .*and hold"):
        load(lacking, "nas_bench_201")
    with pytest.raises(WeightsError, match=r"\.\.\. \(\d+ tensors\).*hold no tensor"):
        load({}, "nas_bench_201")
    # PyTorch counts the batches that a normalisation has seen.
    counted = {**weights, "stem.1.num_batches_tracked": np.zeros((), np.int64)}
    load(counted, "nas_bench_201")
    with pytest.raises(WeightsError, match=r"hold 'alphas', .*no place.*strict=False"):
        load({**weights, "alphas": np.ones(1)}, "nas_bench_201")
    load({**weights, "alphas": np.ones(1)}, "nas_bench_201", strict=False)


def test_weights_of_another_kind():
    with pytest.raises(WeightsError, match="no place"):  # both hold the largest operations
        load(draw("toy_cell", "plain"), "toy_cell")
    with pytest.raises(WeightsError, match=r"lack 'cells\.0\._ops\.0\._ops\.dil_conv_3x3"):
        load(draw("toy_cell"), "toy_cell", "plain")
    with pytest.raises(WeightsError, match="lack"):
        load(draw("nas_bench_201", text=STRING), "nas_bench_201")


def test_shapes_that_do_not_fit():
    wide = BUILD["nas_bench_201"](channels=6)
    with pytest.raises(WeightsError, match=r"has shape \(16,\), but .*/norm/.* needs \(24,\)"):
        cells.import_weights(draw("nas_bench_201"), wide)
    weights = draw("toy_cell")
    weights["proj.weight"] = weights["proj.weight"][:, :-1]
    with pytest.raises(WeightsError, match=r"'proj.weight' has shape \(128, 63\).*hidden/kernel"):
        load(weights, "toy_cell")


def test_networks_that_there_are_no_weights_of():
    with pytest.raises(WeightsError, match=r"toy_cell, .*but the super-network is of space"):
        cells.import_weights({}, quickstart())
    with pytest.raises(WeightsError, match="has no counterpart"):
        tensors("toy_conv_macro", "plain")
    with pytest.raises(WeightsError, match="without a genotype"):
        load({}, "toy_cell", text=genotype())
    with pytest.raises(ArchitectureError):
        load({}, "nas_bench_201", text="|conv~0|")


def test_one_function_for_every_space():
    weights = draw("toy_cell")
    actual = interop.import_weights(weights, supernet("toy_cell"))
    jax.tree.map(np.testing.assert_array_equal, actual, load(weights, "toy_cell"))
    with pytest.raises(WeightsError, match=r"largest network of space 'quickstart'"):
        interop.import_weights({}, quickstart())
    assert "stem_conv" in interop.import_weights(draw("darts"), supernet("darts"))["params"]
