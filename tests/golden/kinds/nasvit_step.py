"""One gradient of NASViT's training: four networks, distillation, and projection as released."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from nasjax.core.mixture import one_hot
from nasjax.core.supernet import STATISTICS
from nasjax.interop.nasvit import export_weights, import_weights, tensors
from nasjax.models.talking_attention import resize_cubic
from nasjax.train import projection
from nasjax.train.distillation import adaptive_alpha, soft_target
from nasjax.train.losses import cross_entropy
from nasjax.train.sandwich import stacked_tensors
from tests.golden.fixture import Fixture
from tests.golden.kinds import _nasvit
from tests.golden.outcome import Case, Quantity, relative_error


def matches(fixture: Fixture) -> bool:
    """NASViT's constructor, and architectures that make a step together."""
    cases = fixture.document.get("cases") or [{}]
    return _nasvit.described(fixture) and "archs" in cases[0]


def check(fixture: Fixture) -> Iterator[Case]:
    """Every case."""
    for case in fixture.get("cases"):
        yield Case(case["name"], case.get("bar", "all"), tuple(_step(fixture, case)))


def _step(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Quantity]:
    net = _nasvit.supernet(fixture)
    variables = import_weights(fixture.weights(), net)
    images = _nasvit.images(fixture, "s")
    times = {entry["tag"]: np.float32(entry.get("times", 1.0)) for entry in fixture.get("input")}
    teachers = [times[tag] * fixture.input(tag) for tag in ("t1", "t2")]
    gradients: list[Any] = []
    target: Any = None
    for listed in case["archs"]:
        arch = _nasvit.architecture(net, listed["arch"])
        module, mixture = net.maximal(arch), one_hot(net.space, arch)
        x = resize_cubic(images, (module.resolution, module.resolution))

        def loss(
            params: Any, module: Any = module, mixture: Any = mixture, x: Any = x,
            target: Any = target,
        ) -> Any:  # fmt: skip
            given = net.superpose({**variables, "params": params}, mixture)
            logits, _ = module.apply(given, x, train=True, mutable=[STATISTICS])
            if target is None:
                return cross_entropy(logits, soft_target(teachers)), logits
            return adaptive_alpha(logits, target), logits

        run = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, logits), gradient = run(variables["params"])
        target = logits if target is None else target
        name = listed["name"]
        yield Quantity.of(f"loss {name}", "loss", value, listed["loss"])
        yield Quantity.of(name, "output", logits, fixture.array(listed["logits"]))
        gradients.append(gradient)
    supernet = gradients[0]
    whole = jax.tree.map(lambda *g: sum(g), *gradients[1:])
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(whole)))
    yield Quantity.of("g_sub norm", "gradient", norm, case["g_sub_global_norm"])
    stacked = stacked_tensors(net)
    subnets = projection.clip_norm(whole, case["clip_max_norm"])
    rule = projection.released
    trees = {
        "norm_sup": supernet,
        "norm_sub": whole,
        "norm_sum": jax.tree.map(jnp.add, subnets, supernet),
        "norm_projected": projection.combine(subnets, supernet, rule=rule, stacked=stacked),
    }
    ours = {kind: export_weights({"params": tree}, net) for kind, tree in trees.items()}
    factors = projection.factors(supernet, subnets, rule, stacked)
    yield from _norms(fixture, ours, _by_name(net, factors))
    full = {"sup": "g_sup", "sum": "sum", "projected": "projected"}
    for kind, key in full.items():
        pairs = [
            (ours[f"norm_{kind}"][listed["name"]], fixture.array(listed[key]))
            for listed in case["tensors_given_in_full"]
        ]
        yield Quantity(f"{len(pairs)} {kind}", "gradient", max(relative_error(*p) for p in pairs))


def _by_name(net: Any, factors: Any) -> dict[str, float]:
    flat = {("params", *path): np.asarray(x) for path, x in _flat(factors).items()}
    found = [(t.name, flat.get(t.path), t.layer) for t in tensors(net)]
    return {n: float(x if i is None else x[i]) for n, x, i in found if x is not None}


def _flat(tree: Any) -> dict[tuple[str, ...], Any]:
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(dict(tree))
    return flat


def _norms(
    fixture: Fixture, ours: Mapping[str, Mapping[str, np.ndarray]], factors: Mapping[str, float]
) -> Iterator[Quantity]:
    """The worst of each kind over all tensors, but those whose gradient is rounding alone."""
    zero = set(fixture.get("zero_gradient"))
    errors: dict[str, list[float]] = {kind: [] for kind in (*ours, "factor")}
    for listed in fixture.get("tensors"):
        name = listed["name"]
        if name in zero:
            continue
        for kind, tree in ours.items():
            expected = listed[kind] or 0.0  # None is no gradient
            found = float(np.linalg.norm(tree[name]))
            errors[kind].append(abs(found - expected) / (expected or 1.0))
        errors["factor"].append(abs(factors[name] - (listed["factor"] or 0.0)))
    for kind, each in errors.items():
        yield Quantity(kind, "gradient", max(each))
