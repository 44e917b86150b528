"""Mixing the images of a batch with each other: mixup and cutmix.

Each image is mixed with its neighbour in the batch: batches are shuffled already, so a permutation
would add nothing, and under a sharded batch a rotation by one moves a single image per device.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nasjax.data.errors import DataError


def mixup(
    key: jax.Array, images: jax.Array, one_hot: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Averages each image, and its label, with its neighbour's.

    Paper: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", section 2; one
    coefficient from Beta(alpha, alpha) per batch, as in the authors' code.
    Differs from the authors' code: neighbours instead of a random permutation.

    Args:
        images: float32 `(batch, height, width, channels)`.
        one_hot: labels float32 `(batch, classes)`.
        alpha: above 0.

    Returns:
        Images and labels of the same shapes.
    """
    _check(images, one_hot, alpha)
    return _mix(images, one_hot, _beta(key, alpha).reshape(1, 1))


def cutmix(
    key: jax.Array, images: jax.Array, one_hot: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Puts a rectangle of its neighbour into each image; labels are mixed by area.

    Paper: Yun et al. 2019, "CutMix", section 3.1 and appendix A: one rectangle per batch, centred
    anywhere and cut off at the border; the labels weigh the area that remains.
    Differs from the authors' code: neighbours instead of a random permutation.

    Args:
        images: float32 `(batch, height, width, channels)`.
        one_hot: labels float32 `(batch, classes)`.
        alpha: above 0; the rectangle covers 1 - Beta(alpha, alpha) of the image before the cut.

    Returns:
        Images and labels of the same shapes.
    """
    _check(images, one_hot, alpha)
    share_key, place_key = jax.random.split(key)
    share = _beta(share_key, alpha)
    return _mix(images, one_hot, _outside(place_key, images.shape[1:3], share))


def mixup_or_cutmix(
    key: jax.Array,
    images: jax.Array,
    one_hot: jax.Array,
    mixup_alpha: float,
    cutmix_alpha: float,
) -> tuple[jax.Array, jax.Array]:
    """`mixup`, `cutmix`, or with both alphas above 0 one of them, each with probability 1/2.

    Args:
        images: float32 `(batch, height, width, channels)`.
        one_hot: labels float32 `(batch, classes)`.
        mixup_alpha: 0 switches mixup off.
        cutmix_alpha: 0 switches cutmix off.

    Returns:
        Images and labels of the same shapes; as given if both are off.
    """
    if not mixup_alpha and not cutmix_alpha:
        return images, one_hot
    if not cutmix_alpha:
        return mixup(key, images, one_hot, mixup_alpha)
    if not mixup_alpha:
        return cutmix(key, images, one_hot, cutmix_alpha)
    _check(images, one_hot, min(mixup_alpha, cutmix_alpha))
    choice_key, share_key, place_key = jax.random.split(key, 3)
    whole = jax.random.bernoulli(choice_key)
    # One draw serves both.
    alpha = jnp.where(whole, mixup_alpha, cutmix_alpha)
    share = _beta(share_key, alpha)
    outside = _outside(place_key, images.shape[1:3], share)
    return _mix(images, one_hot, jnp.where(whole, share, outside))


def _beta(key: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """A draw of Beta(alpha, alpha).

    `jax.random.beta` draws its two gamma variates apart, each a hundred kernels to compile.
    """
    one, other = jax.random.loggamma(key, jnp.full(2, alpha))
    return jax.nn.sigmoid(one - other)


def _mix(images: jax.Array, one_hot: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mixes with weights `own`, `(height, width)` or `(1, 1)`, for each pixel of the image itself.

    mixup is the same weight everywhere and cutmix a weight of 0 or 1, so no branch is needed.
    """
    weight = own[None, :, :, None]
    images = weight * images + (1 - weight) * jnp.roll(images, 1, axis=0)
    share = own.mean()
    return images, share * one_hot + (1 - share) * jnp.roll(one_hot, 1, axis=0)


def _outside(key: jax.Array, shape: tuple[int, ...], share: jax.Array) -> jax.Array:
    """0 in a rectangle of `1 - share` of the area and 1 around it: float32 `(height, width)`."""
    height, width = shape
    side = jnp.sqrt(1 - share)
    row_key, column_key = jax.random.split(key)
    rows = _interval(row_key, height, side)
    columns = _interval(column_key, width, side)
    return 1 - (rows[:, None] & columns[None, :]).astype(jnp.float32)


def _interval(key: jax.Array, length: int, part: jax.Array) -> jax.Array:
    """Marks `part` of `length` pixels around a random centre: bool `(length,)`."""
    extent = (part * length).astype(int)
    start = jax.random.randint(key, (), 0, length) - extent // 2
    positions = jnp.arange(length)
    return (positions >= start) & (positions < start + extent)


def _check(images: jax.Array, one_hot: jax.Array, alpha: float) -> None:
    if alpha <= 0:
        raise DataError(f"alpha is {alpha}, but a Beta parameter above 0 is expected.")
    if not jnp.issubdtype(images.dtype, jnp.floating) or one_hot.ndim != 2:
        raise DataError(
            f"images are {images.dtype} and labels have {one_hot.ndim} axes, but float images and "
            "labels of shape (batch, classes) are expected: normalize() and jax.nn.one_hot() first."
        )
