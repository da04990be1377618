"""Crisscrossed Captions (Parekh et al. 2021): ratings of caption, picture and caption-picture pairs of MS-COCO."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..data.pairs import PairSet

RatingTask = Literal["sts", "sis", "sits"]
# First lines of the published files, and what they rate: captions with captions, pictures with pictures, captions with
# pictures.
_TASKS: dict[tuple[str, ...], RatingTask] = {
    ("caption1", "caption2", "agg_score", "sampling_method"): "sts",
    ("image1", "image2", "agg_score", "sampling_method"): "sis",
    ("caption", "image", "agg_score", "sampling_method"): "sits",
}
_HIGHEST_SCORE = 5.0
_SOURCE = "https://github.com/google-research-datasets/Crisscrossed-Captions"


@dataclass(frozen=True, kw_only=True)
class CrisscrossedSettings:
    """Ratings, and the columns by which they name pictures and captions.

    Each column of `data.captions` is a list of captions in the order of `sentids`: those that were rated, or
    translations of them.
    """

    ratings: list[str]
    """Files sts_test.csv, sis_test.csv and sits_test.csv as they are published, or those of val; one a task at most.
    The first line of a file says what it rates."""
    filename: str = "filename"
    """Column of the names of the pictures' files in MS-COCO, as in COCO_val2014_000000391895.jpg."""
    sentids: str = "sentids"
    """Column of lists of the captions' numbers in Karpathy's split."""

    def __post_init__(self) -> None:
        if not self.ratings:
            raise ValueError("crisscrossed.ratings is empty; name one of the files sts, sis, sits at least.")


@dataclass(frozen=True, kw_only=True)
class Ratings:
    """The rated pairs of one file."""

    task: RatingTask
    first: list[str]
    """Ids as the file writes them: COCO_val2014:sentid:770337, COCO_val2014_000000391895.jpg."""
    second: list[str]
    scores: np.ndarray
    """Mean ratings, between 0 and 5, float64."""


@dataclass(frozen=True, kw_only=True)
class CocoSplit:
    """Pictures and captions of a split, in the order of their embeddings."""

    images: list[str]
    """Names of files, which are their ids in the ratings."""
    caption_ids: list[str]
    captions: list[str]
    image_of_caption: list[int]
    """Number of the picture that each caption was written for."""
    left_out: frozenset[str]
    """Ids of the split that are not above: pictures that do not decode, their captions, and empty captions."""


class RatedItems(NamedTuple):
    """Rated pairs by the places of their items in a split."""

    task: RatingTask
    first: np.ndarray
    """Numbers of captions or pictures, int64, (pairs,)."""
    second: np.ndarray
    scores: np.ndarray


def read_all_ratings(settings: CrisscrossedSettings) -> list[Ratings]:
    """The ratings of all files, in their order.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: two files are of one task, or as `read_ratings`.
    """
    found: dict[str, Ratings] = {}
    for name in settings.ratings:
        if not Path(name).is_file():
            raise FileNotFoundError(
                f"crisscrossed.ratings names {name!r}, and there is no such file; get it: {_SOURCE}"
            )
        ratings = read_ratings(Path(name))
        if ratings.task in found:
            raise ValueError(
                f"crisscrossed.ratings has two files of {ratings.task}, {name} being the second; keep one."
            )
        found[ratings.task] = ratings
    return list(found.values())


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
    )


def _score(row: list[str], where: str) -> float:
    if len(row) != 4:
        raise ValueError(f"{where}: {len(row)} fields, {row}; there must be two ids, a score and a sampling method.")
    try:
        score = float(row[2])
    except ValueError as error:
        raise ValueError(f"{where}: the score is {row[2]!r}; it must be a number from 0 to 5.") from error
    if not (math.isfinite(score) and 0 <= score <= _HIGHEST_SCORE):
        raise ValueError(f"{where}: the score is {score}; it must be a number from 0 to {_HIGHEST_SCORE:g}.")
    return score


