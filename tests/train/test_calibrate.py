"""Recalibrated statistics are those of the network itself, and nothing else is touched."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import nasjax
from nasjax import spaces
from nasjax.models.convolution import BatchNorm


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
    shared = nasjax.calibrate_batch_stats(net.module, inside, batches)
    small = net.extract(variables, arch)
    own = nasjax.calibrate_batch_stats(net.network(arch), small, batches)
    cut = net.extract({"batch_stats": shared}, arch)["batch_stats"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), cut, own)
