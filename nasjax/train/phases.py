"""The phases of a run: search a super-network, train one network.

Each is one call that builds the step, resumes where its checkpoints are, and returns the final
state; each can be called alone, from a notebook as well as from ``launch/``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from nasjax import data, relax
from nasjax.core import mixture as mixtures
from nasjax.core.errors import NasjaxError
from nasjax.core.initial import draw_boxed
from nasjax.core.names import axis_names
from nasjax.core.supernet import STATISTICS, Supernet
from nasjax.train import loop, optim, sharding, steps
from nasjax.train import state as states
from nasjax.train.metrics import plain
from nasjax.train.placement import CompiledStep, place
from nasjax.train.probes import Look, Probes
from nasjax.train.profile import Profiler
from nasjax.train.rng import stream
from nasjax.train.session import Session
from nasjax.train.state import State


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How weights are trained.

    Attributes:
      epochs: passes over the training data.
      batch_size: examples of a step, over all devices.
      optimizer: of the weights; its warm-up is given here, in epochs.
      warmup_epochs: of linear warm-up.
      augmentation: applied inside the step.
      auxiliary: weight of the loss of the network's auxiliary head, where it has one.
      parts: how many a batch is divided into to compute its gradient, where it does not fit in
        memory at once.
      together: steps in one call of the program, for small networks that would wait for the host;
        of data in memory.
      average: decay of a moving average of the weights, which is then what is evaluated; 0: none.
      log_every: steps between lines of metrics; 0: one line an epoch.
      save_every: steps between checkpoints.
      workers: processes that read and decode data which does not fit in memory.
    """

    epochs: float
    batch_size: int
    optimizer: optim.Optimizer = dataclasses.field(default_factory=optim.Optimizer)
    warmup_epochs: float = 0.0
    augmentation: data.Augmentation = dataclasses.field(default_factory=data.Augmentation)
    auxiliary: float = 0.0
    parts: int = 1
    together: int = 1
    average: float = 0.0
    log_every: int = 50
    save_every: int = 500
    workers: int = 0

    def resolved(self, steps_per_epoch: int) -> optim.Optimizer:
        """The optimizer with its warm-up in steps."""
        warmup = round(self.warmup_epochs * steps_per_epoch)
        return dataclasses.replace(self.optimizer, warmup_steps=warmup)

    def transformation(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """The optax transformation of the weights."""
        return self.resolved(steps_per_epoch).build(self.steps(steps_per_epoch))

    def learning_rate(self, steps_per_epoch: int) -> Callable[[State], dict[str, float]]:
        """The learning rate of a state's last step, for the log."""
        schedule = self.resolved(steps_per_epoch).schedule(self.steps(steps_per_epoch))
        rate = jax.jit(lambda step: schedule(step - 1))  # one program instead of many
        return lambda state: {"learning_rate": float(rate(state.step))}

    def steps(self, steps_per_epoch: int) -> int:
        """Length of the training in steps."""
        return max(1, round(self.epochs * steps_per_epoch))

    def schedule(self, steps_per_epoch: int) -> loop.Schedule:
        """When the loop logs and saves."""
        total = self.steps(steps_per_epoch)
        log = self.log_every or steps_per_epoch
        return loop.Schedule(total, log, self.save_every, steps_per_epoch, self.together)


def search(
    session: Session,
    supernet: Supernet,
    relaxation: Mapping[str, Any],
    dataset: data.Dataset,
    recipe: Recipe,
    alphas: optim.Optimizer,
    *,
    weights_fraction: float = 0.5,
    budget: steps.Budget | None = None,
    second_order: bool = False,
    alphas_from_epoch: float = 0.0,
    modify: Callable[[relax.Relaxation], relax.Relaxation] | None = None,
    weights: Mapping[str, Any] | None = None,
    start: Mapping[str, Any] | None = None,
    phase: str = "search",
    judge: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    probes: Probes | None = None,
) -> tuple[State, relax.Relaxation]:
    """Search ``supernet`` by gradient.

    Args:
      session: of the run.
      supernet: what is searched.
      relaxation: arguments of :func:`nasjax.relax.relaxation`, ``{"name": "drnas", ...}``.
      dataset: its training part is divided between the two levels.
      recipe: of the weights.
      alphas: optimizer of the architecture parameters.
      weights_fraction: part of the training data whose gradient the weights see.
      budget: optional penalty on an expected cost.
      second_order: whether the architecture's gradient looks one update of the weights ahead.
      alphas_from_epoch: the epoch from which on the alphas are trained; 15 in PC-DARTS.
      modify: makes another relaxation of the one that ``relaxation`` names, see
        :mod:`nasjax.relax_extras`.
      weights: to start from; drawn anew where None.
      start: architecture parameters to start from; drawn anew where None.
      phase: its name, also of its checkpoints.
      judge: what the log says of the current architecture and the search never sees, such as an
        oracle's score.
      probes: sub-networks whose accuracy is logged.

    Returns:
      The final state and the relaxation.

    Raises:
      NasjaxError: if the images do not fit, or the alphas would never be trained.
    """
    check_images(supernet, dataset, recipe.augmentation)
    for name in supernet.space.static:
        if len(supernet.space.choice(name).options) > 1:
            raise NasjaxError(
                f"choice {name!r} of space {supernet.space.name!r} changes the shapes of "
                "activations, so its options cannot be mixed; give the space one of them, or train "
                "by sampling."
            )
    split = data.bilevel_split(dataset.train, weights_fraction, seed=session.seed)
    loaders = [
        make_loader(session, source, recipe, supernet.input_shape, seed)
        for seed, source in enumerate((split.weights, split.alphas))
    ]
    per_epoch = loaders[0].steps_per_epoch
    total = recipe.steps(per_epoch)
    method = relax.relaxation(**{**relaxation, "steps": total})
    method = method if modify is None else modify(method)
    if alphas_from_epoch and recipe.together > 1:
        raise NasjaxError(
            "a search whose alphas wait changes its program on the way; set together to 1, or "
            "alphas_from_epoch to 0."
        )
    if method.learns and alphas_from_epoch >= recipe.epochs:
        raise NasjaxError(
            f"the alphas are trained from epoch {alphas_from_epoch:g} of {recipe.epochs:g} on, "
            "which is never; begin earlier, or search longer."
        )
    tx = optim.partitioned(recipe.transformation(per_epoch), alphas.build(total))

    def step(method: relax.Relaxation) -> steps.Step:
        return steps.bilevel_step(
            supernet,
            method,
            tx,
            preparation(dataset, recipe.augmentation),
            preparation(dataset, without_mixing(recipe.augmentation)),
            budget=budget,
            second_order=second_order,
            decay=recipe.average,
            parts=recipe.parts,
        )

    key = session.key(phase)

    if weights is None:
        weights = supernet.init(stream(key, "init"))["params"]
    if start is None:
        start = method.init(supernet.space, stream(key, "alphas"))

    def create(key: jax.Array, weights: Any, alphas: Any) -> State:
        return states.create(key, weights, tx, alphas=alphas, average=recipe.average > 0)

    names = supernet.names["params"]
    state = place(session, create, names, key, weights, start)
    schedule = recipe.schedule(per_epoch)
    look = None
    if probes is not None:
        size = recipe.augmentation.size
        look = probes.open(session, supernet, dataset, weights_fraction, size, schedule)
    describe = _describe(supernet, method, recipe.learning_rate(per_epoch), judge, look)
    compiled: Any = CompiledStep(session, phase, step(method), names)
    if alphas_from_epoch and method.learns:
        # Two programs: on a CPU, XLA runs convolutions inside a conditional fifty times slower.
        waiting = dataclasses.replace(method, learns=False)
        early = CompiledStep(session, phase, step(waiting), names)
        compiled = _from_step(round(alphas_from_epoch * per_epoch), early, compiled)
    name = supernet.space.name
    state = run(session, phase, state, compiled, loaders, schedule, describe, space=name)
    return state, method


def train(
    session: Session,
    phase: str,
    module: nn.Module,
    dataset: data.Dataset,
    recipe: Recipe,
    weights: Mapping[str, Any] | None = None,
    **identity: Any,
) -> State:
    """Train one network on all of the training data.

    Args:
      session: of the run.
      phase: name of the phase, also of its checkpoints.
      module: the network.
      dataset: the data.
      recipe: how it is trained.
      weights: to start from; drawn anew where None.
      **identity: JSON-able facts that tell this training from others, e.g. the architecture.
    """
    size = recipe.augmentation.size
    shape = dataset.image_shape if size is None else (size, size, dataset.image_shape[-1])
    loader = make_loader(session, dataset.train, recipe, shape, 0)
    per_epoch = loader.steps_per_epoch
    tx = optim.partitioned(recipe.transformation(per_epoch))
    step = steps.train_step(
        module,
        tx,
        preparation(dataset, recipe.augmentation),
        decay=recipe.average,
        auxiliary=recipe.auxiliary,
        steps=recipe.steps(per_epoch),
        parts=recipe.parts,
    )

    key = session.key(phase)
    # As in training: an auxiliary head is there only then.
    keys = {"params": stream(key, "init"), "dropout": key}
    boxed = draw_boxed(module, keys, shape, train=True)
    variables, names = nn.unbox(boxed), axis_names(boxed)["params"]
    weights = variables["params"] if weights is None else weights

    def create(key: jax.Array, weights: Any, statistics: Any) -> State:
        return states.create(key, weights, tx, statistics=statistics, average=recipe.average > 0)

    state = place(session, create, names, key, weights, variables.get(STATISTICS, {}))
    step = sharding.gathering_weights(step, names, session.mesh, session.rules)
    compiled = CompiledStep(session, phase, step, names)
    rate = recipe.learning_rate(per_epoch)
    schedule = recipe.schedule(per_epoch)
    return run(session, phase, state, compiled, [loader], schedule, rate, **identity)


def run(
    session: Session,
    phase: str,
    state: State,
    step: steps.Step,
    loaders: Sequence[Any],
    schedule: loop.Schedule,
    describe: loop.Describe,
    **identity: Any,
) -> State:
    """Run a phase of ``session`` to its end, from its checkpoints; see :func:`loop.run`."""
    checkpoints = session.checkpointer(phase, **identity)
    try:
        return loop.run(
            phase,
            state,
            step,
            loaders,
            schedule,
            checkpoints,
            session.writers,
            describe,
            Profiler(session.workdir / "profile" / phase, session.profile),
        )
    finally:
        checkpoints.close()


def preparation(dataset: data.Dataset, augmentation: data.Augmentation) -> steps.Prepare:
    """``(key, batch) -> (images, soft labels)`` for training batches of ``dataset``."""

    def prepare(key: jax.Array, batch: steps.Batch) -> tuple[jax.Array, jax.Array]:
        return augmentation(
            key, batch["image"], batch["label"], dataset.num_classes, dataset.mean, dataset.std
        )

    return prepare


def without_mixing(augmentation: data.Augmentation) -> data.Augmentation:
    """The augmentation of the alphas' batches: true labels, since it is accuracy they are for."""
    return dataclasses.replace(augmentation, mixup=0.0, cutmix=0.0, label_smoothing=0.0)


def check_images(
    supernet: Supernet, dataset: data.Dataset, augmentation: data.Augmentation
) -> None:
    """Raise where the images of ``dataset`` are not those ``supernet`` is built for."""
    height, width, channels = dataset.image_shape
    if augmentation.size is not None:
        height = width = augmentation.size
    if (height, width, channels) != tuple(supernet.input_shape):
        raise NasjaxError(
            f"dataset {dataset.name!r} gives images of {height} x {width} x {channels}, but space "
            f"{supernet.space.name!r} is built for {' x '.join(map(str, supernet.input_shape))}; "
            "set space.image_size and space.channels, or augmentation.size to resize the images."
        )


def make_loader(
    session: Session, source: Any, recipe: Recipe, shape: Sequence[int], part: int
) -> data.Loader:
    """The loader of training batches, spread over the mesh.

    Raises:
      NasjaxError: if the recipe cannot be followed with these data or on this mesh.
    """
    devices = session.mesh.shape["data"]
    for name in ("parts", "together"):
        if getattr(recipe, name) < 1:
            raise NasjaxError(f"{name} is {getattr(recipe, name)}; 1 or more was expected.")
    if recipe.batch_size % (devices * recipe.parts) and not recipe.batch_size % devices:
        raise NasjaxError(
            f"a batch of {recipe.batch_size} on {devices} devices does not divide into "
            f"{recipe.parts} parts; choose parts that divide {recipe.batch_size // devices}."
        )
    if recipe.together > 1 and isinstance(source, data.RecordSource):
        raise NasjaxError(
            "data that is read from disk comes step by step; set together to 1, or use data that "
            "fits in memory."
        )
    seed = int(np.random.default_rng([session.seed, part]).integers(2**31))
    size = shape[0] if isinstance(source, data.RecordSource) else None
    return data.make_loader(
        source,
        recipe.batch_size,
        seed,
        image_size=size,
        workers=recipe.workers,
        sharding=sharding.batches(session.mesh),
    )


def _from_step(first: int, early: steps.Step, late: steps.Step) -> steps.Step:
    """``late`` from step ``first`` on, ``early`` before it."""
    number: int | None = None

    def call(state: State, *batches: steps.Batch) -> tuple[State, steps.Metrics]:
        nonlocal number
        # Counted here: to read it from the state of every step would wait for the step.
        number = int(state.step) if number is None else number + 1
        return (early if number < first else late)(state, *batches)

    return call


def _describe(
    supernet: Supernet,
    method: relax.Relaxation,
    rate: Callable[[State], dict[str, float]],
    judge: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None,
    look: Look | None,
) -> Callable[[State], dict[str, Any]]:
    costs = ["params", *(["flops"] if "flops" in supernet.costs else [])]

    @jax.jit
    def measure(alphas: Any) -> dict[str, Any]:
        mixture = method.mean(alphas)
        expected = {f"expected_{cost}": supernet.expect(cost, mixture) for cost in costs}
        return {"entropy": mixtures.entropy(mixture), **expected, "mixture": mixture}

    def describe(state: State) -> dict[str, Any]:
        found = {**rate(state), **plain(measure(state.alphas))}
        arch = relax.decode(supernet.space, method, state.alphas)
        judged = {} if judge is None else {"oracle": dict(judge(arch))}
        seen = {} if look is None else look(state, arch)
        return {**found, "architecture": arch, **judged, **seen}

    return describe
