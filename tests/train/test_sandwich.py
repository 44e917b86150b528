"""The sandwich rule: its gradient, its programs, its teachers, and a training that is resumed."""

import dataclasses
import functools
import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nasjax import data, sampling, spaces
from nasjax.core import architecture
from nasjax.core.errors import NasjaxError
from nasjax.core.program import Program
from nasjax.core.supernet import STATISTICS
from nasjax.train import optim, projection, sharding
from nasjax.train import state as states
from nasjax.train.distillation import DISTILLATIONS, soft_target
from nasjax.train.losses import accuracy, cross_entropy
from nasjax.train.one_shot import train_supernet
from nasjax.train.sandwich import (
    Sandwich,
    conflict_ratios,
    no_conflicts,
    sandwich_step,
    stacked_tensors,
)
from nasjax.train.session import open_session
from nasjax.train.teachers import Numbered, network_teacher, read_logits, stored_teacher
from tests.toys import CLASSES, SHAPE, dataset, one_device, patches, randomised, toy
from tests.train.test_one_shot import COMPILED, RECIPE, STEPS, batch, encoded, lines, prepare

RATE = 0.5
TX = optim.partitioned(optax.sgd(RATE))
SMALL = {"width": 4, "depth": 1, "heads": [0]}
LARGE = {"width": 8, "depth": 2, "heads": [2, 2]}
ARCHS = [LARGE, SMALL, {"width": 8, "depth": 2, "heads": [2, 1]}]
PLAIN = Sandwich(projection="sum")


@functools.cache
def made(settings=PLAIN, norm=False, start=0):
    net = toy(norm)
    step = Program(sandwich_step(net, ARCHS, TX, prepare, settings, start=start, window=2))
    state = states.create(jax.random.key(1), randomised(net), TX, statistics=no_conflicts(net))
    return net, step, state


def moved(step, state, paths, *given, images=None):
    """How far a step of SGD moves each weight, which is its gradient; and what comes after."""
    after, metrics = step(state, images or batch(), paths, *given)
    gradient = jax.tree.map(lambda a, b: (a - b) / RATE, state.weights, after.weights)
    return jax.device_get(gradient), after, metrics


@functools.cache
def apart(distillation="alpha", norm=False):
    """Gradients of the networks alone: of the largest, and of the others added up."""
    net, _, state = made(norm=norm)
    images, labels = prepare(None, batch())

    def run(weights, arch):
        given = net.extract({"params": weights, **net.empty_statistics}, arch)
        logits, _ = net.network(arch).apply(given, images, train=True, mutable=[STATISTICS])
        return logits

    target = run(state.weights, LARGE)
    losses = [lambda w: cross_entropy(run(w, LARGE), labels)]
    losses += [
        lambda w, a=arch: DISTILLATIONS[distillation](run(w, a), target) for arch in ARCHS[1:]
    ]
    found = [jax.jit(jax.value_and_grad(loss))(state.weights) for loss in losses]
    subnets = jax.tree.map(lambda *g: sum(g), *(g for _, g in found[1:]))
    right = [float(accuracy(run(state.weights, arch), labels)) for arch in ARCHS]
    return found[0][1], subnets, [float(v) for v, _ in found], right


def assert_close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=5e-5), got, expected)


@pytest.mark.parametrize(
    ("distillation", "norm"), [("alpha", False), ("kl", False), ("alpha", True)]
)
def test_the_gradient_is_the_sum_of_those_of_the_networks_alone(distillation, norm):
    net, step, state = made(dataclasses.replace(PLAIN, distillation=distillation), norm)
    got, _, metrics = moved(step, state, encoded(net, ARCHS))
    supernet, subnets, losses, right = apart(distillation, norm)
    assert_close(got, jax.tree.map(jnp.add, supernet, subnets))
    expected = {
        "train_loss": losses[0],
        "train_accuracy": right[0],
        "distillation_loss": np.mean(losses[1:]),
        "subnets_accuracy": np.mean(right[1:]),
    }
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize(
    "settings",
    [Sandwich(first="supernet"), Sandwich(projection="released", clip=1.0)],
    ids=["super-network first", "released"],
)
def test_the_two_gradients_are_combined_as_the_settings_say(settings):
    net, step, state = made(settings)
    got, _, _ = moved(step, state, encoded(net, ARCHS))
    supernet, subnets, _, _ = apart()
    if settings.clip:
        subnets = projection.clip_norm(subnets, settings.clip)
    rule = projection.RULES[settings.projection]
    assert_close(got, projection.combine(subnets, supernet, first=settings.first, rule=rule))


