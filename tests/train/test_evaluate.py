"""Populations are evaluated as their networks would be one by one, in one program for all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nasjax
from nasjax import data
from nasjax.core import architecture
from nasjax.core.errors import NasjaxError
from nasjax.core.supernet import STATISTICS
from nasjax.train import sharding
from nasjax.train.evaluate import Evaluator
from nasjax.train.session import open_session
from tests.toys import dataset, one_device, patches, randomised, toy

NET, DATA = toy(), dataset(train=40, test=200)
WEIGHTS = randomised(NET)
BATCH = 64
KEYS = [jax.random.key(i) for i in range(30)]


def drawn(net, count=7):
    """Different architectures."""
    archs = {str(a): a for a in (architecture.sample(net.space, key) for key in KEYS)}
    return list(archs.values())[:count]


ARCHS = drawn(NET)


def evaluator(folder, chunk=None, mesh=None, dataset=DATA, batch_size=BATCH):
    session = open_session(folder, {}, mesh=mesh or one_device())
    return Evaluator(session, dataset, batch_size, chunk=chunk)


def alone(net, weights, arch, statistics=None):
    """Accuracy of the extracted network, on all test images at once."""
    small = {**net.extract({"params": weights}, arch), **(statistics or {})}
    images = data.normalize(DATA.test.images, DATA.mean, DATA.std)
    logits = jax.jit(net.network(arch).apply)(small, images)
    return float(np.mean(np.argmax(logits, -1) == DATA.test.labels))


@pytest.fixture(scope="module")
def truth():
    found = [alone(NET, WEIGHTS, arch) for arch in ARCHS]
    assert len(set(found)) > 3  # else their order could not be told
    return found


@pytest.mark.parametrize("chunk", [None, 1, 4, 7, 16])
def test_a_population_is_evaluated_as_its_networks_are_in_its_order(tmp_path, truth, chunk):
    judge = evaluator(tmp_path, chunk)
    assert judge.architectures(NET, WEIGHTS, ARCHS) == pytest.approx(truth, abs=1e-6)
    again = judge.architectures(NET, WEIGHTS, [*ARCHS[::-1], ARCHS[2], ARCHS[2]])
    assert again == pytest.approx([*truth[::-1], truth[2], truth[2]], abs=1e-6)
    other = jax.tree.map(lambda x: -x, WEIGHTS)
    found = judge.architectures(NET, other, ARCHS[:3])
    assert found == pytest.approx([alone(NET, other, a) for a in ARCHS[:3]], abs=1e-6)
    assert judge.architecture(NET, WEIGHTS, ARCHS[4]) == pytest.approx(truth[4], abs=1e-6)
    assert judge.compiles == 1 and judge.chunk == (chunk or 1)
    assert judge.architectures(NET, WEIGHTS, []) == []


def test_eight_devices_share_the_images(tmp_path, truth):
    judge = evaluator(tmp_path, 4, sharding.make_mesh())
    assert judge.architectures(NET, WEIGHTS, ARCHS) == pytest.approx(truth, abs=1e-6)


def test_results_come_chunk_by_chunk(tmp_path, truth):
    coming = evaluator(tmp_path, 4).population(NET, WEIGHTS, ARCHS)
    first = [next(coming) for _ in range(2)]
    assert [arch for arch, _ in first] == ARCHS[:2]
    rest = list(coming)
    assert [arch for arch, _ in first + rest] == ARCHS
    assert [value for _, value in first + rest] == pytest.approx(truth, abs=1e-6)
    assert all(type(value) is float for _, value in rest)


@pytest.mark.parametrize("chunk", [1, 4])
def test_statistics_of_batch_norms_are_those_of_each_architecture(tmp_path, chunk):
    net = toy(norm=True)
    weights, archs = randomised(net), drawn(net, 4)
    judge = evaluator(tmp_path, chunk, batch_size=20)
    found = judge.architectures(net, weights, archs)
    rows = np.linspace(0, 39, 40).astype(int)
    batches = jnp.stack(
        [
            data.normalize(jnp.asarray(DATA.train.images[part]), DATA.mean, DATA.std)
            for part in rows.reshape(2, 20)
        ]
    )
    for arch, value in zip(archs, found, strict=True):
        small = net.extract({"params": weights, **net.empty_statistics}, arch)
        own = nasjax.calibrate_batch_stats(net.network(arch), small, batches)
        expected = alone(net, weights, arch, {STATISTICS: own})
        assert value == pytest.approx(expected, abs=0.006)  # one of 200 images may tip over
    assert judge.compiles == 1
    # Other statistics would have been seen.
    zeros = [net.extract(net.empty_statistics, arch) for arch in archs]
    wrong = [alone(net, weights, a, z) for a, z in zip(archs, zeros, strict=True)]
    assert max(np.abs(np.subtract(wrong, found))) > 0.02


def test_static_options_have_a_program_each_and_the_order_is_kept(tmp_path):
    net = patches()
    weights, archs = randomised(net), list(architecture.every(net.space))
    mixed = [archs[i] for i in (3, 0, 4, 1, 5, 2)]
    assert [a["patch"] for a in mixed] == [4, 2] * 3
    judge = evaluator(tmp_path, 2)
    expected = [alone(net, weights, arch) for arch in mixed]
    assert judge.architectures(net, weights, mixed) == pytest.approx(expected, abs=1e-6)
    assert judge.compiles == 2
    # One program after the other; within each, in the order given.
    groups = [arch for arch, _ in judge.population(net, weights, mixed)]
    assert groups == [a for patch in (4, 2) for a in mixed if a["patch"] == patch]


def test_of_two_ends_it_is_the_mean(tmp_path):
    right = toy(side="right")
    judge = evaluator(tmp_path, 4)
    both = dict_of(judge.population(NET, WEIGHTS, ARCHS, [right]))
    first, second = (dict_of(judge.population(n, WEIGHTS, ARCHS)) for n in (NET, right))
    assert first != second
    for arch, value in both.items():
        assert value == pytest.approx((first[arch] + second[arch]) / 2, abs=1e-6)


def dict_of(pairs):
    return {str(arch): value for arch, value in pairs}


def test_where_memory_is_short_the_chunk_is_halved_and_nothing_is_lost(
    tmp_path, truth, monkeypatch, caplog
):
    judge = evaluator(tmp_path, 8)
    chunked, tried = judge._chunked, []

    def short(net, weights, archs):
        tried.append(len(archs))
        if judge.chunk > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return chunked(net, weights, archs)

    monkeypatch.setattr(judge, "_chunked", short)
    with caplog.at_level("INFO", logger="nasjax"):
        found = list(judge.population(NET, WEIGHTS, ARCHS))
    assert [arch for arch, _ in found] == ARCHS
    assert [value for _, value in found] == pytest.approx(truth, abs=1e-6)
    assert tried == [7, 4, 2, 2, 2, 1] and judge.chunk == 2
    assert "Memory is short: 2 architectures at once now." in caplog.text


@pytest.mark.parametrize(
    ("message", "chunk"), [("RESOURCE_EXHAUSTED: Out of memory", 1), ("INTERNAL: broken", 4)]
)
def test_what_cannot_be_helped_by_less_memory_is_raised(tmp_path, monkeypatch, message, chunk):
    judge = evaluator(tmp_path, chunk)

    def fail(net, weights, archs):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(judge, "_chunked", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        judge.architectures(NET, WEIGHTS, ARCHS)


def test_a_chunk_of_none_is_refused(tmp_path):
    with pytest.raises(NasjaxError, match="0 architectures at once are none; a chunk of 1 or more"):
        evaluator(tmp_path, 0)


def test_examples_that_fill_the_last_batch_do_not_count(tmp_path):
    """Of 50 images in batches of 16 the last 14 are padding."""
    few = dataclasses.replace(DATA, test=DATA.test.take(np.arange(50)))
    found = evaluator(tmp_path, 4, dataset=few, batch_size=16).architectures(NET, WEIGHTS, ARCHS)
    images = data.normalize(few.test.images, DATA.mean, DATA.std)
    for arch, value in zip(ARCHS[:3], found, strict=False):
        small = NET.extract({"params": WEIGHTS}, arch)
        logits = jax.jit(NET.network(arch).apply)(small, images)
        correct = int(np.sum(np.argmax(logits, -1) == few.test.labels))
        assert value == pytest.approx(correct / 50, abs=1e-6)
