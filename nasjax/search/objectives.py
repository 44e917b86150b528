"""What is searched for: objectives, constraints, and the costs that are known beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nasjax.core import architecture, cost
from nasjax.core.architecture import Arch, Key
from nasjax.core.errors import did_you_mean
from nasjax.core.space import SearchSpace
from nasjax.core.supernet import Supernet
from nasjax.search.errors import SearchError

Values = Mapping[str, float]
_TRIES = 10_000  # draws after which a feasible architecture is given up


@dataclass(frozen=True)
class Objective:
    """Something that is to be large, or small.

    Attributes:
      name: the key of its values.
      maximize: whether more is better.
      unit: for tables and plots.
    """

    name: str
    maximize: bool = False
    unit: str = ""

    @property
    def sign(self) -> int:
        """What values are multiplied by so that less is better."""
        return -1 if self.maximize else 1

    def __str__(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


# What the objectives of nasjax mean; any other name is taken for a cost, of which less is better.
KNOWN: Mapping[str, Objective] = {
    "accuracy": Objective("accuracy", maximize=True, unit="part of the examples"),
    "params": Objective("params", unit="parameters"),
    "flops": Objective("flops", unit="multiply-adds"),
    "latency": Objective("latency", unit="ms"),
    "throughput": Objective("throughput", maximize=True, unit="images/s"),
}


@dataclass(frozen=True)
class Constraint:
    """Limits of a cost, both of them allowed.

    Attributes:
      name: of the cost.
      minimum: its least value.
      maximum: its greatest value.
    """

    name: str
    minimum: float = -math.inf
    maximum: float = math.inf

    def __post_init__(self) -> None:
        if not self.minimum <= self.maximum:
            raise SearchError(
                f"constraint on {self.name}: the minimum {self.minimum:g} is above the maximum "
                f"{self.maximum:g}; exchange them."
            )

    def violation(self, value: float) -> float:
        """By which part of the limit ``value`` is outside; 0 inside."""
        excess = max(value - self.maximum, self.minimum - value, 0.0)
        limit = self.maximum if value > self.maximum else self.minimum
        return excess / max(abs(limit), 1e-12) if excess else 0.0

    def __str__(self) -> str:
        low = "" if math.isinf(self.minimum) else f"{self.minimum:,g} <= "
        high = "" if math.isinf(self.maximum) else f" <= {self.maximum:,g}"
        return f"{low}{self.name}{high}"


@dataclass(frozen=True, eq=False)
class Problem:
    """A space, what is wanted of its architectures, and what must hold of them.

    Constraints are on costs, which are known before anything is evaluated: an architecture that
    breaks one is never evaluated. See :func:`problem` to make one.

    Attributes:
      space: the search space.
      objectives: at least one.
      constraints: all of which must hold.
      costs: ``arch -> value`` for each cost; all are recorded of whatever is evaluated.
      sample: ``key -> architecture``, from which searchers start; uniform by default.
      bounds: ``name -> (least, greatest)`` of a cost over the space, for messages.

    Raises:
      SearchError: if there is no objective, one is named twice, or a constraint's cost is unknown.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...] = (KNOWN["accuracy"],)
    constraints: tuple[Constraint, ...] = ()
    costs: Mapping[str, Callable[[Arch], float]] = field(default_factory=dict)
    sample: Callable[[Key], dict[str, Any]] | None = None
    bounds: Callable[[str], tuple[float, float] | None] = lambda name: None

    def __post_init__(self) -> None:
        object.__setattr__(self, "objectives", tuple(self.objectives))
        object.__setattr__(self, "constraints", tuple(self.constraints))
        names = [o.name for o in self.objectives]
        if not names or len(set(names)) != len(names):
            raise SearchError(f"the objectives are {names}; one or more, each once, were expected.")
        for constraint in self.constraints:
            if constraint.name not in self.costs:
                raise SearchError(
                    f"{constraint.name!r} cannot be constrained, since it is not known before an "
                    f"architecture is evaluated; {did_you_mean(constraint.name, self.costs)}"
                )

    def known(self, arch: Arch) -> dict[str, float]:
        """All costs of ``arch``."""
        return {name: of(arch) for name, of in self.costs.items()}

    def violation(self, arch: Arch) -> float:
        """Sum of the parts by which ``arch`` is outside of its limits; 0 where all hold."""
        return sum(c.violation(self.costs[c.name](arch)) for c in self.constraints)

    def draw(self, key: Key) -> dict[str, Any]:
        """A random architecture that keeps all constraints.

        Raises:
          SearchError: if none is found; it says what the space has to offer.
        """
        rng = architecture.generator(key)
        for _ in range(_TRIES):
            arch = architecture.sample(self.space, rng) if self.sample is None else self.sample(rng)
            if not self.violation(arch):
                return arch
        self.check()
        limits = " and ".join(map(str, self.constraints))
        raise SearchError(
            f"none of {_TRIES:,} random architectures of space {self.space.name!r} has {limits}; "
            f"{self._offer()}; widen the limits."
        )

    def check(self) -> None:
        """Raise :class:`SearchError` if a constraint lies outside of what the space has."""
        for c in self.constraints:
            if (found := self.bounds(c.name)) is None:
                continue
            if c.maximum < found[0] or c.minimum > found[1]:
                raise SearchError(
                    f"no architecture of space {self.space.name!r} has {c}; {self._offer()}; "
                    "move the limits."
                )

    def minimized(self, values: Sequence[Values]) -> np.ndarray:
        """The objectives as an array ``(architectures, objectives)`` of which less is better."""
        return np.array(
            [[o.sign * v[o.name] for o in self.objectives] for v in values], float
        ).reshape(len(values), len(self.objectives))

    def describe(self) -> dict[str, Any]:
        """What tells this problem from another, JSON-able."""
        return {
            "space": self.space.name,
            "size": str(self.space.size),
            "objectives": [
                {"name": o.name, "direction": "max" if o.maximize else "min", "unit": o.unit}
                for o in self.objectives
            ],
            "constraints": [str(c) for c in self.constraints],
        }

    def _offer(self) -> str:
        parts = []
        for name in dict.fromkeys(c.name for c in self.constraints):
            if (found := self.bounds(name)) is not None:
                parts.append(f"{name} goes from {found[0]:,} to {found[1]:,} there")
        return "; ".join(parts) or "its costs are not bounded beforehand"


