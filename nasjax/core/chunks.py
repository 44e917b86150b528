"""Many architectures by one program, some at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol

import jax

from nasjax.core.architecture import Arch

logger = logging.getLogger(__name__)


class Chunked(Protocol):
    """What runs architectures, ``chunk`` of them at once on a device."""

    chunk: int


def in_chunks(
    owner: Chunked,
    archs: Sequence[Arch],
    run: Callable[[Sequence[Arch]], Sequence[Any]],
    alike: Callable[[Arch], Hashable],
    devices: int = 1,
) -> Iterator[tuple[Arch, Any]]:
    """Yield each architecture with its result, in order within those that are alike.

    Where memory does not suffice, ``owner.chunk`` is halved and the chunk is run again.

    Args:
      owner: whose ``chunk`` it is.
      archs: in any order.
      run: results of at most ``chunk * devices`` architectures that are alike.
      alike: what they have in common: static options.
      devices: that run chunks at the same time.
    """
    groups: dict[Hashable, list[Arch]] = {}
    for arch in archs:
        groups.setdefault(alike(arch), []).append(arch)
    for group in groups.values():
        start = 0
        while start < len(group):
            part = group[start : start + owner.chunk * devices]
            try:
                results = run(part)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or owner.chunk == 1:
                    raise
                owner.chunk //= 2
                logger.info("Memory is short: %d architectures at once now.", owner.chunk)
                continue
            yield from zip(part, results, strict=True)
            start += len(part)
