"""Batches in parts, and steps together: less memory, fewer calls, the same numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nasjax import data, relax, sampling
from nasjax.core import architecture
from nasjax.core.errors import NasjaxError
from nasjax.train import optim, phases, sharding, steps
from nasjax.train import state as states
from nasjax.train.accumulate import in_parts
from nasjax.train.one_shot import train_supernet
from nasjax.train.sandwich import Sandwich, no_conflicts, sandwich_step
from nasjax.train.session import open_session
from tests.toys import dataset, one_device, patches, randomised, toy
from tests.train.test_one_shot import RECIPE, batch, encoded, lines, prepare

TX = optim.partitioned(optax.sgd(0.1), optax.sgd(0.1))
ARCHS = [{"width": 8, "depth": 2, "heads": [2, 2]}, {"width": 4, "depth": 1, "heads": [1]}]


def test_a_mean_over_examples_does_not_depend_on_the_parts(key):
    x = jax.random.normal(key, (12, 3))

    def gradient(part, key):
        del key
        return {"mean": jnp.mean(part**2), "size": len(part)}

    for parts in (1, 2, 3, 12):
        found = in_parts(gradient, x, key, parts)
        assert float(found["mean"]) == pytest.approx(float(jnp.mean(x**2)), rel=1e-6)
        assert found["size"] == 12 // parts


def test_each_part_draws_for_itself(key):
    drawn = in_parts(lambda part, key: jax.random.normal(key, (2,)), jnp.zeros(4), key, 2)
    keys = [jax.random.fold_in(key, i) for i in range(2)]
    expected = sum(jax.random.normal(k, (2,)) for k in keys) / 2
    np.testing.assert_allclose(drawn, expected, rtol=1e-6)


def bilevel(net, parts, second_order=False):
    step = steps.bilevel_step(
        net, relax.darts(), TX, prepare, prepare, second_order=second_order, parts=parts
    )
    alphas = relax.init_alphas(net.space, jax.random.key(1), scale=0.3)
    return step, {"alphas": alphas}, (batch(0), batch(1))


def one_shot(net, parts):
    step = steps.one_shot_step([net], net.module, TX, prepare, parts=parts)
    return step, {}, (batch(), encoded(net, ARCHS))


def sandwich(net, parts):
    step = sandwich_step(net, ARCHS, TX, prepare, Sandwich(), parts=parts)
    return step, {"statistics": no_conflicts(net)}, (batch(), encoded(net, ARCHS))


def single(net, parts):
    return steps.train_step(net.module, TX, prepare, parts=parts), {}, (batch(),)


@pytest.mark.parametrize(
    "build",
    [
        bilevel,
        pytest.param(functools.partial(bilevel, second_order=True), marks=pytest.mark.slow),
        one_shot,
        sandwich,
        single,
    ],
    ids=["bilevel", "second order", "one-shot", "sandwich", "single"],
)
def test_every_step_is_the_same_in_parts(build):
    net, found = toy(), []
    for parts in (1, 3):
        step, partitions, given = build(net, parts)
        state = states.create(jax.random.key(0), randomised(net), TX, **partitions)
        after, metrics = jax.jit(step)(state, *given)
        found.append((after.weights, after.alphas, {k: metrics[k] for k in ("train_loss",)}))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, *found)


def search(folder, mesh=None, **changes):
    session = open_session(folder, {}, mesh=mesh or one_device(), seed=3)
    recipe = dataclasses.replace(RECIPE, log_every=4, save_every=8, **changes)
    method, alphas = {"name": "gdas"}, optim.alphas_optimizer(1e-2)
    phases.search(session, toy(), method, dataset(), recipe, alphas)
    return lines(folder)


def assert_same_lines(found, expected):
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys() and row["step"] == other["step"]
        for name in ("train_loss", "val_loss", "gradient_norm/weights", "entropy"):
            assert row[name] == pytest.approx(other[name], rel=1e-4), name


def test_steps_together_are_the_steps_one_by_one(tmp_path):
    expected = search(tmp_path / "one")
    # Four fit between two lines; five never do, three once.
    for together in (4, 3):
        found = search(tmp_path / str(together), sharding.make_mesh(), together=together)
        assert_same_lines(found, expected)


def test_sampled_steps_together(tmp_path):
    found = []
    for together in (1, 4):
        folder = tmp_path / str(together)
        session = open_session(folder, {}, mesh=one_device(), seed=3)
        recipe = dataclasses.replace(RECIPE, log_every=4, save_every=8, together=together)
        net = toy()
        state = train_supernet(session, net, sampling.uniform(net.space), dataset(), recipe)
        found.append(state.weights)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *found)


def test_when_steps_go_together():
    from nasjax.train.loop import Schedule

    schedule = Schedule(steps=50, log=10, save=25, epoch=5, together=4)
    number, sizes = 0, []
    while number < 50:
        sizes.append(schedule.at_once(number))
        number += sizes[-1]
    assert number == 50 and set(sizes) == {1, 4}
    ends = set(np.cumsum(sizes).tolist())
    assert ends >= {10, 20, 25, 30, 40, 50}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": 3}, "does not divide into 3 parts; choose parts that divide 16"),
        ({"parts": 0}, "parts is 0; 1 or more was expected"),
        ({"together": -1}, "together is -1"),
    ],
)
def test_bad_sizes_are_one_sentence(tmp_path, changes, message):
    with pytest.raises(NasjaxError, match=message):
        search(tmp_path, **changes)


def test_what_cannot_go_together(tmp_path):
    session = open_session(tmp_path, {}, mesh=one_device())
    recipe = dataclasses.replace(RECIPE, together=2)
    source = data.RecordSource([{"image": np.zeros((4, 4, 1), np.uint8), "label": 0}] * 32)
    with pytest.raises(NasjaxError, match="comes step by step; set together to 1"):
        phases.make_loader(session, source, recipe, (4, 4, 1), 0)
    net = patches()
    with pytest.raises(NasjaxError, match="has static choices"):
        train_supernet(session, net, sampling.uniform(net.space), dataset(), recipe)
    assert architecture.sample(net.space, jax.random.key(0))
