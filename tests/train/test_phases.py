"""Phases: data that is read in order, and phases that are over."""

import flax.linen as nn
import jax
import numpy as np

from nasjax import data
from nasjax.train import phases, sharding
from nasjax.train.session import open_session
from tests.toys import one_device


class Small(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        del train
        return nn.Dense(2)(images.reshape(images.shape[0], -1))


def records(count):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return data.RecordSource([{"image": x, "label": i % 2} for i, x in enumerate(images)])


def test_records_that_are_read_in_order_train_and_a_finished_phase_compiles_nothing(
    tmp_path, caplog
):
    half = (0.5,) * 3
    dataset = data.Dataset("records", records(32), records(8), 2, (8, 8, 3), half, half)
    recipe = phases.Recipe(epochs=2, batch_size=8, log_every=2, save_every=2)
    session = open_session(tmp_path, {}, mesh=sharding.make_mesh())
    with caplog.at_level("INFO", logger="nasjax"):
        state = phases.train(session, "train", Small(), dataset, recipe)
        assert int(state.step) == 8 and "examples a batch" in caplog.text
        caplog.clear()
        again = phases.train(session, "train", Small(), dataset, recipe)
        assert "examples a batch" not in caplog.text
    jax.tree.map(np.testing.assert_array_equal, again.weights, state.weights)


def test_some_steps_are_traced_where_that_is_asked_for(tmp_path, caplog):
    half = (0.5,) * 3
    dataset = data.Dataset("records", records(32), records(8), 2, (8, 8, 3), half, half)
    recipe = phases.Recipe(epochs=2, batch_size=8, log_every=2, save_every=8)
    session = open_session(tmp_path, {}, mesh=one_device(), profile=2)
    with caplog.at_level("INFO", logger="nasjax"):
        phases.train(session, "train", Small(), dataset, recipe)
    folder = tmp_path / "profile" / "train"
    assert f"Trace of 2 calls: {folder}" in caplog.text
    assert any(path.stat().st_size for path in folder.rglob("*.xplane.pb"))
