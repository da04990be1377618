"""Accuracy under shift over accuracy in distribution, beside the line of models of standard training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..baselines import Baselines, load_baselines
from ..judging import Outcome
from ..metrics import Result
from ..report import INK, SOFT, new_figure, plain_axes, svg_of
from ..shifts import EFFECTIVE, IN_DISTRIBUTION, RELATIVE, TASK, check_shifts
from .figures import COLOURS
from .words import Key, language_name, percent, place_of

# Round percentages that an axis may have marks at, from few to many.
_TICKS = (
    (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9),
    *(tuple(step * number for number in range(1, math.ceil(100 / step))) for step in (5, 2, 1, 0.5, 0.1)),
)
_FEWEST_TICKS = 3
# Marks of languages, in the order of the page, and the signs that a legend has for them.
_MARKS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"))


def robustness_of(
    judged: Sequence[Outcome], figures: Sequence[Mapping[Key, Result]], names: Sequence[str], start: str | None
) -> dict[str, Any] | None:
    """The section's panels, tables and notes; none where no suite is a shifted form of another.

    Args:
        judged: outcomes of the judged model.
        figures: of each model, by what tells them apart.
        names: of the models.
        start: name of the model that the judged one was made from, where it was told.
    """
    shifted = [outcome for outcome in judged if outcome.suite.shift is not None]
    if not shifted:
        return None
    languages = sorted({key[2] for key in figures[0] if key[1] == TASK}, key=place_of)
    marks = {language: _MARKS[number % len(_MARKS)] for number, language in enumerate(languages)}
    tables = [
        _table(outcome, language, figures, names) for outcome in shifted for language in _languages(outcome, figures)
    ]
    return {
        "panels": [panel for outcome in shifted if (panel := _panel(outcome, figures, names, marks))],
        "marks": [(sign, language_name(language)) for language, (_, sign) in marks.items()],
        "tables": tables,
        "start": start,
        "notes": check_shifts([outcome.suite for outcome in judged]),
        "sources": sorted({table.source for outcome in shifted if (table := _baselines(outcome)) and table.source}),
    }


def _baselines(outcome: Outcome) -> Baselines | None:
    shift = outcome.suite.shift
    return None if shift is None or shift.baselines is None else load_baselines(shift.baselines)


def _languages(outcome: Outcome, figures: Sequence[Mapping[Key, Result]]) -> list[str]:
    """Those in which a suite has a figure of robustness."""
    found = {key[2] for key in figures[0] if key[:2] == (outcome.suite.name, TASK)}
    return sorted(found, key=place_of)


def _figure(outcome: Outcome, found: Mapping[Key, Result], language: str, metric: str) -> Result | None:
    return found.get((outcome.suite.name, TASK, language, "all", metric))


def _under_shift(outcome: Outcome, found: Mapping[Key, Result], language: str) -> Result:
    return found[outcome.suite.name, "zero_shot_classification", language, "all", "accuracy"]


def _table(
    outcome: Outcome, language: str, figures: Sequence[Mapping[Key, Result]], names: Sequence[str]
) -> dict[str, Any]:
    """Rows of the models, of one suite in one language."""
    assert outcome.suite.shift is not None
    reference = _figure(outcome, figures[0], language, IN_DISTRIBUTION)
    pictures = f"{_under_shift(outcome, figures[0], language).n:,} pictures"
    rows = []
    for name, found in zip(names, figures, strict=True):
        results = [
            _figure(outcome, found, language, IN_DISTRIBUTION),
            _under_shift(outcome, found, language),
            _figure(outcome, found, language, EFFECTIVE),
            _figure(outcome, found, language, RELATIVE),
        ]
        signs = ("", "", "+", "+")
        rows.append(
            {"name": name, "cells": [_cell(result, sign) for result, sign in zip(results, signs, strict=True)]}
        )
    return {
        "title": f"{outcome.suite.name}, {language_name(language)}",
        "pictures": pictures + (f"; {reference.n:,} of {outcome.suite.shift.of}" if reference else ""),
        "rows": rows,
    }


def _cell(result: Result | None, sign: str) -> tuple[str, str]:
    """A figure and its interval in percent; a dash where there is none."""
    if result is None:
        return "-", ""
    value, low, high = (f"{100 * number:{sign}.1f}" for number in (result.value, result.low, result.high))
    return value, f"{low} to {high}"


def _panel(
    outcome: Outcome,
    figures: Sequence[Mapping[Key, Result]],
    names: Sequence[str],
    marks: Mapping[str, tuple[str, str]],
) -> dict[str, str] | None:
    """One suite's models over its baselines; none where nothing is known in distribution."""
    assert outcome.suite.shift is not None
    points: list[tuple[int, str, Result, Result]] = []
    for number, found in enumerate(figures):
        for language in _languages(outcome, figures):
            reference = _figure(outcome, found, language, IN_DISTRIBUTION)
            if reference is not None:
                points.append((number, language, reference, _under_shift(outcome, found, language)))
    if not points:
        return None
    said = "; ".join(
        f"{names[number]}, {language_name(language)}: {percent(first.value)} % and {percent(second.value)} %"
        for number, language, first, second in points
    )
    name, of = outcome.suite.name, outcome.suite.shift.of
    return {
        "title": name,
        "note": f"beside {of}, on the same classes",
        "said": f"Accuracy on {of} and on {name}. {said}",
        "svg": _drawn(points, _baselines(outcome), marks, (of, name)),
    }


