"""Pairs of texts and how near people found them: STS-B (Cer et al. 2017), KorSTS (Ham et al. 2020), KLUE-STS."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..data.pairs import PairSet


@dataclass(frozen=True, kw_only=True)
class RatedTextSettings:
    """Where a data set has two texts and their score. `data.captions` names the languages of both columns of texts."""

    first: str = "sentence1"
    """Column of texts."""
    second: str = "sentence2"
    """Column of the texts that they are compared with."""
    score: str = "score"
    """Column of scores; one inside a struct is named as in labels.real-label."""
    highest_score: float = 5.0
    """Score of the same meaning; the lowest is 0."""
    equivalent: str | None = None
    """Column of 1 for pairs that count as paraphrases and 0 for others; without it the score decides."""
    equivalent_from: float = 3.0
    """Score from which a pair counts as paraphrases, where no column says so. 3 is "roughly equivalent" in STS-B, and
    KLUE-STS draws its binary label there (Park et al. 2021, section 3.2)."""

    def __post_init__(self) -> None:
        if self.first == self.second:
            raise ValueError(f"rated_texts.first and rated_texts.second are both {self.first!r}; name two columns.")
        if not 0 < self.equivalent_from <= self.highest_score:
            raise ValueError(
                f"rated_texts.equivalent_from is {self.equivalent_from:g}; it must be above 0 and at most "
                f"rated_texts.highest_score, {self.highest_score:g}."
            )


class RatedTexts(NamedTuple):
    """Pairs of texts, row by row."""

    first: list[str]
    second: list[str]
    scores: np.ndarray
    """float64, (pairs,)."""
    equivalent: np.ndarray
    """Whether a pair counts as paraphrases, bool, (pairs,)."""


def check_rated_texts(pairs: PairSet, settings: RatedTextSettings) -> None:
    """Check that the columns are there.

    Raises:
        ValueError: one is not; the message lists those there are.
    """
    for setting in ("first", "second", "score", "equivalent"):
        column = getattr(settings, setting)
        if column is not None:
            pairs.require_column(column, f"rated_texts.{setting}")


def rated_texts(pairs: PairSet, settings: RatedTextSettings) -> RatedTexts:
    """All pairs of a data set.

    Raises:
        ValueError: a row has an empty text, a score that is no number from 0 to the highest, or a label that is
            neither 0 nor 1; the message names the row, counted from 0 among those that `where` keeps.
    """
    places = [f"row {number} (the first is 0) of {pairs.settings.path}" for number in range(len(pairs))]
    first, second = (
        [_text(cell, column, place) for cell, place in zip(pairs.cells(column), places, strict=True)]
        for column in (settings.first, settings.second)
    )
    cells = zip(pairs.cells(settings.score), places, strict=True)
    scores = np.array([_score(cell, settings, place) for cell, place in cells])
    equivalent = scores >= settings.equivalent_from
    if settings.equivalent is not None:
        labels = zip(pairs.cells(settings.equivalent), places, strict=True)
        equivalent = np.array([_label(cell, settings.equivalent, place) for cell, place in labels])
    return RatedTexts(first, second, scores, equivalent)


def _text(cell: Any, column: str, place: str) -> str:
    if not isinstance(cell, str) or not cell.strip():
        raise ValueError(f"{place}: {column} is {cell!r}; a text that is not empty is needed. Leave the row out.")
    return cell


def _score(cell: Any, settings: RatedTextSettings, place: str) -> float:
    try:
        score = float(cell)
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= settings.highest_score:
        raise ValueError(
            f"{place}: {settings.score} is {cell!r}; a number from 0 to {settings.highest_score:g} is needed. Leave "
            "the row out, or set rated_texts.highest_score."
        )
    return score


def _label(cell: Any, column: str, place: str) -> bool:
    if cell not in (0, 1):
        raise ValueError(f"{place}: {column} is {cell!r}; 0 or 1 is needed.")
    return bool(cell)
