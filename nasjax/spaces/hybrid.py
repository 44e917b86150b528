"""Spaces of hybrid networks: what follows from a table of convolutional and transformer stages.

A table lists the options of every stage. What has several is a choice of the whole network; the
lengths of all axes, the multiply-adds and the networks themselves follow.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nasjax.core import architecture
from nasjax.core.architecture import Arch
from nasjax.core.cost import Term
from nasjax.core.errors import SpaceError
from nasjax.core.space import LAYER, Axis, Choice, Length, SearchSpace, centred, private
from nasjax.core.supernet import Supernet
from nasjax.models.inverted_residual import BlockSizes, halved, hidden_width, squeeze_width
from nasjax.models.nasvit import NASViT, StageSizes
from nasjax.models.talking_attention import TransformerSizes, window_grid

SCALINGS = ("depth", "width", "none", None)
TOKEN_KEYS = 8  # the released tables of scaling have a row for each remainder of the tokens by it
_HEAD_DIM, _VALUE_RATIO, _EXPAND = 8, 4, 6
_Axes = dict[str, Axis | Length]


@dataclass(frozen=True)
class Stage:
    """A row of a space's table. What has several options is a choice, the rest is fixed.

    Attributes:
      name: of the stage; its choices are called ``NAME_width`` and so on.
      width: channels.
      depth: numbers of blocks, with the one that opens the stage.
      kernel: sides of the depthwise kernels of its convolutional blocks.
      expansion: of these blocks, hidden to input channels; 1 alone for no expansion.
      squeeze: whether they have squeeze and excitation.
      stride: of the opening block, 1 or 2.
      shortcut: whether the opening block adds its input, halved and mapped.
      transformer: whether the blocks after the opening one are transformers.
      ratio: of the perceptrons of these, hidden to other channels.
      windows: numbers of groups of tokens that attention is within, squares.
    """

    name: str
    width: tuple[int, ...]
    depth: tuple[int, ...]
    kernel: tuple[int, ...] = (3,)
    expansion: tuple[int, ...] = (1,)
    squeeze: bool = False
    stride: int = 1
    shortcut: bool = True
    transformer: bool = False
    ratio: tuple[int, ...] = (1,)
    windows: tuple[int, ...] = (1,)

    @property
    def expands(self) -> bool:
        """Whether its convolutional blocks have an expansion."""
        return max(self.expansion) != 1


@dataclass(frozen=True)
class Hybrid:
    """The table of a space of hybrid networks.

    Attributes:
      stages: the rows.
      first: channels of the first convolution.
      last: channels that the last map's mean is mixed to.
      resolutions: sides that images are resized to; None to take them as they are.
      image_size: (height, width) of the images in pixels.
      num_classes: number of classes.
      channels: channels of the images.
      scaling: what switches the scaling of a transformer's outputs, one of ``SCALINGS``.
      transformer: further fields of :class:`~nasjax.models.talking_attention.TransformerSizes`.

    Raises:
      SpaceError: if the table contradicts itself.
    """

    stages: tuple[Stage, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]
    resolutions: tuple[int, ...] | None
    image_size: tuple[int, int]
    num_classes: int
    channels: int
    scaling: str | None = "depth"
    transformer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)

    @functools.cached_property
    def options(self) -> dict[str, tuple[Any, ...]]:
        """The options of everything, by what a choice of it is called."""
        found: dict[str, tuple[Any, ...]] = {"resolution": self.resolutions or (None,)}
        found["first_width"] = self.first
        for stage in self.stages:
            for name in ("width", "depth", "kernel", "expansion", "ratio", "windows"):
                found[f"{stage.name}_{name}"] = getattr(stage, name)
        found["last_width"] = self.last
        return found

    def searched(self, name: str) -> bool:
        """Whether ``name`` is a choice."""
        return len(self.options[name]) > 1

    def length(self, function: Callable[..., int], *names: str) -> Length:
        """``function`` of the options of ``names`` (and the layer), as the length of an axis."""
        fixed = {n: self.options[n][0] for n in names if n != LAYER and not self.searched(n)}
        free = [n for n in names if n not in fixed]

        def length(**values: Any) -> int:
            return function(*({**fixed, **values}[n] for n in names))

        if not free:
            return length()
        keywords = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in free]
        length.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        return length

    def maps(self, resolution: int | None) -> dict[str, tuple[int, int]]:
        """Heights and widths of the maps after the first convolution and after each stage."""
        height, width = self.image_size if resolution is None else (resolution, resolution)
        found = {}
        for name, stride in (("first", 2), *((stage.name, stage.stride) for stage in self.stages)):
            height, width = halved(height, stride), halved(width, stride)
            found[name] = (height, width)
        return found

    def token_keys(self, stage: str) -> tuple[int, ...]:
        """Remainders of a stage's tokens by 8, each resolution's."""
        return tuple(
            math.prod(self.maps(resolution)[stage]) % TOKEN_KEYS
            for resolution in self.options["resolution"]
        )

    def axes(self) -> _Axes:
        """The lengths of all axes; those of maps are no parameter's, but costs have them."""
        length = self.length
        last = f"{self.stages[-1].name}_width"
        found: _Axes = {
            "first_width": length(int, "first_width"),
            "last_expand": length(lambda width: _EXPAND * width, last),
            "last_width": length(int, "last_width"),
        }
        inputs = "first_width"
        for stage in self.stages:
            found |= self._stage_axes(stage, inputs)
            inputs = f"{stage.name}_width"
        for name in self.maps(self.options["resolution"][0]):
            pixels = functools.partial(lambda name, r: math.prod(self.maps(r)[name]), name)
            found[f"{name}_pixels"] = length(pixels, "resolution")
        return found

    def _stage_axes(self, stage: Stage, inputs: str) -> _Axes:
        name, length = stage.name, self.length
        width, depth = f"{name}_width", f"{name}_depth"

        def hidden(channels: int, expansion: int) -> int:
            return hidden_width(channels, expansion) if stage.expands else channels

        def squeezed(channels: int, expansion: int) -> int:
            return squeeze_width(hidden(channels, expansion))

        def residual(channels: int, blocks: int, layer: int) -> int:
            return channels * (layer < blocks - 1)

        expansion, kernel = f"{name}_expansion", centred(length(int, f"{name}_kernel"))
        found: _Axes = {
            name: length(lambda blocks: blocks - 1, depth),
            width: length(int, width),
            f"{name}_kernel": kernel,
            f"{name}_opening": length(hidden, inputs, expansion),
            f"{name}_opening_squeeze": length(squeezed, inputs, expansion),
            f"{name}_shortcut": length(lambda i, o: o * (i != o), inputs, width),
            f"{name}_same": length(lambda i, o: o * (i == o), inputs, width),
            f"{name}_residual": length(residual, width, depth, LAYER),
        }
        if not stage.transformer:
            return found | {
                f"{name}_hidden": length(hidden, width, expansion),
                f"{name}_squeeze": length(squeezed, width, expansion),
            }
        keys = self.token_keys(name)
        distinct = sorted(set(keys))
        by_tokens = self.scaling == "depth" and len(distinct) > 1
        switch = f"{name}_{self.scaling}"
        switched = self.scaling in ("depth", "width") and self.searched(switch)

        def pairs(resolution: int | None, windows: int) -> int:
            sides = self.maps(resolution)[name]
            grid = [window_grid(side, windows) for side in sides]
            tokens = math.prod(math.ceil(n / g) for n, g in zip(sides, grid, strict=True))
            return math.prod(grid) * tokens**2

        return found | {
            f"{name}_heads": length(lambda channels: channels // _HEAD_DIM, width),
            f"{name}_value": length(lambda channels: _VALUE_RATIO * channels, width),
            f"{name}_mlp": length(lambda c, ratio: c * ratio, width, f"{name}_ratio"),
            f"{name}_switch": private(switch) if switched else 1,
            f"{name}_tokens": private("resolution", [distinct.index(k) for k in keys])
            if by_tokens
            else 1,
            f"{name}_pairs": length(pairs, "resolution", f"{name}_windows"),
        }

    def multiply_adds(self) -> list[Term]:
        """Multiply-adds of one image: every convolution and matrix product, and nothing else."""
        terms = [Term(9 * self.channels, ("first_pixels", "first_width"))]
        before = "first"
        for stage in self.stages:
            name, inputs = stage.name, f"{before}_width"
            terms += _block_terms(stage, f"{before}_pixels", inputs, "opening", None)
            if stage.shortcut:
                terms.append(Term(1, (f"{name}_pixels", inputs, f"{name}_shortcut")))
            if stage.transformer:
                terms += _transformer_terms(name, self.transformer.get("mlp_conv", False))
            else:
                terms += _block_terms(stage, f"{name}_pixels", f"{name}_width", "hidden", name)
            before = name
        return [
            *terms,
            Term(1, (f"{before}_pixels", f"{before}_width", "last_expand")),
            Term(1, ("last_expand", "last_width")),
            Term(self.num_classes, ("last_width",)),
        ]

    def supernet(
        self, name: str, published: Mapping[str, Arch], fields: Mapping[str, Any]
    ) -> Supernet:
        """The super-network of the space, which is called ``name``.

        Args:
          name: of the space.
          published: architectures by the names they were published under.
          fields: further fields of :class:`~nasjax.models.nasvit.NASViT`.
        """
        windows = [f"{s.name}_windows" for s in self.stages if self.searched(f"{s.name}_windows")]
        space = SearchSpace(
            name,
            choices=tuple(Choice(n, o) for n, o in self.options.items() if len(o) > 1),
            axes=self.axes(),
            stacks=tuple(stage.name for stage in self.stages),
            static=(*["resolution"][: self.searched("resolution")], *windows),
        )

        def network(arch: Arch) -> NASViT:
            def size(axis: str) -> int:
                return architecture.axis_length(space, axis, arch)

            return self._module(size, arch, False, fields)

        def maximal(arch: Arch) -> NASViT:
            return self._module(space.axis_size, arch, True, fields)

        return Supernet(
            space,
            maximal(architecture.largest(space)),
            network,
            (*self.image_size, self.channels),
            costs={"flops": self.multiply_adds()},
            published=published,
            variant=maximal,
        )

    def _module(
        self, size: Callable[[str], int], arch: Arch, weighed: bool, fields: Mapping[str, Any]
    ) -> NASViT:
        def option(name: str) -> Any:
            return arch.get(name, self.options[name][0])

        return NASViT(
            num_classes=self.num_classes,
            first=size("first_width"),
            stages=tuple(
                StageSizes(
                    stage.name,
                    _opening(stage, size),
                    size(stage.name),
                    self._transformer(stage, size, option(f"{stage.name}_windows"))
                    if stage.transformer
                    else _block(stage, size),
                )
                for stage in self.stages
            ),
            expand=size("last_expand"),
            last=size("last_width"),
            resolution=option("resolution"),
            weighed=weighed,
            **fields,
        )

    def _transformer(
        self, stage: Stage, size: Callable[[str], int], windows: int
    ) -> TransformerSizes:
        name = stage.name
        rows = (size(f"{name}_switch"), size(f"{name}_tokens"))
        return TransformerSizes(
            width=size(f"{name}_width"),
            mlp=size(f"{name}_mlp"),
            rows=rows if self.scaling is not None else (),
            head_dim=_HEAD_DIM,
            value_ratio=_VALUE_RATIO,
            windows=windows,
            **self.transformer,
        )


def _opening(stage: Stage, size: Callable[[str], int]) -> BlockSizes:
    name = stage.name
    return BlockSizes(
        features=size(f"{name}_width"),
        hidden=size(f"{name}_opening"),
        kernel_size=size(f"{name}_kernel"),
        stride=stage.stride,
        expand=stage.expands,
        squeeze=size(f"{name}_opening_squeeze") if stage.squeeze else 0,
        residual=stage.shortcut,
        shortcut=size(f"{name}_shortcut"),
        same=size(f"{name}_same"),
    )


def _block(stage: Stage, size: Callable[[str], int]) -> BlockSizes:
    name = stage.name
    return BlockSizes(
        features=size(f"{name}_width"),
        hidden=size(f"{name}_hidden"),
        kernel_size=size(f"{name}_kernel"),
        expand=stage.expands,
        squeeze=size(f"{name}_squeeze") if stage.squeeze else 0,
    )


def _block_terms(
    stage: Stage, before: str, inputs: str, hidden: str, stack: str | None
) -> list[Term]:
    """Multiply-adds of convolutional blocks, shortcuts aside.

    Args:
      stage: of the blocks.
      before: the axis of their input's pixels.
      inputs: the axis of their input's channels.
      hidden: which hidden width they have, ``"opening"`` or ``"hidden"``.
      stack: of the blocks; None for the one that opens the stage.
    """
    name = stage.name
    pixels, kernel, wide = f"{name}_pixels", f"{name}_kernel", f"{name}_{hidden}"
    squeezed = f"{name}_opening_squeeze" if hidden == "opening" else f"{name}_squeeze"
    return [
        *[Term(1, (before, inputs, wide), stack)][: stage.expands],
        Term(1, (pixels, wide, kernel, kernel), stack),
        *[Term(2, (wide, squeezed), stack)][: stage.squeeze],
        Term(1, (pixels, wide, f"{name}_width"), stack),
    ]


def _transformer_terms(name: str, mlp_conv: bool) -> list[Term]:
    """Multiply-adds of the transformer blocks of the stage called ``name``."""
    pixels, pairs, width = f"{name}_pixels", f"{name}_pairs", f"{name}_width"
    value, heads, mlp = f"{name}_value", f"{name}_heads", f"{name}_mlp"
    return [
        Term(2, (pixels, width, width), name),  # queries and keys
        Term(2, (pixels, width, value), name),  # values and projection
        Term(9, (pixels, value), name),
        Term(1, (pairs, width), name),
        Term(1, (pairs, value), name),
        Term(2, (pairs, heads, heads), name),
        Term(4, (pixels, width, mlp), name),
        *[Term(18, (pixels, mlp), name)][:mlp_conv],
    ]


def _check(table: Hybrid) -> None:
    """Raise what is wrong with a table."""
    if table.scaling not in SCALINGS:
        raise SpaceError(
            f"scaling={table.scaling!r} is unknown; depth, width, none or None was expected."
        )
    names = [stage.name for stage in table.stages]
    if not names or len(set(names)) != len(names):
        raise SpaceError(f"the stages are called {names}; one at least, each by a name of its own.")
    for name, options in table.options.items():
        if not options or len(set(options)) != len(options):
            raise SpaceError(f"{name} has the options {options}; one at least, each listed once.")
        least = min(o for o in options) if options != (None,) else 1
        if least < 1:
            raise SpaceError(f"{name} has the options {options}; numbers from 1 were expected.")
    for stage in table.stages:
        if stage.stride not in (1, 2):
            raise SpaceError(f"{stage.name} has the stride {stage.stride}; 1 or 2 was expected.")
        if any(side % 2 == 0 for side in stage.kernel):
            raise SpaceError(f"{stage.name} has kernels of {stage.kernel}; odd sides are expected.")
        if stage.transformer:
            _check_transformer(table, stage)


def _check_transformer(table: Hybrid, stage: Stage) -> None:
    for width in stage.width:
        if width % _HEAD_DIM:
            raise SpaceError(
                f"{stage.name} has {width} channels, which do not divide into heads of "
                f"{_HEAD_DIM}; a multiple was expected."
            )
    for windows in stage.windows:
        if math.isqrt(windows) ** 2 != windows:
            raise SpaceError(
                f"{stage.name} has {windows} windows; a square number was expected, as many along "
                "either side of the map."
            )
    covered = table.transformer.get("position_side", 18)
    for resolution in table.options["resolution"]:
        for side in table.maps(resolution)[stage.name]:
            longest = math.ceil(side / window_grid(side, min(stage.windows)))
            if longest > covered:
                raise SpaceError(
                    f"{stage.name} has maps with a side of {side}, windows of {longest}, but the "
                    f"tables of positions cover {covered}: give position_side={longest}."
                )
