"""The vision transformer by itself: positions, attention, options of the computation."""

import doctest
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nasjax.core.errors import SpaceError
from nasjax.models import vit
from nasjax.models.vit import VisionTransformer

SMALL: dict[str, Any] = {
    "num_classes": 5,
    "embed_dim": 10,
    "depth": 2,
    "num_heads": 3,
    "mlp_dim": 15,
    "patch_size": 2,
    "head_dim": 2,
    "reach": 2,
}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def randomised(tree: Any, scale: float = 0.3) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.float32(scale * rng.standard_normal(x.shape)), tree)


def shapes(model: nn.Module, x: Any) -> Any:
    return nn.unbox(jax.eval_shape(model.init, jax.random.key(0), x))


IMAGES = draw(3, 4, 6, 2, seed=5)


def test_patches_are_read_row_by_row() -> None:
    patches, grid = vit.split_patches(jnp.arange(2 * 4 * 6).reshape(2, 4, 6, 1), 2)
    assert grid == (2, 3) and patches.shape == (2, 6, 2, 2, 1)
    np.testing.assert_array_equal(patches[0, 1, :, :, 0], [[2, 3], [8, 9]])
    np.testing.assert_array_equal(patches[0, 3, :, :, 0], [[12, 13], [18, 19]])


def test_pooling() -> None:
    # With all weights of the blocks zero a token passes to the head alone.
    outputs = {}
    for pool in ("mean", "token"):
        model = VisionTransformer(**SMALL, pool=pool)
        run = jax.jit(model.apply)
        variables = randomised(shapes(model, IMAGES))
        blocks = jax.tree.map(np.zeros_like, variables["params"]["blocks"])
        variables["params"] |= {"blocks": blocks}
        outputs[pool] = run(variables, IMAGES)
        moved = run(variables, IMAGES + 1)
        assert np.allclose(outputs[pool], moved) == (pool == "token")
        token = {"class_token": variables["params"]["class_token"] + draw(10)}
        moved = run({"params": variables["params"] | token}, IMAGES)
        assert np.allclose(outputs[pool], moved) == (pool == "mean")
    assert not np.allclose(outputs["mean"], outputs["token"])


@pytest.mark.parametrize(("policy", "reach"), [("maps", 2), ("dots", 0), ("full", 0)])
def test_recomputing_changes_neither_output_nor_gradients(policy: str, reach: int) -> None:
    sized = {**SMALL, "reach": reach}
    plain, remat = (VisionTransformer(**sized, remat=r) for r in ("none", policy))
    variables = randomised(shapes(plain, IMAGES))
    mask = np.float32([1] * 6 + [0.5] * 3 + [0])
    norms = {n: {"scale": np.stack([mask] * 2)} for n in ("norm_attention", "norm_mlp")}
    extra = {"active": {"blocks": norms, "norm": {"scale": mask}}}

    def loss(model: nn.Module, params: Any) -> jax.Array:
        return jnp.sum(model.apply({**params, **extra}, IMAGES, train=True) ** 2)

    results = [
        jax.jit(jax.value_and_grad(functools.partial(loss, model)))(variables)
        for model in (plain, remat)
    ]
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    for x, y in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * max(1.0, np.max(np.abs(x))))
    extra.clear()
    whole = jax.jit(functools.partial(loss, plain))(variables)
    assert not np.isclose(whole, results[0][0], rtol=1e-3)  # what is active reaches every block


def test_squares_of_the_tokens_are_recomputed() -> None:
    images = jnp.zeros((2, 14, 10, 1))  # of 36 tokens, as nothing else is
    kept = {}
    for policy in ("none", "maps", "dots"):
        model = VisionTransformer(**SMALL, remat=policy)
        variables = shapes(model, images)
        _, pull_back = jax.eval_shape(lambda v, m=model: jax.vjp(m.apply, v, images), variables)
        kept[policy] = [x.shape[-2:] for x in jax.tree.leaves(pull_back)]
    assert (36, 36) in kept["none"] and (36, 36) not in kept["dots"]
    assert len(kept["dots"]) < len(kept["none"])
    assert sorted(kept["maps"]) == sorted([*kept["dots"], (36, 36)])  # and nothing else
    assert kept["none"].count((36, 36)) == 1