def test_before_its_epoch_gradients_are_added_up_by_the_same_program():
    net, step, state = made(Sandwich(), start=3)
    supernet, subnets, _, _ = apart()
    plain = jax.tree.map(jnp.add, subnets, supernet)
    projected = projection.combine(subnets, supernet)
    pairs = zip(*map(jax.tree.leaves, (plain, projected)), strict=True)
    assert any(np.any(a != b) for a, b in pairs)
    for number, expected in ((2, plain), (3, projected)):
        at = dataclasses.replace(state, step=jnp.array(number))
        assert_close(moved(step, at, encoded(net, ARCHS))[0], expected)
    assert step.compiles == 1


def test_one_program_for_all_random_architectures():
    net, step, state = made()
    sampler = sandwich_of(net, 1)
    seen = set()
    for number in range(6):
        archs = sampler(jax.random.key(0), number)
        seen.add(str(archs))
        state, _ = step(state, batch(number), encoded(net, archs))
    assert step.compiles == 1 and int(state.step) == 6 and len(seen) > 3


def test_the_sub_networks_learn_from_detached_logits():
    """With the largest network's own loss switched off nothing of it alone moves."""
    net, _, state = made()
    zero = jnp.zeros((), jnp.float32)
    silent = dataclasses.replace(
        network_teacher((_Constant(), {})),
        target=lambda v, images, batch: zero * images[:, :1, 0, 0],
    )
    step = jax.jit(sandwich_step(net, [LARGE, SMALL], TX, prepare, PLAIN, teacher=silent))
    got, _, metrics = moved(step, state, encoded(net, [LARGE, SMALL]), ())
    assert float(metrics["train_loss"]) == 0
    assert not np.any(got["blocks_1"]["in"]["kernel"]) and np.any(got["stem"]["kernel"])


def test_a_network_that_is_not_finite_changes_nothing_but_is_noted():
    net, step, state = made(Sandwich(), start=3)
    bad = {**batch(), "image": jnp.full((6, *SHAPE), jnp.nan)}
    _, after, _ = moved(step, state, encoded(net, ARCHS), images=bad)
    assert int(after.skipped) == 1
    jax.tree.map(np.testing.assert_array_equal, after.weights, state.weights)
    assert np.isnan(conflict_ratios(after)["conflict_ratio"])  # none has a cosine


# Static choices.


def test_each_path_runs_in_the_module_of_its_own_static_option():
    net = patches()
    archs = [{"patch": p, "width": w} for p, w in ((4, 6), (2, 2), (2, 4), (4, 4))]
    weights = randomised(net)
    state = states.create(jax.random.key(1), weights, TX, statistics=no_conflicts(net))
    step = jax.jit(sandwich_step(net, archs, TX, prepare, PLAIN))
    got, _, _ = moved(step, state, encoded(net, archs))
    images, labels = prepare(None, batch())

    def run(weights, arch):
        return net.network(arch).apply(net.extract({"params": weights}, arch), images)

    target = run(weights, archs[0])
    alpha = DISTILLATIONS["alpha"]

    def loss(weights):
        others = sum(alpha(run(weights, arch), target) for arch in archs[1:])
        return cross_entropy(run(weights, archs[0]), labels) + others

    assert_close(got, jax.jit(jax.grad(loss))(weights))


