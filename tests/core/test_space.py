"""Search spaces: how many architectures, how long each axis, and what cannot be a space."""

import doctest
import importlib
import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from nasjax.core import architecture
from nasjax.core.errors import SpaceError
from nasjax.core.space import Axis, Choice, SearchSpace, prefix

KEYS = [jax.random.key(i) for i in range(300)]
MODULES = ("space", "architecture", "mixture", "names", "expect", "superpose", "cost", "flops")


def enumerate_all(space: SearchSpace) -> list[dict[str, Any]]:
    """Every architecture, found by brute force: a list of layers for every depth."""
    once = [c for c in space.choices if c.per is None]
    found = []
    for values in itertools.product(*(c.options for c in once)):
        arch = dict(zip((c.name for c in once), values, strict=True))
        layers = []
        for choice in space.choices:
            if choice.per is not None:
                length = space.axes[choice.per].length
                if callable(length):
                    length = length(*(arch[n] for n in length.__code__.co_varnames))
                deep = arch[length] if isinstance(length, str) else length
                layers.append(itertools.product(choice.options, repeat=deep))
        names = [c.name for c in space.choices if c.per is not None]
        for rest in itertools.product(*layers):
            found.append(arch | {n: list(v) for n, v in zip(names, rest, strict=True)})
    return found


SPACES = {
    "flat": SearchSpace("flat", (Choice("width", (1, 2, 3)), Choice("kind", ("a", "b"))), {}),
    "deep": SearchSpace(
        "deep",
        (Choice("depth", (1, 3)), Choice("heads", (1, 2), per="blocks"), Choice("width", (4, 8))),
        {"blocks": "depth", "embed": "width"},
    ),
    "per layer, never deeper": SearchSpace(
        "fixed", (Choice("heads", (1, 2, 4), per="blocks"),), {"blocks": 3}
    ),
    "two stacks": SearchSpace(
        "two",
        (
            Choice("left", (1, 2)),
            Choice("right", (0, 1)),
            Choice("heads", (1, 2, 3), per="first"),
            Choice("ratio", (1.0, 2.0), per="second"),
            Choice("bias", (0, 1), per="second"),
        ),
        {"first": "left", "second": "right"},
    ),
    "one depth for two stacks": SearchSpace(
        "shared",
        (
            Choice("depth", (1, 2)),
            Choice("heads", (1, 2), per="first"),
            Choice("ratio", (1, 2, 3), per="second"),
        ),
        {"first": "depth", "second": lambda depth: 3 - depth},
    ),
    "a depth of two choices": SearchSpace(
        "joint",
        (Choice("stages", (1, 2)), Choice("each", (1, 2)), Choice("heads", (1, 2), per="blocks")),
        {"blocks": lambda stages, each: stages * each},
    ),
    "a stack without choices": SearchSpace(
        "bare", (Choice("depth", (1, 2, 5)),), {"blocks": "depth"}, stacks=("blocks",)
    ),
}


@pytest.fixture(params=list(SPACES), ids=list(SPACES))
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return SPACES[request.param]


def test_size_is_the_number_of_architectures(space: SearchSpace) -> None:
    found = enumerate_all(space)
    assert space.size == len(found) == len({json.dumps(a, sort_keys=True) for a in found})


def test_every_enumerated_architecture_is_legal(space: SearchSpace) -> None:
    for arch in enumerate_all(space):
        assert architecture.validate(space, arch) == arch


def test_encoding_is_a_bijection(space: SearchSpace) -> None:
    found = enumerate_all(space)
    vectors = [architecture.encode(space, arch) for arch in found]
    assert {v.dtype for v in vectors} == {np.dtype(np.int32)}
    assert {v.shape for v in vectors} == {(len(architecture.genes(space)),)}
    assert len({tuple(v.tolist()) for v in vectors}) == len(found)
    for arch, vector in zip(found, vectors, strict=True):
        assert architecture.decode(space, vector) == arch


def test_sampling_reaches_everything(space: SearchSpace) -> None:
    drawn = {json.dumps(architecture.sample(space, k), sort_keys=True) for k in KEYS}
    everything = {json.dumps(a, sort_keys=True) for a in enumerate_all(space)}
    assert drawn <= everything
    if space.size < 20:
        assert drawn == everything


def test_choices_and_axes_are_copied_and_frozen() -> None:
    axes: dict[str, Any] = {"embed": "width"}
    options = [1, 2]
    space = SearchSpace("s", [Choice("width", options)], axes)  # type: ignore[arg-type]
    axes["other"], options[0] = 3, 5
    assert list(space.axes) == ["embed"] and space.choices[0].options == (1, 2)
    with pytest.raises(TypeError):
        space.axes["embed"] = Axis(3)  # type: ignore[index]
    with pytest.raises(AttributeError):
        space.name = "t"  # type: ignore[misc]
    assert hash(space) != hash(SearchSpace("s", space.choices, axes))  # tables are cached per space


