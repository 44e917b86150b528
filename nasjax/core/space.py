"""Search spaces: choices, and the axis lengths that follow from them.

A :class:`SearchSpace` is two tables. ``choices`` says what may be chosen; ``axes`` says how long
each named axis of the network's parameters is once it has been chosen. It knows nothing of
modules, arrays or training: superposition, extraction and counting are functions of these two
tables and of the axis names on the parameters.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from nasjax.core.errors import SpaceError, did_you_mean

Option = int | float | str
Length = int | str | Callable[..., int]
Slots = Callable[[int, int], np.ndarray]
Decoding = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

LAYER = "layer"  # the argument by which a length function asks for the index in its stack


@dataclass(frozen=True)
class Choice:
    """One decision of a search space.

    Attributes:
      name: what is decided, e.g. ``"embed_dim"``.
      options: the values it may take, in any order.
      per: the stack of layers in each of which it is decided anew, e.g. ``"blocks"``; None when
        it is decided once for the whole network.
    """

    name: str
    options: tuple[Option, ...]
    per: str | None = None

    def __post_init__(self) -> None:
        # NumPy's numbers would not be JSON-able.
        options = tuple(o.item() if isinstance(o, np.generic) else o for o in self.options)
        object.__setattr__(self, "options", options)
        if self.name == LAYER:
            raise SpaceError(
                f"a choice cannot be called {LAYER!r}: length functions receive the index of the "
                "layer under that name."
            )
        if not self.options:
            raise SpaceError(f"choice {self.name!r} has no options; give it at least one.")
        if len(set(self.options)) != len(self.options):
            raise SpaceError(
                f"choice {self.name!r} lists an option twice: {self.options}; list each once."
            )


def prefix(length: int, size: int) -> np.ndarray:
    """The first ``length`` of ``size`` positions: the way widths are entangled."""
    del size
    return np.arange(length)


def suffix(length: int, size: int) -> np.ndarray:
    """The last ``length`` of ``size`` positions: the right-hand half of a bilateral coupling."""
    return np.arange(size - length, size)


def centre(length: int, size: int) -> np.ndarray:
    """``length`` of ``size`` positions, in the middle: the way kernels are entangled."""
    return np.arange(length) + (size - length) // 2


@dataclass(frozen=True)
class Axis:
    """A named axis of parameters, and which of its positions an option occupies.

    Attributes:
      length: its length as a number, as the name of a choice whose value it is, or as a function
        whose arguments are named after choices (``lambda embed_dim, mlp_ratio: ...``). The
        argument ``layer`` receives the index of the layer in its stack.
      take: ``(length, size) -> positions`` that an option reads from the stored parameter.
      put: the positions where the maximal network expects what was read; the same positions
        unless the two layouts differ.
      owner: the choice each of whose options owns one entry, see :func:`private`.
      entries: the entry of each option of ``owner``, where not its own.
    """

    length: Length
    take: Slots = prefix
    put: Slots | None = None
    owner: str | None = None
    entries: tuple[int, ...] = ()


def centred(length: Length) -> Axis:
    """A side of a kernel, of which smaller kernels are the centre."""
    return Axis(length, take=centre)


def private(choice: str, entries: Sequence[int] = ()) -> Axis:
    """An axis with one entry for every option of ``choice``: each has parameters of its own.

    A sub-network keeps its option's entry alone, so the length is 1 and the module sums over it.

    Args:
      choice: the owner.
      entries: the entry of each option, counted from 0, where options share some.
    """
    return Axis(1, owner=choice, entries=tuple(entries))


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """An immutable search space over networks whose parameters have named axes.

    A *stack* is an axis along which layers are repeated: the parameters of its layers either carry
    it as their leading axis (layers scanned) or live in modules ``NAME_0, NAME_1, ...``. Its
    length is the depth. Axes that a choice names in ``per`` are stacks.

    An *operation* is an axis of length 0 or 1: modules of its name, and all within them, are there
    where it is 1. Candidates on an edge of a cell are operations, whose outputs are mixed.

    Where an axis is another one in each of several stacks (the kernels of normal and of reduction
    cells), it is defined as ``"STACK/AXIS"``; parameters in that stack call it ``AXIS``.

    Attributes:
      name: what the space is called in files and messages.
      choices: what may be chosen.
      axes: the length of each named axis, as an :class:`Axis` or as its ``length`` alone.
      stacks: further stacks, in whose layers nothing is chosen but whose depth is.
      operations: axes that say which modules exist; each depends on one choice.
      decoding: ``mixture -> option indices``, arrays ``(options,) -> ()`` and ``(layers, options)
        -> (layers,)``, where the best option of every choice is not the rule. It must map the
        mixture of a legal architecture to that architecture, and of no other to itself.
      legal: the number of architectures that follow the rule of ``decoding``.
      static: choices of the whole network whose options change the shapes of activations (patch
        sizes): they cannot be mixed, and each has a program of its own.

    Example:
      >>> space = SearchSpace(
      ...     "mlp",
      ...     choices=(Choice("width", (16, 32)), Choice("ratio", (2, 4), per="blocks")),
      ...     axes={"embed": "width", "blocks": 3,
      ...           "mlp": lambda width, ratio: int(width * ratio)})
      >>> space.size, space.axis_size("mlp")
      (16, 128)

    Raises:
      SpaceError: if choices or axes contradict one another.
    """

    name: str
    choices: tuple[Choice, ...]
    axes: Mapping[str, Axis | Length]
    stacks: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    decoding: Decoding | None = None
    legal: int | None = None
    static: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        axes = {n: a if isinstance(a, Axis) else Axis(a) for n, a in self.axes.items()}
        object.__setattr__(self, "axes", MappingProxyType(axes))
        per = (choice.per for choice in self.choices if choice.per is not None)
        object.__setattr__(self, "stacks", tuple(dict.fromkeys((*self.stacks, *per))))
        names = [choice.name for choice in self.choices]
        if len(set(names)) != len(names):
            raise SpaceError(f"space {self.name!r} defines a choice twice: {names}.")
        for stack in self.stacks:
            if stack not in axes:
                raise SpaceError(
                    f"choices are made per {stack!r}, which is no axis of space {self.name!r}; "
                    f"give its length (the number of layers). {did_you_mean(stack, axes)}"
                )
        for axis in axes:
            for dependency in self.depends(axis):
                if dependency not in names:
                    raise SpaceError(
                        f"the length of axis {axis!r} depends on {dependency!r}, which is no "
                        f"choice of space {self.name!r}; {did_you_mean(dependency, names)}"
                    )
            owner, entries = axes[axis].owner, axes[axis].entries
            if entries and (owner is None or len(entries) != len(self.choice(owner).options)):
                raise SpaceError(
                    f"axis {axis!r} of space {self.name!r} has {len(entries)} entries; one for "
                    f"each option of the choice that owns it was expected ({owner!r})."
                )
        for operation in self.operations:
            if operation not in axes or set(x for _, x in self.lengths(operation, 0)) - {0, 1}:
                raise SpaceError(
                    f"operation {operation!r} of space {self.name!r} must be an axis whose length "
                    "is 0 or 1: whether it is there."
                )
            if len(self.depends(operation)) != 1:
                raise SpaceError(
                    f"operation {operation!r} of space {self.name!r} depends on "
                    f"{list(self.depends(operation))}; exactly one choice says whether it is there."
                )
        for name in self.static:
            if self.choice(name).per is not None:
                raise SpaceError(
                    f"static choice {name!r} of space {self.name!r} is made per layer; only a "
                    "choice of the whole network can change the shapes of activations."
                )
        for stack in self.stacks:
            if any(self.choice(c).per for c in self.depends(stack)) or self.uses_layer(stack):
                raise SpaceError(
                    f"the depth of stack {stack!r} depends on a choice made per layer; "
                    "make it a choice of the whole network."
                )

    @functools.cached_property
    def by_name(self) -> Mapping[str, Choice]:
        """The choices by their names."""
        return MappingProxyType({choice.name: choice for choice in self.choices})

    def choice(self, name: str) -> Choice:
        """The choice called ``name``; raises :class:`SpaceError` where there is none."""
        if name not in self.by_name:
            raise SpaceError(
                f"{name!r} is no choice of space {self.name!r}; {did_you_mean(name, self.by_name)}"
            )
        return self.by_name[name]

    def axis(self, name: str) -> Axis:
        """The axis called ``name``."""
        axis = self.axes[name]
        assert isinstance(axis, Axis)  # __post_init__ made it one
        return axis

    @functools.cached_property
    def _asks(self) -> dict[str, tuple[str, ...]]:
        # Reading a signature is slow, and counting asks for lengths by the thousand.
        axes = {name: self.axis(name) for name in self.axes}
        return {n: (a.owner,) if a.owner else _arguments(a.length) for n, a in axes.items()}

    def depends(self, axis: str) -> tuple[str, ...]:
        """Names of the choices that the length of ``axis`` depends on."""
        return tuple(n for n in self._asks[axis] if n != LAYER)

    def uses_layer(self, axis: str) -> bool:
        """Whether the length of ``axis`` is a function of the layer's index too."""
        return LAYER in self._asks[axis]

    def length(self, axis: str, values: Mapping[str, Option], layer: int | None = None) -> int:
        """Length of ``axis`` for given values of the choices it depends on."""
        length = self.axis(axis).length
        if isinstance(length, int):
            return length
        if isinstance(length, str):
            return int(values[length])
        given: dict[str, Any] = {n: values[n] for n in self.depends(axis)}
        if self.uses_layer(axis):
            given[LAYER] = layer
        return int(length(**given))

    @functools.cache  # noqa: B019 - spaces are few and live as long as the run
    def axis_size(self, axis: str) -> int:
        """The largest length of ``axis`` over all options: its size in the super-network."""
        owner, entries = self.axis(axis).owner, self.axis(axis).entries
        if owner is not None:
            return max(entries) + 1 if entries else len(self.choice(owner).options)
        return max(length for _, length in self.lengths(axis, 0))

    def positions(
        self, axis: str, values: Mapping[str, Option], layer: int | None = None
    ) -> np.ndarray:
        """The entries of ``axis`` in the super-network that given values of its choices occupy."""
        owner, entries = self.axis(axis).owner, self.axis(axis).entries
        if owner is not None:
            option = self.choice(owner).options.index(values[owner])
            return np.array([entries[option] if entries else option])
        return self.axis(axis).take(self.length(axis, values, layer), self.axis_size(axis))

    def joint(self, axis: str) -> Iterator[tuple[tuple[int, ...], dict[str, Option]]]:
        """Yield ``(indices of the options, values)`` over the joint options of ``axis``."""
        names = self.depends(axis)
        options = [self.choice(n).options for n in names]
        for index in itertools.product(*(range(len(o)) for o in options)):
            yield index, {n: o[i] for n, o, i in zip(names, options, index, strict=True)}

    def lengths(self, axis: str, layer: int | None = None) -> Iterator[tuple[tuple[int, ...], int]]:
        """Yield ``(indices of the options, length)`` over the joint options of ``axis``."""
        for index, values in self.joint(axis):
            yield index, self.length(axis, values, layer)

    def in_stack(self, axis: str, stack: str | None) -> str:
        """What ``axis`` is called in this space for parameters of ``stack``."""
        qualified = f"{stack}/{axis}"
        return qualified if qualified in self.axes else axis

    @functools.cached_property
    def inert(self) -> tuple[str, ...]:
        """Choices that change the length of no axis, so that no mask can express them."""
        used = {choice for axis in self.axes for choice in self.depends(axis)}
        return tuple(c.name for c in self.choices if c.name not in used and len(c.options) > 1)

    @property
    def size(self) -> int:
        """The exact number of architectures; layers beyond the depth do not count."""
        if self.legal is not None:
            return self.legal
        depth_choices = sorted({c for stack in self.stacks for c in self.depends(stack)})
        free = [c for c in self.choices if c.per is None and c.name not in depth_choices]
        total = math.prod(len(c.options) for c in free)
        per_layer = {
            stack: math.prod(len(c.options) for c in self.choices if c.per == stack)
            for stack in self.stacks
        }
        joint = itertools.product(*(self.choice(c).options for c in depth_choices))
        return total * sum(
            math.prod(
                n ** self.length(stack, dict(zip(depth_choices, values, strict=True)))
                for stack, n in per_layer.items()
            )
            for values in joint
        )


def by_option(choice: str, table: Mapping[Option, int], otherwise: int = 0) -> Length:
    """A length that is looked up in a table from the options of one choice.

    Args:
      choice: its name.
      table: lengths of some of its options.
      otherwise: the length of all others.
    """

    def length(**values: Option) -> int:
        return table.get(values[choice], otherwise)

    parameter = inspect.Parameter(choice, inspect.Parameter.KEYWORD_ONLY)
    length.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]
    return length


def _arguments(length: Length) -> tuple[str, ...]:
    if isinstance(length, int):
        return ()
    if isinstance(length, str):
        return (length,)
    return tuple(inspect.signature(length).parameters)
