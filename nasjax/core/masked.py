"""A maximal array together with its expected mask: multiplied when a module reads it."""

from __future__ import annotations

import contextlib
import string
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
import jax
from flax import struct
from jax.sharding import PartitionSpec

from nasjax.core.errors import SpaceError
from nasjax.core.expect import LAYERS, scale

_mesh_axes: ContextVar[Mapping[str, str | None] | None] = ContextVar("mesh_axes", default=None)


@contextlib.contextmanager
def gathering(mesh_axes: Mapping[str, str | None]) -> Iterator[None]:
    """Within it, what modules read is gathered but for these mesh axes of its axes, by name.

    Outside, and where nothing is divided, XLA places it. To be used while a program is traced.
    """
    token = _mesh_axes.set(mesh_axes)
    try:
        yield
    finally:
        _mesh_axes.reset(token)


class Masked(struct.PyTreeNode, nn.meta.AxisMetadata[jax.Array]):
    """A maximal array and the factors of its expected mask, in one of Flax's boxes.

    ``self.param`` opens boxes when it reads them, and ``nn.scan`` and ``nn.vmap`` hand each layer
    its slice of them. So every Flax module reads the superposed array, layers that are scanned
    make theirs when their turn comes. Where arrays are divided among devices, so are their
    products, until they are gathered as :func:`gathering` says.

    Attributes:
      value: the maximal array.
      factors: see :func:`nasjax.core.expect.scale`; empty where no mask is. All have the leading
        axes that a module may map over: layers, and axes that only the module has a name for.
      letters: of the dimensions of each factor.
      subscript: letters of the dimensions of ``value``.
      names: of its axes, as the module gives them.
    """

    # First: Flax compares the shape of a box's first array with what the module asks for.
    value: Any
    factors: tuple[Any, ...]
    letters: tuple[str, ...] = struct.field(pytree_node=False)
    subscript: str = struct.field(pytree_node=False)
    names: tuple[str | None, ...] = struct.field(pytree_node=False)

    @property
    def scanned(self) -> bool:
        """Whether the leading axis of the array runs over layers."""
        return LAYERS in self.subscript

    def unbox(self, dtype: Any = None) -> jax.Array:
        """The superposed array, in ``dtype`` where it is given: before it is gathered."""
        product = scale(self.subscript, self.letters, self.value, self.factors)
        product = product if dtype is None else product.astype(dtype)
        mesh_axes = _mesh_axes.get()
        if mesh_axes is None:
            return product
        spec: list[str | None] = []
        for name in self.names:  # of both sides of a kernel the first is divided
            target = None if name is None else mesh_axes.get(name)
            spec.append(None if target in spec else target)
        return jax.lax.with_sharding_constraint(product, PartitionSpec(*spec))

    def replace_boxed(self, val: Any) -> Any:
        """``val`` itself: what is written is no maximal array any more."""
        return val

    def add_axis(self, index: int, params: dict[Any, Any]) -> Masked:
        """The same with an axis in front, as after a scan."""
        new = next(c for c in (LAYERS, *string.ascii_lowercase) if c not in self.subscript)
        names = (params.get(nn.PARTITION_NAME), *self.names)
        letters = tuple(new + own for own in self.letters)
        return self.replace(letters=letters, subscript=new + self.subscript, names=names)

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Masked:
        """The same for one of the first axis, as within a scan.

        Raises:
          SpaceError: if that is an axis of the space.
        """
        first = self.subscript[0]
        if self.letters and (index != 0 or any(own[0] != first for own in self.letters)):
            raise SpaceError(
                f"a parameter with axes {self.names} is mapped over axis {index}; only layers and "
                "named axes that the space does not know can be, and they come first. Build the "
                "Supernet with lazy=False, which superposes before the module is called."
            )
        letters = tuple(own[1:] for own in self.letters)
        return self.replace(letters=letters, subscript=self.subscript[1:], names=self.names[1:])


def opened(array: Any, dtype: Any) -> jax.Array:
    """What ``array``, in a box or not, holds for a product in ``dtype``."""
    return (array.unbox(dtype) if isinstance(array, Masked) else nn.unbox(array)).astype(dtype)
