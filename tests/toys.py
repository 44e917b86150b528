"""Super-networks of a few dense layers on images of four by four pixels, quick to compile."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nasjax import data
from nasjax.core.cost import Term
from nasjax.core.space import Axis, Choice, SearchSpace, prefix, suffix
from nasjax.core.supernet import Supernet

CLASSES = 4
SHAPE = (4, 4, 1)
HIDDEN = 3  # channels of a head


class Block(nn.Module):
    """Two layers with a residual connection; nothing but the connection without heads."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if not self.hidden:
            return x
        y = nn.relu(nn.Dense(self.hidden, name="in")(x))
        return x + nn.Dense(x.shape[-1], use_bias=False, name="out")(y)


class Network(nn.Module):
    """A stem, blocks and a head; ``norm`` puts a batch normalisation before the head."""

    width: int
    hidden: tuple[int, ...]
    norm: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dense(self.width, name="stem")(images.reshape(images.shape[0], -1))
        for i, hidden in enumerate(self.hidden):
            x = Block(hidden, name=f"blocks_{i}")(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(CLASSES, name="head")(x)


def toy(norm: bool = False, side: str = "left") -> Supernet:
    """Widths, depths and heads, of which 0 is the identity; 150 architectures.

    ``side`` says which end of the widest layers narrower ones are.
    """
    take = {"left": prefix, "right": suffix}[side]
    space = SearchSpace(
        "toy",
        (
            Choice("width", (4, 8)),
            Choice("depth", (1, 2)),
            Choice("heads", (0, 1, 2), per="blocks"),
        ),
        {
            "blocks": "depth",
            "embed": Axis("width", take),
            "residual": Axis(lambda width, depth, layer: width * (layer < depth), take),
            "hidden": Axis(lambda heads: HIDDEN * heads, take),
        },
    )
    patterns: dict[str, tuple[str | None, ...]] = {
        "stem/kernel": (None, "embed"),
        "stem/bias": ("embed",),
        "in/kernel": ("embed", "hidden"),
        "in/bias": ("hidden",),
        "out/kernel": ("hidden", "residual"),
        "head/kernel": ("embed", None),
    }
    if norm:
        patterns["norm/"] = ("embed",)
    pixels = int(np.prod(SHAPE))
    costs: Mapping[str, Any] = {
        "flops": (
            Term(pixels + CLASSES, ("embed",)),
            Term(2, ("embed", "hidden"), "blocks"),
        )
    }

    def network(arch: Any) -> Network:
        return Network(arch["width"], tuple(HIDDEN * h for h in arch["heads"]), norm)

    module = Network(8, (2 * HIDDEN,) * 2, norm)
    return Supernet(space, module, network, SHAPE, patterns=patterns, costs=costs)


class Patches(nn.Module):
    """The mean of embedded patches; the embedding of each size of patches is its own."""

    width: int
    patch: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        del train
        x: Any = None
        for patch in (2, 4):
            if patch != self.patch and not self.is_initializing():
                continue
            count = SHAPE[0] // patch
            cut = images.reshape(-1, count, patch, count, patch).swapaxes(2, 3)
            y = nn.Dense(self.width, name=f"embed_{patch}")(cut.reshape(-1, count**2, patch**2))
            x = y if patch == self.patch else x
        return nn.Dense(CLASSES, name="head")(jnp.mean(nn.relu(x), 1))


def patches() -> Supernet:
    """A space with a static choice: the size of the patches."""
    space = SearchSpace(
        "patches",
        (Choice("patch", (2, 4)), Choice("width", (2, 4, 6))),
        {
            "embed": "width",
            "embed_2": lambda patch: int(patch == 2),
            "embed_4": lambda patch: int(patch == 4),
        },
        operations=("embed_2", "embed_4"),
        static=("patch",),
    )
    return Supernet(
        space,
        Patches(6, 2),
        lambda arch: Patches(arch["width"], arch["patch"]),
        SHAPE,
        patterns={
            r"embed_\d/kernel": (None, "embed"),
            r"embed_\d/bias": ("embed",),
            "head/kernel": ("embed", None),
        },
        variant=lambda arch: Patches(6, arch["patch"]),
    )


def dataset(train: int = 80, test: int = 30) -> data.Dataset:
    """Random images, each a little brighter by its class."""
    rng = np.random.default_rng(0)
    labels = np.arange(train + test, dtype=np.int32) % CLASSES
    images = rng.integers(0, 128, (train + test, *SHAPE), dtype=np.uint8)
    images = (images + 30 * labels[:, None, None, None]).astype(np.uint8)
    return data.from_arrays(
        images[:train], labels[:train], images[train:], labels[train:], num_classes=CLASSES
    )


def randomised(supernet: Supernet, seed: int = 0) -> dict[str, Any]:
    """Parameters of which none is zero, biases and scales included."""
    rng = np.random.default_rng(seed)
    shapes = supernet.shapes["params"]
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape), jnp.float32), shapes)


def one_device() -> jax.sharding.Mesh:
    """A mesh of the first device."""
    types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((1, 1), ("data", "model"), types, devices=jax.devices()[:1])
