"""Convolutions written out equal XLA's, and batch normalisation keeps PyTorch's statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.models.convolution import BatchNorm, _grouped, convolve, depthwise_conv


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("size", [7, 8])
def test_depthwise_convolution_equals_the_grouped_one(side, stride, dilation, size):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, size, size, 4))
    kernel = jax.random.normal(keys[1], (side, side, 1, 4))
    expected, pull_back = jax.vjp(lambda x, w: _grouped(x, w, stride, dilation), x, kernel)
    actual, ours = jax.vjp(lambda x, w: depthwise_conv(x, w, stride, dilation), x, kernel)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    cotangent = jax.random.normal(keys[2], expected.shape)
    for gradient, truth in zip(ours(cotangent), pull_back(cotangent), strict=True):
        np.testing.assert_allclose(gradient, truth, rtol=1e-4, atol=1e-4)


def test_depthwise_convolution_can_be_differentiated_twice_and_mapped():
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, 3))

    def through(convolve):
        def inner(kernel):
            return jnp.sum(convolve(x, kernel) ** 3)

        return jax.grad(lambda k: jnp.sum(jax.grad(inner)(k) ** 2))(kernel)

    written = through(lambda x, k: depthwise_conv(x, k, 1, 1))
    np.testing.assert_allclose(written, through(lambda x, k: _grouped(x, k, 1, 1)), rtol=1e-3)
    many = jnp.stack([kernel, 2 * kernel])
    mapped = jax.vmap(lambda k: depthwise_conv(x, k, 1, 1))(many)
    np.testing.assert_allclose(mapped[1], 2 * mapped[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "side", "stride", "pad"), [(4, 7, 1, 3), (8, 7, 1, 2), (7, 5, 2, 2)]
)
def test_a_result_smaller_than_the_kernel_is_that_of_xla(size, side, stride, pad):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, size, size, 3))
    kernel = jax.random.normal(keys[1], (side, side, 3, 5))

    def xla(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride,) * 2,
            [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    expected, pull_back = jax.vjp(xla, x, kernel)
    actual, ours = jax.vjp(lambda x, w: convolve(x, w, stride, pad), x, kernel)
    assert actual.shape[1] < side
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    cotangent = jax.random.normal(keys[2], expected.shape)
    for gradient, truth in zip(ours(cotangent), pull_back(cotangent), strict=True):
        np.testing.assert_allclose(gradient, truth, rtol=1e-4, atol=1e-4)


def test_batch_norm_keeps_unbiased_variances():
    x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (4, 3, 3, 2))
    module = BatchNorm()
    variables = nn.unbox(module.init(jax.random.key(1), x, True))
    assert jnp.all(variables["batch_stats"]["mean"] == 0)  # initialising is no training
    y, changed = module.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(jnp.mean(y, (0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.std(y, (0, 1, 2)), 1, rtol=1e-4)
    flat = np.asarray(x).reshape(-1, 2)
    kept = changed["batch_stats"]
    np.testing.assert_allclose(kept["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(kept["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    again = module.apply({**variables, "batch_stats": kept}, x, False)
    expected = (x - kept["mean"]) / jnp.sqrt(kept["var"] + 1e-5)
    np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-5)
