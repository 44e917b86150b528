"""A stack of scanned layers and a space of it, whose weights are most of what it is made of."""

from typing import Any

import flax.linen as nn
import jax

import nasjax
from nasjax.core.space import Choice, SearchSpace
from nasjax.models.layers import Linear

WIDTH, LAYERS = 64, 6

SPACE = SearchSpace(
    "layers",
    (
        Choice("width", (16, 32, WIDTH)),
        Choice("ratio", (1, 2, 4), per="layers"),
        Choice("depth", (2, 4, LAYERS)),
    ),
    {
        "embed": "width",
        "hidden": lambda width, ratio: width * ratio,
        "layers": "depth",
    },
)


class Foreign(nn.Module):
    """A layer of Flax's own, which know nothing of masks."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        init, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros_init()
        box = nn.with_logical_partitioning
        wide = nn.Dense(
            4 * WIDTH,
            kernel_init=box(init, ("embed", "hidden")),
            bias_init=box(zeros, ("hidden",)),
            name="wide",
        )
        narrow = nn.Dense(
            WIDTH,
            kernel_init=box(init, ("hidden", "embed")),
            bias_init=box(zeros, ("embed",)),
            name="narrow",
        )
        return x + narrow(nn.gelu(wide(x))), None


class Own(nn.Module):
    """The same of nasjax's layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        wide = Linear((4 * WIDTH,), ("embed", "hidden"), ("hidden",), name="wide")
        narrow = Linear((WIDTH,), ("hidden", "embed"), ("embed",), name="narrow")
        return x + narrow(nn.gelu(wide(x))), None


class Stack(nn.Module):
    layer: Any
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        layers = nn.scan(
            nn.remat(self.layer, prevent_cse=False) if self.remat else self.layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=LAYERS,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return layers(name="layers")(x)[0]


def supernet(layer: Any, remat: bool = False) -> nasjax.Supernet:
    module = Stack(layer, remat)
    return nasjax.Supernet(SPACE, module, lambda arch: module, (WIDTH,))


def mixture(seed: int) -> Any:
    keys = jax.random.split(jax.random.key(seed), len(SPACE.choices))
    even = nasjax.uniform(SPACE)
    return {
        choice.name: jax.nn.softmax(jax.random.normal(key, even[choice.name].shape))
        for choice, key in zip(SPACE.choices, keys, strict=True)
    }
