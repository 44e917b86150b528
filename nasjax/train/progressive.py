"""Progressive search: stages in which fewer options compete in a wider network (DrNAS).

A super-network whose candidates see all channels is dear. So the first stage searches among all
options with a few channels, and each further one among the best of them with more: the weights
are widened, the alphas pruned. Source: Chen et al. 2021, section 4.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nasjax import data, relax
from nasjax.core.errors import NasjaxError
from nasjax.core.supernet import Supernet
from nasjax.models.widen import widen
from nasjax.relax_extras import Masks, prune, pruned
from nasjax.train import optim, phases
from nasjax.train.rng import stream
from nasjax.train.session import Session
from nasjax.train.state import State


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a progressive search.

    Attributes:
      epochs: passes over the training data.
      partial_channels: of the channels one in so many passes through the candidates.
      keep: options that stay when the stage begins, of every row or by choice; None for all that
        the stage before had.
      alphas_from_epoch: the epoch of the stage from which on the alphas are trained.
    """

    epochs: float
    partial_channels: int = 1
    keep: int | Mapping[str, int] | None = None
    alphas_from_epoch: float = 0.0


# DrNAS's settings. Its space of DARTS has no "none": relax_extras.without(space, "none").
DRNAS_NAS_BENCH_201 = (Stage(50, 4), Stage(50, 2, keep=3))
DRNAS_DARTS = (Stage(25, 6, alphas_from_epoch=10), Stage(25, 4, keep=4, alphas_from_epoch=10))


def progressive_search(
    session: Session,
    build: Callable[[int], Supernet],
    relaxation: Mapping[str, Any],
    dataset: data.Dataset,
    recipe: phases.Recipe,
    alphas: optim.Optimizer,
    stages: Sequence[Stage],
    *,
    masks: Masks | None = None,
    modify: Callable[[relax.Relaxation], relax.Relaxation] | None = None,
    weights: Any = None,
    phase: str = "search",
    **options: Any,
) -> tuple[State, relax.Relaxation, Supernet]:
    """Search in stages: phases ``"search_1"``, ``"search_2"`` and so on, the last ``"search"``.

    Every stage is a search of its own, with its own schedules: learning rates and temperatures
    begin anew, as do the optimizers' moments. Weights and alphas go from one to the next. Stages
    that are over are not repeated when the run is resumed. Of one stage it is a plain search.

    Args:
      session: of the run.
      build: makes the super-network with that many ``partial_channels``.
      relaxation: arguments of :func:`nasjax.relax.relaxation`.
      dataset: its training part is divided between the two levels.
      recipe: of the weights; its epochs are those of the stages.
      alphas: optimizer of the architecture parameters.
      stages: one after the other.
      masks: options that are left out from the start, see :func:`~nasjax.relax_extras.without`.
      modify: makes another relaxation of the one over the options that are left.
      weights: to start from; drawn anew where None.
      phase: name of the last stage's phase, with a number those of the others.
      **options: further arguments of :func:`nasjax.train.phases.search`.

    Returns:
      The final state, the relaxation and the super-network of the last stage.

    Raises:
      NasjaxError: if there is no stage, the first one prunes, or a later one keeps more options
        or fewer channels than the one before.
    """
    _check(stages)
    relaxed: Any = None
    left, state, method, supernet = dict(masks or {}), None, None, None
    for number, stage in enumerate(stages, start=1):
        name = phase if number == len(stages) else f"{phase}_{number}"
        supernet = build(stage.partial_channels)
        if state is not None:
            key = stream(session.key(name), "widen")
            weights = widen({"params": state.weights}, supernet.shapes, key)["params"]
            relaxed = state.alphas
            if stage.keep is not None:
                relaxed, left = prune(relaxed, stage.keep, left)
        state, method = phases.search(
            session,
            supernet,
            relaxation,
            dataset,
            dataclasses.replace(recipe, epochs=stage.epochs),
            alphas,
            alphas_from_epoch=stage.alphas_from_epoch,
            modify=_over(left, modify),
            weights=weights,
            start=relaxed,
            phase=name,
            **options,
        )
    assert state is not None and method is not None and supernet is not None
    return state, method, supernet


def _over(
    masks: Masks, modify: Callable[[relax.Relaxation], relax.Relaxation] | None
) -> Callable[[relax.Relaxation], relax.Relaxation]:
    def change(method: relax.Relaxation) -> relax.Relaxation:
        method = pruned(method, masks) if masks else method
        return method if modify is None else modify(method)

    return change


def _check(stages: Sequence[Stage]) -> None:
    if not stages:
        raise NasjaxError("a progressive search needs one stage at least.")
    if stages[0].keep is not None:
        raise NasjaxError(
            "the first stage has no alphas to prune by; leave its keep out, and give masks for "
            "options that are not to be searched at all."
        )
    for before, after in itertools.pairwise(stages):
        if after.partial_channels > before.partial_channels:
            raise NasjaxError(
                f"partial_channels go from {before.partial_channels} to {after.partial_channels}; "
                "from stage to stage they can only fall, since networks only get wider."
            )
