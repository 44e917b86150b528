"""The hybrid network of NASViT: convolutional stages, transformer stages, a mobile network's head.

Source: "NASViT: Neural Architecture Search for Efficient Vision Transformers with Gradient
Conflict-aware Supernet Training" (2022), Table 1. A stage opens with a block that changes width and
size, called ``STAGE_opening``; the blocks after it are alike. In a super-network these are scanned
with ``nn.scan`` under the stage's name, in a network of its own unrolled as ``STAGE_0``,
``STAGE_1``, ... Both are one class.

Axis names of a stage: ``STAGE_width``, ``STAGE_kernel``, ``STAGE_residual`` (the width, in layers
that exist) and those that :func:`stage_axes` lists; ``first_width``, ``last_expand``,
``last_width``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasjax.core.precision import at_least_float32
from nasjax.models.convolution import Conv
from nasjax.models.inverted_residual import BlockAxes, BlockSizes, ConvNorm, InvertedResidual
from nasjax.models.layers import Dtype, dense, rematerialized, writes
from nasjax.models.talking_attention import (
    TransformerAxes,
    TransformerBlock,
    TransformerSizes,
    resize_cubic,
)


@dataclass(frozen=True)
class StageSizes:
    """Sizes of a stage.

    Attributes:
      name: of its modules and axes.
      opening: its first block.
      layers: how many blocks follow.
      layer: each of these.
    """

    name: str
    opening: BlockSizes
    layers: int
    layer: BlockSizes | TransformerSizes


class StageAxes(NamedTuple):
    """Names of the axes of a stage: of its opening block, and of the layers after it."""

    opening: BlockAxes
    block: BlockAxes
    transformer: TransformerAxes


def stage_axes(name: str, inputs: str) -> StageAxes:
    """Names of the axes of the stage called ``name``, whose input channels' axis is ``inputs``."""
    width, kernel, residual = f"{name}_width", f"{name}_kernel", f"{name}_residual"
    opening = BlockAxes(
        inputs=inputs,
        outputs=width,
        hidden=f"{name}_opening",
        squeeze=f"{name}_opening_squeeze",
        kernel=kernel,
        residual=width,
        shortcut=f"{name}_shortcut",
        same=f"{name}_same",
    )
    block = BlockAxes(
        inputs=width,
        outputs=width,
        hidden=f"{name}_hidden",
        squeeze=f"{name}_squeeze",
        kernel=kernel,
        residual=residual,
    )
    transformer = TransformerAxes(
        width=width,
        heads=f"{name}_heads",
        value=f"{name}_value",
        mlp=f"{name}_mlp",
        residual=residual,
        switch=f"{name}_switch",
        resolution=f"{name}_tokens",
    )
    return StageAxes(opening, block, transformer)


def backbone(network: NASViT, window_size: int | None = 7) -> NASViT:
    """``network`` for dense prediction: it takes images of any size as they are.

    It has the same parameters; its maps are ``apply(variables, images, method="features")``.

    Args:
      network: of an architecture.
      window_size: the greatest side of the windows, in tokens, that attention is within (section
        4.2 of the paper divides the map's size by 7); None for windows as the network has them.
    """
    stages = []
    for stage in network.stages:
        layer = stage.layer
        if window_size is not None and isinstance(layer, TransformerSizes):
            layer = dataclasses.replace(layer, window_size=window_size)
        stages.append(dataclasses.replace(stage, layer=layer))
    return network.clone(resolution=None, stages=tuple(stages))


