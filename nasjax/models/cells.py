"""Cells: small graphs whose edges carry candidate operations, and the networks made of them.

A network is given the candidates of every edge of its cells. At most one on each makes a network
of its own; all of them make a super-network. The edges of a cell are ordered by the node they end
in, then by the node they begin in, and are modules ``STACK_0, STACK_1, ...``, after the stack of
edges in the search space; all cells of a kind share their choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasjax.models.convolution import BatchNorm, Conv
from nasjax.models.layers import dense
from nasjax.models.operations import Candidate, Edge, FactorizedReduce

Edges = tuple[tuple[Candidate, ...], ...]
Options = tuple[tuple[str, Any], ...]


def incoming(inputs: int, edges: int) -> tuple[tuple[int, ...], ...]:
    """Indices of the edges that end in each node, in the order of the nodes.

    Args:
      inputs: nodes that no edge ends in.
      edges: number of edges; every node is joined to all before it.
    """
    nodes: list[tuple[int, ...]] = []
    first = 0
    while first < edges:
        last = first + inputs + len(nodes)
        nodes.append(tuple(range(first, last)))
        first = last
    return tuple(nodes)


class ReLUConvNorm(nn.Module):
    """ReLU, a convolution without bias, batch normalisation."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    affine: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map ``(batch, height, width, channels)`` to ``(batch, height', width', features)``."""
        conv = Conv(self.features, self.kernel_size, stride=self.stride, name="conv")
        return BatchNorm(self.affine, name="norm")(conv(nn.relu(x)), train)


class Cell(nn.Module):
    """A graph in which every node is the sum of the edges from all nodes before it.

    Attributes:
      stack: name of the stack of its edges.
      edges: candidates of each edge.
      features: channels of each node.
      reduction: whether edges from the inputs halve height and width.
      outputs: how many of the last nodes are concatenated.
      partial: see :class:`~nasjax.models.operations.Edge`.
      options: fields of its operations.
    """

    stack: str
    edges: Edges
    features: int
    reduction: bool = False
    outputs: int = 1
    partial: int = 1
    options: Options = ()

    @nn.compact
    def __call__(
        self, inputs: Sequence[jax.Array], train: bool, drop_path: Any = None
    ) -> jax.Array:
        """Map nodes ``(batch, height, width, features)`` to the concatenated last nodes."""
        nodes = list(inputs)
        for ends in incoming(len(inputs), len(self.edges)):
            terms = [
                Edge(
                    self.edges[edge],
                    self.features,
                    stride=2 if self.reduction and begin < len(inputs) else 1,
                    partial=self.partial,
                    options=self.options,
                    name=f"{self.stack}_{edge}",
                )(nodes[begin], train, drop_path)
                for begin, edge in enumerate(ends)
            ]
            nodes.append(sum(terms[1:], terms[0]))
        return jnp.concatenate(nodes[-self.outputs :], -1)


class ToyCellNetwork(nn.Module):
    """Three cells for images of 28 pixels: reduction, normal, reduction (TangleNAS section 4.1).

    Attributes:
      normal: candidates of the three edges of the normal cell.
      reduce: candidates of the three edges of both reduction cells.
      channels: of the first two cells; the last has twice as many.
      num_classes: classes.
      dropout: rate after every cell and after the hidden layer.
      options: fields of the operations.
    """

    normal: Edges
    reduce: Edges
    channels: int = 32
    num_classes: int = 10
    dropout: float = 0.2
    options: Options = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits (batch, classes) of images ``(batch, height, width, channels)``."""
        for i, kind in enumerate(("reduce", "normal", "reduce")):
            features = self.channels * (2 if i == 2 else 1)
            x = ReLUConvNorm(features, name=f"preprocess_{i}")(x, train)
            edges = self.normal if kind == "normal" else self.reduce
            cell = Cell(
                f"{kind}_edges",
                edges,
                features,
                reduction=kind == "reduce",
                outputs=2,
                options=self.options,
                name=f"cell_{i}",
            )
            x = self._drop(cell([x], train), train)
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = self._drop(nn.relu(dense(128, name="hidden")(x.reshape(x.shape[0], -1))), train)
        return dense(self.num_classes, name="head")(x)

    def _drop(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class NasBench201(nn.Module):
    """The network of NAS-Bench-201: three stages of cells at doubling widths.

    Attributes:
      edges: candidates of the six edges of the cell.
      channels: of the first stage.
      cells: cells in each stage.
      num_classes: classes.
      partial: see :class:`~nasjax.models.operations.Edge`.
      options: fields of the operations.
    """

    edges: Edges
    channels: int = 16
    cells: int = 5
    num_classes: int = 10
    partial: int = 1
    options: Options = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits (batch, classes) of images ``(batch, height, width, 3)``."""
        x = Conv(self.channels, 3, name="stem_conv")(x)
        x = BatchNorm(name="stem_norm")(x, train)
        for stage in range(3):
            features = self.channels * 2**stage
            if stage:
                x = ResidualReduction(features, name=f"reduction_{stage}")(x, train)
            for i in range(self.cells):
                cell = Cell(
                    "edges",
                    self.edges,
                    features,
                    partial=self.partial,
                    options=self.options,
                    name=f"stage_{stage}_cell_{i}",
                )
                x = cell([x], train)
        x = nn.relu(BatchNorm(name="norm")(x, train))
        return dense(self.num_classes, name="head")(jnp.mean(x, (1, 2)))


