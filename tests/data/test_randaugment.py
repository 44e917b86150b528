"""RandAugment: every operation against Pillow or by hand, and the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from nasjax.data import DataError, randaugment
from nasjax.data.randaugment import _GEOMETRIC, _PHOTOMETRIC, _matrix, _resample

IMAGE = np.random.RandomState(0).randint(30, 200, (9, 11, 3)).astype(np.uint8)
RUN = jax.jit(randaugment, static_argnums=(2, 3))
NAMES = [operation.__name__.lstrip("_") for operation in _PHOTOMETRIC]


def _key(seed=0):
    """A new key each time, so that JAX_DEBUG_KEY_REUSE finds no reuse of the tests' own."""
    return jax.random.key(seed)


def _photometric(name, level, sign=1.0):
    operation = _PHOTOMETRIC[NAMES.index(name)]
    return np.asarray(operation(jnp.asarray(IMAGE, jnp.float32), level, sign))


def _warp(name, amount, image=IMAGE):
    choice = len(_PHOTOMETRIC) + _GEOMETRIC.index(name)
    return np.asarray(_jitted_warp(np.float32(image), choice, amount))


@jax.jit
def _jitted_warp(image, choice, amount):
    return _resample(image, _matrix(choice, amount, *image.shape[:2]))


@pytest.mark.parametrize(
    ("name", "enhance"),
    [
        ("color", ImageEnhance.Color),
        ("contrast", ImageEnhance.Contrast),
        ("brightness", ImageEnhance.Brightness),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_enhancements_agree_with_pillow(name, enhance, sign):
    expected = np.asarray(enhance(Image.fromarray(IMAGE)).enhance(1 + sign * 0.9 * 0.5))
    out = _photometric(name, 0.5, sign)
    if name == "sharpness":  # Pillow leaves the border as it is
        out, expected = out[1:-1, 1:-1], expected[1:-1, 1:-1]
    np.testing.assert_allclose(out, expected, atol=1.5)  # Pillow rounds in between


def test_autocontrast_agrees_with_pillow():
    expected = np.asarray(ImageOps.autocontrast(Image.fromarray(IMAGE)))
    np.testing.assert_allclose(_photometric("autocontrast", 0.5), expected, atol=1.5)


def test_autocontrast_leaves_a_flat_image():
    flat = jnp.full((3, 3, 3), 40.0)
    np.testing.assert_array_equal(_PHOTOMETRIC[NAMES.index("autocontrast")](flat, 1.0, 1.0), flat)


@pytest.mark.parametrize("level", [0.0, 0.25, 0.5, 1.0])
def test_posterize_and_solarize_agree_with_pillow(level):
    image = Image.fromarray(IMAGE)
    posterized = np.asarray(ImageOps.posterize(image, 8 - round(4 * level)))
    np.testing.assert_array_equal(_photometric("posterize", level), posterized)
    solarized = np.asarray(ImageOps.solarize(image, round(256 * (1 - level))))
    np.testing.assert_array_equal(_photometric("solarize", level), solarized)


def test_no_amount_is_exactly_the_identity():
    for name in _GEOMETRIC:
        np.testing.assert_array_equal(_warp(name, 0.0), IMAGE)


def test_translation_moves_by_part_of_the_side():
    image = np.arange(20 * 20).reshape(20, 20, 1)
    moved = _warp("translate_x", 1.0, image)  # 0.45 * 20 = 9 pixels
    np.testing.assert_allclose(moved[:, :11], image[:, 9:], atol=1e-3)
    np.testing.assert_array_equal(moved[:, 11:], 128)
    moved = _warp("translate_y", -1.0, image)
    np.testing.assert_allclose(moved[9:], image[:11], atol=1e-3)


def test_rotation_agrees_with_pillow():
    smooth = np.asarray(Image.fromarray(IMAGE).resize((31, 31), Image.Resampling.BICUBIC))
    expected = np.asarray(Image.fromarray(smooth).rotate(30, Image.Resampling.BILINEAR))
    out = _warp("rotate", -1.0, smooth)
    other = _warp("rotate", 1.0, smooth)
    inner = np.s_[8:-8, 8:-8]
    best = min(np.abs(o[inner] - expected[inner]).mean() for o in (out, other))
    assert best < 1


def test_shear_keeps_the_centre_and_moves_the_edges():
    image = np.zeros((21, 21, 1))
    image[:, 10] = 100
    sheared = _warp("shear_x", 1.0, image)[..., 0]
    assert sheared[10].argmax() == 10
    # A row at distance 10 from the centre moves by 0.3 * 10 = 3 pixels.
    assert {sheared[0, 3:18].argmax() + 3, sheared[20, 3:18].argmax() + 3} == {7, 13}


def test_whole_keeps_form_and_range():
    images = np.random.RandomState(1).randint(0, 256, (32, 10, 12, 3)).astype(np.uint8)
    out = RUN(_key(), images, 2, 9)
    assert out.shape == images.shape and out.dtype == jnp.float32
    assert out.min() >= 0 and out.max() <= 255.001
    changed = (np.abs(np.asarray(out) - images) > 1e-3).any((1, 2, 3))
    assert changed.mean() > 0.8  # identity is one operation of thirteen


def test_images_are_drawn_for_one_by_one():
    out = np.asarray(RUN(_key(), np.tile(IMAGE, (32, 1, 1, 1)), 1, 9.0))
    assert len(np.unique(out.reshape(32, -1), axis=0)) > 18


def test_weak_magnitude_changes_less_than_strong():
    images = np.tile(IMAGE, (32, 1, 1, 1))
    weak, strong = (
        np.abs(np.asarray(RUN(_key(), images, 1, m)) - images).mean() for m in (1.0, 9.0)
    )
    assert weak < strong / 2


def test_color_leaves_grey_images():
    grey = jnp.asarray(IMAGE[..., :1], jnp.float32)
    np.testing.assert_array_equal(_PHOTOMETRIC[NAMES.index("color")](grey, 1.0, 1.0), grey)


@pytest.mark.parametrize(("ops", "magnitude"), [(0, 5), (2, -1), (2, 10.5)])
def test_refuses(ops, magnitude):
    with pytest.raises(DataError, match=f"got {ops} operations of magnitude {magnitude}, but"):
        randaugment(_key(), np.zeros((1, 4, 4, 3), np.uint8), ops, magnitude)
