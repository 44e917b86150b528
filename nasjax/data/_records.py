"""Random access to labelled images, and reading some of them into arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import numpy as np

from nasjax.data._images import center_crop, to_array, to_pil
from nasjax.data.errors import DataError


@runtime_checkable
class Records(Protocol):
    """Random access to examples: `records[i]` is a mapping with "image" and "label"."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


def read_examples(
    records: Records,
    indices: Iterable[int],
    size: int | None,
    channels: int,
    fraction: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes some records in threads (Pillow releases the lock), centre-cropped to `size`.

    Args:
        size: side in pixels, or None to keep the images as they are.

    Returns:
        Images uint8 `(examples, height, width, channels)` and labels int32.

    Raises:
        DataError: if `size` is None and the images differ in shape.
    """

    def read(index: int) -> tuple[np.ndarray, int]:
        example = records[int(index)]
        image = to_pil(example["image"], channels)
        array = to_array(image) if size is None else center_crop(image, size, fraction)
        return array, int(example["label"])

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        images, labels = zip(*pool.map(read, indices), strict=True)
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise DataError(
            f"The images differ in shape, from {shapes[0]} to {shapes[-1]}: give image_size=PIXELS "
            "to crop and resize them all."
        )
    return np.stack(images), np.asarray(labels, np.int32)
