"""Training by sampling: the gradient of one sub-network, of several, of two ends; a whole run."""

import dataclasses
import functools
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nasjax import data, sampling
from nasjax.core import architecture
from nasjax.core.errors import NasjaxError
from nasjax.core.mixture import one_hot
from nasjax.core.program import Program
from nasjax.core.supernet import STATISTICS
from nasjax.train import loop, optim, phases, sharding, steps
from nasjax.train import state as states
from nasjax.train.errors import Stopped
from nasjax.train.one_shot import train_supernet
from nasjax.train.probes import Probes, held_out
from nasjax.train.session import open_session
from tests.toys import CLASSES, SHAPE, dataset, one_device, patches, randomised, toy

RATE = 0.5
TX = optim.partitioned(optax.sgd(RATE))
SMALL = {"width": 4, "depth": 1, "heads": [1]}
ARCHS = [
    SMALL,
    {"width": 8, "depth": 2, "heads": [2, 1]},
    {"width": 4, "depth": 2, "heads": [0, 2]},
]


def batch(seed=0):
    images = jax.random.normal(jax.random.key(seed), (6, *SHAPE))
    return {"image": images, "label": jnp.arange(6) % CLASSES}


def prepare(key, batch):
    del key
    return batch["image"], jax.nn.one_hot(batch["label"], CLASSES)


def encoded(net, archs):
    return np.stack([architecture.encode(net.space, arch) for arch in archs])


@functools.cache
def made(norm=False):
    net = toy(norm)
    step = jax.jit(steps.one_shot_step([net], net.module, TX, prepare))
    return net, step, states.create(jax.random.key(1), randomised(net), TX)


def moved(net, step, state, archs):
    """How far a step of SGD moves each weight, which is its gradient; and the metrics."""
    after, metrics = step(state, batch(), encoded(net, archs))
    gradient = jax.tree.map(lambda a, b: (a - b) / RATE, state.weights, after.weights)
    return jax.device_get(gradient), metrics


def assert_close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), got, expected)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
def test_the_gradient_of_a_path_is_that_of_the_extracted_network(norm):
    net, step, state = made(norm)
    for arch in ARCHS[1:] if norm else ARCHS[:2]:
        got, metrics = moved(net, step, state, [arch])
        small = net.extract({"params": state.weights, **net.empty_statistics}, arch)
        alone = states.create(
            jax.random.key(1), small["params"], TX, statistics=small.get(STATISTICS, {})
        )
        train = jax.jit(steps.train_step(net.network(arch), TX, prepare))
        after, expected = train(alone, batch())
        gradient = jax.tree.map(lambda a, b: (a - b) / RATE, small["params"], after.weights)
        assert_close(net.extract({"params": got}, arch)["params"], gradient)
        for name in ("train_loss", "train_accuracy", "gradient_norm/weights"):
            assert float(metrics[name]) == pytest.approx(float(expected[name]), rel=1e-4)


def test_what_is_not_part_of_the_path_does_not_move():
    net, step, state = made()
    for arch in ARCHS:
        got, _ = moved(net, step, state, [arch])
        ones = jax.tree.map(jnp.ones_like, {"params": state.weights})
        inside = net.superpose(ones, one_hot(net.space, arch))["params"]
        for path, mask in jax.tree.leaves_with_path(inside):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            value = got
            for part in path:
                value = value[part.key]
            if f"blocks_{arch['depth']}" not in name:  # a block beyond the depth writes nothing
                assert np.all(value[np.asarray(mask) == 0] == 0), name
            else:
                assert not np.any(value), name
        assert np.any(got["stem"]["kernel"])


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
def test_several_paths_are_the_mean_of_their_gradients(norm):
    net, step, state = made(norm)
    single = [moved(net, step, state, [arch]) for arch in ARCHS]
    got, metrics = moved(net, step, state, ARCHS)
    assert_close(got, jax.tree.map(lambda *g: sum(g) / 3, *(g for g, _ in single)))
    for name in ("train_loss", "train_accuracy"):
        mean = np.mean([float(m[name]) for _, m in single])
        assert float(metrics[name]) == pytest.approx(mean, rel=1e-5)
    assert np.any(single[0][0]["head"]["kernel"] != single[1][0]["head"]["kernel"])


def test_one_program_for_all_architectures():
    net = toy()
    step = Program(steps.one_shot_step([net], net.module, TX, prepare))
    state = states.create(jax.random.key(1), randomised(net), TX)
    for seed in range(6):
        drawn = architecture.sample(net.space, jax.random.key(seed))
        state, _ = step(state, batch(seed), encoded(net, [drawn]))
    assert step.compiles == 1 and int(state.step) == 6


