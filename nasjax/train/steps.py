"""Training steps: pure functions from a state and batches to a state and metrics.

The bilevel step is the main job (DARTS, GraViT-E section 3.2, TangleNAS Algorithm 1): first the
alphas on validation data, then the weights on training data under the new alphas. Both levels
share one forward function and one optimizer with two partitions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from nasjax.core import mixture as mixtures
from nasjax.core.errors import NasjaxError
from nasjax.core.precision import at_least_float32
from nasjax.core.supernet import STATISTICS, Supernet
from nasjax.relax import Relaxation
from nasjax.train import optim
from nasjax.train.accumulate import in_parts
from nasjax.train.losses import accuracy, cross_entropy
from nasjax.train.rng import stream
from nasjax.train.state import State

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Prepare = Callable[[jax.Array, Batch], tuple[jax.Array, jax.Array]]
Loss = Callable[[Any, Any], tuple[jax.Array, Metrics]]
Step = Callable[..., tuple[State, Metrics]]


@dataclass(frozen=True)
class Budget:
    """A penalty that draws the expected cost of the search towards a target.

    ``strength * relu(E[cost] / target - 1)``: nothing below the target, linear above.

    Attributes:
      cost: name of the cost, ``"params"`` or ``"flops"`` (any of the super-network's).
      target: the cost asked for, in parameters or multiply-adds.
      strength: factor; 1 makes twice the target as bad as one unit of loss.
    """

    cost: str
    target: float
    strength: float = 1.0

    def penalty(self, supernet: Supernet, mixture: Mapping[str, jax.Array]) -> jax.Array:
        """The penalty of a mixture, a differentiable scalar."""
        excess = supernet.expect(self.cost, mixture) / self.target - 1.0
        return self.strength * jax.nn.relu(excess)


def bilevel_step(
    supernet: Supernet,
    relaxation: Relaxation,
    tx: optax.GradientTransformation,
    prepare: Prepare,
    prepare_alphas: Prepare,
    *,
    budget: Budget | None = None,
    second_order: bool = False,
    decay: float = 0.0,
    parts: int = 1,
) -> Step:
    """The step ``(state, weights_batch, alphas_batch) -> (state, metrics)`` of a search.

    Args:
      supernet: what is searched.
      relaxation: how alphas become a mixture, drawn anew in each of the two forward passes. Where
        it does not learn, nothing is computed on the alphas' batch.
      tx: made by :func:`~nasjax.train.optim.partitioned`.
      prepare: ``(key, batch) -> (images, soft labels)`` for the batch that trains the weights.
      prepare_alphas: the same for the batch that trains the alphas.
      budget: optional penalty on an expected cost.
      second_order: differentiate the architecture's loss through one update of the weights,
        exactly (DARTS approximates it by finite differences).
      decay: of the moving average of the weights; 0 where none is kept.
      parts: how many the batch is divided into to compute its gradient, see
        :func:`~nasjax.train.accumulate.in_parts`.

    Raises:
      NasjaxError: if the second order is asked of attention that has no second derivative.
    """
    if second_order and getattr(supernet.module, "attention_backend", "xla") != "xla":
        raise NasjaxError(
            'second_order differentiates twice, which attention_backend="cudnn" does not support; '
            'set space.attention_backend="xla" or second_order off.'
        )

    def classify(
        weights: Any, alphas: Any, state: State, name: str, examples: Any, key: jax.Array
    ) -> Any:
        drawn = stream(state.key, f"mixture/{name}", state.step)
        mixture = relaxation.mixture(alphas, drawn, state.step)
        variables = supernet.masked({"params": weights}, mixture)
        images, labels = examples
        # Batch normalisations use the statistics of the batch; what they keep serves no mixture.
        given = {**variables, **supernet.empty_statistics}
        logits: Any
        logits, _ = supernet.module.apply(
            given, images, train=True, rngs={"dropout": key}, mutable=[STATISTICS]
        )
        return cross_entropy(logits, labels), {"accuracy": accuracy(logits, labels)}

    def step(state: State, weights_batch: Batch, alphas_batch: Batch) -> tuple[State, Metrics]:
        before = state
        for_weights = prepare(stream(state.key, "augment/weights", state.step), weights_batch)
        for_alphas = prepare_alphas(stream(state.key, "augment/alphas", state.step), alphas_batch)

        def of_weights(weights: Any, alphas: Any) -> Any:
            def gradient(examples: Any, key: jax.Array) -> Any:
                def loss(weights: Any) -> Any:
                    return classify(weights, alphas, before, "weights", examples, key)

                return jax.value_and_grad(loss, has_aux=True)(weights)

            key = stream(before.key, "dropout/weights", before.step)
            return in_parts(gradient, for_weights, key, parts)

        def of_alphas(examples: Any, key: jax.Array) -> Any:
            def loss(weights: Any, alphas: Any) -> Any:
                loss, aux = classify(weights, alphas, before, "alphas", examples, key)
                extra = relaxation.penalty(alphas)
                if budget is not None:
                    extra = extra + budget.penalty(supernet, relaxation.mean(alphas))
                return loss + extra, {**aux, "loss": loss}

            look = ahead if second_order else None
            return architecture_gradient(loss, before.weights, before.alphas, look)

        def ahead(weights: Any, alphas: Any) -> Any:
            _, gradient = of_weights(weights, alphas)
            trained = {optim.WEIGHTS: weights, optim.ALPHAS: alphas}
            return optim.update_partition(tx, optim.WEIGHTS, gradient, before.opt_state, trained)[0]

        metrics: Metrics = {}
        finite = jnp.array(True)

        if relaxation.learns:
            key = stream(state.key, "dropout/alphas", state.step)
            gradient, aux = in_parts(of_alphas, for_alphas, key, parts)
            metrics |= {"val_loss": aux["loss"], "val_accuracy": aux["accuracy"]}
            state, finite = apply_gradient(tx, optim.ALPHAS, gradient, state, metrics)
        (loss, aux), gradient = of_weights(state.weights, state.alphas)
        state, also = apply_gradient(tx, optim.WEIGHTS, gradient, state, metrics)
        metrics |= {"train_loss": loss, "train_accuracy": aux["accuracy"]}
        return finish(state, finite & also, decay), metrics

    return step


def architecture_gradient(
    loss: Callable[[Any, Any], tuple[jax.Array, Any]],
    weights: Any,
    alphas: Any,
    ahead: Callable[[Any, Any], Any] | None = None,
) -> tuple[Any, Any]:
    """Gradient in ``alphas`` of ``loss(weights, alphas) -> (value, aux)``, and ``aux``.

    Args:
      loss: the architecture's loss, on validation data.
      weights: of the network.
      alphas: architecture parameters.
      ahead: ``(weights, alphas) -> weights`` after one update on training data. The gradient is
        then that of ``loss(ahead(weights, alphas), alphas)``: the second order of DARTS (Liu et
        al. 2019, equation 6), by differentiating through the update. Without it, first order.
    """

    def outer(alphas: Any) -> Any:
        return loss(weights if ahead is None else ahead(weights, alphas), alphas)

    return jax.grad(outer, has_aux=True)(alphas)


def one_shot_step(
    sides: Sequence[Supernet],
    module: nn.Module,
    tx: optax.GradientTransformation,
    prepare: Prepare,
    *,
    decay: float = 0.0,
    parts: int = 1,
) -> Step:
    """The step ``(state, batch, paths) -> (state, metrics)`` of a training by sampling.

    ``paths (paths, genes)`` are encoded architectures; their gradients are averaged (FairNAS adds
    them up, which is another learning rate). Their values are traced: one program serves all.

    Args:
      sides: the super-network. Or several that share their weights and cut the same architecture
        out of different ends of them: their logits are added up before the loss (BCNet's left and
        right slices, as ViTAS's released code has them).
      module: the maximal module that the paths run in, see ``Supernet.maximal``.
      tx: made by :func:`~nasjax.train.optim.partitioned`.
      prepare: ``(key, batch) -> (images, soft labels)``.
      decay: of the moving average of the weights; 0 where none is kept.
      parts: how many the batch is divided into to compute its gradient, see
        :func:`~nasjax.train.accumulate.in_parts`.
    """

    def step(state: State, batch: Batch, paths: jax.Array) -> tuple[State, Metrics]:
        whole = prepare(stream(state.key, "augment/weights", state.step), batch)
        chance = stream(state.key, "dropout/weights", state.step)

        def loss(weights: Any, path: jax.Array, examples: Any, key: jax.Array) -> Any:
            images, labels = examples
            rngs, logits = {"dropout": key}, jnp.zeros(())
            for side in sides:
                mixture = mixtures.one_hot_vector(side.space, path)
                given = {**side.masked({"params": weights}, mixture), **side.empty_statistics}
                output: Any
                output, _ = module.apply(given, images, train=True, rngs=rngs, mutable=[STATISTICS])
                logits = logits + output
            return cross_entropy(logits, labels), accuracy(logits, labels)

        def one(path: jax.Array) -> Any:
            def gradient(examples: Any, key: jax.Array) -> Any:
                return jax.value_and_grad(loss, has_aux=True)(state.weights, path, examples, key)

            (value, correct), found = in_parts(gradient, whole, chance, parts)
            return found, value, correct

        def add(total: Any, path: jax.Array) -> Any:
            return jax.tree.map(jnp.add, total, one(path)), None

        total = one(paths[0])
        if len(paths) > 1:  # one after the other, in the memory of one
            total, _ = jax.lax.scan(add, total, paths[1:])
        gradient, value, correct = jax.tree.map(lambda x: x / len(paths), total)
        metrics: Metrics = {"train_loss": value, "train_accuracy": correct}
        state, finite = apply_gradient(tx, optim.WEIGHTS, gradient, state, metrics)
        return finish(state, finite, decay), metrics

    return step


def train_step(
    module: nn.Module,
    tx: optax.GradientTransformation,
    prepare: Prepare,
    *,
    decay: float = 0.0,
    auxiliary: float = 0.0,
    steps: int | None = None,
    parts: int = 1,
) -> Step:
    """The step ``(state, batch) -> (state, metrics)`` that trains one network.

    Args:
      module: the network, called as ``module(images, train=...)``.
      tx: made by :func:`~nasjax.train.optim.partitioned`.
      prepare: ``(key, batch) -> (images, soft labels)``.
      decay: of the moving average of the weights; 0 where none is kept.
      auxiliary: weight of the loss of an auxiliary head, whose logits the module sows as
        ``intermediates/auxiliary_logits``.
      steps: length of the training, of which the module reads ``schedule/progress``, 0 to 1.
      parts: how many the batch is divided into to compute its gradient, see
        :func:`~nasjax.train.accumulate.in_parts`.
    """

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        whole = prepare(stream(state.key, "augment/weights", state.step), batch)
        given = {STATISTICS: state.statistics} if state.statistics else {}
        if steps is not None:
            given["schedule"] = {"progress": state.step / steps}

        def loss(weights: Any, examples: Any, key: jax.Array) -> tuple[jax.Array, Any]:
            images, labels = examples
            logits: Any
            logits, changed = module.apply(
                {"params": weights, **given},
                images,
                train=True,
                rngs={"dropout": key},
                mutable=[STATISTICS, "intermediates"],
            )
            value = cross_entropy(logits, labels)
            sown = changed.get("intermediates", {}).get("auxiliary_logits", ())
            total = value + sum(auxiliary * cross_entropy(a, labels) for a in sown)
            return total, (value, accuracy(logits, labels), changed.get(STATISTICS, {}))

        def of_part(examples: Any, key: jax.Array) -> Any:
            return jax.grad(loss, has_aux=True)(state.weights, examples, key)

        chance = stream(state.key, "dropout/weights", state.step)
        gradient, (value, correct, statistics) = in_parts(of_part, whole, chance, parts)
        metrics: Metrics = {"train_loss": value, "train_accuracy": correct}
        state, finite = apply_gradient(tx, optim.WEIGHTS, gradient, state, metrics)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), statistics, state.statistics)
        state = dataclasses.replace(state, statistics=kept)
        return finish(state, finite, decay), metrics

    return step


def several(
    step: Callable[[State, Any], tuple[State, Metrics]],
) -> Callable[[State, Any], tuple[State, Metrics]]:
    """Steps in one program: ``(state, batches) -> (state, metrics)``, the metrics the last one's.

    There are as many as the leading axes of ``batches`` are long. The host dispatches once and
    the memory of a step is allocated once, which counts where steps are short.

    Args:
      step: ``(state, each)``, one of ``batches``.
    """

    def steps(state: State, batches: Any) -> tuple[State, Metrics]:
        state, metrics = jax.lax.scan(step, state, batches)
        return state, jax.tree.map(lambda m: m[-1], metrics)

    return steps


def apply_gradient(
    tx: optax.GradientTransformation, name: str, gradient: Any, state: State, metrics: Metrics
) -> tuple[State, jax.Array]:
    """Update one partition, unless its gradient is not finite: then nothing enters the state.

    Adds the gradient's norm and, for each of its arrays, whether it is finite to ``metrics``.
    """
    squares = [jnp.sum(jnp.square(at_least_float32(g))) for g in jax.tree.leaves(gradient)]
    each = jnp.isfinite(jnp.stack(squares))
    finite = jnp.all(each)
    metrics[f"finite/{name}"] = each
    metrics[f"gradient_norm/{name}"] = jnp.sqrt(sum(squares))
    updated = optim.update_partition(tx, name, gradient, state.opt_state, state.trained)
    before = (state.trained[name], state.opt_state)
    # Inside the update's own loop over the arrays this choice costs nothing.
    new, opt_state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), updated, before)
    changes = {name: new, "opt_state": opt_state}
    return dataclasses.replace(state, **changes), finite


def finish(state: State, finite: jax.Array, decay: float) -> State:
    """Count the step, follow the weights with their average, and note a gradient not finite."""
    average = state.average
    if average is not None:
        # The average forgets its start: early on it follows the weights more closely.
        rate = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(lambda a, w: rate * a + (1.0 - rate) * w, average, state.weights)
    skipped = jnp.where(finite, 0, state.skipped + 1)
    return dataclasses.replace(state, step=state.step + 1, average=average, skipped=skipped)


def evaluation_step(
    apply: Callable[..., jax.Array], prepare: Callable[[Batch], jax.Array]
) -> Callable[..., Metrics]:
    """The step ``(*variables, batch) -> sums`` over the examples of a batch.

    Args:
      apply: ``(*variables, images) -> logits``.
      prepare: ``batch -> images``, without chance.

    Returns:
      A function whose result adds up over batches: ``correct``, ``loss`` and ``weight``; padding
      has weight 0, so that every example counts exactly once.
    """

    def step(*arguments: Any) -> Metrics:
        *variables, batch = arguments
        logits = apply(*variables, prepare(batch))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        correct = (jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32)
        weight = batch["weight"]
        return {
            "correct": jnp.sum(correct * weight),
            "loss": jnp.sum(losses * weight),
            "weight": jnp.sum(weight),
        }

    return step
