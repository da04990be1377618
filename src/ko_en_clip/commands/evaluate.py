"""`ko-en-clip evaluate`: a model and its peers on suites, to `results.json`, a table and a page."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..evaluation.embeddings import open_encoder
from ..evaluation.evaluation_report import short_names, write_evaluation_report
from ..evaluation.features import FeatureCache
from ..evaluation.image_classifiers import classify_suites, is_classifier, open_classifier
from ..evaluation.judging import Outcome, run_suites
from ..evaluation.metrics import SCHEMA_VERSION, Result, asked_of
from ..evaluation.published import Comparison, published_for
from ..evaluation.shifts import check_shifts, with_robustness
from ..evaluation.suites import SuiteSettings, load_suites
from ..evaluation.tasks.overlap import P_VALUE
from ..manifests import write_text

log = logging.getLogger(__name__)
# What processes wait for each other at most: shares of the pictures may be unequal after an interruption.
_PATIENCE = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Judge a model."""

    model: str
    """Folder or Hub id of a model of CLIP's kind, of transformers or sentence-transformers; or of a picture
    classifier, which is asked for its own classes."""
    suite: str | list[str]
    """Packaged suite or YAML file of one's own; or a list of them."""
    peers: list[str] = field(default_factory=list)
    """Other models, judged on the same pictures and texts, for the same table."""
    start: str | None = None
    """Model that the judged one was made from, as by fine-tuning, above which relative robustness is measured; it is a
    peer, named in `peers` or not."""
    override: list[str] = field(default_factory=list)
    """Fields of every suite to set otherwise, as in data.split=test, or of one, as in
    cifar10:data.path=pictures.parquet."""
    output_dir: str | None = None
    """Where results.json, evaluation.html and the features go; by default the model, which must then be a folder."""

    def __post_init__(self) -> None:
        if self.start == self.model:
            raise ValueError(f"start is {self.start!r}, the model itself; name the one that it was made from.")

    @property
    def suites(self) -> list[str]:
        """Names of the suites."""
        return self.suite if isinstance(self.suite, list) else [self.suite]

    @property
    def models(self) -> list[str]:
        """The judged model, its peers, and the one that it was made from."""
        return list(dict.fromkeys([self.model, *self.peers, *([] if self.start is None else [self.start])]))


def run(settings: EvaluateSettings) -> None:
    """Measure, print the table, and write `results.json` and `evaluation.html`.

    Several processes share the work; one that was interrupted goes on from the features that are there.
    """
    if settings.output_dir is None and not Path(settings.model).is_dir():
        raise ValueError(f"model is {settings.model!r}, not a folder here; set output_dir for results.json.")
    # Without being told, Accelerate takes processes on a machine with CPUs alone for unrelated ones.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_PATIENCE)
    suites = load_suites(settings.suites, settings.override)
    absent = check_shifts(suites, settings.start)
    _check_models(settings.models)
    folder = Path(settings.output_dir or settings.model)
    folder.mkdir(parents=True, exist_ok=True)
    if state.is_main_process:
        for sentence in absent:
            log.warning(sentence)
    found = {model: evaluate(model, suites, folder / "features") for model in settings.models}
    if state.is_main_process:
        found = with_robustness(found, settings.start)
        write_results(folder / "results.json", found, settings.start)
        write_evaluation_report(folder / "evaluation.html", found, settings.start)
        print(table({model: results_of(outcomes) for model, outcomes in found.items()}))
        if any(suite.overlap is not None for suite in suites):
            print("Intervals of accuracy and recall of overlap, and of its share, are of 99.5 % (Clopper-Pearson).")
        beside = published_for(results_of(found[settings.model]))
        if beside:
            print(f"\nPublished figures of the same kind, and {settings.model}'s:\n{published_table(beside)}")
        for outcome in found[settings.model]:
            _print_unreadable(outcome)
        print(f"Look at {folder / 'evaluation.html'}")


def evaluate(model: str, suites: Sequence[SuiteSettings], features: Path) -> list[Outcome]:
    """What a model does on each suite; features are kept in a folder."""
    if is_classifier(model):
        classifier = open_classifier(model)
        logits = FeatureCache(features, classifier.fingerprint())
        return classify_suites(classifier, suites, logits)
    encoder = open_encoder(model)
    cache = FeatureCache(features, encoder.fingerprint())
    return run_suites(encoder, suites, cache)


