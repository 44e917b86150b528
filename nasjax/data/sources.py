"""What a dataset is: examples in memory, examples read on demand, and the pair of both parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nasjax.data._checks import check_images, check_indices, check_labels
from nasjax.data._records import Records, read_examples
from nasjax.data.errors import DataError

_STATISTICS_SAMPLE = 512  # images decoded for mean and std where the data does not fit in memory


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Labelled images held in memory.

    Attributes:
        images: uint8 `(examples, height, width, channels)`.
        labels: classes from 0, any integer type, kept as int32 `(examples,)`.

    Raises:
        DataError: for another type, rank or length, or a negative label.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        check_images(images)
        check_labels(labels, len(images))
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels.astype(np.int32))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def take(self, indices: Sequence[int] | np.ndarray) -> Source:
        """The examples at `indices`, in that order (a copy)."""
        indices = check_indices(indices, len(self))
        return Source(self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSource:
    """Labelled images read one by one, for data that does not fit in memory.

    Attributes:
        records: `len(records)` examples; `records[i]` is a mapping with "image" (PNG or JPEG
            bytes, a Pillow image, or a uint8 array) and "label" (an integer from 0). Must be
            picklable to be read by worker processes.
        channels: 3 to convert images to colour, 1 to convert them to grey.
    """

    records: Records
    channels: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.records, Records):
            raise DataError(
                f"records is a {type(self.records).__name__}, but an object with __len__ and "
                '__getitem__ that returns {"image": ..., "label": ...} is expected.'
            )
        if self.channels not in (1, 3):
            raise DataError(f"channels is {self.channels}, but 1 (grey) or 3 (colour) is expected.")

    def __len__(self) -> int:
        return len(self.records)

    def take(self, indices: Sequence[int] | np.ndarray) -> RecordSource:
        """The examples at `indices`, in that order (nothing is read)."""
        view = _View(self.records, check_indices(indices, len(self)))
        return dataclasses.replace(self, records=view)


@dataclasses.dataclass(frozen=True, eq=False)
class _View:
    """Some of the records, in a given order."""

    records: Records
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        return self.records[int(self.indices[index])]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A classification dataset: two parts and the numbers that models and steps need.

    Attributes:
        name: for logs and reports.
        train: examples to train and search on.
        test: examples kept for the final evaluation.
        num_classes: number of classes; labels are `0 .. num_classes - 1`.
        image_shape: `(height, width, channels)` of the images as loaders give them.
        mean: mean of each channel over the training images, where 255 counts as 1. [computed]
        std: standard deviation of each channel in the same unit. [computed]

    Raises:
        DataError: if shapes, labels or the lengths of `mean` and `std` do not fit together.
    """

    name: str
    train: Source | RecordSource
    test: Source | RecordSource
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            _check_part(self, part, getattr(self, part))
        if not (self.mean and self.std):
            mean, std = channel_statistics(self.train, self.image_shape[0])
            object.__setattr__(self, "mean", tuple(self.mean) or mean)
            object.__setattr__(self, "std", tuple(self.std) or std)
        channels = self.image_shape[-1]
        if len(self.mean) != channels or len(self.std) != channels:
            raise DataError(
                f"mean has {len(self.mean)} and std {len(self.std)} entries, but the images have "
                f"{channels} channels: give one number per channel, in units of 0 to 1."
            )


def channel_statistics(
    source: Source | RecordSource, image_size: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, where 255 counts as 1.

    Exact for a `Source`. For a `RecordSource` an estimate from 512 evenly spaced examples,
    centre-cropped to `image_size` pixels. A constant channel gets the deviation 1, so that
    normalising by it stays finite.
    """
    if isinstance(source, Source):
        images = source.images
    else:
        indices = np.linspace(0, len(source) - 1, min(len(source), _STATISTICS_SAMPLE)).astype(int)
        images, _ = read_examples(source.records, indices, image_size, source.channels)
    # 256 counts hold all there is to know, exactly and without a float copy of the images.
    counts = np.stack([_histogram(images[..., c]) for c in range(images.shape[-1])])
    share, values = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def from_arrays(
    x_train: np.ndarray,
    y_train: Sequence[int] | np.ndarray,
    x_test: np.ndarray,
    y_test: Sequence[int] | np.ndarray,
    name: str = "arrays",
    *,
    num_classes: int | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Dataset:
    """A dataset from arrays.

    Args:
        x_train: uint8 `(examples, height, width, channels)`, or `(examples, height, width)` for
            grey images.
        y_train: integer classes from 0, `(examples,)`.
        num_classes: [the largest label plus one]

    Raises:
        DataError: if an array has another type or shape.
    """
    train = Source(_add_channel(x_train), np.asarray(y_train))
    test = Source(_add_channel(x_test), np.asarray(y_test))
    if num_classes is None:
        num_classes = 1 + max(int(train.labels.max()), int(test.labels.max()))
    return Dataset(name, train, test, num_classes, train.image_shape, tuple(mean), tuple(std))


def _add_channel(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    return images[..., None] if images.ndim == 3 else images


def _histogram(channel: np.ndarray, chunk: int = 1 << 24) -> np.ndarray:
    # bincount widens its input to 64 bits, so it is fed in pieces.
    flat = channel.reshape(-1)
    pieces = range(0, flat.size, chunk)
    return np.sum([np.bincount(flat[i : i + chunk], minlength=256) for i in pieces], axis=0)


def _check_part(dataset: Dataset, part: str, source: Source | RecordSource) -> None:
    if not isinstance(source, Source | RecordSource):
        raise DataError(
            f"{part} of {dataset.name!r} is a {type(source).__name__}, but a Source or a "
            "RecordSource is expected: nasjax.data.from_arrays makes them from arrays."
        )
    if len(source) == 0:
        raise DataError(f"{part} of {dataset.name!r} has no example, but at least one is expected.")
    if isinstance(source, RecordSource):
        return  # reading every record to check it would cost an epoch
    if source.image_shape != tuple(dataset.image_shape):
        raise DataError(
            f"{part} images of {dataset.name!r} have shape {source.image_shape}, but "
            f"{tuple(dataset.image_shape)} is expected: both parts must have one shape."
        )
    if source.labels.max() >= dataset.num_classes:
        raise DataError(
            f"{part} labels of {dataset.name!r} go up to {source.labels.max()}, but num_classes is "
            f"{dataset.num_classes}: give num_classes of at least {source.labels.max() + 1}."
        )
