"""RandAugment on whole batches, on the device.

Paper: Cubuk et al. 2020, "RandAugment: Practical Automated Data Augmentation with a Reduced Search
Space", section 3: every image gets `ops` operations drawn uniformly, all with one magnitude.

Differs from the authors' code:

- Operations on pixel values come first; the geometric ones drawn for an image are multiplied into
  one matrix, and the image is resampled (bilinearly) once, which is faster and blurs less.
- Directions (left or right, darker or lighter) are drawn as fair coins, and magnitudes vary a
  little from image to image, as in timm's `mstd` option.
- Solarize and posterize grow with the magnitude, as in timm's "increasing" set.
- Equalize is left out: its histograms would be computed for every image, drawn or not.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from nasjax.data.errors import DataError

MAX_MAGNITUDE = 10
_FILL = 128.0  # grey, for what the geometric operations bring in from outside
_LUMINANCE = (0.299, 0.587, 0.114)
_ROTATE, _SHEAR, _TRANSLATE = jnp.pi / 6, 0.3, 0.45  # at full magnitude: rad, slope, part of a side
_ENHANCE = 0.9  # enhancement factors run from 1 - 0.9 to 1 + 0.9
_GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def randaugment(
    key: jax.Array,
    images: jax.Array,
    ops: int,
    magnitude: float,
    magnitude_std: float = 0.5,
) -> jax.Array:
    """Distorts each image by `ops` operations drawn for it.

    The operations are identity, autocontrast, solarize, posterize, color, contrast, brightness,
    sharpness, rotate, shear and translate along x and along y.

    Args:
        images: `(batch, height, width, channels)`, 0 to 255, uint8 or float32.
        ops: operations per image, from 1.
        magnitude: strength of all of them, from 0 to 10.
        magnitude_std: deviation of the magnitude between images and operations, which is kept
            within 0 to 10.

    Returns:
        float32 of the same shape, 0 to 255.

    Raises:
        DataError: if `ops` or `magnitude` is outside of its range.
    """
    if ops < 1 or not 0 <= magnitude <= MAX_MAGNITUDE:
        raise DataError(
            f"randaugment got {ops} operations of magnitude {magnitude}, but at least 1 operation "
            f"and a magnitude from 0 to {MAX_MAGNITUDE} are expected."
        )
    batch, height, width, _ = images.shape
    images = images.astype(jnp.float32)
    warp = jnp.broadcast_to(jnp.eye(3), (batch, 3, 3))
    draws = _draw(key, (ops, batch), magnitude, magnitude_std)
    for choice, level, sign in zip(*draws, strict=True):
        images = jax.vmap(_photometric)(images, choice, level, sign)
        step = jax.vmap(_matrix, (0, 0, None, None))(choice, sign * level, height, width)
        # Full precision: a TPU's default would move pixels by whole rows.
        warp = jnp.matmul(warp, step, precision=lax.Precision.HIGHEST)
    return jax.vmap(_resample)(images, warp)


def _draw(
    key: jax.Array, shape: tuple[int, int], magnitude: float, magnitude_std: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Operations, levels from 0 to 1, and directions -1 or 1: `(ops, batch)` each."""
    choice_key, level_key, sign_key = jax.random.split(key, 3)
    choice = jax.random.randint(choice_key, shape, 0, len(_PHOTOMETRIC) + len(_GEOMETRIC))
    level = magnitude + magnitude_std * jax.random.normal(level_key, shape)
    sign = jax.random.rademacher(sign_key, shape, jnp.float32)
    return choice, level.clip(0, MAX_MAGNITUDE) / MAX_MAGNITUDE, sign


# Operations on values. Each takes an image (height, width, channels), level and direction.


