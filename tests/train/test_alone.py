"""Networks trained inside the super-network, each alone, beside the extracted ones."""

import jax
import jax.numpy as jnp
import numpy as np

from nasjax import data, spaces
from nasjax.core import architecture
from nasjax.train import phases
from nasjax.train.alone import Alone
from nasjax.train.losses import cross_entropy
from nasjax.train.optim import Optimizer
from nasjax.train.rng import stream


def test_it_is_the_training_of_the_extracted_network():
    options = {"embed_dim": (8, 12), "depth": (1, 2), "num_heads": (1, 2), "mlp_ratio": (1.0, 2.0)}
    fields = {"image_size": 8, "patch_size": 4, "channels": 1, "head_dim": 4, "reach": 2}
    supernet = spaces.vision_transformer(options, num_classes=10, **fields)
    digits = data.load("digits", train_examples=96)
    optimizer = Optimizer(learning_rate=1e-2, weight_decay=0.05)
    recipe = phases.Recipe(epochs=3, batch_size=32, warmup_epochs=1, optimizer=optimizer)
    alone, key = Alone(supernet, digits, recipe), jax.random.key(5)
    for seed in range(2):
        arch = architecture.sample(supernet.space, jax.random.key(seed))
        first = supernet.extract({"params": alone.initial(arch, stream(key, "init"))}, arch)
        found, accuracy = alone.train(arch, key)
        module = supernet.network(arch)
        expected = trained(module, first, digits, recipe, stream(key, "train"))
        # Compared by outputs: the loss does not depend on biases of keys, which Adam moves by the
        # signs of their rounding errors.
        images = jnp.asarray(digits.test.images[:20], jnp.float32) / 16
        outputs = [
            module.apply(weights, images, train=False)
            for weights in (supernet.extract(found, arch), expected, first)
        ]
        np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-4)
        assert jnp.abs(outputs[0] - outputs[2]).max() > 0.1  # it has been trained
        assert 0 <= accuracy <= 1
    assert alone.compiles == 1


def trained(module, variables, dataset, recipe, key):
    """The same batches and augmentations, given to the network by itself."""
    steps = recipe.steps(per_epoch := len(dataset.train) // recipe.batch_size)
    tx, prepare = recipe.transformation(per_epoch), phases.preparation(dataset, recipe.augmentation)

    @jax.jit
    def step(carried, number, batch):
        weights, state = carried
        inputs, targets = prepare(stream(key, "augment", number), batch)

        def loss(weights):
            rngs = {"dropout": key}
            return cross_entropy(module.apply(weights, inputs, train=True, rngs=rngs), targets)

        updates, state = tx.update(jax.grad(loss)(weights), state, weights)
        return jax.tree.map(jnp.add, weights, updates), state

    carried = (variables, tx.init(variables))
    for number in range(steps):
        epoch, at = divmod(number, per_epoch)
        order = jax.random.permutation(stream(key, "order", epoch), len(dataset.train))
        rows = order[at * recipe.batch_size :][: recipe.batch_size]
        batch = {"image": dataset.train.images[rows], "label": dataset.train.labels[rows]}
        carried = step(carried, number, batch)
    return carried[0]
