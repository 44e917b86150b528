"""Scoring many architectures by proxies: one program for all, spread over the devices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nasjax.core import architecture
from nasjax.core import mixture as mixtures
from nasjax.core.architecture import Arch
from nasjax.core.chunks import in_chunks
from nasjax.core.errors import NasjaxError
from nasjax.core.program import Program
from nasjax.core.space import Option
from nasjax.core.supernet import Supernet
from nasjax.search.proxies import Count, Proxy

_LARGE = 100e6  # multiply-adds


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
      narrow: whether networks of one width (what ``supernet.narrowed`` knows) are scored together
        at that width, and not masked at the largest: that is less work, in a program that has a
        branch for each width. Each has to be compiled, so None is for spaces whose largest
        network has 100 million multiply-adds an input or more.
    """

    def __init__(
        self,
        supernet: Supernet,
        variables: Mapping[str, Any],
        proxies: Mapping[str, Proxy],
        batch: Mapping[str, Any],
        mesh: Mesh | None = None,
        chunk: int | None = None,
        narrow: bool | None = None,
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
        if narrow is None:
            narrow = bool(supernet.narrowed) and is_large(supernet)
        self._width = next(iter(supernet.narrowed), None) if narrow else None
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
        """Yield ``(architecture, {proxy: score})``, in any order.

        Devices wait for each other. Where each scores one network at a time, which then pays for
        its own layers alone, those of a size are scored together.
        """
        devices = self._mesh.shape["data"]
        if self.chunk == 1 and devices > 1:
            archs = sorted(archs, key=functools.partial(self._supernet.count, "params"))

        def run(part: Sequence[Arch]) -> list[dict[str, float]]:
            scores = {name: self._scores(name, part) for name in self._proxies}
            return [{name: each[i] for name, each in scores.items()} for i in range(len(part))]

        return in_chunks(self, archs, run, self._alike, devices)

    def scores(self, archs: Sequence[Arch]) -> dict[str, list[float]]:
        """The scores of ``archs`` by proxy, in their order."""
        space = self._supernet.space
        found = {architecture.code(space, arch): s for arch, s in self.population(archs)}
        every = [found[architecture.code(space, arch)] for arch in archs]
        return {name: [scores[name] for scores in every] for name in self._proxies}

    def _alike(self, arch: Arch) -> tuple[Any, ...]:
        """What architectures need to have in common to be scored at once on a device."""
        static = self._supernet.static(arch)
        return static if self.chunk == 1 else (*static, self._option(arch))

    def _option(self, arch: Arch) -> int:
        """Which of the branches scores ``arch``."""
        if self._width is None:
            return 0
        return self._supernet.space.choice(self._width).options.index(arch[self._width])

    def _scores(self, name: str, archs: Sequence[Arch]) -> list[float]:
        """Scores of at most a chunk for each device, in each of which all are alike."""
        proxy, supernet = self._proxies[name], self._supernet
        if isinstance(proxy, Count):  # exact, and no work for a device
            return [proxy(supernet, None, arch, {})[0] for arch in archs]
        size = self.chunk * self._mesh.shape["data"]
        filled = [*archs, *[archs[-1]] * (size - len(archs))]
        vectors = np.stack([architecture.encode(supernet.space, arch) for arch in filled])
        branches = np.array([self._option(arch) for arch in filled[:: self.chunk]], np.int32)
        place = NamedSharding(self._mesh, PartitionSpec("data"))
        program = self._program(name, archs[0])
        given = jax.device_put((branches, vectors), place)
        totals = program(self._variables, *given, self._batch)
        return np.asarray(totals, float)[: len(archs)].tolist()

    def _program(self, name: str, arch: Arch) -> Program:
        at = (name, self._supernet.static(arch), self.chunk)
        if at not in self._programs:
            self._programs[at] = self._compiled(name, arch)
        return self._programs[at]

    def _compiled(self, name: str, arch: Arch) -> Program:
        widths: tuple[Option | None, ...] = (None,)
        if self._width is not None:
            widths = self._supernet.space.choice(self._width).options
        # The static options of this program are those of its module.
        supernet = dataclasses.replace(self._supernet, module=self._supernet.maximal(arch))
        branches = [self._branch(name, supernet, arch, width) for width in widths]

        def scores(variables: Any, branch: jax.Array, vectors: jax.Array, batch: Any) -> jax.Array:
            return jax.lax.switch(branch[0], branches, variables, vectors, batch)

        one_device, many = PartitionSpec(), PartitionSpec("data")
        return Program(
            jax.shard_map(
                scores,
                mesh=self._mesh,
                in_specs=(one_device, many, many, one_device),
                out_specs=many,
                check_vma=False,
            )
        )

    def _branch(
        self, name: str, supernet: Supernet, arch: Arch, width: Option | None
    ) -> Callable[[Any, jax.Array, Any], jax.Array]:
        """What scores a device's architectures of this width; None for any, masked.

        All have the static options of ``arch``.
        """
        static, choice = supernet.static(arch), self._width

        def own(variables: Any) -> tuple[Supernet, Any]:
            if choice is None or width is None:
                return supernet, variables
            return supernet.narrow(variables, choice, width)

        proxy = self._proxies[name]
        if hasattr(proxy, "prepared"):  # once, whatever the chunk
            if (name, static, width) not in self._prepared:
                alike = arch if choice is None else {**arch, choice: width}
                prepared = proxy.prepared(*own(self._variables), alike)
                self._prepared[name, static, width] = prepared
            proxy = self._prepared[name, static, width]

        def scores(variables: Any, vectors: jax.Array, batch: Any) -> jax.Array:
            net, variables = own(variables)

            def one(vector: jax.Array) -> jax.Array:
                mixture = mixtures.one_hot_vector(supernet.space, vector)
                if choice is not None:
                    mixture[choice] = jnp.ones(1)  # its only option
                return proxy(net, variables, mixture, batch)[0]

            # Without vmap, a network pays for its own layers alone.
            return jax.lax.map(one, vectors) if self.chunk == 1 else jax.vmap(one)(vectors)

        return scores


def is_large(supernet: Supernet) -> bool:
    """Whether the largest network has 100 million multiply-adds an input, if they are counted."""
    if "flops" not in supernet.costs:
        return False
    return supernet.count("flops", architecture.largest(supernet.space)) >= _LARGE
