"""Figures and their intervals: accuracy, recall, bootstrap."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

RECALL_AT = (1, 5, 10)
# Of results.json: a list of Result objects under "results".
SCHEMA_VERSION = 1
_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure: what was measured, on what, and how sure it is."""

    task: str
    """zero_shot_classification, retrieval, text_retrieval or pixel_baseline."""
    dataset: str
    """Name of the suite."""
    language: str
    """Language of the texts; "ko-en" for Korean queries among English texts; "-" without texts."""
    slice: str
    """Part of the data set, "all" for the whole."""
    metric: str
    """accuracy, image_to_text_recall@K, text_to_image_recall@K, recall@K."""
    value: float
    """Between 0 and 1."""
    low: float
    """Lower end of the 95 % bootstrap interval."""
    high: float
    """Upper end of it."""
    n: int
    """Items that the figure is a mean over."""

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if not (math.isfinite(number) and abs(number) <= 1):
                raise ValueError(
                    f"{name} of {self.metric} on {self.dataset} is {number}; results are fractions, 0.5 for 50%."
                )


def measure(hits: Sequence[bool] | np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean of hits, and the ends of its 95 % percentile bootstrap interval over 1,000 draws of the items.

    Raises:
        ValueError: there is no item.
    """
    values = np.asarray(hits, dtype=np.float64)
    if values.size == 0:
        raise ValueError("there is nothing to measure: no item is left.")
    rng = np.random.default_rng(seed)
    draws = np.array([values[rng.integers(values.size, size=values.size)].mean() for _ in range(_DRAWS)])
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def bootstrap(
    statistic: Callable[[np.ndarray], float], n: int, *, seed: int = 0, draws: int = 1000
) -> tuple[float, float, float]:
    """A statistic of n items, and the ends of its 95 % percentile bootstrap interval.

    Args:
        statistic: its value on the items of the numbers given, int64, (n,); a number may come several times.
        n: items.
        seed: of the draws.
        draws: of n items each, with replacement.

    Raises:
        ValueError: there is no item.
    """
    if n == 0:
        raise ValueError("there is nothing to measure: no item is left.")
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(n, size=n)) for _ in range(draws)]
    low, high = np.quantile(values, (0.025, 0.975))
    return float(statistic(np.arange(n))), float(low), float(high)


def ranks(similarity: torch.Tensor, relevant: torch.Tensor) -> torch.Tensor:
    """Rank, from 1, of the best relevant item of each query.

    A tie with an item that is not relevant counts against the query, so that a model which gives everything the same
    score finds nothing.

    Args:
        similarity: scores, (queries, items).
        relevant: which items answer a query, bool, (queries, items). A query that none answers is never found: its
            rank is larger than any number of items.

    Example:
        The first query finds its item first; the second scores both the same.

        >>> similarity = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
        >>> ranks(similarity, torch.eye(2, dtype=torch.bool)).tolist()
        [1, 2]
    """
    best = similarity.masked_fill(~relevant, float("-inf")).max(dim=1).values
    found = 1 + ((similarity >= best[:, None]) & ~relevant).sum(dim=1)
    return found.masked_fill(~relevant.any(dim=1), torch.iinfo(torch.int64).max)
