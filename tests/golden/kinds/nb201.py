"""NAS-Bench-201: its own networks and counts, TangleNAS's super-networks, decoding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

from nasjax.core.supernet import Supernet
from nasjax.interop import cells
from nasjax.spaces.nas_bench_201 import CHOICE, ENDS, OPERATIONS, nas_bench_201
from tests.golden.fixture import Fixture, GoldenError
from tests.golden.kinds import _cells
from tests.golden.outcome import Case, Quantity

IMAGE_SIZES = {"cifar": 32, "imagenet16": 16}  # by the beginning of the data set's name


def matches(fixture: Fixture) -> bool:
    """Models whose edges are those of the benchmark's cell."""
    edges = [f"{end}<-{begin}" for end, begin in ENDS]
    return "models" in fixture.document and fixture.document.get("edges") == edges


def check(fixture: Fixture) -> Iterator[Case]:
    """Every case."""
    handlers = _cells.Handlers(_decode, _count, _network, _standalone, _builder, _searched)
    return _cells.check(fixture, handlers)


def _builder(fixture: Fixture, name: str) -> Any:
    return _cells.sized(fixture, name, nas_bench_201, cells="N")


def _mixture(fixture: Fixture, name: str) -> _cells.ToMixture:
    theirs = _cells.model(fixture, name)["ops"]
    return lambda arrays: {CHOICE: _cells.reorder(arrays[""], theirs, OPERATIONS)}


def _network(fixture: Fixture, name: str) -> tuple[Supernet, nn.Module, Any]:
    """The space of a network of the benchmark, the network, and its variables."""
    supernet = _builder(fixture, name)()
    text = _cells.model(fixture, name)["constructor"]["genotype"]
    variables = cells.import_weights(_cells.weights(fixture, name), supernet, text)
    return supernet, supernet.from_scratch(supernet.architecture(text)), variables


def _standalone(
    fixture: Fixture,
    case: Mapping[str, Any],
    supernet: Supernet,
    network: nn.Module,
    variables: Any,
) -> Case:
    x, train = _cells.images(fixture, case), case["mode"] == "train"
    output = _cells.apply(network, variables, x, train)
    quantities = [Quantity.of("output", "output", output, fixture.array(case["output"]))]
    quantities += _counts(case, supernet, _cells.leaf_sizes(variables["params"]))
    after = case.get("running_stats_after_one_train_forward")
    if after is not None:
        run = jax.jit(lambda v, x: network.apply(v, x, train=True, mutable=["batch_stats"])[1])
        text = _cells.model(fixture, case["model"])["constructor"]["genotype"]
        quantities += _statistics(fixture, after, run(variables, x), supernet, text)
    return _cells.case_of(case, quantities, case["output"])


def _statistics(
    fixture: Fixture, after: Mapping[str, str], updated: Any, supernet: Supernet, text: str
) -> Iterator[Quantity]:
    flat = traverse_util.flatten_dict(dict(updated))
    found = {name: tensor for tensor in cells.tensors(supernet, text) for name in tensor.names}
    for name in set(after) - {"note"}:
        if name not in found:
            raise GoldenError(f"{name!r} is no tensor of this network.")
        expected = found[name].read(name, fixture.array(after[name]))
        yield Quantity.of(f"{name} after", "output", flat[found[name].path], expected)


def _counts(case: Mapping[str, Any], supernet: Supernet, leaves: int) -> Iterator[Quantity]:
    """The benchmark's counts; ``leaves`` is what there is in the network's own tree."""
    arch = supernet.architecture(case["arch"])
    if "num_params" in case:
        expected = case["num_params"]
        counted = supernet.count("params_nas_bench_201", arch)
        yield Quantity.of("num_params", "count", counted, expected)
        yield Quantity.of("leaves", "count", leaves, expected)
    if "flops" in case:
        counted = supernet.count("flops_nas_bench_201", arch)
        yield Quantity.of("flops", "count", counted, case["flops"])
    yield from _cells.written(supernet, case["arch"])


def _count(fixture: Fixture, case: Mapping[str, Any]) -> Case:
    del fixture
    supernet = nas_bench_201(
        image_size=_image_size(case["dataset"]),
        num_classes=case["num_classes"],
        channels=case["C"],
        cells=case["N"],
    )
    network = supernet.from_scratch(supernet.architecture(case["arch"]))
    leaves = _cells.parameters(network, supernet.input_shape)
    quantities = list(_counts(case, supernet, leaves))
    return _cells.case_of(case, quantities, "counts", case["dataset"], case["arch"])


def _image_size(dataset: str) -> int:
    for beginning, size in IMAGE_SIZES.items():
        if dataset.lower().startswith(beginning):
            return size
    raise GoldenError(f"the size of the images of {dataset!r} is not known.")


def _searched(fixture: Fixture, case: Mapping[str, Any], net: _cells.Searched) -> Case:
    if "arch" in case:
        mixture = _cells.one_hot(net.supernet, net.supernet.architecture(case["arch"]))
        return _cells.argmax_case(fixture, case, net, mixture)
    to_mixture = _mixture(fixture, case["model"])
    quantities = _cells.soft_case(fixture, case, net, to_mixture)
    return _cells.case_of(case, quantities, case.get("output", "gradients"))


def _decode(fixture: Fixture, case: Mapping[str, Any]) -> Case:
    supernet = nas_bench_201()
    models = fixture.get("models")
    name = next(name for name in models if "ops" in models[name])
    shapes = {"": (len(ENDS), len(OPERATIONS))}
    arch = _cells.decoded(fixture, case, supernet, shapes, _mixture(fixture, name))
    assert supernet.to_text is not None
    quantities = [_cells.same("decoded", supernet.to_text(arch), case["genotype"])]
    quantities += _cells.written(supernet, case["genotype"])
    return _cells.case_of(case, quantities, f"decode {case['alphas_recipe']}")