def _drawn(
    points: Sequence[tuple[int, str, Result, Result]],
    baselines: Baselines | None,
    marks: Mapping[str, tuple[str, str]],
    names: tuple[str, str],
) -> str:
    figure = new_figure(4.8, 4.2)
    axes = figure.add_subplot()
    known = baselines.models if baselines else []
    x_ends = [model.in_distribution for model in known] + [end for point in points for end in _ends(point[2])]
    y_ends = [model.under_shift for model in known] + [end for point in points for end in _ends(point[3])]
    if baselines:
        axes.plot(*zip(*(model[1:] for model in known), strict=True), "o", color=SOFT, markersize=4, alpha=0.7)
        # Close enough for a curve to look like one where axes are logits and the line is straight.
        across = _spread(x_ends)
        axes.plot(across, baselines.line.predict(across), color=SOFT, linewidth=1.4)
    both = _spread([*x_ends, *y_ends])
    axes.plot(both, both, color=SOFT, linewidth=1, linestyle="--")
    for number, language, first, second in points:
        colour = COLOURS[number % len(COLOURS)]
        (x_low, x, x_high), (y_low, y, y_high) = _ends(first), _ends(second)
        axes.plot([x_low, x_high], [y, y], color=colour, linewidth=1.2)
        axes.plot([x, x], [y_low, y_high], color=colour, linewidth=1.2)
        axes.plot(x, y, marks[language][0], color=colour, markeredgecolor="#fff", markersize=7, zorder=5)
    _logit_axis(axes, "x", x_ends)
    _logit_axis(axes, "y", y_ends)
    axes.set_xlabel(f"accuracy on {names[0]}", color=INK)
    axes.set_ylabel(f"accuracy on {names[1]}", color=INK)
    plain_axes(axes)
    axes.grid(axis="x", color="#eaecf0", linewidth=0.8)
    return svg_of(figure)


def _ends(result: Result) -> tuple[float, float, float]:
    """Low end, value and high end, half an item inwards where one has no logit."""
    half_item = 0.5 / result.n
    low, value, high = (
        min(max(number, half_item), 1 - half_item) for number in (result.low, result.value, result.high)
    )
    return low, value, high


def _spread(ends: Sequence[float]) -> np.ndarray:
    """Accuracies from the lowest to the highest and a little beyond, evenly on a scale of logits."""
    low, high = (np.log(end / (1 - end)) for end in (min(ends), max(ends)))
    beyond = 0.06 * (high - low) + 0.1
    return 1 / (1 + np.exp(-np.linspace(low - beyond, high + beyond, 100)))


def _logit_axis(axes: Any, name: str, ends: Sequence[float]) -> None:
    """Set a scale of logits up, with round percentages inside its ends."""
    from matplotlib.ticker import FixedLocator, NullLocator

    reach = _spread(ends)
    low, high = float(reach[0]), float(reach[-1])
    choices = [[tick / 100 for tick in ticks if low <= tick / 100 <= high] for ticks in _TICKS]
    inside = next((ticks for ticks in choices if len(ticks) >= _FEWEST_TICKS), choices[-1])
    getattr(axes, f"set_{name}scale")("logit")
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(FixedLocator(inside))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    getattr(axes, f"set_{name}lim")(low, high)
