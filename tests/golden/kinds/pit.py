"""PiT networks of TF-TAS, standing alone and inside a super-network; counts and the space."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import mixture
from nasjax.core.supernet import Supernet
from nasjax.interop.pit import export_weights, import_weights
from nasjax.models.pit import PiT
from nasjax.spaces.pit import OPTIONS, pit
from tests.golden.fixture import Fixture
from tests.golden.kinds._vision import channels_last
from tests.golden.outcome import Case, Quantity

_SMALL = 64  # pixels up to which the super-network is run too: those of 224 take gigabytes
_SHARED = ("mlp_ratio", "base_dim")  # by all stages


def matches(fixture: Fixture) -> bool:
    """Networks described by their base dimensions, and a table of spaces."""
    cases = fixture.document.get("cases") or [{}]
    return "base_dims" in cases[0].get("constructor", {})


def check(fixture: Fixture) -> Iterator[Case]:
    """The options of each space, then every network."""
    for name, listed in fixture.get("search_spaces").items():
        yield Case(name + " space", "all", tuple(_options(name.rpartition("-")[2], listed)))
    for case in fixture.get("cases"):
        yield Case(case["name"], case.get("bar", "all"), tuple(_check(fixture, case)))


def _options(variant: str, listed: Mapping[str, Any]) -> Iterator[Quantity]:
    ours = OPTIONS[variant]
    for theirs in _SHARED:
        yield Quantity.of(theirs, "count", list(ours[theirs]), listed[theirs])
    for stage, depths in enumerate(listed["depth_per_stage"]):
        yield Quantity.of(f"depth_{stage}", "count", list(ours[f"depth_{stage}"]), depths)
        found = list(ours[f"heads_{stage}"])
        yield Quantity.of(f"heads_{stage}", "count", found, listed["num_heads"])
    found = [pit(variant).module.patch_size]
    yield Quantity.of("patch_size", "count", found, listed["patch_size"])


def _check(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Quantity]:
    built = case["constructor"]
    if len(set(built["base_dims"])) > 1:  # not in the space, but the module can be built
        supernet, arch, network = _uneven(built)
    else:
        arch = _arch(built)
        supernet = _supernet(case, arch)
        network = supernet.network(arch)
        yield Quantity.of("params", "count", supernet.count("params", arch), case["num_params"])
        yield Quantity.of("flops", "count", supernet.count("flops", arch), case["macs_total"])
    if "output" not in case:
        return
    tensors = {entry["name"]: fixture.draw(entry) for entry in case["params"]}
    tag = case["input"]["tag"]
    images = channels_last(fixture.draw({"name": f"input:{tag}", **case["input"]}))
    variables = import_weights(tensors, supernet, arch)
    logits = jax.jit(network.apply)(variables, images)
    yield from _logits("alone", case, logits, fixture.array(case["output"]))
    count = sum(a.size for a in jax.tree.leaves(variables))
    yield Quantity.of("parameters", "count", count, case["num_params"])
    back = export_weights(variables, supernet)
    same = back.keys() == tensors.keys() and all(np.array_equal(back[n], tensors[n]) for n in back)
    yield Quantity.of("round trip", "count", int(same), 1)
    if supernet.module is network or built["image_size"] > _SMALL:
        return
    maximal = _padded(supernet, variables, arch)
    one_hot = jax.jit(supernet.superpose)(maximal, mixture.one_hot(supernet.space, arch))
    inside = jax.jit(supernet.module.apply)(one_hot, images)
    yield from _logits("one-hot", case, inside, fixture.array(case["output"]))


def _logits(
    name: str, case: Mapping[str, Any], logits: jax.Array, expected: np.ndarray
) -> Iterator[Quantity]:
    shown = logits if logits.shape == expected.shape else logits.ravel()[: expected.size]
    yield Quantity.of(name, "output", np.reshape(shown, expected.shape), expected)
    for statistic in ("mean", "std"):
        found = float(getattr(np.asarray(logits, np.float64), statistic)())
        # Of numbers of size one, so that a mean near zero is not divided by itself.
        yield Quantity(f"{name} {statistic}", "output", abs(found - case[statistic]))


def _arch(built: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "base_dim": built["base_dims"][0],
        "mlp_ratio": built["mlp_ratio"],
        **{f"heads_{i}": h for i, h in enumerate(built["heads"])},
        **{f"depth_{i}": d for i, d in enumerate(built["depth"])},
    }


def _supernet(case: Mapping[str, Any], arch: Mapping[str, Any]) -> Supernet:
    """nasjax's own space where the network is in one; else a small one around the network."""
    built = case["constructor"]
    sizes = {k: built[k] for k in ("image_size", "patch_size", "stride", "num_classes")}
    for variant, options in OPTIONS.items():
        if all(value in options[name] for name, value in arch.items()):
            return pit(variant, **sizes)
    options = {name: (value, *_more(name, value)) for name, value in arch.items()}
    return pit(options=options, **sizes)


def _more(name: str, value: int) -> tuple[int, ...]:
    """One larger option of each choice, and heads that give other growths."""
    return (2 * value,) if name.startswith("heads_") else (value + 1,)


def _uneven(built: Mapping[str, Any]) -> tuple[Supernet, None, PiT]:
    """A network whose stages have heads of different sizes, which no space has."""
    sizes = {k: built[k] for k in ("image_size", "patch_size", "stride", "num_classes")}
    module = PiT(
        built["num_classes"],
        tuple(built["base_dims"]),
        tuple(built["depth"]),
        tuple(built["heads"]),
        tuple(
            int(b * h * built["mlp_ratio"])
            for b, h in zip(built["base_dims"], built["heads"], strict=True)
        ),
        patch_size=built["patch_size"],
        stride=built["stride"],
    )
    around = pit(options={"base_dim": (max(built["base_dims"]),)}, **sizes)
    return dataclasses.replace(around, module=module), None, module


def _padded(supernet: Supernet, variables: Any, arch: Mapping[str, Any]) -> Any:
    """Maximal variables that hold ``variables`` where ``arch`` reads them, and noise elsewhere."""
    rng = np.random.default_rng(3)
    noise = jax.tree.map(
        lambda s: rng.standard_normal(s.shape).astype(np.float32), supernet.shapes["params"]
    )

    @jax.jit  # hundreds of slices, each a program of its own otherwise
    def padded(noise: Any, variables: Any) -> Any:
        # Extraction is linear, so its transpose puts what was taken back where it came from.
        read, put = jax.vjp(lambda maximal: supernet.extract({"params": maximal}, arch), noise)
        (there,) = put(jax.tree.map(jnp.ones_like, read))
        (back,) = put(variables)
        return jax.tree.map(lambda n, m, b: n * (1 - m) + b, noise, there, back)

    return {"params": padded(noise, variables)}
