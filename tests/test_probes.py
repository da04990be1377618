"""Linear, few-shot and nearest-neighbour probes, on scikit-learn's scans of digits and by hand."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from ko_en_clip.evaluation.metrics import measure
from ko_en_clip.evaluation.neighbours import knn
from ko_en_clip.evaluation.probes import (
    LabelsPerClass,
    few_shot,
    few_shot_rows,
    labels_per_class,
    linear_probe,
    search_strength,
)

GRID = 10.0 ** (np.arange(-48, 49) / 8)
COARSE = (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)
Split = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def digits() -> tuple[Split, Split, Split]:
    """600 training, 300 validation and 897 test rows, in a random order; ink between 0 and 1, float32."""
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    features, labels = (features[order] / 16).astype(np.float32), labels[order]
    first, second, third = (slice(0, 600), slice(600, 900), slice(900, None))
    return (features[first], labels[first]), (features[second], labels[second]), (features[third], labels[third])


def plain(train: Split, strength: float) -> LogisticRegression:
    return LogisticRegression(C=1 / strength, max_iter=1000).fit(train[0].astype(np.float64), train[1])


# The search of the strength


def counted(score: Callable[[float], float]) -> tuple[Callable[[float], float], list[float]]:
    calls: list[float] = []

    def count(strength: float) -> float:
        calls.append(strength)
        return score(strength)

    return count, calls


@pytest.mark.parametrize("peak", range(97))
def test_search_finds_the_best_of_all_where_there_is_one_peak(peak: int) -> None:
    score, calls = counted(lambda strength: -abs(np.log10(strength) - np.log10(GRID[peak]) - 0.01))
    best, scores = search_strength(score)
    assert best == GRID[np.argmax([-abs(np.log10(GRID) - np.log10(GRID[peak]) - 0.01)])]
    assert calls[:7] == pytest.approx(COARSE, rel=1e-12)
    assert len(calls) == len(set(calls)) == len(scores) <= 15
    assert set(calls) == set(scores) <= set(GRID)
    assert list(scores) == sorted(scores)
    # The resolution: both neighbours on the grid were tried.
    assert set(GRID[max(peak - 1, 0) : peak + 2]) <= set(calls)


def test_search_of_two_peaks_is_the_best_of_those_tried_and_not_of_all() -> None:
    """The twin: a narrow peak between two coarse strengths is not seen."""

    def two_peaks(strength: float) -> float:
        return 2.0 if strength == GRID[20] else -abs(np.log10(strength) - 3.3)

    best, scores = search_strength(two_peaks)
    assert scores[best] == max(scores.values()) < two_peaks(float(GRID[20]))
    assert best == GRID[48 + 26]


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(-48, 48, 0), (-48, 0, -24), (0, 48, 24), (16, 48, 32), (40, 48, 44)]
)
def test_search_takes_the_middle_of_a_plateau(low: int, high: int, expected: int) -> None:
    best, scores = search_strength(lambda strength: float(low <= round(8 * np.log10(strength)) <= high))
    assert scores[best] == 1
    # Strengths are not tried evenly, so that the middle one of them is off by at most a quarter of the plateau.
    assert abs(round(8 * np.log10(best)) - expected) <= (high - low) / 4


def test_search_on_digits_is_at_least_as_good_as_the_coarse_strengths(digits: tuple[Split, Split, Split]) -> None:
    train, validation, _ = digits
    brute = {
        strength: float(plain(train, strength).score(validation[0].astype(np.float64), validation[1]))
        for strength in GRID[::4]
    }
    probe = linear_probe(*train, *digits[2], validation=validation)
    # The same scores as a plain loop wherever both have tried.
    both = set(probe.scores) & set(brute)
    assert len(both) >= 7
    assert {strength: probe.scores[strength] for strength in both} == {strength: brute[strength] for strength in both}
    assert probe.scores[probe.strength] == max(probe.scores.values()) >= max(brute[s] for s in GRID[::16])
    assert len(set(probe.scores.values())) > 3


# The linear probe


def test_linear_probe_is_plain_logistic_regression_on_training_and_validation_rows(
    digits: tuple[Split, Split, Split],
) -> None:
    train, validation, test = digits
    probe = linear_probe(*train, *test, validation=validation)
    joined = (np.concatenate([train[0], validation[0]]), np.concatenate([train[1], validation[1]]))
    expected = plain(joined, probe.strength).predict(test[0].astype(np.float64))
    assert probe.predictions.dtype == np.int64
    assert (probe.predictions == expected).all()
    assert (probe.hits == (expected == test[1])).all()
    assert probe.hits.dtype == bool
    assert probe.converged
    # Above 19 of 20: the public baselines on these scans (scikit-learn's user guide) reach 0.91 to 0.97.
    assert measure(probe.hits)[0] > 0.95
    # The twins: training rows alone, and another strength.
    assert (probe.predictions != plain(train, probe.strength).predict(test[0].astype(np.float64))).any()
    assert (probe.predictions != plain(joined, 100 * probe.strength).predict(test[0].astype(np.float64))).any()


def test_linear_probe_holds_out_a_fifth_and_fits_everything(
    digits: tuple[Split, Split, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _, test = digits
    fitted: list[Split] = []
    fit = LogisticRegression.fit

    def recorded(self: Any, features: np.ndarray, labels: np.ndarray) -> Any:
        fitted.append((features, labels))
        return fit(self, features, labels)

    monkeypatch.setattr(LogisticRegression, "fit", recorded)
    probe = linear_probe(*train, *test)
    assert len(fitted) == len(probe.scores) + 1
    counts = np.bincount(train[1])
    for features, labels in fitted[:-1]:
        assert (features == fitted[0][0]).all()
        assert (np.bincount(labels) == counts - np.round(0.2 * counts)).all()
    assert (fitted[-1][0] == train[0]).all()
    assert (fitted[-1][1] == train[1]).all()
    assert (probe.predictions == plain(train, probe.strength).predict(test[0].astype(np.float64))).all()
    # Another seed holds out other rows; the same one the same.
    again, other = linear_probe(*train, *test), linear_probe(*train, *test, seed=1)
    assert again.scores == probe.scores
    assert other.scores != probe.scores
    assert {len(rows) for rows, _ in fitted[:-1]} == {len(fitted[0][0]), len(train[0])}


def test_strength_is_lambda_of_the_summed_objective(digits: tuple[Split, Split, Split]) -> None:
    """The gradient of sum(cross-entropy) + lambda / 2 |W|^2, by autograd in float64, is zero at the fit."""
    train, _, test = digits
    strength = 3.0
    model = plain(train, strength)
    weight = torch.tensor(model.coef_, requires_grad=True)
    bias = torch.tensor(model.intercept_, requires_grad=True)
    features, labels = torch.from_numpy(train[0]).double(), torch.from_numpy(train[1])

    def gradient(of: float) -> float:
        logits = features @ weight.T + bias
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") + of / 2 * weight.square().sum()
        return max(float(part.abs().max()) for part in torch.autograd.grad(loss, [weight, bias]))

    # scikit-learn stops where no entry of the gradient of the mean is above its tol of 1e-4.
    assert gradient(strength) <= 1e-4 * len(labels)
    # The twins: lambda as C, and lambda of the mean.
    assert gradient(1 / strength) > 1
    assert gradient(strength * len(labels)) > 1
    # The probe's strength is that lambda: the same rows as validation rows make 1,200 rows, each twice, which is
    # the objective of 600 rows with half of its lambda.
    probe = linear_probe(*train, *test, validation=train)
    assert (
        probe.predictions == plain(train, probe.strength / 2).predict(test[0].astype(np.float64))
    ).mean() > 0.995  # two fits, each within its tolerance, may differ on a row at the border


def test_fit_that_is_cut_off_is_told_and_not_warned_of(
    digits: tuple[Split, Split, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _, test = digits
    assert linear_probe(*train, *test).converged
    with pytest.warns(ConvergenceWarning):
        LogisticRegression(max_iter=3).fit(*train)
    monkeypatch.setattr("ko_en_clip.evaluation.probes._MAX_ITERATIONS", 3)
    assert not linear_probe(*train, *test).converged


def test_other_warnings_of_a_fit_reach_the_user(
    digits: tuple[Split, Split, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = LogisticRegression.fit

    def warning(category: type[Warning]) -> Callable[..., Any]:
        def noisy(self: Any, features: np.ndarray, labels: np.ndarray) -> Any:
            warnings.warn("of the test", category, stacklevel=1)
            return fit(self, features, labels)

        return noisy

    train, _, test = digits
    monkeypatch.setattr(LogisticRegression, "fit", warning(ConvergenceWarning))
    assert not few_shot(*train, *test, shots=[1], seeds=[0])[1][0].converged
    monkeypatch.setattr(LogisticRegression, "fit", warning(FutureWarning))
    with pytest.raises(FutureWarning, match="of the test"):
        few_shot(*train, *test, shots=[1], seeds=[0])
    monkeypatch.setattr(LogisticRegression, "fit", fit)
    assert few_shot(*train, *test, shots=[1], seeds=[0])[1][0].converged


def test_tensors_are_arrays(digits: tuple[Split, Split, Split]) -> None:
    train, _, test = digits
    small = [part[:60] for part in (*train, *test)]
    probes = [linear_probe(*small), linear_probe(*map(torch.from_numpy, small))]
    assert (probes[0].predictions == probes[1].predictions).all()
    assert probes[0].scores == probes[1].scores
    hits = [knn(*small), knn(*map(torch.from_numpy, small))]
    assert all((hits[0][k] == hits[1][k]).all() for k in hits[0])


# Few shots


def test_draws_are_nested_even_and_without_replacement(digits: tuple[Split, Split, Split]) -> None:
    (_, labels), _, _ = digits
    drawn = {shots: few_shot_rows(labels, shots, seed=3) for shots in (1, 2, 4, 8, 16)}
    for shots, rows in drawn.items():
        assert len(set(rows.tolist())) == len(rows)
        assert np.bincount(labels[rows]).tolist() == [shots] * 10
    for fewer, more in ((1, 2), (2, 4), (4, 8), (8, 16)):
        assert set(drawn[fewer]) < set(drawn[more])
    assert (few_shot_rows(labels, 4, seed=3) == drawn[4]).all()
    # The twin: another seed draws other rows.
    assert set(few_shot_rows(labels, 4, seed=4)) != set(drawn[4])


def test_draws_are_uniform() -> None:
    """Every row of a class is drawn equally often: chi-square of 2,000 draws of 2 of 5 and of 2 of 9 rows."""
    labels = np.repeat([0, 1], [5, 9])
    drawn = np.bincount(np.concatenate([few_shot_rows(labels, 2, seed) for seed in range(2000)]), minlength=14)
    for rows, size in ((drawn[:5], 5), (drawn[5:], 9)):
        expected = 2000 * 2 / size
        assert rows.sum() == 4000
        # The mean is size - 1 at most, the standard deviation sqrt(2 (size - 1)); five of them above.
        assert (np.square(rows - expected) / expected).sum() < size - 1 + 5 * np.sqrt(2 * (size - 1))


def test_few_shot_fits_the_drawn_rows(digits: tuple[Split, Split, Split]) -> None:
    train, validation, test = digits
    probes = few_shot(*train, *test, shots=(1, 4), seeds=(0, 5))
    assert {shots: len(of_seeds) for shots, of_seeds in probes.items()} == {1: 2, 4: 2}
    for shots, of_seeds in probes.items():
        for seed, probe in zip((0, 5), of_seeds, strict=True):
            rows = few_shot_rows(train[1], shots, seed)
            drawn = (train[0][rows], train[1][rows])
            assert (probe.predictions == plain(drawn, probe.strength).predict(test[0].astype(np.float64))).all()
            assert (probe.hits == (probe.predictions == test[1])).all()
    assert [probe.strength for probe in probes[1]] == pytest.approx([1 / 0.316] * 2, rel=1e-3)
    assert [len(probe.scores) for probe in probes[1]] == [0, 0]
    # Of 4 rows a class one is held out, so that scores are tenths; given validation rows make them 300ths.
    assert all(value * 10 == pytest.approx(round(value * 10)) for value in probes[4][0].scores.values())
    given = few_shot(*train, *test, shots=(1,), seeds=(0,), validation=validation)[1][0]
    assert len(given.scores) >= 7
    rows = few_shot_rows(train[1], 1, 0)
    drawn = (train[0][rows], train[1][rows])
    # Validation rows are not fitted.
    assert (given.predictions == plain(drawn, given.strength).predict(test[0].astype(np.float64))).all()
    for strength in COARSE:
        model = plain(drawn, strength)
        score = model.score(validation[0].astype(np.float64), validation[1])
        found = min(given.scores, key=lambda tried: abs(np.log10(tried / strength)))
        assert given.scores[found] == score
    # The seed is also that of the rows held out.
    rows = few_shot_rows(train[1], 4, 5)
    drawn = (train[0][rows], train[1][rows])
    assert probes[4][1].scores == linear_probe(*drawn, *test, seed=5).scores
    assert probes[4][1].scores != linear_probe(*drawn, *test, seed=0).scores
    # The twin: another seed predicts otherwise.
    assert (probes[4][0].predictions != probes[4][1].predictions).any()


def test_more_shots_are_better(digits: tuple[Split, Split, Split]) -> None:
    train, _, test = digits
    probes = few_shot(*train, *test, shots=(1, 4, 16), seeds=(0, 1))
    means = [measure(np.mean([probe.hits for probe in of_seeds], axis=0))[0] for of_seeds in probes.values()]
    # 897 test rows: a step of 0.05 is more than three standard errors of 0.016.
    assert means[1] - means[0] > 0.05
    assert means[2] - means[1] > 0.05


@pytest.mark.parametrize(
    ("zero_shot", "relation", "labels"),
    [
        (0.2, "<", 1),
        (0.3, "=", 1),
        # A third of the way from 1 to 8 in the logarithm is 2; two thirds are 4.
        (0.4, "=", 2),
        (0.5, "=", 4),
        (0.6, "=", 8),
        # Half-way from 8 to 32 is 16.
        (0.7, "=", 16),
        (0.8, "=", 32),
        (0.81, ">", 32),
    ],
)
def test_labels_per_class_by_hand(zero_shot: float, relation: str, labels: float) -> None:
    found = labels_per_class({32: 0.8, 1: 0.3, 8: 0.6}, zero_shot)
    assert (found.relation, found.labels) == (relation, pytest.approx(labels, rel=1e-9))


def test_labels_per_class_is_numpys_interpolation_and_the_first_crossing() -> None:
    curve = {1: 0.31, 2: 0.44, 4: 0.47, 8: 0.62, 16: 0.66, 51.3: 0.9}
    for zero_shot in np.linspace(0.31, 0.9, 30):
        expected = np.exp(np.interp(zero_shot, list(curve.values()), np.log(list(curve))))
        assert labels_per_class(curve, zero_shot).labels == pytest.approx(expected, rel=1e-9)
    # Falls between 2 and 4, and reaches 0.45 again before 8: the first time counts.
    assert labels_per_class({1: 0.3, 2: 0.5, 4: 0.4, 8: 0.7}, 0.4) == LabelsPerClass(relation="=", labels=2**0.5)
    assert labels_per_class({1: 0.3, 2: 0.3, 4: 0.5}, 0.4).labels == pytest.approx(2**1.5)


@pytest.mark.parametrize(
    ("accuracies", "zero_shot", "message"),
    [
        ({}, 0.5, "at least"),
        ({0: 0.2, 1: 0.3}, 0.25, "positive"),
        ({1: 0.3}, 45.0, "fractions"),
        ({1: 0.3}, float("nan"), "fractions"),
        ({1: 30.0}, 0.4, "fractions"),
    ],
)
def test_bad_accuracies_are_refused(accuracies: dict[float, float], zero_shot: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labels_per_class(accuracies, zero_shot)


# Nearest neighbours


def test_neighbours_are_those_of_scikit_learn(digits: tuple[Split, Split, Split]) -> None:
    train, _, test = digits
    hits = knn(*train, *test, k=(1, 5, 10))
    classifier = KNeighborsClassifier(n_neighbors=1, metric="cosine").fit(train[0].astype(np.float64), train[1])
    assert (hits[1] == (classifier.predict(test[0].astype(np.float64)) == test[1])).all()
    for k in (5, 10):
        nearest = classifier.kneighbors(test[0].astype(np.float64), n_neighbors=k, return_distance=False)
        assert (hits[k] == (train[1][nearest] == test[1][:, None]).any(axis=1)).all()
    assert hits[1].mean() > 0.95
    # The twins: more neighbours find more; shuffled labels little.
    assert hits[1].sum() < hits[5].sum() < hits[10].sum()
    shuffled = np.random.default_rng(0).permutation(train[1])
    assert knn(train[0], shuffled, *test, k=(1,))[1].mean() < 0.2


# Two dimensions, unit of angle: degrees. Label 0 at 0 and 30, label 1 at 10 (twice as long) and 30, label 2 at 10, 90.
ANGLES = np.radians([0, 30, 10, 30, 10, 90])
CORNERS = np.array([1, 1, 2, 1, 1, 1])[:, None] * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
CORNER_LABELS = np.array([0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize(
    ("angle", "label", "first_k"),
    [
        # At 0: 0 is nearest; then 10, of labels 1 and 2: each ties with the other and comes after it and after 0.
        (0, 0, 1),
        (0, 1, 3),
        (0, 2, 3),
        # At 30: labels 0 and 1 tie; label 2 has both of them before it, and its row at 10 ties with label 1's.
        (30, 0, 2),
        (30, 1, 2),
        (30, 2, 4),
        # At 80: label 2 at 90; then 30, of labels 0 and 1.
        (80, 2, 1),
        (80, 0, 3),
        (80, 1, 3),
        # At 12: labels 1 and 2 tie at 10; label 0's row at 0 comes after them.
        (12, 1, 2),
        (12, 2, 2),
        (12, 0, 3),
    ],
)
def test_neighbours_by_hand_with_ties(angle: float, label: int, first_k: int) -> None:
    test = 3 * np.array([[np.cos(np.radians(angle)), np.sin(np.radians(angle))]])
    for order in (np.arange(6), np.arange(6)[::-1], np.array([3, 0, 5, 2, 4, 1])):
        hits = knn(CORNERS[order], CORNER_LABELS[order], test, np.array([label]), k=(1, 2, 3, 4, 5))
        assert [bool(hits[k][0]) for k in (1, 2, 3, 4, 5)] == [k >= first_k for k in (1, 2, 3, 4, 5)]


def test_blocks_and_order_of_rows_change_nothing(digits: tuple[Split, Split, Split]) -> None:
    """Nor where every training row is there twice under another label, which makes every first neighbour a tie."""
    (features, labels), _, (test_features, test_labels) = digits
    doubled = np.concatenate([features, features]), np.concatenate([labels, (labels + 1) % 10])
    order = np.random.default_rng(0).permutation(1200)
    whole = knn(*doubled, test_features[:200], test_labels[:200], k=(1, 2, 5))
    assert not whole[1].any()
    assert 0.5 < whole[2].mean() < 1
    for block_rows in (1, 37, 64, 199):
        if block_rows == 1:
            blocks = knn(*doubled, test_features[:3], test_labels[:3], k=(1, 2, 5), block_rows=1)
            assert all((blocks[k] == whole[k][:3]).all() for k in whole)
            continue
        blocks = knn(*doubled, test_features[:200], test_labels[:200], k=(1, 2, 5), block_rows=block_rows)
        shuffled = knn(
            doubled[0][order],
            doubled[1][order],
            test_features[:200],
            test_labels[:200],
            k=(1, 2, 5),
            block_rows=block_rows,
        )
        assert all((blocks[k] == whole[k]).all() and (shuffled[k] == whole[k]).all() for k in whole)
    # The twin: the order of the test rows is that of the hits.
    turned = knn(*doubled, test_features[:200][::-1], test_labels[:200][::-1], k=(2,))
    assert (turned[2] == whole[2][::-1]).all()
    assert (turned[2] != whole[2]).any()


def test_same_features_for_everything_find_nothing() -> None:
    labels = np.arange(40) % 4
    hits = knn(np.ones((40, 3)), labels, np.ones((8, 3)), labels[:8], k=(1, 5, 30, 31))
    # 30 rows have another label.
    assert [hits[k].mean() for k in (1, 5, 30, 31)] == [0, 0, 0, 1]


@pytest.mark.parametrize("k", [(), (0,), (1, 7)])
def test_bad_numbers_of_neighbours_are_refused(k: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="between 1 and the 6 training rows"):
        knn(CORNERS, CORNER_LABELS, CORNERS, CORNER_LABELS, k=k)


def test_row_without_direction_is_refused() -> None:
    with pytest.raises(ValueError, match="all zero"):
        knn(CORNERS, CORNER_LABELS, 0 * CORNERS, CORNER_LABELS, k=(1,))


# Bad input


FEATURES = np.random.default_rng(0).random((8, 3)).astype(np.float32)
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
BROKEN = FEATURES.copy()
BROKEN[5, 1] = np.nan
PROBES: list[Callable[..., Any]] = [
    linear_probe,
    lambda *rows: few_shot(*rows, shots=(1, 2)),
    lambda *rows: knn(*rows, k=(1,)),
]


@pytest.mark.parametrize("probe", PROBES, ids=["linear", "few-shot", "knn"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((FEATURES, LABELS, FEATURES, LABELS + 1), "test rows are of class 2, which no training row has"),
        ((FEATURES, LABELS - 1, FEATURES, LABELS), "training labels are -1 in row 0"),
        ((FEATURES, 0 * LABELS, FEATURES, 0 * LABELS), "all training rows are of class 0"),
        ((FEATURES, LABELS[:7], FEATURES, LABELS), r"training features are \(8, 3\) and labels \(7,\)"),
        ((FEATURES, LABELS, FEATURES[:7], LABELS), r"test features are \(7, 3\) and labels \(8,\)"),
        ((FEATURES, LABELS, FEATURES[:0], LABELS[:0]), "one row at least"),
        ((FEATURES[0], LABELS[:3], FEATURES, LABELS), r"\(rows, dimensions\)"),
        ((BROKEN, LABELS, FEATURES, LABELS), "training features are not finite in 1 of 8 rows, first in row 5"),
        ((FEATURES, LABELS, BROKEN, LABELS), "test features are not finite"),
        ((FEATURES, LABELS, FEATURES[:, :2], LABELS), "training features have 3 dimensions and test features 2"),
        ((FEATURES, LABELS.astype(float), FEATURES, LABELS), "training labels are float64; give class numbers"),
        ((FEATURES, np.array(list("aaaabbbb")), FEATURES, LABELS), "give class numbers"),
    ],
)
def test_bad_input_is_refused(probe: Callable[..., Any], rows: tuple[np.ndarray, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe(*rows)
    # The twin: good rows pass.
    probe(FEATURES, LABELS, FEATURES, LABELS)


@pytest.mark.parametrize("probe", [linear_probe, few_shot], ids=["linear", "few-shot"])
def test_bad_validation_rows_are_refused(probe: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="validation rows are of class 2"):
        probe(FEATURES, LABELS, FEATURES, LABELS, validation=(FEATURES, LABELS + 1))
    with pytest.raises(ValueError, match="validation features are not finite"):
        probe(FEATURES, LABELS, FEATURES, LABELS, validation=(BROKEN, LABELS))


def test_one_row_a_class_leaves_nothing_to_choose_the_strength_on() -> None:
    one = FEATURES[[0, 4]], LABELS[[0, 4]]
    with pytest.raises(ValueError, match="give `validation` rows"):
        linear_probe(*one, FEATURES, LABELS)
    assert linear_probe(*one, FEATURES, LABELS, validation=(FEATURES, LABELS)).scores


@pytest.mark.parametrize(
    ("shots", "message"),
    [
        ((1, 2, 5), "class 0 has 4 training rows, fewer than 5 shots; ask for at most 4 shots"),
        ((), "shots are"),
        ((0, 1), "shots are"),
        ((1, 1), "shots are"),
    ],
)
def test_bad_shots_are_refused(shots: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        few_shot(FEATURES, LABELS, FEATURES, LABELS, shots=shots)


def test_absent_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ModuleNotFoundError, match=r"scikit-learn.*pip install 'ko_en_clip\[eval\]'"):
        linear_probe(FEATURES, LABELS, FEATURES, LABELS)
    assert knn(FEATURES, LABELS, FEATURES, LABELS, k=(1,))[1].all()
