"""Training many small networks alone, one after another, in one compiled program.

A network of its own is trained as the sub-network that it is of a super-network: what it has no
part of is masked, and so gets no gradient. Its weights are drawn as those of the extracted network,
which makes the two the same training, but for the draws of dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasjax import data
from nasjax.core import architecture
from nasjax.core import mixture as mixtures
from nasjax.core.architecture import Arch
from nasjax.core.errors import NasjaxError
from nasjax.core.initial import draw
from nasjax.core.program import Program
from nasjax.core.supernet import STATISTICS, Supernet
from nasjax.train import phases
from nasjax.train.losses import cross_entropy
from nasjax.train.rng import stream

_BATCH = 500  # test images at once


class Alone:
    """Accuracies of architectures that are trained from scratch, each by itself.

    For networks and data that fit on one device many times over. One program serves all.

    Args:
      supernet: whose architectures are trained; it has neither static choices nor running
        statistics, which would need a program for each.
      dataset: the data, held in memory.
      recipe: how each is trained.

    Raises:
      NasjaxError: if the space or the data is of another kind.
    """

    def __init__(self, supernet: Supernet, dataset: data.Dataset, recipe: phases.Recipe) -> None:
        if supernet.space.static or STATISTICS in supernet.shapes:
            raise NasjaxError(
                f"networks of space {supernet.space.name!r} cannot be trained in one program, "
                "since they have static choices or batch statistics; train them one by one."
            )
        if isinstance(dataset.train, data.RecordSource):
            raise NasjaxError(
                f"dataset {dataset.name!r} is read from disk; training many networks in one "
                "program needs one that fits in memory."
            )
        phases.check_images(supernet, dataset, recipe.augmentation)
        self._supernet, self._recipe = supernet, recipe
        self._run = Program(_program(supernet, dataset, recipe))

    @property
    def compiles(self) -> int:
        """How many programs have been compiled."""
        return self._run.compiles

    def accuracy(self, arch: Arch, key: jax.Array) -> float:
        """Test accuracy of ``arch`` trained from scratch, everything drawn from ``key``."""
        return self.train(arch, key)[1]

    def train(self, arch: Arch, key: jax.Array) -> tuple[Any, float]:
        """Weights of ``arch`` trained from scratch, in maximal arrays, and its test accuracy.

        `Supernet.extract` makes those of the network by itself of them.
        """
        vector = architecture.encode(self._supernet.space, arch)
        weights = self.initial(arch, stream(key, "init"))
        weights, accuracy = self._run(weights, jnp.asarray(vector), stream(key, "train"))
        return {"params": weights}, float(accuracy)

    def initial(self, arch: Arch, key: jax.Array) -> Any:
        """Maximal weights that hold those drawn for ``arch`` alone, and zeros elsewhere."""
        net = self._supernet
        leaves, structure = jax.tree.flatten({"params": net.shapes["params"]})
        ends = np.cumsum([leaf.size for leaf in leaves])
        # Numbers all entries of the maximal arrays: extracted, they say what comes from where.
        numbers = [
            np.arange(end - leaf.size, end).reshape(leaf.shape)
            for leaf, end in zip(leaves, ends, strict=True)
        ]
        places = net.extract(jax.tree.unflatten(structure, numbers), arch)
        own = {"params": draw(net.network(arch), key, net.input_shape)["params"]}
        flat = np.zeros(ends[-1], np.float32)
        for place, value in zip(jax.tree.leaves(places), jax.tree.leaves(own), strict=True):
            flat[np.asarray(place)] = np.asarray(value)
        return jax.tree.unflatten(structure, [flat[where] for where in numbers])["params"]


def _program(
    supernet: Supernet, dataset: data.Dataset, recipe: phases.Recipe
) -> Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]]:
    """``(weights, encoded architecture, key) -> (weights, test accuracy)``, all steps inside."""
    source: Any = dataset.train
    images, labels = jnp.asarray(source.images), jnp.asarray(source.labels)
    per_epoch = len(source) // recipe.batch_size
    if not per_epoch:
        raise NasjaxError(
            f"{len(source)} training images make no batch of {recipe.batch_size}; use fewer."
        )
    steps, tx = recipe.steps(per_epoch), recipe.transformation(per_epoch)
    prepare = phases.preparation(dataset, recipe.augmentation)
    tests = list(data.evaluation_batches(dataset.test, min(_BATCH, len(dataset.test))))

    def masked(weights: Any, vector: jax.Array) -> Any:
        mixture = mixtures.one_hot_vector(supernet.space, vector)
        return supernet.masked({"params": weights}, mixture)

    def train(weights: Any, vector: jax.Array, key: jax.Array) -> Any:
        def step(carried: Any, number: jax.Array) -> tuple[Any, None]:
            weights, state = carried
            epoch, at = number // per_epoch, number % per_epoch
            order = jax.random.permutation(stream(key, "order", epoch), len(source))
            rows = jax.lax.dynamic_slice_in_dim(order, at * recipe.batch_size, recipe.batch_size)
            batch = {"image": images[rows], "label": labels[rows]}
            inputs, targets = prepare(stream(key, "augment", number), batch)
            rngs = {"dropout": stream(key, "dropout", number)}

            def loss(weights: Any) -> jax.Array:
                variables = masked(weights, vector)
                logits: Any = supernet.module.apply(variables, inputs, train=True, rngs=rngs)
                return cross_entropy(logits, targets)

            updates, state = tx.update(jax.grad(loss)(weights), state, weights)
            weights = jax.tree.map(jnp.add, weights, updates)
            return (weights, state), None

        (weights, _), _ = jax.lax.scan(step, (weights, tx.init(weights)), jnp.arange(steps))
        return weights

    def test(weights: Any, vector: jax.Array) -> jax.Array:
        correct = jnp.zeros(())
        for batch in tests:
            shown = data.normalize(_sized(batch["image"], recipe), dataset.mean, dataset.std)
            logits: Any = supernet.module.apply(masked(weights, vector), shown, train=False)
            right = jnp.argmax(logits, -1) == batch["label"]
            correct = correct + jnp.sum(right * batch["weight"])
        return correct / len(dataset.test)

    def run(weights: Any, vector: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
        trained = train(weights, vector, key)
        return trained, test(trained, vector)

    return run


def _sized(images: jax.Array, recipe: phases.Recipe) -> jax.Array:
    size = recipe.augmentation.size
    return images if size is None else data.resize(images, size)
