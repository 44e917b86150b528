"""Candidate operations on the edges of a cell, entangled or with weights of their own.

Operations of one kind that differ in the size of their kernel share all of their weights in an
entangled network: the small kernel is the centre of the large one, and they are one
:class:`Candidate`. In a network with plain weight sharing every operation is a candidate.

An edge adds up its candidates. In a super-network each weighs its output by its *mass*, the
probability that one of its operations is chosen, and inside it uses the expected kernel *given*
that it is. TangleNAS's released code has no mass: the batch normalisation that follows cancels
the size of the kernel, and with it nearly all of the gradient that says whether the candidate is
worth having. ``group_mass="inside"`` is that form.

Source: DARTS (Liu et al. 2019), NAS-Bench-201 (Dong and Yang 2020), TangleNAS section 4.1.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasjax.core.errors import SpaceError
from nasjax.core.space import Axis, by_option, centred
from nasjax.models.convolution import BatchNorm, Conv, DepthwiseConv
from nasjax.models.layers import DropPath, Names

NONE = "none"
SKIP = "skip_connect"
CONVOLUTIONS = ("sep_conv", "dil_conv", "nor_conv")
POOLS = ("max_pool", "avg_pool")
GROUP_MASS = ("outside", "inside")


@dataclass(frozen=True)
class Candidate:
    """A term of an edge's sum.

    Attributes:
      name: of its module, and of the axis that says whether it is there.
      kind: what it does: one of ``CONVOLUTIONS`` or ``POOLS``, or ``SKIP``.
      kernel_size: side of its largest kernel.
      options: the operations of the space that it stands for.
    """

    name: str
    kind: str
    kernel_size: int
    options: tuple[str, ...]

    @property
    def entangled(self) -> bool:
        """Whether several operations share its kernel."""
        return len(self.options) > 1

    @property
    def kernel_axis(self) -> str | None:
        """Name of the axis of its kernel's sides."""
        return f"{self.name}_kernel" if self.entangled else None


def parse(operation: str) -> tuple[str, int]:
    """Kind and kernel size of an operation: ``"sep_conv_3x3"`` is ``("sep_conv", 3)``.

    Raises:
      SpaceError: if there is no such operation.
    """
    if operation in (NONE, SKIP):
        return operation, 1
    match = re.fullmatch(r"(\w+)_(\d)x\2", operation)
    if match is None or match[1] not in CONVOLUTIONS + POOLS or int(match[2]) % 2 == 0:
        kinds = ", ".join((NONE, SKIP, *(f"{kind}_3x3" for kind in CONVOLUTIONS + POOLS)))
        raise SpaceError(f"no operation is called {operation!r}; there are {kinds}, of odd sizes.")
    return match[1], int(match[2])


def candidates(operations: Sequence[str], entangled: bool = True) -> tuple[Candidate, ...]:
    """The candidates that stand for ``operations``, in their order; ``none`` needs none."""
    groups: dict[str, list[str]] = {}
    for operation in operations:
        kind, _ = parse(operation)
        if kind != NONE:
            groups.setdefault(kind if entangled and kind in CONVOLUTIONS else operation, []).append(
                operation
            )
    return tuple(
        Candidate(name, parse(members[0])[0], max(parse(m)[1] for m in members), tuple(members))
        for name, members in groups.items()
    )


def axes(choice: str, stack: str, found: Sequence[Candidate]) -> dict[str, Axis]:
    """Axes of the candidates on the edges of ``stack``, as the operation ``choice`` has it.

    Operation axes ``STACK/CANDIDATE`` of length 0 or 1 and, where kernels are entangled,
    ``STACK/CANDIDATE_kernel``.
    """
    table = {}
    for c in found:
        table[f"{stack}/{c.name}"] = Axis(by_option(choice, {o: 1 for o in c.options}))
        if c.kernel_axis:
            sides: dict[Any, int] = {o: parse(o)[1] for o in c.options}
            table[f"{stack}/{c.kernel_axis}"] = centred(by_option(choice, sides))
    return table


