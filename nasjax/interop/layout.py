"""Layouts: how one tensor is laid out in another framework and in nasjax.

A layout is a pattern, their dimensions on the left and ours on the right::

    out in -> in out                        a linear map
    1 tokens embed -> tokens embed          a table with a batch dimension of one
    (heads qkv) embed -> embed qkv heads    rows of queries, keys and values interleaved
    (qkv heads) embed -> embed qkv heads    the same rows in three contiguous parts

Reading and writing are two uses of one pattern, so a round trip is exact by construction.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layout:
    """A pattern that relates their dimensions of a tensor to ours.

    Attributes:
      pattern: ``"theirs -> ours"``; on the left, parentheses group dimensions that they store as
        one (the last varies fastest), and ``1`` is a dimension that we do not have.
    """

    pattern: str

    @functools.cached_property
    def _groups(self) -> tuple[tuple[str, ...], ...]:
        left = self.pattern.split("->")[0]
        tokens = re.findall(r"\(([^)]*)\)|(\S+)", left)
        return tuple(tuple(n for n in (a or b).split() if n != "1") for a, b in tokens)

    @property
    def _theirs(self) -> tuple[str, ...]:
        return tuple(name for group in self._groups for name in group)

    @functools.cached_property
    def _ours(self) -> tuple[str, ...]:
        return tuple(self.pattern.split("->")[1].split())

    def shape(self, ours: Sequence[int]) -> tuple[int, ...]:
        """Their shape of a tensor that has shape ``ours`` here."""
        sizes = dict(zip(self._ours, ours, strict=True))
        return tuple(math.prod(sizes[name] for name in group) for group in self._groups)

    def stored(
        self, theirs: Sequence[int], ours: Sequence[int], larger: Container[int] = ()
    ) -> dict[str, int] | None:
        """Length of each named dimension in a tensor of theirs, which may be larger than ours.

        Args:
          theirs: shape of their tensor.
          ours: shape that is needed here.
          larger: positions of our dimensions in which theirs may be larger.

        Returns:
          The lengths by name, or None if no cut of such a tensor has the shape ``ours``.
        """
        if len(theirs) != len(self._groups):
            return None
        sizes = dict(zip(self._ours, ours, strict=True))
        loose = {name for i, name in enumerate(self._ours) if i in larger}
        for group, total in zip(self._groups, theirs, strict=True):
            free = [name for name in group if name in loose]
            length, rest = divmod(total, math.prod(sizes[n] for n in group if n not in free))
            if rest or len(free) > 1 or (not free and length != 1):
                return None
            for name in free:
                if length < sizes[name]:
                    return None
                sizes[name] = length
        return sizes

    def read(self, tensor: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Their ``tensor`` in our layout, uncut; ``sizes`` are the lengths :meth:`stored` gave."""
        split = tensor.reshape([sizes[name] for name in self._theirs])
        return split.transpose([self._theirs.index(name) for name in self._ours])

    def write(self, array: np.ndarray) -> np.ndarray:
        """Our ``array`` in their layout, contiguous."""
        moved = array.transpose([self._ours.index(name) for name in self._theirs])
        return np.ascontiguousarray(moved).reshape(self.shape(array.shape))
