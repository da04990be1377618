"""What was taken for what: confusions, and the worst classes with pictures."""

from typing import Any, NamedTuple

import numpy as np
import torch

from ...data.pairs import open_pairs
from ..judging import Outcome
from ..report import INK
from ..suite_run import Classification
from .pictures import thumbnail
from .words import language_name, percent, place_of

# Beyond this many classes a matrix is too large to read, and the most frequent confusions are listed instead.
MATRIX_CLASSES = 30
CONFUSIONS = 15
WORST_CLASSES, WRONG_PICTURES = 5, 4


class Confusion(NamedTuple):
    """Pictures of one class that were taken for another."""

    truth: int
    told: int
    num: int
    share: float
    """Of the pictures of the true class."""


def confusion_counts(scored: Classification) -> np.ndarray:
    """Number of pictures by true class (rows) and by the class with the highest score (columns), int64."""
    num_classes = scored.scores.shape[1]
    pairs = scored.targets * num_classes + scored.scores.argmax(dim=1)
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).numpy()


def frequent_confusions(counts: np.ndarray, limit: int = CONFUSIONS) -> list[Confusion]:
    """The off-diagonal cells with most pictures, the fullest first; empty ones are left out.

    Args:
        counts: of `confusion_counts`.
        limit: how many at most.
    """
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    cells = [divmod(int(cell), len(counts)) for cell in order]
    return [
        Confusion(truth, told, int(wrong[truth, told]), float(wrong[truth, told] / counts[truth].sum()))
        for truth, told in cells
        if wrong[truth, told]
    ]


def worst_classes(counts: np.ndarray, limit: int = WORST_CLASSES) -> list[int]:
    """Classes with the least share of their pictures right, the worst first; those without a mistake are left out.

    Args:
        counts: of `confusion_counts`.
        limit: how many at most.
    """
    totals, right = counts.sum(axis=1), counts.diagonal()
    mistaken = [number for number in range(len(counts)) if right[number] < totals[number]]
    return sorted(mistaken, key=lambda number: right[number] / totals[number])[:limit]


def classifications_of(outcome: Outcome) -> list[dict[str, Any]]:
    """Confusions by language; none where a picture may be several things, which has no one class to be taken for."""
    sections = []
    for language, scored in sorted(outcome.classified.items(), key=lambda item: place_of(item[0])):
        if scored.targets.dtype == torch.bool:
            continue
        labels = outcome.suite.labels
        # A classifier speaks no language; its classes are called as the suite calls them first.
        spoken = language if labels is None or language in labels.names else next(iter(labels.names))
        names = outcome.class_names if labels is None else labels.names[spoken]
        counts = confusion_counts(scored)
        sections.append(
            {
                "title": f"{outcome.suite.name}, {language_name(language)}" if language != "-" else outcome.suite.name,
                "names": names,
                "matrix": _matrix(counts) if len(names) <= MATRIX_CLASSES else [],
                "confusions": [] if len(names) <= MATRIX_CLASSES else frequent_confusions(counts),
                "worst": [_worst(outcome, scored, counts, number) for number in worst_classes(counts)],
                "lang": spoken if labels is not None else None,
            }
        )
    return sections


def _matrix(counts: np.ndarray) -> list[dict[str, Any]]:
    """Rows of cells: share of the row's pictures in percent, blue where right and red where wrong."""
    rows = []
    for truth, row in enumerate(counts.tolist()):
        total = sum(row)
        cells = []
        for told, num in enumerate(row):
            share = num / total if total else 0.0
            colour = "29, 78, 216" if told == truth else "180, 35, 24"
            cells.append(
                {
                    "text": f"{100 * share:.0f}" if num else "",
                    "background": f"rgba({colour}, {0.06 + 0.84 * share:.2f})" if num else "transparent",
                    "ink": "#fff" if share > 0.55 else INK,
                }
            )
        rows.append({"n": total, "cells": cells})
    return rows


def _worst(outcome: Outcome, scored: Classification, counts: np.ndarray, number: int) -> dict[str, Any]:
    """A class with the pictures of it that were furthest from right: that missed it by most."""
    told = scored.scores.argmax(dim=1)
    wrong = ((scored.targets == number) & (told != number)).nonzero().flatten()
    missed_by = scored.scores[wrong].max(dim=1).values - scored.scores[wrong, number]
    chosen = wrong[missed_by.argsort(descending=True, stable=True)][:WRONG_PICTURES].tolist()
    pairs = open_pairs(outcome.suite.data)
    return {
        "number": number,
        "right": int(counts[number, number]),
        "n": int(counts[number].sum()),
        "share": percent(counts[number, number] / counts[number].sum()),
        "pictures": [
            {
                "uri": thumbnail(pairs.picture(outcome.rows[int(scored.positions[item])])),
                "told": int(told[item]),
                "key": pairs.key(outcome.rows[int(scored.positions[item])]),
            }
            for item in chosen
        ],
    }
