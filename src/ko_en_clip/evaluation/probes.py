"""Probes of frozen features: linear, few-shot (Radford et al. 2021) and nearest neighbours (Jia et al. 2021).

The linear and few-shot probes take the features of the picture tower before its projection, as CLIP's do; the nearest
neighbours take the embeddings after it, as ALIGN's do. Which features are given is the caller's choice.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from .metrics import RECALL_AT

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
_NEIGHBOUR_BLOCK = 2048
# Equal pictures have equal cosines but for the order of summation: in float64 that is at most 1e-13 for 1,000
# dimensions, and the place of a row in its block may change it.
_TIE = 1e-12


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


class _Rows(NamedTuple):
    features: np.ndarray
    labels: np.ndarray

    def part(self, chosen: np.ndarray) -> "_Rows":
        return _Rows(self.features[chosen], self.labels[chosen])


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
    train, test = _rows("training", train_features, train_labels), _rows("test", test_features, test_labels)
    _check_classes(train, test, "test")
    if validation is None:
        held_out = _held_out(train.labels, seed)
        fitted, judged = train.part(~held_out), train.part(held_out)
    else:
        fitted, judged = train, _rows("validation", *validation)
        _check_classes(fitted, judged, "validation")
        train = _Rows(np.concatenate([fitted.features, judged.features]), np.append(fitted.labels, judged.labels))
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
    train, test = _rows("training", train_features, train_labels), _rows("test", test_features, test_labels)
    _check_classes(train, test, "test")
    judged = None if validation is None else _rows("validation", *validation)
    if judged is not None:
        _check_classes(train, judged, "validation")
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


def knn(
    train_features: torch.Tensor | np.ndarray,
    train_labels: torch.Tensor | np.ndarray,
    test_features: torch.Tensor | np.ndarray,
    test_labels: torch.Tensor | np.ndarray,
    *,
    k: Sequence[int] = RECALL_AT,
    block_rows: int = _NEIGHBOUR_BLOCK,
) -> dict[int, np.ndarray]:
    """Hits by K: whether one of the K training rows nearest by cosine has the test row's label, bool, (test rows,).

    There is no vote among the neighbours; K = 1 is nearest-neighbour classification. A training row of another label
    that is as near as the nearest one of the right label counts as nearer, so that neither the order of the rows nor a
    model that gives everything the same features can win by a tie.

    Args:
        train_features: (training rows, dimensions), embeddings after the projection; any length, none of them zero.
        train_labels: class numbers from 0, integers.
        test_features: (test rows, dimensions).
        test_labels: class numbers, each of which a training row has.
        k: numbers of neighbours.
        block_rows: rows of either set that are compared at once; bounds the memory, and changes nothing else.

    Raises:
        ValueError: as `linear_probe`; features are all zero; or a K is below 1 or above the number of training rows.

    Reference:
        Jia et al. 2021, section 6 (ImageNet KNN) and Kakao Brain's COYO-ALIGN, which reports K = 1. Cosines are
        taken in float64, so that equal pictures tie.
    """
    train, test = _rows("training", train_features, train_labels), _rows("test", test_features, test_labels)
    _check_classes(train, test, "test")
    if not k or min(k) < 1 or max(k) > len(train.labels):
        raise ValueError(
            f"k is {tuple(k)}; give numbers of neighbours between 1 and the {len(train.labels)} training rows."
        )
    hits: dict[int, list[np.ndarray]] = {number: [] for number in k}
    with tqdm(total=len(test.labels), desc="neighbours", unit="row", leave=False) as bar:
        for queries in _blocks(test, block_rows):
            right, wrong = _nearest(queries, train, max(k), block_rows)
            for number in k:
                # Fewer than K rows of other labels are as near: then the right one is among the K nearest.
                hits[number].append((wrong[:, number - 1] < right - _TIE).numpy())
            bar.update(len(queries.labels))
    return {number: np.concatenate(parts) for number, parts in hits.items()}


def _nearest(queries: _Rows, train: _Rows, k: int, block_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine of the nearest row of the right label, (queries,), and of the k nearest others, falling, (queries, k)."""
    right = torch.full((len(queries.labels),), -math.inf, dtype=torch.float64)
    wrong = torch.full((len(queries.labels), k), -math.inf, dtype=torch.float64)
    query_units = _units(queries.features)
    for rows in _blocks(train, block_rows):
        similarity = query_units @ _units(rows.features).T
        same = torch.from_numpy(queries.labels[:, None] == rows.labels[None, :])
        right = torch.maximum(right, similarity.masked_fill(~same, -math.inf).amax(dim=1))
        wrong = torch.cat([wrong, similarity.masked_fill(same, -math.inf)], dim=1).topk(k).values
    return right, wrong


