"""Checks of arrays given by users; each failure is one sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nasjax.data.errors import DataError


def check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8:
        raise DataError(
            f"images are {images.dtype}, but uint8 from 0 to 255 is expected: "
            "scale, round and convert them, for example (255 * x).round().astype('uint8')."
        )
    if images.ndim != 4 or 0 in images.shape:
        raise DataError(
            f"images have shape {images.shape}, but (examples, height, width, channels) with no "
            "empty axis is expected."
        )


def check_labels(labels: np.ndarray, examples: int) -> None:
    if labels.ndim != 1 or len(labels) != examples:
        raise DataError(
            f"labels have shape {labels.shape}, but ({examples},), one class per image, is "
            "expected: use reshape(-1) on a column and argmax(-1) on one-hot labels."
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise DataError(
            f"labels are {labels.dtype} from {labels.min()}, but integer classes from 0 are "
            "expected: number the classes, for example with np.unique(y, return_inverse=True)."
        )


def check_indices(indices: Sequence[int] | np.ndarray, length: int) -> np.ndarray:
    array = np.asarray(indices)
    if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"indices have shape {array.shape} and type {array.dtype}, but a non-empty list of "
            "integers is expected."
        )
    if array.min() < 0 or array.max() >= length:
        raise DataError(
            f"indices run from {array.min()} to {array.max()}, but the source has {length} "
            f"examples: use 0 to {length - 1}."
        )
    return array
