"""Evaluation: any architecture of a super-network in one compiled program, or one network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nasjax import data
from nasjax.core import architecture
from nasjax.core import mixture as mixtures
from nasjax.core.architecture import Arch
from nasjax.core.chunks import in_chunks
from nasjax.core.errors import NasjaxError
from nasjax.core.program import Program
from nasjax.core.supernet import STATISTICS, Supernet
from nasjax.train import sharding, steps
from nasjax.train.calibrate import calibrate_batch_stats
from nasjax.train.session import Session

CALIBRATION_BATCHES = 8


class Evaluator:
    """Accuracy on the test part of a dataset, every example counted exactly once.

    Args:
      session: of the run.
      dataset: the data.
      batch_size: examples evaluated at once.
      size: side the images are resized to; None for their own.
      chunk: architectures evaluated at once, by ``vmap``; also an attribute, which is halved where
        the devices' memory does not suffice. None for 1 on a CPU, which gains nothing by more, and
        8 elsewhere.
    """

    def __init__(
        self,
        session: Session,
        dataset: data.Dataset,
        batch_size: int,
        size: int | None = None,
        chunk: int | None = None,
    ) -> None:
        if chunk is not None and chunk < 1:
            raise NasjaxError(
                f"{chunk} architectures at once are none; a chunk of 1 or more was expected."
            )
        self._session = session
        self._dataset = dataset
        # Padding has weight 0, so any size serves any number of devices.
        shards = session.mesh.shape["data"]
        self._batch_size = -(-batch_size // shards) * shards
        self._size = size
        self.chunk = chunk or (1 if jax.default_backend() == "cpu" else 8)
        self._programs: dict[Any, tuple[Program, Any]] = {}
        self._batches: list[steps.Batch] | None = None
        self._training: jax.Array | None = None

    @property
    def compiles(self) -> int:
        """How many programs have been compiled for architectures of super-networks."""
        return sum(evaluate.compiles for evaluate, _ in self._programs.values())

    def network(
        self,
        module: nn.Module,
        weights: Mapping[str, Any],
        statistics: Mapping[str, Any] | None = None,
    ) -> float:
        """Accuracy of a network with parameters ``weights`` and running ``statistics``."""

        def apply(weights: Any, statistics: Any, images: jax.Array) -> Any:
            return module.apply({"params": weights, **statistics}, images, train=False)

        given = {STATISTICS: statistics} if statistics else {}
        return self._accuracy(self._compile(apply), weights, given)

    def architecture(self, supernet: Supernet, weights: Mapping[str, Any], arch: Arch) -> float:
        """Accuracy of ``arch`` with weights inherited from the super-network."""
        ((_, accuracy),) = self.population(supernet, weights, [arch])
        return accuracy

    def architectures(
        self, supernet: Supernet, weights: Mapping[str, Any], archs: Sequence[Arch]
    ) -> list[float]:
        """Accuracies of ``archs`` with inherited weights, in their order."""
        found = {
            architecture.code(supernet.space, arch): accuracy
            for arch, accuracy in self.population(supernet, weights, archs)
        }
        return [found[architecture.code(supernet.space, arch)] for arch in archs]

    def population(
        self,
        supernet: Supernet,
        weights: Mapping[str, Any],
        archs: Sequence[Arch],
        others: Sequence[Supernet] = (),
    ) -> Iterator[tuple[Arch, float]]:
        """Yield ``(architecture, accuracy)`` with inherited weights, chunk by chunk.

        One program serves all architectures (one for each combination of static options): the
        super-network under one-hot mixtures, several of them at once by ``vmap``, the images
        spread over the devices. Where the network has batch normalisations their statistics are
        calibrated on training images, for each architecture.

        Args:
          supernet: whose sub-networks they are.
          weights: of the super-network.
          archs: in any order, which is kept within equal static options.
          others: further super-networks of the same weights; the accuracy is the mean (BCNet).
        """

        def run(part: Sequence[Arch]) -> Sequence[float]:
            sides = [self._chunked(s, weights, part) for s in (supernet, *others)]
            return np.mean(sides, axis=0).tolist()

        return in_chunks(self, archs, run, supernet.static)

    def _chunked(
        self, supernet: Supernet, weights: Mapping[str, Any], archs: Sequence[Arch]
    ) -> np.ndarray:
        """Accuracies of at most a chunk of architectures with equal static options."""
        evaluate, calibrate = self._program(supernet, archs[0])
        codes = [architecture.encode(supernet.space, arch) for arch in archs]
        filled = codes + [codes[-1]] * (self.chunk - len(codes))
        place = sharding.replicated(self._session.mesh)
        vectors = jax.device_put(np.stack(filled), place)
        statistics = {}
        if STATISTICS in supernet.shapes:
            statistics = calibrate(weights, vectors, self._calibration())
        totals = self._totals(evaluate, weights, vectors, statistics)
        return np.asarray(totals["correct"] / totals["weight"])[: len(archs)]

    def _program(self, supernet: Supernet, arch: Arch) -> tuple[Program, Any]:
        """The compiled evaluation and calibration of chunks of architectures like ``arch``."""
        at = (supernet, supernet.static(arch), self.chunk)
        if at in self._programs:
            return self._programs[at]
        module = supernet.maximal(arch)

        def variables(weights: Any, vector: jax.Array) -> Any:
            mixture = mixtures.one_hot_vector(supernet.space, vector)
            # Left to the module, for no copy of all weights for each architecture of a chunk.
            return supernet.masked({"params": weights}, mixture)

        def apply(weights: Any, vector: jax.Array, statistics: Any, images: jax.Array) -> Any:
            return module.apply({**variables(weights, vector), **statistics}, images, train=False)

        def calibrate(weights: Any, vector: jax.Array, images: jax.Array) -> Any:
            shapes = {**variables(weights, vector), **supernet.empty_statistics}
            return {STATISTICS: calibrate_batch_stats(module, shapes, images)}

        step = steps.evaluation_step(apply, self._prepare)
        self._programs[at] = (
            Program(_over_chunk(step, self.chunk, (None, 0, 0, None))),
            jax.jit(_over_chunk(calibrate, self.chunk, (None, 0, None))),
        )
        return self._programs[at]

    def _calibration(self) -> jax.Array:
        """Training images without augmentation, ``(batches, batch, height, width, channels)``."""
        if self._training is None:
            size = self._size or self._dataset.image_shape[0]
            source, place = self._dataset.train, sharding.batches(self._session.mesh)
            # Only whole batches: an image of zeros that fills the last one would count.
            shards = self._session.mesh.shape["data"]
            batch_size = min(self._batch_size, len(source) // shards * shards)
            if not batch_size:
                raise NasjaxError(
                    f"{len(source)} training images cannot be spread over {shards} devices to "
                    "calibrate batch normalisations; use more images, or fewer devices."
                )
            batches = min(CALIBRATION_BATCHES, len(source) // batch_size)
            # Evenly spaced: a folder's examples are in the order of their classes.
            rows = np.linspace(0, len(source) - 1, batches * batch_size).astype(int)
            part = source.take(rows)
            options = [size] if isinstance(part, data.RecordSource) else []
            found = data.evaluation_batches(part, batch_size, place, *options)
            self._training = jnp.stack([self._prepare(batch) for batch in found])
        return self._training

    def _compile(self, apply: Callable[..., Any]) -> Callable[..., steps.Metrics]:
        return jax.jit(steps.evaluation_step(apply, self._prepare))

    def _prepare(self, batch: steps.Batch) -> jax.Array:
        images = batch["image"]
        images = images if self._size is None else data.resize(images, self._size)
        return data.normalize(images, self._dataset.mean, self._dataset.std)

    def _accuracy(self, step: Callable[..., steps.Metrics], *variables: Any) -> float:
        totals = self._totals(step, *variables)
        return float(totals["correct"]) / float(totals["weight"])

    def _totals(self, step: Callable[..., steps.Metrics], *variables: Any) -> Any:
        """Sums over all examples."""
        sums = []
        for batch in self._examples():
            sums.append(step(*variables, batch))
            if jax.default_backend() == "cpu":
                # On virtual devices the all-reduces of many programs at once can wait for one
                # another for good.
                jax.block_until_ready(sums[-1])
        return jax.device_get(jax.tree.map(lambda *parts: sum(parts), *sums))

    def _examples(self) -> Any:
        place = sharding.batches(self._session.mesh)
        if isinstance(self._dataset.test, data.RecordSource):
            size = self._size or self._dataset.image_shape[0]
            return data.evaluation_batches(self._dataset.test, self._batch_size, place, size)
        if self._batches is None:  # small enough to stay on the devices
            every = data.evaluation_batches(self._dataset.test, self._batch_size, place)
            self._batches = list(every)
        return self._batches


def _over_chunk(
    function: Callable[..., Any], chunk: int, axes: tuple[int | None, ...]
) -> Callable[..., Any]:
    """``function`` for each of ``chunk`` entries of the arguments whose axis is not None."""
    if chunk > 1:
        return jax.vmap(function, in_axes=axes)

    # Without vmap, so that its products are plain ones and not batches of one.
    def one(*arguments: Any) -> Any:
        first = [
            a if axis is None else jax.tree.map(lambda x: x[0], a)
            for a, axis in zip(arguments, axes, strict=True)
        ]
        return jax.tree.map(lambda x: x[None], function(*first))

    return one
