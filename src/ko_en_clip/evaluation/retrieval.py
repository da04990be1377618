"""Retrieval between pictures and texts, and the baseline of raw pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tqdm import tqdm

from ..data.pairs import PairSet, UnreadablePictureError
from ..image_processing_ko_en_clip import KoEnClipImageProcessor
from .metrics import ranks
from .queries import search

_PIXEL_SIDE = 24
_SHOWN, _SHOWN_ITEMS = 3, 5
NOT_FOUND = torch.iinfo(torch.int64).max


class Retrieved(NamedTuple):
    """A query and the items that were found for it."""

    query: int
    """Its number."""
    found: list[int]
    """Numbers of the items, best first."""
    right: list[bool]
    """Whether each answers the query."""
    rank: int
    """Rank of the best answer, from 1; `NOT_FOUND` where there is none."""


@dataclass(frozen=True, kw_only=True)
class RetrievedExamples:
    """What retrieval in a language found for a few queries each way."""

    language: str
    texts: list[str]
    pictures: list[int]
    """Positions of the pictures among the readable ones of the suite."""
    by_text: list[Retrieved]
    """Queries are numbers of texts, items numbers of pictures."""
    by_picture: list[Retrieved]
    """The other way."""


def examples(
    queries: torch.Tensor, items: torch.Tensor, relevant: Sequence[Sequence[int]], ranks_found: torch.Tensor
) -> list[Retrieved]:
    """A few queries with the items that were found: three spread evenly over all, then the three of the worst rank.

    The first three show what is usual, whatever it is; none is chosen because it went well.

    Args:
        queries: (queries, dimensions), one at least.
        items: (items, dimensions).
        relevant: numbers of the items that answer each query.
        ranks_found: of `relevant_ranks`.
    """
    best = ranks_found.min(dim=1).values
    spread = [len(queries) * number // _SHOWN for number in range(_SHOWN)]
    worst = best.argsort(descending=True, stable=True)[:_SHOWN].tolist()
    chosen = list(dict.fromkeys([*spread, *worst]))
    top = search(queries[chosen], items, min(_SHOWN_ITEMS, len(items))).indices.tolist()
    return [
        Retrieved(query, found, [item in set(relevant[query]) for item in found], int(best[query]))
        for query, found in zip(chosen, top, strict=True)
    ]


def relevant_ranks(
    queries: torch.Tensor,
    items: torch.Tensor,
    relevant: Sequence[Sequence[int]],
    *,
    without: Sequence[int] | None = None,
    query_block: int = 1024,
    item_block: int = 65536,
) -> torch.Tensor:
    """Rank, from 1, of every item that answers a query, in the order in which they are given.

    A tie with an item that does not answer counts against the query, so that a model which gives everything the same
    score finds nothing; a tie of two that do is broken by their order.

    Scores are made block by block, so that memory does not depend on the numbers of queries and items. Where items
    fill more than one block, each is scored twice: scores that are compared come from the same multiplication, so
    that equal embeddings tie wherever they stand, but for those in a last block that is shorter than the others, whose
    scores may differ in the last place.

    Args:
        queries: (queries, dimensions).
        items: (items, dimensions).
        relevant: numbers of the items that answer each query; none is allowed.
        without: number of an item that is no candidate for each query: the query itself, where it is among the items.
        query_block: queries scored at once.
        item_block: items scored at once.

    Returns:
        int64, (queries, the most answers that a query has); `NOT_FOUND` where a query has fewer.
    """
    width = max(map(len, relevant), default=0)
    found = torch.full((len(queries), width), NOT_FOUND)
    left_out = None if without is None else torch.tensor(without, dtype=torch.int64)
    starts = range(0, len(queries), query_block)
    # On the GPU where there is one; embeddings stay where they are, but for a block of each.
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    for start in tqdm(starts, desc="queries", unit="block", leave=False, disable=len(starts) == 1):
        block = slice(start, start + query_block)
        absent = None if left_out is None else left_out[block].to(device)
        found[block] = _ranks_of_block(queries[block].to(device), items, relevant[block], absent, width, item_block)
    return found


def _ranks_of_block(
    queries: torch.Tensor,
    items: torch.Tensor,
    relevant: Sequence[Sequence[int]],
    left_out: torch.Tensor | None,
    width: int,
    item_block: int,
) -> torch.Tensor:
    def scored(number: int, block: torch.Tensor) -> torch.Tensor:
        similarity = queries @ block.to(queries.device).T
        if left_out is not None:
            # Comparisons with NaN are false: the item stands before nothing, and is not found if it is an answer.
            here = left_out // item_block == number
            similarity[here.nonzero().flatten(), left_out[here] % item_block] = float("nan")
        return similarity

    numbers = [
        [row for row, numbers in enumerate(relevant) for _ in numbers],
        [place for numbers in relevant for place in range(len(numbers))],
        [number for numbers in relevant for number in numbers],
    ]
    rows, places, columns = torch.tensor(numbers, dtype=torch.int64, device=queries.device)
    blocks = items.split(item_block)
    scores = queries.new_full((len(queries), width), float("nan"))
    similarity = torch.empty(0)
    for number, block in enumerate(blocks):
        similarity = scored(number, block)
        here = columns // item_block == number
        scores[rows[here], places[here]] = similarity[rows[here], columns[here] % item_block]
    ahead = torch.zeros_like(scores, dtype=torch.int64)
    for number, block in enumerate(blocks):
        if len(blocks) > 1:
            similarity = scored(number, block)
        here = columns // item_block == number
        # Likewise answers do not stand before each other here.
        similarity[rows[here], columns[here] % item_block] = float("nan")
        for place in range(width):
            ahead[:, place] += (similarity >= scores[:, place, None]).sum(dim=1)
    for place in range(width):
        before = torch.arange(width, device=scores.device) < place
        others = (scores > scores[:, place, None]) | (before & (scores == scores[:, place, None]))
        ahead[:, place] += others.sum(dim=1)
    return (ahead + 1).masked_fill(scores.isnan(), NOT_FOUND).cpu()


def hits_and_shares(found: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether any answer of each query is among the first k, and the share of its answers that are.

    Queries without an answer are never hit. CLIP_benchmark counts the first; the second is recall in the sense of
    information retrieval, which is less where a picture has more captions than one.

    Args:
        found: of `relevant_ranks`.
        k: how many items a user looks at.

    Returns:
        bool and float32, (queries,).
    """
    among = found <= k
    return among.any(dim=1), among.sum(dim=1) / (found < NOT_FOUND).sum(dim=1).clamp(min=1)


