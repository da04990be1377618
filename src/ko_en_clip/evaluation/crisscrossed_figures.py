"""What ratings of Crisscrossed Captions say of similarities (Parekh et al. 2021, section 5): draws and matches."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch

from .crisscrossed import CocoSplit, RatedItems
from .similarity import average_ranks, dense_numbers, pearson

# The ratings that Parekh et al. count as positive (section 3, figure 4), as Chun et al. 2022 quote them in the code of
# ECCV Caption, whose CxC recall takes them too. That the paper's own retrieval takes the same is our reading.
POSITIVE_FROM = {"sts": 3.0, "sis": 2.5, "sits": 3.0}
_DRAWS = 1000


def query_draws(queries: np.ndarray, draws: int = _DRAWS, seed: int = 0) -> Iterator[np.ndarray]:
    """Rows of each draw: half of the queries, without replacement and rounded down, and one row of each at random.

    Args:
        queries: the query of each row, int64 from 0 with no number left out, (rows,).
        draws: how many.
        seed: of the draws.

    Yields:
        int64, (half of the queries,).
    """
    by_query = np.argsort(queries, kind="stable")
    counts = np.bincount(queries)
    starts = np.cumsum(counts) - counts
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        chosen = rng.choice(counts.size, size=counts.size // 2, replace=False, shuffle=False)
        yield by_query[starts[chosen] + rng.integers(counts[chosen])]


def sampled_spearman(
    similarities: np.ndarray, scores: np.ndarray, queries: np.ndarray, draws: int = _DRAWS, seed: int = 0
) -> np.ndarray:
    """Spearman's correlation in each of many draws of half of the queries and one item of each, float64, (draws,).

    Args:
        similarities: of the model, (rows,).
        scores: of people, (rows,).
        queries: the query of each row, of any type that sorts, (rows,).
        draws: how many.
        seed: of the draws.

    Raises:
        ValueError: a draw holds one similarity or one score only, as draws of few queries may.

    Reference:
        Parekh et al. 2021: half of the queries, one rated item of each, 1,000 draws. What a query is where both items
        are of one kind is not said in what we could read; here it is the item of a file's first column (our choice),
        so that each row belongs to one query.
    """
    # Ranks need the order of values alone: it is found once, and a draw is ranked by counting, without a sort.
    model, people = dense_numbers(similarities), dense_numbers(scores)
    drawn = query_draws(dense_numbers(queries), draws, seed)
    return np.array([pearson(average_ranks(model[rows]), average_ranks(people[rows])) for rows in drawn])


def similarities_of(rated: RatedItems, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> np.ndarray:
    """Inner product of the embeddings of each rated pair, float64, (pairs,)."""
    of_first, of_second = {
        "sts": (text_embeds, text_embeds),
        "sis": (image_embeds, image_embeds),
        "sits": (text_embeds, image_embeds),
    }[rated.task]
    return np.asarray((of_first[rated.first].double() * of_second[rated.second].double()).sum(dim=1))


def graded_positives(
    split: CocoSplit, ratings: Iterable[RatedItems], positive_from: Mapping[str, float] = POSITIVE_FROM
) -> dict[str, list[set[int]]]:
    """The items that answer each query, by direction: image_to_text, text_to_image, text_to_text, image_to_image.

    Those of MS-COCO (a picture and its captions, two captions of one picture), whatever their rating, and pairs rated
    at or above the threshold of their task, in both directions. No item answers itself.

    Args:
        split: what the ratings are of.
        ratings: of the tasks whose pairs are to count; without any, the pairs of MS-COCO alone, which leave pictures
            without pictures to find.
        positive_from: the lowest rating of a match, by task.
    """
    texts_of, images_of = [set[int]() for _ in split.images], [set[int]() for _ in split.caption_ids]
    for caption, image in enumerate(split.image_of_caption):
        texts_of[image].add(caption)
        images_of[caption].add(image)
    cocaptions = [texts_of[image] - {caption} for caption, image in enumerate(split.image_of_caption)]
    similar: list[set[int]] = [set() for _ in split.images]
    both_ways = {"sts": (cocaptions, cocaptions), "sis": (similar, similar), "sits": (images_of, texts_of)}
    for rated in ratings:
        forth, back = both_ways[rated.task]
        positive = rated.scores >= positive_from[rated.task]
        if forth is back:
            positive &= rated.first != rated.second
        for first, second in zip(rated.first[positive].tolist(), rated.second[positive].tolist(), strict=True):
            forth[first].add(second)
            back[second].add(first)
    return {
        "image_to_text": texts_of,
        "text_to_image": images_of,
        "text_to_text": cocaptions,
        "image_to_image": similar,
    }
