"""Architectures: drawn, changed, crossed, and refused with a message that helps."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax import spaces
from nasjax.core import architecture
from nasjax.core.errors import ArchitectureError, NasjaxError, SpaceError
from nasjax.core.space import Choice, SearchSpace

VIT = SearchSpace(
    "vit",
    (
        Choice("embed_dim", (216, 192, 240)),
        Choice("heads", (3, 4), per="blocks"),
        Choice("depth", (2, 3, 5)),
        Choice("ratio", (3.5, 4), per="blocks"),
        Choice("act", ("relu", "gelu")),
        Choice("kernel", (5, 3), per="stem"),
    ),
    {"blocks": "depth", "stem": 2, "embed": "embed_dim"},
)
ARCH = {
    "embed_dim": 192,
    "heads": [3, 4],
    "depth": 2,
    "ratio": [3.5, 4],
    "act": "gelu",
    "kernel": [3, 5],
}
KEYS = [jax.random.key(i) for i in range(60)]


def test_drawn_architectures_are_legal_json_and_follow_from_the_key() -> None:
    drawn = [architecture.sample(VIT, k) for k in KEYS]
    for key, arch in zip(KEYS, drawn, strict=True):
        assert architecture.validate(VIT, arch) == arch
        assert json.loads(json.dumps(arch)) == arch
        assert list(arch) == list(VIT.by_name)
        assert architecture.sample(VIT, key) == arch
    assert len({json.dumps(a) for a in drawn}) > 55


def test_sampling_is_uniform_in_each_choice() -> None:
    keys = jax.random.split(jax.random.key(7), 1500)
    drawn = [architecture.sample(VIT, k) for k in keys]
    for name in ("embed_dim", "depth", "act"):
        options = VIT.choice(name).options
        counts = [sum(a[name] == o for a in drawn) for o in options]
        assert np.allclose(np.array(counts) / 1500, 1 / len(options), atol=0.06)
    heads = np.mean([a["heads"][0] == 3 for a in drawn])
    both = np.mean([a["heads"][0] == 3 and a["heads"][1] == 3 for a in drawn])
    assert abs(heads - 0.5) < 0.06 and abs(both - 0.25) < 0.06  # layers are independent


def test_mutation_never_and_always() -> None:
    fresh = []
    for key in KEYS:
        arch = architecture.sample(VIT, jax.random.fold_in(key, 1))
        assert architecture.mutate(VIT, key, arch, probability=0.0) == arch
        fresh.append(architecture.mutate(VIT, key, ARCH, probability=1.0))
        other = {**architecture.largest(VIT), "depth": 2, "heads": [4, 4], "ratio": [4, 4]}
        # Everything is drawn anew, so nothing is left of the parent.
        assert fresh[-1] == architecture.mutate(VIT, key, other, probability=1.0)
    for choice in VIT.choices:
        values = [a[choice.name] if choice.per is None else a[choice.name][0] for a in fresh]
        assert set(values) == set(choice.options), choice.name


def test_mutation_is_legal_deterministic_and_as_frequent_as_asked() -> None:
    changed = 0
    keys = jax.random.split(jax.random.key(3), 600)
    for key in keys:
        child = architecture.mutate(VIT, key, ARCH, probability=0.4)
        assert architecture.validate(VIT, child) == child
        assert child == architecture.mutate(VIT, key, ARCH, probability=0.4)
        changed += child["act"] != ARCH["act"]
    assert abs(changed / 600 - 0.4 / 2) < 0.07  # half of the draws give the old value
    assert ARCH["heads"] == [3, 4]  # the parent is left alone


def test_mutation_draws_added_layers_and_drops_lost_ones() -> None:
    deep = {**ARCH, "depth": 5, "heads": [4] * 5, "ratio": [4] * 5}
    space = SearchSpace(VIT.name, VIT.choices, VIT.axes)
    seen = set()
    for key in KEYS:
        child = architecture.mutate(space, key, deep, probability=0.5)
        assert len(child["heads"]) == len(child["ratio"]) == child["depth"]
        grown = architecture.mutate(space, key, ARCH, probability=0.1)
        if grown["depth"] == 5:
            seen.update(grown["heads"][2:])
    assert seen == {3, 4}


def test_every_gene_of_a_child_is_a_parents() -> None:
    origins: dict[str, set[bool]] = {name: set() for name in VIT.by_name}
    for key in KEYS:
        one, two = (architecture.sample(VIT, jax.random.fold_in(key, i)) for i in (1, 2))
        child = architecture.crossover(VIT, key, one, two)
        assert architecture.validate(VIT, child) == child
        assert child == architecture.crossover(VIT, key, one, two)
        for name, choice in VIT.by_name.items():
            if choice.per is None:
                assert child[name] in (one[name], two[name])
                if one[name] != two[name]:
                    origins[name].add(child[name] == one[name])
                continue
            for layer, value in enumerate(child[name]):
                able = [p[name][layer] for p in (one, two) if layer < len(p[name])]
                assert value in able
                if len(able) == 2 and able[0] != able[1]:
                    origins[name].add(value == able[0])
    assert set(map(frozenset, origins.values())) == {frozenset({True, False})}


def test_a_parent_crossed_with_itself_is_itself() -> None:
    for key in KEYS[:10]:
        arch = architecture.sample(VIT, key)
        assert architecture.crossover(VIT, key, arch, arch) == arch


def test_a_child_may_be_deeper_than_both_parents() -> None:
    space = SearchSpace(
        "s",
        (Choice("stages", (1, 3)), Choice("each", (1, 3)), Choice("heads", (1, 2), per="blocks")),
        {"blocks": lambda stages, each: stages * each},
    )
    one = {"stages": 1, "each": 3, "heads": [1, 1, 1]}
    two = {"stages": 3, "each": 1, "heads": [1, 1, 1]}
    children = [architecture.crossover(space, k, one, two) for k in KEYS]
    assert all(architecture.validate(space, c) == c for c in children)
    deep = [c["heads"] for c in children if len(c["heads"]) == 9]
    assert deep and all(h[:3] == [1, 1, 1] for h in deep) and {v for h in deep for v in h} == {1, 2}


def test_smallest_and_largest() -> None:
    assert architecture.smallest(VIT) == {
        "embed_dim": 192,
        "heads": [3, 3],
        "depth": 2,
        "ratio": [3.5, 3.5],
        "act": "relu",
        "kernel": [3, 3],
    }
    assert architecture.largest(VIT) == {
        "embed_dim": 240,
        "heads": [4] * 5,
        "depth": 5,
        "ratio": [4] * 5,
        "act": "gelu",
        "kernel": [5, 5],
    }


def test_encoding_by_example() -> None:
    assert architecture.genes(VIT)[:3] == (("embed_dim", None), ("heads", 0), ("heads", 1))
    np.testing.assert_array_equal(
        architecture.encode(VIT, ARCH),
        [1, 0, 1, -1, -1, -1, 0, 0, 1, -1, -1, -1, 1, 1, 0],
    )


def test_decoding_ignores_layers_that_do_not_exist() -> None:
    vector = architecture.encode(VIT, ARCH)
    other = np.where(vector < 0, 1, vector)
    assert architecture.decode(VIT, other) == ARCH


@pytest.mark.parametrize(
    "arch",
    [
        json.loads(json.dumps({**ARCH, "embed_dim": 192.0, "heads": [3.0, 4.0], "depth": 2.0})),
        {**ARCH, "embed_dim": np.int64(192), "depth": np.array(2), "heads": np.array([3, 4])},
        {**ARCH, "embed_dim": jnp.asarray(192), "ratio": jnp.asarray([3.5, 4.0])},
        {**ARCH, "heads": (3, 4), "act": np.str_("gelu"), "ratio": [np.float32(3.5), np.int8(4)]},
        dict(reversed(ARCH.items())),
    ],
    ids=["JSON", "NumPy", "JAX", "tuples", "order"],
)
def test_other_spellings_come_out_canonical(arch: Any) -> None:
    legal = architecture.validate(VIT, arch)
    assert legal == ARCH
    assert list(legal) == list(VIT.by_name)
    plain = jax.tree.leaves(legal)
    assert {type(v) for v in plain} <= {int, float, str}
    assert type(legal["embed_dim"]) is int and type(legal["heads"]) is list
    assert json.dumps(legal) == json.dumps(ARCH)
    np.testing.assert_array_equal(architecture.encode(VIT, arch), architecture.encode(VIT, ARCH))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dims": 1}, "'embed_dims' is no choice of space 'vit'; did you mean 'embed_dim'"),
        ({"zzz": 1}, "'zzz' is no choice of space 'vit'; Known: embed_dim, heads, depth"),
        ({"embed_dim": 200}, r"embed_dim = 200 .* \{216, 192, 240\}; the nearest is 192"),
        ({"embed_dim": 239.5}, "embed_dim = 239.5 .* the nearest is 240"),
        ({"act": "gelus"}, r"act = 'gelus' .* \{'relu', 'gelu'\}\.$"),
        ({"act": 1}, "act = 1 "),
        ({"embed_dim": "192"}, "embed_dim = '192' "),
        ({"embed_dim": None}, "embed_dim = None "),
        ({"embed_dim": [192]}, r"embed_dim = \[192\] "),
        ({"embed_dim": np.array([192])}, r"embed_dim = \[192\] "),
        ({"embed_dim": np.array([192, 216])}, r"embed_dim = \[192, 216\] "),
        ({"heads": [3, 5]}, r"heads\[1\] = 5 is not an option .*; the nearest is 4"),
        ({"heads": [[3], [4]]}, r"heads\[0\] = \[3\] is not an option"),
        ({"heads": [3]}, r"'heads' = \[3\] must be a list of 2 values, .*layer of 'blocks'"),
        ({"heads": [3, 4, 3]}, "'heads' = .* must be a list of 2 values"),
        ({"heads": 3}, "'heads' = 3 must be a list of 2 values"),
        ({"heads": np.array(3)}, "'heads' = 3 must be a list of 2 values"),
        ({"heads": "34"}, "'heads' = '34' must be a list of 2 values"),
        ({"heads": None}, "'heads' = None must be a list of 2 values"),
        ({"depth": 3}, "must be a list of 3 values"),
        ({"depth": 4}, "depth = 4 .* the nearest is 3"),
    ],
)
def test_what_is_refused_and_what_is_said(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        architecture.validate(VIT, {**ARCH, **change})


@pytest.mark.parametrize("name", list(ARCH))
def test_a_missing_choice_is_named_with_its_options(name: str) -> None:
    arch = {n: v for n, v in ARCH.items() if n != name}
    first = VIT.choice(name).options[0]
    with pytest.raises(ArchitectureError, match=f"lacks '{name}'; one of .*{first!r}"):
        architecture.validate(VIT, arch)


@pytest.mark.parametrize("value", [True, np.True_, [True, False]])
def test_truth_values_are_no_numbers(value: Any) -> None:
    space = SearchSpace("s", (Choice("n", (0, 1)), Choice("m", (0, 1), per="l")), {"l": 2})
    arch: dict[str, Any] = {"n": 1, "m": [0, 1]}
    arch["m" if isinstance(value, list) else "n"] = value
    with pytest.raises(ArchitectureError, match=r"= True is not an option .* \{0, 1\}\.$"):
        architecture.validate(space, arch)


@pytest.mark.parametrize("arch", [[192, 2], None, "largest", 3])
def test_only_mappings_are_architectures(arch: Any) -> None:
    with pytest.raises(ArchitectureError, match=f"not {type(arch).__name__}"):
        architecture.validate(VIT, arch)


def test_errors_are_nasjax_errors_and_value_errors() -> None:
    assert issubclass(ArchitectureError, NasjaxError) and issubclass(SpaceError, NasjaxError)
    assert issubclass(NasjaxError, ValueError)


def test_decoding_a_vector_of_the_wrong_length_fails() -> None:
    with pytest.raises(ValueError):
        architecture.decode(VIT, architecture.encode(VIT, ARCH)[:-1])


def test_every_architecture_once():
    space = SearchSpace(
        "few",
        choices=(Choice("width", (1, 2)), Choice("kind", ("a", "b", "c"), per="edges")),
        axes={"edges": 2, "embed": "width", "own": lambda kind: len(kind)},
    )
    found = list(architecture.every(space))
    assert len(found) == space.size == 18
    assert len({tuple(architecture.encode(space, arch)) for arch in found}) == 18
    assert found[0] == {"width": 1, "kind": ["a", "a"]}


def test_every_architecture_of_every_depth_once():
    space = SearchSpace(
        "deep",
        choices=(Choice("depth", (1, 2)), Choice("width", (1, 2, 3), per="blocks")),
        axes={"blocks": "depth", "embed": "width"},
    )
    found = list(architecture.every(space))
    assert len(found) == space.size == 3 + 9
    assert len({tuple(architecture.encode(space, arch)) for arch in found}) == 12


def test_a_space_with_a_rule_of_decoding_says_that_it_cannot_be_listed():
    with pytest.raises(ArchitectureError, match="space 'darts' cannot be listed"):
        next(architecture.every(spaces.darts(channels=4, cells=3).space))


DARTS = spaces.darts(channels=4, cells=3).space


@pytest.mark.parametrize("space", [VIT, DARTS], ids=["depth", "a rule of decoding"])
def test_any_vector_is_near_a_legal_architecture(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    sizes = [len(space.choice(name).options) for name, _ in architecture.genes(space)]
    found = []
    for _ in range(40):
        vector = rng.integers(0, sizes)
        before = vector.copy()
        arch = architecture.nearest(space, vector)
        assert architecture.validate(space, arch) == arch
        np.testing.assert_array_equal(vector, before)
        found.append(json.dumps(arch))
        if space.decoding is None:  # each gene of a layer that exists is what the vector says
            code = architecture.encode(space, arch)
            np.testing.assert_array_equal(code[code >= 0], vector[code >= 0])
    assert len(set(found)) > 35


@pytest.mark.parametrize("space", [VIT, DARTS], ids=["depth", "a rule of decoding"])
def test_the_nearest_to_an_architecture_is_itself(space: SearchSpace) -> None:
    rng = np.random.default_rng(1)
    for key in KEYS[:20]:
        arch = architecture.sample(space, key)
        vector = architecture.encode(space, arch)
        assert architecture.nearest(space, vector) == arch
        # Whatever stands for layers that do not exist.
        filled = np.where(vector < 0, rng.integers(0, 2, vector.shape), vector)
        assert architecture.nearest(space, filled.astype(float).astype(int)) == arch


def test_weighed_draws_have_the_given_frequencies() -> None:
    weights = {"embed_dim": (0.0, 0.75, 0.25), "heads": (0.9, 0.1), "kernel": (1.0, 0.0)}
    rng = architecture.generator(jax.random.key(0))
    drawn = [architecture.sample(VIT, rng, weights) for _ in range(1500)]
    assert all(architecture.validate(VIT, a) == a for a in drawn)
    widths = np.array([a["embed_dim"] for a in drawn])
    np.testing.assert_allclose([np.mean(widths == w) for w in (216, 192)], [0, 0.75], atol=0.05)
    assert not np.any(widths == 216)
    for layer in (0, 1):  # of which there are always two
        assert abs(np.mean([a["heads"][layer] == 3 for a in drawn]) - 0.9) < 0.04
    assert {tuple(a["kernel"]) for a in drawn} == {(5, 5)}
    for name in ("depth", "act"):  # uniform where nothing is said
        options = VIT.choice(name).options
        got = [np.mean([a[name] == o for a in drawn]) for o in options]
        np.testing.assert_allclose(got, 1 / len(options), atol=0.06)


def test_whole_is_the_probability_of_choices_of_the_whole_network() -> None:
    rng = architecture.generator(jax.random.key(0))

    def mutants(probability: float, whole: float | None) -> list[dict[str, Any]]:
        return [architecture.mutate(VIT, rng, ARCH, probability, whole) for _ in range(300)]

    once, layers = ("embed_dim", "depth", "act"), ("heads", "ratio", "kernel")
    for child in mutants(1.0, 0.0):
        assert all(child[n] == ARCH[n] for n in once)
    for child in mutants(0.0, 1.0):
        assert all(child[n][:2] == ARCH[n] for n in layers)
    for probability, whole in ((0.2, 0.8), (0.8, 0.2), (0.5, None)):
        found = mutants(probability, whole)
        asked = probability if whole is None else whole
        # Half of the draws of two options give the old value.
        assert abs(np.mean([c["act"] != ARCH["act"] for c in found]) - asked / 2) < 0.09
        heads = np.mean([c["heads"][0] != ARCH["heads"][0] for c in found])
        assert abs(heads - probability / 2) < 0.09


def test_a_generator_goes_on_where_a_key_begins_again() -> None:
    key = jax.random.key(4)
    rng = architecture.generator(key)
    assert architecture.generator(rng) is rng
    first, second = (architecture.sample(VIT, rng) for _ in range(2))
    assert first == architecture.sample(VIT, key) != second
