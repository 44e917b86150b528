"""NASViT's counts: multiply-adds, and parameters part by part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from nasjax.core import cost
from nasjax.core.names import leaves
from nasjax.core.supernet import Supernet
from nasjax.models.talking_attention import TransformerSizes
from tests.golden.fixture import Fixture
from tests.golden.kinds import _nasvit
from tests.golden.outcome import Case, Quantity

_PUBLISHED = {"smallest": "smallest", "largest": "largest"}
_PUBLISHED |= {f"table13_A{i}": f"NASViT-A{i}" for i in range(1, 5)}


def matches(fixture: Fixture) -> bool:
    """NASViT's constructor, and counts without weights."""
    return _nasvit.described(fixture) and not fixture.document.get("params")


def check(fixture: Fixture) -> Iterator[Case]:
    """The size of the space, then every case."""
    net = _nasvit.supernet(fixture)
    size = math.log10(net.space.size)
    expected = fixture.get("search_space")["n_archs_log10"]
    yield Case("size", "all", (Quantity.of("log10", "output", size, expected),))
    rounding = fixture.get("tolerance")["flops_rtol"]
    for case in fixture.get("cases"):
        yield Case(case["name"], case.get("bar", "all"), tuple(_counts(net, case, rounding)))


def _counts(net: Supernet, case: Mapping[str, Any], rounding: float) -> Iterator[Quantity]:
    arch = _nasvit.architecture(net, case["arch"])
    flops, theirs = net.count("flops", arch), round(case["flops_m"] * 1e6)
    # They add up what hooks see in single precision, which rounds some counts.
    rounded = abs(flops - theirs) <= rounding * theirs
    yield Quantity.of("flops", "count", theirs if rounded else flops, theirs)
    parts = _parts(net, arch)
    for name, found in parts.items():
        yield Quantity.of(name, "count", found, case["params"][name])
    yield Quantity.of("params", "count", net.count("params", arch), case["params"]["total"])
    if case["name"] in _PUBLISHED:
        named = net.architecture(_PUBLISHED[case["name"]])
        yield Quantity.of("published", "count", int(named == arch), 1)


def _parts(net: Supernet, arch: Mapping[str, Any]) -> dict[str, int | float]:
    params = {"params": net.shapes["params"]}
    plan = list(leaves(net.space, net.names, params))
    terms = cost.parameter_terms(net.space, net.names, params)
    attention = {s.name for s in net.module.stages if isinstance(s.layer, TransformerSizes)}
    found: dict[str, int | float] = {}
    for leaf, term in zip(plan, terms, strict=True):
        name = "conv_bn_se_linear"
        if leaf.path[1] in attention:
            name = "transformer"
        if leaf.path[-1] == "positions":
            name = "position_tables"
        if leaf.path[-1] in ("scale_attention", "scale_mlp"):
            name = "rescale_rows"
        found[name] = found.get(name, 0) + cost.exact(net.space, [term], arch)
    return found