def image_text_ranks(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, captions: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """`relevant_ranks` both ways: of each picture's captions, and of each text's pictures.

    Args:
        image_embeds: (pictures, dimensions).
        text_embeds: one row a distinct text, (texts, dimensions).
        captions: numbers of the texts that describe each picture; every text describes one at least.
    """
    of_images = relevant_ranks(image_embeds, text_embeds, [list(dict.fromkeys(texts)) for texts in captions])
    return of_images, relevant_ranks(text_embeds, image_embeds, pictures_of_texts(captions, len(text_embeds)))


def pictures_of_texts(captions: Sequence[Sequence[int]], num_texts: int) -> list[list[int]]:
    """Numbers of the pictures that each text describes.

    Args:
        captions: numbers of the texts that describe each picture.
        num_texts: how many texts there are.
    """
    pictures: list[dict[int, None]] = [{} for _ in range(num_texts)]
    for picture, texts in enumerate(captions):
        for text in texts:
            pictures[text][picture] = None
    return [list(found) for found in pictures]


def pixel_ranks(queries: PairSet, gallery: PairSet) -> torch.Tensor:
    """Rank of the nearest gallery picture of the same group, by squared distance of raw 24-pixel pictures.

    What a model that learned nothing but pixels would find: the floor that trained embeddings have to beat. Pictures
    that do not decode, or that have no group, are left out.
    """
    query_pixels, query_groups = _pixels_and_groups(queries)
    gallery_pixels, gallery_groups = _pixels_and_groups(gallery)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(gallery_groups))}
    of_gallery = torch.tensor([numbers[group] for group in gallery_groups])
    of_queries = torch.tensor([numbers.get(group, -1) for group in query_groups])
    return ranks(-torch.cdist(query_pixels, gallery_pixels), of_queries[:, None] == of_gallery[None, :])


def _pixels_and_groups(pairs: PairSet) -> tuple[torch.Tensor, list[str]]:
    side = {"height": _PIXEL_SIDE, "width": _PIXEL_SIDE}
    processor = KoEnClipImageProcessor(size=side, do_center_crop=False, do_normalize=False)
    pixels, groups = [], []
    for index in range(len(pairs)):
        try:
            picture = pairs.picture(index)
        except UnreadablePictureError:
            continue
        group = pairs.group(index)
        if group is not None:
            inputs = processor(picture, input_data_format="channels_first", return_tensors="pt")
            pixels.append(inputs["pixel_values"].flatten())
            groups.append(group)
    return torch.stack(pixels), groups
