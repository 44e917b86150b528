"""Relaxations with given noise, pruning, the alphas' optimizer, edge weights, partial channels.

A case is recognised by what it lists; numbers that it gives in its text alone are read there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasjax import relax, relax_extras
from nasjax.core import mixture as mixtures
from nasjax.core.space import Choice, SearchSpace
from nasjax.train import optim
from tests.golden.fixture import Fixture, GoldenError
from tests.golden.kinds import _edge
from tests.golden.outcome import Case, Quantity

Part = Mapping[str, Any]
NUMBER = r"([-+.\deE]*\d)"


def matches(fixture: Fixture) -> bool:
    """Models that are single edges, or cases of bare alphas, and no network."""
    models = fixture.document.get("models", {})
    edges = all(_edge.is_edge(model) for model in models.values())
    cases = fixture.document.get("cases", [])
    return bool(cases) and edges and all(_checker(case) is not None for case in cases)


def check(fixture: Fixture) -> Iterator[Case]:
    """Every case."""
    for number, case in enumerate(fixture.get("cases")):
        checker = _checker(case)
        assert checker is not None
        about = case["model"] if "model" in case else case["what"].split(":")[0].split(" (")[0]
        details = [str(case[key]) for key in ("tau", "mixture", "after") if key in case]
        name = " ".join([f"{number}", about[:40], *details])
        yield Case(name, case.get("bar", "all"), tuple(checker(fixture, case)))


def _checker(case: Part) -> Callable[[Fixture, Part], Iterator[Quantity]] | None:
    for keys, checker in _CHECKERS.items():
        if set(keys) <= set(case):
            return checker
    return _temperature if "output" in case and "tau_max" in case.get("what", "") else None


def _output(fixture: Fixture, case: Part, key: str, actual: Any) -> Quantity:
    return Quantity.of(key, "output", actual, fixture.array(case[key]))


def _number(case: Part, before: str, after: str = "") -> float:
    found = re.search(before + NUMBER + after, case["what"])
    if found is None:
        raise GoldenError(f"{case['what']!r} gives no number for {before!r}.")
    return float(found[1])


def _rows(fixture: Fixture, case: Part) -> dict[str, jax.Array]:
    return {"rows": jnp.asarray(fixture.array(case["alphas"]))}


def _plain(fixture: Fixture, case: Part) -> Iterator[Quantity]:
    name = case["what"].split()[0]
    methods = {"softmax": relax.darts, "sparsemax": relax.sparse}
    if name not in methods:
        raise GoldenError(f"{name!r} is no relaxation; {', '.join(methods)} were expected.")
    method, alphas = methods[name](), _rows(fixture, case)
    yield _output(fixture, case, "output", method.mean(alphas)["rows"])
    drawn = method.mixture(alphas, jax.random.key(0), jnp.array(0))["rows"]
    yield Quantity.of("mixture", "output", drawn, fixture.array(case["output"]))


def _drnas(fixture: Fixture, case: Part) -> Iterator[Quantity]:
    alphas = _rows(fixture, case)
    method = relax.drnas(anchor=_number(case, r"regulariser = "))
    penalty, gradient = jax.value_and_grad(method.penalty)(alphas)
    each = [relax.dirichlet_anchor_kl({"row": row}) for row in alphas["rows"]]
    yield _output(fixture, case, "concentration", relax.concentration(alphas["rows"]))
    yield _output(fixture, case, "mean", method.mean(alphas)["rows"])
    yield _output(fixture, case, "kl_rows", jnp.stack(each))
    yield Quantity.of("regulariser", "loss", penalty, case["regulariser"])
    yield Quantity.of("kl_grad", "gradient", gradient["rows"], fixture.array(case["kl_grad"]))


def _gumbel(fixture: Fixture, case: Part) -> Iterator[Quantity]:
    """GDAS, whose case lists the soft weights too, or SNAS."""
    alphas = _rows(fixture, case)["rows"]
    gumbel = -jnp.log(fixture.array(case["noise"]))
    texts = [c.get("what", "") for c in (case, *fixture.get("cases"))]
    found = [m[1] for t in texts if (m := re.search(r"sum\(weights ?\* ?(\w+)\)", t))]
    if not found:
        raise GoldenError(f"{fixture.path.name} does not say what weights are multiplied by.")

    def weights(alphas: jax.Array) -> tuple[jax.Array, jax.Array]:
        soft = relax.gumbel_softmax(alphas, gumbel, case["tau"])
        return relax.straight_through(soft) if "probs" in case else soft, soft

    (output, soft), pull_back = jax.vjp(weights, alphas)
    cotangent = jnp.asarray(fixture.array(found[0]))
    (gradient,) = pull_back((cotangent, jnp.zeros_like(cotangent)))
    yield _output(fixture, case, "weights", output)
    if "probs" in case:
        yield _output(fixture, case, "probs", soft)
    yield Quantity.of("grad", "gradient", gradient, fixture.array(case["grad"]))


def _temperature(fixture: Fixture, case: Part) -> Iterator[Quantity]:
    """A straight line over epochs that ends at the last one, or one step after it."""
    start, end = _number(case, "tau_max "), _number(case, "tau_min ")
    epochs = int(_number(case, " ", " epochs"))
    beyond = 0 if re.search(r"/ ?\(epochs ?- ?1\)", case["what"]) else 1
    tau = relax.anneal(start, end, epochs + beyond)
    yield _output(fixture, case, "output", jax.vmap(tau)(jnp.arange(epochs)))


def _pruning(fixture: Fixture, case: Part) -> Iterator[Quantity]:
    alphas, masks = _rows(fixture, case), None
    for turn, keep in enumerate(case["num_keep"], start=1):
        moved = f"alpha_moved_before_{turn}"
        if moved in case:
            alphas = {"rows": jnp.asarray(fixture.array(case[moved]))}
        alphas, masks = relax_extras.prune(alphas, keep, masks)
        yield _output(fixture, case, f"alpha_after_{turn}", alphas["rows"])
        yield _output(fixture, case, f"mask_{turn}", masks["rows"])
        if turn == 1:
            mask = masks["rows"]
            drawn = jnp.asarray(fixture.array(case["drawn"]))
            yield _output(fixture, case, "drawn_masked", relax_extras.leave_out(drawn, mask))
            method = relax_extras.pruned(relax.darts(), masks)
            mean = method.mean(_rows(fixture, case))["rows"]
            yield _output(fixture, case, "softmax_masked", mean)
            yield _decoded(method, _rows(fixture, case), mask)


def _decoded(method: relax.Relaxation, alphas: Any, mask: np.ndarray) -> Quantity:
    """How many rows are decoded to an option that is not left."""
    rows, options = mask.shape
    space = SearchSpace("rows", (Choice("rows", tuple(range(options)), "layer"),), {"layer": rows})
    arch = relax.decode(space, method, alphas)
    hot = np.asarray(mixtures.one_hot(space, arch)["rows"])
    return Quantity.of("decoded_pruned", "count", int(np.sum(hot * (1 - mask))), 0)


def _adam(fixture: Fixture, case: Part) -> Iterator[Quantity]:
    betas = re.search(rf"betas \({NUMBER}, {NUMBER}\)", case["what"])
    if betas is None:
        raise GoldenError(f"{case['what']!r} gives no betas.")
    rate, decay = _number(case, "lr "), _number(case, "weight decay ")
    given = optim.alphas_optimizer(rate, decay, (float(betas[1]), float(betas[2])))
    alphas = _rows(fixture, case)
    tx = optim.partitioned(given.build(1), given.build(len(case["grads"])))
    trained: dict[str, Any] = {optim.WEIGHTS: {}, optim.ALPHAS: alphas}
    state, trace = tx.init(trained), []
    for key in case["grads"]:
        gradient = {"rows": jnp.asarray(fixture.array(key))}
        alphas, state = optim.update_partition(tx, optim.ALPHAS, gradient, state, trained)
        trained = {**trained, optim.ALPHAS: alphas}
        trace.append(alphas["rows"])
    yield _output(fixture, case, "trace", jnp.stack(trace))
    # The updates are a thousandth of the values.
    start, expected = fixture.array(case["alphas"]), fixture.array(case["trace"])
    yield Quantity.of("moved", "gradient", jnp.stack(trace) - start, expected - start)


def _edge_weights(fixture: Fixture, case: Part) -> Iterator[Quantity]:
    beta = jnp.asarray(fixture.array(case["beta"]))
    groups = re.search(r"groups ([\d, ]+)", case["what"])
    if groups is None:
        raise GoldenError(f"{case['what']!r} gives no groups of edges.")
    sizes = [int(size) for size in groups[1].split(",")]
    ends = np.split(np.arange(len(beta)), np.cumsum(sizes)[:-1])
    nodes = [tuple(node.tolist()) for node in ends]
    yield _output(fixture, case, "output", relax_extras.edge_weights(beta, nodes))
    # The same through a relaxation, whose rows then sum to the weights.
    method = relax_extras.with_edge_weights(relax.darts(), {"edge": nodes})
    alphas = {"edge": jnp.zeros((len(beta), 3)), "edge/edges": beta}
    total = jnp.sum(method.mean(alphas)["edge"], -1)
    yield Quantity.of("sums of rows", "output", total, fixture.array(case["output"]))


_CHECKERS: dict[tuple[str, ...], Callable[[Fixture, Part], Iterator[Quantity]]] = {
    ("model", "mixture", "input", "output"): _edge.check,
    ("alphas", "concentration", "regulariser"): _drnas,
    ("alphas", "noise", "tau", "weights"): _gumbel,
    ("alphas", "num_keep"): _pruning,
    ("alphas", "grads", "trace"): _adam,
    ("beta", "output"): _edge_weights,
    ("alphas", "output"): _plain,
}
