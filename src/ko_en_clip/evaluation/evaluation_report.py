"""The page of an evaluation: its figures beside published ones, and what was taken for what, as one HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..data.pairs import open_pairs
from ..manifests import write_text
from .judging import Classification, Outcome
from .metrics import Result
from .published import Comparison, published_for
from .report import ACCENT, INK, new_figure, picture_uri, plain_axes, render, svg_of

# Beyond this many classes a matrix is too large to read, and the most frequent confusions are listed instead.
MATRIX_CLASSES = 30
CONFUSIONS = 15
WORST_CLASSES, WRONG_PICTURES = 5, 4
SHOWN_UNREADABLE = 50
_PICTURE_SIDE = 96
_COLOURS = (ACCENT, "#c2410c", "#0f766e", "#7c3aed", "#a16207", "#be185d")
# Published models that charts mark, by the beginning of their names, and the shape of the mark.
_MARKS = {"KELIP": "D", "CLIP": "^"}
# Korean first: tables and charts follow this order.
_LANGUAGES = {
    "ko": "Korean",
    "en": "English",
    "ko-en": "Korean - English",
    "en-ko": "English - Korean",
    "ko+en": "Korean with English names",
    "en+ko": "English with Korean names",
    "-": "none",
}

Key = tuple[str, str, str, str, str]


class Confusion(NamedTuple):
    """Pictures of one class that were taken for another."""

    truth: int
    told: int
    num: int
    share: float
    """Of the pictures of the true class."""


def write_evaluation_report(file: Path, found: Mapping[str, Sequence[Outcome]]) -> None:
    """Write the page of `evaluation_page` to a file, aside first and then renamed."""
    write_text(file, evaluation_page(found))


def evaluation_page(found: Mapping[str, Sequence[Outcome]]) -> str:
    """The page: one file, with nothing to fetch and nothing to run.

    The data sets are opened again for the pictures that were classified wrongly.

    Args:
        found: outcomes by model, all of the same suites; the first model is the one that is judged.

    Raises:
        ValueError: the models were not asked the same.
        ModuleNotFoundError: matplotlib is absent.
    """
    names = _short_names(list(found))
    judged = next(iter(found.values()))
    figures = [
        {key_of(result): result for outcome in outcomes for result in outcome.results} for outcomes in found.values()
    ]
    if any(other.keys() != figures[0].keys() for other in figures[1:]):
        raise ValueError("the models' figures are of other tasks; judge them on the same suites.")
    comparisons = published_for(list(figures[0].values()))
    return render(
        "evaluation.html.jinja",
        title=f"Evaluation: {names[0]}",
        subtitle=_summary(judged, names[1:]),
        models=[
            {"name": name, "path": path, "colour": _COLOURS[number % len(_COLOURS)]}
            for number, (name, path) in enumerate(zip(names, found, strict=True))
        ],
        suites=[_suite_row(outcome) for outcome in judged],
        tables=[_figure_table(outcome, figures) for outcome in judged if outcome.results],
        charts=_charts(figures, names, comparisons),
        marked=sorted({mark for comparison in comparisons if (mark := _mark_of(comparison))}),
        published=_published_groups(comparisons),
        sources=list(_sources(comparisons).items()),
        classifications=[section for outcome in judged for section in _classifications(outcome)],
        unreadable=[_unreadable(outcome) for outcome in judged if outcome.unreadable],
        footer="Intervals are 95 % percentile bootstrap intervals over the items. Everything was computed from the "
        "embeddings of this evaluation but for the published figures.",
    )


def key_of(result: Result) -> Key:
    """What tells a figure from the others of a model."""
    return result.dataset, result.task, result.language, result.slice, result.metric


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


def _short_names(models: Sequence[str]) -> list[str]:
    """Last parts of the models' paths, or all of them where two would have one name."""
    short = [Path(model).name or model for model in models]
    return short if len(set(short)) == len(short) else list(models)


def _summary(judged: Sequence[Outcome], peers: Sequence[str]) -> str:
    pictures = sum(len(outcome.rows) for outcome in judged if outcome.suite.data.image is not None)
    suites = ", ".join(outcome.suite.name for outcome in judged)
    return f"{suites}; {pictures:,} pictures" + (f"; beside {', '.join(peers)}." if peers else ".")


def _suite_row(outcome: Outcome) -> dict[str, str]:
    has_pictures = outcome.suite.data.image is not None
    return {
        "name": outcome.suite.name,
        "pictures": f"{len(outcome.rows):,}" if has_pictures else "none",
        "left_out": f"{len(outcome.unreadable):,}",
        "classes": f"{len(outcome.class_names):,}" if outcome.class_names else "none",
        "languages": ", ".join(map(language_name, sorted(outcome.suite.languages, key=_place))),
    }


def language_name(code: str) -> str:
    """What the page calls a language of results."""
    return _LANGUAGES.get(code, code)


def _place(code: str) -> int:
    """Where a language stands among others; those that the page has no name for come last."""
    order = list(_LANGUAGES)
    return order.index(code) if code in order else len(order)


def _task(name: str) -> str:
    return "zero-shot classification" if name == "zero_shot_classification" else name.replace("_", " ")


def _metric(name: str, part: str) -> str:
    return name.replace("_", " ") + (f", {part}" if part != "all" else "")


