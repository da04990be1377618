"""Bias probes: rates by group and language, and which occupations go with which gender."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..bias import LabelRates
from ..judging import Outcome
from ..metrics import Result
from ..suite_run import Association
from .words import language_name, p_value, percent

SHOWN_LABELS = 8
# What the page calls the figures, in its order.
_COLUMNS = {
    "crime_rate": "crime",
    "crime_rate_with_child": "crime, with child",
    "non_human_rate": "animal",
    "non_human_rate_with_child": "animal, with child",
    "gender_accuracy": "gender as labelled",
}


def biases_of(found: Sequence[Sequence[Outcome]], names: Sequence[str]) -> list[dict[str, Any]]:
    """A section a suite that asked for the probes.

    Args:
        found: outcomes of the models, all of the same suites.
        names: of the models.
    """
    return [
        {
            "name": outcomes[0].suite.name,
            "pictures": f"{_people(outcomes[0]):,}",
            "models": [_of_model(outcome, name) for outcome, name in zip(outcomes, names, strict=True)],
        }
        for outcomes in zip(*found, strict=True)
        if outcomes[0].suite.bias is not None
    ]


def _people(outcome: Outcome) -> int:
    return next(result.n for result in outcome.results if result.task == "bias" and result.slice == "all")


def _of_model(outcome: Outcome, name: str) -> dict[str, Any]:
    results = {
        (result.language, result.slice, result.metric): result for result in outcome.results if result.task == "bias"
    }
    languages = list(dict.fromkeys(language for language, _, _ in results))
    groups = sorted(dict.fromkeys(part for _, part, _ in results), key=_place_of_group)
    metrics = [metric for metric in _COLUMNS if (languages[0], "all", metric) in results]
    return {
        "name": name,
        "columns": [_COLUMNS[metric] for metric in metrics],
        "languages": [
            {
                "name": language_name(language),
                "rows": [_rates(results, language, group, metrics) for group in groups],
                "associations": [
                    _association(found) for found in outcome.findings.associations if found.language == language
                ],
            }
            for language in languages
        ],
    }


def _place_of_group(part: str) -> tuple[int, float, str]:
    """All first; then attributes as the settings have them, and groups of age by their first number."""
    attribute, _, name = part.partition("=")
    first = re.match(r"\d+", name)
    return ("all", "race", "gender", "age").index(attribute), float(first[0]) if first else math.inf, name


def _rates(
    results: Mapping[tuple[str, str, str], Result], language: str, group: str, metrics: Sequence[str]
) -> dict[str, Any]:
    """Figures of a group, each with its interval and with what it differs by from that of all other pictures."""
    attribute, _, name = group.partition("=")
    cells = []
    for metric in metrics:
        result, difference = results[language, group, metric], results.get((language, group, f"{metric}_difference"))
        interval = f"{percent(result.low)} to {percent(result.high)}"
        cells.append((percent(result.value), interval, _signed(difference) if difference else ""))
    return {
        "group": name or "all",
        "attribute": attribute if name else "",
        "n": f"{results[language, group, metrics[0]].n:,}",
        "cells": cells,
    }


def _signed(difference: Result) -> str:
    return f"{100 * difference.value:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"


def _association(found: Association) -> dict[str, Any]:
    shown = found.labels[:SHOWN_LABELS]
    return {
        "threshold": f"{100 * found.threshold:g} %",
        "genders": list(shown[0].rates),
        "labels": len(found.labels),
        "by_chance": round(0.05 * len(found.labels)),
        "rows": [_label(rates) for rates in shown],
    }


def _label(found: LabelRates) -> dict[str, Any]:
    return {
        "label": found.label,
        "rates": [(percent(value), f"{percent(low)} to {percent(high)}") for value, low, high in found.rates.values()],
        "p_value": p_value(found.p_value),
    }
