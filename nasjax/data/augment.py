"""Augmentation of whole batches, on the device and inside the train step.

Images are `(batch, height, width, channels)` in units of 0 to 255, uint8 or float32, until
`normalize`. Everything is a pure function of a key; each image of a batch is drawn for on its own
except where mixing needs one draw per batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from nasjax.data.errors import DataError
from nasjax.data.mixing import mixup_or_cutmix
from nasjax.data.randaugment import randaugment

_ERASED_AREA = (0.02, 1 / 3)  # share of the image
_ERASED_RATIO = 1 / 0.3  # largest height / width, and width / height


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """`(images / 255 - mean) / std` as float32.

    Args:
        images: `(batch, height, width, channels)`, 0 to 255.
        mean: one number per channel, where 255 counts as 1.
        std: likewise.

    Raises:
        DataError: if there is not one number per channel.
    """
    channels = images.shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise DataError(
            f"mean has {len(mean)} and std {len(std)} entries, but the images have {channels} "
            "channels: give one number per channel, as in dataset.mean and dataset.std."
        )
    shape = (1,) * (images.ndim - 1) + (channels,)
    # As one multiplication and one addition: (x / 255 - mean) / std.
    scale = jnp.asarray([1 / (255 * s) for s in std], jnp.float32).reshape(shape)
    offset = jnp.asarray([m / s for m, s in zip(mean, std, strict=True)], jnp.float32).reshape(
        shape
    )
    return images.astype(jnp.float32) * scale - offset


def random_shift(key: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
    """Moves each image by up to `pixels` in both directions; what enters is black (0).

    This is "pad, then crop at random" of He et al. 2016, section 4.2, with a padding of `pixels`.
    """
    if pixels == 0:
        return images
    _, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
    offsets = jax.random.randint(key, (images.shape[0], 2), 0, 2 * pixels + 1)

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        return lax.dynamic_slice(image, (offset[0], offset[1], 0), (height, width, channels))

    return jax.vmap(crop)(padded, offsets)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2."""
    flipped = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def random_erasing(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Fills a random rectangle of each image with noise, with the given probability.

    Paper: Zhong et al. 2020, "Random Erasing Data Augmentation", algorithm 1. As in DeiT's
    recipe the rectangle has 2 to 33% of the area, a height to width ratio of 0.3 to 3.3
    (log-uniform) and standard normal noise in it, so `images` should be normalised.
    Differs from the paper: a rectangle that does not fit is cut to the image, not drawn again.

    Args:
        images: `(batch, height, width, channels)`, normalised.
    """
    if probability == 0:
        return images
    noise_key, mask_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, images.shape, images.dtype)
    return jnp.where(_erased(mask_key, images.shape[:3], probability), noise, images)


def cutout(key: jax.Array, images: jax.Array, side: int) -> jax.Array:
    """Sets a square of each image to 0, the mean of a normalised image.

    Paper: DeVries and Taylor 2017, "Improved Regularization of Convolutional Neural Networks with
    Cutout". Its centre is any pixel, so that it may stick out of the image.

    Args:
        images: `(batch, height, width, channels)`, normalised.
        side: of the square in pixels; 0 for none.
    """
    if side == 0:
        return images
    batch, height, width, _ = images.shape
    ends = jnp.array([height, width]).reshape(2, 1, 1, 1, 1)
    middle = jax.random.randint(key, (2, batch, 1, 1, 1), 0, ends)
    first = middle - side // 2
    rows = jnp.arange(height).reshape(1, height, 1, 1) - first[0]
    columns = jnp.arange(width).reshape(1, 1, width, 1) - first[1]
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    return jnp.where(inside, 0, images)


def _erased(key: jax.Array, shape: tuple[int, ...], probability: float) -> jax.Array:
    """Pixels to erase: bool `(batch, height, width, 1)` for `shape` (batch, height, width)."""
    batch, height, width = shape
    # One draw for everything: it compiles several times faster than a key for each quantity.
    on, area, ratio, top, left = jax.random.uniform(key, (5, batch, 1, 1, 1))
    area = height * width * (_ERASED_AREA[0] + area * (_ERASED_AREA[1] - _ERASED_AREA[0]))
    ratio = jnp.exp((2 * ratio - 1) * math.log(_ERASED_RATIO))
    tall = jnp.sqrt(area * ratio).round().clip(1, height)
    wide = jnp.sqrt(area / ratio).round().clip(1, width)
    top, left = jnp.floor(top * (height - tall + 1)), jnp.floor(left * (width - wide + 1))
    rows = jnp.arange(height).reshape(1, height, 1, 1)
    columns = jnp.arange(width).reshape(1, 1, width, 1)
    inside_rows = (rows >= top) & (rows < top + tall)
    inside_columns = (columns >= left) & (columns < left + wide)
    return (on < probability) & inside_rows & inside_columns


def resize(images: jax.Array, size: int) -> jax.Array:
    """Bilinear, with antialiasing where it shrinks: float32 `(batch, size, size, channels)`."""
    batch, _, _, channels = images.shape
    return jax.image.resize(images.astype(jnp.float32), (batch, size, size, channels), "bilinear")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to a batch between the loader and the model; by default it is normalised only.

    The steps run in the order listed here, normalisation between `randaugment` and `cutout`.
    Instances are hashable and can be static arguments of `jax.jit`.

    Attributes:
        size: side in pixels that images are resized to. [as they are]
        shift: largest shift in pixels. [0]
        flip: mirror at random. [False]
        randaugment: (operations per image, magnitude from 0 to 10). [None]
        cutout: side in pixels of a square that is blanked. [0]
        erasing: probability of a random rectangle of noise. [0]
        label_smoothing: share of the label spread evenly over all classes. [0]
        mixup: parameter of the Beta distribution for mixup. [0: off]
        cutmix: parameter of the Beta distribution for cutmix; with both on, each batch gets one
            of them with probability 1/2. [0: off]

    Raises:
        DataError: for a value outside of its range.

    >>> Augmentation(shift=4, flip=True).shift
    4
    """

    shift: int = 0
    flip: bool = False
    erasing: float = 0.0
    randaugment: tuple[int, float] | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    size: int | None = None
    cutout: int = 0

    def __post_init__(self) -> None:
        _require(self.shift >= 0, "shift", self.shift, "a number of pixels from 0")
        _require(self.cutout >= 0, "cutout", self.cutout, "a number of pixels from 0")
        _require(0 <= self.erasing <= 1, "erasing", self.erasing, "a probability from 0 to 1")
        _require(self.mixup >= 0, "mixup", self.mixup, "a Beta parameter from 0 (off)")
        _require(self.cutmix >= 0, "cutmix", self.cutmix, "a Beta parameter from 0 (off)")
        smoothing = self.label_smoothing
        _require(0 <= smoothing < 1, "label_smoothing", smoothing, "a share from 0 to below 1")
        _require(self.size is None or self.size > 0, "size", self.size, "a number of pixels from 1")
        if self.randaugment is not None:
            # Configuration files give lists, which could not be hashed.
            object.__setattr__(self, "randaugment", tuple(self.randaugment))
            valid = len(self.randaugment) == 2 and self.randaugment[0] >= 1
            valid = valid and 0 <= self.randaugment[1] <= 10
            expected = "(operations from 1, magnitude from 0 to 10)"
            _require(valid, "randaugment", self.randaugment, expected)

    def __call__(
        self,
        key: jax.Array,
        images: jax.Array,
        labels: jax.Array,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> tuple[jax.Array, jax.Array]:
        """Augments a batch.

        Args:
            key: a key of this batch alone.
            images: uint8 `(batch, height, width, channels)`.
            labels: integers `(batch,)`.
            num_classes: width of the labels returned.
            mean: of each channel, where 255 counts as 1.
            std: likewise.

        Returns:
            Images float32 `(batch, height, width, channels)`, normalised, and labels float32
            `(batch, num_classes)` whose rows sum to 1.
        """
        shift_key, flip_key, rand_key, erase_key, mix_key = jax.random.split(key, 5)
        if self.size is not None and images.shape[1:3] != (self.size, self.size):
            images = resize(images, self.size)
        images = random_shift(shift_key, images, self.shift)
        if self.flip:
            images = random_flip(flip_key, images)
        if self.randaugment is not None:
            images = randaugment(rand_key, images, *self.randaugment)
        images = normalize(images, mean, std)
        images = cutout(jax.random.fold_in(erase_key, 1), images, self.cutout)
        images = random_erasing(erase_key, images, self.erasing)
        soft = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
        soft = soft * (1 - self.label_smoothing) + self.label_smoothing / num_classes
        return mixup_or_cutmix(mix_key, images, soft, self.mixup, self.cutmix)


def _require(valid: bool, field: str, value: object, expected: str) -> None:
    if not valid:
        raise DataError(f"Augmentation's {field} is {value}, but {expected} is expected.")
