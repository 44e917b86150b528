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


def matches(fixture: Fixture) -> bool:
    """AutoFormer's constructor and a table of spaces, without weights."""
    listed = "change_qkv" in fixture.constructor and "spaces" in fixture.document
    return listed and not fixture.document.get("params")


def check(fixture: Fixture) -> Iterator[Case]:
    """The size of each space, then every architecture."""
    spaces = fixture.get("spaces")
    images: Mapping[str, Any] = {"img_size": 16, "patch_size": 16, "num_classes": 1}
    for name, described in spaces.items():
        size = int(described["num_architectures"])
        quantities = [
            Quantity.of(f"num_architectures{where}", "count", supernet.space.size, size)
            for where, supernet in _supernets(fixture, name, images).items()
        ]
        yield Case(f"space {name}", "all", tuple(quantities))
    for case in fixture.get("cases"):
        yield _check(fixture, case)


def _check(fixture: Fixture, case: Mapping[str, Any]) -> Case:
    quantities: list[Quantity] = []
    for where, supernet in _supernets(fixture, case["space"], case).items():
        quantities += costs(supernet, case, where)
        if "inside_space" in case:
            inside = _inside(supernet, case["arch"])
            quantities.append(
                Quantity.of(f"inside_space{where}", "count", inside, case["inside_space"])
            )
    size = f"{case['img_size']}/{case['patch_size']}, {case['num_classes']} classes"
    name = f"{case['space']} {case['name']} ({size})"
    return Case(name, case.get("bar", "all"), tuple(quantities))


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
    found = {"": _vision.supernet_of(constructor, options, name)}
    listed = {ours: set(options[theirs]) for theirs, ours in _vision.CHOICES.items()}
    if listed == {choice: set(values) for choice, values in OPTIONS.get(name, {}).items()}:
        found[f" of autoformer({name!r})"] = autoformer(
            name,
            image_size=constructor["img_size"],
            patch_size=constructor["patch_size"],
            num_classes=constructor["num_classes"],
            **_vision.network_arguments(constructor),
        )
    return found
