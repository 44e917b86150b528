"""A small space with every kind of axis, and what superposition must be: a sum over everything.

Nothing here uses the library's own tables: an assignment fixes every choice in every layer, its
probability is a product of entries of the mixture, and the lengths of axes are written out again.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from nasjax.core.mixture import shapes
from nasjax.core.space import Axis, Choice, SearchSpace

LAYERS = 3


def centred(length: int, size: int) -> np.ndarray:
    return np.arange(length) + (size - length) // 2


def thirds(length: int, size: int) -> np.ndarray:
    return np.concatenate([np.arange(length // 3) + part * (size // 3) for part in range(3)])


TOWER = SearchSpace(
    "tower",
    choices=(
        Choice("width", (6, 4)),  # the largest need not come last
        Choice("depth", (1, 3)),
        Choice("heads", (1, 2), per="blocks"),
        Choice("ratio", (1.5, 0.5), per="blocks"),
        Choice("kernel", (1, 3), per="blocks"),
    ),
    axes={
        "embed": "width",
        "residual": lambda width, depth, layer: width * (layer < depth),
        "mlp": lambda width, ratio: int(width * ratio),
        "heads": lambda heads: 2 * heads,
        "packed": Axis(lambda heads: 3 * heads, put=thirds),
        "packed_mlp": Axis(
            lambda width, ratio: 3 * int(width * ratio), put=thirds
        ),  # shares its choices with other axes
        "window": Axis("kernel", take=centred),
        "tied": lambda width, heads, ratio: width + heads - int(ratio),
        "blocks": "depth",
    },
)

# Array: its axes in a layer (or in the network), and its shape.
PER_LAYER: dict[str, tuple[tuple[str | None, ...], tuple[int, ...]]] = {
    "scale": (("embed",), (6,)),
    "fc1": (("embed", "mlp"), (6, 9)),
    "fc2": (("mlp", "residual"), (9, 6)),
    "proj": (("heads", "residual"), (4, 6)),
    "qkv": (("embed", None, "heads"), (6, 3, 4)),
    "square": (("embed", "embed"), (6, 6)),
    "conv": (("window", None, "mlp"), (3, 2, 9)),
    "all": (("tied", "residual", "heads", "mlp"), (8, 6, 4, 9)),
    "bias": (("packed",), (6,)),
    "packed_fc": (("packed_mlp", "residual", "heads"), (27, 6, 4)),
    "free": ((None, None), (2, 3)),
}
ONCE: dict[str, tuple[tuple[str | None, ...], tuple[int, ...]]] = {
    "scale": (("embed",), (6,)),
    "stem": ((None, "embed"), (5, 6)),
    "outer": (("embed", "embed"), (6, 6)),
    "nothing": ((), ()),
}


def tower(seed: int, scanned: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Axis names and random NumPy arrays."""
    names: dict[str, Any] = {name: P(*axes) for name, (axes, _) in ONCE.items()}
    sizes: dict[str, Any] = {name: size for name, (_, size) in ONCE.items()}
    if scanned:
        names["blocks"] = {n: P("blocks", *axes) for n, (axes, _) in PER_LAYER.items()}
        sizes["blocks"] = {n: (LAYERS, *size) for n, (_, size) in PER_LAYER.items()}
    else:
        for i in range(LAYERS):
            names[f"blocks_{i}"] = {n: P(*axes) for n, (axes, _) in PER_LAYER.items()}
            sizes[f"blocks_{i}"] = {n: size for n, (_, size) in PER_LAYER.items()}
    rng = np.random.default_rng(seed)  # a compilation for each shape would take most of the time
    arrays = jax.tree.map(
        lambda size: np.asarray(rng.standard_normal(size), np.float32),
        sizes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    return {"params": names}, {"params": arrays}


def positions(axis: str | None, size: int, a: dict[str, Any], layer: int) -> tuple[Any, Any]:
    """Where the assignment ``a`` reads an axis from, and where it puts what it read."""
    width, heads = a["width"], a["heads"][layer]
    hidden = int(width * a["ratio"][layer])
    if axis is None:
        return range(size), range(size)
    if axis == "window":
        return ((1,), (1,)) if a["kernel"][layer] == 1 else (range(3), range(3))
    if axis == "packed":
        return (range(3), (0, 2, 4)) if heads == 1 else (range(6), range(6))
    if axis == "packed_mlp":
        spread = [*range(hidden), *range(9, 9 + hidden), *range(18, 18 + hidden)]
        return range(3 * hidden), spread
    length = {
        "embed": width,
        "residual": width if layer < a["depth"] else 0,
        "mlp": hidden,
        "heads": 2 * heads,
        "tied": width + heads - int(a["ratio"][layer]),
    }[axis]
    return range(length), range(length)


def place(
    value: np.ndarray,
    axes: tuple[str | None, ...],
    a: dict[str, Any],
    layer: int,
    back: bool = False,
) -> np.ndarray:
    """What the assignment ``a`` leaves of one layer's array, where the network reads it.

    ``back`` is the transposed map, which a gradient needs.
    """
    if not axes:
        return value
    where = [positions(x, n, a, layer) for x, n in zip(axes, value.shape, strict=True)]
    take = np.ix_(*(list(take) for take, _ in where))
    put = np.ix_(*(list(put) for _, put in where))
    if back:
        take, put = put, take
    out = np.zeros_like(value)
    out[put] = value[take]
    return out


def assignments(space: SearchSpace) -> list[dict[str, Any]]:
    """Every joint assignment: a value for every choice in each of all layers, deep or not."""
    slots: list[Any] = []
    for name, shape in shapes(space).items():
        options = space.choice(name).options
        slots.append(options if len(shape) == 1 else [*itertools.product(options, repeat=shape[0])])
    return [dict(zip(space.by_name, values, strict=True)) for values in itertools.product(*slots)]


def probability(space: SearchSpace, mixture: Any, a: dict[str, Any]) -> float:
    """The product of the mixture's entries that the assignment ``a`` picks."""
    total = 1.0
    for name, value in a.items():
        row = np.asarray(mixture[name])
        options = space.choice(name).options
        if space.choice(name).per is None:
            total *= row[options.index(value)]
        else:
            for layer, v in enumerate(value):
                total *= row[layer, options.index(v)]
    return total


def architecture_of(space: SearchSpace, a: dict[str, Any], depth: int) -> dict[str, Any]:
    """The architecture of an assignment: the layers beyond the depth cut off."""
    return {n: v if space.choice(n).per is None else list(v[:depth]) for n, v in a.items()}


def random_mixture(space: SearchSpace, seed: int) -> dict[str, np.ndarray]:
    """A soft mixture in float64, every row a Dirichlet draw."""
    rng = np.random.default_rng(seed)
    return {
        n: rng.dirichlet(np.ones(shape[-1]), size=shape[:-1]) for n, shape in shapes(space).items()
    }


def arrays(variables: Any) -> Iterator[tuple[str, tuple[str, ...], tuple[str | None, ...], Any]]:
    """``(label, path, axes of a layer, layers)`` of every array that :func:`tower` made.

    The layers are those that the array holds: None for one outside the stack, a range otherwise.
    """
    for name, value in variables["params"].items():
        if not name.startswith("blocks"):
            yield name, (name,), ONCE[name][0], None
            continue
        _, _, index = name.partition("_")
        held = range(LAYERS) if not index else range(int(index), int(index) + 1)
        for leaf in value:
            yield f"{name}/{leaf}", (name, leaf), PER_LAYER[leaf][0], held


def is_scanned(held: range | None) -> bool:
    """Whether an array's leading dimension runs over the layers it holds."""
    return held is not None and len(held) == LAYERS
