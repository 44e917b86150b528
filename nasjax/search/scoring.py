"""Scoring many architectures by proxies: one program for all, spread over the devices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nasjax.core import architecture
from nasjax.core import mixture as mixtures
from nasjax.core.architecture import Arch
from nasjax.core.chunks import in_chunks
from nasjax.core.errors import NasjaxError
from nasjax.core.program import Program
from nasjax.core.supernet import Supernet
from nasjax.search.proxies import Count, Proxy


class Scorer:
    """Proxies of the sub-networks of one super-network with one set of parameters.

    Every device scores architectures of its own, so that neither their number nor that of the
    devices changes a score.

    Args:
      supernet: whose sub-networks are scored.
      variables: its maximal ``{"params": ...}``, usually as drawn.
      proxies: by the name of their values.
      batch: images, and labels where a proxy needs them, as the networks get them.
      mesh: the devices [the first one alone].
      chunk: architectures that a device scores at once, by ``vmap``; halved where memory does not
        suffice. None for 1 on a CPU and 32 elsewhere.
    """

    def __init__(
        self,
        supernet: Supernet,
        variables: Mapping[str, Any],
        proxies: Mapping[str, Proxy],
        batch: Mapping[str, Any],
        mesh: Mesh | None = None,
        chunk: int | None = None,
    ) -> None:
        if chunk is not None and chunk < 1:
            raise NasjaxError(
                f"{chunk} architectures at once are none; a chunk of 1 or more was expected."
            )
        if mesh is None:
            mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._supernet, self._mesh, self._proxies = supernet, mesh, dict(proxies)
        self._variables = jax.device_put({"params": variables["params"]}, everywhere)
        self._batch = jax.device_put(dict(batch), everywhere)
        self.chunk = chunk or (1 if jax.default_backend() == "cpu" else 32)
        self._programs: dict[Any, Program] = {}
        self._prepared: dict[Any, Proxy] = {}

    @property
    def compiles(self) -> dict[str, int]:
        """How many programs each proxy has been compiled to."""
        found = dict.fromkeys(self._proxies, 0)
        for (name, *_), program in self._programs.items():
            found[name] += program.compiles
        return found

    def population(self, archs: Sequence[Arch]) -> Iterator[tuple[Arch, dict[str, float]]]:
        """Yield ``(architecture, {proxy: score})``, in order within equal static options."""

        def run(part: Sequence[Arch]) -> list[dict[str, float]]:
            scores = {name: self._scores(name, part) for name in self._proxies}
            return [{name: each[i] for name, each in scores.items()} for i in range(len(part))]

        return in_chunks(self, self._supernet, archs, run, self._mesh.shape["data"])

    def scores(self, archs: Sequence[Arch]) -> dict[str, list[float]]:
        """The scores of ``archs`` by proxy, in their order."""
        space = self._supernet.space
        found = {architecture.code(space, arch): s for arch, s in self.population(archs)}
        every = [found[architecture.code(space, arch)] for arch in archs]
        return {name: [scores[name] for scores in every] for name in self._proxies}

    def _scores(self, name: str, archs: Sequence[Arch]) -> list[float]:
        """Scores of at most a chunk for each device, with equal static options."""
        proxy, supernet = self._proxies[name], self._supernet
        if isinstance(proxy, Count):  # exact, and no work for a device
            return [proxy(supernet, None, arch, {})[0] for arch in archs]
        size = self.chunk * self._mesh.shape["data"]
        codes = [architecture.encode(supernet.space, arch) for arch in archs]
        vectors = np.stack(codes + [codes[-1]] * (size - len(codes)))
        place = NamedSharding(self._mesh, PartitionSpec("data"))
        program = self._program(name, archs[0])
        totals = program(self._variables, jax.device_put(vectors, place), self._batch)
        return np.asarray(totals, float)[: len(archs)].tolist()

    def _program(self, name: str, arch: Arch) -> Program:
        at = (name, self._supernet.static(arch), self.chunk)
        if at not in self._programs:
            self._programs[at] = self._compiled(name, arch)
        return self._programs[at]

    def _compiled(self, name: str, arch: Arch) -> Program:
        # The static options of this program are those of its module.
        static = self._supernet.static(arch)
        supernet = dataclasses.replace(self._supernet, module=self._supernet.maximal(arch))
        proxy = self._proxies[name]
        if hasattr(proxy, "prepared"):  # once, whatever the chunk
            if (name, static) not in self._prepared:
                self._prepared[name, static] = proxy.prepared(supernet, self._variables, arch)
            proxy = self._prepared[name, static]
        one_device, many = PartitionSpec(), PartitionSpec("data")

        def score(variables: Any, batch: Any, vector: jax.Array) -> jax.Array:
            mixture = mixtures.one_hot_vector(supernet.space, vector)
            return proxy(supernet, variables, mixture, batch)[0]

        def scores(variables: Any, vectors: jax.Array, batch: Any) -> jax.Array:
            one = functools.partial(score, variables, batch)
            # Without vmap, a network pays for its own layers alone.
            return jax.lax.map(one, vectors) if self.chunk == 1 else jax.vmap(one)(vectors)

        return Program(
            jax.shard_map(
                scores,
                mesh=self._mesh,
                in_specs=(one_device, many, one_device),
                out_specs=many,
                check_vma=False,
            )
        )
