"""Losses of distillation: against sums written out, their gradients, and extreme logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core.errors import NasjaxError
from nasjax.train import distillation

SHAPE = (6, 5)


def logits(seed, times=1.0):
    rng = np.random.default_rng(seed)
    return (times * rng.standard_normal(SHAPE)).astype(np.float32)


def probabilities(x):
    x = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def divergence(student, teacher, alpha, clip=np.inf):
    """The textbook's, per example: of p from q, both written as probabilities."""
    q, p = probabilities(student), probabilities(teacher)
    if alpha == 1:
        return np.sum(p * np.log(p / q), -1)
    if alpha == 0:
        return np.sum(-q * np.log(np.minimum(p / q, clip)), -1)
    w = np.minimum((p / q) ** alpha, clip)
    return np.sum(q * (w - 1), -1) / (alpha * (alpha - 1))


@pytest.mark.parametrize("times", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("alpha", [-1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
def test_a_divergence_is_the_textbooks(alpha, times):
    student, teacher = logits(0, times), logits(1, times)
    got, _ = distillation.alpha_divergence(student, teacher, alpha, clip=5.0)
    np.testing.assert_allclose(got, divergence(student, teacher, alpha, 5.0), rtol=2e-4, atol=1e-5)
    free, _ = distillation.alpha_divergence(student, teacher, alpha, clip=np.inf)
    assert np.all(np.asarray(free) >= -1e-5)
    same, _ = distillation.alpha_divergence(student, student, alpha)
    np.testing.assert_allclose(same, 0, atol=1e-5)


@pytest.mark.parametrize("alpha", [-1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
def test_the_gradient_of_the_surrogate_is_that_of_the_divergence(alpha):
    """Where nothing is clipped: the surrogate differs from the divergence in its value alone."""
    student, teacher = logits(2), logits(3)

    def surrogate(x):
        return jnp.sum(distillation.alpha_divergence(x, teacher, alpha, clip=np.inf)[1])

    def written(x):
        p, q = jax.nn.softmax(teacher), jax.nn.softmax(x)
        if alpha == 1:
            return jnp.sum(p * jnp.log(p / q))
        if alpha == 0:
            return jnp.sum(-q * jnp.log(p / q))
        return jnp.sum(q * ((p / q) ** alpha - 1)) / (alpha * (alpha - 1))

    got, expected = jax.grad(surrogate)(student), jax.grad(written)(student)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


def test_soft_kl_is_kl_and_the_teachers_entropy():
    student, teacher = logits(4, 2), logits(5, 2)
    p = probabilities(teacher)
    entropy = -np.sum(p * np.log(p), -1)
    expected = np.mean(divergence(student, teacher, 1) + entropy)
    assert float(distillation.soft_kl(student, teacher)) == pytest.approx(expected, rel=1e-5)
    assert not np.any(jax.grad(distillation.soft_kl, 1)(student, teacher))


def test_each_example_takes_its_larger_divergence():
    student, teacher = logits(6, 3), logits(7, 3)
    low, high = (divergence(student, teacher, a, 5.0) for a in (-1, 1))
    assert 0 < np.sum(low > high) < len(low)  # both occur
    surrogates = [distillation.alpha_divergence(student, teacher, a)[1] for a in (-1.0, 1.0)]
    expected = np.mean(np.where(low > high, *surrogates))
    assert float(distillation.adaptive_alpha(student, teacher)) == pytest.approx(expected, rel=1e-5)
    assert not np.any(jax.grad(distillation.adaptive_alpha, 1)(student, teacher))


def test_a_tie_takes_the_upper_one():
    x = logits(8)  # both divergences of equal networks are zero, their surrogates differ
    each = jnp.mean(distillation.alpha_divergence(x, x, 1.0)[1])
    low, high = (distillation.alpha_divergence(x, x, a)[0] for a in (-1.0, 1.0))
    tied = np.asarray(low <= high)
    assert tied.any()
    alone = jax.vmap(lambda s: distillation.adaptive_alpha(s[None], s[None]))(x)
    upper = distillation.alpha_divergence(x, x, 1.0)[1]
    np.testing.assert_allclose(np.asarray(alone)[tied], np.asarray(upper)[tied], rtol=1e-6)
    assert np.isfinite(each)


@pytest.mark.parametrize("loss", distillation.DISTILLATIONS.values())
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_of_any_size_have_a_finite_gradient(loss, dtype):
    one = jnp.eye(5, dtype=dtype)
    for times in (1e2, 1e4):
        for student, teacher in ((one, -one), (-one, one), (one, one[::-1])):
            value, gradient = jax.value_and_grad(loss)(times * student, times * teacher)
            assert value.dtype == jnp.float32 and gradient.dtype == dtype
            assert np.isfinite(value) and np.all(np.isfinite(gradient.astype(jnp.float32)))


def test_a_student_that_follows_its_gradient_becomes_its_teacher():
    teacher = jnp.asarray(logits(9))
    step = jax.jit(lambda x: x - 2.0 * jax.grad(distillation.adaptive_alpha)(x, teacher))
    student = jnp.zeros(SHAPE)
    for _ in range(300):
        student = step(student)
    np.testing.assert_allclose(jax.nn.softmax(student), jax.nn.softmax(teacher), atol=0.02)


def test_a_soft_target_is_the_mean_of_sharpened_teachers():
    first, second = logits(10), logits(11)
    expected = (probabilities(5 * first) + probabilities(5 * second)) / 2
    np.testing.assert_allclose(distillation.soft_target([first, second]), expected, atol=1e-6)
    plain = distillation.soft_target([first], factor=1.0)
    np.testing.assert_allclose(plain, probabilities(first), atol=1e-6)
    with pytest.raises(NasjaxError, match="one teacher or more"):
        distillation.soft_target([])