def _kind(result: Result) -> str:
    return f"{_task(result.task)}, {_metric(result.metric, result.slice)}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _figure_table(outcome: Outcome, figures: Sequence[Mapping[Key, Result]]) -> dict[str, Any]:
    """Figures of a suite by task and metric, each with a row a language, and the gap where both are there."""
    metrics: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for result in outcome.results:
        of_models = [found[key_of(result)] for found in figures]
        metrics.setdefault((result.task, _metric(result.metric, result.slice)), {})[result.language] = of_models
    tasks: dict[str, list[dict[str, Any]]] = {}
    for (task, what), languages in metrics.items():
        rows = tasks.setdefault(_task(task), [])
        rows += [
            {
                "what": what,
                "language": language_name(language),
                "n": f"{languages[language][0].n:,}",
                "cells": [
                    (_percent(r.value), f"{_percent(r.low)} to {_percent(r.high)}") for r in languages[language]
                ],
            }
            for language in sorted(languages, key=_place)
        ]
        if {"ko", "en"} <= languages.keys():
            both = zip(languages["ko"], languages["en"], strict=True)
            gaps = [f"{100 * (korean.value - english.value):+.1f}" for korean, english in both]
            rows.append({"what": what, "language": "Korean minus English", "cells": [(gap, "") for gap in gaps]})
    return {"name": outcome.suite.name, "tasks": tasks}


def _mark_of(comparison: Comparison) -> str | None:
    """Which of the marked families of models a published figure is of."""
    return next((mark for mark in _MARKS if comparison.theirs.model.startswith(f"{mark} ")), None)


def _is_drawn(result: Result) -> bool:
    if result.task == "zero_shot_classification":
        return result.slice == "all"
    return result.task == "retrieval" and result.metric.endswith("recall@1")


def _charts(
    figures: Sequence[Mapping[Key, Result]], names: Sequence[str], comparisons: Sequence[Comparison]
) -> list[dict[str, str]]:
    """Bars of zero-shot accuracy and of recall at 1, a chart a data set, with what they say in words."""
    marks: dict[Key, list[tuple[str, float]]] = {}
    for comparison in comparisons:
        if mark := _mark_of(comparison):
            marks.setdefault(key_of(comparison.ours), []).append((mark, comparison.theirs.value))
    groups: dict[tuple[str, str], list[Key]] = {}
    for key, result in figures[0].items():
        if _is_drawn(result):
            groups.setdefault((result.dataset, _kind(result)), []).append(key)
    charts = []
    for (dataset, kind), keys in groups.items():
        bars = {key: [found[key] for found in figures] for key in sorted(keys, key=lambda key: _place(key[2]))}
        said = "; ".join(
            f"{language_name(key[2])}: "
            + ", ".join(f"{name} {_percent(result.value)} %" for name, result in zip(names, results, strict=True))
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
            axes.barh(top + number, result.value, height=0.8, color=_COLOURS[number % len(_COLOURS)], alpha=0.8)
            axes.plot([result.low, result.high], [top + number] * 2, color=INK, linewidth=1.3)
            end = max(result.value, result.high)
            axes.annotate(
                _percent(result.value),
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


def _sources(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Note by source, in the order in which they are met."""
    return {comparison.theirs.source: comparison.theirs.note for comparison in comparisons}


def _published_groups(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Published figures under the figure of ours that they stand beside."""
    numbers = {source: number for number, source in enumerate(_sources(comparisons), start=1)}
    groups: dict[Key, list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault(key_of(comparison.ours), []).append(comparison)
    return [
        {
            "what": f"{found[0].ours.dataset}, {_kind(found[0].ours)}, {language_name(found[0].ours.language)}",
            "rows": [
                {
                    "model": comparison.theirs.model,
                    "theirs": _percent(comparison.theirs.value),
                    "ours": _percent(comparison.ours.value),
                    "difference": f"{100 * comparison.difference:+.1f}",
                    "source": numbers[comparison.theirs.source],
                }
                for comparison in found
            ],
        }
        for found in groups.values()
    ]


def _classifications(outcome: Outcome) -> list[dict[str, Any]]:
    """Confusions by language; none where a picture may be several things, which has no one class to be taken for."""
    sections = []
    for language, scored in sorted(outcome.classified.items(), key=lambda item: _place(item[0])):
        if scored.targets.dtype == torch.bool:
            continue
        labels = outcome.suite.labels
        names = outcome.class_names if labels is None else labels.names[language]
        counts = confusion_counts(scored)
        sections.append(
            {
                "title": f"{outcome.suite.name}, {language_name(language)}",
                "names": names,
                "matrix": _matrix(counts) if len(names) <= MATRIX_CLASSES else [],
                "confusions": [] if len(names) <= MATRIX_CLASSES else frequent_confusions(counts),
                "worst": [_worst(outcome, scored, counts, number) for number in worst_classes(counts)],
                "lang": language if labels is not None else None,
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
        "share": _percent(counts[number, number] / counts[number].sum()),
        "pictures": [
            {
                "uri": _thumbnail(pairs.picture(outcome.rows[int(scored.positions[item])])),
                "told": int(told[item]),
                "key": pairs.key(outcome.rows[int(scored.positions[item])]),
            }
            for item in chosen
        ],
    }


def _thumbnail(pixels: torch.Tensor) -> str:
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    return picture_uri(picture)


def _unreadable(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.suite.name,
        "num": len(outcome.unreadable),
        "rows": [{"key": error.key, "reason": error.reason} for error in outcome.unreadable[:SHOWN_UNREADABLE]],
    }
