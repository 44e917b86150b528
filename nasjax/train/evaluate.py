"""Evaluation: any architecture of a super-network in one compiled program, or one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nasjax import data
from nasjax.core import mixture as mixtures
from nasjax.core.architecture import Arch
from nasjax.core.errors import NasjaxError
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
    """

    def __init__(
        self, session: Session, dataset: data.Dataset, batch_size: int, size: int | None = None
    ) -> None:
        self._session = session
        self._dataset = dataset
        self._batch_size = batch_size
        self._size = size
        self._superposed: dict[Supernet, Any] = {}
        self._batches: list[steps.Batch] | None = None
        self._training: jax.Array | None = None

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
        """Accuracy of ``arch`` with weights inherited from the super-network.

        One program serves all architectures: the super-network under a one-hot mixture. Where it
        has batch normalisations their statistics are calibrated on training images.
        """
        if supernet not in self._superposed:

            def apply(weights: Any, mixture: Any, statistics: Any, images: jax.Array) -> Any:
                variables = supernet.superpose({"params": weights}, mixture)
                return supernet.module.apply({**variables, **statistics}, images, train=False)

            def calibrate(weights: Any, mixture: Any, images: jax.Array) -> Any:
                variables = supernet.superpose({"params": weights}, mixture)
                shapes = {**variables, **supernet.empty_statistics}
                return {STATISTICS: calibrate_batch_stats(supernet.module, shapes, images)}

            self._superposed[supernet] = (self._compile(apply), jax.jit(calibrate))
        mixture, statistics = mixtures.one_hot(supernet.space, arch), {}
        evaluate, calibrate = self._superposed[supernet]
        if STATISTICS in supernet.shapes:
            statistics = calibrate(weights, mixture, self._calibration())
        return self._accuracy(evaluate, weights, mixture, statistics)

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
        sums = [step(*variables, batch) for batch in self._examples()]
        totals = jax.device_get(jax.tree.map(lambda *parts: sum(parts), *sums))
        return float(totals["correct"]) / float(totals["weight"])

    def _examples(self) -> Any:
        place = sharding.batches(self._session.mesh)
        if isinstance(self._dataset.test, data.RecordSource):
            size = self._size or self._dataset.image_shape[0]
            return data.evaluation_batches(self._dataset.test, self._batch_size, place, size)
        if self._batches is None:  # small enough to stay on the devices
            every = data.evaluation_batches(self._dataset.test, self._batch_size, place)
            self._batches = list(every)
        return self._batches
