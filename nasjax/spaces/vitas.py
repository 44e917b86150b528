"""The ViTAS spaces: vision transformers with ten widths of everything and identity blocks.

Source: Su et al., "Vision Transformer Architecture Search" (2021), Table 1 (``"tiny"``) and
Table 9 (``"large"``). Chosen for the network: patch size and embedding width; at the level of the
architecture for each block, at the level of the block once for all: heads (0 is an identity) and
the widths of attention and perceptron, as ratios of the greatest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nasjax.core import architecture
from nasjax.core.architecture import Arch
from nasjax.core.cost import Term
from nasjax.core.errors import ArchitectureError, SpaceError, did_you_mean
from nasjax.core.space import (
    Axis,
    Choice,
    Decoding,
    Length,
    SearchSpace,
    by_option,
    prefix,
    suffix,
)
from nasjax.core.supernet import Supernet
from nasjax.models.split_attention import SHARED
from nasjax.models.vitas import ViTAS

PATCH_SIZES = (14, 16, 32)
HEADS = (3, 6, 12, 16)
RATIOS = tuple(round(i / 10, 1) for i in range(1, 11))
IDENTITY = 0  # the number of heads of an identity block

SIZES: Mapping[str, Mapping[str, int]] = {
    "tiny": {"embed_max": 384, "attention_max": 1440, "mlp_max": 1440},
    "large": {"embed_max": 768, "attention_max": 2880, "mlp_max": 2880},
}
# The large space of the paper has 16 blocks or identities, the released one these 13 blocks.
DEPTHS: Mapping[str, Mapping[str, int]] = {
    "arch": {"tiny": 16, "large": 13},
    "block": {"tiny": 12, "large": 12},
}
SIDES = {"left": prefix, "right": suffix}

# The released networks, as the configurations write them: indices of the patch size, of the heads
# of each block (4 is an identity), two zeros, the embedding ratio, two ratios for each block.
NET_IDS: Mapping[str, Mapping[str, str]] = {
    "tiny": {
        "ViTAS-A": "1 2 4 3 4 4 1 3 4 3 4 4 4 4 3 3 4 0 0 3 1 6 7 9 4 3 6 8 4 9 1 8 6 4 9 2 7 6 8 "
        "9 3 0 3 8 7 0 5 7 9 8 4 4",
        "ViTAS-B": "1 3 4 4 3 4 3 4 4 2 2 4 2 3 4 4 1 0 0 4 1 5 1 6 2 2 2 3 2 9 2 6 3 9 5 7 7 5 6 "
        "4 8 1 5 3 2 8 5 9 2 4 5 5",
        "ViTAS-E": "1 3 4 3 4 3 1 4 0 4 2 1 2 4 2 1 2 0 0 8 4 4 1 7 6 5 3 8 5 6 5 6 3 6 3 4 4 4 8 "
        "8 8 7 4 0 4 5 9 5 3 6 7 8",
    },
    "large": {
        "ViTAS-F": "1 3 3 3 3 3 3 3 3 3 3 3 3 3 0 0 3 2 5 0 7 5 2 3 6 6 2 4 4 8 7 4 6 7 2 6 1 6 6 "
        "4 7 5 7",
    },
}


def _block(embed: float, heads: int, attention: float, mlp: float) -> Arch:
    return {
        "patch_size": 16,
        "embed_ratio": embed,
        "heads": heads,
        "attn_ratio": attention,
        "mlp_ratio": mlp,
    }


# The paper's block-level networks: Table 8 and, for 5 G, Table 13. The two baselines are written
# as such; the ratios of their perceptrons are none of the space.
BLOCKS: Mapping[str, Mapping[str, Arch]] = {
    "tiny": {
        "ViTAS-Block": _block(0.6, 3, 0.3, 0.5),
        "DeiT-Ti": _block(0.5, 3, 0.4, 768 / 1440),
    },
    "large": {
        "ViTAS-Block-5G": _block(0.5, 6, 0.4, 0.6),
        "DeiT-S": _block(0.5, 6, 0.4, 1536 / 2880),
    },
}


def from_net_id(text: str) -> dict[str, Any]:
    """The architecture of a ``net_id``, as the released configurations write one.

    Ratios of identity blocks, which mean nothing, come out as the first option.

    Raises:
      ArchitectureError: if the text is none.
    """
    try:
        numbers = [int(word) for word in text.split()]
    except ValueError:
        numbers = []
    depth, rest = divmod(len(numbers) - 4, 3)
    patch, heads, ends = numbers[:1], numbers[1 : depth + 1], numbers[depth + 1 : depth + 3]
    ratios = numbers[depth + 3 :]
    options = (
        (patch, len(PATCH_SIZES)),
        (heads, len(HEADS) + 1),
        (ends, 1),
        (ratios, len(RATIOS)),
    )
    if depth < 1 or rest or any(not 0 <= n < size for ns, size in options for n in ns):
        raise ArchitectureError(
            f"{text!r} is no net_id: the indices of a patch size and of the heads of each block, "
            "two zeros, the index of the embedding ratio and two of ratios for each block were "
            "expected."
        )
    number = [(*HEADS, IDENTITY)[i] for i in heads]
    pairs = [[RATIOS[i] for i in ratios[1 + part :: 2]] for part in range(2)]
    attention, mlp = (
        [r if h != IDENTITY else RATIOS[0] for r, h in zip(rs, number, strict=True)] for rs in pairs
    )
    return {
        "patch_size": PATCH_SIZES[patch[0]],
        "embed_ratio": RATIOS[ratios[0]],
        "heads": number,
        "attn_ratio": attention,
        "mlp_ratio": mlp,
    }


def vitas(
    level: str = "arch",
    *,
    size: str = "tiny",
    image_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    channels: int = 3,
    patch_sizes: Sequence[int] | None = None,
    heads: Sequence[int] = HEADS,
    ratios: Sequence[float] = RATIOS,
    embed_max: int | None = None,
    attention_max: int | None = None,
    mlp_max: int | None = None,
    depth: int | None = None,
    identity: bool | None = None,
    side: str = "left",
    drop_path: float = 0.1,
    **fields: Any,
) -> Supernet:
    """The super-network of a ViTAS space.

    Left-hand and right-hand super-networks of one space have parameters of the same shapes; the
    bilateral coupling of BCNet trains one set of parameters as both.

    Args:
      level: ``"arch"``, heads and ratios chosen for each block, or ``"block"``, chosen once.
      size: ``"tiny"`` or ``"large"``, which says what is not given below.
      image_size: side of the images in pixels, or (height, width).
      num_classes: number of classes.
      channels: channels of the images.
      patch_sizes: sides of patches in pixels [14, 16, 32; at the level of the block 16].
      heads: numbers of heads.
      ratios: of the embedding, attention and perceptron widths to the greatest.
      embed_max: the greatest embedding width.
      attention_max: the greatest width of queries, keys and values together.
      mlp_max: the greatest hidden width of the perceptron.
      depth: number of blocks, identities included.
      identity: whether a block may be an identity [in the tiny space at the level of the
        architecture].
      side: ``"left"`` or ``"right"``: the end of the widest layers that narrower ones are.
      drop_path: stochastic depth of the last block of a network on its own, growing linearly from
        0 over all positions; the super-network drops nothing (section 4.3).
      **fields: further fields of :class:`~nasjax.models.vitas.ViTAS`.

    Raises:
      SpaceError: if an option is unknown, or sizes do not go together.
    """
    for given, known, what in (
        (level, DEPTHS, "level"),
        (size, SIZES, "size"),
        (side, SIDES, "side"),
    ):
        if given not in known:
            raise SpaceError(f"no {what} {given!r} of a ViTAS space; {did_you_mean(given, known)}")
    sizes = dict(SIZES[size])
    asked = {"embed_max": embed_max, "attention_max": attention_max, "mlp_max": mlp_max}
    sizes |= {name: value for name, value in asked.items() if value is not None}
    depth = DEPTHS[level][size] if depth is None else depth
    per_block = level == "arch"
    identity = (per_block and size == "tiny") if identity is None else identity
    patch_sizes = (PATCH_SIZES if per_block else (16,)) if patch_sizes is None else patch_sizes
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    _check(sizes, patch_sizes, heads, ratios, (height, width), depth, fields)
    if identity and not per_block:
        raise SpaceError(
            "at the level of the block all blocks are alike, so none can be an identity; leave "
            'identity out or use level="arch".'
        )
    per = "blocks" if per_block else None
    options = (IDENTITY, *heads) if identity else tuple(heads)
    space = SearchSpace(
        f"vitas_{level}" + ("" if size == "tiny" else f"_{size}"),
        choices=(
            Choice("patch_size", tuple(patch_sizes)),
            Choice("embed_ratio", tuple(ratios)),
            Choice("heads", options, per=per),
            Choice("attn_ratio", tuple(ratios), per=per),
            Choice("mlp_ratio", tuple(ratios), per=per),
        ),
        axes={
            **_widths(sizes, SIDES[side]),
            "blocks": depth,
            "block": by_option("heads", {IDENTITY: 0}, otherwise=1),
            **{f"heads_{h}": by_option("heads", {h: 1}) for h in heads},
            **{f"patch_{p}": by_option("patch_size", {p: 1}) for p in patch_sizes},
            # No parameter has these; costs do.
            **_image_axes(patch_sizes, (height, width), channels),
        },
        stacks=("blocks",),
        operations=(
            "block",
            *(f"heads_{h}" for h in heads),
            *(f"patch_{p}" for p in patch_sizes),
        ),
        decoding=_decoding(options) if identity else None,
        legal=len(patch_sizes) * len(ratios) * (len(heads) * len(ratios) ** 2 + 1) ** depth
        if identity
        else None,
        static=("patch_size",),
    )
    rates = tuple(float(r) for r in np.linspace(0, drop_path, depth)) if drop_path else ()

    def length(axis: str, arch: Arch, layer: int | None = None) -> int:
        return architecture.axis_length(space, axis, arch, layer)

    def network(arch: Arch) -> ViTAS:
        chosen = tuple(arch["heads"]) if per_block else (arch["heads"],) * depth
        return ViTAS(
            num_classes=num_classes,
            embed_dim=length("embed", arch),
            depth=depth,
            heads=chosen,
            value_dim=tuple(length("value", arch, i) for i in range(depth)),
            mlp_dim=tuple(length("mlp", arch, i) for i in range(depth)),
            patch_size=arch["patch_size"],
            drop_path=rates,
            **fields,
        )

    module = ViTAS(
        num_classes=num_classes,
        embed_dim=space.axis_size("embed"),
        depth=depth,
        heads=tuple(heads),
        value_dim=space.axis_size("value"),
        mlp_dim=space.axis_size("mlp"),
        patch_size=patch_sizes[0],
        patch_sizes=tuple(patch_sizes),
        **fields,
    )
    standard = sizes == SIZES[size] and tuple(heads) == HEADS and depth == DEPTHS[level][size]
    released = {name: from_net_id(text) for name, text in NET_IDS[size].items()}
    return Supernet(
        space,
        module,
        network,
        (height, width, channels),
        costs={"flops": multiply_adds(num_classes), "flops_vitas": vitas_flops(num_classes)},
        published=(released if per_block else BLOCKS[size]) if standard else {},
        variant=lambda arch: module.clone(patch_size=arch["patch_size"]),
    )


def _check(
    sizes: Mapping[str, int],
    patch_sizes: Sequence[int],
    heads: Sequence[int],
    ratios: Sequence[float],
    image: tuple[int, int],
    depth: int,
    fields: Mapping[str, Any],
) -> None:
    if not heads or min(heads) < 1:
        raise SpaceError(
            f"heads is {tuple(heads)}; numbers from 1 were expected (identity=True adds the "
            "identity block)."
        )
    if not ratios or not all(0 < r <= 1 for r in ratios):
        raise SpaceError(f"ratios is {tuple(ratios)}; numbers above 0 and up to 1 were expected.")
    if depth < 1:
        raise SpaceError(f"depth is {depth}; 1 block at least was expected.")
    if not patch_sizes:
        raise SpaceError("patch_sizes is empty; one patch size at least was expected.")
    for patch in patch_sizes:
        if any(side % patch for side in image):
            raise SpaceError(
                f"images of {image[0]} x {image[1]} pixels do not divide into patches of {patch} x "
                f"{patch}; resize them or choose other patch sizes."
            )
    if sizes["attention_max"] % 3:
        raise SpaceError(
            f"attention_max is {sizes['attention_max']}, the width of queries, keys and values "
            "together; a multiple of 3 was expected."
        )
    for ratio in ratios:
        width = round(ratio * (sizes["attention_max"] // 3))
        for h in heads:
            if width == 0 or width % h:
                raise SpaceError(
                    f"attention of {width} channels (ratio {ratio} of {sizes['attention_max']} / "
                    f"3) does not divide into {h} heads; choose attention_max so that every ratio "
                    "of a third of it is a multiple of every number of heads."
                )
        for name in ("embed_max", "mlp_max"):
            if round(ratio * sizes[name]) == 0:
                raise SpaceError(
                    f"ratio {ratio} of {name}={sizes[name]} is no channel at all; enlarge it."
                )
    shared = fields.get("shared", "v")
    if shared not in SHARED:
        raise SpaceError(f"shared={shared!r} is unknown; {did_you_mean(shared, SHARED)}")


def _widths(sizes: Mapping[str, int], take: Any) -> dict[str, Axis]:
    embed_max, mlp_max, value_max = (
        sizes["embed_max"],
        sizes["mlp_max"],
        sizes["attention_max"] // 3,
    )

    # To the nearest: 0.7 * 1440 is 1007.99...
    def value(attn_ratio: float) -> int:
        return round(attn_ratio * value_max)

    return {
        "embed": Axis(lambda embed_ratio: round(embed_ratio * embed_max), take),
        "value": Axis(value, take),
        "query_key": Axis(lambda attn_ratio: 2 * value(attn_ratio), take),
        "query_key_value": Axis(lambda attn_ratio: 3 * value(attn_ratio), take),
        "mlp": Axis(lambda mlp_ratio: round(mlp_ratio * mlp_max), take),
    }


def _image_axes(
    patch_sizes: Sequence[int], image: tuple[int, int], channels: int
) -> dict[str, Length]:
    patches: dict[Any, int] = {p: (image[0] // p) * (image[1] // p) for p in patch_sizes}
    return {
        "patches": by_option("patch_size", patches),
        "tokens": by_option("patch_size", {p: n + 1 for p, n in patches.items()}),
        "pixels": by_option("patch_size", {p: channels * p**2 for p in patch_sizes}),
    }


def _decoding(heads: Sequence[int]) -> Decoding:
    identity = heads.index(IDENTITY)

    def decode(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The best of everything; ratios of an identity block, which has none, are the first."""
        block = np.argmax(scores["heads"], -1) != identity
        return {n: np.argmax(scores[n], -1) * block for n in ("attn_ratio", "mlp_ratio")}

    return decode


def multiply_adds(classes: int) -> list[Term]:
    """Exact multiply-adds of one image: every matrix product of the network, nothing else."""
    return [
        Term(1, ("patches", "pixels", "embed")),
        Term(4, ("tokens", "embed", "value", "block"), "blocks"),
        Term(2, ("tokens", "tokens", "value", "block"), "blocks"),
        Term(2, ("tokens", "embed", "mlp", "block"), "blocks"),
        Term(classes, ("embed",)),
    ]


def vitas_flops(classes: int) -> list[Term]:
    """FLOPs as ViTAS's released code counts them, in multiply-adds.

    It leaves the class token out and applies the head to every patch; papers on these spaces
    report this number.
    """
    return [
        Term(1, ("patches", "pixels", "embed")),
        Term(4, ("patches", "embed", "value", "block"), "blocks"),
        Term(2, ("patches", "patches", "value", "block"), "blocks"),
        Term(2, ("patches", "embed", "mlp", "block"), "blocks"),
        Term(classes, ("patches", "embed")),
    ]
