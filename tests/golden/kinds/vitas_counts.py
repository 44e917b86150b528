"""Counts of ViTAS's published networks and of sub-networks at full size; sizes; expected FLOPs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import mixture
from nasjax.core.supernet import Supernet
from nasjax.interop.vitas import import_weights, released_network
from nasjax.spaces.vitas import IDENTITY, RATIOS, SIZES, from_net_id, vitas
from tests.golden.fixture import Fixture
from tests.golden.kinds.vitas import space_arguments
from tests.golden.outcome import Case, Quantity


def matches(fixture: Fixture) -> bool:
    """A table of super-transformers, without weights of one."""
    return "super_spaces" in fixture.document and not fixture.document.get("params")


def check(fixture: Fixture) -> Iterator[Case]:
    """Published networks, one of them run, then sizes, and every super-transformer."""
    for case in fixture.get("cases"):
        yield Case(case["name"], case.get("bar", "all"), tuple(_counts(case)))
    yield _full_size(fixture)
    yield _sizes(fixture)
    for name, described in fixture.get("super_spaces").items():
        yield from _super(name, described)


def _described(case: Mapping[str, Any]) -> tuple[Supernet, dict[str, Any]]:
    """A space with the widths of a listed network, and the network by its ratios.

    Ratios that no space has are counted all the same.
    """
    blocks, embed = case["arch"]["blocks"], case["arch"]["embed_width"]
    own = {"patch_size": case["arch"]["patch_size"]}
    if "embed_ratio" not in case["arch"]:  # listed by widths; all blocks are alike
        size = "large" if embed == 384 else "tiny"
        block, most = blocks[0], SIZES[size]
        own["embed_ratio"] = embed / most["embed_max"]
        if abs(own["embed_ratio"] - round(own["embed_ratio"], 1)) < 2e-3:  # 230 of 384 is rounded
            own["embed_ratio"] = round(own["embed_ratio"], 1)
        own["heads"] = block["heads"]
        own["attn_ratio"] = block["qkv_out"] / most["attention_max"]
        own["mlp_ratio"] = block["mlp_width"] / most["mlp_max"]
        return vitas("block", size=size), own
    own["embed_ratio"] = case["arch"]["embed_ratio"]
    large = round(own["embed_ratio"] * SIZES["tiny"]["embed_max"]) != embed
    own["heads"] = [IDENTITY if b["heads"] == "identity" else b["heads"] for b in blocks]
    for name in ("attn_ratio", "mlp_ratio"):
        own[name] = [b.get(name, RATIOS[0]) for b in blocks]
    return vitas(size="large" if large else "tiny"), own


def _counts(case: Mapping[str, Any]) -> Iterator[Quantity]:
    net, arch = _described(case)
    flops = net.count("flops_vitas", arch)
    yield Quantity.of("flops_vitas", "count", flops, case["flops"])
    patches = math.prod(side // arch["patch_size"] for side in net.input_shape[:2])
    once = flops - (patches - 1) * case["arch"]["embed_width"] * net.module.num_classes
    yield Quantity.of("head once", "count", once, case["flops_without_token_multiplied_head"])
    yield Quantity.of("params", "count", net.count("params", arch), case["num_params"])
    network, blocks = net.network(arch), case["arch"]["blocks"]
    kept = [i for i, block in enumerate(blocks) if block["heads"] != "identity"]
    yield Quantity.of("blocks", "count", len(kept), case["active_blocks"])
    widths = [(3 * network.value_dim[i], network.mlp_dim[i]) for i in kept]
    listed = [(blocks[i]["qkv_out"], blocks[i]["mlp_width"]) for i in kept]
    yield Quantity.of("widths", "count", int(widths == listed), 1)
    rates = [network.drop_path[i] for i in kept]
    yield Quantity.of("drop path", "output", rates, [blocks[i]["drop_path"] for i in kept])
    if case.get("net_id"):
        read = net.architecture(from_net_id(case["net_id"]))
        yield Quantity.of("net_id", "count", int(read == net.architecture(arch)), 1)
        yield Quantity.of("published", "count", int(read in net.published.values()), 1)


def _full_size(fixture: Fixture) -> Case:
    """The released block-level network on an image of 224 pixels."""
    described = fixture.get("full_size_output")
    net, name = vitas("block"), "ViTAS-Block"
    tensors = {entry["name"]: fixture.draw(entry) for entry in described["params"]}
    variables = import_weights(tensors, net, name)
    drawn = fixture.draw({**described["input"], "name": f"input:{described['input']['tag']}"})
    images = np.ascontiguousarray(np.moveaxis(drawn, 1, -1))
    found = []
    networks = {"": released_network(net, name), "_paper": net.network(net.architecture(name))}
    for suffix, network in networks.items():
        logits = np.asarray(jax.jit(network.apply)(variables, images))
        expected = fixture.array(described[f"output{suffix}"])
        shown = logits[:, : expected.shape[1]]
        found.append(Quantity.of(f"output{suffix}", "output", shown, expected))
        spread = [logits.std(), described[f"std{suffix}"]]
        found.append(Quantity.of(f"std{suffix}", "output", *spread))
    return Case(described["name"], "all", tuple(found))


def _sizes(fixture: Fixture) -> Case:
    """The numbers of architectures, as they round to floats."""
    listed = fixture.get("search_space_sizes")
    arch, block, large = vitas(), vitas("block"), vitas(size="large")
    genes = math.prod(
        len(arch.space.choice(name).options) ** (shape[0] if len(shape) > 1 else 1)
        for name, shape in mixture.shapes(arch.space).items()
    )
    sizes = {
        "arch_level": arch.space.size,
        "arch_level_gene_space": genes,
        "block_level": block.space.size,
        "large_released": large.space.size,
    }
    quantities = (Quantity.of(n, "count", float(s), listed[n]["value"]) for n, s in sizes.items())
    return Case("sizes", "all", tuple(quantities))


def _super(name: str, described: Mapping[str, Any]) -> Iterator[Case]:
    constructor = described["constructor"]
    net = vitas(size=name, **space_arguments(constructor))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(net.shapes["params"]))
    total = Quantity.of("params", "count", count, described["super_num_params"])
    yield Case(f"{name} super-network", "all", (total,))
    for subnet in described["subnets"]:
        flops = net.count("flops_vitas", _subnet(constructor, subnet["subnet"]))
        found = Quantity.of("flops_vitas", "count", flops, subnet["flops"])
        yield Case(f"{name} {subnet['name']}", "all", (found,))
    listed = described.get("expected_flops_by_identity_probability", {})
    quantities = [_expected(net, float(p), flops, p) for p, flops in listed.items()]
    for found in described.get("identity_probability_search", ()):
        if found["id_prop"] is not None:
            quantities.append(
                _expected(net, found["id_prop"], found["expected_flops"], found["source"])
            )
    if quantities:
        yield Case(f"{name} expected FLOPs", "all", tuple(quantities))


def _subnet(constructor: Mapping[str, Any], subnet: list[Any]) -> dict[str, Any]:
    depth, heads = constructor["depth"], (*constructor["heads"], IDENTITY)
    ratios = subnet[depth + 3 :]
    return {
        "patch_size": constructor["patch_sizes"][subnet[0]],
        "embed_ratio": ratios[0],
        "heads": [heads[i] for i in subnet[1 : depth + 1]],
        "attn_ratio": ratios[1::2],
        "mlp_ratio": ratios[2::2],
    }


def _expected(net: Supernet, probability: float, flops: float, name: str) -> Quantity:
    """Expected FLOPs where a block is an identity with ``probability``, all else uniform."""
    even = mixture.uniform(net.space)
    identity = jnp.asarray([h == IDENTITY for h in net.space.choice("heads").options])
    row = jnp.where(identity, probability, (1 - probability) / jnp.sum(~identity))
    even["heads"] = jnp.broadcast_to(row, even["heads"].shape)
    return Quantity.of(f"p={name}", "output", net.expect("flops_vitas", even), flops)