def _check_models(models: Sequence[str]) -> None:
    """Check that all models are there and of one kind, before any is judged."""
    kinds = {}
    for model in models:
        try:
            kinds[model] = is_classifier(model)
        except OSError as error:
            raise ValueError(f"model {model!r} cannot be opened: {error}") from error
    if len(set(kinds.values())) > 1:
        classifiers = [model for model, is_one in kinds.items() if is_one]
        raise ValueError(
            f"{', '.join(classifiers)} are picture classifiers and the other models are not, so that they cannot be "
            "asked the same; judge them apart."
        )


def results_of(outcomes: Sequence[Outcome]) -> list[Result]:
    """All figures."""
    return [result for outcome in outcomes for result in outcome.results]


def write_results(file: Path, found: Mapping[str, Sequence[Outcome]], start: str | None = None) -> None:
    """Write the figures as JSON (schema version 2).

    An object with `schema_version`, `model`, `suites`, `results` (a list of `Result`s), `unreadable` (pictures that
    were left out: suite, key, reason), `peers`: for each other model an object with `model`, `results` and
    `unreadable`, and `start`, the one of them above which relative robustness was measured, or null.

    Args:
        file: written aside and renamed.
        found: outcomes by model; the first is the one that is judged.
        start: the model that it was made from, where one was named.
    """
    judged, *peers = [_document(model, outcomes) for model, outcomes in found.items()]
    suites = [outcome.suite.name for outcome in next(iter(found.values()))]
    document = {"schema_version": SCHEMA_VERSION, "suites": suites, **judged, "peers": peers, "start": start}
    write_text(file, json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def _document(model: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "model": model,
        "results": [dataclasses.asdict(result) for result in results_of(outcomes)],
        "unreadable": [
            {"suite": outcome.suite.name, "key": error.key, "reason": error.reason}
            for outcome in outcomes
            for error in outcome.unreadable
        ],
    }


def published_table(beside: Sequence[Comparison]) -> str:
    """Published figures beside ours as aligned text, in percent."""
    rows = [["suite", "language", "slice", "metric", "%", "published", "model", "source"]]
    for each in beside:
        told = [each.ours.dataset, each.ours.language, each.ours.slice, each.ours.metric]
        figures = [f"{100 * each.ours.value:.1f}", f"{100 * each.theirs.value:.1f}"]
        rows.append([*told, *figures, each.theirs.model, each.theirs.source])
    return _aligned(rows)


def _print_unreadable(outcome: Outcome) -> None:
    if outcome.unreadable:
        print(f"{len(outcome.unreadable)} pictures of {outcome.suite.name} did not decode and were left out:")
        print("\n".join(f"  {error.key}: {error.reason}" for error in outcome.unreadable))


def table(found: Mapping[str, Sequence[Result]]) -> str:
    """The figures as aligned text, in percent, with their 95 % intervals; of several models side by side.

    Suites are named where there are several. Rows are the first model's; another that lacks such a figure has a dash.

    Raises:
        ValueError: the models were not asked the same.
    """
    named = {model: {_key(result): result for result in results} for model, results in found.items()}
    first, *others = named.values()
    if any(asked_of(other.values()) != asked_of(first.values()) for other in others):
        raise ValueError("the models' figures are of other tasks; judge them on the same suites.")
    several = len({key[0] for key in first}) > 1
    head = ["suite"] * several + ["task", "language", "slice", "metric"]
    for name in short_names(list(found)):
        head += ["%", "95 % interval"] if len(found) == 1 else [name, "95 % interval"]
    rows = [head + ["n"]]
    for key, result in first.items():
        row = list(key if several else key[1:])
        for results in named.values():
            found_too = results.get(key)
            row += ["-", "-"] if found_too is None else _in_percent(found_too)
        rows.append([*row, str(result.n)])
    return _aligned(rows)


def _in_percent(result: Result) -> list[str]:
    if result.metric.endswith(P_VALUE):
        # No percentage, and without an interval.
        return [f"p {result.value:.2g}", ""]
    return [f"{100 * result.value:.1f}", f"{100 * result.low:.1f} to {100 * result.high:.1f}"]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in (lines[0], "  ".join("-" * width for width in widths), *lines[1:]))


def _key(result: Result) -> tuple[str, ...]:
    return result.dataset, result.task, result.language, result.slice, result.metric
