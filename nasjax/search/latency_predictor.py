"""A linear model of the latency of a space's architectures, fitted to measured ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from nasjax.core import architecture
from nasjax.core.architecture import Arch
from nasjax.core.cost import Term
from nasjax.core.space import SearchSpace
from nasjax.core.supernet import Supernet
from nasjax.search.errors import SearchError
from nasjax.search.latency import Latency

FEWEST = 8  # measured architectures that a predictor is fitted to
_FORMAT = "nasjax latency predictor"
_STRENGTHS = tuple(10.0**e for e in range(-6, 2))
_FLOOR = 0.1  # of the fastest measured architecture: no prediction is lower


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
      >>> import jax
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
        codes = {architecture.code(space, arch): None for arch in archs}
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
        which = np.array([places[architecture.code(space, arch)] for arch in archs])
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

    def throughput(self, arch: Arch) -> float:
        """The predicted images per second of ``arch``, at the batch size of the measurements.

        Raises:
          SearchError: if the batch size is not known.
        """
        if self.batch_size is None:
            raise SearchError(
                "this predictor does not know the batch size of its measurements, so it has no "
                "throughput; fit it with batch_size."
            )
        return 1000.0 * self.batch_size / self(arch)

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
        return float(term.times) * self._sums[product]

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
    times, axes = float(term.times), []
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
    from scipy.stats import kendalltau  # takes a second to import

    equal = np.ptp(predicted) == 0 or np.ptp(times) == 0
    return HeldOutError(
        100 * float(np.mean(np.abs(predicted - times) / times)),
        float(np.sqrt(np.mean((predicted - times) ** 2))),
        None if equal else float(kendalltau(predicted, times).statistic),
        architectures,
    )
