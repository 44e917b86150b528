"""The division of training data between weights and architecture parameters."""

import numpy as np
import pytest

from nasjax.data import BilevelSplit, DataError, RecordSource, Source, bilevel_split
from nasjax.data.split import stratified_indices


def _source(labels):
    """Images whose first pixel is the example's number."""
    images = np.zeros((len(labels), 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return Source(images, np.asarray(labels))


def _numbers(source):
    return source.images[:, 0, 0, 0].tolist()


UNEVEN = _source([0] * 40 + [1] * 21 + [2] * 7)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("seed", [0, 1])
def test_parts_are_disjoint_complete_and_stratified(fraction, seed):
    split = bilevel_split(UNEVEN, fraction, seed=seed)
    weights, alphas = _numbers(split.weights), _numbers(split.alphas)
    assert not set(weights) & set(alphas)
    assert sorted(weights + alphas) == list(range(68))
    assert len(weights) == round(fraction * 68)
    per_class = np.bincount(split.weights.labels, minlength=3)
    np.testing.assert_array_less(np.abs(per_class - fraction * np.array([40, 21, 7])), 1)


def test_split_is_determined_by_its_seed():
    first, again = (_numbers(bilevel_split(UNEVEN, seed=3).weights) for _ in range(2))
    other = _numbers(bilevel_split(UNEVEN, seed=4).weights)
    assert first == again
    assert first != other


def test_records_are_divided_without_being_read():
    class Unreadable:
        def __len__(self):
            return 10

        def __getitem__(self, index):
            raise AssertionError("read")

    split = bilevel_split(RecordSource(Unreadable()), 0.7, seed=0)
    assert isinstance(split, BilevelSplit)
    assert (len(split.weights), len(split.alphas)) == (7, 3)
    both = np.concatenate([split.weights.records.indices, split.alphas.records.indices])
    assert sorted(both.tolist()) == list(range(10))


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.001, -0.5, 2.0])
def test_empty_part_is_refused(fraction):
    with pytest.raises(DataError, match=r"both parts need at least one: choose a fraction"):
        bilevel_split(UNEVEN, fraction, seed=0)


def test_seed_must_be_given_by_name():
    with pytest.raises(TypeError):
        bilevel_split(UNEVEN, 0.5, 0)


@pytest.mark.parametrize("count", range(1, 12))
def test_largest_remainders_give_the_exact_count(count):
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 5, 5, 5])
    drawn, others = stratified_indices(labels, count, np.random.default_rng(0))
    assert len(drawn) == count
    assert sorted([*drawn, *others]) == list(range(12))
