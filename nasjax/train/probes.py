"""Probes: the accuracy of some sub-networks while their super-network trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from nasjax import data
from nasjax.core import architecture
from nasjax.core.architecture import Arch
from nasjax.core.errors import NasjaxError
from nasjax.core.space import SearchSpace
from nasjax.core.supernet import Supernet
from nasjax.train import state as states
from nasjax.train.evaluate import Evaluator
from nasjax.train.loop import Schedule
from nasjax.train.session import Session
from nasjax.train.state import State

Look = Callable[..., dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Probes:
    """Sub-networks whose accuracy is logged while the super-network trains.

    The smallest, the largest and some random ones that stay the same, and in a search by gradient
    the current one; with inherited weights, on the training images that do not train the weights.

    Attributes:
      every: steps between two looks.
      random: number of random sub-networks.
      batch_size: examples evaluated at once.
      examples: how many examples are used at most; 0 for all.
    """

    every: int
    random: int = 3
    batch_size: int = 500
    examples: int = 2000

    def __post_init__(self) -> None:
        if self.every < 1 or self.random < 0 or self.batch_size < 1 or self.examples < 0:
            raise NasjaxError(
                f"{self} cannot be looked at; every and batch_size from 1 and counts from 0 were "
                "expected."
            )

    def networks(self, space: SearchSpace, key: jax.Array) -> dict[str, dict[str, Any]]:
        """The sub-networks by name; smallest and largest only where options have an order."""
        drawn = {
            f"random {i + 1}": architecture.sample(space, jax.random.fold_in(key, i))
            for i in range(self.random)
        }
        if not architecture.has_order(space):
            return drawn
        ends = {"smallest": architecture.smallest(space), "largest": architecture.largest(space)}
        return {**ends, **drawn}

    def open(
        self,
        session: Session,
        supernet: Supernet,
        dataset: data.Dataset,
        weights_fraction: float,
        size: int | None,
        schedule: Schedule,
    ) -> Look:
        """What to call whenever a line is logged: ``(state, current=None) -> {"probes": ...}``.

        It looks when ``every`` steps are over, and at the end; otherwise it returns nothing.

        Args:
          session: of the run.
          supernet: that trains.
          dataset: the data.
          weights_fraction: part of the training images that trains the weights.
          size: side the images are resized to; None for their own.
          schedule: of the training.
        """
        unseen = held_out(dataset, weights_fraction, session.seed, self.examples)
        evaluator = Evaluator(session, unseen, self.batch_size, size)
        networks = self.networks(supernet.space, session.key("probes"))

        def look(state: State, current: Arch | None = None) -> dict[str, Any]:
            number = int(state.step)
            # Not at a stop either: whoever sent the signal may not wait for an evaluation.
            logged = number % schedule.log == 0 and number % self.every < schedule.log
            if not logged and number != schedule.steps:
                return {}
            seen: Mapping[str, Arch] = networks
            if current is not None:
                seen = {"current": current, **networks}
            weights = states.evaluated(state)
            found = evaluator.architectures(supernet, weights, list(seen.values()))
            return {"probes": dict(zip(seen, found, strict=True))}

        return look


def held_out(
    dataset: data.Dataset, weights_fraction: float, seed: int, examples: int = 0
) -> data.Dataset:
    """``dataset`` whose test part is the training images that do not train the weights.

    Args:
      dataset: the data.
      weights_fraction: as in the training.
      seed: of the run that trained.
      examples: how many are used at most, evenly spaced; 0 for all.
    """
    part = data.bilevel_split(dataset.train, weights_fraction, seed=seed).alphas
    if examples and examples < len(part):
        part = part.take(np.linspace(0, len(part) - 1, examples).astype(int))
    return dataclasses.replace(dataset, test=part)
