"""The steps of a configuration on images that are made up, placed as in training.

What the benchmarks of speed share: a :class:`Workbench` builds the steps as training does, places
them on any number of devices, and needs no data.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_conflict import read_config
from experiment import alphas_optimizer, budget, edge_weights, recipe
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nasjax import data, relax, spaces
from nasjax.core import architecture
from nasjax.core.errors import NasjaxError, did_you_mean
from nasjax.core.supernet import STATISTICS, Supernet
from nasjax.train import optim, phases, sharding, steps
from nasjax.train import state as states
from nasjax.train.state import State

PLAIN, ONE_SHOT, BILEVEL, SECOND_ORDER = "plain", "one_shot", "bilevel", "second_order"
# Forward and backward passes of the largest network over a batch. Exact second order has, besides
# those of first order, the gradient that it looks ahead by and the way back through it, of twice
# its cost. DARTS's finite differences have as many.
PASSES = {PLAIN: 1, ONE_SHOT: 1, BILEVEL: 2, SECOND_ORDER: 5}
BATCHES = {PLAIN: 1, ONE_SHOT: 1, BILEVEL: 2, SECOND_ORDER: 2}  # of images, both levels'
EPOCH = 100  # steps, for schedules


@dataclasses.dataclass(frozen=True)
class Workbench:
    """The steps of a configuration on images that are made up.

    ``plain`` trains the super-network's module with its weights as they are, which in a space of
    sizes is the largest network; ``one_shot`` one sampled sub-network; ``bilevel`` is the search by
    gradient, ``second_order`` the same looking one update ahead.

    Attributes:
      config: the configuration, plain.
      supernet: of its space.
      recipe: of its search, with the batch size to measure at.
    """

    config: Mapping[str, Any]
    supernet: Supernet
    recipe: phases.Recipe

    @property
    def dtype(self) -> str:
        """What the network computes in."""
        return str(self.config["space"].get("dtype") or "float32")

    @property
    def sizes(self) -> dict[str, Any]:
        """What a benchmark says of itself."""
        space, batch = self.supernet.space.name, self.recipe.batch_size
        return {"space": space, "dtype": self.dtype, "batch": batch}

    @functools.cached_property
    def searched(self) -> str:
        """The step of the configuration's search: by gradient or, where it samples, one-shot."""
        sampled = (self.config["search"].get("sampler") or {}).get("kind")
        return ONE_SHOT if sampled or not self.mixes else BILEVEL

    @property
    def mixes(self) -> bool:
        """Whether all choices can be mixed: static ones cannot."""
        space = self.supernet.space
        return all(len(space.choice(name).options) == 1 for name in space.static)

    def require(self, kind: str) -> None:
        """Raise where the space has no such step."""
        if kind in (BILEVEL, SECOND_ORDER) and not self.mixes:
            raise NasjaxError(
                f"space {self.supernet.space.name!r} has static choices, which no search by "
                f"gradient mixes; measure the step {ONE_SHOT!r} or {PLAIN!r}."
            )

    @functools.cached_property
    def largest(self) -> dict[str, Any]:
        """The largest architecture; the last options where options are no numbers."""
        return self.supernet.architecture("largest")

    def flops(self, kind: str) -> float | None:
        """Floating-point operations of a step's passes; None where there is no largest network.

        Two for each multiply-add, and a backward pass of twice its forward pass. What is
        recomputed, the optimizer and the augmentation do not count.
        """
        if "flops" not in self.supernet.costs or not architecture.has_order(self.supernet.space):
            return None
        multiply_adds = self.supernet.count("flops", self.largest)
        return 2.0 * multiply_adds * 3 * self.recipe.batch_size * PASSES[kind]

    @property
    def weights(self) -> Any:
        """The maximal weights."""
        return _weights(self.supernet)

    def sized(self, batch_size: int) -> Workbench:
        """The same at another batch size."""
        return dataclasses.replace(
            self, recipe=dataclasses.replace(self.recipe, batch_size=batch_size)
        )

    @functools.cached_property
    def dataset(self) -> data.Dataset:
        """The numbers that steps need of a dataset; its images are no part of them."""
        module, shape = self.supernet.maximal(self.largest), self.supernet.input_shape
        example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        classes = jax.eval_shape(module.apply, self.supernet.shapes, example).shape[-1]
        one = np.zeros((1, *shape), np.uint8), np.zeros(1, np.int32)
        spread = {"mean": (0.5,) * shape[-1], "std": (0.25,) * shape[-1]}
        return data.from_arrays(*one, *one, "made up", num_classes=classes, **spread)

    def source(self, examples: int) -> data.Source:
        """Examples of noise, of the shape the network reads."""
        chance = np.random.default_rng(0)
        images = chance.integers(256, size=(examples, *self.supernet.input_shape), dtype=np.uint8)
        return data.Source(images, chance.integers(self.dataset.num_classes, size=examples))

    def method(self) -> relax.Relaxation:
        """The relaxation of the search."""
        settings = self.config["search"]
        method = relax.relaxation(**{**settings["relaxation"], "steps": self.recipe.steps(EPOCH)})
        modify = edge_weights(self.supernet, settings)
        return method if modify is None else modify(method)

    def step(self, kind: str) -> steps.Step:
        """The pure step, as training builds it."""
        tx, prepare = self._optimizer(kind), phases.preparation(self.dataset, self._augmentation)
        module = self.supernet.maximal(self.largest)
        rest: Any = {"decay": self.recipe.average, "parts": self.recipe.parts}
        if kind == PLAIN:
            return steps.train_step(module, tx, prepare, **rest)
        if kind == ONE_SHOT:
            return steps.one_shot_step((self.supernet,), module, tx, prepare, **rest)
        return steps.bilevel_step(
            self.supernet,
            self.method(),
            tx,
            prepare,
            phases.preparation(self.dataset, phases.without_mixing(self._augmentation)),
            budget=budget(self.config["search"].get("budget")),
            second_order=kind == SECOND_ORDER,
            **rest,
        )

    def program(
        self, kind: str, mesh: Mesh, rules: sharding.Rules, together: int = 1
    ) -> tuple[Any, tuple[Any, ...]]:
        """The step under ``jit``, donating its state, and the shapes of what it is called with.

        Where ``together`` is more than 1, it is so many steps, each with batches of its own.
        """
        step, given = self.step(kind), self.shapes(kind, mesh, rules, together)
        names = self.supernet.names["params"]

        places = (jax.tree.map(lambda x: x.sharding, given[0]), sharding.replicated(mesh))
        if kind == PLAIN:
            step = sharding.gathering_weights(step, names, mesh, rules)
        if together > 1:
            step = _several(step)
        return jax.jit(step, donate_argnums=0, out_shardings=places), given

    def computing(self, mesh: Mesh, rules: sharding.Rules) -> Any:
        """The context in which a program is traced."""
        shapes, names = (tree["params"] for tree in (self.supernet.shapes, self.supernet.names))
        return sharding.computing(shapes, names, mesh, rules)

    def shapes(
        self, kind: str, mesh: Mesh, rules: sharding.Rules, together: int = 1
    ) -> tuple[Any, ...]:
        """State and batches, of so many steps, as shapes that know where they live."""
        create, alphas = self._create(kind)
        weights = self.supernet.shapes["params"]
        state = jax.eval_shape(create, jax.random.key(0), weights, alphas)
        places = sharding.state_shardings(state, self.supernet.names["params"], mesh, rules)
        size, image = self.recipe.batch_size, self.supernet.input_shape
        batch: Any = {
            "image": _shape((size, *image), jnp.uint8),
            "label": _shape((size,), jnp.int32),
        }
        batch = _placed(batch, jax.tree.map(lambda x: sharding.batches(mesh), batch))
        rest = (batch,) * BATCHES[kind]
        if kind == ONE_SHOT:
            paths = _shape(self.paths.shape, self.paths.dtype)
            rest = batch, _placed(paths, sharding.replicated(mesh))
        return (_placed(state, places), *(_stacked(rest, together) if together > 1 else rest))

    def arrays(self, kind: str, shapes: Sequence[Any]) -> tuple[Any, ...]:
        """The arrays for :meth:`shapes`."""
        create, alphas = self._create(kind)
        # By way of the host: the step donates what it is given.
        given = jax.device_get((self.weights, alphas))
        places = jax.tree.map(lambda x: x.sharding, shapes[0])
        state = jax.jit(create, out_shardings=places)(jax.random.key(0), *given)
        source = self.source(self.recipe.batch_size)
        batch: Any = {"image": source.images, "label": source.labels}
        rest = [self.paths if not isinstance(s, dict) else batch for s in shapes[1:]]

        def put(array: np.ndarray, shape: Any) -> jax.Array:  # the same in every step of a call
            return jax.device_put(np.broadcast_to(array, shape.shape), shape.sharding)

        return state, *jax.tree.map(put, rest, list(shapes[1:]))

    @functools.cached_property
    def paths(self) -> np.ndarray:
        """One sampled architecture as a step reads it: ``(1, genes)``."""
        space = self.supernet.space
        drawn = architecture.sample(space, jax.random.key(0))
        static = {name: self.largest[name] for name in space.static}
        return architecture.encode(space, {**drawn, **static})[None]

    @property
    def _augmentation(self) -> data.Augmentation:
        return self.recipe.augmentation

    def _optimizer(self, kind: str) -> Any:
        used = self.recipe
        if kind == SECOND_ORDER and not used.optimizer.eps_root:
            # Without it the gradient is not finite, and no update is made.
            optimizer = dataclasses.replace(used.optimizer, eps_root=1e-12)
            used = dataclasses.replace(used, optimizer=optimizer)
        if kind in (PLAIN, ONE_SHOT):
            return optim.partitioned(used.transformation(EPOCH))
        alphas = alphas_optimizer(self.config["search"].get("alphas", {}))
        return optim.partitioned(used.transformation(EPOCH), alphas.build(used.steps(EPOCH)))

    def _create(self, kind: str) -> tuple[Callable[..., State], Any]:
        """``(key, weights, alphas) -> state``, and the alphas."""
        tx, average = self._optimizer(kind), self.recipe.average > 0
        statistics = self.supernet.empty_statistics.get(STATISTICS, {}) if kind == PLAIN else {}

        def create(key: jax.Array, weights: Any, alphas: Any) -> State:
            more = {"alphas": alphas, "statistics": statistics}
            return states.create(key, weights, tx, **more, average=average)

        if kind in (PLAIN, ONE_SHOT):
            return create, {}
        return create, self.method().init(self.supernet.space, jax.random.key(1))


