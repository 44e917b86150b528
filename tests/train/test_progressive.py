"""Searching in stages: weights widen, options fall out, alphas wait; and resuming in the middle."""

import dataclasses
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax import data, relax
from nasjax.core import mixture as mixtures
from nasjax.core.errors import NasjaxError
from nasjax.models.widen import widen
from nasjax.relax_extras import prune, with_edge_weights, without
from nasjax.train import optim, phases, steps
from nasjax.train import state as states
from nasjax.train.progressive import Stage, progressive_search
from nasjax.train.rng import stream
from nasjax.train.session import open_session
from tests.models.tiny_cell import NODES, tiny_cell

RECIPE = phases.Recipe(
    epochs=0,
    batch_size=8,
    optimizer=optim.Optimizer(learning_rate=1e-2),
    log_every=1,
    save_every=2,
)
STAGES = (Stage(2, 4), Stage(2, 2, keep=2, alphas_from_epoch=1))
ALPHAS = optim.alphas_optimizer(0.1)


def dataset():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (32, 4, 4, 1), dtype=np.uint8)
    labels = np.arange(32, dtype=np.int32) % 4
    return data.from_arrays(images, labels, images, labels, num_classes=4)


def one_device():
    types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((1, 1), ("data", "model"), types, devices=jax.devices()[:1])


def run(folder, stages=STAGES, phase="search"):
    session = open_session(folder, {}, mesh=one_device(), seed=3)
    return session, progressive_search(
        session,
        tiny_cell,
        {"name": "darts"},
        dataset(),
        RECIPE,
        ALPHAS,
        stages,
        masks=without(tiny_cell().space, "none"),
        modify=lambda method: with_edge_weights(method, {"operation": NODES}),
        phase=phase,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, *run(folder)


def saved(session, phase):
    lines = (session.workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["phase"] == phase]


def test_stages_hand_on_what_they_have(whole):
    folder, session, (state, method, net) = whole
    assert net.module.partial == 2 and int(state.step) == 4
    kernel = state.weights["cell"]["edges_0"]["nor_conv"]["conv"]["kernel"]
    assert kernel.shape == (3, 3, 2, 2)
    assert set(state.alphas) == {"operation", "operation/edges"}
    mask = method.masks["operation"]
    assert np.all(mask.sum(-1) == 2) and not np.any(mask[:, 0])
    hot = mixtures.one_hot(net.space, relax.decode(net.space, method, state.alphas))["operation"]
    assert np.all(hot <= mask)
    # The first stage is over: it is not repeated, and what the second began with follows from it.
    _, (first, _, narrow) = run(folder, STAGES[:1], "search_1")
    assert narrow.module.partial == 4 and int(first.step) == 4
    pruned, kept = prune(first.alphas, 2, without(net.space, "none"))
    np.testing.assert_array_equal(kept["operation"], mask)
    key = stream(session.key("search"), "widen")
    grown = widen({"params": first.weights}, net.shapes, key)["params"]
    # Four steps of 0.01 from there; the alphas wait for the second epoch.
    for start, end in zip(jax.tree.leaves(grown), jax.tree.leaves(state.weights), strict=True):
        assert start.shape == end.shape and np.max(np.abs(start - end)) < 0.1
    for name, alpha in pruned.items():
        assert 0 < np.max(np.abs(alpha - state.alphas[name])) < 0.3
    first_lines = saved(session, "search")[:2]
    assert all("val_loss" not in line for line in first_lines)
    assert all(np.isfinite(line["val_loss"]) for line in saved(session, "search")[2:])
    same = [line["mixture"]["operation"] for line in first_lines]
    np.testing.assert_array_equal(*same)


def test_resumed_in_the_second_stage_equals_uninterrupted(whole, tmp_path):
    folder, session, (expected, _, _) = whole
    shutil.copytree(folder, tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "search" / "4")
    resumed, (state, _, _) = run(tmp_path / "killed")
    jax.tree.map(np.testing.assert_array_equal, state.trained, expected.trained)
    assert [row["step"] for row in saved(resumed, "search")] == [1, 2, 3, 4]
    assert saved(resumed, "search_1") == saved(session, "search_1")


def test_a_search_that_is_over_compiles_nothing(whole, caplog):
    folder, _, (expected, _, _) = whole
    with caplog.at_level("INFO", logger="nasjax"):
        _, (state, method, _) = run(folder)
    assert "examples a batch" not in caplog.text
    jax.tree.map(np.testing.assert_array_equal, state.trained, expected.trained)
    assert method.name == "darts+pruned+edges"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((), "needs one stage"),
        ((Stage(1, 2, keep=3),), "the first stage has no alphas to prune by"),
        ((Stage(1, 2), Stage(1, 4)), "partial_channels go from 2 to 4"),
    ],
)
def test_stages_that_make_no_sense(tmp_path, stages, message):
    session = open_session(tmp_path, {}, mesh=one_device())
    with pytest.raises(NasjaxError, match=message):
        progressive_search(session, tiny_cell, {"name": "darts"}, dataset(), RECIPE, ALPHAS, stages)


