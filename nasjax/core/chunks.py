"""Many architectures by one program, some at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax

from nasjax.core.architecture import Arch
from nasjax.core.supernet import Supernet

logger = logging.getLogger(__name__)


class Chunked(Protocol):
    """What runs architectures, ``chunk`` of them at once on a device."""

    chunk: int


def in_chunks(
    owner: Chunked,
    supernet: Supernet,
    archs: Sequence[Arch],
    run: Callable[[Sequence[Arch]], Sequence[Any]],
    devices: int = 1,
) -> Iterator[tuple[Arch, Any]]:
    """Yield each architecture with its result, in order within equal static options.

    Where memory does not suffice, ``owner.chunk`` is halved and the chunk is run again.

    Args:
      owner: whose ``chunk`` it is.
      supernet: of the architectures.
      archs: in any order.
      run: results of at most ``chunk * devices`` architectures with equal static options.
      devices: that run chunks at the same time.
    """
    groups: dict[tuple[Any, ...], list[Arch]] = {}
    for arch in archs:
        groups.setdefault(supernet.static(arch), []).append(arch)
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
