"""The bilevel step: which gradient sees which data, second order, partitions, the guard."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nasjax import relax
from nasjax.core.errors import NasjaxError
from nasjax.core.program import Program
from nasjax.spaces import vision_transformer
from nasjax.train import optim, steps
from nasjax.train import state as states

STEPS = 10


@pytest.fixture(scope="module")
def default(supernet):
    """The compiled first-order DARTS step and its state, which most tests share."""
    return make(supernet)


@pytest.fixture(scope="module")
def supernet():
    options = {
        "embed_dim": (8, 12),
        "depth": (1, 2),
        "num_heads": (1, 2),
        "mlp_ratio": (1.0, 2.0),
    }
    return vision_transformer(
        options, image_size=4, patch_size=2, num_classes=3, channels=1, head_dim=4, reach=1
    )


def batch(seed):
    key = jax.random.key(seed)
    return {"image": jax.random.normal(key, (6, 4, 4, 1)), "label": jnp.arange(6) % 3}


def prepare(key, batch):
    del key
    return batch["image"], jax.nn.one_hot(batch["label"], 3)


def transformation(**options):
    weights = optim.Optimizer(learning_rate=1e-2, **options).build(STEPS)
    return optim.partitioned(weights, optim.alphas_optimizer(1e-2).build(STEPS))


def make(supernet, method=None, tx=None, **options):
    tx = tx or transformation()
    method = method or relax.darts()
    step = steps.bilevel_step(supernet, method, tx, prepare, prepare, **options)
    alphas = relax.init_alphas(supernet.space, jax.random.key(1), scale=0.3)
    weights = supernet.init(jax.random.key(0))["params"]
    average = options.get("decay", 0) > 0
    create = functools.partial(states.create, tx=tx, average=average)
    return Program(step), jax.jit(create)(jax.random.key(2), weights, alphas=alphas)


def differ(first, second):
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), first, second)
    return not all(jax.tree.leaves(same))


def test_each_level_sees_its_own_data(default):
    step, state = default
    base, _ = step(state, batch(0), batch(1))
    other_weights_data, _ = step(state, batch(2), batch(1))
    other_alphas_data, _ = step(state, batch(0), batch(2))
    # The alphas move first and see only their own batch; the weights see theirs, and the alphas.
    assert not differ(base.alphas, other_weights_data.alphas)
    assert differ(base.weights, other_weights_data.weights)
    assert differ(base.alphas, other_alphas_data.alphas)


def test_weights_move_under_the_new_alphas(supernet, default):
    tx = transformation()
    step, state = default
    after, _ = step(state, batch(0), batch(1))

    @jax.jit
    def gradient(alphas):
        def loss(weights):
            mixed = relax.darts().mean(alphas)
            variables = supernet.superpose({"params": weights}, mixed)
            images, labels = prepare(None, batch(0))
            logits = supernet.module.apply(variables, images, train=True)
            return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), -1))

        return jax.grad(loss)(state.weights)

    for alphas, same in ((after.alphas, True), (state.alphas, False)):
        weights, _ = optim.update_partition(
            tx, optim.WEIGHTS, gradient(alphas), state.opt_state, state.trained
        )
        close = jax.tree.map(
            lambda a, b: bool(jnp.allclose(a, b, atol=1e-6)), weights, after.weights
        )
        assert all(jax.tree.leaves(close)) == same


def test_alphas_that_do_not_learn_stay_and_their_batch_is_not_looked_at(supernet):
    step, state = make(supernet, method=dataclasses.replace(relax.darts(), learns=False))
    after, metrics = step(state, batch(0), batch(1))
    assert not differ(state.alphas, after.alphas)
    assert differ(state.weights, after.weights)
    assert "val_loss" not in metrics
    other, _ = step(state, batch(0), batch(2))
    assert not differ(after.weights, other.weights)


def test_second_order_on_a_quadratic_is_the_closed_form():
    rate = 0.3
    a, w, b = (jnp.array(x) for x in (0.7, -1.2, 0.4))

    def ahead(weights, alphas):
        return weights - rate * jax.grad(lambda w: 0.5 * (w - alphas) ** 2)(weights)

    def loss(weights, alphas):
        return 0.5 * (weights - b) ** 2 + 0.25 * alphas**2, None

    gradient, _ = steps.architecture_gradient(loss, w, a, ahead)
    moved = w - rate * (w - a)
    np.testing.assert_allclose(gradient, (moved - b) * rate + 0.5 * a, rtol=1e-6)
    first, _ = steps.architecture_gradient(loss, w, a)
    np.testing.assert_allclose(first, 0.5 * a, rtol=1e-6)


def test_second_order_matches_finite_differences_in_float64(supernet):
    """Through a whole AdamW update of a vision transformer, to 1e-4."""
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)  # noqa: E731
        weights = wide(supernet.init(jax.random.key(0))["params"])
        alphas = wide(relax.init_alphas(supernet.space, jax.random.key(1), scale=0.3))
        tx = transformation(eps_root=1e-12)
        state = states.create(jax.random.key(2), weights, tx, alphas=alphas)
        data = [wide(prepare(None, batch(i))) for i in range(2)]

        def loss(weights, alphas, data):
            variables = supernet.superpose({"params": weights}, relax.darts().mean(alphas))
            logits = supernet.module.apply(variables, data[0], train=True)
            assert logits.dtype == jnp.float64
            return -jnp.mean(jnp.sum(data[1] * jax.nn.log_softmax(logits), -1))

        def ahead(weights, alphas):
            gradient = jax.grad(loss)(weights, alphas, data[0])
            trained = {optim.WEIGHTS: weights, optim.ALPHAS: alphas}
            return optim.update_partition(tx, optim.WEIGHTS, gradient, state.opt_state, trained)[0]

        @jax.jit
        def objective(alphas):
            return loss(ahead(weights, alphas), alphas, data[1])

        @jax.jit
        def analytic(alphas):
            outer = lambda w, a: (loss(w, a, data[1]), None)  # noqa: E731
            return steps.architecture_gradient(outer, weights, alphas, ahead)[0]

        exact = analytic(alphas)
        size, largest, worst = 1e-6, 0.0, 0.0
        for name, alpha in alphas.items():
            for index in np.ndindex(alpha.shape):
                up, down = (
                    objective({**alphas, name: alpha.at[index].add(s)}) for s in (size, -size)
                )
                numeric = float(up - down) / (2 * size)
                largest = max(largest, abs(numeric))
                worst = max(worst, abs(numeric - float(exact[name][index])))
        assert worst / largest < 1e-4


def test_second_order_step_runs_and_differs(supernet, default):
    first, state = default
    second, _ = make(supernet, tx=transformation(eps_root=1e-12), second_order=True)
    one, _ = first(state, batch(0), batch(1))
    # Adam's first step is the sign of the gradient; its first moment shows the gradient itself.
    two, _ = second(state, batch(0), batch(1))
    assert differ(one.opt_state.inner_states["alphas"], two.opt_state.inner_states["alphas"])
    assert all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves(two.alphas))


def test_partitions_do_not_touch_each_other(supernet):
    tx = transformation()
    _, state = make(supernet, tx=tx)
    gradient = jax.tree.map(jnp.ones_like, state.alphas)
    _, after = optim.update_partition(tx, optim.ALPHAS, gradient, state.opt_state, state.trained)
    inner = state.opt_state.inner_states
    assert not differ(after.inner_states["weights"], inner["weights"])
    assert differ(after.inner_states["alphas"], inner["alphas"])


def test_only_kernels_decay(supernet):
    weights = supernet.init(jax.random.key(0))["params"]
    decays = optim.decays({optim.WEIGHTS: weights, optim.ALPHAS: {"depth": jnp.zeros(2)}})
    flat = {
        jax.tree_util.keystr(p, simple=True, separator="/"): d
        for p, d in jax.tree_util.tree_leaves_with_path(decays)
    }
    assert flat["alphas/depth"]
    for path, decay in flat.items():
        if path.startswith("weights"):
            assert decay == path.endswith("kernel"), path
    assert any(p.endswith("fc1/kernel") for p in flat)


def test_weight_decay_reaches_weights_and_not_alphas_through_the_weights_optimizer(supernet):
    weights = optim.Optimizer(learning_rate=1.0, weight_decay=0.5, cosine=False).build(STEPS)
    tx = optim.partitioned(weights, optim.alphas_optimizer(1.0, weight_decay=0.0).build(STEPS))
    _, state = make(supernet, tx=tx)
    zero = jax.tree.map(jnp.zeros_like, state.trained)
    decayed, _ = optim.update_partition(
        tx, optim.WEIGHTS, zero["weights"], state.opt_state, state.trained
    )
    np.testing.assert_allclose(
        decayed["blocks"]["fc1"]["kernel"], 0.5 * state.weights["blocks"]["fc1"]["kernel"]
    )
    np.testing.assert_array_equal(decayed["positions"], state.weights["positions"])
    same, _ = optim.update_partition(
        tx, optim.ALPHAS, zero["alphas"], state.opt_state, state.trained
    )
    assert not differ(same, state.alphas)


@pytest.mark.parametrize("spoiled", ["weights", "alphas"])
def test_a_non_finite_batch_changes_nothing_of_its_level_and_is_counted(default, spoiled):
    step, state = default
    bad = {**batch(0), "image": jnp.full((6, 4, 4, 1), jnp.nan)}
    batches = (bad, batch(1)) if spoiled == "weights" else (batch(0), bad)
    after, metrics = step(state, *batches)
    assert int(after.skipped) == 1
    assert not bool(jnp.all(metrics[f"finite/{spoiled}"]))
    # Neither the values nor the moments of the optimizer have moved.
    assert not differ(state.trained[spoiled], after.trained[spoiled])
    inner, then = state.opt_state.inner_states, after.opt_state.inner_states
    assert not differ(inner[spoiled], then[spoiled])
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(after.trained))
    again, _ = step(after, batch(0), batch(1))
    assert int(again.skipped) == 0


def test_budget_draws_the_expected_size_to_its_target(supernet):
    """Gradient descent on the penalty alone ends at the target, and costs nothing below it."""
    small, large = (
        supernet.count("params", supernet.architecture(n)) for n in ("smallest", "largest")
    )
    target = 0.7 * small + 0.3 * large
    budget = steps.Budget("params", target, 1.0)
    mean = relax.darts().mean
    gradient = jax.jit(jax.value_and_grad(lambda a: budget.penalty(supernet, mean(a))))
    alphas = relax.init_alphas(supernet.space, jax.random.key(1), scale=0.3)
    start = float(supernet.expect("params", mean(alphas)))
    for _ in range(300):
        value, slope = gradient(alphas)
        alphas = jax.tree.map(lambda a, g: a - 0.1 * g, alphas, slope)
    assert start > 1.1 * target and float(value) < 0.02
    assert abs(float(supernet.expect("params", mean(alphas))) / target - 1) < 0.05
    assert float(steps.Budget("params", 10.0 * large).penalty(supernet, mean(alphas))) == 0


def test_budget_enters_the_architecture_step(supernet, default):
    step, state = make(supernet, budget=steps.Budget("params", 1.0, 100.0))
    free, _ = default[0](state, batch(0), batch(1))
    bound, _ = step(state, batch(0), batch(1))
    size = lambda s: float(supernet.expect("params", relax.darts().mean(s.alphas)))  # noqa: E731
    assert size(bound) < size(state) and size(bound) < size(free)


def test_moving_average_follows_the_weights(supernet):
    fixed = relax.fixed(supernet.space, supernet.architecture("largest"))
    step, state = make(supernet, method=fixed, decay=0.5)
    after, _ = step(state, batch(0), batch(1))
    rate = min(0.5, 1 / 10)
    expected = jax.tree.map(lambda a, w: rate * a + (1 - rate) * w, state.weights, after.weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.average, expected)
    assert states.evaluated(after) is after.average


def test_one_program_for_every_step(supernet):
    method = relax.gdas(relax.anneal(10.0, 0.1, STEPS))
    step, state = make(supernet, method=method)
    for i in range(5):
        state, metrics = step(state, batch(i), batch(i + 1))
    assert step.compiles == 1
    assert int(state.step) == 5 and np.isfinite(metrics["train_loss"])


def test_evaluation_counts_each_example_once():
    def apply(images):
        return images.reshape(images.shape[0], -1)[:, :3]

    step = steps.evaluation_step(apply, lambda batch: batch["image"])
    images = jnp.zeros((4, 1, 3, 1)).at[:, 0, 1, 0].set(1.0)
    sums = step(
        {"image": images, "label": jnp.array([1, 1, 0, 1]), "weight": jnp.array([1, 1, 1, 0.0])}
    )
    assert (float(sums["correct"]), float(sums["weight"])) == (2.0, 3.0)


@pytest.mark.parametrize("cosine", [True, False])
def test_learning_rate_warms_up_and_decays(cosine):
    optimizer = optim.Optimizer(
        1e-2, warmup_steps=4, warmup_rate=1e-4, final_rate=1e-3, cosine=cosine
    )
    rate = optimizer.schedule(20)
    np.testing.assert_allclose(rate(0), 1e-4, rtol=1e-5)
    np.testing.assert_allclose(rate(4), 1e-2, rtol=1e-5)
    np.testing.assert_allclose(rate(20), 1e-3 if cosine else 1e-2, rtol=1e-5)
    with pytest.raises(ValueError, match="warm-up takes 4 of 4 steps"):
        optimizer.schedule(4)


@pytest.mark.parametrize("method", ["sgd", "nesterov"])
def test_momentum_is_as_optax_has_it(method):
    ours = optim.Optimizer(0.1, 0.0, cosine=False, method=method).build(STEPS)
    theirs = optax.sgd(0.1, momentum=0.9, nesterov=method == "nesterov")
    found = []
    for tx in (ours, theirs):
        weights = {"kernel": jnp.arange(3.0)}
        state = tx.init(weights)
        for _ in range(3):
            updates, state = tx.update({"kernel": jnp.cos(weights["kernel"])}, state, weights)
            weights = optax.apply_updates(weights, updates)
        found.append(weights["kernel"])
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_adam_adds_its_decay_to_the_gradient():
    ours = optim.Optimizer(0.1, 0.5, cosine=False, method="adam").build(STEPS)
    theirs = optax.chain(optax.add_decayed_weights(0.5), optax.adam(0.1))
    weights = {"kernel": jnp.array([1.0, -2.0])}
    gradient = {"kernel": jnp.array([0.3, 0.1])}
    (first, _), (second, _) = (
        tx.update(gradient, tx.init(weights), weights) for tx in (ours, theirs)
    )
    np.testing.assert_allclose(first["kernel"], second["kernel"], rtol=1e-6)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(NasjaxError, match="no optimizer is called 'adan'; did you mean 'adam'"):
        optim.Optimizer(method="adan").build(STEPS)