def test_a_training_has_a_program_for_each_static_option_of_the_random_ones(tmp_path, caplog):
    net = patches()
    sampler = sandwich_of(net, 2)
    drawn = [sampler(jax.random.key(0), step) for step in range(30)]
    for largest, smallest, *randoms in drawn:
        assert largest == {"patch": 4, "width": 6} and smallest == {"patch": 2, "width": 2}
        assert len({arch["patch"] for arch in randoms}) == 1
    assert {archs[2]["patch"] for archs in drawn} == {2, 4}
    with caplog.at_level(logging.INFO, logger="nasjax"):
        state = trained(tmp_path, net, sampler=sampler)
    assert caplog.text.count(COMPILED) == 2 and int(state.step) == STEPS


# Conflicts.


def test_conflicts_are_counted_over_a_window_and_by_layer():
    net, step, state = made()
    paths = encoded(net, ARCHS)
    supernet, subnets, _, _ = apart()
    cosines = projection.cosines(supernet, subnets)
    expected = float(projection.conflict_ratio(cosines))
    one, _ = step(state, batch(), paths)
    ratios = conflict_ratios(one)
    assert ratios["conflict_ratio"] == pytest.approx(expected) and 0 < expected < 1
    for name, part in cosines.items():
        if any(np.any(c) for c in jax.tree.leaves(part)):
            share = float(projection.conflict_ratio(part))
            assert ratios["conflicts"][name] == pytest.approx(share)
    tensors = [sum(one.statistics["tensors"].values())]
    for number in range(1, 5):
        one, _ = step(dataclasses.replace(one, weights=state.weights), batch(number), paths)
        tensors.append(sum(one.statistics["tensors"].values()))
    first, *rest = (float(x) for x in tensors)
    assert rest == [2 * first, first, 2 * first, first] and first > 4


def test_scanned_layers_are_counted_and_projected_one_by_one():
    net = spaces.quickstart()
    stacked = stacked_tensors(net)
    assert any(jax.tree.leaves(stacked["blocks"])) and not any(jax.tree.leaves(stacked["head"]))
    counts = no_conflicts(net)["tensors"]
    depth = net.space.axis_size("blocks")
    assert counts["blocks_"].shape == (depth,) and counts["head"].shape == ()
    state = states.create(jax.random.key(0), {}, TX, statistics=no_conflicts(net))
    ones = jax.tree.map(jnp.ones_like, state.statistics)
    names = conflict_ratios(dataclasses.replace(state, statistics=ones))["conflicts"]
    assert {f"blocks_{i}" for i in range(depth)} < set(names) and "head" in names


# A whole training.


def sandwich_of(net, paths):
    return sampling.sandwich(net.space, sampling.uniform(net.space, paths))


def trained(folder, net=None, stop=None, mesh=None, seed=3, recipe=RECIPE, **options):
    net = net or toy()
    session = open_session(folder, {}, mesh=mesh or one_device(), seed=seed)
    sampler = options.pop("sampler", None) or sandwich_of(net, 1)
    if stop is not None:
        draw = sampler.draw

        def stopping(key, step):
            if step == stop:
                raise KeyboardInterrupt
            return draw(key, step)

        sampler = dataclasses.replace(sampler, draw=stopping)
    return train_supernet(session, net, sampler, dataset(), recipe, **options)


SETTINGS = Sandwich(from_epoch=1.5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, trained(folder, sandwich=SETTINGS)


def test_a_training_logs_its_losses_and_its_conflicts(whole):
    folder, state = whole
    assert int(state.step) == STEPS
    found = lines(folder)
    assert [line["step"] for line in found] == [2, 4, 6, 8, 10, 12]
    for line in found:
        assert {"train_loss", "train_accuracy", "distillation_loss", "subnets_accuracy"} < {*line}
        assert 0 <= line["conflict_ratio"] <= 1
        assert set(line["conflicts"]) == {"stem", "blocks_0", "blocks_1", "head"} & {
            *line["conflicts"]
        }
        assert {"stem", "head"} <= set(line["conflicts"])
    assert found[-1]["train_loss"] < found[0]["train_loss"]


def test_a_training_that_is_stopped_anywhere_is_bit_identical(whole, tmp_path):
    """Also its log, whose conflicts were counted over steps before and after the stop."""
    folder, expected = whole
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop=5, sandwich=SETTINGS)  # in a window, and before the projections
    state = trained(tmp_path, sandwich=SETTINGS)
    jax.tree.map(np.testing.assert_array_equal, state.weights, expected.weights)
    jax.tree.map(np.testing.assert_array_equal, state.average, expected.average)
    assert lines(tmp_path) == lines(folder)


