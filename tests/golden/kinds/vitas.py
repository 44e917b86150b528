"""ViTAS: networks extracted and as one-hot super-networks from both sides; networks alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core.mixture import one_hot
from nasjax.interop.vitas import export_weights, import_weights, released_network
from nasjax.spaces.vitas import IDENTITY, SIDES, vitas
from tests.golden.fixture import Fixture
from tests.golden.outcome import Case, Quantity

PAPER = "output_paper"  # aligned ratios, the whole table of positions, heads' own scale
SHARED = {2: "v", 1: "qk", 0: "qkv"}  # by their argument qkv
STEM = "net.backbone_init_stem_Patch_init_0"
_SMOOTHING = 0.1
_CHOICES = {"attn_ratio": "attn_ratios", "mlp_ratio": "mlp_ratios"}


def matches(fixture: Fixture) -> bool:
    """ViTAS's constructor, and weights."""
    return "at_max" in fixture.constructor and bool(fixture.document.get("params"))


def check(fixture: Fixture) -> Iterator[Case]:
    """Every case, in the file's order."""
    nets: dict[str, _Nets] = {}
    for case in fixture.get("cases"):
        variant = case.get("variant", "main")
        if variant not in nets:
            nets[variant] = _Nets(fixture, variant)
        check_one = _check_alone if case["mode"] == "standalone" else _check_super
        quantities = tuple(check_one(fixture, case, nets[variant]))
        yield Case(case["name"], case.get("bar", "all"), quantities)


