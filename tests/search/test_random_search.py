"""Random search: the best of what it scores, each architecture once."""

import jax
import pytest

import nasjax
from nasjax import Choice, SearchSpace, relax
from nasjax.core.errors import NasjaxError
from nasjax.search import SearchError, random_search

SPACE = SearchSpace(
    "tiny",
    choices=(Choice("width", (1, 2, 3)), Choice("ratio", (1, 2), per="blocks")),
    axes={"blocks": 2, "embed": "width", "mlp": lambda width, ratio: width * ratio},
)


def test_the_best_of_what_it_scored_and_nothing_twice():
    scored = []

    def score(arch):
        scored.append(tuple(nasjax.encode(SPACE, arch)))
        return -abs(arch["width"] - 2) - sum(arch["ratio"])

    arch, best = random_search(SPACE, jax.random.key(0), 200, score)
    assert arch == {"width": 2, "ratio": [1, 1]} and best == -2
    assert len(set(scored)) == len(scored) == SPACE.size  # 200 draws of 12 architectures


def test_the_same_key_finds_the_same():
    found = [random_search(SPACE, jax.random.key(1), 3, lambda arch: arch["width"]) for _ in "ab"]
    assert found[0] == found[1]


def test_no_candidate_is_one_sentence():
    with pytest.raises(SearchError, match="0 candidates cannot be compared"):
        random_search(SPACE, jax.random.key(0), 0, lambda arch: 0.0)


def test_sampling_settles_on_nothing():
    with pytest.raises(NasjaxError, match="'spos' settles on no architecture"):
        relax.decode(SPACE, relax.spos(), relax.init_alphas(SPACE, jax.random.key(0)))
