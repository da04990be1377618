"""Semantic textual similarity: whether the cosine of two texts follows the scores that people gave them.

Reads KorSTS (Ham et al. 2020), KLUE-STS (Park et al. 2021) and STS-B (Cer et al. 2017) as they are published.
Crisscrossed Captions, which has a bootstrap of its own, is in crisscrossed.py.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .embeddings import Encoder
from .features import text_embeddings
from .metrics import Result, bootstrap

HIGHEST_SCORE = 5.0
# Of STS-B's scale, on which 3 is "roughly equivalent"; KLUE-STS draws its binary label there (Park et al. 2021,
# section 3.2).
EQUIVALENT_FROM = 3.0


class RatedPair(NamedTuple):
    """Two texts and how near people found them."""

    first: str
    second: str
    score: float
    """Between 0, nothing in common, and 5, the same meaning."""
    equivalent: bool
    """Whether they count as paraphrases."""


def read_sts_tsv(file: Path) -> list[RatedPair]:
    """Pairs of a tab-separated file whose first line names the columns score, sentence1 and sentence2.

    KorSTS is published so (genre, filename, year, id, score, sentence1, sentence2), and STS-B in GLUE. A quotation
    mark is a letter of the text: the files do not quote fields, and some sentences have one mark only. A pair counts
    as equivalent from a score of 3.

    Raises:
        ValueError: a column is missing, or a line has more or fewer fields than the first, an empty text or a score
            that is no number from 0 to 5; the message names the line.
    """
    # Lines end at \n alone: str.splitlines would also cut a text at a letter such as U+2028.
    with file.open(encoding="utf-8", newline="\n") as lines:
        columns = next(lines, "").rstrip("\r\n").split("\t")
        missing = {"score", "sentence1", "sentence2"} - set(columns)
        if missing:
            raise ValueError(
                f"{file}, line 1: no column {', '.join(sorted(missing))} among {columns}; the first line must name "
                "the columns, separated by tabs. Add it where a file comes without."
            )
        return [_of_line(line, columns, f"{file}, line {number}") for number, line in enumerate(lines, start=2)]


def read_klue_sts(file: Path) -> list[RatedPair]:
    """Pairs of a KLUE-STS file, with the score `real-label` and, as `equivalent`, its `binary-label`.

    `label` is not read: it is `real-label` to one decimal, and would tie scores that differ.

    Raises:
        ValueError: the file is not a JSON list, or an item lacks a field or holds a wrong value; the message names
            the item by its place, counted from 1.
    """
    try:
        items = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}. KLUE-STS is a list of items in one JSON file.") from error
    if not isinstance(items, list):
        raise ValueError(f"{file} holds a {type(items).__name__}; KLUE-STS is a list of items.")
    return [_of_item(item, f"{file}, item {number}") for number, item in enumerate(items, start=1)]


def _of_line(line: str, columns: list[str], where: str) -> RatedPair:
    fields = line.rstrip("\r\n").split("\t")
    if len(fields) != len(columns):
        raise ValueError(f"{where}: {len(fields)} fields where the first line names {len(columns)}: {line!r}")
    row = dict(zip(columns, fields, strict=True))
    try:
        score = float(row["score"])
    except ValueError as error:
        raise ValueError(f"{where}: the score is {row['score']!r}; it must be a number from 0 to 5.") from error
    return _checked(RatedPair(row["sentence1"], row["sentence2"], score, score >= EQUIVALENT_FROM), where)


def _of_item(item: Any, where: str) -> RatedPair:
    try:
        labels = item["labels"]
        pair = RatedPair(
            item["sentence1"], item["sentence2"], float(labels["real-label"]), labels["binary-label"] == 1
        )
        binary = labels["binary-label"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: {error!r}; an item has sentence1, sentence2, and labels with real-label and binary-label."
        ) from error
    if binary not in (0, 1):
        raise ValueError(f"{where}: binary-label is {binary!r}; it must be 0 or 1.")
    return _checked(pair, where)


def _checked(pair: RatedPair, where: str) -> RatedPair:
    for text in (pair.first, pair.second):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: a sentence is {text!r}; both must be texts that are not empty.")
    if not (math.isfinite(pair.score) and 0 <= pair.score <= HIGHEST_SCORE):
        raise ValueError(f"{where}: the score is {pair.score}; it must be a number from 0 to {HIGHEST_SCORE:g}.")
    return pair


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


def cosines(encoder: Encoder, pairs: Sequence[RatedPair]) -> np.ndarray:
    """Cosine of the two texts of each pair, float64, (pairs,).

    Raises:
        ValueError: there is no pair.
    """
    if not pairs:
        raise ValueError("there is no pair of texts to measure; the file holds none.")
    texts = [pair.first for pair in pairs] + [pair.second for pair in pairs]
    first, second = text_embeddings(encoder, texts).double().split(len(pairs))
    return np.asarray((first * second).sum(dim=1))


def similarity_results(
    encoder: Encoder,
    pairs: Sequence[RatedPair],
    *,
    dataset: str,
    language: str,
    fit_pairs: Sequence[RatedPair] = (),
) -> list[Result]:
    """Spearman and Pearson correlation of cosines with scores, and F1 where there are pairs to fit its threshold on.

    Args:
        encoder: the model.
        pairs: those that are measured; the intervals are over them.
        dataset: name in the results.
        language: of the texts.
        fit_pairs: of another split, usually the training split; the threshold of F1 is the best on these. KLUE-STS
            reports F1 of predicted scores at 3; a cosine has no such unit, so that its threshold has to be fitted
            (our choice).

    Raises:
        ValueError: there is no pair, or all scores or all cosines are the same.

    Reference:
        Park et al. 2021, KLUE, section 3.2: Pearson and F1. Ham et al. 2020, KorSTS: Spearman.
    """
    similarities, scores = cosines(encoder, pairs), np.array([pair.score for pair in pairs])
    equivalent = np.array([pair.equivalent for pair in pairs])
    statistics: dict[str, Callable[[np.ndarray], float]] = {
        "spearman": lambda drawn: spearman(similarities[drawn], scores[drawn]),
        "pearson": lambda drawn: pearson(similarities[drawn], scores[drawn]),
    }
    if fit_pairs:
        threshold = fit_threshold(cosines(encoder, fit_pairs), np.array([pair.equivalent for pair in fit_pairs]))
        statistics["f1"] = lambda drawn: f1(similarities[drawn], equivalent[drawn], threshold)
    common = {"task": "semantic_similarity", "dataset": dataset, "language": language, "slice": "all"}
    results = []
    for metric, statistic in statistics.items():
        value, low, high = bootstrap(statistic, len(pairs))
        results.append(Result(**common, metric=metric, value=value, low=low, high=high, n=len(pairs)))
    return results
