"""AutoFormer's constructor arguments and architectures in nasjax's terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nasjax.core.supernet import Supernet
from nasjax.spaces.autoformer import vision_transformer
from tests.golden.fixture import GoldenError

# Choices by their names there and here.
CHOICES = {
    "embed_dim": "embed_dim",
    "layer_num": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
}
_ONLY = {"pre_norm": True, "scale": False}  # what nasjax does not build otherwise


def network_arguments(constructor: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``vision_transformer`` that do not depend on the space or the images."""
    for name, value in _ONLY.items():
        if constructor.get(name, value) != value:
            raise GoldenError(f"networks with {name} = {constructor[name]} are not known here.")
    return {
        "channels": constructor["in_chans"],
        "reach": constructor["max_relative_position"] if constructor["relative_position"] else 0,
        "absolute": constructor["abs_pos"],
        "pool": "mean" if constructor["gp"] else "token",
        "qkv_bias": constructor["qkv_bias"],
        "fixed_qkv": None if constructor["change_qkv"] else constructor["embed_dim"],
    }


def supernet_of(
    constructor: Mapping[str, Any], options: Mapping[str, Sequence[Any]], name: str = "golden"
) -> Supernet:
    """The super-network of ``options``, whose keys are the reference's names of the choices."""
    return vision_transformer(
        {ours: tuple(options[theirs]) for theirs, ours in CHOICES.items()},
        image_size=constructor["img_size"],
        patch_size=constructor["patch_size"],
        num_classes=constructor["num_classes"],
        **network_arguments(constructor),
    )


def arch_of(arch: Mapping[str, Any]) -> dict[str, Any]:
    """The reference's architecture in nasjax's form; entries of absent blocks are left out."""
    widths, depth = set(np.ravel(arch["embed_dim"]).tolist()), arch["layer_num"]
    if len(widths) != 1:
        raise GoldenError(f"an architecture has several widths {sorted(widths)}; one was expected.")
    return {
        "embed_dim": widths.pop(),
        "depth": depth,
        "num_heads": list(arch["num_heads"][:depth]),
        "mlp_ratio": list(arch["mlp_ratio"][:depth]),
    }


def channels_last(images: np.ndarray) -> np.ndarray:
    """Images (batch, channels, height, width) as (batch, height, width, channels)."""
    return np.moveaxis(images, 1, -1)
