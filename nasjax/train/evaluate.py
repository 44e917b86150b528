"""Evaluation: any architecture of a super-network in one compiled program, or one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from nasjax import data
from nasjax.core import mixture as mixtures
from nasjax.core.architecture import Arch
from nasjax.core.supernet import Supernet
from nasjax.train import sharding, steps
from nasjax.train.session import Session


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
        self._superposed: dict[int, Any] = {}
        self._batches: list[steps.Batch] | None = None

    def network(self, module: nn.Module, weights: Mapping[str, Any]) -> float:
        """Accuracy of a network with parameters ``weights``."""

        def apply(weights: Any, images: jax.Array) -> Any:
            return module.apply({"params": weights}, images, train=False)

        return self._accuracy(self._compile(apply), weights)

    def architecture(self, supernet: Supernet, weights: Mapping[str, Any], arch: Arch) -> float:
        """Accuracy of ``arch`` with weights inherited from the super-network.

        One program serves all architectures: the super-network under a one-hot mixture.
        """
        if id(supernet) not in self._superposed:

            def apply(weights: Any, mixture: Any, images: jax.Array) -> Any:
                variables = supernet.superpose({"params": weights}, mixture)
                return supernet.module.apply(variables, images, train=False)

            self._superposed[id(supernet)] = self._compile(apply)
        mixture = mixtures.one_hot(supernet.space, arch)
        return self._accuracy(self._superposed[id(supernet)], weights, mixture)

    def _compile(self, apply: Callable[..., Any]) -> Callable[..., steps.Metrics]:
        dataset, size = self._dataset, self._size

        def prepare(batch: steps.Batch) -> jax.Array:
            images = batch["image"]
            images = images if size is None else data.resize(images, size)
            return data.normalize(images, dataset.mean, dataset.std)

        return jax.jit(steps.evaluation_step(apply, prepare))

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