def test_an_unknown_policy_is_one_sentence() -> None:
    with pytest.raises(SpaceError, match='remat is True; "none", "maps", "dots" or "full" was'):
        shapes(VisionTransformer(**SMALL, remat=True), IMAGES)


@pytest.mark.parametrize("reach", [0, 2])
def test_half_precision(reach: int) -> None:
    fields = {**SMALL, "reach": reach}
    full, half = VisionTransformer(**fields), VisionTransformer(**fields, dtype=jnp.bfloat16)
    initial = jax.eval_shape(half.init, jax.random.key(0), IMAGES)
    assert {x.dtype for x in jax.tree.leaves(initial)} == {jnp.dtype(jnp.float32)}
    variables = randomised(shapes(full, IMAGES))
    got, expected = (jax.jit(m.apply)(variables, IMAGES) for m in (half, full))
    assert got.dtype == expected.dtype == jnp.float32
    assert 0 < np.max(np.abs(got - expected)) < 0.05 * np.max(np.abs(expected))
    inner = jax.make_jaxpr(half.apply)(variables, IMAGES)
    dtypes: dict[str, list[Any]] = {"dot_general": [], "exp": []}
    for equation in _equations(inner.jaxpr):
        # The statistics of normalisations, products with a vector, are not in half precision.
        if equation.primitive.name in dtypes and all(v.aval.ndim > 1 for v in equation.invars):
            dtypes[equation.primitive.name] += [v.aval.dtype for v in equation.invars]
    assert len(dtypes["dot_general"]) > 10 and set(dtypes["dot_general"]) == {jnp.dtype("bfloat16")}
    assert set(dtypes["exp"]) == {jnp.dtype(jnp.float32)}  # the softmax
    gradient = jax.eval_shape(jax.grad(lambda v: half.apply(v, IMAGES).sum()), variables)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}


def _equations(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner, "eqns"):
                yield from _equations(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize(
    ("fields", "layers"),
    [({"dropout": 0.5}, "scanned"), ({"drop_path": (0.5, 0.5)}, "unrolled")],
    ids=["dropout", "path"],
)
def test_training_drops_and_evaluation_does_not(fields: Any, layers: str, key: jax.Array) -> None:
    sizes = {"num_heads": (3, 3)} if layers == "unrolled" else {}
    model = VisionTransformer(**{**SMALL, **sizes}, **fields)
    variables = randomised(shapes(model, IMAGES))
    run = jax.jit(lambda k: model.apply(variables, IMAGES, train=True, rngs={"dropout": k}))
    kept = model.apply(variables, IMAGES)
    np.testing.assert_array_equal(run(key), run(key))
    outputs = [np.asarray(run(jax.random.fold_in(key, i))) for i in range(3)]
    assert all(not np.allclose(o, kept) for o in outputs[:1])
    assert not np.allclose(outputs[0], outputs[1]) or not np.allclose(outputs[0], outputs[2])
    plain = VisionTransformer(**{**SMALL, **sizes})
    np.testing.assert_array_equal(kept, plain.apply(variables, IMAGES))


@pytest.mark.parametrize("layers", ["scanned", "unrolled"])
def test_every_block_drops_at_its_own_rate(layers: str, key: jax.Array) -> None:
    # Almost surely the first block is kept and the second gone.
    sizes = {**SMALL, "drop_path": (0.0, 1 - 1e-6)}
    sizes |= {"num_heads": (3, 3)} if layers == "unrolled" else {}
    model = VisionTransformer(**sizes)
    variables = randomised(shapes(model, IMAGES))
    got = model.apply(variables, IMAGES, train=True, rngs={"dropout": key})

    def without_second(path: Any, value: np.ndarray) -> np.ndarray:
        if layers == "unrolled":
            return 0 * value if path[0].key == "blocks_1" else value
        kept = np.float32([1, 0]).reshape(2, *[1] * (value.ndim - 1))
        return value * kept if path[0].key == "blocks" else value

    rest = {"params": jax.tree.map_with_path(without_second, variables["params"])}
    np.testing.assert_allclose(got, model.apply(rest, IMAGES), rtol=1e-5, atol=1e-6)
    assert not np.allclose(got, model.apply(variables, IMAGES), rtol=1e-3)


@pytest.mark.parametrize("std", [None, 0.1])
def test_the_scale_of_initial_kernels_reaches_all_of_them(std: float | None) -> None:
    fields = {"embed_dim": 40, "num_heads": 4, "mlp_dim": 60, "head_dim": 8, "depth": 1}
    model = VisionTransformer(**{**SMALL, **fields, "reach": 0}, init_std=std)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), IMAGES))["params"]
    found = [(p, x) for p, x in jax.tree.leaves_with_path(params) if p[-1].key == "kernel"]
    assert len(found) == 6
    inputs = {"patches": 2 * 2 * 2, "proj": 32, "fc2": 60}
    for path, kernel in found:
        expected = std or inputs.get(path[-2].key, 40) ** -0.5
        assert float(jnp.std(kernel)) == pytest.approx(0.94 * expected, rel=0.2), path


