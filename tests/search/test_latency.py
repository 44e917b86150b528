"""Latency: what is timed, in which order, what is kept; and what the predictor makes of it."""

import doctest
import importlib
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax import Choice, SearchSpace, spaces
from nasjax.core import architecture
from nasjax.core.cost import Term
from nasjax.core.errors import ArchitectureError
from nasjax.core.initial import draw
from nasjax.core.supernet import Supernet
from nasjax.search import latency, latency_predictor
from nasjax.search.errors import SearchError
from nasjax.search.latency import (
    Latency,
    architecture_latency,
    measure_architectures,
    measure_latencies,
    measure_latency,
)
from nasjax.search.latency_predictor import HeldOutError, LatencyPredictor

ONE = Latency(2.0, (1.5, 3.0), 8, 5, "abacus", "cpu", {"jax": "1", "nasjax": "2"})


class Normed(nn.Module):
    """A network with running statistics."""

    width: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(self.width)(x.reshape(x.shape[0], -1))
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(x))


class Untold(nn.Module):
    """A network that is not told whether it trains."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x)


class Counting(nn.Module):
    """A network that writes a collection whenever it runs."""

    @nn.compact
    def __call__(self, x, train=False):
        count = self.variable("counts", "calls", lambda: jnp.zeros(()))
        count.value += 1
        return x


TINY = Supernet(
    SearchSpace("tiny", (Choice("width", (2, 4, 6)), Choice("bias", (0, 1))), {"embed": "width"}),
    Normed(6),
    lambda arch: Normed(arch["width"]),
    (2, 2, 1),
    costs={"flops": [Term(4, ("embed",))]},
    patterns={},
)
ARCHS = list(architecture.every(TINY.space))


@pytest.fixture
def stopwatch(monkeypatch):
    """Networks that are numbers: running one moves a clock of our own on by so many seconds."""
    clock = [0.0]
    ran = []

    def compiled(module, variables, images):
        def program(variables, images):
            ran.append(module)
            clock[0] += module
            return images

        return program

    monkeypatch.setattr(latency, "_now", lambda: clock[0])
    monkeypatch.setattr(latency, "_compile", compiled)
    return ran


@pytest.fixture
def machine(stopwatch, monkeypatch):
    """Architectures of the tiny space take their width plus their bias, in seconds."""
    monkeypatch.setattr(
        latency, "_network", lambda supernet, arch: (arch["width"] + arch["bias"], {})
    )
    return stopwatch


def test_what_a_latency_says():
    assert (ONE.throughput, ONE.iqr) == (4000.0, 1.5)
    assert Latency.from_json(json.loads(json.dumps(ONE.as_json()))) == ONE
    assert str(ONE) == ("2 ms (quartiles 1.5 and 3) for a batch of 8 on abacus, 4000 images/s")
    for foreign in ({}, {**ONE.as_json(), "quartiles": [1]}, {**ONE.as_json(), "more": 1}):
        with pytest.raises(SearchError, match=r"is no latency: what Latency\.as_json\(\) wrote"):
            Latency.from_json(foreign)


def test_a_network_with_statistics_is_measured():
    found = architecture_latency(TINY, ARCHS[0], batch_size=3, warmup=0, repeats=4)
    device = jax.local_devices()[0]
    assert 0 < found.quartiles[0] <= found.median <= found.quartiles[1]
    assert (found.batch_size, found.repeats) == (3, 4)
    assert (found.device, found.platform) == (device.device_kind, device.platform)
    assert found.versions["jax"] == jax.__version__


def test_it_runs_where_it_is_told_with_images_as_they_are_told(monkeypatch):
    seen = []
    compiled = latency._compile

    def spy(module, variables, images):
        leaves = jax.tree.leaves((variables, images))
        seen.append((images.shape, images.dtype, {d for x in leaves for d in x.devices()}))
        return compiled(module, variables, images)

    monkeypatch.setattr(latency, "_compile", spy)
    device = jax.local_devices()[-1]
    variables = draw(Normed(2), jax.random.key(0), (2, 2, 1))
    options = {"batch_size": 5, "warmup": 1, "repeats": 1, "dtype": jnp.bfloat16}
    found = measure_latency(Normed(2), variables, (2, 2, 1), device=device, **options)
    assert seen == [((5, 2, 2, 1), jnp.bfloat16, {device})]
    assert found.median == found.quartiles[0] == found.quartiles[1] > 0


def test_median_and_quartiles_are_of_the_timed_rounds_alone(stopwatch, monkeypatch):
    ticks = iter([0, 99, 100, 101, 200, 202, 300, 303, 400, 404, 500, 505])
    monkeypatch.setattr(latency, "_now", lambda: next(ticks))
    found = measure_latency(1, {}, (1,), warmup=1, repeats=5, batch_size=2)
    assert (found.median, found.quartiles) == (3000.0, (2000.0, 4000.0))
    assert found.throughput == 2 / 3


def test_several_networks_are_measured_round_robin(stopwatch):
    networks = [(module, {}) for module in (1, 2, 4)]
    found = measure_latencies(networks, (1,), warmup=2, repeats=3)
    rounds = [stopwatch[i : i + 3] for i in range(0, len(stopwatch), 3)]
    assert len(rounds) == 5 and all(sorted(r) == [1, 2, 4] for r in rounds)
    assert len(set(map(tuple, rounds))) > 1  # not always after the same one
    assert [f.median for f in found] == [1000, 2000, 4000]
    assert measure_latencies([], (1,)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; a whole number from 1 was expected"),
        ({"repeats": 0}, "repeats is 0; a whole number from 1"),
        ({"repeats": 2.5}, r"repeats is 2\.5; a whole number from 1"),
        ({"repeats": True}, "repeats is True; a whole number from 1"),
        ({"warmup": -1}, "warmup is -1; a whole number from 0"),
        ({"device": "cpu"}, "device is 'cpu'; a single device was expected"),
    ],
)
def test_options_that_cannot_be(stopwatch, options, message):
    with pytest.raises(SearchError, match=message):
        measure_latency(1, {}, (1,), **options)
    with pytest.raises(SearchError, match=message):
        measure_architectures(TINY, ARCHS, **options)


def test_modules_that_cannot_be_measured():
    with pytest.raises(SearchError, match="Untold has no argument 'train'"):
        measure_latency(Untold(), {}, (1,))
    variables = draw(Normed(2), jax.random.key(0), (4,))
    alone = {"params": variables["params"]}
    with pytest.raises(SearchError, match=r"Normed does not run .* \['params'\] alone \("):
        measure_latency(Normed(2), alone, (4,))
    with pytest.raises(SearchError, match="modules that write others are not supported"):
        measure_latency(Counting(), {"counts": {"calls": jnp.zeros(())}}, (4,))


def test_architectures_are_measured_once_and_come_in_their_order(machine):
    found = measure_architectures(
        TINY, [*ARCHS, ARCHS[0]], group=4, warmup=0, repeats=2, batch_size=7
    )
    expected = [1000 * (a["width"] + a["bias"]) for a in [*ARCHS, ARCHS[0]]]
    assert [f.median for f in found] == expected and found[0].batch_size == 7
    assert len(machine) == 2 * len(ARCHS)
    order = list(dict.fromkeys(machine))
    assert order != sorted(order)  # at random, but always the same
    machine.clear()
    measure_architectures(TINY, ARCHS, group=4, warmup=0, repeats=2)
    assert list(dict.fromkeys(machine)) == order


def test_what_is_measured_is_not_measured_again(machine, tmp_path):
    path = tmp_path / "latency.jsonl"
    options = {"path": path, "group": 2, "warmup": 0, "repeats": 1}
    first = measure_architectures(TINY, ARCHS[:3], **options)
    assert len(path.read_text().splitlines()) == 3
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[0][:40])  # the run was killed while it wrote
    machine.clear()
    found = measure_architectures(TINY, ARCHS, **options)
    assert sorted(machine) == sorted(a["width"] + a["bias"] for a in ARCHS[3:])
    assert found[:3] == first
    assert path.read_text().startswith(whole)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == len(ARCHS) and {line["space"] for line in lines} == {"tiny"}
    machine.clear()
    assert measure_architectures(TINY, ARCHS, **options) == found and not machine


def test_groups_before_a_failure_are_kept(machine, tmp_path, monkeypatch):
    path = tmp_path / "latency.jsonl"
    measure = latency.measure_latencies
    left = [1]

    def fails(*arguments, **options):
        if not left.pop():
            raise KeyboardInterrupt
        left.append(0)
        return measure(*arguments, **options)

    monkeypatch.setattr(latency, "measure_latencies", fails)
    with pytest.raises(KeyboardInterrupt):
        measure_architectures(TINY, ARCHS, path=path, group=4, warmup=0, repeats=1)
    assert len(path.read_text().splitlines()) == 4


def test_measurements_made_otherwise_are_refused(machine, tmp_path):
    path = tmp_path / "latency.jsonl"
    measure_architectures(TINY, ARCHS[:1], path=path, warmup=0, repeats=1)
    with pytest.raises(SearchError, match=r"line 1 of .* with batch_size 1, but 2 is asked for"):
        measure_architectures(TINY, ARCHS, path=path, batch_size=2)
    with pytest.raises(SearchError, match="with dtype 'float32', but 'bfloat16' is asked for"):
        measure_architectures(TINY, ARCHS, path=path, dtype=jnp.bfloat16)
    path.write_text(path.read_text().replace('"width": 2', '"width": 3'))
    with pytest.raises(SearchError, match=r"line 1 of .* which does not lie in space 'tiny'"):
        measure_architectures(TINY, ARCHS, path=path)
    for foreign in ("a,b\n1,2\n", "notes", "{}\n", '{"space": 1}\n'):
        path.write_text(foreign)
        with pytest.raises(SearchError, match="is no file of measured architectures"):
            measure_architectures(TINY, ARCHS, path=path)
        assert path.read_text() == foreign
    with pytest.raises(SearchError, match="cannot be read"):
        measure_architectures(TINY, ARCHS, path=tmp_path)
    with pytest.raises(SearchError, match="cannot be written"):
        measure_architectures(TINY, ARCHS, path=tmp_path / "none" / "x", warmup=0, repeats=1)


def test_architectures_outside_of_the_space_are_refused(machine):
    with pytest.raises(ArchitectureError, match="width = 3"):
        measure_architectures(TINY, [{"width": 3, "bias": 0}])


# The predictor.


@pytest.fixture(scope="module")
def autoformer():
    """AutoFormer-S, random architectures of it, and a latency made up of all sorts of parts."""
    supernet = spaces.autoformer("S")
    archs = [architecture.sample(supernet.space, jax.random.key(i)) for i in range(90)]
    greatest = supernet.count("flops", architecture.largest(supernet.space))
    per_width = {320: 0.0, 384: 0.8, 448: 0.2}

    def time(arch):
        matrices = 6 * supernet.count("flops", arch) / greatest
        heads = 0.05 * arch["num_heads"].count(6)
        return 2 + matrices + 0.2 * arch["depth"] + per_width[arch["embed_dim"]] + heads

    true = np.array([time(arch) for arch in archs])
    noisy = true * (1 + 0.02 * np.random.default_rng(0).standard_normal(len(true)))
    return supernet, archs, true, noisy


@pytest.fixture(scope="module")
def fitted(autoformer):
    supernet, archs, _, noisy = autoformer
    return LatencyPredictor.fit(supernet, archs[:60], noisy[:60], device="abacus", batch_size=8)


def test_a_made_up_latency_is_predicted(autoformer, fitted):
    _, archs, true, _ = autoformer
    fresh = fitted.predict(archs[60:])
    assert np.mean(np.abs(fresh / true[60:] - 1)) < 0.02  # less than the noise of one measurement
    assert fitted.error.mape < 5 and fitted.error.tau > 0.5 and fitted.error.architectures == 12
    assert fitted.measured == 60
    assert isinstance(fitted(archs[0]), float) and fitted(archs[0]) == fitted.predict(archs)[0]
    assert str(fitted) == fitted.report()
    assert str(fitted).startswith("latency in autoformer_s on abacus, batch size 8: ")
    assert str(fitted).endswith("on 12 of 60 architectures, held out")


def test_few_architectures_suffice_for_the_trend(autoformer):
    supernet, archs, true, noisy = autoformer
    few = LatencyPredictor.fit(supernet, archs[:16], noisy[:16])
    assert np.mean(np.abs(few.predict(archs[16:]) / true[16:] - 1)) < 0.05
    assert few.error.architectures == 3


def test_the_same_measurements_give_the_same_model(autoformer, fitted):
    supernet, archs, _, noisy = autoformer
    again = LatencyPredictor.fit(supernet, archs[:60], noisy[:60], device="abacus", batch_size=8)
    assert again.to_json() == fitted.to_json()
    other = LatencyPredictor.fit(supernet, archs[:60], noisy[:60], seed=1)
    assert other.error != fitted.error  # others are held out
    assert other.coefficients == fitted.coefficients  # but the final model is of all


def test_the_unit_of_time_does_not_matter(autoformer, fitted):
    supernet, archs, _, noisy = autoformer
    micro = LatencyPredictor.fit(supernet, archs[:60], 1000 * noisy[:60])
    np.testing.assert_allclose(micro.predict(archs), 1000 * fitted.predict(archs), rtol=1e-6)
    assert micro.error.mape == pytest.approx(fitted.error.mape)
    assert micro.error.rmse == pytest.approx(1000 * fitted.error.rmse)


def test_features_are_the_counts_of_the_space(autoformer):
    supernet, archs, _, _ = autoformer
    features = latency_predictor._features(supernet)
    names = list(features)
    assert len(set(names)) == len(names)
    for arch in archs[:3]:
        sizes = latency_predictor._Sizes(supernet.space, arch)
        depth, width = arch["depth"], arch["embed_dim"]
        assert features["depth of blocks"](sizes) == depth
        assert features["embed_dim=384"](sizes) == (width == 384)
        assert features["num_heads=6"](sizes) == arch["num_heads"].count(6)
        hidden = sum(int(width * ratio) for ratio in arch["mlp_ratio"])
        assert features["params of embed*mlp in blocks"](sizes) == width * hidden
        # A total is the count less what all architectures have.
        others = [latency_predictor._Sizes(supernet.space, a) for a in archs[3:5]]
        for name in ("params", "flops"):
            rest = {supernet.count(name, s.arch) - features[name](s) for s in (sizes, *others)}
            assert len(rest) == 1
    # Matrix products are there once, not as parameters and as multiply-adds.
    assert "flops of embed*mlp in blocks" not in features


@pytest.mark.parametrize("name", ["toy_cell", "toy_conv_macro"])
def test_other_spaces_have_features(name):
    supernet = getattr(spaces, name)()
    archs = [architecture.sample(supernet.space, jax.random.key(i)) for i in range(12)]
    times = [1 + supernet.count("params", arch) / 1e6 for arch in archs]
    predictor = LatencyPredictor.fit(supernet, archs, times)
    np.testing.assert_allclose(predictor.predict(archs), times, rtol=0.05)


def test_leave_one_out_is_what_leaving_one_out_gives():
    rng = np.random.default_rng(0)
    table, times = rng.random((12, 3)), rng.uniform(1, 3, 12)
    root = 1 / times
    root /= np.sqrt(np.mean(root**2))
    scale = np.sqrt(
        np.average(
            (table - np.average(table, axis=0, weights=root**2)) ** 2, axis=0, weights=root**2
        )
    )

    def solve(keep, strength):
        rows = np.c_[np.ones(len(table)), table / scale][keep] * root[keep, None]
        penalty = strength * len(times) * np.diag([0, 1, 1, 1])  # none for the intercept
        target = (times * root)[keep]
        return np.linalg.solve(rows.T @ rows + penalty, rows.T @ target)

    def score(strength):
        total = 0.0
        for i in range(len(times)):
            solved = solve(np.arange(len(times)) != i, strength)
            total += ((np.r_[1, table[i] / scale] @ solved - times[i]) / times[i]) ** 2
        return total

    strengths = (1e-3, 1e-2, 1e-1, 1.0)
    weights, intercept, best = latency_predictor._ridge(table, times, strengths)
    assert best == min(strengths, key=score)
    solved = solve(np.full(len(times), True), best)
    np.testing.assert_allclose(np.r_[intercept, weights * scale], solved, rtol=1e-9)


def test_no_prediction_is_below_the_floor(autoformer):
    supernet, archs, _, _ = autoformer
    count = np.array([supernet.count("flops", arch) for arch in archs[:20]], float)
    steep = 1.0 + 100 * (count - count.min()) / np.ptp(count)
    predictor = LatencyPredictor.fit(supernet, archs[:20], steep, strengths=[1e-6])
    assert predictor.floor == 0.1
    assert predictor(supernet.architecture("smallest")) == predictor.floor
    assert all(predictor.predict(archs) > 0)


def test_measurements_bring_device_and_batch_along():
    found = [Latency(1.0 + i, (1, 2), 8, 1, "abacus", "cpu", {"jax": "1"}) for i in range(8)]
    supernet = spaces.quickstart()
    archs = [architecture.sample(supernet.space, jax.random.key(i)) for i in range(8)]
    predictor = LatencyPredictor.fit(supernet, archs, found)
    assert (predictor.device, predictor.batch_size) == ("abacus", 8)
    found[3] = ONE
    found[4] = Latency(1.0, (1, 2), 9, 1, "abacus", "cpu", {"jax": "1"})
    with pytest.raises(SearchError, match="several devices, batch sizes or versions of jax"):
        LatencyPredictor.fit(supernet, archs, found)


def test_an_architecture_measured_twice_is_on_one_side(autoformer):
    supernet, archs, true, noisy = autoformer
    twice = LatencyPredictor.fit(supernet, archs[:20] * 2, [*noisy[:20], *true[:20]])
    assert twice.measured == 20 and twice.error.architectures == 4
    with pytest.raises(SearchError, match="7 different architectures are too few"):
        LatencyPredictor.fit(supernet, archs[:7] * 2, [*noisy[:7], *true[:7]])


def test_equal_latencies_have_no_order(autoformer):
    supernet, archs, _, _ = autoformer
    predictor = LatencyPredictor.fit(supernet, archs[:8], [3.0] * 8)
    assert predictor.error.tau is None and "no Kendall tau" in str(predictor)
    assert predictor.predict(archs) == pytest.approx(3.0)
    assert json.loads(json.dumps(predictor.to_json()))["error"]["tau"] is None


def test_json_and_back(autoformer, fitted):
    supernet, archs, _, _ = autoformer
    data = json.loads(json.dumps(fitted.to_json(), allow_nan=False))
    assert (data["space"], data["device"], data["batch_size"]) == ("autoformer_s", "abacus", 8)
    again = LatencyPredictor.from_json(supernet, data)
    assert again.predict(archs).tolist() == fitted.predict(archs).tolist()
    assert again.error == fitted.error and isinstance(again.error, HeldOutError)
    assert again.to_json() == fitted.to_json()


def test_a_predictor_of_something_else_is_refused(autoformer, fitted):
    supernet, data = autoformer[0], fitted.to_json()
    for foreign in ({}, [], {**data, "format": "x"}, {**data, "error": {}}, {"format": "x"}):
        with pytest.raises(SearchError, match="this is no latency predictor"):
            LatencyPredictor.from_json(supernet, foreign)
    lacking = {n: v for n, v in data.items() if n != "floor"}
    with pytest.raises(SearchError, match="this is no latency predictor"):
        LatencyPredictor.from_json(supernet, lacking)
    for other in (
        spaces.autoformer("T"),
        spaces.autoformer("S", image_size=32),
        spaces.autoformer("S", options={"num_heads": (5, 6)}),
    ):
        with pytest.raises(SearchError, match="was fitted to space 'autoformer_s' with inputs"):
            LatencyPredictor.from_json(other, data)


def test_what_cannot_be_fitted(autoformer, fitted):
    supernet, archs, _, noisy = autoformer

    def fit(count=20, times=None, **options):
        times = noisy[:count].tolist() if times is None else times
        return LatencyPredictor.fit(supernet, archs[:count], times, **options)

    with pytest.raises(SearchError, match="20 architectures and 19 latencies"):
        fit(times=noisy[:19].tolist())
    with pytest.raises(SearchError, match="7 different architectures are too few"):
        fit(7)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(SearchError, match=r"the latency of architecture 2 is .* above 0"):
            fit(times=[1.0, 1.0, bad, *[1.0] * 17])
    for holdout in (0.0, 0.6, float("nan")):
        with pytest.raises(SearchError, match=r"a fraction up to 0\.5 was expected"):
            fit(holdout=holdout)
    for strengths in ((), (0.0,)):
        with pytest.raises(SearchError, match="numbers above 0 were expected"):
            fit(strengths=strengths)
    with pytest.raises(ArchitectureError, match="lacks 'depth'"):
        fitted({"embed_dim": 320})


def test_examples_of_docstrings():
    assert not doctest.testmod(importlib.import_module("nasjax.search.latency_predictor")).failed
