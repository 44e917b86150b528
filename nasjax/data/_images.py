"""Host-side decoding and cropping of single images (Pillow, imported when used)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from nasjax.data.errors import DataError, require

_MODES = {1: "L", 3: "RGB"}
_CROP_SCALE = (0.08, 1.0)  # share of the image's area, Szegedy et al. 2015, section 6
_CROP_RATIO = (3 / 4, 4 / 3)  # width / height of the crop, same source
_CROP_TRIES = 10


def pillow() -> Any:
    """The module `PIL.Image`, or a `DataError` that says how to get it."""
    return require("PIL.Image", "Decoding and resizing images", "nasjax[images]")


def to_pil(image: Any, channels: int = 3) -> Any:
    """A decoded Pillow image with `channels` (1 or 3) channels.

    Args:
        image: PNG or JPEG bytes, a Pillow image, or uint8 `(height, width[, channels])`.

    Raises:
        DataError: for bytes that are no image and for arrays of other types or shapes.
    """
    if isinstance(image, bytes):
        image = _decode(image)
    elif not isinstance(image, pillow().Image):
        image = _array_to_pil(np.asarray(image))
    mode = _MODES[channels]
    return image if image.mode == mode else image.convert(mode)


def _decode(encoded: bytes) -> Any:
    try:
        image = pillow().open(io.BytesIO(encoded))
        image.load()
    except OSError as error:
        raise DataError(
            f"{len(encoded)} bytes of a record's image cannot be decoded ({error}): PNG or JPEG is "
            "expected; remove or replace the example."
        ) from error
    return image


def _array_to_pil(image: np.ndarray) -> Any:
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.dtype != np.uint8 or (image.ndim != 2 and image.shape[2:] != (3,)):
        raise DataError(
            f"A record's image is {image.dtype} of shape {image.shape}, but uint8 "
            "(height, width), (height, width, 1) or (height, width, 3) is expected."
        )
    return pillow().fromarray(image)


def to_array(image: Any) -> np.ndarray:
    """A Pillow image as uint8 `(height, width, channels)`."""
    array = np.asarray(image, np.uint8)
    return array[..., None] if array.ndim == 2 else array


def center_crop(image: Any, size: int, fraction: float = 1.0) -> np.ndarray:
    """Centred square of a Pillow image, resized to `size` pixels.

    Args:
        fraction: side of the square as a part of the image's shorter side.

    Returns:
        uint8 `(size, size, channels)`.
    """
    width, height = image.size
    side = fraction * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return _resize(image, size, (left, top, left + side, top + side))


def random_resized_crop(image: Any, size: int, rng: np.random.Generator) -> np.ndarray:
    """Random part of a Pillow image, resized to `size` pixels: uint8 `(size, size, channels)`.

    Paper: Szegedy et al. 2015, "Going Deeper with Convolutions", section 6: 8 to 100% of the
    area and an aspect ratio of 3/4 to 4/3 (here, as in torchvision and timm, log-uniform). Where
    no draw out of ten fits inside the image, the centre is taken.
    """
    width, height = image.size
    for _ in range(_CROP_TRIES):
        area = width * height * rng.uniform(*_CROP_SCALE)
        ratio = np.exp(rng.uniform(*np.log(_CROP_RATIO)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return _resize(image, size, (left, top, left + w, top + h))
    return center_crop(image, size)


def _resize(image: Any, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
    bilinear = pillow().Resampling.BILINEAR
    return to_array(image.resize((size, size), bilinear, box=box))
