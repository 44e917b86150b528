"""Weights of AutoFormer's and TangleNAS's vision transformers, to and from PyTorch.

Both store the maximal super-network, of which a sub-network reads leading slices. Published
super-networks are wider than their space's widest option (256 channels for 240); what no option
reads is cut off.

Queries, keys and values share one matrix. Where the number of heads is searched its rows are
interleaved (0::3 queries, 1::3 keys, 2::3 values), so that a leading slice holds whole heads of
each; the bias is not, and is kept here as it is stored there. With ``fixed_qkv`` (AutoFormer
without ``change_qkv``) the rows are three contiguous parts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nasjax.core.names import Tree
from nasjax.core.supernet import Supernet
from nasjax.interop.layout import Layout
from nasjax.interop.tables import Entry, NameTable, export_tensors, import_tensors

_VECTOR, _LINEAR, _TABLE = "n -> n", "out in -> in out", "row channel -> row channel"

# Our path, layout, AutoFormer's name, TangleNAS's name and second names of the same tensor.
_ROWS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("class_token", "1 1 n -> n", ("cls_token", "op_emb.layer.cls_token")),
    ("positions", "1 token n -> token n", ("pos_embed", "op_emb.layer.pos_embed")),
    (
        "patches/kernel",
        "embed channel row column -> row column channel embed",
        ("patch_embed_super.proj.weight", "op_emb.layer.proj.weight"),
    ),
    ("patches/bias", _VECTOR, ("patch_embed_super.proj.bias", "op_emb.layer.proj.bias")),
    ("norm/scale", _VECTOR, ("norm.weight", "op_norm.layer.weight")),
    ("norm/bias", _VECTOR, ("norm.bias", "op_norm.layer.bias")),
    ("head/kernel", _LINEAR, ("head.weight", "op_head.layer.weight")),
    ("head/bias", _VECTOR, ("head.bias", "op_head.layer.bias")),
)

# The same for a block, whose names all start with "blocks.{}.".
_BLOCK_ROWS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "norm_attention/scale",
        _VECTOR,
        ("attn_layer_norm.weight", "op_attn_layer_norm.layer.weight", "op_ln.layer.weight"),
    ),
    (
        "norm_attention/bias",
        _VECTOR,
        ("attn_layer_norm.bias", "op_attn_layer_norm.layer.bias", "op_ln.layer.bias"),
    ),
    ("attention/qkv/bias", _VECTOR, ("attn.qkv.bias",)),
    ("attention/relative_key/vertical", _TABLE, ("attn.rel_pos_embed_k.embeddings_table_v",)),
    ("attention/relative_key/horizontal", _TABLE, ("attn.rel_pos_embed_k.embeddings_table_h",)),
    ("attention/relative_value/vertical", _TABLE, ("attn.rel_pos_embed_v.embeddings_table_v",)),
    ("attention/relative_value/horizontal", _TABLE, ("attn.rel_pos_embed_v.embeddings_table_h",)),
    ("attention/proj/kernel", _LINEAR, ("attn.proj.weight", "attn.op_proj.layer.weight")),
    ("attention/proj/bias", _VECTOR, ("attn.proj.bias", "attn.op_proj.layer.bias")),
    (
        "norm_mlp/scale",
        _VECTOR,
        ("ffn_layer_norm.weight", "op_ffn_ln.layer.weight", "op_ffn_ln2.layer.weight"),
    ),
    (
        "norm_mlp/bias",
        _VECTOR,
        ("ffn_layer_norm.bias", "op_ffn_ln.layer.bias", "op_ffn_ln2.layer.bias"),
    ),
    ("fc1/kernel", _LINEAR, ("fc1.weight", "op_linear_mix.layer.weight")),
    ("fc1/bias", _VECTOR, ("fc1.bias", "op_linear_mix.layer.bias")),
    ("fc2/kernel", _LINEAR, ("fc2.weight", "op_linear_mix_2.layer.weight")),
    ("fc2/bias", _VECTOR, ("fc2.bias", "op_linear_mix_2.layer.bias")),
)


def name_table(interleaved: bool = True) -> NameTable:
    """The tensors of AutoFormer's networks; ``interleaved`` tells how qkv rows are stored."""
    rows = "(heads qkv) embed" if interleaved else "(qkv heads) embed"
    qkv = ("attention/qkv/kernel", f"{rows} -> embed qkv heads", ("attn.qkv.weight",))
    block = (
        (f"blocks/{path}", layout, tuple(f"blocks.{{}}.{name}" for name in names))
        for path, layout, names in (qkv, *_BLOCK_ROWS)
    )
    entries = (Entry(path, Layout(layout), names) for path, layout, names in (*_ROWS, *block))
    return NameTable("AutoFormer's vision transformers", tuple(entries))


def import_weights(
    state_dict: Mapping[str, np.ndarray], supernet: Supernet, *, strict: bool = True
) -> dict[str, dict]:
    """Maximal variables of ``supernet`` from a super-network of AutoFormer or TangleNAS.

    Args:
      state_dict: tensors by their PyTorch names, e.g. of
        :func:`nasjax.interop.read_state_dict`; AutoFormer's names and TangleNAS's for the same
        tensors are both understood.
      supernet: a super-network of :mod:`nasjax.spaces.autoformer`. Tensors stored wider than its
        widest option and blocks beyond its greatest depth are cut off.
      strict: whether a tensor that ``supernet`` has no place for is an error [True].

    Returns:
      ``{"params": ...}`` of NumPy arrays with the shapes and dtypes of ``supernet.shapes``.

    Raises:
      WeightsError: if tensors are missing, have a shape that does not fit, or have no place.
    """
    return import_tensors(_table_of(supernet), state_dict, supernet, strict)


def export_weights(variables: Tree, supernet: Supernet) -> dict[str, np.ndarray]:
    """AutoFormer's tensors of a super-network, or of a network extracted from one.

    An extracted network comes out at its own sizes: the weights of an AutoFormer super-network
    that has just this one architecture. Its own blocks may differ in size, so they fit PyTorch
    modules built per block.

    Args:
      variables: ``{"params": ...}`` of ``supernet`` or of ``supernet.extract``.
      supernet: where they come from.

    Returns:
      Contiguous NumPy arrays by AutoFormer's names, ready to be saved; they keep their dtypes.

    Raises:
      WeightsError: if a parameter has no counterpart.
    """
    return export_tensors(_table_of(supernet), variables, supernet.space.stacks)


def _table_of(supernet: Supernet) -> NameTable:
    space = supernet.space
    searched = "heads" not in space.axes or bool(space.depends("heads"))
    return name_table(interleaved=searched)
