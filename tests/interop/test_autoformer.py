import jax
import numpy as np
import pytest

from nasjax.core import mixture
from nasjax.interop import WeightsError
from nasjax.interop.autoformer import export_weights, import_weights, name_table
from nasjax.spaces.autoformer import quickstart, vision_transformer
from tests.interop import numpy_vit

OPTIONS = {
    "embed_dim": (64, 96, 128),
    "depth": (2, 3),
    "num_heads": (1, 2),
    "mlp_ratio": (1.0, 1.5, 2.0),
}
ARCH = {"embed_dim": 96, "depth": 3, "num_heads": [1, 2, 1], "mlp_ratio": [1.5, 1.0, 2.0]}
NARROW = {**OPTIONS, "embed_dim": (64, 96), "depth": (2,), "num_heads": (1,)}


def build(settings, options=OPTIONS):
    return vision_transformer(
        options,
        image_size=settings["img_size"],
        patch_size=settings["patch_size"],
        num_classes=settings["num_classes"],
        channels=settings["in_chans"],
        reach=settings["max_relative_position"] if settings["relative_position"] else 0,
        absolute=settings["abs_pos"],
        pool="mean" if settings["gp"] else "token",
        qkv_bias=settings["qkv_bias"],
        fixed_qkv=None if settings["change_qkv"] else settings["embed_dim"],
    )


def images(settings, batch=2):
    size = settings["img_size"]
    shape = (batch, settings["in_chans"], size, size)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def assert_same_network(settings, arch, options=OPTIONS, one_hot=True):
    weights, x = numpy_vit.draw(settings), images(settings)
    supernet = build(settings, options)
    variables = import_weights(weights, supernet)
    expected = numpy_vit.forward(weights, arch, x, settings)
    inputs = np.moveaxis(x, 1, -1)
    actual = supernet.network(arch).apply(supernet.extract(variables, arch), inputs)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    if one_hot:
        hot = supernet.superpose(variables, mixture.one_hot(supernet.space, arch))
        actual = supernet.module.apply(hot, inputs)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"gp": False, "abs_pos": False, "qkv_bias": False, "relative_position": False},
        {"img_size": 6, "in_chans": 1, "num_classes": 7, "max_relative_position": 1},
    ],
    ids=["all", "none", "sizes"],
)
def test_imported_network_is_the_authors(change):
    assert_same_network({**numpy_vit.SETTINGS, **change}, ARCH)


def test_wider_and_deeper_weights_are_cut():
    settings = {**numpy_vit.SETTINGS, "embed_dim": 144, "depth": 4, "num_heads": 3}
    assert_same_network(settings, ARCH)


def test_contiguous_queries_keys_and_values():
    settings = {**numpy_vit.SETTINGS, "change_qkv": False, "relative_position": False}
    assert_same_network(settings, ARCH, one_hot=False)


@pytest.mark.parametrize("change_qkv", [True, False])
def test_round_trip_is_exact(change_qkv):
    # Without change_qkv the authors' code, like nasjax, has no relative positions.
    settings = {**numpy_vit.SETTINGS, "change_qkv": change_qkv, "relative_position": change_qkv}
    weights, supernet = numpy_vit.draw(settings), build(settings)
    exported = export_weights(import_weights(weights, supernet), supernet)
    assert exported.keys() == weights.keys()
    for name, tensor in weights.items():
        np.testing.assert_array_equal(exported[name], tensor)
        assert exported[name].flags.c_contiguous
    rng = np.random.default_rng(2)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), supernet.shapes)
    again = import_weights(export_weights(variables, supernet), supernet)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_extracted_network_comes_out_at_its_own_sizes():
    settings = numpy_vit.SETTINGS
    weights, supernet = numpy_vit.draw(settings), build(settings)
    small = supernet.extract(import_weights(weights, supernet), ARCH)
    exported = export_weights(small, supernet)
    assert exported["blocks.0.attn.qkv.weight"].shape == (3 * 64, 96)
    assert exported["blocks.1.attn.qkv.weight"].shape == (6 * 64, 96)
    assert exported["blocks.0.fc1.weight"].shape == (144, 96)
    assert sum(t.size for t in exported.values()) == supernet.count("params", ARCH)
    x = images(settings)
    expected = numpy_vit.forward(weights, ARCH, x, settings)
    actual = numpy_vit.forward(exported, ARCH, x, settings)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_names_of_tanglenas():
    settings = {**numpy_vit.SETTINGS, "depth": 2}
    weights, supernet = numpy_vit.draw(settings), build(settings, {**OPTIONS, "depth": (2,)})
    theirs = {}
    for name, tensor in weights.items():
        path, layer = name_table().locate(name)
        entry = name_table().entry(path)
        # One name per tensor, or several for the same one.
        for other in entry.names[1:] or entry.names:
            theirs[other.format(layer)] = tensor
    assert "op_emb.layer.proj.weight" in theirs and "cls_token" not in theirs
    actual, expected = import_weights(theirs, supernet), import_weights(weights, supernet)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_dtypes_follow_the_network():
    settings = numpy_vit.SETTINGS
    weights = {n: w.astype(np.float64) for n, w in numpy_vit.draw(settings).items()}
    assert import_weights(weights, build(settings))["params"]["class_token"].dtype == np.float32


def test_missing_tensors_are_listed():
    weights = numpy_vit.draw(numpy_vit.SETTINGS)
    for name in ("cls_token", "blocks.2.fc1.bias"):
        del weights[name]
    with pytest.raises(WeightsError, match=r"lack .*'blocks\.2\.fc1\.bias'.*'cls_token'.*hold"):
        import_weights(weights, build(numpy_vit.SETTINGS))
    with pytest.raises(WeightsError, match=r"\.\.\. \(\d+ tensors\).*hold no tensor"):
        import_weights({}, build(numpy_vit.SETTINGS))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_classes": 6}, r"'head.bias' has shape \(6,\).* needs \(5,\)"),
        ({"embed_dim": 112}, r"shape .*112.* needs at least .*128"),
        ({"img_size": 12}, r"'pos_embed' has shape \(1, 37, 128\).*at least \(1, 17, 128\)"),
        ({"change_qkv": True}, r"'blocks.0.attn.proj.weight' has shape \(96, 128\)"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    settings = dict(numpy_vit.SETTINGS)
    if "change_qkv" in change:  # rows of weights without change_qkv must be exactly as many
        settings |= {"change_qkv": False, "embed_dim": 96, "relative_position": False}
        supernet = build(settings, NARROW)
    else:
        supernet = build(settings)
    with pytest.raises(WeightsError, match=message):
        import_weights(numpy_vit.draw({**settings, **change}), supernet)


def test_tensors_without_a_place():
    weights = numpy_vit.draw(numpy_vit.SETTINGS)
    supernet = build({**numpy_vit.SETTINGS, "relative_position": False})
    with pytest.raises(WeightsError, match=r"no place.*strict=False"):
        import_weights(weights, supernet)
    assert "attention" in import_weights(weights, supernet, strict=False)["params"]["blocks"]
    with pytest.raises(WeightsError, match=r"'ema\.decay'"):
        import_weights({**weights, "ema.decay": np.ones(1)}, build(numpy_vit.SETTINGS))


def test_parameters_of_another_kind():
    with pytest.raises(WeightsError, match="params/conv/kernel has no counterpart"):
        export_weights({"params": {"conv": {"kernel": np.ones((1, 1))}}}, quickstart())
