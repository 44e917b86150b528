"""Weights of NASViT's released super-networks, from and to PyTorch.

Blocks are numbered there through all stages at their greatest depths, and their scaling tables have
rows for depths and numbers of tokens that no architecture has: these are left out here. So are the
convolutions of shortcuts that are identities in every architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import traverse_util

from nasjax.core.names import Tree
from nasjax.core.supernet import Supernet
from nasjax.core.superpose import ACTIVE
from nasjax.interop.errors import WeightsError
from nasjax.interop.layout import Layout
from nasjax.interop.tables import listed
from nasjax.models.nasvit import NASViT, StageSizes
from nasjax.models.talking_attention import TransformerSizes
from nasjax.spaces.hybrid import TOKEN_KEYS

DEPTHS = 10  # rows of their scaling tables, by the depth of a stage

Path = tuple[str, ...]
Rows = tuple[tuple[int, ...], tuple[int, ...]]

_LAYOUTS = {
    1: Layout("n -> n"),
    2: Layout("out in -> in out"),
    3: Layout("depth token n -> depth token n"),
    4: Layout("out in row column -> row column in out"),
}
_TABLE = Layout("row head -> row head")
_POSITIONS, _SCALES = "attention/positions", ("scale_attention", "scale_mlp")
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_ENDS = {
    "first/conv": "first_conv.conv.conv",
    "first/norm": "first_conv.bn.bn",
    "last_expand/conv": "last_conv.final_expand_layer.conv.conv",
    "last_expand/norm": "last_conv.final_expand_layer.bn.bn",
    "last_mix": "last_conv.feature_mix_layer.conv.conv",
    "head": "classifier.linear.linear",
}
CONVOLUTIONAL = {
    "expand/conv": "mobile_inverted_conv.inverted_bottleneck.conv.conv",
    "expand/norm": "mobile_inverted_conv.inverted_bottleneck.bn.bn",
    "depthwise": "mobile_inverted_conv.depth_conv.conv.conv",
    "norm": "mobile_inverted_conv.depth_conv.bn.bn",
    "squeeze/reduce": "mobile_inverted_conv.depth_conv.se.fc.reduce",
    "squeeze/expand": "mobile_inverted_conv.depth_conv.se.fc.expand",
    "project/conv": "mobile_inverted_conv.point_linear.conv.conv",
    "project/norm": "mobile_inverted_conv.point_linear.bn.bn",
    "shortcut/conv": "shortcut.conv.conv",
}
# Their second perceptron comes first.
TRANSFORMER = {
    "norm_attention": "norm1",
    "norm_mlp_1": "norm3",
    "norm_mlp_2": "norm2",
    "attention/query": "attn.q.linear",
    "attention/key": "attn.k.linear",
    "attention/value": "attn.v.linear",
    "attention/value_conv": "attn.vconv",
    "attention/talk_before": "attn.proj_l.linear",
    "attention/talk_after": "attn.proj_w.linear",
    "attention/project": "attn.proj.linear",
    "mlp_1/up": "mlp2.linear1.linear",
    "mlp_1/down": "mlp2.linear2.linear",
    "mlp_2/up": "mlp1.linear1.linear",
    "mlp_2/down": "mlp1.linear2.linear",
    _POSITIONS: "attn.relative_position_bias_table",
    "scale_attention": "rescale_attn",
    "scale_mlp": "rescale_mlp",
}
# What stands in their files but is no weight, or never used.
_UNUSED = (
    "shortcut.conv.conv.weight",
    "mobile_inverted_conv.rescale",
    "relative_position_index",
    "num_batches_tracked",
    "bn_tracking",
)


@dataclass(frozen=True)
class Tensor:
    """One array of ours, or a layer of it, and the tensor of theirs that it is.

    Attributes:
      name: theirs.
      path: ours.
      layer: of scanned layers, the index; None where they are not scanned.
      layout: how it is laid out there and here.
      rows: of a scaling table, the rows of theirs that are ours: depths and remainders.
    """

    name: str
    path: Path
    layer: int | None
    layout: Layout
    rows: Rows | None = None

    def read(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Their ``tensor`` as an array of ours, which has ``shape``.

        Raises:
          WeightsError: if it does not fit.
        """
        found = tensor = np.asarray(tensor)
        if self.rows is not None and tensor.shape[:2] == (DEPTHS, TOKEN_KEYS):
            found = tensor[np.ix_(*self.rows)]
        sizes = self.layout.stored(found.shape, shape)
        if sizes is None:
            whole = (DEPTHS, TOKEN_KEYS, *shape[2:]) if self.rows else self.layout.shape(shape)
            raise WeightsError(
                f"tensor {self.name!r} has shape {tensor.shape}, but {'/'.join(self.path)} needs "
                f"{whole}; build the super-network with the sizes of the weights."
            )
        return self.layout.read(found, sizes)

    def write(self, array: np.ndarray) -> np.ndarray:
        """Our ``array`` as a tensor of theirs, whose further rows are zero."""
        if self.rows is None:
            return self.layout.write(array)
        whole = np.zeros((DEPTHS, TOKEN_KEYS, *array.shape[2:]), array.dtype)
        whole[np.ix_(*self.rows)] = array
        return whole


