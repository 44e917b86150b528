"""TangleNAS's superposed vision transformer: outputs, losses, gradients; and its samplers.

Cases with soft mixtures are for comparison only: the released code there departs from the paper's
Algorithm 1, which nasjax follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from nasjax.core.supernet import Supernet
from nasjax.interop.autoformer import import_weights, name_table
from nasjax.relax import sparsemax
from tests.golden.fixture import Fixture, GoldenError
from tests.golden.kinds import _samplers, _vision
from tests.golden.outcome import Case, Quantity

Arrays = Mapping[str, jax.Array]


def matches(fixture: Fixture) -> bool:
    """A constructor whose ``config`` lists the options of AutoFormer's four choices."""
    config = fixture.constructor.get("config")
    return isinstance(config, Mapping) and set(_vision.CHOICES) <= set(config)


def check(fixture: Fixture) -> Iterator[Case]:
    """The samplers, then every case."""
    yield from _samplers.check(fixture)
    networks: dict[bool, Network] = {}
    for case in fixture.get("cases"):
        about = _about(fixture, case)
        pooled = fixture.constructor["gp"] and "no_gp" not in about and "gp=False" not in about
        if pooled not in networks:
            networks[pooled] = Network(fixture, pooled)
        yield _check(fixture, case, networks[pooled], _relaxation(case, about))


class Network:
    """A super-network with the file's weights, compiled once for all cases.

    Attributes:
      supernet: the super-network.
      variables: its weights.
      evaluate: ``(variables, mixture, images, target) -> loss, output, gradients`` with respect
        to variables and mixture.
    """

    def __init__(self, fixture: Fixture, pooled: bool) -> None:
        constructor = {**fixture.constructor, "gp": pooled}
        self.supernet: Supernet = _vision.supernet_of(constructor, constructor["config"])
        self.variables = import_weights(fixture.weights(), self.supernet)

        def loss(variables: Any, mixture: Any, images: Any, target: Any) -> Any:
            superposed = self.supernet.superpose(variables, mixture)
            output = self.supernet.module.apply(superposed, images)
            return jnp.sum(output * target), output

        self.evaluate = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def _about(fixture: Fixture, case: Mapping[str, Any]) -> str:
    """The variant's name and what the file says of it, where its settings are written."""
    variants, name = fixture.document.get("variants", {}), case["variant"]
    if name not in variants:
        raise GoldenError(f"{fixture.path.name} describes no variant {name!r}.")
    return f"{name}: {variants[name]}"


def _relaxation(case: Mapping[str, Any], about: str) -> Callable[[jax.Array], jax.Array]:
    """From the arrays that the case gives to mixture weights, row by row."""
    if case["given"] == "mixture weights":
        return lambda weights: weights
    if case["given"] != "alphas":
        raise GoldenError(f"case {case['name']!r} gives {case['given']!r}; weights or alphas?")
    return jax.nn.softmax if "outputs_mixture" in about else sparsemax


def _check(
    fixture: Fixture,
    case: Mapping[str, Any],
    network: Network,
    relax: Callable[[jax.Array], jax.Array],
) -> Case:
    given = {name: jnp.asarray(fixture.array(key)) for name, key in case["mixture"].items()}
    mixture, pull_back = jax.vjp(lambda arrays: _mixture(network, arrays, relax), given)
    images = _vision.channels_last(fixture.input(case["input"]))
    (loss, output), (by_weight, by_mixture) = network.evaluate(
        network.variables, mixture, images, _target(fixture)
    )
    (by_given,) = pull_back(by_mixture)
    quantities = [
        Quantity.of("output", "output", output, fixture.array(case["output"])),
        Quantity.of("loss", "loss", loss, case["loss"]),
    ]
    for name, key in case.get("grads", {}).items():
        expected = fixture.array(key)
        quantities.append(Quantity.of(f"grad {name}", "gradient", by_given[name], expected))
    if "arch" in case and "param_grad_norms" in case:
        expected = case["param_grad_norms"]
        actual = _norms(by_weight, expected)
        norms = Quantity.of("param_grad_norms", "info", actual, list(expected.values()))
        quantities.append(norms)
    return Case(case["name"], case.get("bar", "all"), tuple(quantities))


def _mixture(
    network: Network, given: Arrays, relax: Callable[[jax.Array], jax.Array]
) -> dict[str, jax.Array]:
    """The file's rows under our names; it gives a single row where nothing is per layer."""
    mixture = {}
    for theirs, ours in _vision.CHOICES.items():
        rows = relax(given[theirs])
        mixture[ours] = rows if network.supernet.space.choice(ours).per else rows[0]
    return mixture


def _target(fixture: Fixture) -> np.ndarray:
    entry = fixture.get("target")
    return fixture.draw({"name": entry["tag"], **entry})


def _norms(gradients: Any, names: Mapping[str, float]) -> list[float]:
    """Norms of the gradients of the tensors called ``names`` by the reference."""
    flat, table, norms = traverse_util.flatten_dict(gradients), name_table(), []
    for name in names:
        place = table.locate(name)
        if place is None or place[0] not in flat:
            raise GoldenError(f"{name!r} is no tensor of this network.")
        path, layer = place
        gradient = flat[path] if layer is None else flat[path][layer]
        norms.append(float(jnp.linalg.norm(jnp.ravel(gradient))))
    return norms
