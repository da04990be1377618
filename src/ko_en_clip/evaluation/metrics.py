"""Figures and their intervals: accuracy, recall, bootstrap."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

RECALL_AT = (1, 5, 10)
# Of results.json: a list of Result objects under "results".
SCHEMA_VERSION = 2
_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure: what was measured, on what, and how sure it is."""

    task: str
    """What was asked, as in a suite's `tasks`; or `robustness`, of a suite that is a shifted form of another."""
    dataset: str
    """Name of the suite."""
    language: str
    """Language of the texts; "ko-en" for Korean queries among English texts; "-" without texts."""
    slice: str
    """Part of the data set, "all" for the whole."""
    metric: str
    """accuracy, mean_per_class_accuracy, mean_average_precision, roc_auc; of retrieval recall@K, with
    image_to_text_ or text_to_image_ before it: whether any answer is among the first K; share@K: the share of them;
    of ratings spearman, pearson, f1, and sampled_spearman over draws with its sampled_spearman_std."""
    value: float
    """Between 0 and 1; of a difference between -1 and 1."""
    low: float
    """Lower end of the 95 % bootstrap interval. Shares of the task overlap have the 99.5 % Clopper-Pearson interval of
    Radford et al. 2021, section 5; a p-value has none, and stands here again."""
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


def asked_of(results: Iterable[Result]) -> set[tuple[str, str]]:
    """Data sets and tasks: models can be compared where they are the same.

    Figures may differ nonetheless: where nothing overlaps with training pictures there is none of Overlap.
    """
    return {(result.dataset, result.task) for result in results}


def bootstrap(
    statistic: Callable[[np.ndarray], float], n: int, *, seed: int = 0, draws: int = _DRAWS
) -> tuple[float, float, float]:
    """A statistic of all items, and the ends of its 95 % percentile bootstrap interval.

    Args:
        statistic: of the items whose numbers it is given, int64, as many as there are items; some come repeatedly. NaN
            where a draw does not define it, as where no item of a class was drawn; such draws are left out.
        n: number of items.
        seed: of the draws.
        draws: number of them.

    Raises:
        ValueError: there is no item.
    """
    if n == 0:
        raise ValueError("there is nothing to measure: no item is left.")
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(n, size=n)) for _ in range(draws)])
    low, high = np.nanquantile(values, (0.025, 0.975))
    return float(statistic(np.arange(n))), float(low), float(high)


def measure(hits: Sequence[bool] | np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean of hits, and the ends of its 95 % percentile bootstrap interval over 1,000 draws of the items.

    Raises:
        ValueError: there is no item.
    """
    values = np.asarray(hits, dtype=np.float64)
    return bootstrap(lambda items: float(values[items].mean()), values.size, seed=seed)


def mean_and_draws(items: np.ndarray, rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """Mean of a value an item, and the means of 1,000 bootstrap draws of the items, float64.

    Drawn is how often each distinct value comes, which is multinomial: the same as drawing items, and quicker where
    few values are distinct, as of hits.

    Raises:
        ValueError: there is no item.
    """
    if not len(items):
        raise ValueError("there is nothing to measure: no item is left.")
    values, counts = np.unique(np.asarray(items, dtype=np.float64), return_counts=True)
    shares = counts / len(items)
    return float(shares @ values), rng.multinomial(len(items), shares, size=_DRAWS) @ values / len(items)


def difference_of_means(first: np.ndarray, second: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean of one set of items minus that of another, and the ends of its 95 % percentile bootstrap interval.

    Each of 1,000 draws takes the items of both sets anew, each set by itself.

    Args:
        first: a value an item, such as a hit, (items,).
        second: the same of other items, (items of that set,).
        seed: of the draws.

    Raises:
        ValueError: a set has no item.

    Example:
        Half of two items, all of three.

        >>> difference_of_means(np.array([True, False]), np.array([True, True, True]))[0]
        -0.5
    """
    rng = np.random.default_rng(seed)
    (of_first, first_draws), (of_second, second_draws) = mean_and_draws(first, rng), mean_and_draws(second, rng)
    low, high = np.quantile(first_draws - second_draws, (0.025, 0.975))
    return of_first - of_second, float(low), float(high)


def mean_per_class(hits: np.ndarray, targets: np.ndarray) -> float:
    """Mean over the classes that occur of the share of each that was hit.

    Args:
        hits: bool, (items,).
        targets: class numbers, (items,).
    """
    counts = np.bincount(targets)
    right = np.bincount(targets, weights=hits)
    return float((right[counts > 0] / counts[counts > 0]).mean())


def average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    """11-point interpolated average precision of VOC 2007; NaN where nothing is relevant.

    The mean, over the recalls 0, 0.1, ..., 1, of the best precision at that recall or a higher one (Everingham et al.
    2010, section 4.2). Items of one score are taken in together: their order says nothing.

    Args:
        scores: (items,), higher is more likely.
        relevant: bool, (items,).
    """
    total = relevant.sum()
    if total == 0:
        return math.nan
    order = np.argsort(-scores, kind="stable")
    last_of_its_score = np.append(np.diff(scores[order]) != 0, True)
    found = np.cumsum(relevant[order])[last_of_its_score]
    precision = found / (np.flatnonzero(last_of_its_score) + 1)
    # In whole numbers: 0.3 of ten items is less than three in floating point.
    return float(np.mean([max(precision[found * 10 >= level * total]) for level in range(11)]))


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
