"""How TangleNAS's samplers make mixtures: the part of a file called ``samplers``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasjax import relax
from tests.golden.fixture import Fixture, GoldenError
from tests.golden.outcome import Case, Quantity


def check(fixture: Fixture) -> Iterator[Case]:
    """Every sampler of ``fixture``, if it has any."""
    for name, part in fixture.document.get("samplers", {}).items():
        if name not in _SAMPLERS:
            raise GoldenError(
                f"{fixture.path.name} has a sampler {name!r}; {', '.join(_SAMPLERS)} are known."
            )
        yield from _SAMPLERS[name](fixture, part)


def _drnas(fixture: Fixture, part: Mapping[str, Any]) -> Iterator[Case]:
    actual = relax.concentration(jnp.asarray(fixture.array(part["alpha"])))
    expected = fixture.array(part["concentration"])
    yield _case("drnas", part, Quantity.of("concentration", "output", actual, expected))


def _sparsemax(fixture: Fixture, part: Mapping[str, Any]) -> Iterator[Case]:
    output, pull_back = jax.vjp(relax.sparsemax, fixture.array(part["input"]))
    (gradient,) = pull_back(jnp.asarray(fixture.array(part["cotangent"])))
    yield _case(
        "sparsemax",
        part,
        Quantity.of("output", "output", output, fixture.array(part["output"])),
        Quantity.of("grad", "gradient", gradient, fixture.array(part["grad"])),
    )


def _gdas(fixture: Fixture, part: Mapping[str, Any]) -> Iterator[Case]:
    alpha = jnp.asarray(fixture.array(part["alpha"]))
    gumbel = -jnp.log(fixture.array(part["exponential"]))
    cotangent = jnp.asarray(fixture.array(part["cotangent"]))
    for case in part["cases"]:

        def hard(alpha: jax.Array, tau: float = case["tau"]) -> jax.Array:
            return relax.straight_through(relax.gumbel_softmax(alpha, gumbel, tau))

        output, pull_back = jax.vjp(hard, alpha)
        (gradient,) = pull_back(cotangent)
        yield _case(
            f"gdas tau={case['tau']}",
            part,
            Quantity.of("hard", "output", output, fixture.array(case["hard"])),
            Quantity.of("grad", "gradient", gradient, fixture.array(case["grad"])),
        )
    if "tau_schedule" in part:
        yield _case("gdas tau schedule", part, _schedule(part["tau_schedule"]))


def _schedule(part: Mapping[str, Any]) -> Quantity:
    tau = relax.anneal(part["tau_max"], part["tau_min"], part["epochs"])
    actual = [float(tau(jnp.asarray(int(epoch)))) for epoch in part["tau"]]
    return Quantity.of("tau", "output", actual, np.asarray(list(part["tau"].values())))


def _case(name: str, part: Mapping[str, Any], *quantities: Quantity) -> Case:
    return Case(f"samplers/{name}", part.get("bar", "all"), quantities)


_SAMPLERS = {"drnas": _drnas, "darts_superposed": _sparsemax, "gdas": _gdas}