class ResidualReduction(nn.Module):
    """The residual block between the stages of NAS-Bench-201; halves height and width."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map ``(batch, height, width, channels)`` to half the size and ``features`` channels."""
        y = ReLUConvNorm(self.features, 3, 2, affine=True, name="conv_a")(x, train)
        y = ReLUConvNorm(self.features, 3, 1, affine=True, name="conv_b")(y, train)
        short = nn.avg_pool(x, (2, 2), (2, 2))
        return y + Conv(self.features, 1, name="shortcut")(short)


class DartsNetwork(nn.Module):
    """The network of DARTS for small images: cells that see the two before them.

    In training with ``auxiliary`` the logits of the auxiliary head are sown as
    ``intermediates/auxiliary_logits``. Dropped paths grow with the progress of the training, read
    from ``schedule/progress`` (0 to 1) where it is given.

    Attributes:
      normal: candidates of the 14 edges of normal cells.
      reduce: candidates of the 14 edges of reduction cells.
      channels: of a node in the first cells.
      cells: number of cells; those at a third and at two thirds reduce.
      num_classes: classes.
      auxiliary: whether there is an auxiliary head, for images of 32 pixels.
      drop_path: rate at which an edge is dropped at the end of the training.
      partial: see :class:`~nasjax.models.operations.Edge`.
      options: fields of the operations.
    """

    normal: Edges
    reduce: Edges
    channels: int = 36
    cells: int = 20
    num_classes: int = 10
    auxiliary: bool = False
    drop_path: float = 0.0
    partial: int = 1
    options: Options = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits (batch, classes) of images ``(batch, height, width, 3)``."""
        affine = dict(self.options).get("affine", False)
        rate = self._rate() if train and self.drop_path else None
        x = Conv(3 * self.channels, 3, name="stem_conv")(x)
        x = BatchNorm(name="stem_norm")(x, train)
        before, last, features, reduced = x, x, self.channels, False
        for i in range(self.cells):
            reduction = i in (self.cells // 3, 2 * self.cells // 3)
            features *= 2 if reduction else 1
            first = FactorizedReduce if reduced else ReLUConvNorm
            inputs = [
                first(features, affine=affine, name=f"preprocess_{i}_a")(before, train),
                ReLUConvNorm(features, affine=affine, name=f"preprocess_{i}_b")(last, train),
            ]
            kind, edges = ("reduce", self.reduce) if reduction else ("normal", self.normal)
            cell = Cell(
                f"{kind}_edges",
                edges,
                features,
                reduction,
                4,
                self.partial,
                self.options,
                name=f"cell_{i}",
            )
            before, last, reduced = last, cell(inputs, train, rate), reduction
            if self.auxiliary and train and i == 2 * self.cells // 3:
                logits = AuxiliaryHead(self.num_classes, name="auxiliary_head")(last, train)
                self.sow("intermediates", "auxiliary_logits", logits)
        return dense(self.num_classes, name="head")(jnp.mean(last, (1, 2)))

    def _rate(self) -> Any:
        progress: Any = 1.0
        if self.has_variable("schedule", "progress"):
            progress = self.get_variable("schedule", "progress")
        return self.drop_path * progress


class AuxiliaryHead(nn.Module):
    """The classifier after two thirds of the cells of a DARTS network, on maps of 8 pixels."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits (batch, classes) of features ``(batch, 8, 8, channels)``."""
        x = nn.avg_pool(nn.relu(x), (5, 5), (3, 3))
        x = Conv(128, 1, name="conv_1")(x)
        x = nn.relu(BatchNorm(name="norm_1")(x, train))
        x = Conv(768, 2, padding=0, name="conv_2")(x)
        x = nn.relu(BatchNorm(name="norm_2")(x, train))
        return dense(self.num_classes, name="head")(x.reshape(x.shape[0], -1))
