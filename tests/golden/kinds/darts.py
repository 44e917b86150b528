"""DARTS: networks of a genotype, TangleNAS's super-networks, counts, decoding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from nasjax.core.supernet import Supernet
from nasjax.interop import cells
from nasjax.spaces.darts import EDGES, INPUTS, KEPT, KINDS, NODES, OPERATIONS, darts
from nasjax.spaces.genotype import read_genotype, write_genotype
from tests.golden.fixture import Fixture
from tests.golden.kinds import _cells
from tests.golden.outcome import Case, Quantity

AUXILIARY_IMAGES = 32  # side of the images that the auxiliary head is for

Genotype = Mapping[str, Any]


def matches(fixture: Fixture) -> bool:
    """Models whose edges choose among the eight operations of this space."""
    operations = fixture.document.get("ops")
    return "models" in fixture.document and sorted(operations or ()) == sorted(OPERATIONS)


def check(fixture: Fixture) -> Iterator[Case]:
    """Every case."""
    handlers = _cells.Handlers(_decode, _count, _network, _standalone, _builder, _searched)
    return _cells.check(fixture, handlers)


def _builder(fixture: Fixture, name: str) -> Any:
    return _cells.sized(fixture, name, darts, cells="layers")


def _mixture(fixture: Fixture) -> _cells.ToMixture:
    theirs = fixture.get("ops")
    return lambda arrays: {k: _cells.reorder(arrays[k], theirs, OPERATIONS) for k in KINDS}


def _text(genotype: Genotype) -> str:
    normal, reduce = ([(str(o), int(b)) for o, b in genotype[kind]] for kind in KINDS)
    return write_genotype(normal, reduce, range(INPUTS, INPUTS + len(NODES)))


def _alone(described: Mapping[str, Any], image_size: int) -> Supernet:
    """A space that trains networks of the size which a constructor or a case gives."""
    fields = {"channels": described["C"], "cells": described["layers"], "drop_path": 0.0}
    fields["auxiliary"] = described["auxiliary"]
    return darts(image_size=image_size, num_classes=described["num_classes"], retrained=fields)


def _network(fixture: Fixture, name: str) -> tuple[Supernet, nn.Module, Any]:
    """The space of a network of its own, the network, and its variables."""
    constructor = _cells.model(fixture, name)["constructor"]
    (size,) = {  # the auxiliary head takes images of one size
        _cells.images(fixture, case).shape[1]
        for case in fixture.get("cases")
        if case.get("model") == name and "count_only" not in case
    }
    supernet, text = _alone(constructor, size), _text(constructor["genotype"])
    variables = cells.import_weights(_cells.weights(fixture, name), supernet, text)
    return supernet, supernet.from_scratch(supernet.architecture(text)), variables


def _standalone(
    fixture: Fixture,
    case: Mapping[str, Any],
    supernet: Supernet,
    network: nn.Module,
    variables: Any,
) -> Case:
    constructor = _cells.model(fixture, case["model"])["constructor"]
    x, train = _cells.images(fixture, case), case["mode"] == "train"
    output, sown = _cells.apply(network, variables, x, train, mutable=["intermediates"])
    quantities = [Quantity.of("output", "output", output, fixture.array(case["output"]))]
    if "output_aux" in case:
        (logits,) = sown["intermediates"]["auxiliary_logits"]
        expected = fixture.array(case["output_aux"])
        quantities.append(Quantity.of("auxiliary", "output", logits, expected))
    if "num_params" in case:
        count = _cells.leaf_sizes(variables["params"])
        quantities.append(Quantity.of("num_params", "count", count, case["num_params"]))
    quantities += _genotype(supernet, constructor["genotype"])
    return _cells.case_of(case, quantities, case["output"])


def _genotype(supernet: Supernet, genotype: Genotype) -> Iterator[Quantity]:
    """Whether a genotype is read, and written with the same pairs into every node."""
    assert supernet.to_text is not None
    text = supernet.to_text(supernet.architecture(_text(genotype)))
    yield _cells.same("genotype", _nodes(read_genotype(text)), _nodes(genotype))


def _nodes(genotype: Genotype) -> list[set[tuple[str, int]]]:
    """The pairs (operation, node it comes from) of every node; their order says nothing."""
    pairs = [tuple(pair) for kind in KINDS for pair in genotype[kind]]
    return [set(pairs[i : i + KEPT]) for i in range(0, len(pairs), KEPT)]


def _count(fixture: Fixture, case: Mapping[str, Any]) -> Case:
    if "genotype" not in case:
        sharing = _cells.model(fixture, case["model"])["constructor"]["entangle_weights"]
        supernet = darts(
            num_classes=case["num_classes"],
            channels=case["C"],
            cells=case["layers"],
            sharing="entangled" if sharing else "plain",
        )
        count = _cells.parameters(supernet.module, supernet.input_shape)
        quantities = [Quantity.of("num_params", "count", count, case["num_params"])]
        return _cells.case_of(case, quantities, f"counts C={case['C']} layers={case['layers']}")
    supernet = _alone(case, AUXILIARY_IMAGES)
    network = supernet.from_scratch(supernet.architecture(_text(case["genotype"])))
    # The auxiliary head is part of the network in training alone.
    counted = {
        "num_params": _cells.parameters(network, supernet.input_shape, train=True),
        "num_params_without_auxiliary": _cells.parameters(network, supernet.input_shape),
    }
    quantities = [Quantity.of(n, "count", counted[n], case[n]) for n in counted if n in case]
    quantities += _genotype(supernet, case["genotype"])
    head = "with auxiliary head" if case["auxiliary"] else None
    return _cells.case_of(case, quantities, f"counts C={case['C']} layers={case['layers']}", head)


def _searched(fixture: Fixture, case: Mapping[str, Any], net: _cells.Searched) -> Case:
    to_mixture = _mixture(fixture)
    if case.get("path") == "argmax":
        mixture = to_mixture(_cells.given(fixture, case, "mixture"))
        return _cells.argmax_case(fixture, case, net, mixture)
    variables = _kept(net.variables, to_mixture(_cells.given(fixture, case, "mixture")))
    quantities = _cells.soft_case(fixture, case, net, to_mixture, variables)
    return _cells.case_of(case, quantities, case.get("output", "gradients"))


def _kept(variables: Any, mixture: Mapping[str, jax.Array]) -> dict[str, Any]:
    """``variables`` of a super-network in the authors' form, less the edges it drops."""
    # The authors drop an edge whose weights sum to zero. Its entangled operations, whose kernels
    # are then zero, give zero in training, but in evaluation what their norms subtract: the
    # running means, which therefore must be zero too.
    dropped = {
        f"{kind}_edges_{edge}"
        for kind in KINDS
        for edge in np.flatnonzero(np.sum(mixture[kind], -1) == 0)
    }
    flat = {
        path: np.zeros_like(value) if path[-1] == "mean" and dropped & set(path) else value
        for path, value in traverse_util.flatten_dict(dict(variables)).items()
    }
    return traverse_util.unflatten_dict(flat)


def _decode(fixture: Fixture, case: Mapping[str, Any]) -> Case:
    supernet = darts()
    shapes = {kind: (EDGES, len(OPERATIONS)) for kind in KINDS}
    arch = _cells.decoded(fixture, case, supernet, shapes, _mixture(fixture))
    assert supernet.to_text is not None
    found = read_genotype(supernet.to_text(arch))
    quantities = [_cells.same("decoded", _nodes(found), _nodes(case["genotype"]))]
    quantities += _genotype(supernet, case["genotype"])
    return _cells.case_of(case, quantities, f"decode {case['alphas_recipe']}")
