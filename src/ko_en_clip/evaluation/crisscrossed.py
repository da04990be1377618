"""Crisscrossed Captions (Parekh et al. 2021): ratings of caption, picture and caption-picture pairs of MS-COCO.

Two things are measured: how similarities follow the ratings, by the sampled bootstrap of the paper (STS, SIS, SITS),
and retrieval in four directions, where pairs rated highly count as matches besides those of MS-COCO.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .metrics import RECALL_AT, Result, measure, ranks
from .similarity import HIGHEST_SCORE, average_ranks, dense_numbers, pearson

# First lines of the published files, and what they rate.
_TASKS = {
    ("caption1", "caption2", "agg_score", "sampling_method"): "sts",
    ("image1", "image2", "agg_score", "sampling_method"): "sis",
    ("caption", "image", "agg_score", "sampling_method"): "sits",
}
# The ratings that Parekh et al. count as positive (section 3, figure 4), as Chun et al. 2022 quote them in the code of
# ECCV Caption, whose CxC recall takes them too. That the paper's own retrieval takes the same is our reading.
POSITIVE_FROM = {"sts": 3.0, "sis": 2.5, "sits": 3.0}
_DRAWS = 1000
_QUERIES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Ratings:
    """The rated pairs of one file."""

    task: str
    """sts: captions with captions; sis: pictures with pictures; sits: captions with pictures."""
    first: list[str]
    """Ids as the file writes them: COCO_val2014:sentid:770337, COCO_val2014_000000391895.jpg."""
    second: list[str]
    scores: np.ndarray
    """Mean ratings, between 0 and 5, float64."""
    methods: list[str]
    """How a pair was sampled: c2c_cocaption, c2c_isim, i2i_csim, c2i_original, c2i_intrasim."""


@dataclass(frozen=True, kw_only=True)
class CocoSplit:
    """Pictures and captions of a split, in the order of their embeddings."""

    images: list[str]
    """Names of files, which are their ids in the ratings."""
    caption_ids: list[str]
    captions: list[str]
    image_of_caption: list[int]
    """Number of the picture that each caption was written for."""


class SampledCorrelation(NamedTuple):
    """Spearman correlation over draws."""

    mean: float
    std: float
    low: float
    """Ends of the middle 95 % of the draws."""
    high: float


def read_ratings(file: Path) -> Ratings:
    """The ratings of one of the six files {sts,sis,sits}_{val,test}.csv; its first line says which task it is of.

    Raises:
        ValueError: the first line is that of none of them (the `_raw` files hold single ratings), or a line has not
            four fields or a score that is no number from 0 to 5; the message names the line.
    """
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.reader(lines)
        columns = tuple(next(reader, ()))
        if columns not in _TASKS:
            raise ValueError(
                f"{file}, line 1: {','.join(columns)!r} begins no file of ratings; they begin with one of "
                f"{'; '.join(','.join(known) for known in _TASKS)}."
            )
        rows = [(row, _score(row, f"{file}, line {reader.line_num}")) for row in reader]
    if not rows:
        raise ValueError(f"{file} holds no rating after its first line.")
    return Ratings(
        task=_TASKS[columns],
        first=[row[0] for row, _ in rows],
        second=[row[1] for row, _ in rows],
        scores=np.array([score for _, score in rows]),
        methods=[row[3] for row, _ in rows],
    )


def _score(row: list[str], where: str) -> float:
    if len(row) != 4:
        raise ValueError(f"{where}: {len(row)} fields, {row}; there must be two ids, a score and a sampling method.")
    try:
        score = float(row[2])
    except ValueError as error:
        raise ValueError(f"{where}: the score is {row[2]!r}; it must be a number from 0 to 5.") from error
    if not (math.isfinite(score) and 0 <= score <= HIGHEST_SCORE):
        raise ValueError(f"{where}: the score is {score}; it must be a number from 0 to {HIGHEST_SCORE:g}.")
    return score


def read_coco_split(file: Path, split: str) -> CocoSplit:
    """A split of MS-COCO by Karpathy's dataset_coco.json, whose val and test the ratings are of; all captions.

    Raises:
        ValueError: no picture is of that split.
    """
    pictures = [image for image in json.loads(file.read_text(encoding="utf-8"))["images"] if image["split"] == split]
    if not pictures:
        raise ValueError(f"{file} has no picture of split {split!r}; ask for val or test.")
    captions = [(number, sentence) for number, image in enumerate(pictures) for sentence in image["sentences"]]
    return CocoSplit(
        images=[image["filename"] for image in pictures],
        # Pictures of Karpathy's val and test are all of the folder val2014, which the ratings name in their ids.
        caption_ids=[f"COCO_val2014:sentid:{sentence['sentid']}" for _, sentence in captions],
        captions=[sentence["raw"] for _, sentence in captions],
        image_of_caption=[number for number, _ in captions],
    )


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
    similarities: np.ndarray, scores: np.ndarray, queries: Sequence[str], draws: int = _DRAWS, seed: int = 0
) -> SampledCorrelation:
    """Mean and standard deviation of Spearman's correlation over draws of half of the queries and one item of each.

    Args:
        similarities: of the model, (rows,).
        scores: of people, (rows,).
        queries: the query of each row.
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
    numbers = dense_numbers(np.asarray(queries))
    correlations = np.array(
        [
            pearson(average_ranks(model[rows]), average_ranks(people[rows]))
            for rows in query_draws(numbers, draws, seed)
        ]
    )
    low, high = np.quantile(correlations, (0.025, 0.975))
    return SampledCorrelation(float(correlations.mean()), float(correlations.std(ddof=1)), float(low), float(high))


