"""Search over embeddings too many for one matrix, and queries of a picture plus or minus a text.

Queries: Jia et al. 2021 (ALIGN), section 7 and figure 5; the feature analogies of KELIP (Ko & Gu 2022, research
question 4) are the same operation. Retrieval at scale uses the same top_k.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

# A block of similarities is then 64 MiB in float32.
_QUERIES_AT_ONCE = 256
BLOCK = 65_536

Embeddings = torch.Tensor | np.ndarray


@dataclass(frozen=True, kw_only=True)
class QuerySettings:
    """A picture of the suite plus or minus a text."""

    row: int
    """Row of the picture."""
    text: str
    """What is added."""
    weight: float = 2.0
    """Of the text, the picture's being 1; below zero the text is taken away. 2 is what Jia et al. 2021 found best."""


@dataclass(frozen=True, kw_only=True)
class AnsweredQuery:
    """A query and the pictures nearest to it."""

    query: QuerySettings
    picture: int
    """Position of its picture among the readable ones of the suite."""
    found: list[int]
    """Positions of the pictures, the nearest first."""


class TopK(NamedTuple):
    """The best items of each query, best first; of equal ones, the one that comes first in the index."""

    values: torch.Tensor
    """Inner products, float32, (queries, k)."""
    indices: torch.Tensor
    """Rows of the index, int64, (queries, k)."""


def image_plus_text(image_embeds: torch.Tensor, text_embeds: torch.Tensor, text_weight: float = 2.0) -> torch.Tensor:
    """Query embeddings of pictures with a text added, or subtracted where its weight is negative.

    Both are L2-normalised, added as `image + text_weight * text`, and normalised again. The weight is 2 by default
    because Jia et al. found 2 on the text and 1 on the picture best, and 1 to 1 fine.

    Args:
        image_embeds: (queries, dimensions), or (1, dimensions) for one picture with several texts.
        text_embeds: (queries, dimensions), or (1, dimensions).
        text_weight: -2 takes away what 2 adds.

    Returns:
        float32, (queries, dimensions).

    Raises:
        ValueError: a sum is zero, and has no direction: the text is what the picture says, taken away from it.

    Reference:
        Jia et al. 2021, section 7 and figure 5.

    Example:
        >>> image_plus_text(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0]]), text_weight=0.75).tolist()
        [[0.800000011920929, 0.6000000238418579]]
    """
    images, texts = (nn.functional.normalize(embeds.float(), dim=-1) for embeds in (image_embeds, text_embeds))
    queries = images + text_weight * texts
    # A unit vector in float32 is off by about 1e-7; what is left of two equal ones is no direction but rounding.
    zero = queries.norm(dim=-1) < 1e-5
    if zero.any():
        raise ValueError(
            f"query {int(zero.nonzero()[0])} is zero: its text has the direction of its picture and the weight "
            f"{text_weight:g} takes it away. Take another weight or another text."
        )
    return nn.functional.normalize(queries, dim=-1)


def search(
    query_embeds: torch.Tensor, index_embeds: Embeddings | Iterable[Embeddings], k: int, block: int = BLOCK
) -> TopK:
    """The k rows of an index with the largest inner product with each query.

    Args:
        query_embeds: (queries, dimensions).
        index_embeds: (items, dimensions), which may be a numpy memmap of any float type, or parts of it in order;
            embeddings that are L2-normalised make the inner products cosines.
        k: how many.
        block: rows of the index that are in memory at once.

    Raises:
        ValueError: as `top_k`.
    """
    if isinstance(index_embeds, torch.Tensor | np.ndarray):
        return top_k(query_embeds, _cut(index_embeds, block), k)
    return top_k(query_embeds, chain.from_iterable(_cut(part, block) for part in index_embeds), k)


def top_k(queries: torch.Tensor, blocks: Iterable[Embeddings], k: int) -> TopK:
    """The k rows with the largest inner product with each query, of an index that comes in blocks, each read once.

    Exact: as if the whole matrix of products were sorted, but for the rounding of products, which may differ in the
    last place between blocks of different sizes. Runs where the queries are. Besides the result, it holds a block,
    and the products of a few hundred queries with it.

    Args:
        queries: (queries, dimensions).
        blocks: parts of the index in order, each (rows, dimensions).
        k: how many.

    Raises:
        ValueError: k is below 1 or above the rows of the index, or an embedding is not finite.
    """
    if k < 1:
        raise ValueError(f"k is {k}; ask for 1 item at least.")
    queries = _finite(queries.float(), "query")
    chunks = queries.split(_QUERIES_AT_ONCE)
    best = [TopK(chunk.new_empty(len(chunk), 0), _no_indices(chunk)) for chunk in chunks]
    rows = 0
    for block in tqdm(blocks, desc="search", unit="block", leave=False):
        items = _finite(_on(queries.device, block), "index")
        for number, chunk in enumerate(chunks):
            found = _best_of(chunk @ items.T, k)
            best[number] = _merged(best[number], TopK(found.values, found.indices + rows), k)
        rows += len(items)
    if rows < k:
        raise ValueError(f"the index holds {rows} rows, fewer than the k of {k}; ask for {rows} at most.")
    return TopK(torch.cat([part.values for part in best]), torch.cat([part.indices for part in best]))


def _best_of(similarity: torch.Tensor, k: int) -> TopK:
    """The k largest of each row in no order; of equal ones at the end, those that come first."""
    width = min(k + 1, similarity.shape[1])
    values, indices = similarity.topk(width, dim=1)
    if width > k:
        # torch.topk may take any of equal values. It matters where the next one equals the last that is taken.
        tied = values[:, k - 1] == values[:, k]
        if tied.any():
            ordered = similarity[tied].sort(dim=1, descending=True, stable=True)
            values[tied], indices[tied] = ordered.values[:, :width], ordered.indices[:, :width]
    return TopK(values[:, :k], indices[:, :k])


def _merged(earlier: TopK, later: TopK, k: int) -> TopK:
    """The k best of two parts of the index, in order."""
    indices, order = later.indices.sort(dim=1)
    both = TopK(
        torch.cat([earlier.values, later.values.gather(1, order)], dim=1), torch.cat([earlier.indices, indices], dim=1)
    )
    # Stable: equal values stay in the order of the index, since the earlier part comes first and each is in order.
    values, order = both.values.sort(dim=1, descending=True, stable=True)
    return TopK(values[:, :k], both.indices.gather(1, order[:, :k]))


def _cut(embeds: Embeddings, block: int) -> list[Embeddings]:
    """Parts that share their memory with the whole; a list, so that the progress bar knows how many there are."""
    return [embeds[start : start + block] for start in range(0, len(embeds), block)]


def _on(device: torch.device, block: Embeddings) -> torch.Tensor:
    if isinstance(block, np.ndarray):
        # A copy: torch warns of memory that cannot be written to, such as that of a memmap opened for reading.
        block = torch.from_numpy(np.array(block, dtype=np.float32))
    return block.to(device, torch.float32)


def _finite(embeds: torch.Tensor, name: str) -> torch.Tensor:
    if not embeds.isfinite().all():
        # No number is larger than NaN, and none smaller: the order would mean nothing.
        row = int((~embeds.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"row {row} of the {name} embeddings is not finite; the model that made it has diverged.")
    return embeds


def _no_indices(chunk: torch.Tensor) -> torch.Tensor:
    return torch.empty(len(chunk), 0, dtype=torch.int64, device=chunk.device)
