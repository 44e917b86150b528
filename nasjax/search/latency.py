"""Latency: how long a network takes, measured; and a linear model that predicts it.

Times are in milliseconds per batch of images, forward pass only, as one compiled program.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from scipy.stats import kendalltau
from tqdm import tqdm

from nasjax.core import architecture
from nasjax.core.architecture import Arch
from nasjax.core.cost import Term
from nasjax.core.errors import ArchitectureError
from nasjax.core.space import SearchSpace
from nasjax.core.supernet import Supernet, draw
from nasjax.search.errors import SearchError
from nasjax.version import __version__

Network = tuple[nn.Module, Mapping[str, Any]]

FEWEST = 8  # measured architectures that a predictor is fitted to
_FORMAT = "nasjax latency predictor"
_STRENGTHS = tuple(10.0**e for e in range(-6, 2))
_FLOOR = 0.1  # of the fastest measured architecture: no prediction is lower
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
    codes = [_code(space, arch) for arch in wanted]
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


def _code(space: SearchSpace, arch: Arch) -> tuple[int, ...]:
    return tuple(architecture.encode(space, arch).tolist())


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
            measured[_code(space, arch)] = latency
        except ArchitectureError:
            raise SearchError(
                f"line {number} of {file} is of {arch}, which does not lie in space "
                f"{space.name!r} any more: choose another path."
            ) from None
    if torn:
        os.truncate(file, len(content) - len(torn))  # or the next line would continue it
    return measured


@dataclass(frozen=True)
class HeldOutError:
    """How well latencies were predicted of architectures that the model had not seen.

    Attributes:
      mape: mean absolute percentage error.
      rmse: root of the mean square error, in milliseconds.
      tau: Kendall's tau-b between predicted and measured: 1 where all pairs are ordered rightly, 0
        where it is chance; None where all of either are equal.
      architectures: their number.
    """

    mape: float
    rmse: float
    tau: float | None
    architectures: int


@dataclass(frozen=True, eq=False, repr=False)
class LatencyPredictor:
    """A linear model of the latency of the architectures of a space.

    A latency is a sum over layers, and the time of a layer mostly grows with its multiply-adds and
    with the arrays it reads and writes. So the features are sums of products of axis lengths,
    which any space has (see :meth:`fit`), and constants for what they leave out.

    An instance is a cost: a function from an architecture to milliseconds per batch.

    Example:
      >>> from nasjax import spaces
      >>> supernet = spaces.quickstart()
      >>> archs = [architecture.sample(supernet.space, jax.random.key(i)) for i in range(30)]
      >>> times = [1.0 + 0.5 * arch["depth"] for arch in archs]
      >>> predictor = LatencyPredictor.fit(supernet, archs, times, device="abacus", batch_size=8)
      >>> round(predictor(supernet.architecture("largest")), 2)
      3.0

    Attributes:
      supernet: the super-network of the architectures.
      intercept: milliseconds of a network whose features are all 0.
      coefficients: milliseconds for a unit of each feature.
      floor: the least prediction in milliseconds, a tenth of the fastest network measured: a
        linear model knows no sign, and a latency of 0 would win every search.
      error: of the model before it saw the architectures held out.
      strength: of the ridge, per architecture.
      measured: number of architectures fitted.
      device: where they were measured, None where unknown.
      batch_size: images in a batch, None where unknown.
    """

    supernet: Supernet
    intercept: float
    coefficients: Mapping[str, float]
    floor: float
    error: HeldOutError
    strength: float
    measured: int
    device: str | None = None
    batch_size: int | None = None
    _values: Mapping[str, _Feature] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "coefficients", MappingProxyType(dict(self.coefficients)))
        object.__setattr__(self, "_values", _features(self.supernet))

    @classmethod
    def fit(
        cls,
        supernet: Supernet,
        archs: Sequence[Arch],
        milliseconds: Sequence[float | Latency],
        *,
        holdout: float = 0.2,
        seed: int = 0,
        strengths: Sequence[float] = _STRENGTHS,
        device: str | None = None,
        batch_size: int | None = None,
    ) -> LatencyPredictor:
        """Fit measured latencies; the same arguments give the same model.

        Features: for parameters and, where the space counts them, multiply-adds, the total, and
        the sum over layers of each product of axis lengths; the depth of each stack; whether the
        network has each option of a choice made once; how many layers have each option of a
        choice made per layer. Totals are sums of the others, yet not idle: a ridge holds back
        least what many features say together, so few measurements suffice for the main trend.

        The model minimises the mean square of *relative* errors, ``((f(a) - t) / t) ** 2``:
        scatter of a time grows with the time, so these have equal variance; and a search compares
        networks of like latency, where a percentage matters alike to the fast and the slow. A
        linear model of the logarithm would do this too, but layers add up, they do not multiply.

        The features are standardised, with an intercept that the ridge spares. Its strength is
        chosen by leave-one-out, exact and in closed form but for the standardisation, which is
        not repeated (Allen's PRESS, 1974). Some architectures are held out, the model of the
        others gives ``error``, and the final model is of all.

        Args:
          supernet: of the architectures.
          archs: those measured, 8 different ones at least.
          milliseconds: the latency of each, as milliseconds per batch or as :class:`Latency`.
          holdout: the fraction of different architectures to hold out, 2 of them at least.
          seed: of which are held out.
          strengths: of the ridge, per architecture, to choose from.
          device: where they were measured [that of a :class:`Latency`].
          batch_size: images in a batch [that of a :class:`Latency`].

        Raises:
          ArchitectureError: if an architecture does not lie in the space.
          SearchError: if lengths differ, the architectures are too few, a latency is not
            positive, latencies are of several devices, batches or versions of jax, or ``holdout``
            is not above 0 and at most 0.5, or a strength not above 0.
        """
        if len(archs) != len(milliseconds):
            raise SearchError(
                f"there are {len(archs)} architectures and {len(milliseconds)} latencies; one for "
                "each was expected."
            )
        if not 0 < holdout <= 0.5:
            raise SearchError(f"holdout is {holdout!r}; a fraction up to 0.5 was expected.")
        if not len(strengths) or not all(s > 0 for s in strengths):
            raise SearchError(f"strengths are {strengths!r}; numbers above 0 were expected.")
        space = supernet.space
        archs = [architecture.validate(space, arch) for arch in archs]
        codes = {_code(space, arch): None for arch in archs}
        if len(codes) < FEWEST:
            raise SearchError(
                f"{len(codes)} different architectures are too few to fit a predictor to; measure "
                f"{FEWEST} at least, better 50 or more."
            )
        found = [m for m in milliseconds if isinstance(m, Latency)]
        setting = {(m.device, m.batch_size, m.versions.get("jax")) for m in found}
        if len(setting) > 1:
            raise SearchError(
                "the latencies were measured on several devices, batch sizes or versions of jax "
                f"({sorted(map(str, setting))}); fit a predictor to each."
            )
        if found:
            device, batch_size = device or found[0].device, batch_size or found[0].batch_size
        times = np.array([m.median if isinstance(m, Latency) else m for m in milliseconds], float)
        for i, t in enumerate(times.tolist()):
            if not (t > 0 and math.isfinite(t)):
                raise SearchError(
                    f"the latency of architecture {i} is {t!r}; a number of milliseconds above 0 "
                    "was expected, so measure it again."
                )
        values = _features(supernet)
        sizes = [_Sizes(space, arch) for arch in archs]
        table = np.array([[value(s) for value in values.values()] for s in sizes], float)

        # One architecture measured twice must not be on both sides.
        places = {code: i for i, code in enumerate(codes)}
        which = np.array([places[_code(space, arch)] for arch in archs])
        held_count = max(2, round(holdout * len(codes)))
        held = np.isin(which, np.random.default_rng(seed).permutation(len(codes))[:held_count])
        weights, intercept, _ = _ridge(table[~held], times[~held], strengths)
        floor = _FLOOR * times[~held].min()
        predicted = np.maximum(intercept + table[held] @ weights, floor)
        error = _error(predicted, times[held], held_count)
        weights, intercept, strength = _ridge(table, times, strengths)
        return cls(
            supernet,
            float(intercept),
            dict(zip(values, weights.tolist(), strict=True)),
            _FLOOR * float(times.min()),
            error,
            strength,
            len(codes),
            device,
            batch_size,
        )

    def __call__(self, arch: Arch) -> float:
        """The predicted latency of ``arch`` in milliseconds per batch.

        Raises:
          ArchitectureError: if it does not lie in the space.
        """
        space = self.supernet.space
        sizes = _Sizes(space, architecture.validate(space, arch))
        total = self.intercept
        for name, weight in self.coefficients.items():
            if weight:
                total += weight * self._values[name](sizes)
        return max(total, self.floor)

    def predict(self, archs: Iterable[Arch]) -> np.ndarray:
        """Predicted latencies in milliseconds per batch, an array ``(architectures,)``."""
        return np.array([self(arch) for arch in archs], float)

    def report(self) -> str:
        """What is to be said of the model, in one line."""
        e = self.error
        tau = "no Kendall tau" if e.tau is None else f"Kendall tau {e.tau:.2f}"
        batch = "" if self.batch_size is None else f", batch size {self.batch_size}"
        device = "" if self.device is None else f" on {self.device}"
        return (
            f"latency in {self.supernet.space.name}{device}{batch}: {e.mape:.1f}% mean absolute "
            f"error, {e.rmse:.3g} ms rms, {tau} on {e.architectures} of {self.measured} "
            "architectures, held out"
        )

    __str__ = report

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.report()}>"

    def to_json(self) -> dict[str, Any]:
        """The model as a plain dictionary, ready for JSON."""
        return {
            "format": _FORMAT,
            "space": self.supernet.space.name,
            "input_shape": list(self.supernet.input_shape),
            "device": self.device,
            "batch_size": self.batch_size,
            "measured": self.measured,
            "strength": self.strength,
            "intercept": self.intercept,
            "coefficients": dict(self.coefficients),
            "floor": self.floor,
            "error": asdict(self.error),
        }

    @classmethod
    def from_json(cls, supernet: Supernet, data: Mapping[str, Any]) -> LatencyPredictor:
        """The model that :meth:`to_json` wrote, for the super-network it was fitted to.

        Raises:
          SearchError: if ``data`` is something else, or is of another space or image size.
        """
        try:
            if data["format"] != _FORMAT:
                raise KeyError("format")
            found = (data["space"], tuple(data["input_shape"]))
            names = set(data["coefficients"])
            predictor = functools.partial(
                cls,
                intercept=float(data["intercept"]),
                coefficients={n: float(c) for n, c in data["coefficients"].items()},
                floor=float(data["floor"]),
                error=HeldOutError(**data["error"]),
                strength=float(data["strength"]),
                measured=int(data["measured"]),
                device=data["device"],
                batch_size=data["batch_size"],
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise SearchError(
                "this is no latency predictor: what LatencyPredictor.to_json() wrote was expected."
            ) from None
        here = (supernet.space.name, tuple(supernet.input_shape))
        if found != here or names != set(_features(supernet)):
            choices = "" if found != here else " with other choices or sizes"
            raise SearchError(
                f"the predictor was fitted to space {found[0]!r} with inputs {list(found[1])}"
                f"{choices}, but the super-network is of {here[0]!r} with {list(here[1])}: "
                "measure and fit anew, or load it for its own space."
            )
        return predictor(supernet)


class _Sizes:
    """An architecture, and sums over its layers of products of axis lengths, each taken once.

    Features share most of them, and a search predicts by the thousand.
    """

    def __init__(self, space: SearchSpace, arch: Arch) -> None:
        self.space, self.arch = space, arch
        self._lengths: dict[tuple[str, int | None], int] = {}
        self._sums: dict[Any, int] = {}

    def depth(self, stack: str) -> int:
        return architecture.depth(self.space, stack, self.arch)

    def total(self, term: Term) -> float:
        """As :func:`nasjax.core.cost.exact` of one term."""
        product = (term.axes, term.stack, term.layer)
        if product not in self._sums:
            layers: Iterable[int | None] = (None,)
            if term.stack is not None:
                deep = self.depth(term.stack)
                layers = range(deep) if term.layer is None else [term.layer] * (term.layer < deep)
            self._sums[product] = sum(
                math.prod(self._length(axis, layer) for axis in term.axes) for layer in layers
            )
        return term.times * self._sums[product]

    def _length(self, axis: str, layer: int | None) -> int:
        if (axis, layer) not in self._lengths:
            length = architecture.axis_length(self.space, axis, self.arch, layer)
            self._lengths[axis, layer] = length
        return self._lengths[axis, layer]


_Feature = Callable[[_Sizes], float]


def _features(supernet: Supernet) -> dict[str, _Feature]:
    """The features of the architectures of a space by name, see :meth:`LatencyPredictor.fit`."""
    space = supernet.space

    def total(terms: Sequence[Term]) -> _Feature:
        return lambda sizes: sum(map(sizes.total, terms))

    def deep(stack: str) -> _Feature:
        return lambda sizes: sizes.depth(stack)

    def has(name: str, option: Any) -> _Feature:
        return lambda sizes: sizes.arch[name] == option

    def layers(name: str, option: Any) -> _Feature:
        return lambda sizes: sizes.arch[name].count(option)

    features: dict[str, _Feature] = {}
    seen: set[Any] = set()
    for name in space.stacks:
        if _varies(space, (name,)):
            features[f"depth of {name}"] = deep(name)
            seen.add((name, (), ((None, 1.0),)))
    for name in ("params", *(n for n in supernet.costs if n == "flops")):
        products: dict[tuple[str | None, tuple[str, ...]], dict[int | None, float]] = {}
        for term in supernet.terms(name):
            times, axes = _fold(space, term)
            if _varies(space, (*axes, *filter(None, [term.stack]))):
                by_layer = products.setdefault((term.stack, axes), {})
                by_layer[term.layer] = by_layer.get(term.layer, 0) + times
        every = []
        for (stack, axes), by_layer in products.items():
            terms = [Term(times, axes, stack, layer) for layer, times in by_layer.items()]
            every += terms
            # Multiply-adds and parameters of one matrix product are the same feature.
            ratios = tuple((t.layer, t.times / terms[0].times) for t in terms)
            if (stack, axes, ratios) not in seen:
                seen.add((stack, axes, ratios))
                where = f"{'*'.join(axes) or '1'} in {stack or 'network'}"
                features[f"{name} of {where}"] = total(terms)
        if every:
            features[name] = total(every)
    for choice in space.choices:
        if len(choice.options) > 1:
            made = has if choice.per is None else layers
            for option in choice.options:
                features[f"{choice.name}={option!r}"] = made(choice.name, option)
    return features


def _fold(space: SearchSpace, term: Term) -> tuple[float, tuple[str, ...]]:
    """The factor and the axes of ``term`` in order, its axes of fixed length in the factor."""
    times, axes = term.times, []
    for axis in sorted(term.axes):
        if space.depends(axis) or space.uses_layer(axis):
            axes.append(axis)
        else:
            times *= space.length(axis, {})
    return times, tuple(axes)


def _varies(space: SearchSpace, axes: Iterable[str]) -> bool:
    return any(len(space.choice(c).options) > 1 for axis in axes for c in space.depends(axis))


def _ridge(
    table: np.ndarray, times: np.ndarray, strengths: Sequence[float]
) -> tuple[np.ndarray, float, float]:
    """Weights, intercept and strength of the ridge with the least relative leave-one-out error.

    Args:
      table: features (architectures, features).
      times: milliseconds (architectures,).
      strengths: to choose from, per architecture.
    """
    root = 1 / times
    root /= np.sqrt(np.mean(root**2))
    mean = np.average(table, axis=0, weights=root**2)
    scale = np.sqrt(np.average((table - mean) ** 2, axis=0, weights=root**2))
    constant = scale <= 1e-9 * np.abs(mean)
    scale = np.where(constant, 1.0, scale)
    middle = np.average(times, weights=root**2)
    # Centred with the weights of the fit, the rows are orthogonal to the intercept's.
    rows = np.where(constant, 0.0, (table - mean) / scale) * root[:, None]
    target = (times - middle) * root
    left, singular, right = np.linalg.svd(rows, full_matrices=False)
    along = left.T @ target
    best: tuple[float, float, np.ndarray] | None = None
    for strength in strengths:
        damped = singular**2 + strength * len(times)
        residual = target - left @ (singular**2 / damped * along)
        own = left**2 @ (singular**2 / damped) + root**2 / np.sum(root**2)
        # A row that its own time alone decides does not say how well the others predict it.
        known = np.all(own < 1 - 1e-9)
        score = float(np.mean((residual / (1 - own)) ** 2)) if known else math.inf
        if best is None or score < best[0]:
            best = score, strength, right.T @ (singular / damped * along)
    assert best is not None
    weights = best[2] / scale
    return weights, float(middle - mean @ weights), float(best[1])


def _error(predicted: np.ndarray, times: np.ndarray, architectures: int) -> HeldOutError:
    equal = np.ptp(predicted) == 0 or np.ptp(times) == 0
    return HeldOutError(
        100 * float(np.mean(np.abs(predicted - times) / times)),
        float(np.sqrt(np.mean((predicted - times) ** 2))),
        None if equal else float(kendalltau(predicted, times).statistic),
        architectures,
    )
