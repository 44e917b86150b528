"""NASViT: networks extracted and as one-hot super-networks; calibration; training mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core.mixture import one_hot
from nasjax.core.supernet import STATISTICS
from nasjax.interop.nasvit import export_weights, import_weights
from nasjax.models.talking_attention import resize_cubic
from nasjax.train.calibrate import calibrate_batch_stats
from tests.golden.fixture import Fixture
from tests.golden.kinds import _nasvit
from tests.golden.outcome import Case, Quantity

_TAPS = {"stem": "first", "final_expand": "last_expand"}


def matches(fixture: Fixture) -> bool:
    """NASViT's constructor, weights, and outputs of architectures."""
    cases = fixture.document.get("cases") or [{}]
    return (
        _nasvit.described(fixture)
        and bool(fixture.document.get("params"))
        and {"arch", "input", "output"} <= set(cases[0])
    )


def check(fixture: Fixture) -> Iterator[Case]:
    """Every case, in the file's order."""
    net = _Net(fixture)
    modes = {"eval": _evaluated, "calibrate": _calibrated, "train": _trained}
    for case in fixture.get("cases"):
        quantities = tuple(modes[case.get("mode", "eval")](fixture, case, net))
        yield Case(case["name"], case.get("bar", "all"), quantities)


class _Net:
    """A super-network with its weights, and its programs."""

    def __init__(self, fixture: Fixture) -> None:
        self.supernet = _nasvit.supernet(fixture)
        self.variables = import_weights(fixture.weights(), self.supernet)
        self._superpose = jax.jit(self.supernet.superpose)
        self._programs: dict[Any, Any] = {}

    def superposed(self, arch: Mapping[str, Any]) -> Any:
        """Variables of the one-hot super-network."""
        return self._superpose(self.variables, one_hot(self.supernet.space, arch))

    def logits(self, arch: Mapping[str, Any], variables: Any, x: Any) -> jax.Array:
        """Of the super-network; compiled once for each resolution, to which images are resized."""
        module = self.supernet.maximal(arch)
        x = resize_cubic(x, (module.resolution, module.resolution))
        key = (self.supernet.static(arch), x.shape)
        if key not in self._programs:
            self._programs[key] = jax.jit(module.apply)
        return self._programs[key](variables, x)

    def trained(self, arch: Mapping[str, Any], x: Any) -> Any:
        """Maps and logits in training mode, and the new statistics."""
        if "train" not in self._programs:
            self._programs["train"] = jax.jit(
                lambda variables, x: self.supernet.maximal(arch).apply(
                    variables, x, True, True, method="_run", mutable=[STATISTICS]
                )
            )
        return self._programs["train"](self.superposed(arch), x)


def _evaluated(fixture: Fixture, case: Mapping[str, Any], net: _Net) -> Iterator[Quantity]:
    arch = _nasvit.architecture(net.supernet, case["arch"])
    x, expected = _nasvit.images(fixture, case["input"]), fixture.array(case["output"])
    alone = net.supernet.extract(net.variables, arch)
    logits, blocks = _nasvit.by_block(net.supernet.network(arch), alone, x)
    yield Quantity.of("extracted", "output", logits, expected)
    within = net.logits(arch, net.superposed(arch), x)
    yield Quantity.of("one-hot", "output", within, expected)
    flops = net.supernet.count("flops", arch) / 1e6
    yield Quantity.of("flops", "output", flops, case["flops_m"])
    worst = 0.0
    for tap in case.get("taps", ()):
        found = [q.error for q in _tap(fixture, tap, blocks)]
        worst = max(worst, *found)
    if "taps" in case:
        yield Quantity(f"{len(case['taps'])} taps", "output", worst)


def _tap(fixture: Fixture, tap: Mapping[str, Any], blocks: Mapping[str, Any]) -> list[Quantity]:
    """What a block, or a part of the head, gives out."""
    name = tap["name"]
    if name == "pool":
        y = jnp.mean(blocks["last_expand"], (1, 2), keepdims=True)
    elif name == "feature_mix":
        y = nn.swish(blocks["last_mix"])
    elif name in _TAPS:
        y = blocks[_TAPS[name]]
    else:
        stage, index = name.split(".")
        y = blocks[f"{stage}_opening" if index == "0" else f"{stage}_{int(index) - 1}"]
    y = np.moveaxis(np.asarray(y), -1, 1)
    found = [Quantity.of("shape", "count", int(list(y.shape) == tap["shape"]), 1)]
    if "first_sample" in tap:
        found.append(Quantity.of(name, "output", y[0], fixture.array(tap["first_sample"])))
        return found
    key = "full" if "full" in tap else "corner"
    part = y if key == "full" else y[_corner(tap["corner_of"])]
    found.append(Quantity.of(name, "output", part, fixture.array(tap[key])))
    for key, value in (("mean", y.mean((2, 3))), ("std", y.std((2, 3)))):
        found.append(Quantity.of(name, "output", value, fixture.array(tap[key])))
    return found


def _corner(text: str) -> tuple[Any, ...]:
    """The index that a file writes as ``"[0, :4, :8, :8]"``."""
    parts = text.strip("[]").replace(" ", "").split(",")
    return tuple(slice(int(p[1:]) if p[1:] else None) if p[0] == ":" else int(p) for p in parts)


def _running(
    fixture: Fixture, case: Mapping[str, Any], net: _Net, statistics: Any, kind: str
) -> Iterator[Quantity]:
    """Running statistics of the channels that are there."""
    tensors = export_weights({STATISTICS: statistics}, net.supernet)
    for listed in case["running"]:
        for ours in ("mean", "var"):
            expected = fixture.array(listed[ours])
            found = tensors[f"{listed['bn']}.running_{ours}"][: len(expected)]
            yield Quantity.of(f"{listed['bn'].split('.')[1]} {ours}", kind, found, expected)


def _calibrated(fixture: Fixture, case: Mapping[str, Any], net: _Net) -> Iterator[Quantity]:
    arch = _nasvit.architecture(net.supernet, case["arch"])
    batches = np.stack([_nasvit.images(fixture, tag) for tag in case["calibration_inputs"]])
    module, superposed = net.supernet.maximal(arch), net.superposed(arch)
    calibrate = jax.jit(lambda v, x: calibrate_batch_stats(module, v, x))
    statistics = calibrate(superposed, batches)
    given = {**superposed, STATISTICS: statistics}
    logits = net.logits(arch, given, _nasvit.images(fixture, case["input"]))
    yield Quantity.of("one-hot", "output", logits, fixture.array(case["output"]))
    yield from _running(fixture, case, net, statistics, "output")


def _trained(fixture: Fixture, case: Mapping[str, Any], net: _Net) -> Iterator[Quantity]:
    arch = _nasvit.architecture(net.supernet, case["arch"])
    (maps, logits), changed = net.trained(arch, _nasvit.images(fixture, case["input"]))
    yield Quantity.of("one-hot", "output", logits, fixture.array(case["output"]))
    for block in case["block_outputs"]:
        y = np.asarray(maps[block["name"]])[..., : block["shape"][1]]
        for key, value in (("mean", y.mean((1, 2))), ("std", y.std((1, 2)))):
            expected = fixture.array(block[key])
            yield Quantity.of(f"{block['name']} {key}", "output", value, expected)
    yield from _running(fixture, case, net, changed[STATISTICS], "info")
