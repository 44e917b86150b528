"""Datasets prepared on disk by tensorflow-datasets, read without TensorFlow."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nasjax.data.errors import DataError, DataNotFoundError, require
from nasjax.data.folder import assemble
from nasjax.data.sources import Dataset, RecordSource

COMMON_NAMES = (
    "caltech101",
    "cars196",
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "food101",
    "imagenet2012",
    "mnist",
    "oxford_flowers102",
    "oxford_iiit_pet",
    "stl10",
    "svhn_cropped",
)
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_TEST_SPLITS = ("test", "validation", "val")


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedRecords:
    """Examples of a `tfds` data source under the names that nasjax uses.

    Attributes:
        source: a tensorflow-datasets data source that leaves images encoded.
        image_key: its feature that becomes "image".
        label_key: its feature that becomes "label".
    """

    source: Any
    image_key: str
    label_key: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        example = self.source[index]
        return {"image": example[self.image_key], "label": int(example[self.label_key])}


def load_prepared(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    in_memory: bool | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Dataset:
    """A prepared dataset `NAME[/CONFIG][:VERSION]`; the latest version if none is given.

    Args:
        data_dir: where it was prepared. [$TFDS_DATA_DIR, else ~/tensorflow_datasets]
        image_size: side in pixels, for images that differ in shape or should be resized.
        in_memory: whether to decode everything now. [whether the images have one shape, declared
            by the dataset, and take less than 2 GiB]
        train_split: split to train on; slices such as "train[:90%]" are allowed.
        test_split: split to evaluate on. [the first labelled one of test, validation, val]

    Raises:
        DataNotFoundError: if it is not prepared in `data_dir`.
        DataError: if it was prepared in a format without random access, or has no images,
            labels or such split.
    """
    tfds = require("tensorflow_datasets", f"The dataset 'tfds:{name}'", "tensorflow-datasets")
    root = Path(os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR))
    builder = tfds.builder_from_directory(_find(name, root))
    image_key, label_key = _feature_keys(tfds, builder)
    features = builder.info.features
    image_feature, num_classes = features[image_key], features[label_key].num_classes
    channels = 1 if image_feature.shape[-1] == 1 else 3

    def part(split: str) -> RecordSource:
        decoders = {image_key: tfds.decode.SkipDecoding()}
        return RecordSource(
            PreparedRecords(_open(builder, split, decoders), image_key, label_key), channels
        )

    if in_memory is None and None in image_feature.shape:
        in_memory = False
    test = part(test_split) if test_split else _labelled(part, builder)
    return assemble(name, part(train_split), test, num_classes, image_size, in_memory, (mean, std))


def _find(name: str, root: Path) -> Path:
    """The folder with the prepared files: `root/NAME[/CONFIG]/VERSION`."""
    path, _, version = name.partition(":")
    home = root / path
    found = [p.parent for p in home.glob("*/features.json")]
    if not found:
        found = [p.parent for p in home.glob("*/*/features.json")]
        configs = sorted({p.parent.name for p in found})
        if len(configs) > 1:
            raise DataError(
                f"'tfds:{path}' is prepared in {root} in the variants {', '.join(configs)}: "
                f"write, for example, 'tfds:{path}/{configs[0]}'."
            )
    # A run that was interrupted leaves VERSION.incompleteXYZ, which must not be read.
    versions = {p.name: p for p in found if _VERSION.fullmatch(p.name)}
    if version and version in versions:
        return versions[version]
    if version or not versions:
        raise DataNotFoundError(_not_prepared(name, root, sorted(versions)))
    return versions[max(versions, key=lambda v: tuple(map(int, v.split("."))))]


def _not_prepared(name: str, root: Path, versions: Sequence[str]) -> str:
    path = name.partition(":")[0]
    there = [p.name for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    near = difflib.get_close_matches(path, [*there, *COMMON_NAMES], n=1)
    hint = f" (did you mean 'tfds:{near[0]}'?)" if near and near[0] != path else ""
    if versions:
        hint = f" (version {', '.join(versions)} is)"
    return (
        f"The dataset 'tfds:{name}' is not prepared in {root}{hint}; to prepare it once, run "
        f"{prepare_command(path, root)}, or name the right folder with data_dir=PATH."
    )


def prepare_command(name: str, root: str | os.PathLike[str]) -> str:
    """The shell command that downloads and prepares a dataset (which needs TensorFlow)."""
    return (
        'pip install "nasjax[prepare]" && python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{root}', file_format='array_record')"
        '.download_and_prepare()"'
    )


def _feature_keys(tfds: Any, builder: Any) -> tuple[str, str]:
    info = builder.info
    keys = info.supervised_keys or ("image", "label")
    features = info.features
    if not (
        len(keys) == 2
        and all(isinstance(key, str) and key in features for key in keys)
        and isinstance(features[keys[0]], tfds.features.Image)
        and isinstance(features[keys[1]], tfds.features.ClassLabel)
    ):
        raise DataError(
            f"'tfds:{info.name}' does not pair an image with a class (its features are "
            f"{', '.join(features)}): nasjax reads image classification datasets."
        )
    return keys[0], keys[1]


def _open(builder: Any, split: str, decoders: Mapping[str, Any]) -> Any:
    splits = list(builder.info.splits)
    if split.partition("[")[0] not in splits:
        raise DataError(
            f"'tfds:{builder.info.name}' has no split {split!r}: it has {', '.join(splits)}."
        )
    try:
        return builder.as_data_source(split, decoders=decoders)
    except NotImplementedError as error:
        raise DataError(
            f"'tfds:{builder.info.name}' was prepared as {builder.info.file_format.value}, which "
            "has no random access: prepare it again with file_format='array_record'."
        ) from error


def _labelled(part: Any, builder: Any) -> RecordSource:
    """The first test split with labels: some, as ImageNet's, hide them as -1."""
    present = [split for split in _TEST_SPLITS if split in builder.info.splits]
    for split in present:
        source = part(split)
        if source.records[0]["label"] >= 0:
            return source
    raise DataError(
        f"'tfds:{builder.info.name}' has no labelled test split: give test_split, one of "
        f"{', '.join(builder.info.splits)} or a slice such as 'train[90%:]' with "
        "train_split='train[:90%]'."
    )
