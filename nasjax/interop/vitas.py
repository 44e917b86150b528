"""Weights of ViTAS's super-transformers and stand-alone networks, from and to PyTorch.

A super-transformer stores its maximal tensors, of which a sub-network reads leading (or trailing)
slices. A stand-alone network has one matrix of queries, keys and values, a third each, which here
is the linear map that a number of heads owns and the one of the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from nasjax.core.architecture import Arch
from nasjax.core.initial import shapes_boxed
from nasjax.core.names import Tree
from nasjax.core.space import SearchSpace
from nasjax.core.supernet import Supernet
from nasjax.interop.errors import WeightsError
from nasjax.interop.layout import Layout
from nasjax.interop.tables import (
    Entry,
    NameTable,
    export_tensors,
    import_tensors,
    read_network,
)
from nasjax.models.vitas import ViTAS

_VECTOR, _LINEAR = "n -> n", "out in -> in out"
_KIND = "ViTAS's vision transformers"
_STEM = "net.backbone_init_stem_Patch_init_0"
_NORM, _HEAD = "net.backbone_Norm_Norm_0.0", "net.backbone_FC_FC_0.0.module.0"
_BLOCK = {"super": "net.backbone_Block_id_{}.0", "own": "net.backbone_Block_Block_{}.0"}
_ROLES = {"query_key": "qk", "value": "v", "query_key_value": "qkv"}
_PACKED, _PARTS = "attn.qkv", ("attn.qk", "attn.v")

# Paths in a block and names there, of pairs of a matrix and a vector.
_NORMS = {"norm_attention": "norm1", "norm_mlp": "norm2"}
_LINEARS = {"attention/proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def name_table(space: SearchSpace, alone: bool = False) -> NameTable:
    """The tensors of the networks of ``space``: its super-network, or one ``alone``.

    The matrices of a network alone go by the names ``qk`` and ``v`` of their two parts.
    """
    patches, heads = space.choice("patch_size").options, space.choice("heads").options
    rows = []
    for i, size in enumerate(patches):
        stem, ours = f"{_STEM}.{0 if alone else i}", f"patch_{size}"
        rows += [
            (f"{ours}/class_token", "1 1 n -> n", f"{stem}.cls_token"),
            (f"{ours}/positions", "1 token n -> token n", f"{stem}.pos_embed"),
            (
                f"{ours}/patches/kernel",
                "embed channel row column -> row column channel embed",
                f"{stem}.patch_embed.proj.weight",
            ),
            (f"{ours}/patches/bias", _VECTOR, f"{stem}.patch_embed.proj.bias"),
        ]
    block, linears = _BLOCK["own" if alone else "super"], dict(_LINEARS)
    for role, theirs in _ROLES.items():
        linears[f"attention/{role}"] = f"attn.{theirs}"
        for i, number in enumerate(h for h in heads if h):
            own = "" if alone else i
            linears[f"attention/heads_{number}/{role}"] = f"attn.{theirs}{own}"
    norms = {f"blocks/block/{ours}": f"{block}.{theirs}" for ours, theirs in _NORMS.items()}
    for ours, theirs in {**norms, "norm": _NORM}.items():
        rows += [(f"{ours}/scale", _VECTOR, f"{theirs}.weight")]
        rows += [(f"{ours}/bias", _VECTOR, f"{theirs}.bias")]
    maps = {f"blocks/block/{ours}": f"{block}.{theirs}" for ours, theirs in linears.items()}
    for ours, theirs in {**maps, "head": _HEAD}.items():
        rows += [(f"{ours}/kernel", _LINEAR, f"{theirs}.weight")]
        rows += [(f"{ours}/bias", _VECTOR, f"{theirs}.bias")]
    return NameTable(_KIND, tuple(Entry(p, Layout(layout), (n,)) for p, layout, n in rows))


def import_weights(
    state_dict: Mapping[str, np.ndarray],
    supernet: Supernet,
    arch: Arch | str | None = None,
    *,
    strict: bool = True,
) -> dict[str, dict]:
    """Variables of a super-network, or of a network on its own, from PyTorch's tensors.

    Args:
      state_dict: tensors by their PyTorch names, e.g. of
        :func:`nasjax.interop.read_state_dict`.
      supernet: a super-network of :func:`nasjax.spaces.vitas`.
      arch: the network whose weights these are, or a published name; None for the weights of a
        super-transformer. Released networks scale attention otherwise than the paper, see
        :func:`released_network`.
      strict: whether a tensor that the network has no place for is an error [True].

    Returns:
      ``{"params": ...}`` of NumPy arrays.

    Raises:
      WeightsError: if tensors are missing, have a shape that does not fit, or have no place.
    """
    if arch is None:
        return import_tensors(name_table(supernet.space), state_dict, supernet, strict)
    module = _network(supernet, arch)
    table, state_dict = name_table(supernet.space, alone=True), dict(state_dict)
    if module.shared != "qkv":
        state_dict = _unpack(state_dict)
    shapes = nn.unbox(shapes_boxed(module, supernet.input_shape))["params"]
    return read_network(table, state_dict, {"params": shapes}, supernet.space.stacks, strict)


def export_weights(
    variables: Tree, supernet: Supernet, arch: Arch | str | None = None
) -> dict[str, np.ndarray]:
    """The authors' tensors of a super-network, or of the network of ``arch`` on its own.

    Args:
      variables: ``{"params": ...}`` of ``supernet`` or, where ``arch`` is given, of
        ``supernet.extract`` or of a network trained from scratch.
      supernet: of the space.
      arch: the architecture, or None.

    Returns:
      Contiguous NumPy arrays by the authors' names; they keep their dtypes.

    Raises:
      WeightsError: if a parameter has no counterpart.
    """
    space = supernet.space
    params = {"params": variables["params"]}
    tensors = export_tensors(name_table(space, arch is not None), params, space.stacks)
    return tensors if arch is None else _pack(tensors)


def released_network(supernet: Supernet, arch: Arch | str) -> ViTAS:
    """The network of ``arch`` with the scale of attention that the released code trains it with.

    It divides by the root of the embedding width, not of the attention width, over the heads.
    """
    module = _network(supernet, arch)
    scales = tuple((module.embed_dim // h) ** -0.5 if h else 1.0 for h in module.heads)
    return module.clone(attention_scale=scales)


def _network(supernet: Supernet, arch: Arch | str) -> Any:
    module = supernet.network(supernet.architecture(arch) if isinstance(arch, str) else arch)
    if not isinstance(module, ViTAS):
        raise WeightsError(
            f"space {supernet.space.name!r} has other networks; a super-network of "
            "nasjax.spaces.vitas was expected."
        )
    return module


def _unpack(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows of packed matrices as two tensors: queries and keys, and values."""
    found = {}
    for name, tensor in tensors.items():
        if _PACKED not in name:
            found[name] = tensor
            continue
        tensor = np.asarray(tensor)
        cut = 2 * (len(tensor) // 3)
        for part, rows in zip(_PARTS, (tensor[:cut], tensor[cut:]), strict=True):
            found[name.replace(_PACKED, part)] = rows
    return found


def _pack(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    query_key, value = (f"{part}." for part in _PARTS)
    found = {}
    for name, tensor in tensors.items():
        if query_key in name:
            rows = [tensor, tensors[name.replace(query_key, value)]]
            found[name.replace(query_key, f"{_PACKED}.")] = np.concatenate(rows)
        elif value not in name:
            found[name] = tensor
    return found
