"""AutoFormer: discrete networks, extracted and as one-hot super-networks; parameters and FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from nasjax.core import mixture
from nasjax.core.supernet import Supernet
from nasjax.interop.autoformer import import_weights
from tests.golden.fixture import Fixture, GoldenError
from tests.golden.kinds import _vision
from tests.golden.outcome import Case, Quantity

# Their counts and ours; "params" is what there really is, which theirs is with absolute positions.
COSTS = {"num_params": ("params_autoformer", "params"), "flops": ("flops_autoformer",)}
_MAXIMA = {  # of the constructor, by the choice they bound
    "embed_dim": "embed_dim",
    "layer_num": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
}

Superposed = Callable[[Any, Any, np.ndarray], jax.Array]


def matches(fixture: Fixture) -> bool:
    """AutoFormer's constructor, weights and cases with outputs."""
    built = "change_qkv" in fixture.constructor and "config" not in fixture.constructor
    return built and bool(fixture.document.get("params"))


def check(fixture: Fixture) -> Iterator[Case]:
    """Every case of every variant, in the file's order."""
    built: dict[str, tuple[Supernet, Any, Superposed | None]] = {}
    for case in fixture.get("cases"):
        variant = case.get("variant", "main")
        if variant not in built:
            built[variant] = _build(fixture, variant)
        yield _check(fixture, case, *built[variant])


def options(fixture: Fixture) -> dict[str, tuple[Any, ...]]:
    """For each choice the values of all cases, and the constructor's maximum."""
    values: dict[str, set[Any]] = {
        choice: {fixture.constructor[bound]} for choice, bound in _MAXIMA.items()
    }
    for case in fixture.get("cases"):
        for choice in values:
            values[choice].update(np.ravel(case["arch"][choice]).tolist())
    return {choice: tuple(sorted(found)) for choice, found in values.items()}


def costs(supernet: Supernet, case: Mapping[str, Any]) -> Iterator[Quantity]:
    """The counts that ``case`` gives."""
    arch = _vision.arch_of(case["arch"])
    for theirs, ours in COSTS.items():
        for cost in ours if case.get(theirs) is not None else ():
            if cost != "params" or supernet.module.absolute:
                count = supernet.count(cost, arch)
                yield Quantity.of(cost, "count", count, case[theirs])


def _build(fixture: Fixture, variant: str) -> tuple[Supernet, Any, Superposed | None]:
    variants = fixture.document.get("variants", {})
    if variant not in variants and variant != "main":
        raise GoldenError(f"{fixture.path.name} describes no variant {variant!r}.")
    change = variants.get(variant, {})
    constructor = {**fixture.constructor, **change.get("overrides", {})}
    supernet = _vision.supernet_of(constructor, options(fixture))
    variables = import_weights(fixture.weights(change), supernet)
    if not constructor["change_qkv"]:  # heads of varying width share all channels: no mixture
        return supernet, variables, None

    @jax.jit
    def superposed(variables: Any, weights: Any, images: jax.Array) -> jax.Array:
        return supernet.module.apply(supernet.superpose(variables, weights), images)

    return supernet, variables, superposed


def _check(
    fixture: Fixture,
    case: Mapping[str, Any],
    supernet: Supernet,
    variables: Any,
    superposed: Superposed | None,
) -> Case:
    arch = supernet.architecture(_vision.arch_of(case["arch"]))
    images = _vision.channels_last(fixture.input(case["input"]))
    expected = fixture.array(case["output"])
    extracted = supernet.network(arch).apply(supernet.extract(variables, arch), images)
    quantities = [Quantity.of("extracted", "output", extracted, expected)]
    if superposed is not None:
        one_hot = superposed(variables, mixture.one_hot(supernet.space, arch), images)
        quantities.append(Quantity.of("one-hot", "output", one_hot, expected))
    quantities += costs(supernet, case)
    return Case(case["name"], case.get("bar", "all"), tuple(quantities))
