"""The AutoFormer spaces T, S and B, and any space like them.

Source: Chen et al., "AutoFormer" (ICCV 2021), Table 1 and released configurations; searched by
GraViT-E (section 3.2), TangleNAS (Table 17) and TF-TAS. Chosen for the network: width and depth;
for each block: heads and the ratio of the perceptron's hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from nasjax.core.architecture import Arch
from nasjax.core.cost import Term
from nasjax.core.errors import SpaceError, did_you_mean
from nasjax.core.space import Axis, Choice, SearchSpace
from nasjax.core.supernet import Supernet
from nasjax.models.vit import VisionTransformer

OPTIONS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "T": {
        "embed_dim": (192, 216, 240),
        "depth": (12, 13, 14),
        "num_heads": (3, 4),
        "mlp_ratio": (3.5, 4.0),
    },
    "S": {
        "embed_dim": (320, 384, 448),
        "depth": (12, 13, 14),
        "num_heads": (5, 6, 7),
        "mlp_ratio": (3.0, 3.5, 4.0),
    },
    "B": {
        "embed_dim": (528, 576, 624),
        "depth": (14, 15, 16),
        "num_heads": (9, 10),
        "mlp_ratio": (3.0, 3.5, 4.0),
    },
}


def _arch(width: int, heads: Sequence[int], ratios: Sequence[float]) -> Arch:
    return {
        "embed_dim": width,
        "depth": len(heads),
        "num_heads": list(heads),
        "mlp_ratio": list(ratios),
    }


# The networks the papers evaluate, as their released configurations list them.
PUBLISHED: Mapping[str, Arch] = {
    "AutoFormer-T": _arch(
        192,
        (3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 3, 3),
        (3.5, 3.5, 3.0, 3.5, 3.0, 3.0, 4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 3.5),
    ),
    "TF-TAS-T": _arch(
        192,
        (4, 3, 3, 3, 3, 4, 4, 3, 3, 3, 4, 3, 3),
        (3.5, 4.0, 3.5, 3.5, 4.0, 3.5, 3.5, 3.5, 4.0, 4.0, 4.0, 4.0, 3.5),
    ),
    "AutoFormer-S": _arch(
        384,
        (6, 6, 5, 7, 5, 5, 5, 6, 6, 7, 7, 6, 7),
        (3.0, 3.5, 3.0, 3.5, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.5, 4.0),
    ),
    "TF-TAS-S": _arch(
        384,
        (6, 6, 6, 6, 7, 6, 5, 7, 5, 5, 5, 7, 6, 7),
        (4.0, 4.0, 4.0, 3.0, 4.0, 3.0, 3.0, 3.5, 4.0, 3.5, 3.5, 4.0, 3.0, 3.5),
    ),
    "AutoFormer-B": _arch(
        576,
        (9, 9, 9, 9, 9, 10, 9, 9, 10, 9, 10, 9, 9, 10),
        (3.5, 3.5, 4.0, 3.5, 4.0, 3.5, 3.5, 3.0, 4.0, 4.0, 3.0, 4.0, 3.0, 3.5),
    ),
    "TF-TAS-B": _arch(
        576,
        (9, 10, 10, 10, 10, 10, 10, 9, 9, 10, 9, 9, 9, 9, 9),
        (3.0, 3.5, 4.0, 4.0, 3.0, 4.0, 3.0, 3.0, 3.5, 3.0, 3.0, 3.5, 4.0, 3.0, 4.0),
    ),
}


def autoformer(
    variant: str = "T",
    *,
    image_size: int | tuple[int, int] = 224,
    patch_size: int = 16,
    num_classes: int = 1000,
    drop_path: float = 0.1,
    options: Mapping[str, Sequence[Any]] | None = None,
    **network: Any,
) -> Supernet:
    """The super-network of AutoFormer's space ``variant``.

    Args:
      variant: ``"T"``, ``"S"`` or ``"B"``.
      image_size: side of the images in pixels, or (height, width).
      patch_size: side of a patch in pixels.
      num_classes: number of classes.
      drop_path: stochastic depth of the deepest block; it grows linearly from 0.
      options: choices to replace, e.g. ``{"mlp_ratio": (3.0, 3.5, 4.0)}``: the published
        subnet-T uses a ratio of 3.0, which its own space lacks.
      **network: further arguments of :func:`vision_transformer`.

    Raises:
      SpaceError: if the variant or an option's name is unknown.
    """
    if variant not in OPTIONS:
        raise SpaceError(f"no AutoFormer space {variant!r}; {did_you_mean(variant, OPTIONS)}")
    chosen = {**OPTIONS[variant], **(options or {})}
    published = {n: a for n, a in PUBLISHED.items() if n.endswith(f"-{variant}")}
    return vision_transformer(
        chosen,
        title=f"autoformer_{variant.lower()}",
        image_size=image_size,
        patch_size=patch_size,
        num_classes=num_classes,
        drop_path=drop_path,
        published=published,
        **network,
    )


def quickstart(
    *,
    image_size: int = 8,
    patch_size: int = 2,
    num_classes: int = 10,
    channels: int = 1,
    **network: Any,
) -> Supernet:
    """A small space for the embedded digits, searched in minutes on two cores."""
    options = {
        "embed_dim": (16, 32, 48),
        "depth": (1, 2, 3, 4),
        "num_heads": (2, 3, 4),
        "mlp_ratio": (1.0, 2.0, 4.0),
    }
    return vision_transformer(
        options,
        title="quickstart",
        image_size=image_size,
        patch_size=patch_size,
        num_classes=num_classes,
        channels=channels,
        **{"head_dim": 12, "reach": 3, "init_std": None, **network},
    )


def vision_transformer(
    options: Mapping[str, Sequence[Any]],
    *,
    title: str = "vision_transformer",
    image_size: int | tuple[int, int],
    patch_size: int,
    num_classes: int,
    channels: int = 3,
    head_dim: int = 64,
    fixed_qkv: int | None = None,
    reach: int = 14,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    published: Mapping[str, Arch] | None = None,
    **fields: Any,
) -> Supernet:
    """A super-network over vision transformers with the four choices of AutoFormer.

    Args:
      options: values of ``embed_dim``, ``depth``, ``num_heads`` and ``mlp_ratio``.
      title: name of the space, in files and messages.
      image_size: side of the images in pixels, or (height, width).
      patch_size: side of a patch in pixels.
      num_classes: number of classes.
      channels: channels of the images.
      head_dim: channels of a head.
      fixed_qkv: AutoFormer without ``change_qkv``: queries, keys and values always have this
        many channels, and the number of heads only says how they are split. Such networks can be
        built and counted but not superposed.
      reach: distance of relative positions in patches; 0 for none.
      dropout: rate at the largest width; a narrower network drops in proportion.
      drop_path: stochastic depth of the deepest block; it grows linearly from 0.
      published: named architectures.
      **fields: further fields of :class:`~nasjax.models.vit.VisionTransformer`.

    Raises:
      SpaceError: if ``options`` names anything but the four choices.
    """
    unknown = sorted(set(options) - set(OPTIONS["T"]))
    if unknown:
        raise SpaceError(
            f"{unknown[0]!r} is no choice here; {did_you_mean(unknown[0], OPTIONS['T'])}"
        )
    if fixed_qkv is not None and reach and len(set(options["num_heads"])) > 1:
        raise SpaceError(
            "relative positions need heads of one size, but with fixed_qkv their size depends on "
            "their number; set reach=0."
        )
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    space = SearchSpace(
        title,
        choices=(
            Choice("embed_dim", tuple(options["embed_dim"])),
            Choice("depth", tuple(options["depth"])),
            Choice("num_heads", tuple(options["num_heads"]), per="blocks"),
            Choice("mlp_ratio", tuple(options["mlp_ratio"]), per="blocks"),
        ),
        axes={
            "embed": "embed_dim",
            "residual": lambda embed_dim, depth, layer: embed_dim * (layer < depth),
            "mlp": lambda embed_dim, mlp_ratio: int(embed_dim * mlp_ratio),
            "blocks": "depth",
            **_qkv_axes(head_dim, fixed_qkv),
        },
    )
    widest, deepest = max(options["embed_dim"]), max(options["depth"])
    rates = tuple(float(r) for r in np.linspace(0, drop_path, deepest)) if drop_path else ()

    def network(arch: Arch) -> VisionTransformer:
        heads = tuple(arch["num_heads"])
        sizes: dict[str, Any] = {"head_dim": head_dim}
        if fixed_qkv is not None:
            sizes = {
                "head_dim": tuple(fixed_qkv // h for h in heads),
                "attention_scale": tuple((arch["embed_dim"] // h) ** -0.5 for h in heads),
            }
        return VisionTransformer(
            num_classes=num_classes,
            embed_dim=arch["embed_dim"],
            depth=arch["depth"],
            num_heads=heads,
            mlp_dim=tuple(int(arch["embed_dim"] * r) for r in arch["mlp_ratio"]),
            patch_size=patch_size,
            reach=reach,
            dropout=dropout * (arch["embed_dim"] / widest),
            drop_path=rates[: arch["depth"]],
            **{**sizes, **fields},
        )

    heads = max(options["num_heads"])
    split = head_dim if fixed_qkv is None else fixed_qkv // heads
    module = VisionTransformer(
        num_classes=num_classes,
        embed_dim=widest,
        depth=deepest,
        num_heads=heads,
        mlp_dim=int(widest * max(options["mlp_ratio"])),
        patch_size=patch_size,
        head_dim=split,
        reach=reach,
        dropout=dropout,
        drop_path=rates,
        **fields,
    )

    def of_width(embed_dim: Any) -> Supernet:
        return vision_transformer(
            {**options, "embed_dim": (embed_dim,)},
            title=title,
            image_size=image_size,
            patch_size=patch_size,
            num_classes=num_classes,
            channels=channels,
            head_dim=head_dim,
            fixed_qkv=fixed_qkv,
            reach=reach,
            dropout=dropout * (embed_dim / widest),
            drop_path=drop_path,
            **fields,
        )

    grid = (height // patch_size, width // patch_size)
    patches = grid[0] * grid[1]
    pixels = channels * patch_size**2
    costs = {
        "flops": multiply_adds(grid, pixels, num_classes, split if reach else None),
        "flops_autoformer": autoformer_flops(patches, pixels, num_classes, reach),
        "params_autoformer": autoformer_params(
            patches, pixels, num_classes, reach, split, module.qkv_bias
        ),
    }
    return Supernet(
        space,
        module,
        network,
        (height, width, channels),
        costs=costs,
        published=published or {},
        narrowed={"embed_dim": of_width} if len(options["embed_dim"]) > 1 else {},
    )


def _qkv_axes(head_dim: int, fixed: int | None) -> dict[str, Any]:
    def width(num_heads: int) -> int:
        return head_dim * num_heads

    if fixed is not None:
        return {"heads": fixed, "qkv_bias": 3 * fixed}
    # The released code stores the biases of queries, keys and values end to end and reads the
    # first 3 * width of them, so a smaller number of heads sees them elsewhere than a larger one.
    return {"heads": width, "qkv_bias": Axis(lambda num_heads: 3 * width(num_heads), put=_thirds)}


def _thirds(length: int, size: int) -> np.ndarray:
    return np.concatenate([np.arange(length // 3) + part * (size // 3) for part in range(3)])


def multiply_adds(
    grid: tuple[int, int], pixels: int, classes: int, head_dim: int | None
) -> list[Term]:
    """Exact multiply-adds of one image: every matrix product of the network, nothing else.

    Args:
      grid: rows and columns of patches.
      pixels: values of a patch.
      classes: of the head.
      head_dim: channels of a head with relative positions; None without these.
    """
    patches = grid[0] * grid[1]
    tokens = patches + 1
    attention: float | Fraction = 2 * tokens**2
    if head_dim is not None:  # queries with their vectors, and those sums with the keys' places
        places = 2 + sum(grid)
        attention += 2 * tokens * places + Fraction(2 * tokens**2 * places, head_dim)
    return [
        Term(patches * pixels, ("embed",)),
        Term(3 * tokens, ("embed", "heads"), "blocks"),
        Term(attention, ("heads",), "blocks"),
        Term(tokens, ("heads", "embed"), "blocks"),
        Term(2 * tokens, ("embed", "mlp"), "blocks"),
        Term(classes, ("embed",)),
    ]


def autoformer_flops(patches: int, pixels: int, classes: int, reach: int) -> list[Term]:
    """FLOPs as AutoFormer's released code counts them, in multiply-adds.

    It counts one token too many inside the blocks and the head for every token, and leaves out
    the final normalisation; papers on these spaces report this number.
    """
    tokens = patches + 2
    terms = [
        Term(1 + patches * pixels + (patches + 1) / 2, ("embed",)),
        Term(2 * tokens, ("embed",), "blocks"),
        Term(3 * tokens, ("embed", "heads"), "blocks"),
        Term(2 * tokens**2, ("heads",), "blocks"),
        Term(tokens, ("heads", "embed"), "blocks"),
        Term(2 * tokens, ("embed", "mlp"), "blocks"),
        Term((patches + 1) * classes, ("embed",)),
    ]
    if reach:
        terms.append(Term(2 * reach * tokens**2 + tokens**2 / 2, (), "blocks"))
        terms.append(Term(tokens / 2, ("heads",), "blocks"))
    return terms


def autoformer_params(
    patches: int, pixels: int, classes: int, reach: int, head_dim: int, qkv_bias: bool
) -> list[Term]:
    """Parameters as AutoFormer's released code counts them.

    It always counts the table of absolute positions, even in a network without one; otherwise
    this is the number of parameters.
    """
    tables = 4 * (2 * reach + 2) * head_dim if reach else 0
    return [
        Term(pixels + 1 + (patches + 2) + 2 + classes, ("embed",)),
        Term(classes),
        Term(3, ("embed", "heads"), "blocks"),
        Term(3 * qkv_bias, ("heads",), "blocks"),
        Term(1, ("heads", "embed"), "blocks"),
        Term(2, ("embed", "mlp"), "blocks"),
        Term(1, ("mlp",), "blocks"),
        Term(6, ("embed",), "blocks"),
        Term(tables, (), "blocks"),
    ]
