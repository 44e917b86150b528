"""Losses of distillation, soft and smoothed targets, and gradient projection, on bare logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasjax import data
from nasjax.train import distillation, projection
from nasjax.train.losses import cross_entropy
from tests.golden.fixture import Fixture
from tests.golden.outcome import Case, Quantity

Part = Mapping[str, Any]


def matches(fixture: Fixture) -> bool:
    """Cases that are all called by a loss known here."""
    cases = fixture.document.get("cases", [])
    return bool(cases) and all(case.get("name") in _CHECKERS for case in cases)


def check(fixture: Fixture) -> Iterator[Case]:
    """Every case."""
    for number, case in enumerate(fixture.get("cases")):
        checker = _CHECKERS[case["name"]]
        name = f"{number} {case['name']}"
        yield Case(name, case.get("bar", "all"), tuple(checker(fixture, case)))


def _learnt(fixture: Fixture, case: Part, loss: Callable[..., Any]) -> Iterator[Quantity]:
    """The value of ``loss(student)`` and its gradient."""
    value, gradient = jax.value_and_grad(loss)(_input(fixture, case["student"]))
    yield Quantity.of("loss", "loss", value, case["loss"])
    expected = fixture.array(case["grad_student"])
    yield Quantity.of("grad_student", "gradient", gradient, expected)


def _adaptive(fixture: Fixture, case: Part) -> Iterator[Quantity]:
    student, teacher = (_input(fixture, case[k]) for k in ("student", "teacher"))
    alphas, clip = (case["alpha_min"], case["alpha_max"]), case["iw_clip"]
    found = [distillation.alpha_divergence(student, teacher, alpha, clip) for alpha in alphas]
    for side, (divergence, surrogate) in zip(("left", "right"), found, strict=True):
        for kind, actual in (("divergence", divergence), ("surrogate", surrogate)):
            expected = fixture.array(case[f"{kind}_{side}"])
            yield Quantity.of(f"{kind}_{side}", "output", actual, expected)
    chosen = np.asarray(found[0][0] > found[1][0]).tolist()
    yield Quantity.of("chosen_left", "count", int(chosen == case["chosen_left"]), 1)
    yield from _learnt(
        fixture, case, lambda s: distillation.adaptive_alpha(s, teacher, alphas=alphas, clip=clip)
    )


def _divergence(fixture: Fixture, case: Part) -> Iterator[Quantity]:
    student, teacher = (_input(fixture, case[k]) for k in ("student", "teacher"))

    def mean(student: jax.Array) -> Any:
        each = distillation.alpha_divergence(student, teacher, case["alpha"], case["iw_clip"])
        return jnp.mean(each[1]), each

    gradient, (divergence, surrogate) = jax.grad(mean, has_aux=True)(student)
    for key, actual in (("divergence", divergence), ("surrogate", surrogate)):
        yield Quantity.of(key, "output", actual, fixture.array(case[key]))
    expected = fixture.array(case["grad_of_mean_surrogate"])
    yield Quantity.of("gradient", "gradient", gradient, expected)


def _soft_kl(fixture: Fixture, case: Part) -> Iterator[Quantity]:
    teacher = _input(fixture, case["teacher"])
    yield from _learnt(fixture, case, lambda s: distillation.soft_kl(s, teacher))


def _two_teachers(fixture: Fixture, case: Part) -> Iterator[Quantity]:
    teachers = [_input(fixture, case[k]) for k in ("teacher_1", "teacher_2")]
    target = distillation.soft_target(teachers)
    yield from _learnt(fixture, case, lambda s: cross_entropy(s, target))


def _smoothed(fixture: Fixture, case: Part) -> Iterator[Quantity]:
    """Through the augmentation, where labels are smoothed."""
    labels = jnp.asarray(case["labels"])
    classes = _input(fixture, case["student"]).shape[-1]
    images = jnp.zeros((len(labels), 1, 1, 1), jnp.uint8)
    smooth = data.Augmentation(label_smoothing=case["epsilon"])
    _, target = smooth(jax.random.key(0), images, labels, classes, (0.5,), (0.5,))
    yield from _learnt(fixture, case, lambda s: cross_entropy(s, target))


def _projection(fixture: Fixture, case: Part) -> Iterator[Quantity]:
    """As released; a tensor without a gradient of the super-network has one of zeros here."""
    names, factor = case["tensors"], case["factor"]
    subnets = {n: fixture.array(case["g_sub"].replace("*", n)) for n in names}
    pattern = case["g_sup"].split()[0]
    supernet = {
        n: fixture.array(pattern.replace("*", n)) if factor[n] is not None else 0 * subnets[n]
        for n in names
    }
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in subnets.values()))
    yield Quantity.of("g_sub_global_norm", "output", norm, case["g_sub_global_norm"])
    clipped = projection.clip_norm(subnets, case["clip_max_norm"])
    found = projection.factors(supernet, clipped, projection.released)
    combined = {
        "combined_sum": jax.tree.map(jnp.add, clipped, supernet),
        "combined_projected": projection.combine(clipped, supernet, rule=projection.released),
    }
    for n in names:
        yield Quantity.of(f"factor_{n}", "gradient", found[n], factor[n] or 0.0)
        for kind, tree in combined.items():
            expected = fixture.array(case[kind].replace("*", n))
            yield Quantity.of(f"{kind}_{n}", "gradient", tree[n], expected)


def _input(fixture: Fixture, tag: str) -> Any:
    """An input of the file, which says by what it is multiplied."""
    (entry,) = (e for e in fixture.get("input") if e["tag"] == tag)
    return jnp.asarray(np.float32(entry.get("times", 1.0)) * fixture.input(tag))


_CHECKERS: dict[str, Callable[[Fixture, Part], Iterator[Quantity]]] = {
    "adaptive_alpha": _adaptive,
    "f_divergence": _divergence,
    "soft_kl": _soft_kl,
    "supernet_loss": _two_teachers,
    "label_smoothing_ce": _smoothed,
    "gradient_projection": _projection,
}