class Running:
    """A compiled step and the state it goes on from, which it donates.

    Args:
      compiled: ``(state, *batches) -> (state, metrics)``.
      state: before the first call.
      *batches: of every call; or a function of the number of the call that returns them.
    """

    def __init__(self, compiled: Callable[..., Any], state: State, *batches: Any) -> None:
        self._compiled, self._state, self._number = compiled, state, 0
        self._batches = batches[0] if callable(batches[0]) else lambda number: batches

    def __call__(self) -> Any:
        """The metrics of one more step."""
        batches = self._batches(self._number)
        self._number += 1
        self._state, metrics = self._compiled(self._state, *batches)
        return metrics


def open_workbench(options: argparse.Namespace) -> Workbench:
    """The workbench that ``--config``, ``--set``, ``--dtype`` and ``--batch`` ask for.

    Raises:
      NasjaxError: if there is no such key, or the space cannot be built so.
    """
    config = read_config(options.config)
    for text in options.set:
        _override(config, text)
    if options.dtype:
        config["space"]["dtype"] = options.dtype
    used = recipe(config["search"]["recipe"], "search")
    bench = Workbench(config, spaces.make(**config["space"]), used)
    return bench.sized(options.batch) if options.batch else bench


def add_arguments(command: argparse.ArgumentParser, *, pairs: int = 9) -> None:
    """The arguments that every benchmark of a workbench takes; without ``pairs`` no pairs."""
    command.add_argument("--config", required=True, help="FILE or FILE:VARIANT")
    command.add_argument("--batch", type=int, default=0, help="images; the configuration's if 0")
    command.add_argument("--dtype", default="", choices=["float32", "bfloat16"])
    text = "overrides of the configuration; space may get new keys"
    command.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help=text)
    if pairs:
        text = "readings of the clock for each program, in turn"
        command.add_argument("--pairs", type=int, default=pairs, help=text)


