"""Nearest neighbours of embeddings, after the projection, as ALIGN's are (Jia et al. 2021)."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from tqdm import tqdm

from .labelled_rows import Rows, check_classes, labelled_rows
from .metrics import RECALL_AT

_NEIGHBOUR_BLOCK = 2048
# Equal pictures have equal cosines but for the order of summation: in float64 that is at most 1e-13 for 1,000
# dimensions, and the place of a row in its block may change it.
_TIE = 1e-12


def knn(
    train_features: torch.Tensor | np.ndarray,
    train_labels: torch.Tensor | np.ndarray,
    test_features: torch.Tensor | np.ndarray,
    test_labels: torch.Tensor | np.ndarray,
    *,
    k: Sequence[int] = RECALL_AT,
    block_rows: int = _NEIGHBOUR_BLOCK,
) -> dict[int, np.ndarray]:
    """Hits by K: whether one of the K training rows nearest by cosine has the test row's label, bool, (test rows,).

    There is no vote among the neighbours; K = 1 is nearest-neighbour classification. A training row of another label
    that is as near as the nearest one of the right label counts as nearer, so that neither the order of the rows nor a
    model that gives everything the same features can win by a tie.

    Args:
        train_features: (training rows, dimensions), embeddings after the projection; any length, none of them zero.
        train_labels: class numbers from 0, integers.
        test_features: (test rows, dimensions).
        test_labels: class numbers, each of which a training row has.
        k: numbers of neighbours.
        block_rows: rows of either set that are compared at once; bounds the memory, and changes nothing else.

    Raises:
        ValueError: as `linear_probe`; features are all zero; or a K is below 1 or above the number of training rows.

    Reference:
        Jia et al. 2021, section 6 (ImageNet KNN) and Kakao Brain's COYO-ALIGN, which reports K = 1. Cosines are
        taken in float64, so that equal pictures tie.
    """
    train, test = (
        labelled_rows("training", train_features, train_labels),
        labelled_rows("test", test_features, test_labels),
    )
    check_classes(train, test, "test")
    if not k or min(k) < 1 or max(k) > len(train.labels):
        raise ValueError(
            f"k is {tuple(k)}; give numbers of neighbours between 1 and the {len(train.labels)} training rows."
        )
    hits: dict[int, list[np.ndarray]] = {number: [] for number in k}
    with tqdm(total=len(test.labels), desc="neighbours", unit="row", leave=False) as bar:
        for queries in _blocks(test, block_rows):
            right, wrong = _nearest(queries, train, max(k), block_rows)
            for number in k:
                # Fewer than K rows of other labels are as near: then the right one is among the K nearest.
                hits[number].append((wrong[:, number - 1] < right - _TIE).numpy())
            bar.update(len(queries.labels))
    return {number: np.concatenate(parts) for number, parts in hits.items()}


def _nearest(queries: Rows, train: Rows, k: int, block_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine of the nearest row of the right label, (queries,), and of the k nearest others, falling, (queries, k)."""
    right = torch.full((len(queries.labels),), -math.inf, dtype=torch.float64)
    wrong = torch.full((len(queries.labels), k), -math.inf, dtype=torch.float64)
    query_units = _units(queries.features)
    for rows in _blocks(train, block_rows):
        similarity = query_units @ _units(rows.features).T
        same = torch.from_numpy(queries.labels[:, None] == rows.labels[None, :])
        right = torch.maximum(right, similarity.masked_fill(~same, -math.inf).amax(dim=1))
        wrong = torch.cat([wrong, similarity.masked_fill(same, -math.inf)], dim=1).topk(k).values
    return right, wrong


def _units(features: np.ndarray) -> torch.Tensor:
    wide = torch.from_numpy(features.astype(np.float64))
    lengths = wide.norm(dim=1, keepdim=True)
    if not lengths.all():
        raise ValueError("a row of features is all zero, and has no direction to compare; leave such rows out.")
    return wide / lengths


def _blocks(rows: Rows, size: int) -> Iterable[Rows]:
    for start in range(0, len(rows.labels), size):
        yield Rows(rows.features[start : start + size], rows.labels[start : start + size])