def coco_split(pairs: PairSet, decoded: Sequence[int], settings: CrisscrossedSettings, language: str) -> CocoSplit:
    """The pictures that decode and their captions in one language.

    Args:
        pairs: rows of pictures, each with all its captions.
        decoded: rows of the pictures that decode, rising.
        settings: say what the columns are.
        language: has one column of captions.

    Raises:
        ValueError: a cell is not what it should be, captions and their numbers are not as many, or an id is there
            twice; the message names the row.
    """
    (column,) = (column for column, spoken in pairs.settings.captions.items() if spoken == language)
    cells = zip(*(pairs.cells(name) for name in (settings.filename, settings.sentids, column)), strict=True)
    readable, known = set(decoded), set[str]()
    images: list[str] = []
    captions: list[tuple[str, str, int]] = []
    for row, (name, numbers, texts) in enumerate(cells):
        place = f"row {row} (the first is 0) of {pairs.settings.path}"
        ids = _ids_of_row(name, numbers, texts, place, (settings, column))
        twice = [each for each in ids if each in known]
        if twice or len(set(ids)) < len(ids):
            raise ValueError(
                f"{place}: {(twice or ids)[0]!r} is there twice; the ratings need each picture in one row, with all "
                "its captions."
            )
        known.update(ids)
        if row in readable:
            captions += [(each, text, len(images)) for each, text in zip(ids[1:], texts, strict=True) if _says(text)]
            images.append(name)
    there = {*images, *(each for each, _, _ in captions)}
    return CocoSplit(
        images=images,
        caption_ids=[each for each, _, _ in captions],
        captions=[text for _, text, _ in captions],
        image_of_caption=[image for _, _, image in captions],
        left_out=frozenset(known - there),
    )


def _says(text: str | None) -> bool:
    return bool(text and text.strip())


def _ids_of_row(
    name: Any, numbers: Any, texts: Any, place: str, columns: tuple[CrisscrossedSettings, str]
) -> list[str]:
    """Ids of the picture and of its captions."""
    settings, column = columns
    if not isinstance(name, str) or not name:
        raise ValueError(f"{place}: {settings.filename} is {name!r}; the name of a file is needed.")
    if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"{place}: {settings.sentids} is {numbers!r}; a list of numbers is needed.")
    if not isinstance(texts, list) or len(texts) != len(numbers):
        raise ValueError(
            f"{place}: {column} is {texts!r}; a list is needed with a caption for each of the {len(numbers)} numbers "
            f"of {settings.sentids}, in their order."
        )
    # Pictures of Karpathy's val and test are all of the folder val2014, which the ratings name in their ids.
    return [name, *(f"COCO_val2014:sentid:{number}" for number in numbers)]


def rated_items(ratings: Ratings, split: CocoSplit) -> RatedItems:
    """The rated pairs of which both items are there.

    Raises:
        ValueError: an item is not of the split.
    """
    captions = {name: row for row, name in enumerate(split.caption_ids)}
    images = {name: row for row, name in enumerate(split.images)}
    sides = {"sts": (captions, captions), "sis": (images, images), "sits": (captions, images)}[ratings.task]
    first, second = (
        _places(ids, known, split.left_out, ratings.task)
        for ids, known in zip((ratings.first, ratings.second), sides, strict=True)
    )
    there = (first >= 0) & (second >= 0)
    return RatedItems(ratings.task, first[there], second[there], ratings.scores[there])


def _places(ids: Sequence[str], known: Mapping[str, int], left_out: frozenset[str], task: str) -> np.ndarray:
    """Numbers by id, -1 for those that were left out."""
    missing = [name for name in ids if name not in known and name not in left_out]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(ids)} ids of the {task} ratings are not of the split, the first {missing[0]!r}; "
            "take ratings and pictures of the same split, val or test."
        )
    return np.array([known.get(name, -1) for name in ids], dtype=np.int64)
