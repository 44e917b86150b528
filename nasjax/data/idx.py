"""The files of MNIST and of the datasets made in its image."""

from __future__ import annotations

import glob
import gzip
import itertools
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nasjax.data.errors import DataError, DataNotFoundError
from nasjax.data.sources import Dataset, from_arrays

_GZIP = b"\x1f\x8b"  # an idx file begins with two zeros
_MAGIC = {"images": 0x0803, "labels": 0x0801}  # unsigned bytes, with 3 axes and with 1
_TESTS = ("t10k", "test")  # what MNIST and EMNIST call the test part


def load_idx(path: str, *, mean: Sequence[float] = (), std: Sequence[float] = ()) -> Dataset:
    """Grey images in four idx files, those of MNIST, Fashion-MNIST, KMNIST or EMNIST.

    They are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`; with or without `.gz`, with a dot for the second hyphen
    (`train-images.idx3-ubyte`), with `test` for `t10k`. Labels are taken as they are: those of
    EMNIST's letters begin at 1, so that class 0 has no example.

    Args:
        path: their folder; followed by what their names begin with if they begin with more, for
            example `gzip/emnist-letters` for `gzip/emnist-letters-train-images-idx3-ubyte.gz`.

    Raises:
        DataNotFoundError: if a file is missing.
        DataError: if a file is no idx file, is cut short, or does not fit the others.
    """
    root = Path(os.path.abspath(os.path.expanduser(path)))
    folder, prefix = (root, "") if root.is_dir() else (root.parent, f"{root.name}-")
    if not any(folder.glob(f"{glob.escape(prefix)}*")):
        raise DataNotFoundError(
            f"There is no folder {root} with files in it: give the folder of the four idx files."
        )
    x_train, y_train = _part(folder, [f"{prefix}train"])
    x_test, y_test = _part(folder, [prefix + test for test in _TESTS])
    return from_arrays(x_train, y_train, x_test, y_test, name=root.name, mean=mean, std=std)


def _part(folder: Path, starts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the part whose files begin with one of `starts`."""
    files = {kind: _find(folder, starts, kind) for kind in _MAGIC}
    images, labels = (_read(file, kind) for kind, file in files.items())
    if len(images) != len(labels):
        raise DataError(
            f"{files['images']} has {len(images)} images, but {files['labels'].name} has "
            f"{len(labels)} labels: take both from one dataset."
        )
    return images, labels


def _find(folder: Path, starts: Sequence[str], kind: str) -> Path:
    axes = _MAGIC[kind] & 0xFF
    for start, dash, ending in itertools.product(starts, "-.", ("", ".gz")):
        file = folder / f"{start}-{kind}{dash}idx{axes}-ubyte{ending}"
        if file.is_file():
            return file
    names = " or ".join(f"{start}-{kind}-idx{axes}-ubyte" for start in starts)
    raise DataNotFoundError(
        f"There is no file {names} (with or without .gz) in {folder}: put images and labels of "
        "both parts, four files, there under their original names."
    )


def _read(file: Path, kind: str) -> np.ndarray:
    """The array of an idx file: magic number, length of each axis, bytes; big-endian."""
    data, magic = _content(file), _MAGIC[kind]
    start = 4 + 4 * (magic & 0xFF)
    found = int.from_bytes(data[:4], "big")
    if len(data) >= 4 and found != magic:
        raise DataError(
            f"{file} begins with the number {found}, but {magic}, which marks {kind} in idx files, "
            f"is expected: give the original file of the {kind}."
        )
    if len(data) < start:
        raise DataError(
            f"{file} ends after {len(data)} bytes, but its header alone has {start}: it is "
            "damaged, copy or download it again."
        )
    shape = np.frombuffer(data[4:start], ">u4").tolist()
    if len(data) - start != math.prod(shape):
        raise DataError(
            f"{file} has {len(data) - start} bytes after its header, but "
            f"{' x '.join(map(str, shape))} are announced there: it is damaged, copy or download "
            "it again."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _content(file: Path) -> bytes:
    data = file.read_bytes()
    if not data.startswith(_GZIP):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{file} cannot be decompressed ({error}): it is damaged, copy or download it again."
        ) from error