def test_eight_devices_train_as_one_does_and_compile_once(whole, tmp_path, caplog):
    _, expected = whole
    with caplog.at_level(logging.INFO, logger="nasjax"):
        state = trained(tmp_path, mesh=sharding.make_mesh(), sandwich=SETTINGS)
    assert caplog.text.count(COMPILED) == 1
    got = jax.device_get(state.weights)
    # Adam divides what a projection leaves of a gradient by its size, rounding and all.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-2), got, expected.weights)


# Teachers.


class _Constant(nn.Module):
    """Logits that its single parameter holds, of any image."""

    @nn.compact
    def __call__(self, images):
        logits = self.param("logits", nn.initializers.normal(), (CLASSES,))
        return jnp.broadcast_to(logits, (len(images), CLASSES))


def test_the_largest_network_learns_from_networks_that_are_no_part_of_the_program():
    net, _, state = made()
    logits = [jnp.arange(CLASSES) / 3.0, jnp.ones(CLASSES)]
    pairs = [(_Constant(), {"params": {"logits": x}}) for x in logits]
    teacher = network_teacher(*pairs)
    step = Program(sandwich_step(net, ARCHS, TX, prepare, PLAIN, teacher=teacher))
    _, _, metrics = moved(step, state, encoded(net, ARCHS), teacher.variables)
    images, labels = prepare(None, batch())
    output = net.network(LARGE).apply({"params": state.weights}, images, train=True)
    target = soft_target([jnp.broadcast_to(x, output.shape) for x in logits])
    assert float(metrics["train_loss"]) == pytest.approx(float(cross_entropy(output, target)), 1e-5)
    assert float(metrics["train_accuracy"]) == pytest.approx(float(accuracy(output, labels)))
    others = jax.tree.map(lambda x: x + jnp.arange(CLASSES), teacher.variables)
    _, _, again = moved(step, state, encoded(net, ARCHS), others)
    assert step.compiles == 1 and float(again["train_loss"]) != float(metrics["train_loss"])


def test_stored_logits_find_their_examples(whole, tmp_path):
    """Logits that are sure of the right class are labels, however the data are divided."""
    sure = 100.0 * np.eye(CLASSES, dtype=np.float16)[dataset().train.labels]
    for shift, same in ((0, True), (1, False)):  # those of each example's neighbour are wrong
        teacher = stored_teacher(np.roll(sure, shift, axis=0))
        state = trained(tmp_path / str(shift), sandwich=SETTINGS, teacher=teacher)
        pairs = zip(*map(jax.tree.leaves, (state.weights, whole[1].weights)), strict=True)
        assert all(np.allclose(a, b, atol=1e-2) for a, b in pairs) == same


def test_examples_are_numbered_on_all_devices():
    place = sharding.batches(sharding.make_mesh())
    loader = data.make_loader(dataset().train, 16, seed=0, sharding=place)
    for step in (0, 7):
        numbered = Numbered(loader, place).batch(step)
        assert numbered["index"].sharding == numbered["label"].sharding
        rows = np.asarray(numbered["index"])
        np.testing.assert_array_equal(numbered["label"], dataset().train.labels[rows])


