"""Training-free scores of AutoFormer networks, extracted and inside the super-network."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nasjax.core.mixture import one_hot
from nasjax.core.supernet import Supernet
from nasjax.interop.autoformer import import_weights
from nasjax.search import proxies
from tests.golden.fixture import Fixture
from tests.golden.kinds import _vision
from tests.golden.kinds.autoformer import options
from tests.golden.outcome import Case, Quantity

_PARTS = ("small", "small_ten_classes", "autoformer_tiny")
_MODULES = {  # theirs and ours, beside those called alike
    "patch_embed_super": "patches",
    "attn.qkv": "attention/qkv",
    "attn.proj": "attention/proj",
}
_PER_SAMPLE = {"te_nas_per_sample": r"qkv$", "te_nas_per_sample_qkv": r"(?!)"}


def matches(fixture: Fixture) -> bool:
    """Parts with values of proxies."""
    return all(part in fixture.document for part in _PARTS)


def check(fixture: Fixture) -> Iterator[Case]:
    """Every architecture of every part, inside the super-network and, if small, alone."""
    for name in _PARTS:
        part = fixture.get(name)
        if not part["cases"]:
            continue
        scored = _Part(fixture, name, part)
        for case in part["cases"]:
            quantities = tuple(_check(fixture, scored, case))
            yield Case(f"{name} {case['name']}", "all", quantities)


class _Part:
    """A super-network, its weights and its inputs."""

    def __init__(self, fixture: Fixture, name: str, part: Mapping[str, Any]) -> None:
        described: Any = types.SimpleNamespace(constructor=part["constructor"], get=part.get)
        self.supernet: Supernet = _vision.supernet_of(part["constructor"], options(described))
        entries = part["params"]
        if isinstance(entries, str):  # as in small, but for the head
            classes = part["constructor"]["num_classes"]
            entries = [
                {**entry, "shape": [classes, *entry["shape"][1:]]}
                if entry["name"].startswith("head.")
                else entry
                for entry in fixture.get("small")["params"]
            ]
        tensors = {entry["name"]: fixture.draw(entry) for entry in entries}
        self.variables = import_weights(tensors, self.supernet)
        self.inputs = {}
        for use in ("snip_grasp", "naswot_te_nas"):
            entry = part["inputs"][use]
            image = fixture.draw({"name": f"input:{entry['tag']}", "shape": entry["shape"]})
            self.inputs[use] = {"image": jnp.asarray(_vision.channels_last(image))}
        targets = part["inputs"]["snip_grasp"]["targets"]
        self.inputs["snip_grasp"]["label"] = jnp.asarray(targets)
        self.whole = name != "autoformer_tiny"
        head = part["constructor"]["num_classes"] != 1000
        self.proxies = {
            "dss_paper": (proxies.DSS(head=head), "naswot_te_nas"),  # which needs no images
            "dss": (proxies.DSS("released"), "naswot_te_nas"),
            "snip_split1": (proxies.snip(), "snip_grasp"),
            "grasp_split1": (proxies.grasp(), "snip_grasp"),
            "naswot": (proxies.naswot(), "naswot_te_nas"),
        }

    @functools.cached_property
    def inside(self) -> Callable[..., Any]:
        """``mixture -> scores`` of the super-network, compiled once."""
        return jax.jit(lambda mixture: self.scores(self.supernet, self.variables, mixture))

    def alone(self, arch: Mapping[str, Any]) -> Any:
        """The scores of the extracted network."""
        own, module = self.supernet.extract(self.variables, arch), self.supernet.network(arch)
        return jax.jit(lambda own: self.scores(module, own, None))(own)

    def scores(self, model: Any, variables: Any, arch: Any) -> dict[str, Any]:
        """All scores with their parts, and all kernels."""
        found: dict[str, Any] = {}
        for name, (proxy, use) in self.proxies.items():
            found[name] = proxy(model, variables, arch, self.inputs[use])
        images = self.inputs["naswot_te_nas"]
        found["kernel"] = proxies.activation_kernel(model, variables, arch, images)[0]
        for name, pattern in _PER_SAMPLE.items() if self.whole else ():
            found[name] = proxies.ntk(pattern)(model, variables, arch, images)
            found[f"{name} kernel"] = proxies.tangent_kernel(
                model, variables, arch, images, pattern
            )
        return found


def _check(fixture: Fixture, part: _Part, case: Mapping[str, Any]) -> Iterator[Quantity]:
    net = part.supernet
    arch = net.architecture(_vision.arch_of(case["arch"]))
    yield Quantity.of("params", "count", net.count("params", arch), case["num_params"])
    sources = {"one-hot ": part.inside(one_hot(net.space, arch))}
    if part.whole:  # full-size networks take minutes to compile, each of them
        sources["alone "] = part.alone(arch)
    for source, found in sources.items():
        for name in part.proxies:
            total, layers = found[name]
            yield Quantity.of(source + name, "gradient", total, case["values"][name])
            if name in case.get("contributions", {}):
                yield _layers(f"{source}{name}", layers, case["contributions"][name])
        if "naswot_kernel" in case:
            expected = fixture.array(case["naswot_kernel"])
            yield Quantity.of(f"{source}naswot kernel", "gradient", found["kernel"], expected)
        for name in case.get("ntk", {}):
            if name not in _PER_SAMPLE:
                continue
            expected = fixture.array(case["ntk"][name])
            yield Quantity.of(
                f"{source}{name} kernel", "gradient", found[f"{name} kernel"], expected
            )
            condition = case["condition_number_float64"][name]
            yield Quantity.of(source + name, "gradient", found[name][0], -condition)


def _layers(name: str, layers: Mapping[str, Any], expected: list[Any]) -> Quantity:
    """The worst of all layers, each relative to itself; what is not listed must be nothing."""
    listed: dict[str, float] = {}
    for theirs, value in expected:
        listed[_ours(theirs)] = listed.get(_ours(theirs), 0.0) + value
    errors = [0.0]
    for layer in {*listed, *layers}:
        want, have = listed.get(layer, 0.0), float(layers.get(layer, 0.0))
        errors.append(abs(have - want) / (abs(want) or 1.0))
    return Quantity(f"{name} layers", "gradient", max(errors))


def _ours(theirs: str) -> str:
    for name, ours in _MODULES.items():
        theirs = theirs.replace(name, ours)
    return theirs.replace("blocks.", "blocks_").replace(".", "/")
