"""Counts of full-size AutoFormer networks, and the sizes of the spaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nasjax.core import architecture
from nasjax.core.architecture import ArchitectureError
from nasjax.core.supernet import Supernet
from nasjax.spaces.autoformer import OPTIONS, autoformer
from tests.golden.fixture import Fixture
from tests.golden.kinds import _vision
from tests.golden.kinds.autoformer import costs
from tests.golden.outcome import Case, Quantity

LISTED = "as listed"


def matches(fixture: Fixture) -> bool:
    """AutoFormer's constructor and a table of spaces, without weights."""
    listed = "change_qkv" in fixture.constructor and "spaces" in fixture.document
    return listed and not fixture.document.get("params")


def check(fixture: Fixture) -> Iterator[Case]:
    """The size of each space, then every architecture."""
    images: Mapping[str, Any] = {"img_size": 16, "patch_size": 16, "num_classes": 1}
    for name, described in fixture.get("spaces").items():
        size = int(described["num_architectures"])
        quantities = {
            source: [Quantity.of("num_architectures", "count", supernet.space.size, size)]
            for source, supernet in _supernets(fixture, name, images).items()
        }
        yield _case(f"space {name}", "all", quantities)
    built: dict[tuple[Any, ...], dict[str, Supernet]] = {}
    for case in fixture.get("cases"):
        key = tuple(case[k] for k in ("space", "img_size", "patch_size", "num_classes"))
        if key not in built:
            built[key] = _supernets(fixture, case["space"], case)
        name = "{space} {name} ({img_size}/{patch_size}, {num_classes} classes)".format(**case)
        quantities = {source: list(_counts(case, net)) for source, net in built[key].items()}
        yield _case(name, case.get("bar", "all"), quantities)


def _case(name: str, bar: str, quantities: Mapping[str, list[Quantity]]) -> Case:
    """The quantities of the space as listed, and the worst of those of nasjax's own space."""
    shown = list(quantities[LISTED])
    for source in set(quantities) - {LISTED}:
        shown.append(Quantity(source, "count", max(q.error for q in quantities[source])))
    return Case(name, bar, tuple(shown))


def _counts(case: Mapping[str, Any], supernet: Supernet) -> Iterator[Quantity]:
    yield from costs(supernet, case)
    if "inside_space" in case:
        inside = _inside(supernet, case["arch"])
        yield Quantity.of("inside_space", "count", inside, case["inside_space"])


def _inside(supernet: Supernet, arch: Mapping[str, Any]) -> bool:
    try:
        architecture.validate(supernet.space, _vision.arch_of(arch))
    except ArchitectureError:
        return False
    return True


def _supernets(fixture: Fixture, name: str, images: Mapping[str, Any]) -> dict[str, Supernet]:
    """The space as the file lists it and, if it is one of AutoFormer's, as nasjax has it."""
    options = fixture.get("spaces")[name]
    bounds = {"embed_dim": options.get("supernet", {}).get("embed_dim")}
    constructor = {**bounds, **fixture.constructor, **images}
    found = {LISTED: _vision.supernet_of(constructor, options, name)}
    listed = {ours: set(options[theirs]) for theirs, ours in _vision.CHOICES.items()}
    if listed == {choice: set(values) for choice, values in OPTIONS.get(name, {}).items()}:
        found[f"autoformer({name!r})"] = autoformer(
            name,
            image_size=constructor["img_size"],
            patch_size=constructor["patch_size"],
            num_classes=constructor["num_classes"],
            **_vision.network_arguments(constructor),
        )
    return found