def problem(
    supernet: Supernet,
    objectives: Sequence[str | Objective] = ("accuracy",),
    constraints: Mapping[str, tuple[float, float]] | None = None,
    costs: Mapping[str, Callable[[Arch], float]] | None = None,
    sample: Callable[[Key], dict[str, Any]] | None = None,
) -> Problem:
    """The problem of searching ``supernet``.

    Args:
      supernet: whose costs (``"params"``, ``"flops"``, ...) are known.
      objectives: names, or objectives of your own; the first one says which is best.
      constraints: by name of a cost its minimum and its maximum.
      costs: further ones by name, e.g. ``{"latency": predictor}``.
      sample: ``key -> architecture`` from which searchers start.

    Example:
      >>> from nasjax import spaces
      >>> p = problem(spaces.make("quickstart"), ["accuracy", "params"], {"params": (0, 50_000)})
      >>> [str(o) for o in p.objectives], str(p.constraints[0])
      (['accuracy (part of the examples)', 'params (parameters)'], '0 <= params <= 50,000')

    Raises:
      SearchError: if an objective or the cost of a constraint is unknown, or no architecture can
        keep the constraints.
    """
    counted = {n: _counter(supernet, n) for n in ("params", *supernet.costs)}
    every = {**counted, **(costs or {})}
    wanted = []
    for objective in objectives:
        if isinstance(objective, str):
            measured = [n for n in ("accuracy",) if n not in every]
            if objective not in (*every, *measured):
                raise SearchError(
                    f"no objective {objective!r}; {did_you_mean(objective, [*measured, *every])}"
                )
            objective = KNOWN.get(objective, Objective(objective))
        wanted.append(objective)
    wanted_limits = [Constraint(n, *limits(n, pair)) for n, pair in (constraints or {}).items()]
    found: dict[str, tuple[float, float]] = {}

    def bounds(name: str) -> tuple[float, float] | None:
        if name not in counted or name in (costs or {}):
            return None
        if name not in found:
            found[name] = cost.bounds(supernet.space, supernet.terms(name))
        return found[name]

    made = Problem(supernet.space, tuple(wanted), tuple(wanted_limits), every, sample, bounds)
    made.check()
    return made


def _counter(supernet: Supernet, name: str) -> Callable[[Arch], float]:
    return lambda arch: supernet.count(name, arch)


def limits(name: str, pair: Any) -> tuple[float, float]:
    """The least and the greatest value that is allowed of a cost.

    Raises:
      SearchError: if ``pair`` is not two numbers.
    """
    numbers = isinstance(pair, Sequence) and not isinstance(pair, str)
    if not numbers or len(pair) != 2 or not all(isinstance(v, int | float) for v in pair):
        raise SearchError(
            f"the limits of {name} are {pair!r}; its minimum and its maximum were expected."
        )
    return float(pair[0]), float(pair[1])