def test_the_logits_of_two_ends_are_added_up():
    left, right = toy(), toy(side="right")
    weights = randomised(left)
    step = jax.jit(steps.one_shot_step([left, right], left.module, TX, prepare))
    state = states.create(jax.random.key(1), weights, TX)
    arch = ARCHS[2]

    def loss(weights):
        logits = 0.0
        for net in (left, right):
            small = net.extract({"params": weights}, arch)
            logits = logits + net.network(arch).apply(small, batch()["image"], train=True)
        return optax.softmax_cross_entropy(logits, prepare(None, batch())[1]).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(weights)
    got, metrics = moved(left, step, state, [arch])
    assert_close(got, gradient)
    assert float(metrics["train_loss"]) == pytest.approx(float(value), rel=1e-5)
    # Both ends of the widest layers have moved, of a network of half their width.
    assert np.all(np.any(got["stem"]["kernel"], 0))


def test_a_path_that_is_not_finite_changes_nothing():
    net, step, state = made()
    bad = {**batch(), "image": jnp.full((6, *SHAPE), jnp.nan)}
    after, metrics = step(state, bad, encoded(net, [SMALL]))
    assert int(after.skipped) == 1 and not bool(jnp.all(metrics["finite/weights"]))
    jax.tree.map(np.testing.assert_array_equal, after.weights, state.weights)


RECIPE = phases.Recipe(
    epochs=3,
    batch_size=16,
    optimizer=optim.Optimizer(learning_rate=1e-2),
    average=0.5,
    log_every=2,
    save_every=3,
)
PROBES = Probes(every=4, random=2, batch_size=16, examples=8)
COMPILED = "examples a batch"  # is in what is logged whenever a step is compiled
STEPS = 12  # three epochs of 64 of 80 images


def run(folder, net=None, paths=1, mesh=None, stop=None, sampler=None, probes=PROBES, seed=3):
    net = net or toy()
    session = open_session(folder, {}, mesh=mesh or one_device(), seed=seed)
    drawn = sampler or sampling.uniform(net.space, paths)
    if stop is not None:
        drawn = dataclasses.replace(drawn, draw=stopping(drawn.draw, stop))
    state = train_supernet(session, net, drawn, dataset(), RECIPE, probes=probes)
    return session, state


def stopping(draw, at):
    def other(key, step):
        if step == at:
            raise KeyboardInterrupt
        return draw(key, step)

    return other


def lines(folder):
    found = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in found:
        line.pop("steps_per_second")
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, *run(folder)


def test_a_super_network_is_trained_and_its_probes_are_logged(whole):
    folder, _, state = whole
    assert int(state.step) == STEPS and int(state.skipped) == 0
    found = lines(folder)
    assert [line["step"] for line in found] == [2, 4, 6, 8, 10, 12]
    assert all(line["phase"] == "search" and np.isfinite(line["train_loss"]) for line in found)
    seen = [line["step"] for line in found if "probes" in line]
    assert seen == [4, 8, 12]
    for line in found:
        if "probes" in line:
            assert list(line["probes"]) == ["smallest", "largest", "random 1", "random 2"]
            assert all(0 <= value <= 1 for value in line["probes"].values())
    # It learns: random images that are a little brighter by their class.
    assert found[-1]["train_loss"] < found[0]["train_loss"]


def test_a_training_that_is_stopped_anywhere_is_bit_identical(whole, tmp_path):
    folder, _, expected = whole
    for at in (5, 9):
        stopped = tmp_path / str(at)
        with pytest.raises(KeyboardInterrupt):
            run(stopped, stop=at)
        _, state = run(stopped)
        jax.tree.map(np.testing.assert_array_equal, state.weights, expected.weights)
        jax.tree.map(np.testing.assert_array_equal, state.average, expected.average)
        assert lines(stopped) == lines(folder)


def test_a_training_that_is_over_compiles_nothing(whole, tmp_path, caplog):
    folder, _, expected = whole
    shutil.copytree(folder, tmp_path / "again")
    with caplog.at_level(logging.INFO, logger="nasjax"):
        _, state = run(tmp_path / "again")
    assert COMPILED not in caplog.text
    jax.tree.map(np.testing.assert_array_equal, state.weights, expected.weights)


def test_another_seed_trains_other_paths(whole, tmp_path):
    _, _, expected = whole
    _, state = run(tmp_path, seed=4, probes=None)
    assert np.any(state.weights["head"]["kernel"] != expected.weights["head"]["kernel"])


def test_eight_devices_train_as_one_does_and_compile_once(whole, tmp_path, caplog):
    _, _, expected = whole
    with caplog.at_level(logging.INFO, logger="nasjax"):
        _, state = run(tmp_path, mesh=sharding.make_mesh(), probes=None)
    assert state.weights["head"]["kernel"].sharding.num_devices == 8
    assert caplog.text.count(COMPILED) == 1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        jax.device_get(state.weights),
        jax.device_get(expected.weights),
    )


def test_fair_sampling_trains_every_option_in_one_program(tmp_path, caplog):
    net = toy()
    drawn = []
    base = sampling.fair(net.space)

    def draw(key, step):
        drawn.extend(found := base.draw(key, step))
        return found

    with caplog.at_level(logging.INFO, logger="nasjax"):
        _, state = run(tmp_path, net, sampler=dataclasses.replace(base, draw=draw), probes=None)
    assert len(drawn) == 3 * STEPS and int(state.step) == STEPS
    assert caplog.text.count(COMPILED) == 1
    first = [arch["heads"][0] for arch in drawn]
    assert [first.count(option) for option in (0, 1, 2)] == [STEPS] * 3


