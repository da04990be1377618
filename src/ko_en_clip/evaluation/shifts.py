"""Robustness of whole evaluations: suites that are shifted forms of others, once all of them have been run."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from .baselines import load_baselines
from .judging import Outcome
from .metrics import Result, measure
from .robustness import effective_robustness, relative_robustness
from .suite_run import Classification
from .suites import SuiteSettings

TASK = "robustness"
IN_DISTRIBUTION, EFFECTIVE, RELATIVE = "accuracy_in_distribution", "effective_robustness", "relative_robustness"


def check_shifts(suites: Sequence[SuiteSettings], start: str | None = None) -> list[str]:
    """Check that suites fit those that they are shifted forms of, before anything is measured.

    Args:
        suites: of one evaluation.
        start: as in `with_robustness`.

    Returns:
        What will not be given for want of the other suite or of baselines, in sentences.

    Raises:
        FileNotFoundError: there is no such table of baselines.
        ValueError: the suite in distribution does not count accuracy over the classes that are named, or a table of
            baselines is not right; or there is a start, and no suite is a shifted form.
    """
    if start is not None and all(suite.shift is None for suite in suites):
        raise ValueError(
            f"start is {start!r}, for robustness above it, and no suite is a shifted form of another (shift); leave "
            "it out, or name it in peers."
        )
    by_name = {suite.name: suite for suite in suites}
    absent = []
    for suite in suites:
        if suite.shift is None:
            continue
        if suite.shift.baselines is None:
            absent.append(f"{suite.name} has no baselines (shift.baselines), so no effective robustness.")
        else:
            load_baselines(suite.shift.baselines)
        if suite.shift.of in by_name:
            _check_classes(suite, by_name[suite.shift.of])
        else:
            absent.append(
                f"{suite.name} is a shifted form of {suite.shift.of}, which is not judged here, so it has no "
                f"effective robustness; add {suite.shift.of} to suite."
            )
    return absent


def _check_classes(suite: SuiteSettings, other: SuiteSettings) -> None:
    assert suite.shift is not None and suite.labels is not None
    if other is suite or not other.counts_accuracy or other.labels is None:
        raise ValueError(
            f"shift.of of {suite.name} is {other.name!r}; it needs another suite, which counts the accuracy of "
            "zero_shot_classification over labels."
        )
    known = other.labels.num_classes
    beyond = [number for number in suite.shift.classes if not 0 <= number < known]
    if beyond:
        raise ValueError(f"shift.classes of {suite.name} has {beyond[:5]}; {other.name} has classes 0 to {known - 1}.")
    if not suite.shift.classes and suite.labels.num_classes != known:
        raise ValueError(
            f"{suite.name} has {suite.labels.num_classes} classes and {other.name}, which it is a shifted form of, "
            f"{known}; name those that both have in shift.classes, by their numbers in {other.name}."
        )


def with_robustness(found: Mapping[str, Sequence[Outcome]], start: str | None = None) -> dict[str, list[Outcome]]:
    """Outcomes, with figures of robustness among the results of those suites that are shifted forms of others.

    In each language: `accuracy_in_distribution`, that on the other suite's pictures of the same classes, among those
    classes alone; `effective_robustness`, by how much the accuracy under shift is above what the baselines' line
    expects of it; `relative_robustness`, by how much it is above that of the model one started from.

    Args:
        found: outcomes by model, all of the same suites.
        start: the model that the judged one was made from, if its figures are to be given; one of those found.

    Raises:
        ValueError: no picture in distribution is of the classes under shift.

    Reference:
        Taori et al. 2020, section 2. That logits are restricted to the shifted set's classes in distribution too is in
        their code, src/eval_settings/imagenet_r.py of github.com/modestyachts/imagenet-testbed
        (val-on-imagenet-r-classes).
    """
    started = None if start is None else {outcome.suite.name: outcome for outcome in found[start]}
    return {
        model: [
            dataclasses.replace(outcome, results=[*outcome.results, *_robustness(outcome, outcomes, started)])
            for outcome in outcomes
        ]
        for model, outcomes in found.items()
    }


def _robustness(
    outcome: Outcome, outcomes: Sequence[Outcome], started: Mapping[str, Outcome] | None
) -> Iterator[Result]:
    """Figures of one suite; none where it is no shifted form."""
    shift = outcome.suite.shift
    if shift is None:
        return
    unshifted = next((other for other in outcomes if other.suite.name == shift.of), None)
    line = None if shift.baselines is None else load_baselines(shift.baselines).line
    for language, scored in outcome.classified.items():
        hits = restricted_hits(scored, [])
        if unshifted is not None and language in unshifted.classified:
            reference = restricted_hits(unshifted.classified[language], shift.classes)
            if not reference.size:
                raise ValueError(f"no picture of {shift.of} is of the classes that {outcome.suite.name} has.")
            yield _result(outcome, language, IN_DISTRIBUTION, measure(reference), reference.size)
            if line is not None:
                yield _result(outcome, language, EFFECTIVE, effective_robustness(line, reference, hits), hits.size)
        if started is not None:
            before = restricted_hits(started[outcome.suite.name].classified[language], [])
            yield _result(outcome, language, RELATIVE, relative_robustness(hits, before), hits.size)


def restricted_hits(scored: Classification, classes: Sequence[int]) -> np.ndarray:
    """Which pictures of some classes are right when they are classified among those classes alone.

    Args:
        scored: one class a picture.
        classes: numbers of the classes; none for all.

    Returns:
        bool, (pictures of the classes,).
    """
    chosen = torch.tensor(classes) if classes else torch.arange(scored.scores.shape[1])
    places = torch.full((scored.scores.shape[1],), -1)
    places[chosen] = torch.arange(len(chosen))
    targets = places[scored.targets]
    kept = targets >= 0
    return (scored.scores[kept][:, chosen].argmax(dim=1) == targets[kept]).numpy()


def _result(outcome: Outcome, language: str, metric: str, figures: tuple[float, float, float], n: int) -> Result:
    value, low, high = figures
    return Result(
        task=TASK,
        dataset=outcome.suite.name,
        language=language,
        slice="all",
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=n,
    )
