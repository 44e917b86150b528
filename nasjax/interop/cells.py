"""Weights of the cell spaces and of the toy macro space, from PyTorch.

Two kinds of networks can be read: TangleNAS's super-networks of all four spaces, entangled or with
plain sharing, and the networks of NAS-Bench-201 and of DARTS that are trained from scratch. The
networks of the toy cell benchmark hold every operation, so they are super-networks with plain
sharing, of which one architecture is extracted.

Entangled operations go by the name of the largest there. Images are flattened channel by channel
there and pixel by pixel here, so the rows of the linear map that follows change places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import numpy as np
from flax import traverse_util

from nasjax.core.initial import shapes_boxed
from nasjax.core.supernet import Supernet
from nasjax.core.superpose import ACTIVE
from nasjax.interop.errors import WeightsError
from nasjax.interop.layout import Layout
from nasjax.interop.tables import listed
from nasjax.models.operations import Candidate
from nasjax.spaces.darts import KEPT, NODES
from nasjax.spaces.genotype import read_genotype
from nasjax.spaces.nas_bench_201 import ENDS

Path = tuple[str, ...]
Inner = Mapping[str, str]
Edges = Sequence[Sequence[Candidate]]

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_LAYOUTS = {
    1: Layout("n -> n"),
    2: Layout("out in -> in out"),
    4: Layout("out in row column -> row column in out"),
}
_FLATTENED = Layout("out (channel pixel) -> pixel channel out")
_COUNTERS = ".num_batches_tracked"  # of PyTorch's batch normalisations, which need none here

# What is inside a module, by our paths below it.
_WHOLE = {"": ""}
_RELU_CONV_NORM = {"conv": "op.1", "norm": "op.2"}
_REDUCE = {"conv_1": "conv_1", "conv_2": "conv_2", "norm": "bn"}
_RESIDUAL = {
    "conv_a/conv": "conv_a.op.1",
    "conv_a/norm": "conv_a.op.2",
    "conv_b/conv": "conv_b.op.1",
    "conv_b/norm": "conv_b.op.2",
    "shortcut": "downsample.1",
}
_AUXILIARY = {
    "conv_1": "features.2",
    "norm_1": "features.3",
    "conv_2": "features.5",
    "norm_2": "features.6",
    "head": "classifier",
}
_OPERATIONS: Mapping[str, Inner] = {
    "sep_conv": {
        "depthwise_1": "op.1",
        "pointwise_1": "op.2",
        "norm_1": "op.3",
        "depthwise_2": "op.5",
        "pointwise_2": "op.6",
        "norm_2": "op.7",
    },
    "dil_conv": {"depthwise": "op.1", "pointwise": "op.2", "norm": "op.3"},
    "nor_conv": _RELU_CONV_NORM,
    "max_pool": {"norm": "1"},
    "avg_pool": {"norm": "1"},
    "skip_connect": {f"reduce/{ours}": theirs for ours, theirs in _REDUCE.items()},
}


@dataclass(frozen=True)
class Tensor:
    """The tensor of theirs that is a variable of ours.

    Attributes:
      names: their names for it, any of which is read.
      path: ours.
      shape: ours.
      channels: of the images whose flattened pixels it maps; None if it is no such map.
    """

    names: tuple[str, ...]
    path: Path
    shape: tuple[int, ...]
    channels: int | None = None

    def read(self, name: str, tensor: np.ndarray) -> np.ndarray:
        """Their ``tensor``, called ``name``, in our layout.

        Raises:
          WeightsError: if it has another shape.
        """
        layout, shape = _LAYOUTS[len(self.shape)], self.shape
        if self.channels is not None:
            layout, shape = _FLATTENED, (shape[0] // self.channels, self.channels, shape[1])
        tensor = np.asarray(tensor)
        sizes = layout.stored(tensor.shape, shape)
        if sizes is None:
            raise WeightsError(
                f"tensor {name!r} has shape {tensor.shape}, but {'/'.join(self.path)} needs "
                f"{layout.shape(shape)}; build the network with the sizes of the weights."
            )
        return np.ascontiguousarray(layout.read(tensor, sizes).reshape(self.shape))


@dataclass(frozen=True)
class _Block:
    """A module of ours: its names there, and what is inside it."""

    names: tuple[str, ...]
    inner: Inner
    channels: int | None = None


Blocks = Iterator[tuple[str, _Block]]


def import_weights(
    state_dict: Mapping[str, np.ndarray],
    supernet: Supernet,
    genotype: str | None = None,
    *,
    strict: bool = True,
) -> dict[str, dict]:
    """Variables of a super-network, or of a network trained from scratch, from PyTorch's tensors.

    Args:
      state_dict: tensors by their PyTorch names, e.g. of
        :func:`nasjax.interop.read_state_dict`.
      supernet: of the space ``toy_cell``, ``toy_conv_macro``, ``nas_bench_201`` or ``darts``, with
        the sharing that the weights were trained with.
      genotype: the network whose weights these are, ``supernet.from_scratch`` of the genotype, in
        NAS-Bench-201 and DARTS; its edges are counted there as the text lists them. None for
        weights of the super-network.
      strict: whether a tensor that the network has no place for is an error [True].

    Returns:
      ``{"params": ..., "batch_stats": ...}`` of NumPy arrays, as far as the network has them.

    Raises:
      WeightsError: if tensors are missing, have a shape that does not fit, or have no place.
      ArchitectureError: if the genotype is none of the space.
    """
    plan, flat = tensors(supernet, genotype), {}
    found = [next((n for n in t.names if n in state_dict), None) for t in plan]
    missing = [t.names[0] for t, name in zip(plan, found, strict=True) if name is None]
    if missing:
        raise WeightsError(
            f"the weights lack {listed(missing)}, which the network of space "
            f"{supernet.space.name!r} has, and hold {listed(state_dict)}; build it as they were "
            "trained."
        )
    used = {name for tensor in plan for name in tensor.names}
    foreign = [n for n in state_dict if n not in used and not n.endswith(_COUNTERS)]
    if foreign and strict:
        raise WeightsError(
            f"the weights hold {listed(foreign)}, for which the network of space "
            f"{supernet.space.name!r} has no place: build it as the weights were trained, or pass "
            "strict=False to leave these tensors out."
        )
    for tensor, name in zip(plan, found, strict=True):
        assert name is not None  # none is missing
        flat[tensor.path] = tensor.read(name, state_dict[name]).astype(np.float32)
    return traverse_util.unflatten_dict(flat)


def tensors(supernet: Supernet, genotype: str | None = None) -> list[Tensor]:
    """Which tensor of theirs every variable is; the arguments are those of ``import_weights``.

    Raises:
      WeightsError: if there are no such weights.
      ArchitectureError: if the genotype is none of the space.
    """
    space = supernet.space
    if space.name not in SPACES:
        raise WeightsError(
            f"there are weights of {', '.join(SPACES)}, but the super-network is of space "
            f"{space.name!r}."
        )
    if genotype is None:
        module, shapes = supernet.module, supernet.shapes
    elif supernet.retrained is None or supernet.from_text is None:
        raise WeightsError(
            f"space {space.name!r} trains no network of its own; import the super-network's "
            "weights, without a genotype, and extract the architecture."
        )
    else:
        module = supernet.from_scratch(supernet.from_text(genotype))
        # An auxiliary head exists only in training.
        shapes = nn.unbox(shapes_boxed(module, supernet.input_shape, train=True))
    blocks = dict(SPACES[space.name](module, shapes["params"], genotype))
    flat = traverse_util.flatten_dict(dict(shapes))
    return [
        _tensor(path, tuple(leaf.shape), blocks, space.name)
        for path, leaf in flat.items()
        if path[0] != ACTIVE
    ]


def _tensor(path: Path, shape: tuple[int, ...], blocks: Mapping[str, _Block], space: str) -> Tensor:
    modules = path[1:-1]
    for depth in range(1, len(modules) + 1):
        block = blocks.get("/".join(modules[:depth]))
        inner = "/".join(modules[depth:])
        known = len(shape) in _LAYOUTS and path[-1] in _LEAVES
        if block is not None and inner in block.inner and known:
            leaf = _LEAVES[path[-1]]
            parts = ((name, block.inner[inner], leaf) for name in block.names)
            names = tuple(".".join(filter(None, part)) for part in parts)
            return Tensor(names, path, shape, block.channels if path[-1] == "kernel" else None)
    raise WeightsError(
        f"{'/'.join(path)} of space {space!r} has no counterpart; the authors' code trains no such "
        "network."
    )


def _one(name: str, inner: Inner = _WHOLE) -> _Block:
    return _Block((name,), inner)


def _cell(ours: str, edges: Edges, names: Callable[[int, Candidate], Iterable[str]]) -> Blocks:
    """The candidates on the edges of a cell, ``ours`` being the edges' path but for the index."""
    for edge, found in enumerate(edges):
        for candidate in found:
            block = _Block(tuple(names(edge, candidate)), _OPERATIONS[candidate.kind])
            yield f"{ours}_{edge}/{candidate.name}", block