class Operation(nn.Module):
    """One candidate.

    Attributes:
      candidate: what it is.
      features: output channels.
      stride: 1 or 2 [1].
      affine: whether batch normalisations scale and shift [False].
      use_bias: whether a plain convolution has a bias, which its kernel's mixture leaves alone.
      pool_norm: whether pooling is followed by a batch normalisation, as in DARTS's search.
      weighed: whether this is a super-network, whose operations have a mass.
      group_mass: where the mass of an entangled candidate is, ``"outside"`` or ``"inside"``.
    """

    candidate: Candidate
    features: int
    stride: int = 1
    affine: bool = False
    use_bias: bool = False
    pool_norm: bool = False
    weighed: bool = False
    group_mass: str = "outside"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map ``(batch, height, width, channels)`` to ``(batch, height', width', features)``."""
        mass = None
        if self.weighed and self.is_initializing():
            self.variable("active", "mass", lambda: jnp.ones(()))
        if self.has_variable("active", "mass"):
            mass = jnp.asarray(self.get_variable("active", "mass"))
        inside = self.candidate.entangled and self.group_mass == "inside"
        y = getattr(self, f"_{self.candidate.kind}")(x, train, mass if inside else None)
        return y if mass is None or inside else y * mass.astype(y.dtype)

    def _axes(self) -> Names:
        axis = self.candidate.kernel_axis
        return (axis, axis, None, None)

    def _norm(self, name: str, affine: bool | None = None) -> BatchNorm:
        return BatchNorm(self.affine if affine is None else affine, name=name)

    def _depthwise(self, name: str, stride: int, dilation: int = 1) -> DepthwiseConv:
        side = self.candidate.kernel_size
        return DepthwiseConv(side, self._axes(), stride, dilation, name=name)

    def _sep_conv(self, x: jax.Array, train: bool, factor: jax.Array | None) -> jax.Array:
        for i, stride in ((1, self.stride), (2, 1)):
            x = self._depthwise(f"depthwise_{i}", stride)(nn.relu(x), factor)
            features = x.shape[-1] if i == 1 else self.features
            x = Conv(features, 1, name=f"pointwise_{i}")(x)
            x = self._norm(f"norm_{i}")(x, train)
        return x

    def _dil_conv(self, x: jax.Array, train: bool, factor: jax.Array | None) -> jax.Array:
        x = self._depthwise("depthwise", self.stride, dilation=2)(nn.relu(x), factor)
        return self._norm("norm")(Conv(self.features, 1, name="pointwise")(x), train)

    def _nor_conv(self, x: jax.Array, train: bool, factor: jax.Array | None) -> jax.Array:
        conv = Conv(
            self.features,
            self.candidate.kernel_size,
            self._axes(),
            use_bias=self.use_bias,
            stride=self.stride,
            name="conv",
        )
        return self._norm("norm")(conv(nn.relu(x), factor), train)

    def _max_pool(self, x: jax.Array, train: bool, factor: jax.Array | None) -> jax.Array:
        return self._pool(nn.max_pool, x, train)

    def _avg_pool(self, x: jax.Array, train: bool, factor: jax.Array | None) -> jax.Array:
        return self._pool(functools.partial(nn.avg_pool, count_include_pad=False), x, train)

    def _pool(self, pool: Callable[..., jax.Array], x: jax.Array, train: bool) -> jax.Array:
        side, pad = self.candidate.kernel_size, self.candidate.kernel_size // 2
        y = pool(x, (side, side), (self.stride,) * 2, ((pad, pad),) * 2)
        return self._norm("norm", affine=False)(y, train) if self.pool_norm else y

    def _skip_connect(self, x: jax.Array, train: bool, factor: jax.Array | None) -> jax.Array:
        if self.stride == 1:
            return x
        return FactorizedReduce(self.features, self.affine, name="reduce")(x, train)


class FactorizedReduce(nn.Module):
    """Halve height and width: two 1x1 convolutions, of the even and of the odd pixels."""

    features: int
    affine: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map ``(batch, height, width, channels)`` to half the size and ``features`` channels."""
        x = nn.relu(x)
        half = self.features // 2
        even = Conv(half, 1, stride=2, name="conv_1")(x)
        odd = Conv(self.features - half, 1, stride=2, name="conv_2")(x[:, 1:, 1:])
        y = jnp.concatenate([even, odd], -1)
        return BatchNorm(self.affine, name="norm")(y, train)


class Edge(nn.Module):
    """The sum of an edge's candidates; zero where there is none.

    Attributes:
      candidates: the terms; a network of its own has one at most.
      features: output channels.
      stride: 1 or 2.
      partial: of the channels, the first ``1 / partial`` pass through the candidates and the
        others by them (PC-DARTS, Xu et al. 2020); the two are then shuffled.
      options: further fields of :class:`Operation`.
    """

    candidates: tuple[Candidate, ...]
    features: int
    stride: int = 1
    partial: int = 1
    options: tuple[tuple[str, Any], ...] = ()

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, drop_path: jax.Array | float | None = None
    ) -> jax.Array:
        """Map ``(batch, height, width, channels)`` to ``(batch, height', width', features)``.

        ``drop_path`` is the rate at which the output is dropped for whole examples, unless the
        edge is the identity.
        """
        if self.partial > 1:
            return self._partial(x, train)
        y = self._sum(x, train, self.features)
        identity = self.stride == 1 and all(c.kind == SKIP for c in self.candidates)
        if drop_path is not None and not identity:
            y = DropPath()(y, drop_path, train)
        return y

    def _sum(self, x: jax.Array, train: bool, features: int) -> jax.Array:
        terms = [
            Operation(c, features, self.stride, name=c.name, **dict(self.options))(x, train)
            for c in self.candidates
        ]
        if terms:
            return sum(terms[1:], terms[0])
        shape = (*x[:, :: self.stride, :: self.stride].shape[:-1], features)
        return jnp.zeros(shape, x.dtype)

    def _partial(self, x: jax.Array, train: bool) -> jax.Array:
        mixed = self.features // self.partial
        rest = x[..., mixed:]
        if self.stride == 2:
            rest = nn.max_pool(rest, (2, 2), (2, 2))
        y = jnp.concatenate([self._sum(x[..., :mixed], train, mixed), rest], -1)
        shuffled = y.reshape(*y.shape[:-1], self.partial, -1)
        return jnp.swapaxes(shuffled, -1, -2).reshape(y.shape)
