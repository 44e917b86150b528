"""Recalibrated statistics are those of the network itself, and nothing else is touched."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nasjax
from nasjax import data, spaces
from nasjax.core.errors import NasjaxError
from nasjax.models.convolution import BatchNorm
from nasjax.train import sharding
from nasjax.train.evaluate import Evaluator
from nasjax.train.session import open_session


class Plain(nn.Module):
    """Normalisations of two kinds and momenta, with dropout between them."""

    @nn.compact
    def __call__(self, x, train=False):
        x = BatchNorm(momentum=0.5, name="ours")(nn.Dense(4)(x), train)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.BatchNorm(use_running_average=not train, momentum=0.99, name="flax")(x)


def test_statistics_are_the_means_over_batches():
    batches = jax.random.normal(jax.random.key(0), (5, 8, 3))
    module = Plain()
    variables = nn.unbox(module.init(jax.random.key(1), batches[0]))
    before = jax.tree.map(jnp.copy, variables)
    found = jax.jit(nasjax.calibrate_batch_stats, static_argnums=0)(module, variables, batches)
    hidden = [batch @ variables["params"]["Dense_0"]["kernel"] for batch in batches]
    mean = np.mean([h.mean(0) for h in hidden], 0)
    var = np.mean([np.var(h, 0, ddof=1) for h in hidden], 0)
    np.testing.assert_allclose(found["ours"]["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["ours"]["var"], var, rtol=1e-4)
    np.testing.assert_allclose(found["flax"]["mean"], 0, atol=1e-5)  # of normalised batches
    np.testing.assert_allclose(found["flax"]["var"], 1, rtol=1e-3)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), before, variables))


def test_of_a_one_hot_super_network_they_are_those_of_the_extracted_network():
    net = spaces.toy_cell(image_size=8, channels=4)
    variables = net.init(jax.random.key(0))
    variables = {name: variables[name] for name in ("params", "batch_stats")}
    batches = jax.random.normal(jax.random.key(1), (2, 4, *net.input_shape))
    arch = nasjax.sample(net.space, jax.random.key(2))
    inside = net.superpose(variables, nasjax.one_hot(net.space, arch))
    calibrate = jax.jit(nasjax.calibrate_batch_stats, static_argnums=0)
    shared = calibrate(net.module, inside, batches)
    small = net.extract(variables, arch)
    own = calibrate(net.network(arch), small, batches)
    cut = net.extract({"batch_stats": shared}, arch)["batch_stats"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), cut, own)


def test_fewer_training_images_than_a_batch_are_not_filled_up(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (20, 8, 8, 1), dtype=np.uint8)
    source = data.Source(images, np.arange(20) % 2)
    dataset = data.Dataset("few", source, source, 2, (8, 8, 1), (0.0,), (1.0,))
    session = open_session(tmp_path, {}, mesh=sharding.make_mesh())
    batches = Evaluator(session, dataset, batch_size=64)._calibration()
    assert batches.shape == (1, 16, 8, 8, 1)  # what 8 devices can share
    assert bool(jnp.all(batches > 0))


def test_too_few_training_images_for_the_devices(tmp_path):
    source = data.Source(np.ones((5, 8, 8, 1), np.uint8), np.arange(5) % 2)
    dataset = data.Dataset("few", source, source, 2, (8, 8, 1), (0.0,), (1.0,))
    session = open_session(tmp_path, {}, mesh=sharding.make_mesh())
    with pytest.raises(NasjaxError, match="5 training images cannot be spread over 8 devices"):
        Evaluator(session, dataset, batch_size=64)._calibration()