def test_alphas_wait_and_then_learn_as_ever():
    net, method = tiny_cell(), relax.darts()
    tx = optim.partitioned(optim.Optimizer(1e-2).build(10), ALPHAS.build(10))

    def prepare(key, batch):
        del key
        return batch["image"], jax.nn.one_hot(batch["label"], 4)

    def batch(seed):
        images = jax.random.normal(jax.random.key(seed), (4, 4, 4, 1))
        return {"image": images, "label": jnp.arange(4)}

    waiting = dataclasses.replace(method, learns=False)
    late = jax.jit(steps.bilevel_step(net, waiting, tx, prepare, prepare))
    weights = net.init(jax.random.key(0))["params"]
    state = states.create(
        jax.random.key(1), weights, tx, alphas=method.init(net.space, jax.random.key(2))
    )
    waited, metrics = late(state, batch(0), batch(1))
    jax.tree.map(np.testing.assert_array_equal, waited.alphas, state.alphas)
    before, after = (s.opt_state.inner_states["alphas"] for s in (state, waited))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert int(waited.step) == 1 and int(waited.skipped) == 0
    assert "val_loss" not in metrics and np.isfinite(metrics["train_loss"])
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.weights, waited.weights)
    assert any(jax.tree.leaves(moved))


def test_alphas_are_trained_from_their_epoch_on_also_after_a_crash(tmp_path):
    """Two epochs of two steps, the alphas in the second alone; crashed at step 2 or 4."""

    def searched(folder, crash_at=None):
        session = open_session(folder, {}, mesh=one_device())
        judged = itertools.count(1)

        def judge(arch):
            if next(judged) == crash_at:
                raise RuntimeError("crashed")
            return arch

        recipe = dataclasses.replace(RECIPE, epochs=2, save_every=1)
        parts = (session, tiny_cell(), {"name": "darts"}, dataset(), recipe, ALPHAS)
        state, _ = phases.search(*parts, alphas_from_epoch=1.0, judge=judge)
        lines = saved(session, "search")
        for line in lines:
            del line["steps_per_second"]
        return state, lines

    state, lines = searched(tmp_path / "whole")
    assert ["val_loss" in line for line in lines] == [False, False, True, True]
    for crash_at in (2, 4):
        with pytest.raises(RuntimeError, match="crashed"):
            searched(tmp_path / str(crash_at), crash_at)
        resumed, again = searched(tmp_path / str(crash_at))
        assert again == lines
        jax.tree.map(np.testing.assert_array_equal, resumed.trained, state.trained)


def test_alphas_that_would_never_be_trained_are_refused(tmp_path):
    session = open_session(tmp_path, {}, mesh=one_device())
    recipe = dataclasses.replace(RECIPE, epochs=2)
    with pytest.raises(NasjaxError, match="from epoch 2 of 2 on, which is never"):
        phases.search(
            session, tiny_cell(), {"name": "darts"}, dataset(), recipe, ALPHAS, alphas_from_epoch=2
        )
