"""In-memory loader and evaluation batches, on one device and on eight."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from nasjax.data import (
    ArrayLoader,
    DataError,
    Loader,
    RecordSource,
    Source,
    evaluation_batches,
    make_loader,
)
from nasjax.data._placement import process_share

COUNT = 50
needs_eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs JAX_NUM_CPU_DEVICES=8")


def _source(count=COUNT):
    """Images whose first pixel is the example's number; labels are the number modulo 7."""
    images = np.zeros((count, 3, 4, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return Source(images, np.arange(count) % 7)


def _numbers(batch):
    return np.asarray(batch["image"])[:, 0, 0, 0].tolist()


def _sharding(*shape, names=("data",), spec=("data",)):
    mesh = jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(shape))
    return NamedSharding(mesh, PartitionSpec(*spec))


def test_batches_have_the_promised_form():
    batch = ArrayLoader(_source(), 8, seed=0).batch(0)
    assert batch["image"].shape == (8, 3, 4, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (8,) and batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["label"], np.array(_numbers(batch)) % 7)


def test_batch_is_a_pure_function_of_seed_and_step():
    one, two = ArrayLoader(_source(), 8, seed=5), ArrayLoader(_source(), 8, seed=5)
    forwards = [_numbers(one.batch(step)) for step in range(15)]
    backwards = [_numbers(two.batch(step)) for step in reversed(range(15))]
    assert forwards == backwards[::-1]
    assert forwards != [_numbers(ArrayLoader(_source(), 8, seed=6).batch(s)) for s in range(15)]


def test_epoch_visits_each_example_at_most_once_in_an_order_of_its_own():
    loader = ArrayLoader(_source(), 8, seed=0)
    assert loader.steps_per_epoch == 6
    epochs = [[n for s in range(6) for n in _numbers(loader.batch(6 * e + s))] for e in range(3)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 48
    assert epochs[0] != epochs[1] != epochs[2]
    # The dropped examples differ too, so none is left out of training.
    assert set(epochs[0]) | set(epochs[1]) | set(epochs[2]) == set(range(COUNT))


def test_state_is_empty():
    loader = ArrayLoader(_source(), 8, seed=0)
    assert loader.state() == {}
    loader.restore({})
    with pytest.raises(DataError, match=r"of another kind of loader"):
        loader.restore({"step": 3})


def test_loaders_follow_the_protocol():
    assert isinstance(make_loader(_source(), 8, 0), ArrayLoader)
    assert isinstance(make_loader(_source(), 8, 0), Loader)


@needs_eight
def test_sharded_batches_hold_the_same_examples():
    sharding = _sharding(8)
    loader, plain = ArrayLoader(_source(), 16, 3, sharding), ArrayLoader(_source(), 16, 3)
    for step in (0, 4):
        batch = loader.batch(step)
        assert batch["image"].sharding.is_equivalent_to(sharding, 4)
        assert batch["label"].sharding.is_equivalent_to(sharding, 1)
        assert batch["image"].addressable_shards[0].data.shape == (2, 3, 4, 1)
        assert _numbers(batch) == _numbers(plain.batch(step))


@needs_eight
def test_gathering_is_local_to_each_device():
    loader = ArrayLoader(_source(), 16, 3, _sharding(8))
    lowered = loader._gather.lower(loader._images, loader._labels, loader.indices(0))
    text = lowered.compile().as_text()
    assert "all-gather" not in text and "all-reduce" not in text


@needs_eight
def test_batch_is_divided_by_the_data_axis_only():
    sharding = _sharding(2, 4, names=("data", "model"), spec=("data", None, None, None))
    batch = ArrayLoader(_source(), 6, 0, sharding).batch(1)
    assert batch["image"].addressable_shards[0].data.shape == (3, 3, 4, 1)
    both = _sharding(2, 4, names=("data", "model"), spec=(("data", "model"),))
    with pytest.raises(DataError, match=r"batch_size is 6, .* divisible by the 8 devices"):
        ArrayLoader(_source(), 6, 0, both)


@pytest.mark.parametrize("batch_size", [1, 8, 25, 50, 64])
def test_evaluation_gives_every_example_once(batch_size):
    batches = list(evaluation_batches(_source(), batch_size))
    seen = []
    for batch in batches:
        assert batch["image"].shape == (batch_size, 3, 4, 1)
        assert batch["weight"].dtype == np.float32
        kept = np.asarray(batch["weight"]) == 1
        assert set(np.asarray(batch["weight"])) <= {0, 1}
        seen += np.array(_numbers(batch))[kept].tolist()
        np.testing.assert_array_equal(batch["label"], np.array(_numbers(batch)) % 7)
    assert seen == list(range(COUNT))
    assert sum(float(batch["weight"].sum()) for batch in batches) == COUNT


@needs_eight
def test_evaluation_is_sharded():
    sharding = _sharding(8)
    batches = list(evaluation_batches(_source(), 16, sharding))
    assert len(batches) == 4
    for batch in batches:
        assert all(v.sharding.is_equivalent_to(sharding, v.ndim) for v in batch.values())
    assert sum(float(batch["weight"].sum()) for batch in batches) == COUNT


def test_evaluation_of_records():
    records = [{"image": np.full((6, 6, 3), i, np.uint8), "label": i % 7} for i in range(10)]
    batches = list(evaluation_batches(RecordSource(records), 4, image_size=5))
    images = np.concatenate([batch["image"] for batch in batches])
    assert images.shape == (12, 5, 5, 3)
    np.testing.assert_array_equal(images[:10, 2, 2, 0], np.arange(10))
    np.testing.assert_array_equal(np.concatenate([b["weight"] for b in batches])[8:], [1, 1, 0, 0])


class _Device:
    def __init__(self, process_index):
        self.process_index = process_index


class _Hosts:
    """The sharding of a batch over devices of several processes, given as (process, rows)."""

    def __init__(self, *placement):
        self.placement = placement

    def devices_indices_map(self, shape):
        return {_Device(process): (slice(*rows),) for process, rows in self.placement}


@pytest.mark.parametrize(
    ("placement", "share"),
    [
        ([(0, (0, 2)), (0, (2, 4)), (1, (4, 6)), (1, (6, 8))], (0, 2)),  # data over two hosts
        ([(1, (0, 4)), (0, (4, 8))], (1, 2)),  # rows in another order than processes
        ([(0, (0, 4)), (1, (0, 4)), (0, (4, 8)), (1, (4, 8))], (0, 1)),  # a model over both
        ([(0, (None,)), (1, (None,))], (0, 1)),  # replicated
    ],
)
def test_each_process_reads_the_rows_of_its_devices(placement, share):
    assert process_share(8, _Hosts(*placement)) == share


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: ArrayLoader(s, 51, 0), r"batch_size is 51, but the source has only 50 examples"),
        (lambda s: ArrayLoader(s, 0, 0), r"batch_size is 0, but at least 1"),
        (lambda s: ArrayLoader(s, 8, -1), r"seed is -1, but an integer from 0"),
        (lambda s: ArrayLoader(s, 8, 0).batch(-1), r"step is -1, but steps are counted from 0"),
        (lambda s: make_loader(s, 8, 0, image_size=9), r"image_size is 9, .* are 3x4: leave"),
        (lambda s: evaluation_batches(s, 0), r"batch_size is 0"),
        (lambda s: evaluation_batches(s, 8, image_size=9), r"image_size is 9"),
        (lambda s: evaluation_batches(RecordSource([{}]), 8), r"image_size is None, but records"),
        (lambda s: make_loader(RecordSource([{}]), 1, 0), r"image_size is None, but records"),
        (
            lambda s: ArrayLoader(s, 8, 0, SingleDeviceSharding(jax.devices()[0])),
            r"sharding is a SingleDeviceSharding, but a jax.sharding.NamedSharding",
        ),
    ],
)
def test_bad_requests_are_refused(make, message):
    with pytest.raises(DataError, match=message):
        make(_source())


@needs_eight
@pytest.mark.parametrize(
    "make", [lambda s, sh: ArrayLoader(s, 12, 0, sh), lambda s, sh: evaluation_batches(s, 12, sh)]
)
def test_indivisible_batch_names_both_numbers(make):
    with pytest.raises(DataError, match=r"batch_size is 12, .* by the 8 devices .*: use 8 or"):
        make(_source(), _sharding(8))
