"""The PiT spaces T, XS and S of TF-TAS: transformers in three stages with pooling between them.

Source: Zhou et al., "Training-free Transformer Architecture Search" (CVPR 2022), section 4.3 and
released configurations; the networks of Heo et al. (ICCV 2021) lie in them. Chosen for the
network: channels of a head and the ratio of the perceptron's hidden width; for each stage: depth
and heads. Each stage is a multiple as wide as the one before.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nasjax.core.architecture import Arch
from nasjax.core.cost import Term
from nasjax.core.errors import SpaceError, did_you_mean
from nasjax.core.space import Axis, Choice, Decoding, Length, SearchSpace
from nasjax.core.supernet import Supernet
from nasjax.models.pit import PiT

STAGES = 3
OPTIONS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    variant: {
        "base_dim": base_dim,
        "mlp_ratio": (2, 4, 6, 8),
        **{f"heads_{stage}": heads for stage in range(STAGES)},
        "depth_0": (1, 2, 3),
        "depth_1": (4, 6, 8),
        "depth_2": (2, 4, 6),
    }
    for variant, base_dim, heads in (
        ("T", (16, 24, 32, 40), (2, 4, 8)),
        ("XS", (40, 48, 56, 64), (2, 4, 8)),
        ("S", (36, 48, 60, 72), (3, 6, 12)),
    )
}


def _arch(base_dim: int, ratio: int, heads: Sequence[int], depth: Sequence[int]) -> Arch:
    return {
        "base_dim": base_dim,
        "mlp_ratio": ratio,
        **{f"heads_{stage}": number for stage, number in enumerate(heads)},
        **{f"depth_{stage}": number for stage, number in enumerate(depth)},
    }


# TF-TAS's searched networks (Table 2), and PiT's own.
PUBLISHED: Mapping[str, Mapping[str, Arch]] = {
    "T": {
        "TF-TAS-T": _arch(40, 2, (2, 4, 8), (2, 4, 4)),
        "PiT-Ti": _arch(32, 4, (2, 4, 8), (2, 6, 4)),
    },
    "XS": {
        "TF-TAS-XS": _arch(56, 2, (2, 8, 8), (1, 4, 2)),
        "PiT-XS": _arch(48, 4, (2, 4, 8), (2, 6, 4)),
    },
    "S": {
        "TF-TAS-S": _arch(36, 6, (3, 12, 12), (1, 4, 4)),
        "PiT-S": _arch(48, 4, (3, 6, 12), (2, 6, 4)),
    },
}


def pit(
    variant: str = "T",
    *,
    image_size: int = 224,
    patch_size: int = 16,
    stride: int = 8,
    num_classes: int = 1000,
    channels: int = 3,
    drop_path: float = 0.1,
    options: Mapping[str, Sequence[int]] | None = None,
    **fields: Any,
) -> Supernet:
    """The super-network of TF-TAS's PiT space ``variant``.

    Args:
      variant: ``"T"``, ``"XS"`` or ``"S"``.
      image_size: side of the images in pixels.
      patch_size: side of a patch in pixels.
      stride: distance of neighbouring patches in pixels.
      num_classes: number of classes.
      channels: channels of the images.
      drop_path: stochastic depth; of block ``i`` of ``n`` it is ``drop_path * i / n``.
      options: choices to replace: ``base_dim``, ``mlp_ratio``, ``heads_0`` to ``heads_2`` and
        ``depth_0`` to ``depth_2``.
      **fields: further fields of :class:`~nasjax.models.pit.PiT`.

    Raises:
      SpaceError: if the variant or an option's name is unknown, images are smaller than a patch,
        or no heads divide one another.
    """
    if variant not in OPTIONS:
        raise SpaceError(f"no PiT space {variant!r}; {did_you_mean(variant, OPTIONS)}")
    for name in options or ():
        if name not in OPTIONS[variant]:
            raise SpaceError(f"{name!r} is no choice here; {did_you_mean(name, OPTIONS[variant])}")
    if image_size < patch_size:
        raise SpaceError(
            f"images of {image_size} pixels are smaller than a patch of {patch_size}; enlarge them."
        )
    chosen = {n: tuple(o) for n, o in {**OPTIONS[variant], **(options or {})}.items()}
    heads = [chosen[f"heads_{stage}"] for stage in range(STAGES)]
    chains = [
        chain
        for chain in itertools.product(*heads)
        if all(after % before == 0 for before, after in itertools.pairwise(chain))
    ]
    if not chains:
        raise SpaceError(
            f"of heads {heads} none divide one another, as the heads of a stage must those of the "
            "next."
        )
    growths = tuple(
        tuple(sorted({chain[stage + 1] // chain[stage] for chain in chains}))
        for stage in range(STAGES - 1)
    )
    choices = tuple(Choice(name, values) for name, values in chosen.items())
    free = [len(c.options) for c in choices if not c.name.startswith("heads_")]
    space = SearchSpace(
        f"pit_{variant.lower()}",
        choices,
        _axes(growths),
        stacks=tuple(f"stage_{stage}" for stage in range(STAGES)),
        decoding=_decoding(heads, chains),
        legal=len(chains) * int(np.prod(free)),
    )

    def build(arch: Arch, **own: Any) -> PiT:
        base, depth = arch["base_dim"], [arch[f"depth_{stage}"] for stage in range(STAGES)]
        numbers = [arch[f"heads_{stage}"] for stage in range(STAGES)]
        blocks = sum(depth)
        return PiT(
            num_classes=num_classes,
            base_dims=(base,) * STAGES,
            depth=tuple(depth),
            heads=tuple(numbers),
            mlp_dim=tuple(int(base * h * arch["mlp_ratio"]) for h in numbers),
            patch_size=patch_size,
            stride=stride,
            drop_path=tuple(drop_path * i / blocks for i in range(blocks)) if drop_path else (),
            **{**own, **fields},
        )

    largest = {name: max(values) for name, values in chosen.items()}
    standard = not options
    return Supernet(
        space,
        build(largest, weighed=True, growths=growths),
        lambda arch: build(arch, unrolled=True),
        (image_size, image_size, channels),
        costs={"flops": multiply_adds(image_size, patch_size, stride, channels, num_classes)},
        published=PUBLISHED[variant] if standard else {},
    )


def _axes(growths: Sequence[tuple[int, ...]]) -> dict[str, Axis | Length]:
    axes: dict[str, Axis | Length] = {"head_dim": "base_dim"}
    for stage in range(STAGES):
        heads, depth = f"heads_{stage}", f"depth_{stage}"
        axes |= {
            f"stage_{stage}": depth,
            heads: heads,
            f"embed_{stage}": _of(("base_dim", heads), lambda base, heads: base * heads),
            f"mlp_{stage}": _of(
                ("base_dim", heads, "mlp_ratio"),
                lambda base, heads, ratio: int(base * heads * ratio),
            ),
            f"residual_{stage}": _of(
                ("base_dim", heads, depth, "layer"),
                lambda base, heads, depth, layer: base * heads * (layer < depth),
            ),
        }
    for stage, known in enumerate(growths, start=1):

        def place(before: int, after: int, known: tuple[int, ...] = known) -> int:
            # Of heads that do not divide one another, which no network has, the first.
            growth = after // before
            return known.index(growth) + 1 if growth in known else 1

        axes[f"growth_{stage}"] = _of((f"heads_{stage - 1}", f"heads_{stage}"), place)
    return axes


def _of(names: Sequence[str], function: Callable[..., int]) -> Length:
    """``function`` of choices (and of the layer) whose names depend on the stage."""

    def length(**values: Any) -> int:
        return function(*(values[name] for name in names))

    kind = inspect.Parameter.KEYWORD_ONLY
    length.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in names]
    )
    return length


def _decoding(heads: Sequence[Sequence[int]], chains: Sequence[Sequence[int]]) -> Decoding:
    places = np.array([[o.index(h) for o, h in zip(heads, c, strict=True)] for c in chains])

    def decode(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The heads that divide one another of which the scores speak best."""
        total = sum(scores[f"heads_{stage}"][places[:, stage]] for stage in range(STAGES))
        best = places[int(np.argmax(total))]
        return {f"heads_{stage}": best[stage] for stage in range(STAGES)}

    return decode


def multiply_adds(
    image_size: int, patch_size: int, stride: int, channels: int, classes: int
) -> list[Term]:
    """Exact multiply-adds of one image: every matrix product and convolution, nothing else."""
    side = (image_size - patch_size) // stride + 1
    terms = [Term(side**2 * patch_size**2 * channels, ("embed_0",))]
    for stage in range(STAGES):
        embed, heads, mlp = f"embed_{stage}", f"heads_{stage}", f"mlp_{stage}"
        if stage:
            side = (side - 1) // 2 + 1
            terms += [
                Term(9 * side**2, (embed,)),
                Term(1, (f"embed_{stage - 1}", embed)),
            ]
        tokens, stack = side**2 + 1, f"stage_{stage}"
        terms += [
            Term(4 * tokens, (embed, heads, "head_dim"), stack),
            Term(2 * tokens**2, (heads, "head_dim"), stack),
            Term(2 * tokens, (embed, mlp), stack),
        ]
    return [*terms, Term(classes, (f"embed_{STAGES - 1}",))]
