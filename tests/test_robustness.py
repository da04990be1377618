"""Effective and relative robustness against numpy.polyfit, hand-worked odds and bootstraps of scipy."""

import numpy as np
import pytest
from scipy import stats

from ko_en_clip.evaluation.robustness import (
    Baseline,
    LogitLine,
    effective_robustness,
    fit_baselines,
    relative_robustness,
)


def baselines(in_distribution: np.ndarray, under_shift: np.ndarray) -> list[Baseline]:
    return [
        Baseline(f"model {number}", *pair)
        for number, pair in enumerate(zip(in_distribution, under_shift, strict=True))
    ]


def hits(num: int, items: int) -> np.ndarray:
    """As many hits among items, spread as a shuffle leaves them."""
    return np.random.default_rng(num).permutation(np.arange(items) < num)


# The line


def test_line_by_hand() -> None:
    """Odds 1, 4 and 16 in distribution, 1/2, 1 and 2 under shift: slope 1/2, intercept -log 2."""
    line = fit_baselines(baselines(np.array([1 / 2, 4 / 5, 16 / 17]), np.array([1 / 3, 1 / 2, 2 / 3])))
    assert (line.slope, line.intercept) == pytest.approx((0.5, -np.log(2)), abs=1e-12)  # float64
    # Odds of 64 become odds of 4.
    assert line.predict(np.array([64 / 65])) == pytest.approx([0.8], abs=1e-12)
    assert line.predict(np.array([16 / 17])) != pytest.approx([0.8], abs=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_line_is_polyfits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    in_distribution = rng.uniform(0.4, 0.9, size=12)
    under_shift = np.clip(in_distribution - rng.uniform(0.05, 0.3, size=12), 0.01, 0.99)
    line = fit_baselines(baselines(in_distribution, under_shift))
    x, y = (np.log(accuracies / (1 - accuracies)) for accuracies in (in_distribution, under_shift))
    # Both solve least squares in float64.
    assert (line.slope, line.intercept) == pytest.approx(np.polyfit(x, y, 1), rel=1e-9)
    # The twins: a line through accuracies, and the line of the other axis, are others.
    assert (line.slope, line.intercept) != pytest.approx(np.polyfit(in_distribution, under_shift, 1), rel=1e-2)
    assert (line.slope, line.intercept) != pytest.approx(np.polyfit(y, x, 1), rel=1e-2)


@pytest.mark.parametrize("accuracy", [0.0, 1.0, 76.2, -0.1, float("nan")])
def test_baselines_at_an_end_are_refused(accuracy: float) -> None:
    for bad in (Baseline("resnet50", accuracy, 0.63), Baseline("resnet50", 0.76, accuracy)):
        with pytest.raises(ValueError, match=r"baseline 'resnet50' has an accuracy of .* leave out a baseline"):
            fit_baselines([Baseline("a", 0.5, 0.4), bad])


def test_one_point_is_no_line() -> None:
    with pytest.raises(ValueError, match="0 baselines"):
        fit_baselines([])
    with pytest.raises(ValueError, match="2 baselines with fewer than two accuracies"):
        fit_baselines([Baseline("a", 0.5, 0.4), Baseline("b", 0.5, 0.3)])


# Effective robustness


def test_effective_robustness_by_hand() -> None:
    """80 % is odds of 4, and the line halves odds: 2, 66.7 %. The model has 70 %."""
    line = LogitLine(slope=1.0, intercept=-np.log(2))
    value, low, high = effective_robustness(line, hits(80, 100), hits(70, 100))
    assert value == pytest.approx(0.7 - 2 / 3, abs=1e-12)  # float64
    assert low < value < high
    # A model on the line has none, one below it has less than none.
    assert effective_robustness(line, hits(80, 100), hits(200, 300))[0] == pytest.approx(0, abs=1e-12)
    assert effective_robustness(line, hits(80, 100), hits(50, 100))[0] == pytest.approx(0.5 - 2 / 3, abs=1e-12)


def test_baselines_on_a_line_have_no_effective_robustness() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(300, 900, size=8)
    truth = LogitLine(slope=0.9, intercept=-0.5)
    line = fit_baselines(baselines(counts / 1000, truth.predict(counts / 1000)))
    for count in counts:
        in_distribution = hits(count, 1000)
        expected = truth.predict(np.array([count / 1000]))
        value, _, _ = effective_robustness(line, in_distribution, np.full(7, expected))
        assert value == pytest.approx(0, abs=1e-9)  # float64 through a fit


def test_interval_is_scipys_bootstrap_of_both_sets() -> None:
    line = LogitLine(slope=1.2, intercept=-0.3)
    first, second = hits(130, 200), hits(150, 400)

    def beyond(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
        accuracy = first.mean(axis=axis)
        odds = (accuracy / (1 - accuracy)) ** 1.2 * np.exp(-0.3)
        return second.mean(axis=axis) - odds / (1 + odds)

    value, low, high = effective_robustness(line, first, second)
    found = stats.bootstrap((first, second), beyond, n_resamples=20_000, method="percentile", rng=1)
    spread = found.standard_error
    # As in test_metrics: the 2.5 % point of 1,000 draws strays by 0.085 standard deviations; three times that.
    allowed = 3 * 0.085 * spread
    assert value == pytest.approx(beyond(first, second), abs=1e-12)
    assert (low, high) == pytest.approx(found.confidence_interval, abs=allowed)
    # The twin: items of the second set alone make the interval too narrow.
    alone = stats.bootstrap(
        (second,), lambda second, axis: beyond(first, second, axis), n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert low < alone.low - allowed


@pytest.mark.parametrize("num", [0, 40])
def test_certain_accuracy_is_moved_half_an_item(num: int) -> None:
    """Of 40 items, none is taken for 1/80 and all for 79/80: odds of 1/79 and 79."""
    line = LogitLine(slope=1.0, intercept=0.0)
    value, low, high = effective_robustness(line, hits(num, 40), hits(20, 40))
    assert value == pytest.approx(0.5 - (1 / 80 if num == 0 else 79 / 80), abs=1e-12)
    assert np.isfinite([low, high]).all()
    # The twin: one hit more or less stays where it is.
    inner = 1 if num == 0 else 39
    assert effective_robustness(line, hits(inner, 40), hits(20, 40))[0] == pytest.approx(0.5 - inner / 40, abs=1e-12)


def test_same_seed_same_interval() -> None:
    line = LogitLine(slope=1.0, intercept=0.0)
    arguments = (line, hits(70, 150), hits(60, 150))
    assert effective_robustness(*arguments) == effective_robustness(*arguments)
    assert effective_robustness(*arguments) != effective_robustness(*arguments, seed=1)


# Relative robustness


def test_relative_robustness_is_over_pairs() -> None:
    """Two models that err on the same items but for five: the interval is that of the five, not of two sets."""
    before = hits(100, 200)
    after = before.copy()
    after[np.flatnonzero(~before)[:5]] = True
    value, low, high = relative_robustness(after, before)
    paired = stats.bootstrap((after.astype(float) - before,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    assert value == pytest.approx(5 / 200, abs=1e-12)
    # One step of an item, and three times 0.085 standard deviations.
    allowed = 1 / 200 + 3 * 0.085 * paired.standard_error
    assert (low, high) == pytest.approx(paired.confidence_interval, abs=allowed)
    # The twin: sets drawn apart would give an interval that reaches far below none.
    apart = stats.bootstrap(
        (after, before), lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis), method="percentile", rng=1
    ).confidence_interval
    assert apart.low < 0 < low


def test_a_model_is_as_robust_as_itself() -> None:
    assert relative_robustness(hits(30, 100), hits(30, 100)) == (0, 0, 0)
    assert relative_robustness(hits(30, 100), hits(50, 100))[0] == pytest.approx(-0.2, abs=1e-12)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.array([]), "one item at least"),
        (np.zeros((2, 2)), r"shape \(2, 2\)"),
        (np.array([0.5, 70.1]), "from 0.5 to 70.1"),
        (np.array([0.5, np.nan]), "hits lie between 0 and 1"),
    ],
)
def test_bad_hits_are_refused(bad: np.ndarray, message: str) -> None:
    good, line = np.array([True, False]), LogitLine(slope=1.0, intercept=0.0)
    with pytest.raises(ValueError, match=f"in_distribution.*{message}"):
        effective_robustness(line, bad, good)
    with pytest.raises(ValueError, match=f"^under_shift.*{message}"):
        effective_robustness(line, good, bad)
    with pytest.raises(ValueError, match=f"start_under_shift.*{message}"):
        relative_robustness(good, bad)


def test_models_of_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="2 items and start_under_shift 3"):
        relative_robustness(np.ones(2), np.ones(3))
