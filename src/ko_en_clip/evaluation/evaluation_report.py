"""The page of an evaluation as one HTML file: figures beside published ones, what was taken for what, and found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..manifests import write_text
from .judging import Outcome
from .metrics import asked_of
from .page.biases import biases_of
from .page.classifications import classifications_of
from .page.figures import COLOURS, charts_of, figure_table, mark_of, published_groups, sources_of
from .page.gaps import gaps_of
from .page.overlaps import overlaps_of
from .page.retrieved import answers_of, retrieved_of
from .page.robustness import robustness_of
from .page.words import key_of, language_name, place_of
from .published import published_for
from .report import render

SHOWN_UNREADABLE = 50


def write_evaluation_report(file: Path, found: Mapping[str, Sequence[Outcome]], start: str | None = None) -> None:
    """Write the page of `evaluation_page` to a file, aside first and then renamed."""
    write_text(file, evaluation_page(found, start))


def evaluation_page(found: Mapping[str, Sequence[Outcome]], start: str | None = None) -> str:
    """The page: one file, with nothing to fetch and nothing to run.

    The data sets are opened again for the pictures that are shown.

    Args:
        found: outcomes by model, all of the same suites; the first model is the one that is judged.
        start: the one of them that it was made from, where it was told.

    Raises:
        ValueError: the models were not asked the same.
        ModuleNotFoundError: matplotlib is absent.
    """
    names = short_names(list(found))
    judged = next(iter(found.values()))
    figures = [
        {key_of(result): result for outcome in outcomes for result in outcome.results} for outcomes in found.values()
    ]
    if any(asked_of(other.values()) != asked_of(figures[0].values()) for other in figures[1:]):
        raise ValueError("the models' figures are of other tasks; judge them on the same suites.")
    comparisons = published_for(list(figures[0].values()))
    return render(
        "evaluation.html.jinja",
        title=f"Evaluation: {names[0]}",
        subtitle=_summary(judged, names[1:]),
        models=[
            {"name": name, "path": path, "colour": COLOURS[number % len(COLOURS)]}
            for number, (name, path) in enumerate(zip(names, found, strict=True))
        ],
        suites=[_suite_row(outcome) for outcome in judged],
        tables=[table for outcome in judged if (table := figure_table(outcome, figures))["tasks"]],
        charts=charts_of(figures, names, comparisons),
        marked=sorted({mark for comparison in comparisons if (mark := mark_of(comparison))}),
        robustness=robustness_of(judged, figures, names, None if start is None else names[list(found).index(start)]),
        published=published_groups(comparisons),
        sources=list(sources_of(comparisons).items()),
        classifications=[section for outcome in judged for section in classifications_of(outcome)],
        retrieved=[section for outcome in judged for section in retrieved_of(outcome)],
        answers=[answers for outcome in judged if (answers := answers_of(outcome))],
        gaps=[gap for outcome in judged if (gap := gaps_of(outcome))],
        overlaps=overlaps_of(judged, names, figures),
        biases=biases_of(list(found.values()), names),
        unreadable=[_unreadable(outcome) for outcome in judged if outcome.unreadable],
        footer="Intervals are 95 % percentile bootstrap intervals over the items where nothing else is said. "
        "Everything but the published figures was computed from the pictures and texts of this evaluation.",
    )


def short_names(models: Sequence[str]) -> list[str]:
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
        "languages": ", ".join(map(language_name, sorted(outcome.suite.languages, key=place_of))),
    }


def _unreadable(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.suite.name,
        "num": len(outcome.unreadable),
        "rows": [{"key": error.key, "reason": error.reason} for error in outcome.unreadable[:SHOWN_UNREADABLE]],
    }