def similarities_of(
    ratings: Ratings, split: CocoSplit, image_embeds: torch.Tensor, text_embeds: torch.Tensor
) -> np.ndarray:
    """Inner product of the embeddings of each rated pair, float64, (pairs,).

    Raises:
        ValueError: an item is not of the split.
    """
    first, second = _rows(ratings, split)
    of_first, of_second = {
        "sts": (text_embeds, text_embeds),
        "sis": (image_embeds, image_embeds),
        "sits": (text_embeds, image_embeds),
    }[ratings.task]
    return np.asarray((of_first[first].double() * of_second[second].double()).sum(dim=1))


def _rows(ratings: Ratings, split: CocoSplit) -> tuple[list[int], list[int]]:
    """Rows of the embeddings of both items of each pair."""
    captions = {name: row for row, name in enumerate(split.caption_ids)}
    images = {name: row for row, name in enumerate(split.images)}
    sides = {"sts": (captions, captions), "sis": (images, images), "sits": (captions, images)}[ratings.task]
    first, second = (
        _looked_up(ids, known, ratings.task) for ids, known in zip((ratings.first, ratings.second), sides, strict=True)
    )
    return first, second


def _looked_up(ids: Sequence[str], known: Mapping[str, int], task: str) -> list[int]:
    missing = [name for name in ids if name not in known]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(ids)} ids of the {task} ratings are not of the split, the first {missing[0]!r}; "
            "take ratings and pictures of the same split, val or test."
        )
    return [known[name] for name in ids]


def graded_positives(
    split: CocoSplit, ratings: Iterable[Ratings], positive_from: Mapping[str, float]
) -> dict[str, list[set[int]]]:
    """The items that answer each query, by direction: image_to_text, text_to_image, text_to_text, image_to_image.

    Those of MS-COCO (a picture and its captions, two captions of one picture), whatever their rating, and pairs rated
    at or above the threshold of their task, in both directions.
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
        for first, second, score in zip(*_rows(rated, split), rated.scores, strict=True):
            if score >= positive_from[rated.task]:
                forth[first].add(second)
                back[second].add(first)
    return {
        "image_to_text": texts_of,
        "text_to_image": images_of,
        "text_to_text": cocaptions,
        "image_to_image": similar,
    }


def graded_ranks(
    query_embeds: torch.Tensor, item_embeds: torch.Tensor, positives: Sequence[Iterable[int]], *, same_items: bool
) -> torch.Tensor:
    """Rank, from 1, of the best positive of each query, int64, (queries,); see `metrics.ranks` for ties.

    Args:
        query_embeds: (queries, dimensions).
        item_embeds: (items, dimensions).
        positives: numbers of the items that answer each query; a query that none answers is never found.
        same_items: whether the queries are the items, in the same order; a query is then no candidate of its own.
    """
    found = []
    for start in range(0, len(query_embeds), _QUERIES_AT_ONCE):
        similarity = query_embeds[start : start + _QUERIES_AT_ONCE] @ item_embeds.T
        relevant = torch.zeros_like(similarity, dtype=torch.bool)
        for row in range(len(similarity)):
            relevant[row, list(positives[start + row])] = True
            if same_items:
                similarity[row, start + row] = float("-inf")
                relevant[row, start + row] = False
        found.append(ranks(similarity, relevant))
    return torch.cat(found)


def correlation_results(
    ratings: Iterable[Ratings],
    split: CocoSplit,
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    *,
    dataset: str,
    language: str,
) -> list[Result]:
    """Sampled Spearman correlation of each task, and its standard deviation over draws as a figure of its own.

    `low` and `high` are the ends of the middle 95 % of the draws, and n is the number of pairs.

    Raises:
        ValueError: as `similarities_of` and `sampled_spearman`.
    """
    results = []
    for rated in ratings:
        similarities = similarities_of(rated, split, image_embeds, text_embeds)
        mean, std, low, high = sampled_spearman(similarities, rated.scores, rated.first)
        common = {
            "task": f"crisscrossed_{rated.task}",
            "dataset": dataset,
            "language": "-" if rated.task == "sis" else language,
            "slice": "all",
        }
        n = len(rated.scores)
        results.append(Result(**common, metric="sampled_spearman", value=mean, low=low, high=high, n=n))
        results.append(Result(**common, metric="sampled_spearman_std", value=std, low=std, high=std, n=n))
    return results


def retrieval_results(
    ratings: Iterable[Ratings],
    split: CocoSplit,
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    *,
    dataset: str,
    language: str,
    positive_from: Mapping[str, float] = POSITIVE_FROM,
) -> list[Result]:
    """Recall at 1, 5 and 10 in the four directions, over the queries that have an answer.

    Args:
        ratings: of the tasks whose pairs are to count; without any, the pairs of MS-COCO alone, which leave pictures
            without pictures to find.
        split: what the embeddings are of.
        image_embeds: (pictures, dimensions).
        text_embeds: (captions, dimensions).
        dataset: name in the results.
        language: of the captions.
        positive_from: the lowest rating of a match, by task.

    Raises:
        ValueError: an item of the ratings is not of the split.
    """
    sides = {"image": image_embeds, "text": text_embeds}
    results = []
    for direction, positives in graded_positives(split, ratings, positive_from).items():
        source, target = direction.split("_to_")
        found = graded_ranks(sides[source], sides[target], positives, same_items=source == target)
        answered = found[torch.tensor([bool(answers) for answers in positives])]
        common = {
            "task": "crisscrossed_retrieval",
            "dataset": dataset,
            "language": "-" if direction == "image_to_image" else language,
            "slice": "all",
        }
        for k in RECALL_AT if len(answered) else ():
            value, low, high = measure((answered <= k).numpy())
            metric = f"{direction}_recall@{k}"
            results.append(Result(**common, metric=metric, value=value, low=low, high=high, n=len(answered)))
    return results