def _searched(candidate: Candidate) -> list[str]:
    """Names of a candidate of a super-network; an entangled one is wrapped in its mixture."""
    largest = max(candidate.options)  # their names differ in the side of the kernel alone
    return [f"{largest}.op.op", largest] if candidate.entangled else [largest]


def _toy_cell(module: Any, shapes: Any, genotype: str | None) -> Blocks:
    for i, kind in enumerate(("reduce", "normal", "reduce")):
        yield f"preprocess_{i}", _one(f"cells.{i}.preprocess", _RELU_CONV_NORM)
        edges = getattr(module, kind)

        def names(edge: int, c: Candidate, i: int = i, edges: Any = edges) -> list[str]:
            # The benchmark's networks count the operations, the super-network names them.
            numbered = [] if c.entangled else [str(edges[edge].index(c))]
            return [f"cells.{i}._ops.{edge}._ops.{n}" for n in (*_searched(c), *numbered)]

        yield from _cell(f"cell_{i}/{kind}_edges", edges, names)
    nodes = 2 * shapes["preprocess_2"]["conv"]["kernel"].shape[-1]  # both are concatenated
    yield "hidden", _Block(("proj",), _WHOLE, channels=nodes)
    yield "head", _one("classifier")


def _toy_conv_macro(module: Any, shapes: Any, genotype: str | None) -> Blocks:
    for i in range(1, 6):
        yield f"conv_{i}", _Block((f"conv{i}_mixture.op", f"conv{i}"), _WHOLE)
    last = shapes["conv_5"]["kernel"].shape[-1]
    yield "hidden_1", _Block(("fc1",), _WHOLE, channels=last)
    yield "hidden_2", _one("fc2")
    yield "hidden_3", _one("fc3")
    yield "head", _one("fc4")


