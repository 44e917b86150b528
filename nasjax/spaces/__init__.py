"""Published search spaces by name; one file for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nasjax.core.errors import SpaceError, did_you_mean
from nasjax.core.supernet import Supernet
from nasjax.spaces.autoformer import autoformer, quickstart, vision_transformer
from nasjax.spaces.darts import darts
from nasjax.spaces.nas_bench_201 import nas_bench_201
from nasjax.spaces.nasvit import nasvit, nasvit_paper
from nasjax.spaces.pit import pit
from nasjax.spaces.toy_cell import toy_cell
from nasjax.spaces.toy_conv_macro import toy_conv_macro
from nasjax.spaces.vitas import vitas

SPACES: Mapping[str, Callable[..., Supernet]] = {
    "autoformer": autoformer,
    "darts": darts,
    "nas_bench_201": nas_bench_201,
    "nasvit": nasvit,
    "nasvit_paper": nasvit_paper,
    "pit": pit,
    "quickstart": quickstart,
    "toy_cell": toy_cell,
    "toy_conv_macro": toy_conv_macro,
    "vision_transformer": vision_transformer,
    "vitas": vitas,
}


def make(name: str, **arguments: Any) -> Supernet:
    """The super-network of the space called ``name``.

    Args:
      name: one of ``SPACES``.
      **arguments: of the function that builds it.

    Raises:
      SpaceError: if there is no such space, or it takes no such argument.
    """
    if name not in SPACES:
        raise SpaceError(f"no space {name!r}; {did_you_mean(name, SPACES)}")
    try:
        return SPACES[name](**arguments)
    except TypeError as error:  # an argument that neither the space nor its module knows
        raise SpaceError(f"space {name!r} cannot be built so: {error}.") from None


__all__ = [
    "SPACES",
    "autoformer",
    "darts",
    "make",
    "nas_bench_201",
    "nasvit",
    "nasvit_paper",
    "pit",
    "quickstart",
    "toy_cell",
    "toy_conv_macro",
    "vision_transformer",
    "vitas",
]