def tensors(supernet: Supernet) -> list[Tensor]:
    """Which tensor of theirs every array of the super-network is, layer by layer.

    Raises:
      WeightsError: if the super-network is of another kind than the released ones.
    """
    if not isinstance(supernet.module, NASViT) or supernet.space.name != "nasvit":
        raise WeightsError(
            "there are weights of nasjax.spaces.nasvit, but the super-network is of space "
            f"{supernet.space.name!r}."
        )
    flat = traverse_util.flatten_dict(dict(supernet.shapes))
    number = 0
    blocks: dict[str, tuple[int, StageSizes | None]] = {}  # number of the first, by module
    for sizes in supernet.module.stages:
        blocks |= {f"{sizes.name}_opening": (number, None), sizes.name: (number + 1, sizes)}
        number += 1 + sizes.layers
    found = []
    for path, array in flat.items():
        if path[0] == ACTIVE:
            continue
        if path[1] not in blocks:
            found.append(tensor_of(_ENDS, "", path[1:], path, None, array.ndim))
            continue
        first, stage = blocks[path[1]]
        names, rows = CONVOLUTIONAL, None
        if stage is not None and isinstance(stage.layer, TransformerSizes):
            names = TRANSFORMER
            rows = _rows(supernet, stage) if path[-1] in _SCALES else None
        for layer in [None] if stage is None else range(stage.layers):
            before, dims = f"blocks.{first + (layer or 0)}.", array.ndim - (layer is not None)
            found.append(tensor_of(names, before, path[2:], path, layer, dims, rows))
    return found


def tensor_of(
    names: Mapping[str, str],
    before: str,
    inner: Path,
    path: Path,
    layer: int | None,
    dims: int,
    rows: Rows | None = None,
) -> Tensor:
    """The tensor of theirs that an array is.

    Args:
      names: theirs by our paths, of what is in a block, or of the rest.
      before: what their names begin with.
      inner: our path in the block.
      path: our whole path.
      layer: of scanned layers.
      dims: dimensions of the array, or of a layer of it.
      rows: of a scaling table.
    """
    whole, module = "/".join(inner), "/".join(inner[:-1])
    name = names[whole] if whole in names else f"{names[module]}.{_LEAVES[inner[-1]]}"
    layout = _TABLE if whole == _POSITIONS else _LAYOUTS[dims]
    return Tensor(before + name, path, layer, layout, rows)


def _rows(supernet: Supernet, stage: StageSizes) -> Rows:
    """Rows of their scaling tables that a stage's are: depths, and remainders of the tokens."""
    space = supernet.space

    def options(name: str, otherwise: Any) -> tuple[Any, ...]:
        return space.by_name[name].options if name in space.by_name else (otherwise,)

    depths = options(f"{stage.name}_depth", stage.layers + 1)
    tokens = [
        space.length(f"{stage.name}_pixels", {"resolution": resolution})
        for resolution in options("resolution", None)
    ]
    rows = (depths, tuple(sorted({n % TOKEN_KEYS for n in tokens})))
    if stage.layer.rows != tuple(map(len, rows)):  # type: ignore[union-attr]
        raise WeightsError(
            "the released weights have a scaling for each depth and number of tokens; build the "
            'super-network with scaling="depth".'
        )
    return rows


def import_weights(
    state_dict: Mapping[str, np.ndarray], supernet: Supernet, *, strict: bool = True
) -> dict[str, dict]:
    """Variables of a super-network from PyTorch's tensors.

    Args:
      state_dict: tensors by their PyTorch names, e.g. of
        :func:`nasjax.interop.read_state_dict`.
      supernet: of :func:`nasjax.spaces.nasvit`, with the table of the weights.
      strict: whether a tensor that the network has no place for is an error [True].

    Returns:
      ``{"params": ..., "batch_stats": ...}`` of NumPy arrays.

    Raises:
      WeightsError: if tensors are missing, have a shape that does not fit, or have no place.
    """
    plan = tensors(supernet)
    missing = [t.name for t in plan if t.name not in state_dict]
    if missing:
        raise WeightsError(
            f"the weights lack {listed(missing)}, which the super-network has, and hold "
            f"{listed(state_dict)}; build it with the table that they were trained with."
        )
    used = {t.name for t in plan}
    foreign = [n for n in state_dict if n not in used and not n.endswith(_UNUSED)]
    if foreign and strict:
        raise WeightsError(
            f"the weights hold {listed(foreign)}, for which the super-network has no place: build "
            "it with the table that they were trained with, or pass strict=False to leave these "
            "tensors out."
        )
    shapes = traverse_util.flatten_dict(dict(supernet.shapes))
    parts: dict[Path, list[np.ndarray]] = {}
    for t in plan:
        shape = shapes[t.path].shape[t.layer is not None :]
        parts.setdefault(t.path, []).append(t.read(state_dict[t.name], shape))
    scanned = {t.path for t in plan if t.layer is not None}
    return traverse_util.unflatten_dict(
        {
            path: np.ascontiguousarray(
                np.stack(found) if path in scanned else found[0], shapes[path].dtype
            )
            for path, found in parts.items()
        }
    )


def export_weights(variables: Tree, supernet: Supernet) -> dict[str, np.ndarray]:
    """The authors' tensors of a super-network, or of gradients of its weights.

    Args:
      variables: ``{"params": ...}``, with or without ``"batch_stats"``, of ``supernet``.
      supernet: of :func:`nasjax.spaces.nasvit`.

    Returns:
      Contiguous NumPy arrays by the authors' names. Rows of scaling tables that are none here are
      zero, and convolutions that no architecture uses are left out.

    Raises:
      WeightsError: if the super-network is of another kind than the released ones.
    """
    flat, found = traverse_util.flatten_dict(dict(variables)), {}
    for t in tensors(supernet):
        if t.path in flat:
            array = np.asarray(flat[t.path])
            found[t.name] = t.write(array if t.layer is None else array[t.layer])
    return found