class NASViT(nn.Module):
    """A network of a NASViT space: a super-network, or a network of its own.

    Attributes:
      num_classes: number of classes.
      first: channels of the first convolution.
      stages: the stages.
      expand: channels that the last map is expanded to.
      last: channels of its mean, mixed.
      resolution: side that images are resized to; None to take them as they are.
      weighed: whether this is a super-network, whose layers are scanned.
      remat: what of a super-network's layers the backward pass computes again: ``"none"``,
        ``"maps"``, ``"dots"`` or ``"full"``, see :func:`~nasjax.models.layers.rematerialized`.
      init_std: of the transformer blocks' kernels; None for 1 / sqrt(inputs) [0.02].
      init_scale: initial entries of the scaling tables [1e-4].
      dtype: of the computation (None: that of the images).
    """

    num_classes: int
    first: int
    stages: tuple[StageSizes, ...]
    expand: int
    last: int
    resolution: int | None = None
    weighed: bool = False
    remat: str = "none"
    init_std: float | None = 0.02
    init_scale: float = 1e-4
    dtype: Dtype = None

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Logits ``(batch, num_classes)`` of ``images (batch, height, width, channels)``.

        Raises:
          ValueError: if a map is larger than its table of relative positions covers.
        """
        return self._run(images, train, True)[1]

    def features(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """The maps that a dense prediction builds on, by ``"first"`` and the stages' names.

        Call it as ``network.apply(variables, images, method="features")``.

        Args:
          images: ``(batch, height, width, channels)``; of any size where ``resolution`` is None.
          train: whether normalisations use the statistics of the batch.

        Returns:
          Maps ``(batch, height', width', channels')``; each stage's stride divides the size, which
          is rounded up.

        Raises:
          ValueError: if a map is larger than its table of relative positions covers.
        """
        return self._run(images, train, False)[0]

    @nn.compact
    def _run(
        self, images: jax.Array, train: bool, classify: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        """The maps and, where asked for, the logits."""
        if self.resolution is not None:
            images = resize_cubic(images, (self.resolution, self.resolution))
        x = images if self.dtype is None else images.astype(self.dtype)
        axis, dtype = "first_width", self.dtype
        x = ConvNorm(self.first, 3, outputs=axis, stride=2, dtype=dtype, name="first")(x, train)
        maps = {"first": x}
        for stage in self.stages:
            axes, name = stage_axes(stage.name, axis), f"{stage.name}_opening"
            opening = InvertedResidual(stage.opening, axes.opening, self.weighed, dtype, name=name)
            x = self._layers(opening(x, train), stage, axes, train)
            maps[stage.name], axis = x, f"{stage.name}_width"
        if not classify:
            return maps, None
        wide = "last_expand"
        x = ConvNorm(self.expand, 1, axis, wide, dtype=dtype, name=wide)(x, train)
        x = jnp.mean(x, (1, 2), keepdims=True)
        mix = (None, None, wide, "last_width")
        x = nn.swish(Conv(self.last, 1, mix, dtype=dtype, name="last_mix")(x))[:, 0, 0]
        head = dense(self.num_classes, "head", ("last_width", None))
        return maps, at_least_float32(head(x))

    def _layers(self, x: jax.Array, stage: StageSizes, axes: StageAxes, train: bool) -> jax.Array:
        """The layers after the opening block, scanned in a super-network."""

        def layer(name: str) -> Any:
            if isinstance(stage.layer, TransformerSizes):
                init = (self.init_std, self.init_scale)
                return TransformerBlock(stage.layer, axes.transformer, *init, self.dtype, name=name)
            return InvertedResidual(stage.layer, axes.block, self.weighed, self.dtype, name=name)

        # On a CPU, XLA runs convolutions in loops and conditionals many times slower.
        flat = jax.default_backend() == "cpu"

        def step(layer: Any, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            if train or flat or self.is_initializing():
                return layer(x, train), None
            # In the evaluation of a sub-network, layers beyond its depth are skipped.
            there = writes(layer.written())
            return nn.cond(there, lambda layer, x: layer(x, False), lambda _, x: x, layer, x), None

        if not self.weighed or not stage.layers:
            for i in range(stage.layers):
                x = layer(f"{stage.name}_{i}")(x, train)
            return x
        body = rematerialized(step, self.remat)
        scan = nn.scan(
            body,
            variable_axes={"params": 0, "active": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=stage.layers,
            unroll=stage.layers if flat else 1,
            metadata_params={nn.PARTITION_NAME: stage.name},
        )
        return scan(layer(stage.name), x, None)[0]
