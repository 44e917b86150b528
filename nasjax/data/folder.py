"""Images in one folder per class."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nasjax.data._images import pillow, to_array, to_pil
from nasjax.data._records import read_examples
from nasjax.data.errors import DataError, DataNotFoundError
from nasjax.data.sources import Dataset, RecordSource, Source

IN_MEMORY_BYTES = 2 << 30  # what is kept in memory when nobody says otherwise
_SUFFIXES = {".png", ".jpg", ".jpeg"}


@dataclasses.dataclass(frozen=True, eq=False)
class FileRecords:
    """Encoded images read from files on demand.

    Attributes:
        paths: files of the examples.
        labels: class of each.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        return {"image": Path(self.paths[index]).read_bytes(), "label": self.labels[index]}


def load_folder(
    path: str,
    *,
    image_size: int | None = None,
    in_memory: bool | None = None,
    channels: int = 3,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Dataset:
    """Images from `path/train/CLASS/` and `path/test/CLASS/` (or `path/val/CLASS/`).

    Classes are numbered in the alphabetical order of their folders in `train`.

    Args:
        image_size: side in pixels; larger or smaller images are cropped to their centred square
            and resized. [all images must have one shape, which is kept]
        in_memory: whether to decode everything now; otherwise files are read when needed and
            training crops are random. [whether it takes less than 2 GiB]
        channels: 3 for colour, 1 for grey.

    Raises:
        DataNotFoundError: if a folder is missing or holds no images.
        DataError: if the images differ in shape and no `image_size` is given.
    """
    root = Path(os.path.expanduser(path))
    train_folder, test_folder = _part_folders(root)
    classes = _class_names(train_folder)
    train = RecordSource(_list_images(train_folder, classes), channels)
    test = RecordSource(_list_images(test_folder, classes), channels)
    return assemble(root.name, train, test, len(classes), image_size, in_memory, (mean, std))


def assemble(
    name: str,
    train: RecordSource,
    test: RecordSource,
    num_classes: int,
    image_size: int | None,
    in_memory: bool | None,
    statistics: tuple[Sequence[float], Sequence[float]],
) -> Dataset:
    """Makes a dataset of records, read into memory now or left on disk."""
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size is {image_size}, but a number of pixels from 1 is expected.")
    shape = _image_shape(train, image_size)
    if in_memory is None:
        in_memory = math.prod(shape) * (len(train) + len(test)) < IN_MEMORY_BYTES
    mean, std = tuple(statistics[0]), tuple(statistics[1])
    if in_memory:
        inside = _read(train, image_size)
        shape = inside.image_shape
        return Dataset(name, inside, _read(test, image_size), num_classes, shape, mean, std)
    if image_size is None:
        raise DataError(
            f"{name!r} is read from disk while training and its images may differ in shape: give "
            "image_size=PIXELS, for example image_size=224."
        )
    return Dataset(name, train, test, num_classes, shape, mean, std)


def _image_shape(source: RecordSource, image_size: int | None) -> tuple[int, int, int]:
    if image_size is not None:
        return image_size, image_size, source.channels
    image = to_pil(source.records[0]["image"], source.channels)
    height, width, channels = to_array(image).shape
    return height, width, channels


def _read(source: RecordSource, image_size: int | None) -> Source:
    return Source(*read_examples(source.records, range(len(source)), image_size, source.channels))


def _part_folders(root: Path) -> tuple[Path, Path]:
    train = root / "train"
    tests = [root / part for part in ("test", "val") if (root / part).is_dir()]
    if not train.is_dir() or not tests:
        missing = "train" if not train.is_dir() else "test or val"
        raise DataNotFoundError(
            f"There is no folder {missing} in {root}: put the images of each class into "
            "train/CLASS/ and test/CLASS/ (or val/CLASS/)."
        )
    return train, tests[0]


def _class_names(train: Path) -> list[str]:
    classes = [p.name for p in train.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if not classes:
        raise DataNotFoundError(
            f"There are no class folders in {train}: put the images of each class into a folder "
            "named after the class."
        )
    return sorted(classes)


def _list_images(part: Path, classes: Sequence[str]) -> FileRecords:
    pillow()  # says what is missing before a long listing, not after it
    numbers = {name: label for label, name in enumerate(classes)}
    strangers = sorted(
        p.name for p in part.iterdir() if p.is_dir() and p.name not in numbers and p.name[0] != "."
    )
    if strangers:
        raise DataError(
            f"The class {strangers[0]!r} in {part} is not among the classes to train on "
            f"({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}): rename or remove it."
        )
    found = [
        (str(file), label)
        for name, label in numbers.items()
        for file in sorted((part / name).glob("*"))
        if file.suffix.lower() in _SUFFIXES
    ]
    if not found:
        raise DataNotFoundError(f"There are no .png, .jpg or .jpeg images in {part}/CLASS/.")
    paths, labels = zip(*found, strict=True)
    return FileRecords(paths, labels)
