"""Data: sources, splits, loaders and augmentation. See docs/data.md."""

from nasjax.data._records import Records
from nasjax.data.augment import (
    Augmentation,
    normalize,
    random_erasing,
    random_flip,
    random_shift,
    resize,
)
from nasjax.data.catalog import load
from nasjax.data.errors import DataError, DataNotFoundError
from nasjax.data.grain_loader import GrainLoader
from nasjax.data.loader import ArrayLoader, Batch, Loader, evaluation_batches, make_loader
from nasjax.data.mixing import cutmix, mixup, mixup_or_cutmix
from nasjax.data.randaugment import randaugment
from nasjax.data.sources import Dataset, RecordSource, Source, from_arrays
from nasjax.data.split import BilevelSplit, bilevel_split

__all__ = [
    "ArrayLoader",
    "Augmentation",
    "Batch",
    "BilevelSplit",
    "DataError",
    "DataNotFoundError",
    "Dataset",
    "GrainLoader",
    "Loader",
    "RecordSource",
    "Records",
    "Source",
    "bilevel_split",
    "cutmix",
    "evaluation_batches",
    "from_arrays",
    "load",
    "make_loader",
    "mixup",
    "mixup_or_cutmix",
    "normalize",
    "randaugment",
    "random_erasing",
    "random_flip",
    "random_shift",
    "resize",
]
