"""Operations, centred and private axes: expectations by enumeration, extraction, counts, errors."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nasjax
from nasjax import Axis, Choice, SearchSpace, SpaceError, Supernet, centred, private
from nasjax.core.space import by_option
from nasjax.models.layers import named

OPTIONS = ("conv_3", "conv_5", "linear", "none")
SPACE = SearchSpace(
    "edges_of_one_cell",
    choices=(Choice("operation", OPTIONS, per="edges"), Choice("width", (2, 4))),
    axes={
        "edges": 2,
        "edges/conv": Axis(by_option("operation", {"conv_3": 1, "conv_5": 1})),
        "edges/linear": Axis(by_option("operation", {"linear": 1})),
        "edges/side": centred(by_option("operation", {"conv_3": 3, "conv_5": 5})),
        "embed": "width",
        "own": private("width"),
    },
    operations=("edges/conv", "edges/linear"),
)


class Part(nn.Module):
    """An operation: its arrays, and its mass in a super-network."""

    shape: tuple
    axes: tuple
    weighed: bool

    @nn.compact
    def __call__(self, x):
        if self.weighed and self.is_initializing():
            self.variable("active", "mass", lambda: jnp.ones(()))
        kernel = self.param("kernel", named(nn.initializers.normal(), self.axes), self.shape)
        mass = self.get_variable("active", "mass") if self.has_variable("active", "mass") else 1.0
        return jnp.sum(kernel) * mass * x


class Edge(nn.Module):
    parts: tuple
    weighed: bool

    @nn.compact
    def __call__(self, x):
        shapes = {"conv": ((5, 5), ("side", "side")), "linear": ((3,), (None,))}
        for part, side in self.parts:
            shape, axes = shapes[part]
            shape = (side, side) if part == "conv" else shape
            x = x + Part(shape, axes, self.weighed, name=part)(x)
        return x


class Net(nn.Module):
    edges: tuple = ((("conv", 5), ("linear", 0)),) * 2
    owners: int = 2
    width: int = 4
    weighed: bool = True

    @nn.compact
    def __call__(self, x, train=False):
        for i, parts in enumerate(self.edges):
            x = Edge(parts, self.weighed, name=f"edges_{i}")(x)
        token = self.param(
            "token", named(nn.initializers.normal(), ("own", "embed")), (self.owners, self.width)
        )
        return x[..., None] + jnp.sum(token, 0)


def network(arch):
    parts = {"conv_3": (("conv", 3),), "conv_5": (("conv", 5),), "linear": (("linear", 0),)}
    return Net(tuple(parts.get(o, ()) for o in arch["operation"]), 1, arch["width"], False)


SUPERNET = Supernet(SPACE, Net(), network, (3,))


def mixtures():
    keys = iter(jax.random.split(jax.random.key(0), 2))
    shapes = {"operation": (2, 4), "width": (2,)}
    return {n: jax.nn.softmax(jax.random.normal(next(keys), s)) for n, s in shapes.items()}


def test_superposition_is_the_mean_of_masks_given_the_operation_and_masses_are_probabilities():
    variables = SUPERNET.init(jax.random.key(0))
    mixture = mixtures()
    mixed = SUPERNET.superpose({"params": variables["params"]}, mixture)
    for edge in range(2):
        p = dict(zip(OPTIONS, mixture["operation"][edge], strict=True))
        mask = np.zeros((5, 5))
        mask[1:4, 1:4] += p["conv_3"] / (p["conv_3"] + p["conv_5"])
        mask += p["conv_5"] / (p["conv_3"] + p["conv_5"])
        own = variables["params"][f"edges_{edge}"]
        given = mixed["params"][f"edges_{edge}"]
        np.testing.assert_allclose(given["conv"]["kernel"], own["conv"]["kernel"] * mask, rtol=1e-6)
        np.testing.assert_allclose(given["linear"]["kernel"], own["linear"]["kernel"])
        masses = mixed["active"][f"edges_{edge}"]
        np.testing.assert_allclose(masses["conv"]["mass"], p["conv_3"] + p["conv_5"], rtol=1e-6)
        np.testing.assert_allclose(masses["linear"]["mass"], p["linear"], rtol=1e-6)
    mask = np.zeros((2, 4))
    for index, width in enumerate((2, 4)):  # each width has a token of its own
        mask[index, :width] += mixture["width"][index]
    expected = variables["params"]["token"] * mask
    np.testing.assert_allclose(mixed["params"]["token"], expected, rtol=1e-6)


@pytest.mark.parametrize("mass", [1e-3, 1e-11, 1e-20, 1e-38, 0.0])
def test_an_operation_of_little_mass_has_finite_gradients(mass):
    """What it does given that it is there, weighed by its mass: no overflow in between."""
    variables = {"params": SUPERNET.init(jax.random.key(0))["params"]}
    row = jnp.array([0.25 * mass, 0.75 * mass, 0.5, 0.5 - mass])
    mixture = {**mixtures(), "operation": jnp.stack([row, row])}

    def kernel(mixture):
        mixed = SUPERNET.superpose(variables, mixture)
        edge = {c: mixed[c]["edges_0"]["conv"] for c in ("params", "active")}
        kernel = edge["params"]["kernel"]
        normed = kernel / jnp.sqrt(jnp.mean(jnp.square(kernel)) + 1e-5)  # as a normalisation would
        return jnp.sum(edge["active"]["mass"] * normed), kernel

    (value, mixed), gradient = jax.value_and_grad(kernel, has_aux=True)(mixture)
    own = variables["params"]["edges_0"]["conv"]["kernel"]
    # Below what float32 can divide by, both options count alike.
    inner, outer = (0.25, 0.75) if mass > 1e-12 else (0.5, 0.5)
    mask = np.full((5, 5), outer)
    mask[1:4, 1:4] += inner
    np.testing.assert_allclose(mixed, own * mask, rtol=1e-5)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradient.values())
    worth = (
        float(value / mass)
        if mass > 1e-30
        else float(jnp.sum(mixed / jnp.sqrt(jnp.mean(jnp.square(mixed)) + 1e-5)))
    )
    # Along its own direction the mass gains what the operation is worth.
    along = 0.25 * gradient["operation"][0, 0] + 0.75 * gradient["operation"][0, 1]
    np.testing.assert_allclose(along, worth, rtol=1e-3)


def test_every_architecture_is_exact_and_counted():
    variables = SUPERNET.init(jax.random.key(0))
    x = jnp.arange(3.0)
    for first, second, width in itertools.product(OPTIONS, OPTIONS, (2, 4)):
        arch = {"operation": [first, second], "width": width}
        hot = SUPERNET.superpose(variables, nasjax.one_hot(SPACE, arch))
        small = SUPERNET.extract(variables, arch)
        assert set(small) == {"params"}
        inside, alone = SUPERNET.module.apply(hot, x), network(arch).apply(small, x)
        np.testing.assert_allclose(inside[..., :width], alone, rtol=1e-5, atol=1e-6)
        size = sum(leaf.size for leaf in jax.tree.leaves(small))
        assert SUPERNET.count("params", arch) == size
        np.testing.assert_allclose(SUPERNET.expect("params", nasjax.one_hot(SPACE, arch)), size)


def test_what_cannot_be_an_operation():
    with pytest.raises(SpaceError, match="must be an axis whose length is 0 or 1"):
        SearchSpace("s", (Choice("n", (1, 2)),), {"op": "n"}, operations=("op",))
    with pytest.raises(SpaceError, match=r"operation 'op' .* must be an axis"):
        SearchSpace("s", (Choice("n", (0, 1)),), {"other": "n"}, operations=("op",))
    lonely = SearchSpace("s", (Choice("n", (0, 1)),), {"op": "n"}, operations=("op",))
    with pytest.raises(SpaceError, match="no parameter is in an operation 'op'"):
        Supernet(lonely, Net(), network, (3,)).names  # noqa: B018


def test_a_rule_of_decoding_holds_wherever_architectures_are_made():
    def rule(scores):
        """Exactly one edge of the two has an operation."""
        best = np.argmax(scores["operation"][:, :3], -1)
        height = scores["operation"][np.arange(2), best]
        kept = np.where(np.arange(2) == np.argmax(height), best, 3)
        return {"operation": kept}

    space = SearchSpace(
        "ruled", SPACE.choices, SPACE.axes, operations=SPACE.operations, decoding=rule, legal=12
    )
    drawn = [nasjax.sample(space, jax.random.key(i)) for i in range(40)]
    made = [nasjax.mutate(space, jax.random.key(i), a, 0.9) for i, a in enumerate(drawn)]
    made += [nasjax.crossover(space, jax.random.key(9), a, drawn[0]) for a in drawn]
    for arch in (*drawn, *made):
        assert sum(o == "none" for o in arch["operation"]) == 1
        assert nasjax.validate(space, arch) == arch
        assert nasjax.argmax(space, nasjax.one_hot(space, arch)) == arch
    assert len({str(a) for a in drawn}) == space.size == 12


def test_an_operation_that_two_choices_decide_is_refused():
    with pytest.raises(SpaceError, match="exactly one choice says whether it is there"):
        SearchSpace(
            "two",
            choices=(Choice("a", (0, 1)), Choice("b", (0, 1))),
            axes={"conv": lambda a, b: a * b},
            operations=("conv",),
        )


def test_options_may_share_an_entry_that_they_own():
    space = SearchSpace(
        "resolutions",
        choices=(Choice("resolution", (2, 3, 4, 5)), Choice("width", (1, 3))),
        axes={"row": private("resolution", entries=(0, 1, 0, 1)), "embed": "width"},
    )
    names = {"params": {"table": jax.P("row", "embed")}}
    table = {"params": {"table": jnp.arange(1.0, 7.0).reshape(2, 3)}}
    mixture = {"resolution": jnp.array([0.1, 0.2, 0.3, 0.4]), "width": jnp.array([0.25, 0.75])}
    mixed = nasjax.superpose(space, names, table, mixture)["params"]["table"]
    expected = np.outer([0.4, 0.6], [1, 0.75, 0.75]) * table["params"]["table"]
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)
    for resolution, row in zip((2, 3, 4, 5), (0, 1, 0, 1), strict=True):
        arch = {"resolution": resolution, "width": 3}
        own = nasjax.extract(space, names, table, arch)["params"]["table"]
        np.testing.assert_array_equal(own, table["params"]["table"][row : row + 1])
    assert space.axis_size("row") == 2
    with pytest.raises(SpaceError, match=r"'row' .* has 3 entries; one for each option .*'width'"):
        SearchSpace("s", (Choice("width", (1, 3)),), {"row": private("width", entries=(0, 1, 1))})


def test_arrays_of_no_entries_are_extracted_as_none():
    """A linear map that exists where two widths differ: one axis of it is empty where not."""
    space = SearchSpace(
        "shortcut",
        choices=(Choice("inputs", (1, 2)), Choice("outputs", (1, 2))),
        axes={"inputs": "inputs", "mapped": lambda inputs, outputs: outputs * (inputs != outputs)},
    )
    names = {"params": {"kernel": jax.P("inputs", "mapped")}}
    kernel = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    for inputs, outputs in itertools.product((1, 2), (1, 2)):
        arch = {"inputs": inputs, "outputs": outputs}
        found = nasjax.extract(space, names, {"params": {"kernel": kernel}}, arch)
        if inputs == outputs:
            assert found == {}
        else:
            expected = kernel[:inputs, :outputs]
            np.testing.assert_array_equal(found["params"]["kernel"], expected)
        hot = nasjax.one_hot(space, arch)
        mixed = nasjax.superpose(space, names, {"params": {"kernel": kernel}}, hot)
        expected = np.zeros((2, 2))
        expected[:inputs, :outputs] = kernel[:inputs, :outputs] * (inputs != outputs)
        np.testing.assert_array_equal(mixed["params"]["kernel"], expected)
    even = {"inputs": jnp.array([0.5, 0.5]), "outputs": jnp.array([0.5, 0.5])}
    mixed = nasjax.superpose(space, names, {"params": {"kernel": kernel}}, even)
    expected = kernel * np.array([[0.5, 0.25], [0.25, 0.0]])  # of (1, 2) and of (2, 1)
    np.testing.assert_allclose(mixed["params"]["kernel"], expected)