def submesh(devices: int, model: int = 1) -> Mesh:
    """A mesh (data, model) of the first ``devices`` devices, ``model`` of them along ``model``."""
    axes = (devices // model, model)
    types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh(axes, ("data", "model"), types, devices=jax.devices()[:devices])


@functools.cache  # super-networks are few
def _weights(supernet: Supernet) -> Any:
    return supernet.init(jax.random.key(0))["params"]


def _override(config: dict[str, Any], text: str) -> None:
    """Set one ``KEY=VALUE``, the key with dots."""
    path, equals, value = text.partition("=")
    if not equals:
        raise NasjaxError(f"--set {text} has no value; KEY=VALUE was expected.")
    *sections, key = path.split(".")
    node = config
    for name in sections:
        node = _child(node, name, text)
    if sections != ["space"]:  # which says itself what it does not know
        _child(node, key, text)
    try:
        node[key] = ast.literal_eval(value)
    except (ValueError, SyntaxError):  # a name
        node[key] = value


def _child(node: Any, name: str, text: str) -> Any:
    known = node if isinstance(node, dict) else {}
    if name not in known:
        raise NasjaxError(
            f"--set {text}: the configuration has no {name!r} there; {did_you_mean(name, known)}"
        )
    return known[name]


def _shape(shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


def _stacked(shapes: Any, count: int) -> Any:
    """The shapes of so many arrays in one, which lie as each would."""

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
        place = NamedSharding(mesh, PartitionSpec(None, *spec))
        return jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype, sharding=place)

    return jax.tree.map(one, shapes)


def _several(step: steps.Step) -> steps.Step:
    run = steps.several(lambda state, batches: step(state, *batches))
    return lambda state, *batches: run(state, batches)


def _placed(shapes: Any, places: Any) -> Any:
    def one(leaf: Any, place: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree.map(one, shapes, places)
