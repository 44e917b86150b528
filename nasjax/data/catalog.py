"""Datasets by name."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nasjax.data.errors import DataError, DataNotFoundError, require
from nasjax.data.folder import load_folder
from nasjax.data.idx import load_idx
from nasjax.data.prepared import COMMON_NAMES, load_prepared
from nasjax.data.sources import Dataset, Source, from_arrays
from nasjax.data.split import stratified_indices

_DIGITS_TEST = 360  # of 1797
_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")


def load(name: str, *, train_examples: int | None = None, **options: Any) -> Dataset:
    """Reads a dataset by name. Nothing is ever downloaded.

    Args:
        name: one of
            `"digits"`: scikit-learn's handwritten digits, 8x8 grey, 1437 train and 360 test;
            `"npz:PATH"`: arrays `x_train`, `y_train`, `x_test`, `y_test` as in `from_arrays`;
            `"idx:PATH"`: a folder with the four files of MNIST or Fashion-MNIST;
            `"folder:PATH"`: `PATH/train/CLASS/*.png` (or jpg) and `PATH/test` or `PATH/val`;
            `"tfds:NAME"`: prepared by tensorflow-datasets, `NAME[/CONFIG][:VERSION]`.
        train_examples: train on so many of the training examples, always the same ones, in the
            same mix of classes. [all]
        **options: of the kind of dataset; every kind takes `mean` and `std`.
            `folder`: `image_size`, `in_memory`, `channels`.
            `tfds`: `data_dir`, `image_size`, `in_memory`, `train_split`, `test_split`.

    Raises:
        DataNotFoundError: if the data is not on disk.
        DataError: for an unknown name or option, or data of an unexpected form.

    >>> load("digits").image_shape
    (8, 8, 1)
    """
    kind, colon, rest = name.partition(":")
    if kind not in _KINDS or bool(colon and rest) != (kind != "digits"):
        raise DataError(f"Unknown dataset {name!r}: {_suggest(name)}.")
    reader = _KINDS[kind]
    _, *known = inspect.signature(reader).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise DataError(
            f"{kind!r} datasets have no option {unknown[0]!r}: the options are {', '.join(known)}."
        )
    dataset = reader(rest, **options)
    return dataset if train_examples is None else _fewer(dataset, train_examples)


def _fewer(dataset: Dataset, count: int) -> Dataset:
    if not 0 < count <= len(dataset.train):
        raise DataError(
            f"train_examples is {count}, but {dataset.name!r} has {len(dataset.train)} training "
            "examples: ask for 1 to that many."
        )
    rng = np.random.RandomState(0)
    if isinstance(dataset.train, Source):
        indices, _ = stratified_indices(dataset.train.labels, count, rng)
    else:
        indices = rng.permutation(len(dataset.train))[:count]
    return dataclasses.replace(dataset, train=dataset.train.take(np.sort(indices)))


def load_digits(_: str, *, mean: Sequence[float] = (), std: Sequence[float] = ()) -> Dataset:
    """scikit-learn's digits; the test part is always the same, whatever the seed of a run."""
    images, labels = _read_digits()
    images = np.round(images * (255 / 16)).astype(np.uint8)[..., None]
    # RandomState, because numpy promises that its stream never changes; default_rng's may.
    rng = np.random.RandomState(0)
    test, train = stratified_indices(labels, _DIGITS_TEST, rng)
    return from_arrays(
        images[train],
        labels[train],
        images[test],
        labels[test],
        name="digits",
        mean=mean,
        std=std,
    )


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images ``(1797, 8, 8)`` with values from 0 to 16, and labels."""
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():  # its own loader would import the package, which takes seconds
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)
    datasets = require("sklearn.datasets", "The dataset 'digits'", "nasjax[digits]")
    digits = datasets.load_digits()
    return digits.images, digits.target


def load_npz(path: str, *, mean: Sequence[float] = (), std: Sequence[float] = ()) -> Dataset:
    """Arrays from a file written by `np.savez`."""
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise DataNotFoundError(
            f"There is no file {file}: write one with np.savez(path, {', '.join(_NPZ_KEYS)})."
        )
    with np.load(file) as arrays:
        missing = [key for key in _NPZ_KEYS if key not in arrays]
        if missing:
            raise DataError(
                f"{file} has no array {missing[0]!r}: {', '.join(_NPZ_KEYS)} are expected, "
                f"and it has {', '.join(arrays.files)}."
            )
        x_train, y_train, x_test, y_test = (arrays[key] for key in _NPZ_KEYS)
    return from_arrays(x_train, y_train, x_test, y_test, name=file.stem, mean=mean, std=std)


_KINDS: dict[str, Callable[..., Dataset]] = {
    "digits": load_digits,
    "npz": load_npz,
    "idx": load_idx,
    "folder": load_folder,
    "tfds": load_prepared,
}


def _suggest(name: str) -> str:
    if name in _KINDS and name != "digits":
        return f"write '{name}:' followed by its {'name' if name == 'tfds' else 'path'}"
    # Names people type, each with what they should have written.
    meanings = {"digits": "digits", "npz:PATH": "npz:PATH", "folder:PATH": "folder:PATH"}
    meanings |= {"npz": "npz:PATH", "folder": "folder:PATH", "tfds": "tfds:NAME"}
    meanings |= {"idx": "idx:PATH", "idx:PATH": "idx:PATH"}
    meanings |= {common: f"tfds:{common}" for common in COMMON_NAMES}
    meanings |= {f"tfds:{common}": f"tfds:{common}" for common in COMMON_NAMES}
    near = difflib.get_close_matches(name, meanings, n=1, cutoff=0.6) or difflib.get_close_matches(
        name.partition(":")[0], meanings, n=1, cutoff=0.6
    )
    forms = (
        "use 'digits', 'npz:PATH', 'folder:PATH' or 'tfds:NAME', or 'idx:PATH' for files of MNIST"
    )
    return f"did you mean {meanings[near[0]]!r}? Otherwise {forms}" if near else forms