def _units(features: np.ndarray) -> torch.Tensor:
    wide = torch.from_numpy(features.astype(np.float64))
    lengths = wide.norm(dim=1, keepdim=True)
    if not lengths.all():
        raise ValueError("a row of features is all zero, and has no direction to compare; leave such rows out.")
    return wide / lengths


def _blocks(rows: _Rows, size: int) -> Iterable[_Rows]:
    for start in range(0, len(rows.labels), size):
        yield _Rows(rows.features[start : start + size], rows.labels[start : start + size])


def _strength(step: int) -> float:
    return float(10.0 ** (step / _STEPS_PER_DECADE))


def _searched(fitted: _Rows, judged: _Rows) -> tuple[float, dict[float, float]]:
    def accuracy(strength: float) -> float:
        classifier, _ = _fit(fitted, strength)
        return float((classifier.predict(judged.features) == judged.labels).mean())

    return search_strength(accuracy)


def _probe(train: _Rows, test: _Rows, strength: float, scores: Mapping[float, float]) -> LinearProbe:
    classifier, converged = _fit(train, strength)
    predictions = classifier.predict(test.features)
    return LinearProbe(
        predictions=predictions,
        hits=predictions == test.labels,
        strength=strength,
        scores=scores,
        converged=converged,
    )


def _fit(rows: _Rows, strength: float) -> tuple[Any, bool]:
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


def _rows(name: str, features: torch.Tensor | np.ndarray, labels: torch.Tensor | np.ndarray) -> _Rows:
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not labels.size:
        raise ValueError(
            f"{name} features are {features.shape} and labels {labels.shape}; give (rows, dimensions) and one label a "
            "row, and one row at least."
        )
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name} features are not finite in {(~finite).sum()} of {finite.size} rows, first in row "
            f"{finite.argmin()}; the model's training has diverged, or it overflows its dtype: embed in float32."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} labels are {labels.dtype}; give class numbers, integers from 0.")
    if labels.min() < 0:
        raise ValueError(
            f"{name} labels are {labels.min()} in row {labels.argmin()}; class numbers count from 0. Leave out rows "
            "without a label."
        )
    return _Rows(features, labels.astype(np.int64))


def _check_classes(train: _Rows, other: _Rows, name: str) -> None:
    if train.features.shape[1] != other.features.shape[1]:
        raise ValueError(
            f"training features have {train.features.shape[1]} dimensions and {name} features "
            f"{other.features.shape[1]}; take both from the same layer of the same model."
        )
    classes = np.unique(train.labels)
    if classes.size < 2:
        raise ValueError(f"all training rows are of class {classes[0]}; a probe needs rows of two classes at least.")
    unknown = np.setdiff1d(other.labels, classes)
    if unknown.size:
        raise ValueError(
            f"{name} rows are of class {unknown[0]}, which no training row has; number both alike, and leave out "
            f"{name} rows of classes that are not trained."
        )


def _check_shots(labels: np.ndarray, shots: Sequence[int]) -> None:
    if not shots or min(shots) < 1 or len(set(shots)) < len(shots):
        raise ValueError(f"shots are {tuple(shots)}; give one number at least, each once and 1 or more.")
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < max(shots):
        raise ValueError(
            f"class {classes[counts.argmin()]} has {counts.min()} training rows, fewer than {max(shots)} shots; ask "
            f"for at most {counts.min()} shots, or leave the class out of training and test rows."
        )
