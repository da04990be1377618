"""How similarities follow the scores that people gave: correlations, and F1 at a threshold fitted on other pairs."""

import math
from collections.abc import Callable

import numpy as np

from .metrics import bootstrap


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation of two rows of numbers, between -1 and 1, in float64.

    Raises:
        ValueError: one of them has one value throughout, or there is none; no correlation is defined then.

    Example:
        >>> pearson(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))
        1.0
    """
    for values in (first, second):
        if values.size == 0 or values.min() == values.max():
            raise ValueError(
                f"no correlation is defined over {values.size} pairs of one value, {values[:1]}; embeddings that are "
                "all the same, or too few pairs, give that."
            )
    first, second = (values.astype(np.float64) - values.mean(dtype=np.float64) for values in (first, second))
    # Rounding may leave the quotient just outside.
    return float(np.clip(first @ second / math.sqrt((first @ first) * (second @ second)), -1, 1))


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman correlation, between -1 and 1: Pearson's of the ranks, where equal values share their mean rank.

    Raises:
        ValueError: as `pearson`.

    Example:
        >>> spearman(np.array([0.1, 0.2, 0.9]), np.array([1.0, 2.0, 3.0]))
        1.0
    """
    return pearson(average_ranks(dense_numbers(first)), average_ranks(dense_numbers(second)))


def dense_numbers(values: np.ndarray) -> np.ndarray:
    """Place of each value among the distinct values in rising order, from 0; int64, (values,)."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def average_ranks(numbers: np.ndarray) -> np.ndarray:
    """Rank of each number in rising order, from 1, where equal ones share their mean rank; float64, (numbers,).

    Args:
        numbers: not negative, and small enough to count each: those of `dense_numbers`, or a part of them.

    Example:
        >>> average_ranks(np.array([7, 2, 7])).tolist()
        [2.5, 1.0, 2.5]
    """
    counts = np.bincount(numbers)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[numbers]


def f1(similarities: np.ndarray, equivalent: np.ndarray, threshold: float) -> float:
    """F1 of taking pairs from a similarity on to be equivalent, between 0 and 1; 0 where nothing is found.

    Args:
        similarities: (pairs,).
        equivalent: bool, (pairs,).
        threshold: the lowest similarity that counts as equivalent.
    """
    found = similarities >= threshold
    if not (found & equivalent).any():
        return 0.0
    return float(2 * (found & equivalent).sum() / (found.sum() + equivalent.sum()))


def fit_threshold(similarities: np.ndarray, equivalent: np.ndarray) -> float:
    """The similarity that gives the best F1 as a threshold; the highest of several.

    Raises:
        ValueError: no pair is equivalent.
    """
    if not equivalent.any():
        raise ValueError(f"none of {equivalent.size} pairs is equivalent; a threshold is fitted on some that are.")
    order = np.argsort(-similarities, kind="stable")
    found = np.cumsum(equivalent[order])
    scores = 2 * found / (np.arange(1, order.size + 1) + found[-1])
    # A threshold takes all pairs of its similarity: it can only lie at the last of equal ones.
    values = similarities[order]
    scores[:-1][values[:-1] == values[1:]] = 0
    return float(values[np.argmax(scores)])


def correlation_interval(
    correlation: Callable[[np.ndarray, np.ndarray], float], similarities: np.ndarray, scores: np.ndarray
) -> tuple[float, float, float]:
    """A correlation of all pairs and the ends of its bootstrap interval over the pairs.

    Draws that hold one similarity or one score only, as those of few pairs may, are left out.

    Raises:
        ValueError: as `pearson`.
    """

    def of(drawn: np.ndarray) -> float:
        values = similarities[drawn], scores[drawn]
        return math.nan if any(drawn.min() == drawn.max() for drawn in values) else correlation(*values)

    value = correlation(similarities, scores)
    return (value, *bootstrap(of, len(scores))[1:])