def space_arguments(constructor: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`vitas` for a constructor of theirs."""
    return {
        "image_size": constructor["img_size"],
        "num_classes": constructor["num_classes"],
        "patch_sizes": tuple(constructor["patch_sizes"]),
        "heads": tuple(constructor["heads"]),
        "embed_max": constructor["embed_max"],
        "attention_max": constructor["at_max"],
        "mlp_max": constructor["mlp_max"],
        "depth": constructor["depth"],
        "identity": constructor.get("identity", True),
    }


class _Nets:
    """The left-hand and the right-hand super-network of a variant, with its weights."""

    def __init__(self, fixture: Fixture, variant: str) -> None:
        change = fixture.document.get("variants", {}).get(variant, {})
        constructor = {**fixture.constructor, **change.get("overrides", {})}
        arguments = space_arguments(constructor)
        shared = SHARED[constructor["qkv"]]
        self.sides = {side: vitas(side=side, shared=shared, **arguments) for side in SIDES}
        changed = {"params_changed": change.get("params_added", ())}
        self.variables = import_weights(fixture.weights({**change, **changed}), self.sides["left"])
        self._superpose = {s: jax.jit(net.superpose) for s, net in self.sides.items()}
        self._programs: dict[Any, Any] = {}

    def compiled(self, arch: Mapping[str, Any]) -> bool:
        """Whether :meth:`logits` ran for this patch size."""
        return self.sides["left"].static(arch) in self._programs

    def logits(self, arch: Mapping[str, Any], images: np.ndarray) -> dict[str, jax.Array]:
        """Logits of the one-hot super-network by side; compiled once for each patch size."""
        left = self.sides["left"]
        mixture, static = one_hot(left.space, arch), left.static(arch)
        if static not in self._programs:
            self._programs[static] = jax.jit(left.maximal(arch).apply)
        return {
            side: self._programs[static](superpose(self.variables, mixture), images)
            for side, superpose in self._superpose.items()
        }

    def gradient(self, arch: Mapping[str, Any], images: np.ndarray, targets: list[int]) -> Any:
        """Of the loss of the summed logits, by their tensors."""
        left = self.sides["left"]
        mixture, module = one_hot(left.space, arch), left.maximal(arch)
        logits = self.logits(arch, images)
        by_logits = jax.grad(_loss)(logits["left"] + logits["right"], targets)

        def pull_back(variables: Any, cotangent: jax.Array) -> Any:
            return jax.vjp(lambda v: module.apply(v, images), variables)[1](cotangent)[0]

        program, total = jax.jit(pull_back), None
        for superpose in self._superpose.values():
            by_weights = program(superpose(self.variables, mixture), by_logits)
            # A product with a mask is its own transpose.
            found = superpose({"params": by_weights["params"]}, mixture)["params"]
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        return export_weights({"params": total}, left)


def _arch(described: Mapping[str, Any]) -> dict[str, Any]:
    heads = [IDENTITY if h == "identity" else h for h in described["heads"]]
    ratios = {
        ours: [r if h else 0.1 for r, h in zip(described[theirs], heads, strict=True)]
        for ours, theirs in _CHOICES.items()
    }
    own = {name: described[name] for name in ("patch_size", "embed_ratio")}
    return {**own, "heads": heads, **ratios}


def _images(fixture: Fixture, case: Mapping[str, Any]) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(fixture.input(case["input"]), 1, -1))


def _loss(logits: jax.Array, targets: list[int]) -> jax.Array:
    """Cross-entropy; smoothing is spread over the other classes."""
    classes = logits.shape[-1]
    hot = jax.nn.one_hot(jnp.asarray(targets), classes)
    smooth = hot * (1 - _SMOOTHING) + (1 - hot) * _SMOOTHING / (classes - 1)
    return -jnp.mean(jnp.sum(smooth * jax.nn.log_softmax(logits), -1))


def _check_super(fixture: Fixture, case: Mapping[str, Any], nets: _Nets) -> Iterator[Quantity]:
    left = nets.sides["left"]
    arch, images = left.architecture(_arch(case["arch"])), _images(fixture, case)
    first = not nets.compiled(arch)  # each extracted network is a program of its own
    logits = nets.logits(arch, images)
    outputs = {f"{side} one-hot": (side, output) for side, output in logits.items()}
    if first:
        run = jax.jit(lambda v, x: left.network(arch).apply(left.extract(v, arch), x))
        outputs["left extracted"] = ("left", run(nets.variables, images))
    for name, (side, output) in outputs.items():
        expected = fixture.array(case["output"][side][PAPER])
        yield Quantity.of(name, "output", output, expected)
    losses = {"autoslim": logits["left"], "bcnet": logits["left"] + logits["right"]}
    for name, value in losses.items():
        actual = _loss(value, case["targets"])
        yield Quantity.of(name, "loss", actual, case["loss"][PAPER][name])
    yield Quantity.of("flops_vitas", "count", left.count("flops_vitas", arch), case["flops"])
    gradients = fixture.get("gradients")
    if gradients["case"] == case["name"]:
        found = nets.gradient(arch, images, case["targets"])
        yield _norms(found, gradients["norms"][PAPER], case["subnet"][0])


def _norms(
    found: Mapping[str, np.ndarray], norms: Mapping[str, float | None], patch: int
) -> Quantity:
    """The worst of the gradients' norms, each relative to itself; None is no gradient.

    Their super-transformer trains no part of the patch embedding, ours the one in use: it is left
    out.
    """
    errors = []
    for name, norm in norms.items():
        if name.startswith(f"{STEM}.{patch}."):
            continue
        expected = norm or 0.0
        errors.append(abs(float(np.linalg.norm(found[name])) - expected) / (expected or 1.0))
    return Quantity("gradient norms", "gradient", max(errors))


def _check_alone(fixture: Fixture, case: Mapping[str, Any], nets: _Nets) -> Iterator[Quantity]:
    net = nets.sides["left"]
    arch, images = net.architecture(_arch(case["arch"])), _images(fixture, case)
    key, name = case["params"].split("/")
    tensors = {entry["name"]: fixture.draw(entry) for entry in fixture.get(key)[name]}
    variables = import_weights(tensors, net, arch)
    paper = jax.jit(net.network(arch).apply)(variables, images)
    yield Quantity.of(PAPER, "output", paper, fixture.array(case["output"][PAPER]))
    released = released_network(net, arch)
    coded = jax.jit(released.apply)(variables, images)
    yield Quantity.of("as released", "output", coded, fixture.array(case["output"]["output"]))
    kept = [i for i, h in enumerate(arch["heads"]) if h]
    scales = [released.attention_scale[i] for i in kept]
    yield Quantity.of("scales", "output", scales, case["softmax_scales"])
    rates = [released.drop_path[i] for i in kept]
    given = [rate for rate in case["drop_path_rates"] if rate is not None]
    yield Quantity.of("drop path", "output", rates, given)
    yield Quantity.of("flops_vitas", "count", net.count("flops_vitas", arch), case["flops"])
    yield Quantity.of("params", "count", net.count("params", arch), case["num_params"])
    back = export_weights(variables, net, arch)
    same = back.keys() == tensors.keys() and all(np.array_equal(back[n], tensors[n]) for n in back)
    yield Quantity.of("round trip", "count", int(same), 1)
