"""Weights of other frameworks: reading their files, and moving between their trees and ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nasjax.core.supernet import Supernet
from nasjax.interop import autoformer, cells, nasvit, pit, vitas
from nasjax.interop.errors import WeightsError
from nasjax.interop.files import read_state_dict
from nasjax.models.nasvit import NASViT
from nasjax.models.pit import PiT
from nasjax.models.vitas import ViTAS


def import_weights(
    state_dict: Mapping[str, np.ndarray], supernet: Supernet, *, strict: bool = True
) -> dict[str, dict]:
    """Maximal variables of ``supernet`` from the authors' super-network of its space.

    Args:
      state_dict: tensors by their PyTorch names.
      supernet: of a space of :mod:`nasjax.interop.cells`, of ViTAS (:mod:`nasjax.interop.vitas`),
        NASViT (:mod:`nasjax.interop.nasvit`) or PiT (:mod:`nasjax.interop.pit`), else a vision
        transformer of :mod:`nasjax.interop.autoformer`.
      strict: whether a tensor that ``supernet`` has no place for is an error [True].

    Raises:
      WeightsError: if tensors are missing, do not fit, or have no place.
    """
    table: Any = cells if supernet.space.name in cells.SPACES else autoformer
    if isinstance(supernet.module, ViTAS):
        table = vitas
    if isinstance(supernet.module, NASViT):
        table = nasvit
    if isinstance(supernet.module, PiT):
        table = pit
    return table.import_weights(state_dict, supernet, strict=strict)


__all__ = [
    "WeightsError",
    "autoformer",
    "cells",
    "import_weights",
    "nasvit",
    "pit",
    "read_state_dict",
    "vitas",
]
