"""Linear and few-shot probes of frozen features, taken before the projection (Radford et al. 2021)."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from .labelled_rows import Rows, check_classes, labelled_rows

# Strengths are numbered in eighths of a decade, from 1e-6 to 1e6: 96 steps. Whole numbers, so that no strength is
# tried twice for a difference in its last bit.
_STEPS_PER_DECADE = 8
_LAST_STEP = 6 * _STEPS_PER_DECADE
_COARSE_STEP = 2 * _STEPS_PER_DECADE
_MAX_TRIALS = 15
_MAX_ITERATIONS = 1000
# Of the training rows, where no validation rows are given. Our choice; the paper does not say how much it took.
_VALIDATION_SHARE = 0.2
# 1 / 0.316: the published example of CLIP's linear probe (README of openai/CLIP) sets C to 0.316.
_STRENGTH_OF_ONE_SHOT = 10**0.5


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """What a linear classifier of frozen features finds, and how strongly it was regularised."""

    predictions: np.ndarray
    """Class number of each test row, int64, (test rows,)."""
    hits: np.ndarray
    """Whether it is the right one, bool, (test rows,)."""
    strength: float
    """L2 strength lambda of the final fit; scikit-learn's C is 1 / lambda."""
    scores: Mapping[float, float]
    """Accuracy on the validation rows of every strength that was tried, weakest first; empty if none was searched."""
    converged: bool
    """Whether the final fit ended before its 1,000 iterations did."""


@dataclass(frozen=True, kw_only=True)
class LabelsPerClass:
    """How many labelled pictures a class a zero-shot classifier is worth."""

    relation: Literal["=", "<", ">"]
    """Whether it is worth as many as `labels`, fewer, or more."""
    labels: float
    """Pictures a class."""


def linear_probe(
    train_features: torch.Tensor | np.ndarray,
    train_labels: torch.Tensor | np.ndarray,
    test_features: torch.Tensor | np.ndarray,
    test_labels: torch.Tensor | np.ndarray,
    *,
    validation: tuple[torch.Tensor | np.ndarray, torch.Tensor | np.ndarray] | None = None,
    seed: int = 0,
) -> LinearProbe:
    """Predictions of a logistic regression whose L2 strength was chosen on validation rows.

    scikit-learn's LogisticRegression with L-BFGS, at most 1,000 iterations and its defaults otherwise. It minimises

        1/2 |W|^2 + C * (sum over the rows of the cross-entropy)

    without a penalty on the intercept. Divided by C, that is the summed cross-entropy plus lambda/2 |W|^2 with
    lambda = 1 / C, which is what `strength` means here. The paper speaks of an L2 strength lambda and of scikit-learn,
    but does not write its objective down; one of its authors speaks of "lambda (or C)" (openai/CLIP issue 39). Under
    either reading the search runs over the same classifiers, because the inverse of the range 1e-6..1e6 is that range.
    The readings differ in two things only: in which of two equally good strengths is taken, and in the name of the one
    that is reported. A lambda beside the mean of the cross-entropy would be 1 / (C * rows) and would cover another
    range. Because the objective is a sum, the same lambda weighs less in the final fit than in the search, whose rows
    are fewer. With two classes scikit-learn fits one vector in place of two.

    Args:
        train_features: (training rows, dimensions), of CLIP's ViT those before the projection.
        train_labels: class numbers from 0, integers.
        test_features: (test rows, dimensions).
        test_labels: class numbers, each of which a training row has.
        validation: features and labels on which strengths are compared. Without it a fifth of every class of the
            training rows is. The final fit is on training and validation rows together either way.
        seed: of the draw of that fifth.

    Raises:
        ValueError: features are not finite, do not fit their labels or each other; there is only one class; or a test
            or validation label is of no training row.
        ModuleNotFoundError: scikit-learn is absent.

    Reference:
        Radford et al. 2021, appendix A.3. Deviations: features are fitted in float64, because float32 may end L-BFGS
        before the minimum; the strength is chosen by accuracy whatever the data set's own metric is.
    """
    train, test = (
        labelled_rows("training", train_features, train_labels),
        labelled_rows("test", test_features, test_labels),
    )
    check_classes(train, test, "test")
    if validation is None:
        held_out = _held_out(train.labels, seed)
        fitted, judged = train.part(~held_out), train.part(held_out)
    else:
        fitted, judged = train, labelled_rows("validation", *validation)
        check_classes(fitted, judged, "validation")
        train = Rows(np.concatenate([fitted.features, judged.features]), np.append(fitted.labels, judged.labels))
    return _probe(train, test, *_searched(fitted, judged))


