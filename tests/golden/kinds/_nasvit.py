"""NASViT's spaces as their constructors and architectures describe them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from nasjax.core.supernet import Supernet
from nasjax.models.inverted_residual import ConvNorm, InvertedResidual
from nasjax.models.talking_attention import TransformerBlock
from nasjax.spaces.hybrid import Stage
from nasjax.spaces.nasvit import nasvit
from tests.golden.fixture import Fixture

STAGES = tuple(f"mb{i}" for i in range(1, 8))
TRANSFORMERS = STAGES[3:]
_BLOCKS = (ConvNorm, InvertedResidual, TransformerBlock)
_PER_STAGE = {"depth": "depth", "kernel": "kernel_size", "expansion": "expand_ratio"}


def described(fixture: Fixture) -> bool:
    """Whether the constructor is one of NASViT's."""
    return "supernet_config" in fixture.constructor


def supernet(fixture: Fixture) -> Supernet:
    """The super-network of their constructor."""
    config = fixture.constructor["supernet_config"]
    stages = tuple(
        Stage(
            name,
            width=tuple(config[name]["c"]),
            depth=tuple(config[name]["d"]),
            kernel=tuple(config[name]["k"]),
            expansion=tuple(config[name]["t"]),
            squeeze=config[name]["se"],
            stride=config[name]["s"],
            transformer=name in TRANSFORMERS,
        )
        for name in STAGES
    )
    return nasvit(
        stages,
        first=config["first_conv"]["c"],
        last=config["last_conv"]["c"],
        resolutions=config["resolutions"],
        num_classes=fixture.constructor["n_classes"],
    )


def architecture(net: Supernet, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """An architecture of theirs; what the space does not choose is left out."""
    widths = ("first", *STAGES, "last")
    found = {f"{name}_width": w for name, w in zip(widths, theirs["width"], strict=True)}
    found["resolution"] = theirs["resolution"]
    for ours, name in _PER_STAGE.items():
        found |= {f"{s}_{ours}": o for s, o in zip(STAGES, theirs[name], strict=True)}
    return net.architecture({name: found[name] for name in net.space.by_name})


def images(fixture: Fixture, tag: str) -> np.ndarray:
    """The input called ``tag``, channels last."""
    return np.ascontiguousarray(np.moveaxis(fixture.input(tag), 1, -1))


def by_block(module: nn.Module, variables: Any, x: Any) -> tuple[Any, dict[str, Any]]:
    """Outputs of a network alone and of its blocks, each block compiled by itself.

    Networks have equal blocks, which are so compiled once for all.
    """
    found = {}

    def run(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        block, root = context.module, context.module
        while isinstance(root.parent, nn.Module):
            root = root.parent
        if root is block or isinstance(root, _BLOCKS) or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        y = (
            _program(block.clone(parent=None, name=None))(dict(block.variables), args[0])
            if isinstance(block, _BLOCKS)
            else next_fun(*args, **kwargs)
        )
        found[block.name] = y
        return y

    with nn.intercept_methods(run):
        return module.apply(variables, x), found


@functools.cache
def _program(block: nn.Module) -> Any:
    return jax.jit(lambda variables, x: block.apply(variables, x, False))
