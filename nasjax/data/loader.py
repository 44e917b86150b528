"""Training batches by step number, and evaluation batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import NamedSharding

from nasjax.data._placement import (
    along_batch,
    check_batch_size,
    check_seed,
    check_steps,
    place_part,
    place_whole,
    process_share,
    replicated,
    stacked,
)
from nasjax.data._records import read_examples
from nasjax.data.errors import DataError
from nasjax.data.grain_loader import EVALUATION_FRACTION, GrainLoader
from nasjax.data.sources import RecordSource, Source

Batch = dict[str, jax.Array]


@runtime_checkable
class Loader(Protocol):
    """What a training loop needs of its data; write these members to bring a loader of your own.

    Where several steps are done together it also needs `batches(start, count)`, which stacks them.

    Attributes:
        batch_size: examples in a batch, over all devices and processes.
        steps_per_epoch: batches in one pass over the data.
    """

    batch_size: int
    steps_per_epoch: int

    def batch(self, step: int) -> Batch:
        """Batch number `step`: "image" uint8 `(batch, h, w, c)` and "label" int32 `(batch,)`."""
        ...

    def state(self) -> dict[str, Any]:
        """What `restore` needs to continue from here; plain enough for JSON."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues where the loader that returned `state` was."""
        ...


class ArrayLoader:
    """Batches of a `Source` whose images live on the device and are gathered there.

    `batch(step)` is a pure function of the seed and the step, so there is no position to save:
    `state()` is empty. Each epoch has an order of its own and drops the examples that do not
    fill a batch.

    Attributes:
        batch_size: examples in a batch, over all devices.
        steps_per_epoch: full batches in one pass over the data.

    Args:
        source: examples; a copy (uint8) is kept on every device.
        seed: of the order, from 0 to 2**32 - 1.
        sharding: of the batches over their first axis. [one device]

    Raises:
        DataError: if the batch is larger than the source or not divisible by the devices.
    """

    def __init__(
        self, source: Source, batch_size: int, seed: int, sharding: NamedSharding | None = None
    ) -> None:
        sharding = along_batch(sharding)
        check_batch_size(batch_size, sharding)
        check_seed(seed)
        self.batch_size = batch_size
        self.steps_per_epoch = check_steps(len(source), batch_size)
        self._seed = seed
        self._examples = len(source)
        self._images = place_whole(source.images, replicated(sharding))
        self._labels = place_whole(source.labels, replicated(sharding))
        self._gather = jax.jit(_gather, out_shardings=sharding)
        self._stack = jax.jit(_gather, out_shardings=stacked(sharding))
        # The order of the epoch last asked for; only saves drawing it again for every batch.
        self._order: tuple[int, np.ndarray] | None = None

    def indices(self, step: int) -> np.ndarray:
        """Positions in the source of the examples of a batch: int32 `(batch,)`."""
        if step < 0:
            raise DataError(f"step is {step}, but steps are counted from 0.")
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(self._examples)
            self._order = epoch, order.astype(np.int32)
        start = position * self.batch_size
        return self._order[1][start : start + self.batch_size]

    def batch(self, step: int) -> Batch:
        """Batch number `step`: "image" uint8 `(batch, h, w, c)` and "label" int32 `(batch,)`."""
        return self._gather(self._images, self._labels, self.indices(step))

    def batches(self, start: int, count: int) -> Batch:
        """Batches `start` to `start + count - 1`, stacked along a new first axis."""
        rows = np.stack([self.indices(start + i) for i in range(count)])
        return self._stack(self._images, self._labels, rows)

    def state(self) -> dict[str, Any]:
        """Empty: the step is the whole position."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Accepts the empty state only, so that another loader's state is not lost silently."""
        if state:
            raise DataError(
                f"The state {dict(state)} is of another kind of loader, but an ArrayLoader has an "
                "empty one: make the loader that the run was started with."
            )


def _gather(images: jax.Array, labels: jax.Array, indices: jax.Array) -> Batch:
    # The indices are in range, and saying so saves the clamping of each.
    return {
        "image": images.at[indices].get(mode="promise_in_bounds"),
        "label": labels.at[indices].get(mode="promise_in_bounds"),
    }


def make_loader(
    source: Source | RecordSource,
    batch_size: int,
    seed: int,
    *,
    image_size: int | None = None,
    train: bool = True,
    sharding: NamedSharding | None = None,
    workers: int = 0,
) -> Loader:
    """The loader for a source: `ArrayLoader` for examples in memory, else `GrainLoader`.

    Args:
        image_size: side in pixels that records are cropped and resized to; needed for a
            `RecordSource`, and must be the size of the images for a `Source`.
        train: whether records are cropped at random (True) or in the centre.
        workers: processes that decode records.

    Raises:
        DataError: as the loaders do, and if `image_size` is missing or another than the source's.
    """
    if isinstance(source, RecordSource):
        size = _require_size(image_size)
        return GrainLoader(source, batch_size, seed, size, train, sharding, workers)
    _check_size(source, image_size)
    return ArrayLoader(source, batch_size, seed, sharding)


def evaluation_batches(
    source: Source | RecordSource,
    batch_size: int,
    sharding: NamedSharding | None = None,
    image_size: int | None = None,
) -> Iterator[Batch]:
    """Every example exactly once, in order, in batches of one size.

    Args:
        image_size: side in pixels that records are resized to: the centre, 7/8 of the shorter
            side; needed for a `RecordSource`.

    Returns:
        Batches of "image" uint8 `(batch, h, w, c)`, "label" int32 `(batch,)` and "weight" float32
        `(batch,)`: 1 for an example, 0 for the padding that fills the last batch. A mean over the
        source is `sum(weight * value) / sum(weight)` over all batches.

    Raises:
        DataError: at the call, not at the first batch, for bad sizes.
    """
    sharding = along_batch(sharding)
    check_batch_size(batch_size, sharding)
    if isinstance(source, RecordSource):
        size = _require_size(image_size)
    else:
        _check_size(source, image_size)
        size = None
    return _evaluate(len(source), batch_size, sharding, _reader(source, size))


Reader = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def _reader(source: Source | RecordSource, size: int | None) -> Reader:
    if isinstance(source, Source):
        return lambda rows: (source.images[rows], source.labels[rows])
    return lambda rows: read_examples(
        source.records, rows, size, source.channels, EVALUATION_FRACTION
    )


def _evaluate(
    examples: int, batch_size: int, sharding: NamedSharding | None, read: Reader
) -> Iterator[Batch]:
    share, shares = process_share(batch_size, sharding)
    local = batch_size // shares
    for start in range(share * local, examples + share * local, batch_size):
        rows = np.arange(start, start + local)
        # Padding repeats the last example: real pixels cannot make a NaN that survives weight 0.
        images, labels = read(np.minimum(rows, examples - 1))
        part = {"image": images, "label": labels, "weight": (rows < examples).astype(np.float32)}
        yield place_part(part, batch_size, sharding)


def _require_size(image_size: int | None) -> int:
    if image_size is None or image_size < 1:
        raise DataError(
            f"image_size is {image_size}, but records are cropped to one size: give the side in "
            "pixels, usually dataset.image_shape[0]."
        )
    return image_size


def _check_size(source: Source, image_size: int | None) -> None:
    if image_size is not None and source.images.shape[1:3] != (image_size, image_size):
        raise DataError(
            f"image_size is {image_size}, but the images in memory are "
            f"{source.images.shape[1]}x{source.images.shape[2]}: leave image_size out and resize "
            f"on the device with Augmentation(size={image_size})."
        )