def test_logits_in_files(tmp_path):
    logits = np.arange(12, dtype=np.float16).reshape(3, 4)
    np.save(tmp_path / "a.npy", logits)
    np.savez(tmp_path / "b.npz", logits=logits)
    np.savez(tmp_path / "c.npz", logits=logits, other=logits)
    for name in ("a.npy", "b.npz"):
        np.testing.assert_array_equal(read_logits(tmp_path / name, 4, 3), logits)
    with pytest.raises(NasjaxError, match=r"have shape \(3, 4\), but the data have 5 training"):
        read_logits(tmp_path / "a.npy", 4, 5)
    with pytest.raises(NasjaxError, match="holds 2 arrays; one of logits was expected"):
        read_logits(tmp_path / "c.npz", 4, 3)
    with pytest.raises(NasjaxError, match="cannot be read"):
        read_logits(tmp_path / "d.npy", 4, 3)


def test_stored_logits_that_cannot_be_used():
    with pytest.raises(NasjaxError, match=r"floating-point \(examples, classes\) were expected"):
        stored_teacher(np.zeros((4, 3), int))
    with pytest.raises(NasjaxError, match="not finite"):
        stored_teacher(np.full((4, 3), np.nan))
    with pytest.raises(NasjaxError, match="of 4 examples, but there are more"):
        stored_teacher(np.zeros((4, 3))).of(np.arange(5))
    with pytest.raises(NasjaxError, match="need data in memory"):
        Numbered(object(), sharding.batches(one_device()))


# What is refused before anything is trained.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distillation": "alhpa"}, "distillation is 'alhpa'; did you mean 'alpha'"),
        ({"projection": "none"}, "projection is 'none'; .*sum, published, released"),
        ({"first": "largest"}, "first is 'largest'; .*subnets, supernet"),
        ({"clip": -1.0}, "clip is -1.0; a number from 0"),
        ({"from_epoch": float("nan")}, "from_epoch is nan; a number from 0"),
        ({"factor": 0.0}, "factor is 0.0; a number above 0"),
    ],
)
def test_settings_that_mean_nothing(settings, message):
    with pytest.raises(NasjaxError, match=message):
        Sandwich(**settings)


def test_trainings_that_cannot_be(tmp_path):
    net = toy()
    logits = stored_teacher(np.zeros((80, CLASSES), np.float32))
    mixing = dataclasses.replace(RECIPE.augmentation, mixup=0.1)
    cases = [
        ({"sandwich": Sandwich(from_epoch=3.0)}, "projected from epoch 3 of 3 on, which is never"),
        ({"others": [toy(side="right")]}, "trains one end of the weights"),
        (
            {"sampler": sampling.uniform(net.space), "teacher": logits},
            "'uniform' draws no sandwich",
        ),
        (
            {"teacher": logits, "recipe": dataclasses.replace(RECIPE, augmentation=mixing)},
            "of single images, which mixup and cutmix mix",
        ),
    ]
    for options, message in cases:
        with pytest.raises(NasjaxError, match=message):
            trained(tmp_path, net, **options)
    with pytest.raises(NasjaxError, match="1 paths make no sandwich"):
        sandwich_step(net, ARCHS[:1], TX, prepare)
    assert not (tmp_path / "checkpoints").exists()


def test_a_training_by_labels_alone_needs_no_settings(tmp_path):
    state = trained(tmp_path, recipe=dataclasses.replace(RECIPE, epochs=0.5))
    assert int(state.step) == 2


def test_orders_and_budgets_of_a_sandwich():
    net = toy()
    drawn = sampling.sampler("sandwich", net, {"params": (0, 160)}, paths=3)
    assert drawn.paths == 5 and drawn.name == "sandwich"
    for step in range(20):
        largest, smallest, *randoms = drawn(jax.random.key(0), step)
        assert [largest, smallest] == [architecture.largest(net.space), SMALL]
        assert len(randoms) == 3 and all(net.count("params", a) <= 160 for a in randoms)
    assert drawn(jax.random.key(0), 5) == drawn(jax.random.key(0), 5)
    with pytest.raises(NasjaxError, match="holds the largest network, whatever a budget says"):
        sampling.within(drawn, net, "params", 0, 160)
    with pytest.raises(NasjaxError, match="no largest and smallest"):
        sampling.sandwich(spaces.toy_cell().space)
