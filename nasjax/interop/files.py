"""Files of weights: safetensors and PyTorch checkpoints, as NumPy arrays by name."""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from nasjax.interop.errors import WeightsError

_WRAPPERS = ("model", "state_dict")  # keys under which training scripts save the weights
_PARALLEL = "module."  # what data-parallel wrappers prepend to every name


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a ``.safetensors``, ``.pth`` or ``.pt`` file.

    A checkpoint that holds its weights under ``"model"`` or ``"state_dict"`` is unwrapped, and
    the prefix ``"module."`` of data-parallel training is taken off. No code in the file is run.

    Args:
      path: the file. safetensors need ``nasjax[safetensors]``, the others ``nasjax[torch]``.

    Returns:
      NumPy arrays by name; bfloat16 and float16 become float32.

    Raises:
      WeightsError: if the file is not there, is of another kind or cannot be read, or a package
        that reads it is not installed.
    """
    path = pathlib.Path(path)
    if path.suffix not in _READERS:
        raise WeightsError(
            f"{path} is no file of weights known here; it should end in {', '.join(_READERS)}."
        )
    if not path.is_file():
        raise WeightsError(f"there is no file {path}; give the path of a file of weights.")
    tensors = _READERS[path.suffix](path)
    if not tensors:
        raise WeightsError(f"{path} holds no tensors by name; is it a checkpoint of a network?")
    return {name.removeprefix(_PARALLEL): _plain(tensor) for name, tensor in tensors.items()}


def _plain(tensor: np.ndarray) -> np.ndarray:
    """NumPy's own dtypes only: half precisions, which few tools take, are widened."""
    if tensor.dtype == np.float16 or tensor.dtype.name == "bfloat16":
        return tensor.astype(np.float32)
    return tensor


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    safetensors = _require("safetensors", path, "safetensors")
    try:
        return _require("safetensors.numpy", path, "safetensors").load_file(path)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is no readable safetensors file ({error}).") from error


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    torch = _require("torch", path, "torch")
    try:
        # Training scripts save their command line beside the weights; it is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many kinds for files it cannot read
        raise WeightsError(
            f"{path} is no readable PyTorch file of weights ({_first_sentence(error)})."
        ) from error
    tensors = {}
    for name, value in _unwrapped(content).items():
        if isinstance(value, torch.Tensor):
            value = value.detach()
            tensors[name] = (value.float() if value.is_floating_point() else value).numpy()
    return tensors


def _unwrapped(content: Any) -> Mapping[str, Any]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            return content[key]
    return content if isinstance(content, Mapping) else {}


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(".")


def _require(module: str, path: pathlib.Path, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise WeightsError(
            f"reading {path} needs the package {extra}, which is not installed: "
            f'run pip install "nasjax[{extra}]".'
        ) from error


_READERS = {".safetensors": _read_safetensors, ".pth": _read_torch, ".pt": _read_torch}
