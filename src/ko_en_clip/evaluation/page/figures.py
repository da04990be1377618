"""Tables and bars of figures, ours beside published ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..judging import Outcome
from ..metrics import Result
from ..published import Comparison
from ..report import ACCENT, INK, new_figure, plain_axes, svg_of
from ..shifts import TASK as ROBUSTNESS
from .probes import labels_worth
from .words import Key, key_of, kind_of, language_name, metric_name, percent, place_of, task_name

COLOURS = (ACCENT, "#c2410c", "#0f766e", "#7c3aed", "#a16207", "#be185d")
# Published models that charts mark, by the beginning of their names, and the shape of the mark.
_MARKS = {"KELIP": "D", "CLIP": "^"}

# Tasks whose figures stand in sections of their own.
_ELSEWHERE = {ROBUSTNESS, "overlap", "bias"}


def figure_table(outcome: Outcome, figures: Sequence[Mapping[Key, Result]]) -> dict[str, Any]:
    """Figures of a suite by task and metric, each with a row a language, and the gap where both are there.

    Tasks with a section of their own are left out.
    """
    metrics: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for result in outcome.results:
        if result.task in _ELSEWHERE:
            continue
        of_models = [found[key_of(result)] for found in figures]
        metrics.setdefault((result.task, metric_name(result.metric, result.slice)), {})[result.language] = of_models
    tasks: dict[str, list[dict[str, Any]]] = {}
    for (task, what), languages in metrics.items():
        rows = tasks.setdefault(task_name(task), [])
        rows += [
            {
                "what": what,
                "language": language_name(language),
                "n": f"{languages[language][0].n:,}",
                "cells": [(percent(r.value), f"{percent(r.low)} to {percent(r.high)}") for r in languages[language]],
            }
            for language in sorted(languages, key=place_of)
        ]
        if {"ko", "en"} <= languages.keys():
            both = zip(languages["ko"], languages["en"], strict=True)
            gaps = [f"{100 * (korean.value - english.value):+.1f}" for korean, english in both]
            rows.append({"what": what, "language": "Korean minus English", "cells": [(gap, "") for gap in gaps]})
    return {"name": outcome.suite.name, "tasks": tasks, "worth": labels_worth(outcome)}


def mark_of(comparison: Comparison) -> str | None:
    """Which of the marked families of models a published figure is of."""
    return next((mark for mark in _MARKS if comparison.theirs.model.startswith(f"{mark} ")), None)


def _is_drawn(result: Result) -> bool:
    if result.task == "zero_shot_classification":
        return result.slice == "all"
    return result.task == "retrieval" and result.metric.endswith("recall@1")


def charts_of(
    figures: Sequence[Mapping[Key, Result]], names: Sequence[str], comparisons: Sequence[Comparison]
) -> list[dict[str, str]]:
    """Bars of zero-shot accuracy and of recall at 1, a chart a data set, with what they say in words."""
    marks: dict[Key, list[tuple[str, float]]] = {}
    for comparison in comparisons:
        if mark := mark_of(comparison):
            marks.setdefault(key_of(comparison.ours), []).append((mark, comparison.theirs.value))
    groups: dict[tuple[str, str], list[Key]] = {}
    for key, result in figures[0].items():
        if _is_drawn(result):
            groups.setdefault((result.dataset, kind_of(result)), []).append(key)
    charts = []
    for (dataset, kind), keys in groups.items():
        bars = {key: [found[key] for found in figures] for key in sorted(keys, key=lambda key: place_of(key[2]))}
        said = "; ".join(
            f"{language_name(key[2])}: "
            + ", ".join(f"{name} {percent(result.value)} %" for name, result in zip(names, results, strict=True))
            for key, results in bars.items()
        )
        charts.append(
            {"title": dataset, "note": kind, "said": f"{dataset}, {kind}. {said}", "svg": _bars(bars, marks)}
        )
    return charts


def _bars(bars: Mapping[Key, Sequence[Result]], marks: Mapping[Key, Sequence[tuple[str, float]]]) -> str:
    """Bars of the models by language, from the top down, with intervals and the marks of published figures."""
    num_bars = sum(len(results) for results in bars.values())
    figure = new_figure(4.8, 0.75 + 0.27 * num_bars + 0.22 * len(bars))
    axes = figure.add_subplot()
    ticks, top = [], 0.0
    for key, results in bars.items():
        for number, result in enumerate(results):
            axes.barh(top + number, result.value, height=0.8, color=COLOURS[number % len(COLOURS)], alpha=0.8)
            axes.plot([result.low, result.high], [top + number] * 2, color=INK, linewidth=1.3)
            end = max(result.value, result.high)
            axes.annotate(
                percent(result.value),
                (end, top + number),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        # In a line of their own, where they hide no number.
        for mark, value in marks.get(key, ()):
            axes.plot(
                value,
                top + len(results) - 0.2,
                _MARKS[mark],
                color=INK,
                markerfacecolor="#fff",
                markersize=6,
                clip_on=False,
            )
        ticks.append((top + (len(results) - 1) / 2, language_name(key[2])))
        top += len(results) + 0.8
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    axes.set_ylim(top - 0.6, -0.6)
    axes.set_xlim(left=0)
    axes.margins(x=0.12)
    axes.locator_params("x", nbins=5)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    plain_axes(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params("y", length=0)
    return svg_of(figure)


def sources_of(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Note by source, in the order in which they are met."""
    return {comparison.theirs.source: comparison.theirs.note for comparison in comparisons}


def published_groups(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Published figures under the figure of ours that they stand beside."""
    numbers = {source: number for number, source in enumerate(sources_of(comparisons), start=1)}
    groups: dict[Key, list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault(key_of(comparison.ours), []).append(comparison)
    return [
        {
            "what": f"{found[0].ours.dataset}, {kind_of(found[0].ours)}, {language_name(found[0].ours.language)}",
            "rows": [
                {
                    "model": comparison.theirs.model,
                    "theirs": percent(comparison.theirs.value),
                    "ours": percent(comparison.ours.value),
                    "difference": f"{100 * comparison.difference:+.1f}",
                    "source": numbers[comparison.theirs.source],
                }
                for comparison in found
            ],
        }
        for found in groups.values()
    ]