def _nas_bench_201(module: Any, shapes: Any, genotype: str | None) -> Blocks:
    yield from _stem_and_head()
    yield "norm", _one("lastact.0")
    for stage in range(3):
        first = stage * (module.cells + 1)
        if stage:
            yield f"reduction_{stage}", _one(f"cells.{first - 1}", _RESIDUAL)
        for i in range(module.cells):

            def names(edge: int, c: Candidate, cell: int = first + i) -> list[str]:
                if genotype is not None:
                    return [f"cells.{cell}.layers.{edge}"]
                end, begin = ENDS[edge]
                at = f"cells.{cell}.edges.{end}<-{begin}"
                return [f"{at}._ops.{name}" for name in _searched(c)]

            yield from _cell(f"stage_{stage}_cell_{i}/edges", module.edges, names)


def _darts(module: Any, shapes: Any, genotype: str | None) -> Blocks:
    yield from _stem_and_head()
    yield "auxiliary_head", _one("auxiliary_head", _AUXILIARY)
    pairs = None if genotype is None else read_genotype(genotype)
    for i in range(module.cells):
        for ours, theirs in (("a", "preprocess0"), ("b", "preprocess1")):
            reduces = "conv_1" in shapes[f"preprocess_{i}_{ours}"]
            inner = _REDUCE if reduces else _RELU_CONV_NORM
            yield f"preprocess_{i}_{ours}", _one(f"cells.{i}.{theirs}", inner)
        kind = "reduce" if i in (module.cells // 3, 2 * module.cells // 3) else "normal"
        places = None if pairs is None else _places(pairs[kind])

        def names(edge: int, c: Candidate, i: int = i, at: Any = places) -> list[str]:
            if at is not None:
                return [f"cells.{i}._ops.{at[edge]}"]
            return [f"cells.{i}._ops.{edge}._ops.{name}" for name in _searched(c)]

        yield from _cell(f"cell_{i}/{kind}_edges", getattr(module, kind), names)


def _stem_and_head() -> Blocks:
    yield "stem_conv", _one("stem.0")
    yield "stem_norm", _one("stem.1")
    yield "head", _one("classifier")


def _places(pairs: Sequence[tuple[str, int]]) -> dict[int, int]:
    """For every edge of a genotype its place in the list, two to a node in any order."""
    return {NODES[i // KEPT][begin]: i for i, (_, begin) in enumerate(pairs)}


SPACES: Mapping[str, Callable[[Any, Any, str | None], Blocks]] = {
    "toy_cell": _toy_cell,
    "toy_conv_macro": _toy_conv_macro,
    "nas_bench_201": _nas_bench_201,
    "darts": _darts,
}
