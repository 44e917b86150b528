"""Dividing training data: the two levels of a search must not see the same examples."""

from __future__ import annotations

import dataclasses

import numpy as np

from nasjax.data.errors import DataError
from nasjax.data.sources import RecordSource, Source


@dataclasses.dataclass(frozen=True, eq=False)
class BilevelSplit:
    """Training data divided between the two levels of a search.

    The parts are named by whose gradient sees them, so that they cannot be swapped silently.

    Attributes:
        weights: examples for the gradient of the network's weights.
        alphas: examples for the gradient of the architecture parameters.
        rows: positions in the training data of the examples of `weights`, int `(examples,)`.
    """

    weights: Source | RecordSource
    alphas: Source | RecordSource
    rows: np.ndarray


def bilevel_split(
    train: Source | RecordSource, weights_fraction: float = 0.5, *, seed: int
) -> BilevelSplit:
    """Divides training examples into two disjoint parts that together are all of them.

    Each class of a `Source` is divided in the same proportion, to the nearest example. The labels
    of a `RecordSource` are not read; it is divided at random. Equal arguments give equal parts.

    Args:
        train: the training part of a dataset.
        weights_fraction: part of the examples that goes to the weights, between 0 and 1.
        seed: of the random choice, from 0.

    Raises:
        DataError: if a part would be empty.
    """
    weights_count = round(weights_fraction * len(train))
    if not 0 < weights_count < len(train):
        raise DataError(
            f"weights_fraction is {weights_fraction}, which gives {weights_count} of {len(train)} "
            "examples to the weights, but both parts need at least one: choose a fraction between "
            "0 and 1."
        )
    rng = np.random.default_rng(seed)
    if isinstance(train, Source):
        weights, alphas = stratified_indices(train.labels, weights_count, rng)
    else:
        weights, alphas = np.split(rng.permutation(len(train)), [weights_count])
    # Sorted, because neighbours are cheaper to read; loaders shuffle anyway.
    rows = np.sort(weights)
    return BilevelSplit(train.take(rows), train.take(np.sort(alphas)), rows)


def stratified_indices(
    labels: np.ndarray, count: int, rng: np.random.Generator | np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Draws `count` examples with each class in proportion.

    Every class gives the whole part of its share; the examples still missing come from the
    classes with the largest remainders (the method of largest remainders).

    Args:
        labels: `(examples,)`.

    Returns:
        Indices drawn `(count,)` and the others `(examples - count,)`.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    shares = sizes * count / len(labels)
    quotas = np.floor(shares).astype(int)
    largest = np.argsort(quotas - shares, kind="stable")
    quotas[largest[: count - quotas.sum()]] += 1
    drawn, others = [], []
    for label, quota in zip(classes, quotas, strict=True):
        members = rng.permutation(np.flatnonzero(labels == label))
        drawn.append(members[:quota])
        others.append(members[quota:])
    return np.concatenate(drawn), np.concatenate(others)
