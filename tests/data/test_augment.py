"""Augmentation on the device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.data import (
    Augmentation,
    DataError,
    cutmix,
    mixup,
    mixup_or_cutmix,
    normalize,
    random_erasing,
    random_flip,
    random_shift,
    resize,
)

IMAGES = np.random.RandomState(0).randint(0, 256, (16, 8, 9, 3)).astype(np.uint8)
LABELS = np.arange(16) % 4
ONE_HOT = jax.nn.one_hot(LABELS, 4)
FLOATS = IMAGES.astype(np.float32) / 255
ERASE = jax.jit(random_erasing, static_argnums=2)


def _key(seed=0):
    """A new key each time, so that JAX_DEBUG_KEY_REUSE finds no reuse of the tests' own."""
    return jax.random.key(seed)


def test_normalize_gives_mean_zero_and_deviation_one():
    scaled = IMAGES / 255
    mean, std = tuple(scaled.mean((0, 1, 2))), tuple(scaled.std((0, 1, 2)))
    out = normalize(IMAGES, mean, std)
    np.testing.assert_allclose(out, (scaled - mean) / std, atol=1e-5)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-5)
    with pytest.raises(DataError, match=r"mean has 1 and std 3 entries, .* 3 channels"):
        normalize(IMAGES, (0.5,), std)


def test_shift_by_zero_is_the_identity():
    assert random_shift(_key(), IMAGES, 0) is IMAGES


def test_shift_moves_each_image_by_at_most_its_range():
    images = jnp.ones((400, 7, 7, 1), jnp.uint8).at[:, 3, 3].set(9)
    moved = np.asarray(random_shift(_key(), images, 2))
    assert moved.dtype == np.uint8 and moved.shape == images.shape
    _, rows, columns, _ = np.nonzero(moved == 9)
    assert len(rows) == 400
    # 5 x 5 offsets, each of them drawn.
    assert len(set(zip(rows, columns, strict=True))) == 25
    assert rows.min() == columns.min() == 1 and rows.max() == columns.max() == 5
    # What enters is black: a shift by (i, j) leaves (7 - |i|)(7 - |j|) pixels.
    kept = (moved > 0).sum((1, 2, 3))
    np.testing.assert_array_equal(kept, (7 - abs(rows - 3)) * (7 - abs(columns - 3)))


