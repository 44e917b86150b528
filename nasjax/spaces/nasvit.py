"""The NASViT spaces: mobile convolutions, then transformers, at a searched resolution.

Source: "NASViT: Neural Architecture Search for Efficient Vision Transformers with Gradient
Conflict-aware Supernet Training" (2022). :func:`nasvit` is the space that the authors released,
which has the paper's 190 to 1,881 M multiply-adds; :func:`nasvit_paper` is the one that its Table 1
and Appendix B print. Everything is chosen once for all blocks of a stage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from nasjax.core.architecture import Arch
from nasjax.core.errors import SpaceError, did_you_mean
from nasjax.core.supernet import Supernet
from nasjax.spaces.hybrid import Hybrid, Stage

RESOLUTIONS = (192, 224, 256, 288)
FIRST, LAST = (16, 24), (1792, 1984)
STAGES = (
    Stage("mb1", (16, 24), (1, 2), (3, 5)),
    Stage("mb2", (24, 32), (3, 4, 5), (3, 5), (4, 5, 6), stride=2),
    Stage("mb3", (32, 40), (3, 4, 5, 6), (3,), (4, 5, 6), squeeze=True, stride=2),
    Stage("mb4", (64, 72), (3, 4, 5, 6), (3,), (4, 5, 6), stride=2, transformer=True),
    Stage(
        "mb5",
        (112, 120, 128),
        (3, 4, 5, 6, 7, 8, 9),
        (3,),
        (4, 5, 6),
        squeeze=True,
        stride=2,
        transformer=True,
    ),
    Stage(
        "mb6",
        (160, 168, 176, 184),
        (3, 4, 5, 6, 7, 8),
        (3,),
        (6,),
        squeeze=True,
        transformer=True,
    ),
    Stage(
        "mb7",
        (208, 216, 224),
        (3, 4, 5, 6),
        (3,),
        (6,),
        squeeze=True,
        stride=2,
        transformer=True,
    ),
)


def _printed(
    name: str, width: tuple[int, ...], depth: tuple[int, ...], stride: int, **more: Any
) -> Stage:
    """A transformer stage of the paper, opened by a 3 x 3 depthwise convolution."""
    return Stage(
        name,
        width,
        depth,
        stride=stride,
        transformer=True,
        shortcut=False,
        ratio=(1, 2),
        **more,
    )


PAPER_STAGES = (
    *STAGES[:2],
    dataclasses.replace(STAGES[2], kernel=(3, 5)),
    _printed("mb4", (64, 72), (3, 4, 5, 6), 2, windows=(1, 4)),
    _printed("mb5", (112, 120, 128), (3, 4, 5, 6, 7, 8), 2),
    _printed("mb6", (160, 168, 176, 184), (3, 4, 5, 6, 7, 8), 1),
    _printed("mb7", (208, 216, 224), (3, 4, 5, 6), 2),
)

# Table 13: resolution, widths and depths of the stages, widths of first and last convolution. The
# expansions of mb2 and mb3 follow; of the blocks that open mb4 and mb5, the paper prints none.
_TABLE_13 = {
    "NASViT-A1": (192, (16, 24, 32, 64, 112, 160, 216), (1, 3, 3, 4, 3, 3, 3), 1792, (4, 4)),
    "NASViT-A2": (224, (16, 24, 32, 64, 112, 160, 208), (1, 3, 3, 4, 3, 5, 4), 1792, (4, 6)),
    "NASViT-A3": (256, (16, 24, 32, 64, 112, 160, 216), (1, 3, 3, 4, 4, 7, 5), 1984, (5, 5)),
    "NASViT-A4": (288, (16, 24, 32, 64, 120, 160, 216), (1, 3, 3, 4, 3, 6, 6), 1984, (4, 6)),
}


def nasvit(
    stages: Sequence[Stage | Mapping[str, Any]] = STAGES,
    *,
    first: Sequence[int] = FIRST,
    last: Sequence[int] = LAST,
    resolutions: Sequence[int] | None = RESOLUTIONS,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int = 1000,
    channels: int = 3,
    scaling: str | None = "depth",
    position_side: int = 18,
    transformer: Mapping[str, Any] | None = None,
    name: str = "nasvit",
    **fields: Any,
) -> Supernet:
    """The super-network of the space that the authors released.

    Args:
      stages: the table, rows or mappings of their fields; what has one option is no choice.
      first: channels of the first convolution.
      last: channels that the last map's mean is mixed to.
      resolutions: sides that images are resized to, a static choice; None to take images as they
        are, which are then of ``image_size``.
      image_size: side of the images in pixels, or (height, width) [the largest resolution].
      num_classes: number of classes.
      channels: channels of the images.
      scaling: what switches the scaling of a transformer's outputs: ``"depth"`` of its stage, its
        ``"width"``, ``"none"`` for a scaling that all share, None for no scaling. With several
        resolutions, ``"depth"`` also has a scaling for each remainder of the tokens by 8.
      position_side: side of the largest map, or window, that the tables of positions cover.
      transformer: further fields of all transformer blocks.
      name: of the space.
      **fields: further fields of :class:`~nasjax.models.nasvit.NASViT`.

    Raises:
      SpaceError: if the table contradicts itself.
    """
    if image_size is None:
        if not resolutions:
            raise SpaceError("images have neither a resolution nor an image_size; give one.")
        image_size = max(resolutions)
    sizes = (tuple(_stage(stage) for stage in stages), tuple(first), tuple(last))
    table = Hybrid(
        *sizes,
        resolutions=tuple(resolutions) if resolutions else None,
        image_size=(image_size, image_size) if isinstance(image_size, int) else image_size,
        num_classes=num_classes,
        channels=channels,
        scaling=scaling,
        transformer={"position_side": position_side, **(transformer or {})},
    )
    standard = {"nasvit": STAGES, "nasvit_paper": PAPER_STAGES}.get(name)
    known = sizes == (standard, FIRST, LAST) and table.resolutions == RESOLUTIONS
    return table.supernet(name, _published(table) if known else {}, fields)


def nasvit_paper(
    stages: Sequence[Stage | Mapping[str, Any]] = PAPER_STAGES,
    *,
    scaling: str | None = "width",
    **options: Any,
) -> Supernet:
    """The super-network of the space that the paper prints: Table 1 and Appendix B.

    Attention within 4 windows changes the shapes of the attention maps, so the number of windows is
    a static choice beside the resolution.

    Args:
      stages: the table, as of :func:`nasvit`.
      scaling: what switches the scaling of a transformer's outputs.
      **options: further arguments of :func:`nasvit`.

    Raises:
      SpaceError: if the table contradicts itself.
    """
    form = {"factor": None, "mlp_conv": True, "swish_first": False}
    return nasvit(stages, scaling=scaling, transformer=form, name="nasvit_paper", **options)


def _stage(stage: Stage | Mapping[str, Any]) -> Stage:
    """A row of the table; configuration files write it as a mapping."""
    if isinstance(stage, Stage):
        return stage
    known = {field.name for field in dataclasses.fields(Stage)}
    for name in stage:
        if name not in known:
            raise SpaceError(f"a stage has no field {name!r}; {did_you_mean(name, known)}")
    for name in ("name", "width", "depth"):
        if name not in stage:
            raise SpaceError(f"the stage {dict(stage)} lacks its {name}; give it.")
    row: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in stage.items()}
    return Stage(**row)


def _published(table: Hybrid) -> dict[str, Arch]:
    """The networks of Table 13, everything that it does not print at its least."""
    found: dict[str, Arch] = {}
    for name, (resolution, widths, depths, last, expansions) in _TABLE_13.items():
        arch = {n: min(options) for n, options in table.options.items() if len(options) > 1}
        arch |= {"resolution": resolution, "last_width": last}
        for stage, width, depth in zip(table.stages, widths, depths, strict=True):
            arch |= {f"{stage.name}_width": width, f"{stage.name}_depth": depth}
        arch |= dict(zip(("mb2_expansion", "mb3_expansion"), expansions, strict=True))
        found[name] = arch
    return found