def test_a_static_choice_has_a_program_for_each_of_its_options(tmp_path, caplog):
    """Also where a step has several paths, which fair sampling gives the same static options."""
    net = patches()
    with caplog.at_level(logging.INFO, logger="nasjax"):
        _, state = run(tmp_path, net, sampler=sampling.fair(net.space))
    assert caplog.text.count(COMPILED) == 2 and int(state.step) == STEPS
    assert set(state.weights) == {"embed_2", "embed_4", "head"}
    seen = [line["probes"] for line in lines(tmp_path) if "probes" in line]
    names = list(PROBES.networks(net.space, jax.random.key(0)))
    assert [list(probes) for probes in seen] == [names] * 3


def test_the_step_of_a_static_option_moves_its_own_parameters_alone():
    net = patches()
    state = states.create(jax.random.key(1), randomised(net), TX)
    for patch in (2, 4):
        arch = {"patch": patch, "width": 4}
        step = jax.jit(steps.one_shot_step([net], net.maximal(arch), TX, prepare))
        got, metrics = moved(net, step, state, [arch])
        assert not np.any(got[f"embed_{6 - patch}"]["kernel"])
        small = net.extract({"params": state.weights}, arch)
        assert set(small["params"]) == {f"embed_{patch}", "head"}

        def loss(params, arch=arch):
            logits = net.network(arch).apply({"params": params}, batch()["image"], train=True)
            return optax.softmax_cross_entropy(logits, prepare(None, batch())[1]).mean()

        value, gradient = jax.jit(jax.value_and_grad(loss))(small["params"])
        assert float(metrics["train_loss"]) == pytest.approx(float(value), rel=1e-5)
        assert_close(net.extract({"params": got}, arch)["params"], gradient)


def test_paths_of_different_static_options_are_refused(tmp_path):
    net = patches()
    with pytest.raises(NasjaxError, match=r"have different patch, which run in .*, or fairly"):
        run(tmp_path, net, paths=8, probes=None)


def test_given_weights_are_where_it_starts(tmp_path):
    net = toy()
    weights = randomised(net)
    session = open_session(tmp_path, {}, mesh=one_device())
    still = dataclasses.replace(
        RECIPE, epochs=0.3, average=0.0, optimizer=optim.Optimizer(learning_rate=1e-9)
    )
    state = train_supernet(
        session, net, sampling.uniform(net.space), dataset(), still, weights=weights
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.weights, weights)


def test_what_is_held_out_trains_nothing(tmp_path):
    """Each image is numbered in its pixels, so that it can be found again."""
    images = np.zeros((50, *SHAPE), np.uint8)
    images[:, 0, 0, 0] = np.arange(50)
    labels = np.arange(50, dtype=np.int32) % CLASSES
    numbered = data.from_arrays(images, labels, images[:5], labels[:5], num_classes=CLASSES)
    session = open_session(tmp_path, {}, mesh=one_device(), seed=3)
    unseen = held_out(numbered, 0.8, session.seed).test
    rows = np.asarray(unseen.images)[:, 0, 0, 0]
    assert len(rows) == len(set(rows.tolist())) == 10
    np.testing.assert_array_equal(unseen.labels, labels[rows])  # with their own labels
    few = held_out(numbered, 0.8, session.seed, 4).test
    assert len(few) == 4 and set(few.images[:, 0, 0, 0].tolist()) < set(rows.tolist())
    assert len(held_out(numbered, 0.8, session.seed, 400).test) == 10

    trained = set()

    def remember(phase, state, step, loaders, *rest, **options):
        for number in range(8):
            trained.update(np.asarray(loaders[0].batch(number)["image"])[:, 0, 0, 0].tolist())
        raise Stopped("seen enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "run", remember)
        net = toy()
        recipe = dataclasses.replace(RECIPE, batch_size=10)
        with pytest.raises(Stopped):
            train_supernet(session, net, sampling.uniform(net.space), numbered, recipe)
    assert len(trained) == 40 and not trained & set(rows.tolist())


@pytest.mark.parametrize("bad", [{"every": 0}, {"random": -1}, {"batch_size": 0}])
def test_probes_that_cannot_be_looked_at(bad):
    with pytest.raises(NasjaxError, match="cannot be looked at; every and batch_size from 1"):
        Probes(**{"every": 4, **bad})


def test_images_of_another_size_are_refused(tmp_path):
    net = dataclasses.replace(toy(), input_shape=(8, 8, 1))
    session = open_session(tmp_path, {}, mesh=one_device())
    with pytest.raises(NasjaxError, match="gives images of 4 x 4 x 1, but space 'toy' is built"):
        train_supernet(session, net, sampling.uniform(net.space), dataset(), RECIPE)