def test_flip_mirrors_about_half_of_the_images():
    images = np.tile(IMAGES[:1], (500, 1, 1, 1))
    flipped = np.asarray(random_flip(_key(), images))
    same = (flipped == images).all((1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 0.4 < mirrored.mean() < 0.6


def test_erasing_has_the_given_probability_and_area():
    images = jnp.full((600, 16, 16, 1), 7.0)
    out = np.asarray(ERASE(_key(), images, 0.3))
    changed = (out != 7).mean((1, 2, 3))
    assert 0.22 < (changed > 0).mean() < 0.38
    assert changed.max() < 0.45
    assert (changed[changed > 0] > 0.01).all()
    noise = out[out != 7]
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


def test_erased_part_is_one_rectangle():
    images = jnp.full((50, 12, 14, 3), 7.0)
    for erased in np.asarray(ERASE(_key(), images, 1.0) != 7).all(-1):
        rows, columns = np.nonzero(erased)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert erased.sum() == height * width


def test_erasing_never_is_the_identity():
    assert random_erasing(_key(), FLOATS, 0.0) is FLOATS


def test_resize():
    out = resize(jnp.full((2, 4, 6, 3), 9, jnp.uint8), 5)
    assert out.shape == (2, 5, 5, 3) and out.dtype == jnp.float32
    np.testing.assert_allclose(out, 9, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_mixes_labels_as_it_mixes_images(alpha):
    images, labels = mixup(_key(), FLOATS, ONE_HOT, alpha)
    np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-6)
    share = np.asarray(labels)[np.arange(16), LABELS]  # neighbours have other labels here
    assert np.ptp(share) < 1e-6
    expected = share[0] * FLOATS + (1 - share[0]) * np.roll(FLOATS, 1, 0)
    np.testing.assert_allclose(images, expected, atol=1e-6)


def test_mixup_share_follows_the_beta_distribution():
    draw = jax.vmap(lambda key: mixup(key, FLOATS, ONE_HOT, 0.4)[1][0, 0])
    shares = np.asarray(jax.jit(draw)(jax.random.split(_key(), 2000)))
    assert abs(shares.mean() - 0.5) < 0.03
    assert abs(shares.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.01


def test_cutmix_label_weight_is_the_share_of_pixels():
    zeros_and_ones = jnp.ones((16, 10, 12, 2)) * (jnp.arange(16) % 2).reshape(-1, 1, 1, 1)
    one_hot = jax.nn.one_hot(jnp.arange(16) % 2, 2)
    run = jax.jit(cutmix, static_argnums=3)
    shares = []
    for key in jax.random.split(_key(), 40):
        images, labels = run(key, zeros_and_ones, one_hot, 1.0)
        ones = images[..., 0].mean((1, 2))  # part of each image that shows a one
        np.testing.assert_allclose(ones, labels[:, 1], atol=1e-6)
        np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-6)
        shares.append(float(labels[0, 0]))
    assert min(shares) < 0.4 and max(shares) > 0.9


def test_mixing_of_both_kinds_switches():
    run = jax.jit(mixup_or_cutmix, static_argnums=(3, 4))

    def is_cutmix(key):
        images = np.asarray(run(key, FLOATS, ONE_HOT, 1.0, 1.0)[0])
        return ((images == FLOATS) | (images == np.roll(FLOATS, 1, 0))).all()  # whole pixels

    share = np.mean([is_cutmix(key) for key in jax.random.split(_key(), 100)])
    assert 0.3 < share < 0.7


def test_mixing_with_one_kind_or_none():
    for alphas, function in (((0.5, 0), mixup), ((0, 0.5), cutmix)):
        mixed, expected = (
            mixup_or_cutmix(_key(), FLOATS, ONE_HOT, *alphas),
            function(_key(), FLOATS, ONE_HOT, 0.5),
        )
        np.testing.assert_array_equal(mixed[0], expected[0])
        np.testing.assert_array_equal(mixed[1], expected[1])
    images, labels = mixup_or_cutmix(_key(), FLOATS, ONE_HOT, 0, 0)
    assert images is FLOATS and labels is ONE_HOT


def test_mixing_refuses():
    with pytest.raises(DataError, match=r"alpha is 0, but a Beta parameter above 0"):
        mixup(_key(), FLOATS, ONE_HOT, 0)
    with pytest.raises(DataError, match=r"images are uint8 and labels have 2 axes"):
        cutmix(_key(), IMAGES, ONE_HOT, 1.0)
    with pytest.raises(DataError, match=r"labels have 1 axes"):
        mixup(_key(), FLOATS, LABELS, 1.0)


FULL = Augmentation(
    shift=2,
    flip=True,
    erasing=0.25,
    randaugment=(2, 9),
    mixup=0.8,
    cutmix=1.0,
    label_smoothing=0.1,
    size=12,
)
STATISTICS = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@functools.partial(jax.jit, static_argnums=0)
def _apply(augmentation, key, images, labels):
    return augmentation(key, images, labels, 4, *STATISTICS)


def test_default_only_normalises():
    images, labels = _apply(Augmentation(), _key(), IMAGES, LABELS)
    np.testing.assert_allclose(images, normalize(IMAGES, *STATISTICS), atol=1e-6)
    np.testing.assert_array_equal(labels, ONE_HOT)
    assert labels.dtype == images.dtype == jnp.float32


def test_label_smoothing_is_uniform():
    _, labels = _apply(Augmentation(label_smoothing=0.2), _key(), IMAGES, LABELS)
    np.testing.assert_allclose(labels, 0.8 * ONE_HOT + 0.05, rtol=1e-6)


def test_everything_at_once_is_jittable_and_deterministic():
    images, labels = _apply(FULL, _key(), IMAGES, LABELS)
    assert images.shape == (16, 12, 12, 3) and images.dtype == jnp.float32
    assert labels.shape == (16, 4)
    assert np.isfinite(images).all()
    np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-6)
    again, _ = _apply(FULL, _key(), IMAGES, LABELS)
    np.testing.assert_array_equal(images, again)
    other, _ = _apply(FULL, _key(1), IMAGES, LABELS)
    assert (np.asarray(images) != np.asarray(other)).any()


@pytest.mark.skipif(jax.device_count() < 8, reason="needs JAX_NUM_CPU_DEVICES=8")
def test_devices_change_nothing_and_images_stay_where_they_are():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    spread = jax.device_put((IMAGES, LABELS), sharding)
    compiled = _apply.lower(FULL, _key(), *spread).compile()
    assert "all-gather" not in compiled.as_text()
    for one, eight in zip(
        _apply(FULL, _key(), IMAGES, LABELS), compiled(_key(), *spread), strict=True
    ):
        np.testing.assert_allclose(one, eight, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": -1}, r"shift is -1, but a number of pixels from 0"),
        ({"erasing": 1.5}, r"erasing is 1.5, but a probability from 0 to 1"),
        ({"mixup": -0.1}, r"mixup is -0.1"),
        ({"cutmix": -0.1}, r"cutmix is -0.1"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1.0, but a share from 0 to below 1"),
        ({"size": 0}, r"size is 0"),
        ({"randaugment": (0, 9)}, r"randaugment is \(0, 9\), but \(operations from 1"),
        ({"randaugment": (2, 11)}, r"randaugment is .*magnitude from 0 to 10"),
        ({"randaugment": (2,)}, r"randaugment is \(2,\)"),
    ],
)
def test_augmentation_refuses(options, message):
    with pytest.raises(DataError, match=f"Augmentation's {message}"):
        Augmentation(**options)


def test_augmentation_from_lists_is_hashable():
    assert hash(Augmentation(randaugment=[2, 9])) == hash(Augmentation(randaugment=(2, 9)))