def search_strength(score: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """The best strength of 97 from 1e-6 to 1e6, eight to a decade, and the scores of those tried, weakest first.

    Seven strengths two decades apart come first; then the neighbours of the best one at half the distance, until the
    distance is an eighth of a decade. That is 15 trials at most, each strength once. It is the best of all 97 if the
    score rises up to one peak and falls after it; otherwise it is the best of those tried. Of equally good ones the
    middle one is taken (of an even number, the stronger of the two in the middle): few validation rows leave a plateau
    of equal scores, and its ends are next to strengths that were found worse. The rule is ours; the paper has none.

    Args:
        score: larger is better.

    Reference:
        Radford et al. 2021, appendix A.3: 96 logarithmic steps, searched by halving the interval around the peak.
    """
    scores: dict[int, float] = {}

    def best_of(steps: Iterable[int]) -> int:
        for step in steps:
            if abs(step) <= _LAST_STEP and step not in scores:
                scores[step] = score(_strength(step))
                bar.update()
        best = max(scores.values())
        equals = sorted(step for step in scores if scores[step] == best)
        return equals[len(equals) // 2]

    with tqdm(total=_MAX_TRIALS, desc="strengths", unit="fit", leave=False) as bar:
        distance = _COARSE_STEP
        best = best_of(range(-_LAST_STEP, _LAST_STEP + 1, distance))
        while distance > 1:
            distance //= 2
            best = best_of((best - distance, best + distance))
    return _strength(best), {_strength(step): scores[step] for step in sorted(scores)}


def few_shot(
    train_features: torch.Tensor | np.ndarray,
    train_labels: torch.Tensor | np.ndarray,
    test_features: torch.Tensor | np.ndarray,
    test_labels: torch.Tensor | np.ndarray,
    *,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    seeds: Sequence[int] = (0, 1, 2),
    validation: tuple[torch.Tensor | np.ndarray, torch.Tensor | np.ndarray] | None = None,
) -> dict[int, list[LinearProbe]]:
    """Linear probes of a few training rows a class: for every number of shots, one probe a seed.

    The mean of their hits over the seeds is what `metrics.measure` takes: one number a test row. Its interval is over
    test rows; how far draws differ is seen in the probes of the seeds.

    The strength is searched on the validation rows if they are given. That is what the paper did, with the validation
    rows of the whole data set (openai/CLIP issue 128), so that its strength has seen more labels than the shots.
    Without them, which is our choice, everything comes from the drawn rows: a fifth of them, one a class at least, is
    held out for the search and joined again for the final fit. One row a class leaves nothing to hold out; its
    strength is then that of CLIP's published example, C = 0.316.

    Args:
        train_features: (training rows, dimensions).
        train_labels: class numbers from 0, integers.
        test_features: (test rows, dimensions).
        test_labels: class numbers, each of which a training row has.
        shots: training rows a class.
        seeds: of the draws, see `few_shot_rows`.
        validation: features and labels on which strengths are compared; never fitted.

    Raises:
        ValueError: as `linear_probe`; or a class has fewer rows than the largest number of shots. Leaving that class
            or that number out would compare accuracies on different tasks under one name.
        ModuleNotFoundError: scikit-learn is absent.

    Reference:
        Radford et al. 2021, section 3.1.5 (figure 6): 1, 2, 4, 8 and 16 shots on data sets whose classes have 16
        rows at least.
    """
    train, test = (
        labelled_rows("training", train_features, train_labels),
        labelled_rows("test", test_features, test_labels),
    )
    check_classes(train, test, "test")
    judged = None if validation is None else labelled_rows("validation", *validation)
    if judged is not None:
        check_classes(train, judged, "validation")
    _check_shots(train.labels, shots)
    draws = tqdm([(num, seed) for num in shots for seed in seeds], desc="few-shot", unit="probe", leave=False)
    probes: dict[int, list[LinearProbe]] = {num: [] for num in shots}
    for num, seed in draws:
        drawn = train.part(few_shot_rows(train.labels, num, seed))
        if judged is not None:
            probe = _probe(drawn, test, *_searched(drawn, judged))
        elif num == 1:
            probe = _probe(drawn, test, _STRENGTH_OF_ONE_SHOT, {})
        else:
            probe = linear_probe(*drawn, *test, seed=seed)
        probes[num].append(probe)
    return probes


def few_shot_rows(labels: torch.Tensor | np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Numbers of the rows drawn, `shots` of every class without replacement, in rising order.

    The draws of one seed are nested: those of fewer shots are among those of more.

    Raises:
        ValueError: a class has fewer rows.
    """
    labels = np.asarray(labels)
    _check_shots(labels, [shots])
    return np.flatnonzero(_places_in_class(labels, seed) < shots)


def labels_per_class(accuracies: Mapping[float, float], zero_shot: float) -> LabelsPerClass:
    """How many labels a class a linear probe needs for the accuracy of a zero-shot classifier.

    Between two measured numbers of labels accuracy is taken as linear in the logarithm of that number. If the curve
    crosses the zero-shot accuracy more than once, the first crossing counts. Outside the measured numbers nothing is
    extrapolated: the answer is then "<" the smallest or ">" the largest of them.

    Args:
        accuracies: by labels a class; the probe of the whole training set may be among them.
        zero_shot: accuracy on the same test rows.

    Raises:
        ValueError: there is no accuracy, one is no fraction, or a number of labels is not positive.

    Example:
        Half-way between 0.5 and 0.7 lies half-way between 2 and 8 on a logarithmic scale.

        >>> labels_per_class({2: 0.5, 8: 0.7}, 0.6)
        LabelsPerClass(relation='=', labels=4.0)

    Reference:
        Radford et al. 2021, section 3.1.5 (figure 7), where the probe of all training rows ends the curve.
    """
    curve = sorted(accuracies.items())
    if not curve or curve[0][0] <= 0:
        raise ValueError(
            f"labels per class are {list(accuracies)}; give the accuracy of one positive number at least."
        )
    if not all(0 <= accuracy <= 1 for accuracy in (zero_shot, *accuracies.values())):
        raise ValueError(f"accuracies are {zero_shot} and {dict(accuracies)}; give fractions, 0.5 for 50%.")
    if zero_shot < curve[0][1]:
        return LabelsPerClass(relation="<", labels=curve[0][0])
    if zero_shot == curve[0][1]:
        return LabelsPerClass(relation="=", labels=curve[0][0])
    for (fewer, low), (more, high) in pairwise(curve):
        if zero_shot <= high:
            share = (zero_shot - low) / (high - low)
            return LabelsPerClass(relation="=", labels=2 ** (math.log2(fewer) + share * math.log2(more / fewer)))
    return LabelsPerClass(relation=">", labels=curve[-1][0])


def _strength(step: int) -> float:
    return float(10.0 ** (step / _STEPS_PER_DECADE))


def _searched(fitted: Rows, judged: Rows) -> tuple[float, dict[float, float]]:
    def accuracy(strength: float) -> float:
        classifier, _ = _fit(fitted, strength)
        return float((classifier.predict(judged.features) == judged.labels).mean())

    return search_strength(accuracy)


def _probe(train: Rows, test: Rows, strength: float, scores: Mapping[float, float]) -> LinearProbe:
    classifier, converged = _fit(train, strength)
    predictions = classifier.predict(test.features)
    return LinearProbe(
        predictions=predictions,
        hits=predictions == test.labels,
        strength=strength,
        scores=scores,
        converged=converged,
    )


def _fit(rows: Rows, strength: float) -> tuple[Any, bool]:
    """A fitted LogisticRegression, and whether L-BFGS converged."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "linear probes are fitted by scikit-learn; install it with: pip install 'ko_en_clip[eval]'"
        ) from error
    classifier = LogisticRegression(solver="lbfgs", C=1 / strength, max_iter=_MAX_ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        classifier.fit(rows.features.astype(np.float64), rows.labels)
    converged = True
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            # A fit that was cut off is an answer of the paper's procedure, which has the same limit.
            converged = False
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return classifier, converged


def _held_out(labels: np.ndarray, seed: int) -> np.ndarray:
    """Which rows are for validation, bool, (rows,): a share of every class, but never the only row of one."""
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if counts.max() < 2:
        raise ValueError(
            f"none of the {len(classes)} classes has two training rows, so that none can be held out for choosing the "
            "strength; give `validation` rows, or more training rows."
        )
    shares = np.where(counts < 2, 0, np.maximum(1, np.round(_VALIDATION_SHARE * counts)))
    return _places_in_class(labels, seed) < shares[inverse]


def _places_in_class(labels: np.ndarray, seed: int) -> np.ndarray:
    """Place of each row, from 0, in a random order of the rows of its class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    places = np.empty(len(labels), dtype=np.int64)
    places[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    return places


def _check_shots(labels: np.ndarray, shots: Sequence[int]) -> None:
    if not shots or min(shots) < 1 or len(set(shots)) < len(shots):
        raise ValueError(f"shots are {tuple(shots)}; give one number at least, each once and 1 or more.")
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < max(shots):
        raise ValueError(
            f"class {classes[counts.argmin()]} has {counts.min()} training rows, fewer than {max(shots)} shots; ask "
            f"for at most {counts.min()} shots, or leave the class out of training and test rows."
        )
