"""TangleNAS's toy macro space: networks, the super-network, decoding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from nasjax.spaces.toy_conv_macro import CHANNELS, KERNELS, toy_conv_macro
from tests.golden.fixture import Fixture, GoldenError
from tests.golden.kinds import _cells
from tests.golden.outcome import Case, Quantity

LAYERS = range(1, len(CHANNELS) + 1)
ROWS = {"channels": "channels", "kernels": "kernel"}  # their arrays and our choices


def matches(fixture: Fixture) -> bool:
    """Models with options of widths and of kernel sizes."""
    return {"models", "channels", "kernels"} <= set(fixture.document)


def check(fixture: Fixture) -> Iterator[Case]:
    """Every case; all models have the same tensors."""
    options = tuple(map(tuple, fixture.get("channels"))), tuple(fixture.get("kernels"))
    if options != (CHANNELS, KERNELS):
        raise GoldenError(f"{fixture.path.name} has options {options}, which the space has not.")
    net: _cells.Searched | None = None
    for case in fixture.get("cases"):
        if "decode" in case:
            yield _decode(fixture, case)
            continue
        if net is None:
            net = _searched(fixture)
        if "arch" in case:
            yield _discrete(fixture, case, net)
        elif "arch_onehot" in case:
            mixture = _cells.one_hot(net.supernet, _arch(case["arch_onehot"]))
            output = net.output(mixture, _cells.images(fixture, case), True)
            expected = fixture.array(case["output"])
            quantities = [Quantity.of("one-hot", "output", output, expected)]
            yield _cells.case_of(case, quantities, case["output"])
        else:
            quantities = _cells.soft_case(fixture, case, net, _mixture)
            yield _cells.case_of(case, quantities, case["output"])


def _searched(fixture: Fixture) -> _cells.Searched:
    models = fixture.get("models")
    (name,) = (name for name in models if models[name]["params"])
    tensors = _cells.weights(fixture, name)
    supernet = toy_conv_macro(num_classes=tensors["fc4.bias"].size, dropout=0.0)
    return _cells.Searched(supernet, tensors)


def _arch(arch: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{ours}_{i}": arch[theirs][i - 1] for theirs, ours in ROWS.items() for i in LAYERS}


def _mixture(arrays: _cells.Arrays) -> dict[str, jax.Array]:
    return {f"{ours}_{i}": arrays[theirs][i - 1] for theirs, ours in ROWS.items() for i in LAYERS}


def _discrete(fixture: Fixture, case: Mapping[str, Any], net: _cells.Searched) -> Case:
    supernet, arch = net.supernet, _arch(case["arch"])
    small = supernet.extract(net.variables, arch)
    output = _cells.apply(supernet.network(arch), small, _cells.images(fixture, case), True)
    quantities = [Quantity.of("extracted", "output", output, fixture.array(case["output"]))]
    if "num_params" in case:
        quantities += _cells.counts(supernet, arch, small, case["num_params"])
    return _cells.case_of(case, quantities, case["output"])


def _decode(fixture: Fixture, case: Mapping[str, Any]) -> Case:
    supernet = toy_conv_macro()
    shapes = {theirs: (len(LAYERS), len(KERNELS)) for theirs in ROWS}
    arch = _cells.decoded(fixture, case, supernet, shapes, _mixture)
    quantities = [_cells.same("decoded", arch, _arch(case))]
    return _cells.case_of(case, quantities, f"decode {case['alphas_recipe']}")
