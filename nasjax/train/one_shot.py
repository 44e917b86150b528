"""Training a super-network by sampling: the first of two stages (SPOS, AutoFormer, ViTAS)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nasjax import data
from nasjax.core import architecture
from nasjax.core.architecture import Arch
from nasjax.core.errors import NasjaxError
from nasjax.core.supernet import Supernet
from nasjax.sampling import SANDWICH, Sampler
from nasjax.train import optim, phases, sharding, steps
from nasjax.train import state as states
from nasjax.train.placement import CompiledStep, place
from nasjax.train.probes import Probes
from nasjax.train.rng import stream
from nasjax.train.sandwich import (
    SUM,
    Sandwich,
    conflict_ratios,
    no_conflicts,
    sandwich_step,
)
from nasjax.train.session import Session
from nasjax.train.state import State
from nasjax.train.teachers import Numbered, Teacher


def train_supernet(
    session: Session,
    supernet: Supernet,
    sampler: Sampler,
    dataset: data.Dataset,
    recipe: phases.Recipe,
    *,
    weights_fraction: float = 0.8,
    others: Sequence[Supernet] = (),
    weights: Mapping[str, Any] | None = None,
    probes: Probes | None = None,
    sandwich: Sandwich | None = None,
    teacher: Teacher | None = None,
    phase: str = "search",
) -> State:
    """Train ``supernet`` by sub-networks that ``sampler`` draws, one program for all of them.

    A space with static choices has a program for each combination of their options. What the
    sampler :func:`nasjax.sampling.sandwich` draws is trained by the sandwich rule, see
    :func:`~nasjax.train.sandwich.sandwich_step`.

    Args:
      session: of the run.
      supernet: what is trained.
      sampler: of the sub-networks.
      dataset: its training part is divided; :func:`~nasjax.train.probes.held_out` gives the part
        that trains nothing.
      recipe: of the weights.
      weights_fraction: part of the training data that trains the weights.
      others: further super-networks of the same weights whose logits are added, see
        :func:`~nasjax.train.steps.one_shot_step`.
      weights: to start from; drawn anew where None.
      probes: what is logged on the way.
      sandwich: how the sandwich rule trains; the paper's way where None.
      teacher: of the largest network, by the sandwich rule; labels where None.
      phase: its name, also of its checkpoints.

    Raises:
      NasjaxError: if the images do not fit, a step's architectures have different static options,
        or the sandwich rule is asked for what it cannot do.
    """
    phases.check_images(supernet, dataset, recipe.augmentation)
    layered = sampler.name == SANDWICH
    if recipe.together > 1 and supernet.space.static:
        raise NasjaxError(
            f"space {supernet.space.name!r} has static choices, whose options run in different "
            "programs; set together to 1."
        )
    check_sandwich(sampler, recipe, sandwich, teacher, others)
    split = data.bilevel_split(dataset.train, weights_fraction, seed=session.seed)
    loader = phases.make_loader(session, split.weights, recipe, supernet.input_shape, 0)
    given: list[Any] = []
    if teacher is not None:
        teacher = teacher.of(split.rows)
        if teacher.stored:
            loader = Numbered(loader, sharding.batches(session.mesh))
        given = [jax.device_put(teacher.variables, sharding.replicated(session.mesh))]
    per_epoch = loader.steps_per_epoch
    tx = optim.partitioned(recipe.transformation(per_epoch))
    key = session.key(phase)
    if weights is None:
        weights = supernet.init(stream(key, "init"))["params"]

    def create(key: jax.Array, weights: Any) -> State:
        counts = no_conflicts(supernet) if layered else None
        average = recipe.average > 0
        return states.create(key, weights, tx, statistics=counts, average=average)

    names = supernet.names["params"]
    state = place(session, create, names, key, weights)
    prepare = phases.preparation(dataset, recipe.augmentation)
    schedule = recipe.schedule(per_epoch)
    rule = sandwich or Sandwich()

    def build(archs: Sequence[Arch]) -> CompiledStep:
        if layered:
            step = sandwich_step(
                supernet,
                archs,
                tx,
                prepare,
                rule,
                start=round(rule.from_epoch * per_epoch),
                window=schedule.log,
                teacher=teacher,
                decay=recipe.average,
                parts=recipe.parts,
            )
        else:
            _check_static(supernet, archs)
            module = supernet.maximal(archs[0])
            sides = (supernet, *others)
            step = steps.one_shot_step(
                sides, module, tx, prepare, decay=recipe.average, parts=recipe.parts
            )
        return CompiledStep(session, phase, step, names, given)

    seen: list[Callable[[State], Mapping[str, Any]]] = [recipe.learning_rate(per_epoch)]
    if layered:
        seen.append(conflict_ratios)
    if probes is not None:
        size = recipe.augmentation.size
        seen.append(probes.open(session, supernet, dataset, weights_fraction, size, schedule))

    def describe(state: State) -> dict[str, Any]:
        return {name: value for look in seen for name, value in look(state).items()}

    return phases.run(
        session,
        phase,
        state,
        _ByStatic(session, supernet, build),
        [loader, _Paths(sampler, stream(key, "paths"))],
        schedule,
        describe,
        space=supernet.space.name,
    )


class _Paths:
    """The architectures of each step, in place of a loader."""

    def __init__(self, sampler: Sampler, key: jax.Array) -> None:
        # On the host: read from a GPU, the key of a step would wait for the steps before it.
        self._sampler = sampler
        self._key = jax.device_put(key, jax.local_devices(backend="cpu")[0])

    def batch(self, number: int) -> list[dict[str, Any]]:
        return self._sampler(self._key, number)

    def batches(self, start: int, count: int) -> list[list[dict[str, Any]]]:
        return [self.batch(start + i) for i in range(count)]

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Any) -> None:
        del state


def check_sandwich(
    sampler: Sampler,
    recipe: phases.Recipe,
    sandwich: Sandwich | None,
    teacher: Teacher | None,
    others: Sequence[Supernet] = (),
) -> None:
    """Raise where :func:`train_supernet` could not do what it is asked for by the sandwich rule."""
    if sampler.name != SANDWICH:
        if sandwich is not None or teacher is not None:
            raise NasjaxError(
                f"a sandwich or a teacher is for the sandwich rule, but sampler {sampler.name!r} "
                "draws no sandwich; sample by nasjax.sampling.sandwich, or leave both out."
            )
        return
    if others:
        raise NasjaxError(
            "the sandwich rule trains one end of the weights; leave the other sides out, or sample "
            "uniformly."
        )
    rule = sandwich or Sandwich()
    if rule.projection != SUM and rule.from_epoch >= recipe.epochs:
        raise NasjaxError(
            f"gradients are projected from epoch {rule.from_epoch:g} of {recipe.epochs:g} on, "
            'which is never; begin earlier, or set projection to "sum".'
        )
    mixed = recipe.augmentation.mixup or recipe.augmentation.cutmix
    if teacher is not None and teacher.stored and mixed:
        raise NasjaxError(
            "stored logits are of single images, which mixup and cutmix mix; switch both off, or "
            "use a network as the teacher."
        )


def _check_static(supernet: Supernet, archs: Sequence[Arch]) -> None:
    if len({supernet.static(arch) for arch in archs}) != 1:
        raise NasjaxError(
            f"the architectures of a step have different {', '.join(supernet.space.static)}, "
            "which run in different programs; sample one architecture a step, or fairly."
        )


class _ByStatic:
    """The step of the architectures' static options, on their encodings."""

    def __init__(
        self,
        session: Session,
        supernet: Supernet,
        build: Callable[[Sequence[Arch]], CompiledStep],
    ) -> None:
        self._supernet, self._build = supernet, build
        self._place = sharding.replicated(session.mesh)
        self._compiled: dict[tuple[Any, ...], CompiledStep] = {}

    def __call__(
        self, state: State, batch: steps.Batch, archs: Sequence[Arch]
    ) -> tuple[State, steps.Metrics]:
        return self._step(archs)(state, batch, self._placed(self._codes(archs)))

    def many(
        self, state: State, batches: steps.Batch, archs: Sequence[Sequence[Arch]]
    ) -> tuple[State, steps.Metrics]:
        """Several steps; the space has no static choices."""
        paths = np.stack([self._codes(each) for each in archs])
        return self._step(archs[0]).many(state, batches, self._placed(paths))

    def _step(self, archs: Sequence[Arch]) -> CompiledStep:
        static = tuple(self._supernet.static(arch) for arch in archs)
        if static not in self._compiled:
            self._compiled[static] = self._build(archs)
        return self._compiled[static]

    def _codes(self, archs: Sequence[Arch]) -> np.ndarray:
        return np.stack([architecture.encode(self._supernet.space, arch) for arch in archs])

    def _placed(self, paths: np.ndarray) -> jax.Array:
        # Every host has drawn them; device_put would have them compared, step by step.
        return jax.make_array_from_callback(paths.shape, self._place, lambda index: paths[index])
