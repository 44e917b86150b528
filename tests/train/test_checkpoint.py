"""Checkpoints: what is written comes back; what cannot be read is said and passed over."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.train import optim, sharding
from nasjax.train import state as states
from nasjax.train.checkpoint import Checkpointer
from nasjax.train.errors import CheckpointError, NonFiniteError, Stopped
from nasjax.train.loop import PATIENCE, Schedule, run
from nasjax.train.metrics import JsonlWriter
from nasjax.train.session import open_session

TX = optim.partitioned(optim.Optimizer().build(100))


@jax.jit
def fresh(seed):
    key = jax.random.key(seed)
    weights = {"dense": {"kernel": jax.random.normal(key, (4, 3)), "bias": jnp.zeros(3)}}
    return states.create(key, weights, TX, average=True)


def at(step, seed=0):
    return fresh(seed).replace(step=jnp.int32(step))


def same(first, second):
    raw = lambda t: jax.tree.map(  # noqa: E731
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, t
    )
    return all(jax.tree.leaves(jax.tree.map(jnp.array_equal, raw(first), raw(second))))


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpointer(tmp_path, {"space": "a"})
    yield made
    made.close()


def spoil(directory: pathlib.Path, step: int):
    """Cut every data file of a checkpoint short."""
    for path in (directory / str(step)).rglob("*"):
        if path.is_file() and path.stat().st_size > 0:
            os.truncate(path, path.stat().st_size // 2)


def test_round_trip_and_retention(checkpoints):
    for step in (1, 2, 3):
        checkpoints.save(at(step, step), {"0": {"epoch": step}}, wait=True)
    state, data = checkpoints.restore(fresh(9))
    assert int(state.step) == 3 and data == {"0": {"epoch": 3}}
    assert same(state, at(3, 3))
    kept = sorted(int(p.name) for p in checkpoints.directory.iterdir() if p.name.isdigit())
    assert kept == [2, 3]
    np.testing.assert_array_equal(
        checkpoints.read_weights()["dense"]["kernel"], state.average["dense"]["kernel"]
    )


def test_nothing_to_restore(checkpoints):
    assert checkpoints.restore(fresh(0)) is None
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoints.read_weights()


def test_a_corrupt_checkpoint_is_reported_and_the_previous_one_used(checkpoints, caplog):
    checkpoints.save(at(1, 1), {}, wait=True)
    checkpoints.save(at(2, 2), {}, wait=True)
    spoil(checkpoints.directory, 2)
    state, _ = checkpoints.restore(fresh(9))
    assert int(state.step) == 1 and same(state, at(1, 1))
    assert "step 2" in caplog.text and "cannot be read" in caplog.text
    checkpoints.save(at(2, 3), {}, wait=True)  # and step 2 can be written again
    assert int(checkpoints.restore(fresh(9))[0].step) == 2


def test_a_half_written_checkpoint_does_not_exist(tmp_path):
    first = Checkpointer(tmp_path, {})
    first.save(at(1), {}, wait=True)
    first.close()
    (tmp_path / "2.orbax-checkpoint-tmp-1" / "state").mkdir(parents=True)  # killed in mid-save
    again = Checkpointer(tmp_path, {})
    assert int(again.restore(fresh(9))[0].step) == 1
    again.close()


def test_a_checkpoint_of_another_space_is_refused(checkpoints):
    checkpoints.save(at(1), {}, wait=True)
    other = Checkpointer(checkpoints.directory, {"space": "b"})
    with pytest.raises(CheckpointError, match="space 'a', but this run has 'b'"):
        other.restore(fresh(0))
    other.close()


def test_a_state_that_cannot_be_written_is_one_sentence(checkpoints, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*continues from the last"):
        checkpoints.save(at(1), {})


def test_restored_arrays_go_where_they_belong(tmp_path):
    mesh = sharding.make_mesh(4, 2)
    names = {"dense": {"kernel": jax.P(None, "heads"), "bias": jax.P("heads")}}
    weights = {"dense": {"kernel": jnp.ones((4, 6)), "bias": jnp.zeros(6)}}
    create = jax.jit(lambda w: states.create(jax.random.key(0), w, TX))
    shapes = jax.eval_shape(create, weights)
    places = sharding.state_shardings(shapes, names, mesh, sharding.TENSOR_PARALLEL)
    state = jax.device_put(create(weights), places)
    kernel = state.weights["dense"]["kernel"]
    assert kernel.sharding.spec == jax.P(None, "model")
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (4, 6)]
    assert len(moments) == 2 and all(m.sharding.spec == jax.P(None, "model") for m in moments)
    saved = Checkpointer(tmp_path, {})
    saved.save(state, {}, wait=True)
    restored, _ = saved.restore(state)
    assert restored.weights["dense"]["kernel"].sharding == kernel.sharding
    saved.close()


class Loader:
    def batch(self, step):
        return jnp.float32(step)

    def state(self):
        return {"at": 1}

    def restore(self, state):
        assert state == {"at": 1}


def loop(tmp_path, step, steps=6, writers=()):
    checkpoints = Checkpointer(tmp_path / "checkpoints", {})
    try:
        return run(
            "phase", fresh(0), step, [Loader()], Schedule(steps, 2, 2, 3), checkpoints, writers
        )
    finally:
        checkpoints.close()


def count(state, batch):
    weights = jax.tree.map(lambda w: w + batch, state.weights)
    metrics = {"train_loss": batch, "train_accuracy": jnp.float32(0)}
    return state.replace(step=state.step + 1, weights=weights), metrics


def test_the_loop_resumes_and_logs_each_line_once(tmp_path):
    writer = JsonlWriter(tmp_path / "metrics.jsonl")

    def interrupted(state, batch):
        if float(batch) == 5:
            raise KeyError("killed")
        return count(state, batch)

    with pytest.raises(KeyError):
        loop(tmp_path, interrupted, writers=[writer])
    with writer.path.open("a") as file:
        file.write('{"phase": "phase", "step"')  # half-written
    state = loop(tmp_path, count, writers=[writer])
    assert int(state.step) == 6
    expected = fresh(0).weights["dense"]["kernel"]
    np.testing.assert_allclose(
        state.weights["dense"]["kernel"], expected + sum(range(6)), rtol=1e-6
    )
    steps = [
        line.split('"step": ')[1].split(",")[0] for line in writer.path.read_text().splitlines()
    ]
    assert steps == ["2", "4", "6"]


def test_a_signal_lets_the_step_finish_and_saves(tmp_path):
    import signal

    def asked(state, batch):
        if float(batch) == 2:
            signal.raise_signal(signal.SIGTERM)
        return count(state, batch)

    with pytest.raises(Stopped, match="after step 3 of 6 of phase"):
        loop(tmp_path, asked)
    assert int(loop(tmp_path, count).step) == 6
    assert (tmp_path / "checkpoints" / "6").is_dir()


def test_steps_that_stay_non_finite_end_the_run_by_name(tmp_path):
    def overflow(state, batch):
        state, metrics = count(state, batch)
        metrics |= {"finite/weights": jnp.array([True, False]), "train_loss": jnp.float32(jnp.nan)}
        return state.replace(skipped=state.skipped + 1), metrics

    with pytest.raises(NonFiniteError, match=r"train_loss, the gradient of weights/dense/kernel"):
        loop(tmp_path, overflow, steps=PATIENCE + 4)


def test_a_session_knows_its_configuration(tmp_path):
    config = {"seed": 1, "space": {"name": "a"}}
    open_session(tmp_path, config)
    open_session(tmp_path, {"seed": 2})  # nothing trained yet: it may change its mind
    (tmp_path / "checkpoints").mkdir()
    open_session(tmp_path, {"seed": 2})
    with pytest.raises(CheckpointError, match="seed was 2, is 3"):
        open_session(tmp_path, {"seed": 3})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable"):
        open_session(tmp_path, {"seed": 3})


def test_a_mesh_must_use_every_device():
    assert dict(sharding.make_mesh(-1, 2).shape) == {"data": 4, "model": 2}
    with pytest.raises(ValueError, match="8 devices"):
        sharding.make_mesh(3, 2)
