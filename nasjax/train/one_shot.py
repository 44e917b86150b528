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
from nasjax.sampling import Sampler
from nasjax.train import optim, phases, sharding, steps
from nasjax.train import state as states
from nasjax.train.probes import Probes
from nasjax.train.rng import stream
from nasjax.train.session import Session
from nasjax.train.state import State


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
    phase: str = "search",
) -> State:
    """Train ``supernet`` by sub-networks that ``sampler`` draws, one program for all of them.

    A space with static choices has a program for each combination of their options.

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
      phase: its name, also of its checkpoints.

    Raises:
      NasjaxError: if the images do not fit, or a step's architectures have different static
        options.
    """
    phases.check_images(supernet, dataset, recipe.augmentation)
    split = data.bilevel_split(dataset.train, weights_fraction, seed=session.seed)
    loader = phases.make_loader(session, split.weights, recipe, supernet.input_shape, 0)
    per_epoch = loader.steps_per_epoch
    tx = optim.partitioned(recipe.transformation(per_epoch))
    key = session.key(phase)
    if weights is None:
        weights = supernet.init(stream(key, "init"))["params"]

    def create(key: jax.Array, weights: Any) -> State:
        return states.create(key, weights, tx, average=recipe.average > 0)

    state = phases.place(session, create, supernet.names["params"], key, weights)
    prepare = phases.preparation(dataset, recipe.augmentation)
    sides = (supernet, *others)

    def build(arch: Arch) -> steps.Step:
        module = supernet.maximal(arch)
        step = steps.one_shot_step(sides, module, tx, prepare, decay=recipe.average)
        return phases.compile_step(session, phase, step)

    rate = recipe.learning_rate(per_epoch)
    schedule = recipe.schedule(per_epoch)
    describe: Callable[[State], Mapping[str, Any]] = rate
    if probes is not None:
        size = recipe.augmentation.size
        look = probes.open(session, supernet, dataset, weights_fraction, size, schedule)

        def describe(state: State) -> dict[str, Any]:
            return {**rate(state), **look(state)}

    return phases.run(
        session,
        phase,
        state,
        _by_static(session, supernet, build),
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

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Any) -> None:
        del state


def _by_static(
    session: Session, supernet: Supernet, build: Callable[[Arch], steps.Step]
) -> Callable[..., tuple[State, steps.Metrics]]:
    """The step of the architectures' static options, on their encodings."""
    compiled: dict[tuple[Any, ...], steps.Step] = {}
    place = sharding.replicated(session.mesh)

    def call(
        state: State, batch: steps.Batch, archs: Sequence[Arch]
    ) -> tuple[State, steps.Metrics]:
        options = {supernet.static(arch) for arch in archs}
        if len(options) != 1:
            raise NasjaxError(
                f"the architectures of a step have different {', '.join(supernet.space.static)}, "
                "which run in different programs; sample one architecture a step, or fairly."
            )
        (static,) = options
        if static not in compiled:
            compiled[static] = build(archs[0])
        paths = np.stack([architecture.encode(supernet.space, arch) for arch in archs])
        # Every host has drawn them; device_put would have them compared, step by step.
        placed = jax.make_array_from_callback(paths.shape, place, lambda index: paths[index])
        return compiled[static](state, batch, placed)

    return call