def _identity(image: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
    return image


def _autocontrast(image: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
    low, high = image.min((0, 1), keepdims=True), image.max((0, 1), keepdims=True)
    stretched = (image - low) * (255 / jnp.maximum(high - low, 1))
    return jnp.where(high > low, stretched, image)


def _solarize(image: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
    return jnp.where(image >= 256 * (1 - level), 255 - image, image)


def _posterize(image: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
    step = jnp.exp2(jnp.round(4 * level))  # drops up to four of the eight bits
    return jnp.floor(image / step) * step


def _color(image: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
    return _blend(_grey(image), image, level, sign)


def _contrast(image: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
    return _blend(_grey(image).mean(), image, level, sign)


def _brightness(image: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
    return _blend(jnp.zeros(()), image, level, sign)


def _sharpness(image: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
    height, width, _ = image.shape
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    windows = (padded[i : i + height, j : j + width] for i in range(3) for j in range(3))
    smooth = (sum(windows) + 4 * image) / 13  # Pillow's SMOOTH filter: 5 in the centre, 1 around
    return _blend(smooth, image, level, sign)


def _grey(image: jax.Array) -> jax.Array:
    """Luminance `(height, width, 1)`."""
    if image.shape[-1] != 3:
        return image.mean(-1, keepdims=True)
    return (image * jnp.asarray(_LUMINANCE).reshape(1, 1, 3)).sum(-1, keepdims=True)


def _blend(base: jax.Array, image: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
    """Between `base` and `image`, or beyond `image`: the enhancements of Pillow."""
    factor = 1 + sign * _ENHANCE * level
    return (base + factor * (image - base)).clip(0, 255)


_Operation = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
_PHOTOMETRIC: tuple[_Operation, ...] = (
    _identity,
    _autocontrast,
    _solarize,
    _posterize,
    _color,
    _contrast,
    _brightness,
    _sharpness,
)


def _photometric(
    image: jax.Array, choice: jax.Array, level: jax.Array, sign: jax.Array
) -> jax.Array:
    # Geometric choices leave the values alone.
    choice = jnp.where(choice < len(_PHOTOMETRIC), choice, 0)
    return lax.switch(choice, _PHOTOMETRIC, image, level, sign)


def _matrix(choice: jax.Array, amount: jax.Array, height: int, width: int) -> jax.Array:
    """Where pixels come from, for one choice: `(3, 3)` on (x, y, 1) around the centre.

    The entries of all geometric operations are added up; those not chosen are 0.
    """
    geometric = choice - len(_PHOTOMETRIC)
    rotate, shear_x, shear_y, translate_x, translate_y = (
        jnp.where(geometric == i, amount, 0.0) for i in range(len(_GEOMETRIC))
    )
    cos, sin = jnp.cos(_ROTATE * rotate), jnp.sin(_ROTATE * rotate)
    first = jnp.stack([cos, _SHEAR * shear_x - sin, _TRANSLATE * width * translate_x])
    second = jnp.stack([sin + _SHEAR * shear_y, cos, _TRANSLATE * height * translate_y])
    return jnp.stack([first, second, jnp.asarray([0.0, 0.0, 1.0])])


def _resample(image: jax.Array, warp: jax.Array) -> jax.Array:
    """Bilinear sampling of one image `(height, width, channels)` at warped positions."""
    height, width, _ = image.shape
    center_y, center_x = (height - 1) / 2, (width - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(height) - center_y, jnp.arange(width) - center_x, indexing="ij")
    from_x = warp[0, 0] * x + warp[0, 1] * y + warp[0, 2] + center_x
    from_y = warp[1, 0] * x + warp[1, 1] * y + warp[1, 2] + center_y
    left, top = jnp.floor(from_x), jnp.floor(from_y)
    total = jnp.zeros_like(image)
    for row, weight_y in ((top, 1 - (from_y - top)), (top + 1, from_y - top)):
        for column, weight_x in ((left, 1 - (from_x - left)), (left + 1, from_x - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            pixel = image[
                row.clip(0, height - 1).astype(int), column.clip(0, width - 1).astype(int)
            ]
            weight = (weight_x * weight_y)[..., None]
            total += weight * jnp.where(inside[..., None], pixel, _FILL)
    return total