def test_images_must_divide_into_patches() -> None:
    model = VisionTransformer(**{**SMALL, "patch_size": 4})
    with pytest.raises(ValueError, match=r"images of 4 x 6 pixels do not divide into .* 4 x 4"):
        jax.eval_shape(model.init, jax.random.key(0), IMAGES)


def test_users_of_nnx_wrap_it() -> None:
    module = VisionTransformer(**{**SMALL, "depth": 1, "reach": 0})
    # NNX would place each parameter as it is made, and has no rules for our axes' names.
    with nnx.use_eager_sharding(False):
        model = nnx.bridge.lazy_init(nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)), IMAGES)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    got = model(IMAGES)
    assert got.shape == (3, 5)
    np.testing.assert_allclose(got, module.apply({"params": params}, IMAGES), rtol=1e-6)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(vit) == doctest.TestResults(failed=0, attempted=3)


def test_blocks_that_write_nothing_are_skipped_in_evaluation_alone() -> None:
    model = VisionTransformer(**SMALL)
    params = randomised(nn.unbox(model.init(jax.random.key(0), IMAGES)["params"]))
    shorter = dict(params)
    written = {"proj": jax.tree.map(lambda x: x.copy(), params["blocks"]["attention"]["proj"])}
    shorter["blocks"] = {
        **params["blocks"],
        "attention": {**params["blocks"]["attention"], **written},
        "fc2": jax.tree.map(lambda x: x.copy(), params["blocks"]["fc2"]),
    }
    for array in jax.tree.leaves((written, shorter["blocks"]["fc2"])):
        array[1] = 0.0  # of the second block

    def conditionals(model: VisionTransformer, train: bool) -> int:
        def apply(variables: Any) -> Any:
            return model.apply(variables, IMAGES, train=train)

        given = jax.eval_shape(lambda: nn.unbox(model.init(jax.random.key(0), IMAGES)))
        return str(jax.make_jaxpr(apply)(given)).count("cond[")

    one_block = VisionTransformer(**{**SMALL, "depth": 1})
    first = {**shorter, "blocks": jax.tree.map(lambda x: x[:1], shorter["blocks"])}
    for train in (False, True):
        np.testing.assert_allclose(
            model.apply({"params": shorter}, IMAGES, train=train),
            one_block.apply({"params": first}, IMAGES, train=train),
            rtol=1e-6,
        )
    assert (conditionals(model, False), conditionals(model, True)) == (1, 0)
    assert conditionals(VisionTransformer(**{**SMALL, "num_heads": (3, 3)}), False) == 0
