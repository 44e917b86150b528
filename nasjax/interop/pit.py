"""Weights of PiT networks as TF-TAS trains them, from and to PyTorch.

Its authors released no super-network, so tensors belong to a network on its own: that of an
architecture, or the largest one, whose weights are those of our super-network.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from nasjax.core.architecture import Arch
from nasjax.core.names import Tree
from nasjax.core.supernet import Supernet
from nasjax.interop.layout import Layout
from nasjax.interop.tables import Entry, NameTable, export_tensors, read_network

_VECTOR, _LINEAR = "n -> n", "out in -> in out"
_CONV = "out in row column -> row column in out"
_ROWS = (
    ("class_token", "1 1 n -> n", "cls_token"),
    ("positions", "1 n row column -> row column n", "pos_embed"),
    ("patches/kernel", _CONV, "patch_embed.conv.weight"),
    ("patches/bias", _VECTOR, "patch_embed.conv.bias"),
    ("norm/scale", _VECTOR, "norm.weight"),
    ("norm/bias", _VECTOR, "norm.bias"),
    ("head/kernel", _LINEAR, "head.weight"),
    ("head/bias", _VECTOR, "head.bias"),
)
_BLOCK = (
    ("norm_attention/scale", _VECTOR, "norm1.weight"),
    ("norm_attention/bias", _VECTOR, "norm1.bias"),
    (
        "attention/qkv/kernel",
        "(qkv heads channel) embed -> embed qkv heads channel",
        "attn.qkv.weight",
    ),
    ("attention/qkv/bias", "(qkv heads channel) -> qkv heads channel", "attn.qkv.bias"),
    (
        "attention/proj/kernel",
        "embed (heads channel) -> heads channel embed",
        "attn.proj.weight",
    ),
    ("attention/proj/bias", _VECTOR, "attn.proj.bias"),
    ("norm_mlp/scale", _VECTOR, "norm2.weight"),
    ("norm_mlp/bias", _VECTOR, "norm2.bias"),
    ("fc1/kernel", _LINEAR, "mlp.fc1.weight"),
    ("fc1/bias", _VECTOR, "mlp.fc1.bias"),
    ("fc2/kernel", _LINEAR, "mlp.fc2.weight"),
    ("fc2/bias", _VECTOR, "mlp.fc2.bias"),
)
_POOL = (
    ("kernel", _CONV, "conv.weight"),
    ("bias", _VECTOR, "conv.bias"),
    ("token/kernel", _LINEAR, "fc.weight"),
    ("token/bias", _VECTOR, "fc.bias"),
)


def name_table(stages: int = 3) -> NameTable:
    """The tensors of PiT networks of so many stages."""
    rows = list(_ROWS)
    for stage in range(stages):
        theirs = f"transformers.{stage}.blocks.{{}}."
        rows += [(f"stage_{stage}/{ours}", how, theirs + name) for ours, how, name in _BLOCK]
        theirs = f"pools.{stage - 1}."
        rows += [(f"pool_{stage}/{ours}", how, theirs + name) for ours, how, name in _POOL if stage]
    entries = (Entry(path, Layout(layout), (name,)) for path, layout, name in rows)
    return NameTable("PiT networks", tuple(entries))


def import_weights(
    state_dict: Mapping[str, np.ndarray],
    supernet: Supernet,
    arch: Arch | str | None = None,
    *,
    strict: bool = True,
) -> dict[str, dict]:
    """Variables of the network of ``arch``, or of the super-network, from PyTorch's tensors.

    Args:
      state_dict: tensors by their PyTorch names.
      supernet: a super-network of :func:`nasjax.spaces.pit`.
      arch: the network whose weights these are, or a published name; None for the weights of the
        largest network, which are the super-network's.
      strict: whether a tensor that the network has no place for is an error [True].

    Returns:
      ``{"params": ...}`` of NumPy arrays.

    Raises:
      WeightsError: if tensors are missing, have a shape that does not fit, or have no place.
    """
    table, shapes = name_table(), {"params": supernet.shapes["params"]}
    if arch is not None:
        arch = supernet.architecture(arch)
        shapes = _extracted(supernet, arch)
    return read_network(table, state_dict, shapes, supernet.space.stacks, strict)


def export_weights(variables: Tree, supernet: Supernet) -> dict[str, np.ndarray]:
    """The authors' tensors of an extracted network, or of the largest one.

    Args:
      variables: ``{"params": ...}`` of ``supernet``, of ``supernet.extract`` or of a network
        trained from scratch.
      supernet: of the space.

    Raises:
      WeightsError: if a parameter has no counterpart.
    """
    params = {"params": variables["params"]}
    return export_tensors(name_table(), params, supernet.space.stacks)


def _extracted(supernet: Supernet, arch: Arch) -> dict[str, dict]:
    maximal = {"params": supernet.shapes["params"]}
    return jax.eval_shape(lambda v: supernet.extract(v, arch), maximal)