def test_lengths_and_sizes() -> None:
    space = SearchSpace(
        "s",
        (
            Choice("width", (8, 4, 6)),
            Choice("ratio", (0.5, 1.5)),
            Choice("heads", (1, 2), per="blocks"),
        ),
        {
            "blocks": 2,
            "fixed": 7,
            "embed": "width",
            "mlp": lambda width, ratio: int(width * ratio),
            "qkv": Axis(lambda heads: 3 * heads),
            "late": lambda width, layer: width * (layer < 1),
        },
    )
    assert [space.axis_size(a) for a in ("blocks", "fixed", "embed", "mlp", "qkv", "late")] == [
        2,
        7,
        8,
        12,
        6,
        8,
    ]
    assert space.depends("mlp") == ("width", "ratio")
    assert space.depends("late") == ("width",) and space.uses_layer("late")
    assert space.depends("fixed") == () and not space.uses_layer("mlp")
    assert dict(space.lengths("mlp")) == {
        (0, 0): 4,
        (0, 1): 12,
        (1, 0): 2,
        (1, 1): 6,
        (2, 0): 3,
        (2, 1): 9,
    }
    assert [n for _, n in space.lengths("late", 0)] == [8, 4, 6]
    assert [n for _, n in space.lengths("late", 1)] == [0, 0, 0]
    arch = {"width": 6, "ratio": 1.5, "heads": [2, 1]}
    assert architecture.axis_length(space, "mlp", arch) == 9
    assert [architecture.axis_length(space, "qkv", arch, i) for i in (0, 1)] == [6, 3]
    assert [architecture.axis_length(space, "late", arch, i) for i in (0, 1)] == [6, 0]
    np.testing.assert_array_equal(prefix(3, 8), [0, 1, 2])


def test_numpy_options_become_plain_numbers() -> None:
    choice = Choice("width", np.array([32, 16]))  # type: ignore[arg-type]
    space = SearchSpace("s", (choice, Choice("ratio", tuple(np.array([2.5])))), {"embed": "width"})
    arch = architecture.sample(space, jax.random.key(0))
    assert json.loads(json.dumps(arch)) == arch
    assert architecture.largest(space)["width"] == 32
    assert {type(o) for o in choice.options} == {int}


WIDTH = Choice("width", (1, 2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Choice("width", ()), "'width' has no options"),
        (lambda: Choice("width", (1, 2, 1.0)), "'width' lists an option twice"),
        (lambda: Choice("layer", (1, 2)), "cannot be called 'layer'"),
        (
            lambda: SearchSpace("s", (WIDTH, Choice("width", (3,))), {}),
            r"'s' defines a choice twice: \['width', 'width'\]",
        ),
        (
            lambda: SearchSpace("s", (Choice("heads", (1,), per="block"),), {"blocks": 2}),
            "per 'block', which is no axis of space 's'.* did you mean 'blocks'",
        ),
        (
            lambda: SearchSpace("s", (WIDTH,), {}, stacks=("blocks",)),
            "'blocks', which is no axis of space 's'",
        ),
        (
            lambda: SearchSpace("s", (WIDTH,), {"embed": "widht"}),
            "axis 'embed' depends on 'widht', .* did you mean 'width'",
        ),
        (
            lambda: SearchSpace("s", (WIDTH,), {"mlp": lambda width, ratio: width * ratio}),
            "axis 'mlp' depends on 'ratio', which is no choice",
        ),
        (
            lambda: SearchSpace("s", (Choice("deep", (1, 2), per="blocks"),), {"blocks": "deep"}),
            "depth of stack 'blocks' depends on a choice made per layer",
        ),
        (
            lambda: SearchSpace(
                "s", (Choice("n", (1,), per="blocks"),), {"blocks": lambda layer: 2}
            ),
            "depth of stack 'blocks'",
        ),
        (
            lambda: SearchSpace(
                "s", (Choice("patch", (2, 4), per="blocks"),), {"blocks": 2}, static=("patch",)
            ),
            "static choice 'patch' of space 's' is made per layer; only a choice of the whole",
        ),
        (lambda: SearchSpace("s", (WIDTH,), {}, static=("widht",)), "did you mean 'width'"),
        (lambda: SearchSpace("s", (WIDTH,), {}).choice("wide"), "'wide' is no choice .*'width'"),
    ],
)
def test_what_cannot_be_a_space(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        build()


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"nasjax.core.{name}"))
    assert result.failed == 0
    assert result.attempted > 0 or name not in ("space", "flops")
