"""TangleNAS's toy cell space: networks of its benchmark, super-networks, decoding."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from nasjax.spaces.toy_cell import KINDS, OPERATIONS, toy_cell
from tests.golden.fixture import Fixture
from tests.golden.kinds import _cells
from tests.golden.outcome import Case, Quantity


def matches(fixture: Fixture) -> bool:
    """Models whose edges choose among the four operations of this space."""
    operations = fixture.document.get("ops")
    return "models" in fixture.document and sorted(operations or ()) == sorted(OPERATIONS)


def check(fixture: Fixture) -> Iterator[Case]:
    """Every case."""
    nets: dict[str, _cells.Searched] = {}
    for case in fixture.get("cases"):
        name = case.get("model")
        if name is not None and name not in nets:
            nets[name] = _cells.searched(fixture, name, _builder(fixture, name))
        if "decode" in case:
            yield _decode(fixture, case)
        elif "arch" in case and "path" not in case:
            yield _discrete(fixture, case, nets[name])
        elif "arch" in case:
            mixture = _cells.one_hot(nets[name].supernet, _arch(fixture, case))
            yield _cells.argmax_case(fixture, case, nets[name], mixture)
        else:
            quantities = _cells.soft_case(fixture, case, nets[name], _mixture(fixture))
            yield _cells.case_of(case, quantities, case.get("output", "gradients"))


def _builder(fixture: Fixture, name: str) -> Any:
    """Builds the super-network whose weights a model holds."""
    described = _cells.model(fixture, name)
    classes = next(p for p in described["params"] if p["name"] == "classifier.bias")["shape"][0]
    _, height, _, channels = _cells.images(fixture).shape
    return functools.partial(
        toy_cell,
        image_size=height,
        image_channels=channels,
        num_classes=classes,
        channels=described["constructor"]["num_channels"],
        dropout=0.0,
    )


def _mixture(fixture: Fixture) -> _cells.ToMixture:
    theirs = fixture.get("ops")
    return lambda arrays: {k: _cells.reorder(arrays[k], theirs, OPERATIONS) for k in KINDS}


def _arch(fixture: Fixture, case: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture of a case, which counts the operations."""
    return {kind: [fixture.get("ops")[i] for i in case["arch"][kind]] for kind in KINDS}


def _discrete(fixture: Fixture, case: Mapping[str, Any], net: _cells.Searched) -> Case:
    # The benchmark's networks hold all operations: super-networks with plain sharing.
    supernet, arch = net.supernet, _arch(fixture, case)
    small = supernet.extract(net.variables, arch)
    x, train = _cells.images(fixture, case), case["mode"] == "train"
    expected = fixture.array(case["output"])
    output = _cells.apply(supernet.network(arch), small, x, train)
    quantities = [Quantity.of("extracted", "output", output, expected)]
    output = net.output(_cells.one_hot(supernet, arch), x, train)
    quantities.append(Quantity.of("one-hot", "output", output, expected))
    if "num_params" in case:
        quantities += _cells.counts(supernet, arch, small, case["num_params"])
    if "genotype" in case:
        quantities += _cells.written(supernet, case["genotype"])
        read = supernet.architecture(case["genotype"])
        quantities.append(_cells.same("genotype read", read, arch))
    return _cells.case_of(case, quantities, case["output"])


def _decode(fixture: Fixture, case: Mapping[str, Any]) -> Case:
    supernet = toy_cell()
    shapes = {kind: (3, len(OPERATIONS)) for kind in KINDS}
    arch = _cells.decoded(fixture, case, supernet, shapes, _mixture(fixture))
    expected = {kind: [operation for operation, _ in case[kind]] for kind in KINDS}
    return _cells.case_of(
        case, [_cells.same("decoded", arch, expected)], f"decode {case['alphas_recipe']}"
    )
