"""Latency: how long a network takes, measured.

Times are in milliseconds per batch of images, forward pass only, as one compiled program.
"""

from __future__ import annotations

import inspect
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from tqdm import tqdm

from nasjax.core import architecture
from nasjax.core.architecture import Arch
from nasjax.core.errors import ArchitectureError
from nasjax.core.initial import draw
from nasjax.core.space import SearchSpace
from nasjax.core.supernet import Supernet
from nasjax.search.errors import SearchError
from nasjax.version import __version__

Network = tuple[nn.Module, Mapping[str, Any]]

_LINE = '{"space": '  # how a line of measurements begins
_now = time.perf_counter  # tests put a clock of their own here


@dataclass(frozen=True)
class Latency:
    """How long a network took for a batch.

    Attributes:
      median: milliseconds per batch.
      quartiles: the first and the third, in milliseconds per batch.
      batch_size: images in a batch.
      repeats: timed runs.
      device: the kind of device, as JAX names it.
      platform: ``"cpu"``, ``"gpu"`` or ``"tpu"``.
      versions: of jax and nasjax.
    """

    median: float
    quartiles: tuple[float, float]
    batch_size: int
    repeats: int
    device: str
    platform: str
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        first, third = self.quartiles
        object.__setattr__(self, "quartiles", (first, third))
        object.__setattr__(self, "versions", dict(self.versions))

    @property
    def throughput(self) -> float:
        """Images per second."""
        return 1000 * self.batch_size / self.median

    @property
    def iqr(self) -> float:
        """The third quartile less the first, in milliseconds: how far the runs scatter."""
        return self.quartiles[1] - self.quartiles[0]

    def as_json(self) -> dict[str, Any]:
        """All fields, ready for JSON; :meth:`from_json` reads them."""
        return {
            "median": self.median,
            "quartiles": list(self.quartiles),
            "batch_size": self.batch_size,
            "repeats": self.repeats,
            "device": self.device,
            "platform": self.platform,
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Latency:
        """The latency that :meth:`as_json` wrote.

        Raises:
          SearchError: if ``data`` is something else.
        """
        try:
            return cls(**data)
        except (TypeError, ValueError):
            raise SearchError(
                f"{data!r} is no latency: what Latency.as_json() wrote was expected."
            ) from None

    def __str__(self) -> str:
        first, third = self.quartiles
        return (
            f"{self.median:.3g} ms (quartiles {first:.3g} and {third:.3g}) for a batch of "
            f"{self.batch_size} on {self.device}, {self.throughput:.4g} images/s"
        )


def measure_latency(
    module: nn.Module,
    variables: Mapping[str, Any],
    input_shape: Sequence[int],
    *,
    batch_size: int = 1,
    warmup: int = 5,
    repeats: int = 30,
    device: jax.Device | None = None,
    dtype: Any = jnp.float32,
) -> Latency:
    """Time ``module.apply(variables, images, train=False)``, compiled.

    Compilation, and moving variables and images to the device, are not in the time; the call of
    the program from Python is. Each run is waited for.

    Args:
      module: called as ``module(images, train=False)``.
      variables: all collections that it reads: ``params``, and ``batch_stats`` where it has them.
      input_shape: shape of one image, without the batch.
      batch_size: images in a batch.
      warmup: runs that are not timed.
      repeats: runs that are.
      device: where to run [the first local device].
      dtype: of the images; in which type the module computes is its own affair.

    Raises:
      SearchError: if ``batch_size`` or ``repeats`` is below 1 or ``warmup`` below 0, or if the
        module has no argument ``train`` or does not run with the collections given.
    """
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    counts = {"batch_size": batch_size, "warmup": warmup, "repeats": repeats}
    return measure_latencies([(module, variables)], input_shape, **counts, **options)[0]


def measure_latencies(
    networks: Sequence[Network],
    input_shape: Sequence[int],
    *,
    batch_size: int = 1,
    warmup: int = 5,
    repeats: int = 30,
    device: jax.Device | None = None,
    dtype: Any = jnp.float32,
) -> list[Latency]:
    """Time several networks round robin: every round runs each of them once.

    A slow moment of a shared machine then hits all alike, where one after the other it would hit
    one. All are on the device together. Each round has a random order (the same in every call),
    so that none always finds the caches as one and the same other left them.

    Args:
      networks: pairs of a module and its variables.
      input_shape: shape of one image, without the batch.
      batch_size: images in a batch.
      warmup: rounds that are not timed.
      repeats: rounds that are.
      device: where to run [the first local device].
      dtype: of the images.

    Returns:
      A latency for each network, in their order.

    Raises:
      SearchError: as :func:`measure_latency`.
    """
    _check_counts(batch_size=batch_size, warmup=warmup, repeats=repeats)
    device = _device(device)
    drawn = jax.random.uniform(jax.random.key(0), (batch_size, *input_shape))
    images = jax.device_put(drawn.astype(dtype), device)
    programs = []
    for module, variables in networks:
        variables = jax.device_put(variables, device)
        programs.append((_compile(module, variables, images), variables))
    jax.block_until_ready((images, [variables for _, variables in programs]))
    rng = np.random.default_rng(0)
    times = np.empty((len(programs), repeats))
    for turn in range(-warmup, repeats):
        for i in rng.permutation(len(programs)).tolist():
            program, variables = programs[i]
            begin = _now()
            jax.block_until_ready(program(variables, images))
            end = _now()
            if turn >= 0:
                times[i, turn] = 1000 * (end - begin)
    latencies = []
    for row in times:
        first, median, third = np.percentile(row, (25, 50, 75)).tolist()
        latencies.append(
            Latency(
                median,
                (first, third),
                int(batch_size),
                int(repeats),
                device.device_kind,
                device.platform,
                {"jax": jax.__version__, "nasjax": __version__},
            )
        )
    return latencies


def architecture_latency(supernet: Supernet, arch: Arch | str, **options: Any) -> Latency:
    """Time the network of an architecture at its own size, with weights just drawn.

    How long a network takes does not depend on its weights.

    Args:
      supernet: builds the network.
      arch: an architecture, or what :meth:`Supernet.architecture` knows by name.
      **options: of :func:`measure_latency`.

    Raises:
      ArchitectureError: if the architecture does not lie in the space.
      SearchError: as :func:`measure_latency`.
    """
    network = _network(supernet, supernet.architecture(arch))
    return measure_latencies([network], supernet.input_shape, **options)[0]


def measure_architectures(
    supernet: Supernet,
    archs: Iterable[Arch],
    *,
    path: str | os.PathLike[str] | None = None,
    group: int = 8,
    seed: int = 0,
    batch_size: int = 1,
    warmup: int = 5,
    repeats: int = 30,
    device: jax.Device | None = None,
    dtype: Any = jnp.float32,
) -> list[Latency]:
    """Time the networks of many architectures, each once, in random order.

    They are measured in groups, each round robin. The order is random so that a machine that
    becomes slower does not make the last architectures of a sorted list look slow.

    Args:
      supernet: builds the networks.
      archs: architectures of its space.
      path: a file of JSON lines. What is measured is appended at once; what it holds is not
        measured again. A line that an interrupted run left unfinished is removed.
      group: networks that are compiled and on the device at a time.
      seed: of the order.
      batch_size: images in a batch.
      warmup: rounds of each group that are not timed.
      repeats: rounds that are.
      device: where to run [the first local device].
      dtype: of the images.

    Returns:
      A latency for each of ``archs``, in their order.

    Raises:
      ArchitectureError: if an architecture does not lie in the space.
      SearchError: if the file is none of this function, or was measured otherwise (space, images,
        batch, device, version of jax); and as :func:`measure_latency`.
    """
    counts = {"batch_size": batch_size, "warmup": warmup, "repeats": repeats}
    _check_counts(group=group, **counts)
    device = _device(device)
    space = supernet.space
    wanted = [architecture.validate(space, arch) for arch in archs]
    codes = [architecture.code(space, arch) for arch in wanted]
    conditions = {
        "space": space.name,
        "input_shape": list(supernet.input_shape),
        "dtype": jnp.dtype(dtype).name,
    }
    measured: dict[tuple[int, ...], Latency] = {}
    file = None if path is None else Path(path).expanduser()
    if file is not None and file.exists():
        expected = {
            **conditions,
            "batch_size": int(batch_size),
            "device": device.device_kind,
            "platform": device.platform,
            "jax": jax.__version__,
        }
        measured = _read_measured(file, space, expected)
    left = {c: a for c, a in zip(codes, wanted, strict=True) if c not in measured}
    order = list(left)
    order = [order[i] for i in np.random.default_rng(seed).permutation(len(order))]
    distinct = len(set(codes))
    show = jax.process_index() == 0
    with tqdm(
        total=distinct,
        initial=distinct - len(order),
        desc="latency",
        unit="network",
        disable=not show,
    ) as bar:
        for first in range(0, len(order), group):
            some = order[first : first + group]
            latencies = measure_latencies(
                [_network(supernet, left[code]) for code in some],
                supernet.input_shape,
                **counts,
                device=device,
                dtype=dtype,
            )
            for code, latency in zip(some, latencies, strict=True):
                measured[code] = latency
                line = {**conditions, "architecture": left[code], "latency": latency.as_json()}
                if file is not None:
                    _append(file, json.dumps(line) + "\n")
            bar.update(len(some))
    return [measured[code] for code in codes]


def _check_counts(**counts: Any) -> None:
    for name, value in counts.items():
        least = 0 if name == "warmup" else 1
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or value < least:
            raise SearchError(f"{name} is {value!r}; a whole number from {least} was expected.")


def _device(device: jax.Device | None) -> jax.Device:
    if device is not None and not isinstance(device, jax.Device):
        raise SearchError(
            f"device is {device!r}; a single device was expected, one of jax.local_devices()."
        )
    return jax.local_devices()[0] if device is None else device


def _compile(
    module: nn.Module, variables: Mapping[str, Any], images: jax.Array
) -> Callable[[Any, jax.Array], Any]:
    """The program of ``module`` for these shapes, on the device where they are."""
    _check_train(module)

    def forward(variables: Mapping[str, Any], images: jax.Array) -> Any:
        return module.apply(variables, images, train=False)

    try:
        return jax.jit(forward).lower(variables, images).compile()
    except FlaxError as error:
        name = type(module).__name__
        reason = str(error).splitlines()[0].split(" (https://")[0].rstrip(".")
        raise SearchError(
            f"{name} does not run on {list(images.shape)} with the collections "
            f"{sorted(variables)} alone ({reason}): give the variables that it was initialised "
            "with for images of this shape; modules that write others are not supported."
        ) from None


def _check_train(module: nn.Module) -> None:
    parameters = inspect.signature(type(module).__call__).parameters.values()
    if not any(p.name == "train" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise SearchError(
            f"{type(module).__name__} has no argument 'train', but is measured as "
            "module(images, train=False): give its __call__ one."
        )


def _network(supernet: Supernet, arch: Arch) -> Network:
    module = supernet.network(arch)
    _check_train(module)
    return module, draw(module, jax.random.key(0), supernet.input_shape, train=False)


def _append(file: Path, line: str) -> None:
    try:
        with file.open("a", encoding="utf-8") as opened:
            opened.write(line)
    except OSError as error:
        raise SearchError(
            f"{file} cannot be written ({error.strerror}): choose another path; what it holds "
            "already will not be measured again."
        ) from None


def _read_measured(
    file: Path, space: SearchSpace, expected: Mapping[str, Any]
) -> dict[tuple[int, ...], Latency]:
    """What earlier runs measured under the same conditions, by the code of the architecture."""
    foreign = SearchError(
        f"{file} is no file of measured architectures: give the path of one, or of a new file."
    )
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SearchError(
            f"{file} cannot be read ({error.strerror}): choose another path."
        ) from None
    *lines, torn = content.split(b"\n")
    begin = _LINE.encode()
    if not (torn.startswith(begin) or begin.startswith(torn)):
        raise foreign
    measured = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            latency = Latency.from_json(row["latency"])
            found = {
                **{name: row[name] for name in ("space", "input_shape", "dtype")},
                "batch_size": latency.batch_size,
                "device": latency.device,
                "platform": latency.platform,
                "jax": latency.versions["jax"],
            }
            arch = row["architecture"]
        except (ValueError, KeyError, TypeError):  # SearchError is a ValueError
            raise foreign from None
        for name, value in expected.items():
            if found[name] != value:
                raise SearchError(
                    f"line {number} of {file} was measured with {name} {found[name]!r}, but "
                    f"{value!r} is asked for: only what is measured alike can be compared, so "
                    "choose another path."
                )
        try:
            measured[architecture.code(space, arch)] = latency
        except ArchitectureError:
            raise SearchError(
                f"line {number} of {file} is of {arch}, which does not lie in space "
                f"{space.name!r} any more: choose another path."
            ) from None
    if torn:
        os.truncate(file, len(content) - len(torn))  # or the next line would continue it
    return measured
