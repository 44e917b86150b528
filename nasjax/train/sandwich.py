"""The sandwich rule: the largest, the smallest and random sub-networks in one step.

Universally slimmable networks (Yu and Huang 2019), BigNAS, AttentiveNAS, AlphaNet and NASViT train
so: the largest network learns from labels or from an external teacher, all others from its detached
logits on the same images. NASViT adds what to do where the two gradients are in conflict.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nasjax.core import mixture as mixtures
from nasjax.core.architecture import Arch
from nasjax.core.errors import NasjaxError, did_you_mean
from nasjax.core.supernet import STATISTICS, Supernet
from nasjax.train import optim, projection
from nasjax.train.accumulate import in_parts
from nasjax.train.distillation import DISTILLATIONS, FACTOR
from nasjax.train.losses import accuracy, cross_entropy
from nasjax.train.rng import stream
from nasjax.train.state import State
from nasjax.train.steps import Batch, Metrics, Prepare, Step, apply_gradient, finish
from nasjax.train.teachers import Teacher

SUM = "sum"


@dataclass(frozen=True)
class Sandwich:
    """How sub-networks learn, and how their gradient and the largest network's are combined.

    The defaults are the paper's. The released code has ``projection="released"``, ``clip=1`` and
    ``from_epoch=101`` of 400.

    Attributes:
      distillation: loss of the sub-networks: ``"alpha"``, the adaptive alpha-divergence, or
        ``"kl"``.
      projection: ``"published"`` (equation 1), ``"released"``, or ``"sum"`` for none.
      first: which gradient has priority in a conflict, ``"subnets"`` or ``"supernet"`` (Table 7).
      from_epoch: the epoch from which on gradients are projected; before, they are added up.
      clip: greatest global norm of the summed gradient of the sub-networks; 0 for any.
      teacher: file of the logits that the largest network learns from, see
        :func:`~nasjax.train.teachers.read_logits`; labels where empty.
      factor: that a teacher's logits are multiplied by.
    """

    distillation: str = "alpha"
    projection: str = "published"
    first: str = "subnets"
    from_epoch: float = 0.0
    clip: float = 0.0
    teacher: str = ""
    factor: float = FACTOR

    def __post_init__(self) -> None:
        known = {
            "distillation": DISTILLATIONS,
            "projection": (SUM, *projection.RULES),
            "first": projection.FIRST,
        }
        for field, names in known.items():
            if getattr(self, field) not in names:
                raise NasjaxError(
                    f"a sandwich's {field} is {getattr(self, field)!r}; "
                    f"{did_you_mean(getattr(self, field), names)}"
                )
        for field in ("from_epoch", "clip"):
            if not getattr(self, field) >= 0:
                raise NasjaxError(
                    f"a sandwich's {field} is {getattr(self, field)}; a number from 0 was expected."
                )
        if not self.factor > 0:
            raise NasjaxError(
                f"a sandwich's factor is {self.factor}; a number above 0 was expected."
            )


def sandwich_step(
    supernet: Supernet,
    archs: Sequence[Arch],
    tx: optax.GradientTransformation,
    prepare: Prepare,
    settings: Sandwich | None = None,
    *,
    start: int = 0,
    window: int = 1,
    teacher: Teacher | None = None,
    decay: float = 0.0,
    parts: int = 1,
) -> Step:
    """The step ``(state, batch, paths, variables) -> (state, metrics)`` of the sandwich rule.

    ``paths (paths, genes)`` are encoded architectures, the first of them the largest: traced, so
    that one program serves all that have the same static options, path by path. The gradients of
    the other paths are added up one after the other, in the memory of one, and take part in the
    step as ``settings`` say. All of them see the same images. Batch normalisations use the
    statistics of the batch. Where it has a teacher, ``variables`` are the teacher's.

    Metrics: ``train_loss`` and ``train_accuracy`` of the largest network, and the means over the
    other ones, ``distillation_loss`` and ``subnets_accuracy``. Conflicts are counted in
    ``state.statistics``, see :func:`no_conflicts`.

    Args:
      supernet: what is trained.
      archs: one architecture for each path, of which nothing counts but the static options.
      tx: made by :func:`~nasjax.train.optim.partitioned`.
      prepare: ``(key, batch) -> (images, soft labels)``.
      settings: of the rule; the paper's where None.
      start: the step from which on gradients are projected.
      window: steps after which conflicts are counted anew.
      teacher: of the largest network; None for labels.
      decay: of the moving average of the weights; 0 where none is kept.
      parts: how many the batch is divided into to compute its gradient, see
        :func:`~nasjax.train.accumulate.in_parts`.

    Raises:
      NasjaxError: if there are fewer than two paths.
    """
    settings = settings or Sandwich()
    if len(archs) < 2:
        raise NasjaxError(
            f"{len(archs)} paths make no sandwich; the largest and others were expected."
        )
    largest = supernet.maximal(archs[0])
    groups = _groups(supernet, archs[1:])
    distil = DISTILLATIONS[settings.distillation]
    stacked = stacked_tensors(supernet)

    def passes(weights: Any, paths: jax.Array, examples: Any, chance: jax.Array) -> Any:
        """Gradients of the largest network and of the others added up, and metrics."""
        images, labels, target = examples

        def run(module: nn.Module, weights: Any, path: jax.Array, number: Any) -> jax.Array:
            mixture = mixtures.one_hot_vector(supernet.space, path)
            given = supernet.masked({"params": weights}, mixture)
            rngs = {"dropout": jax.random.fold_in(chance, number)}
            logits: Any
            logits, _ = module.apply(
                {**given, **supernet.empty_statistics},
                images,
                train=True,
                rngs=rngs,
                mutable=[STATISTICS],
            )
            return logits

        def supernet_loss(weights: Any) -> tuple[jax.Array, jax.Array]:
            logits = run(largest, weights, paths[0], 0)
            return cross_entropy(logits, target), logits

        (loss, logits), of_supernet = jax.value_and_grad(supernet_loss, has_aux=True)(weights)

        def add(module: nn.Module, total: Any, path: jax.Array, number: Any) -> Any:
            def subnet_loss(weights: Any) -> tuple[jax.Array, jax.Array]:
                found = run(module, weights, path, number)
                return distil(found, jax.lax.stop_gradient(logits)), accuracy(found, labels)

            found, gradient = jax.value_and_grad(subnet_loss, has_aux=True)(weights)
            return jax.tree.map(jnp.add, total, (gradient, found))

        zero = jnp.zeros((), jnp.float32)
        total: Any = (jax.tree.map(jnp.zeros_like, weights), (zero, zero))
        for module, numbers in groups:

            def body(total: Any, each: Any, module: nn.Module = module) -> Any:
                # One network's activations at a time: the gradients so far are done before it.
                total, _, each = jax.lax.optimization_barrier((total, of_supernet, each))
                return add(module, total, *each), None

            each = paths[np.array(numbers)], np.array(numbers)
            # On a CPU, XLA runs convolutions inside a loop many times slower.
            unroll = len(numbers) if jax.default_backend() == "cpu" else 1
            total, _ = jax.lax.scan(body, total, each, unroll=unroll)
        of_subnets, sums = total
        means = [x / (len(archs) - 1) for x in sums]
        metrics: Metrics = {"train_loss": loss, "train_accuracy": accuracy(logits, labels)}
        metrics |= dict(zip(("distillation_loss", "subnets_accuracy"), means, strict=True))
        return of_supernet, of_subnets, metrics

    def step(
        state: State, batch: Batch, paths: jax.Array, variables: Any = None
    ) -> tuple[State, Metrics]:
        images, labels = prepare(stream(state.key, "augment/weights", state.step), batch)
        target = labels if teacher is None else teacher.target(variables, images, batch)
        chance = stream(state.key, "dropout/weights", state.step)
        gradients = functools.partial(passes, state.weights, paths)
        of_supernet, of_subnets, metrics = in_parts(
            gradients, (images, labels, target), chance, parts
        )
        found = projection.cosines(of_subnets, of_supernet, stacked)
        gradient = _combined(settings, of_subnets, of_supernet, state.step >= start, stacked)
        counted = _count(found, state, window)
        state, finite = apply_gradient(tx, optim.WEIGHTS, gradient, state, metrics)
        state = dataclasses.replace(state, statistics=counted)
        return finish(state, finite, decay), metrics

    return step


def _groups(supernet: Supernet, archs: Sequence[Arch]) -> list[tuple[nn.Module, list[int]]]:
    """The maximal modules of the paths after the first, with the numbers of those they run."""
    numbered = enumerate(archs, start=1)
    found = []
    for _, group in itertools.groupby(numbered, key=lambda pair: supernet.static(pair[1])):
        pairs = list(group)
        found.append((supernet.maximal(pairs[0][1]), [number for number, _ in pairs]))
    return found


def _combined(
    settings: Sandwich, subnets: Any, supernet: Any, active: jax.Array, stacked: Any
) -> Any:
    if settings.clip:
        subnets = projection.clip_norm(subnets, settings.clip)
    if settings.projection == SUM:
        return jax.tree.map(jnp.add, subnets, supernet)
    rule = projection.RULES[settings.projection]

    def from_start(product: jax.Array, square: jax.Array) -> jax.Array:
        return jnp.where(active, rule(product, square), 0.0)

    return projection.combine(
        subnets, supernet, first=settings.first, rule=from_start, stacked=stacked
    )


def stacked_tensors(supernet: Supernet) -> dict[str, Any]:
    """Of each parameter, whether its first axis runs over scanned layers."""
    stacks = supernet.space.stacks
    names = dict(supernet.names["params"])
    spec = jax.sharding.PartitionSpec
    return jax.tree.map(
        lambda axes: bool(axes) and axes[0] in stacks,
        names,
        is_leaf=lambda leaf: isinstance(leaf, spec),
    )


def no_conflicts(supernet: Supernet) -> dict[str, Any]:
    """Counts of tensors in conflict, and of all with a gradient, by top-level module: all zero.

    They are ``state.statistics`` of a training by the sandwich rule, added up over the steps since
    the last logged line, so that they are saved and resumed with it. Of scanned layers there is a
    count for each.
    """
    shapes, stacked = supernet.shapes["params"], stacked_tensors(supernet)
    each = {}
    pairs = zip(jax.tree.leaves_with_path(shapes), jax.tree.leaves(stacked), strict=True)
    for (path, leaf), stack in pairs:
        each[_module(path, stack)] = jnp.zeros(leaf.shape[:1] if stack else (), jnp.float32)
    return {"conflicts": each, "tensors": dict(each)}


def conflict_ratios(state: State) -> dict[str, Any]:
    """The conflict ratio of a training since it last counted anew, for the log.

    Returns:
      ``conflict_ratio``, over all tensors and steps, and ``conflicts``, the same by top-level
      module; scanned layers are called ``blocks_0, blocks_1, ...``, as unrolled ones are.
    """
    counts = jax.device_get(state.statistics)
    conflicts, tensors = (_by_name(counts[kind]) for kind in ("conflicts", "tensors"))
    every = sum(tensors.values())
    return {
        "conflict_ratio": sum(conflicts.values()) / every if every else float("nan"),
        "conflicts": {n: conflicts[n] / tensors[n] for n in tensors if tensors[n]},
    }


def _by_name(counts: Mapping[str, np.ndarray]) -> dict[str, float]:
    found = {}
    for name, count in counts.items():
        if not np.ndim(count):
            found[name] = float(count)
            continue
        found |= {f"{name}{layer}": float(x) for layer, x in enumerate(count)}
    return found


def _count(cosines: Mapping[str, Any], state: State, window: int) -> dict[str, Any]:
    """The counts of ``state`` and those of this step, or these alone where a window begins."""
    kept = jnp.where(state.step % window == 0, 0.0, 1.0)
    parts: dict[str, list[jax.Array]] = {}
    for path, cosine in jax.tree.leaves_with_path(cosines):
        parts.setdefault(_module(path, cosine.ndim > 0), []).append(cosine)
    stacks = {name: jnp.stack(each) for name, each in parts.items()}
    new = {
        "conflicts": {n: jnp.sum(x < 0, 0, dtype=jnp.float32) for n, x in stacks.items()},
        "tensors": {n: jnp.sum(x != 0, 0, dtype=jnp.float32) for n, x in stacks.items()},
    }
    return jax.tree.map(lambda a, b: kept * a + b, dict(state.statistics), new)


def _module(path: Any, stack: bool) -> str:
    """The top-level module of a parameter; of a scanned one what its layers' names begin with."""
    key = path[0].key
    return f"{key}_" if stack else key
