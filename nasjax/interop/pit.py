"""Weights of PiT networks as TF-TAS trains them, from and to PyTorch.

Its authors released no super-network, so tensors belong to a network on its own: that of an
architecture, or the largest one, whose weights are those of our super-network.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from flax import traverse_util

from nasjax.core.architecture import Arch
from nasjax.core.names import Tree
from nasjax.core.supernet import Supernet
from nasjax.interop.errors import WeightsError
from nasjax.interop.layout import Layout
from nasjax.interop.tables import Entry, NameTable, canonical, export_tensors, listed

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
    flat, used = {}, set()
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        scanned, layer, stacked = canonical(path, supernet.space.stacks)
        layers = range(leaf.shape[0]) if scanned else (layer,)
        parts = []
        for i in layers:
            shape = leaf.shape[1:] if scanned else leaf.shape
            entry = table.entry(stacked)
            name = entry.names[0].format(i)
            if name not in state_dict:
                raise WeightsError(
                    f"the weights lack {name!r}, which the network has; they hold "
                    f"{listed(state_dict)}."
                )
            tensor = np.asarray(state_dict[name])
            sizes = entry.layout.stored(tensor.shape, shape)
            if sizes is None:
                raise WeightsError(
                    f"tensor {name!r} has shape {tensor.shape}, but {'/'.join(path)} needs "
                    f"{entry.layout.shape(shape)}; give the architecture of the weights."
                )
            used.add(name)
            parts.append(entry.layout.read(tensor, sizes))
        value = np.stack(parts) if scanned else parts[0]
        flat[path] = np.ascontiguousarray(value, dtype=leaf.dtype)
    foreign = [name for name in state_dict if name not in used]
    if foreign and strict:
        raise WeightsError(
            f"the weights hold {listed(foreign)}, for which the network has no place: give the "
            "architecture of the weights, or pass strict=False to leave these tensors out."
        )
    return traverse_util.unflatten_dict(flat)


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
