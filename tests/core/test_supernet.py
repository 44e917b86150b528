"""The join of a space and a module, and the rule that the core stands alone."""

import ast
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nasjax
from nasjax.core import architecture
from nasjax.core.cost import Term
from nasjax.core.errors import ArchitectureError, SpaceError, did_you_mean
from nasjax.core.mixture import one_hot, uniform
from nasjax.core.space import Choice, SearchSpace
from nasjax.core.supernet import Supernet

HOUSE = pathlib.Path(nasjax.__file__).parent
OUTSIDE = {"width": 3, "hidden": [5]}


class Block(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(nn.Dense(self.hidden, name="in")(x))
        return x + nn.Dense(x.shape[-1], name="out")(y)


class Net(nn.Module):
    width: int
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dense(self.width, name="stem")(x)
        for i, hidden in enumerate(self.hidden):
            x = Block(hidden, name=f"block_{i}")(x)
        return nn.BatchNorm(use_running_average=not train, use_scale=False, name="norm")(x)


@pytest.fixture(scope="module")
def net() -> Supernet:
    space = SearchSpace(
        "net",
        (Choice("width", (2, 4)), Choice("hidden", (1, 3), per="block")),
        {"embed": "width", "hidden": "hidden", "block": 2},
    )
    patterns: dict[str, Any] = {
        "stem/kernel": (None, "embed"),
        "in/kernel": ("embed", "hidden"),
        "in/bias": ("hidden",),
        "out/kernel": ("hidden", "embed"),
        "(mean|var|bias)$": ("embed",),
    }
    return Supernet(
        space,
        Net(4, (3, 3)),
        lambda arch: Net(arch["width"], tuple(arch["hidden"])),
        (5,),
        patterns=patterns,
        costs={"macs": (Term(5, ("embed",)), Term(2, ("embed", "hidden"), "block"))},
        published={"mine": OUTSIDE},
    )


def test_initialisation_is_the_modules_own(net: Supernet) -> None:
    variables = net.init(jax.random.key(3))
    expected = net.module.init(jax.random.key(3), jnp.zeros((1, 5)))
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(variables), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda s: s.shape, net.shapes)
    assert jax.tree.structure(net.names) == jax.tree.structure(variables)


def test_other_collections_are_superposed_but_not_counted(net: Supernet) -> None:
    variables = net.init(jax.random.key(0))
    arch = {"width": 2, "hidden": [1, 3]}
    mixed = net.superpose(variables, one_hot(net.space, arch))
    np.testing.assert_array_equal(mixed["batch_stats"]["norm"]["var"], [1, 1, 0, 0])
    small = net.extract(variables, arch)
    assert small["batch_stats"]["norm"]["var"].shape == (2,)
    x = np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5)
    np.testing.assert_allclose(
        net.module.apply(mixed, x)[:, :2], net.network(arch).apply(small, x), rtol=1e-5, atol=1e-6
    )
    params = sum(x.size for x in jax.tree.leaves(small["params"]))
    assert net.count("params", arch) == params
    assert float(net.expect("params", one_hot(net.space, arch))) == pytest.approx(params)


def test_costs_by_name(net: Supernet) -> None:
    assert net.count("macs", {"width": 4, "hidden": [1, 3]}) == 20 + 2 * 4 * 4
    assert float(net.expect("macs", uniform(net.space))) == pytest.approx(15 + 2 * 3 * 4)
    with pytest.raises(SpaceError, match="counts no 'mac'; did you mean 'macs'"):
        net.count("mac", OUTSIDE)
    with pytest.raises(SpaceError, match="Known: params, macs"):
        net.expect("latency", uniform(net.space))


def test_architectures_by_name(net: Supernet) -> None:
    assert net.architecture("largest") == architecture.largest(net.space)
    assert net.architecture("smallest") == {"width": 2, "hidden": [1, 1]}
    assert net.architecture("mine") == OUTSIDE  # published ones may lie outside the space
    assert net.architecture({"hidden": (1.0, 3.0), "width": 2}) == {"width": 2, "hidden": [1, 3]}
    with pytest.raises(ArchitectureError, match=r"called 'smalest'; did you mean 'smallest'.*mine"):
        net.architecture("smalest")
    with pytest.raises(ArchitectureError, match="width = 3"):
        net.architecture(OUTSIDE)


def test_suggestions() -> None:
    assert did_you_mean("dpeth", ["depth", "width"]) == "did you mean 'depth'? Known: depth, width."
    assert did_you_mean("zzz", ["depth"]) == "Known: depth."
    assert did_you_mean("x", []) == "Known: none."


def imports(path: pathlib.Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("nasjax.")}


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [("core", ("core",)), ("models", ("core", "models")), ("spaces", ("core", "models", "spaces"))],
)
def test_dependencies_run_one_way(folder: str, allowed: tuple[str, ...]) -> None:
    files = sorted((HOUSE / folder).glob("**/*.py"))
    assert len(files) > 1
    for path in files:
        for name in imports(path):
            assert name.split(".")[1] in allowed, f"{path} imports {name}"


def test_relaxations_need_only_the_core() -> None:
    assert {name.split(".")[1] for name in imports(HOUSE / "relax.py")} == {"core"}
