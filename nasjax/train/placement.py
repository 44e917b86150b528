"""Where a phase's state lives, and the programs of its step."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from nasjax.train import sharding, steps
from nasjax.train.hosts import fetched
from nasjax.train.session import Session
from nasjax.train.state import State

logger = logging.getLogger(__name__)


def place(
    session: Session, create: Any, names: Mapping[str, Any], key: jax.Array, *trees: Any
) -> State:
    """Make the state ``create(key, *trees)`` where it will live, sharded by the weights' names."""
    # By way of the host: every process drew the same, and the step donates what it is given.
    trees = fetched(trees)
    shapes = jax.eval_shape(create, key, *trees)
    shardings = sharding.state_shardings(shapes, names, session.mesh, session.rules)
    return jax.jit(create, out_shardings=shardings)(key, *trees)


class CompiledStep:
    """A step, compiled when it is first called, donating the state; then it says its cost.

    Not before: a phase that is resumed at its end needs no program, and a loader that reads in
    order must not be asked for a batch only to learn its shape.

    Args:
      session: whose mesh and rules the programs are for.
      phase: its name, for the log.
      step: the pure step, ``(state, *batches, *given) -> (state, metrics)``.
      names: axis names of the weights.
      given: further arguments of the step, the same in every step.
    """

    def __init__(
        self,
        session: Session,
        phase: str,
        step: steps.Step,
        names: Mapping[str, Any],
        given: Sequence[Any] = (),
    ) -> None:
        self._session, self._phase = session, phase
        self._step, self._names, self._given = step, names, tuple(given)
        self._one: Any = None
        self._many: Any = None

    def __call__(self, state: State, *batches: Any) -> tuple[State, steps.Metrics]:
        """One step."""
        if self._one is None:
            self._one = self._compile(self._once, state, batches)
            _log_cost(self._phase, self._one, state, len(batches[0]["label"]))
        return self._one(state, batches, self._given)

    def many(self, state: State, *batches: Any) -> tuple[State, steps.Metrics]:
        """As many steps as the batches' leading axes are long; the metrics are the last one's."""
        if self._many is None:

            def several(state: State, batches: Any, given: Any) -> tuple[State, steps.Metrics]:
                return steps.several(lambda s, each: self._once(s, each, given))(state, batches)

            self._many = self._compile(several, state, batches)
            _log_cost(self._phase, self._many, state, batches[0]["label"].shape[1])
        return self._many(state, batches, self._given)

    def _once(self, state: State, batches: Any, given: Any) -> tuple[State, steps.Metrics]:
        return self._step(state, *batches, *given)

    def _compile(self, function: Any, state: State, batches: Any) -> Any:
        where = jax.tree.map(lambda x: x.sharding, state)
        places = (where, sharding.replicated(self._session.mesh))
        jitted = jax.jit(function, donate_argnums=0, out_shardings=places)
        session = self._session
        with sharding.computing(state.weights, self._names, session.mesh, session.rules):
            return jitted.lower(state, batches, self._given).compile()


def _log_cost(phase: str, compiled: Any, state: State, examples: int) -> None:
    memory = compiled.memory_analysis()
    needed = "an unknown amount"
    if memory is not None:
        needed = f"{(memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20:,.0f} MiB"
    parameters = sum(x.size for x in jax.tree.leaves(state.weights))
    logger.info(
        "%s: %s parameters, %d examples a batch, %s of memory a device",
        phase,
        f"{parameters:,}",
        examples,
        needed,
    )
