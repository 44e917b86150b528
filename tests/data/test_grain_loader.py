"""Data read from disk: order, crops, position, workers."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nasjax.data import DataError, GrainLoader, Loader, RecordSource, make_loader

pytest.importorskip("grain")
COUNT = 22


class Ramps:
    """Images with a horizontal ramp, whose blue channel is the example's number."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        image = np.empty((10, 12, 3), np.uint8)
        image[..., 0] = 20 * np.arange(12)
        image[..., 1] = 25 * np.arange(10)[:, None]
        image[..., 2] = index
        return {"image": image, "label": index % 5}


def _loader(seed=0, batch_size=4, train=True, **options):
    return GrainLoader(RecordSource(Ramps()), batch_size, seed, 6, train, **options)


def _numbers(batch):
    return np.asarray(batch["image"])[:, 0, 0, 2].tolist()


def _assert_equal(first, second):
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one["image"], two["image"])
        np.testing.assert_array_equal(one["label"], two["label"])


def test_batches_have_the_promised_form():
    loader = make_loader(RecordSource(Ramps()), 4, 0, image_size=6)
    assert isinstance(loader, GrainLoader) and isinstance(loader, Loader)
    batch = loader.batch(0)
    assert batch["image"].shape == (4, 6, 6, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["label"], np.array(_numbers(batch)) % 5)


def test_epochs_visit_each_example_at_most_once_in_an_order_of_their_own():
    loader = _loader()
    assert loader.steps_per_epoch == 5
    epochs = [[n for s in range(5) for n in _numbers(loader.batch(5 * e + s))] for e in range(2)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 20
    assert epochs[0] != epochs[1]


def test_seed_determines_everything():
    first, again, other = ([_loader(s).batch(0)] for s in (0, 0, 1))
    _assert_equal(first, again)
    assert _numbers(first[0]) != _numbers(other[0])


def test_training_crops_vary_and_evaluation_crops_do_not():
    epochs = [{}, {}]
    for train, differ in ((True, True), (False, False)):
        loader = _loader(batch_size=COUNT, train=train)
        for epoch in range(2):
            batch = loader.batch(epoch)
            epochs[epoch] = dict(zip(_numbers(batch), np.asarray(batch["image"]), strict=True))
        assert differ == any((epochs[0][n] != epochs[1][n]).any() for n in range(COUNT))


@pytest.mark.parametrize("stop", [1, 7])
def test_resumed_run_is_identical_across_the_epoch(stop):
    whole = _loader()
    expected = [whole.batch(step) for step in range(12)]
    killed = _loader()
    for step in range(stop):
        killed.batch(step)
    resumed = _loader()
    resumed.restore(json.loads(json.dumps(killed.state())))
    _assert_equal(expected[stop:], [resumed.batch(step) for step in range(stop, 12)])


def test_loader_can_be_wound_back():
    loader = _loader()
    start = loader.state()
    first = [loader.batch(step) for step in range(3)]
    loader.restore(start)
    _assert_equal(first, [loader.batch(step) for step in range(3)])


def test_worker_processes_change_nothing():
    plain, parallel = _loader(), _loader(workers=1)
    _assert_equal(
        [plain.batch(step) for step in range(3)], [parallel.batch(step) for step in range(3)]
    )
    parallel.close()


@pytest.mark.skipif(jax.device_count() < 8, reason="needs JAX_NUM_CPU_DEVICES=8")
def test_sharded_batches_hold_the_same_examples():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    batch = _loader(batch_size=8, sharding=sharding).batch(0)
    assert batch["image"].sharding.is_equivalent_to(sharding, 4)
    _assert_equal([batch], [_loader(batch_size=8).batch(0)])
    with pytest.raises(DataError, match=r"batch_size is 4, .* by the 8 devices"):
        _loader(sharding=sharding)


def test_processes_share_the_batches_of_one_run(monkeypatch):
    whole = _loader().batch(0)["image"]
    parts = []
    for process in range(2):
        monkeypatch.setattr(
            "nasjax.data.grain_loader.process_share", lambda *_, process=process: (process, 2)
        )
        parts.append(_loader().batch(0)["image"])
    assert [part.shape[0] for part in parts] == [2, 2]
    # Dealt out like cards: the same crops of the same examples.
    np.testing.assert_array_equal(np.stack(parts, 1).reshape(4, 6, 6, 3), whole)


def test_steps_must_be_taken_in_order():
    loader = _loader()
    with pytest.raises(DataError, match=r"step is 3, but the next batch to be read is 0"):
        loader.batch(3)
    loader.batch(0)
    with pytest.raises(DataError, match=r"step is 0, but the next batch to be read is 1"):
        loader.batch(0)


def test_position_of_another_run_is_refused():
    state = _loader(seed=1).state()
    with pytest.raises(DataError, match=r"saved position has seed 1, but this loader has seed 0"):
        _loader().restore(state)
    with pytest.raises(DataError, match=r"saved position has seed None"):
        _loader().restore({})


def test_source_smaller_than_a_batch_is_refused():
    with pytest.raises(DataError, match=r"batch_size is 30, but the source has only 22"):
        _loader(batch_size=30)
