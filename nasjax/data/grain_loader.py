"""Training batches of data that does not fit in memory, read and cropped by Grain."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from nasjax.data._images import center_crop, random_resized_crop, to_pil
from nasjax.data._placement import (
    along_batch,
    check_batch_size,
    check_seed,
    check_steps,
    place_part,
    process_share,
)
from nasjax.data.errors import DataError, require
from nasjax.data.sources import RecordSource

EVALUATION_FRACTION = 7 / 8  # 224 of 256 pixels, the custom for ImageNet
_THREADS = 8


@dataclasses.dataclass(frozen=True)
class _Crop:
    """Record to example, in a worker: uint8 `(size, size, channels)` and int32 label."""

    size: int
    channels: int
    train: bool

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = to_pil(record["image"], self.channels)
        if self.train:
            pixels = random_resized_crop(image, self.size, rng)
        else:
            pixels = center_crop(image, self.size, EVALUATION_FRACTION)
        return {"image": pixels, "label": np.int32(record["label"])}


class GrainLoader:
    """Batches of a `RecordSource`, read ahead in threads or worker processes.

    The batches are a function of the seed and the step alone: neither the number of workers nor
    that of processes changes which examples and crops a batch holds. They must be taken in
    order, so that reading ahead is possible; `state()` is the position, and a loader that
    restores it continues exactly.

    Each epoch has an order of its own and drops the examples that do not fill a batch. Each
    process reads only the rows that its devices need.

    Attributes:
        batch_size: examples in a batch, over all devices and processes.
        steps_per_epoch: full batches in one pass over the data.

    Args:
        source: examples.
        seed: of the order and the crops, from 0 to 2**32 - 1.
        image_size: side of the images in a batch, pixels.
        train: crop at random (8 to 100% of the area); otherwise the centre.
        sharding: of the batches over their first axis. [one device]
        workers: processes that read, decode and crop. [0: threads of this process] They import
            the main script again, so it must keep its actions under `if __name__ == "__main__"`.

    Raises:
        DataError: if the batch is larger than the source or not divisible by the devices, or
            Grain or Pillow is not installed.
    """

    def __init__(
        self,
        source: RecordSource,
        batch_size: int,
        seed: int,
        image_size: int,
        train: bool = True,
        sharding: NamedSharding | None = None,
        workers: int = 0,
    ) -> None:
        sharding = along_batch(sharding)
        check_batch_size(batch_size, sharding)
        check_seed(seed)
        self.batch_size = batch_size
        self.steps_per_epoch = check_steps(len(source), batch_size)
        self._identity = {"seed": int(seed), "batch_size": int(batch_size), "examples": len(source)}
        self._sharding = sharding
        self._workers = workers
        self._step = 0
        self._iterator: Any = None

        grain = require("grain", "Reading data that does not fit in memory", "nasjax[grain]")
        # Shuffle and crop are indexed over the whole data, before it is divided: so every process
        # count draws the same, and cutting the incomplete batch keeps processes in step.
        share, shares = process_share(batch_size, sharding)
        examples = grain.MapDataset.source(source.records).seed(seed).shuffle()
        examples = examples[: self.steps_per_epoch * batch_size]
        examples = examples.random_map(_Crop(image_size, source.channels, train))
        self._batches = examples[share::shares].batch(batch_size // shares).repeat()

    def batch(self, step: int) -> dict[str, jax.Array]:
        """The next batch: "image" uint8 `(batch, size, size, c)`, "label" int32 `(batch,)`.

        Raises:
            DataError: if `step` is not the next one.
        """
        if step != self._step:
            raise DataError(
                f"step is {step}, but the next batch to be read is {self._step}: take batches in "
                "order, and restore() the saved state to continue a run."
            )
        if self._iterator is None:
            self._iterator = self._read_from(step)
        part = next(self._iterator)
        self._step += 1
        return place_part(part, self.batch_size, self._sharding)

    def state(self) -> dict[str, int]:
        """The next step, and what it counts: plain integers."""
        return {"step": self._step, **self._identity}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues at the position of `state`.

        Raises:
            DataError: if it was saved with another seed, batch size or number of examples.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise DataError(
                    f"The saved position has {name} {state.get(name)}, but this loader has "
                    f"{name} {value}: continue with the settings that the run was started with."
                )
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Ends worker processes; the next `batch` starts them again."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None

    def _read_from(self, step: int) -> Any:
        grain = require("grain", "Reading data that does not fit in memory", "nasjax[grain]")
        # Grain's default reads 500 elements ahead, which here are batches.
        threads = min(_THREADS, os.cpu_count() or 1)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        batches = self._batches[step:].to_iter_dataset(options)
        if self._workers:
            _mark_flags_parsed()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=2)
            )
        return iter(batches)


def _mark_flags_parsed() -> None:
    # Grain 0.2.18 reads absl flags that only absl.app.run parses (google/grain#1355); outside of
    # it, their defaults are meant.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
