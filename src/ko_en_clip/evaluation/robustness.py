"""Robustness under distribution shift: effective and relative (Taori et al. 2020; Radford et al. 2021, section 3.3).

Accuracy under shift rises with accuracy in distribution, along a line where both are logits. Effective robustness is
what a model has above that line, and so is not bought by accuracy in distribution alone; relative robustness is what
it has above the model that it was made from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .metrics import mean_and_draws, measure


class Baseline(NamedTuple):
    """Accuracies of one model of the standard way of training, fractions above 0 and below 1."""

    name: str
    in_distribution: float
    under_shift: float


@dataclass(frozen=True, kw_only=True)
class LogitLine:
    """logit(accuracy under shift) = slope * logit(accuracy in distribution) + intercept."""

    slope: float
    intercept: float

    def predict(self, in_distribution: np.ndarray) -> np.ndarray:
        """Accuracy under shift that the line expects of accuracies above 0 and below 1."""
        return 1 / (1 + np.exp(-(self.slope * _logit(in_distribution) + self.intercept)))


def fit_baselines(baselines: Sequence[Baseline]) -> LogitLine:
    """The least-squares line through the logits of the baselines' accuracies.

    Both accuracies of a baseline are to be over the same classes: a shifted set of 200 of ImageNet's classes asks for
    the accuracy on ImageNet's pictures of those 200. Taori et al. publish theirs as robustness_top1s.csv in
    github.com/modestyachts/imagenet-testbed, in percent, and draw the line through the models of standard training.
    On ImageNet-A, whose pictures were chosen for the errors of one model, they find two lines that meet near that
    model's accuracy, not one.

    A baseline at 0 or 1 is refused, not moved inwards: how far it is moved would be our choice, and its leverage on
    the line has no bound.

    Raises:
        ValueError: an accuracy is not between 0 and 1, or fewer than two accuracies in distribution differ.

    Reference:
        Taori et al. 2020, section 2; logit scale as in Radford et al. 2021, section 3.3.

    Example:
        Odds of 1, 3 and 9 become odds of 1/3, 1 and 3: slope 1, intercept -log(3).

        >>> line = fit_baselines([Baseline("a", 0.5, 0.25), Baseline("b", 0.75, 0.5), Baseline("c", 0.9, 0.75)])
        >>> round(line.slope, 6), round(line.intercept, 4)
        (1.0, -1.0986)
    """
    for baseline in baselines:
        for accuracy in baseline[1:]:
            if not 0 < accuracy < 1:
                raise ValueError(
                    f"baseline {baseline.name!r} has an accuracy of {accuracy}; a logit needs a fraction above 0 and "
                    "below 1 (0.5 for 50%). Divide percents by 100, and leave out a baseline that is at an end."
                )
    if len({baseline.in_distribution for baseline in baselines}) < 2:
        raise ValueError(
            f"{len(baselines)} baselines with fewer than two accuracies in distribution make no line; give more."
        )
    _, in_distribution, under_shift = zip(*baselines, strict=True)
    x, y = _logit(np.array(in_distribution)), _logit(np.array(under_shift))
    slope = ((x - x.mean()) @ (y - y.mean())) / ((x - x.mean()) @ (x - x.mean()))
    return LogitLine(slope=float(slope), intercept=float(y.mean() - slope * x.mean()))


def effective_robustness(
    line: LogitLine, in_distribution: np.ndarray, under_shift: np.ndarray, seed: int = 0
) -> tuple[float, float, float]:
    """Accuracy under shift minus the line's, and the ends of its 95 % percentile bootstrap interval.

    Each of 1,000 draws takes the items of both sets anew. The line is taken as known: that other baselines would give
    another line is not in the interval.

    An accuracy in distribution of 0 or 1 has no logit. It is moved half an item inwards, to 1 / 2n or 1 - 1 / 2n: n
    items cannot tell it from there, and no other accuracy of n items is touched.

    Args:
        line: of `fit_baselines`, over the same classes.
        in_distribution: hits on the items in distribution, bool or between 0 and 1 (a mean over frames), (items,).
        under_shift: hits on the items under shift, (items of that set,).
        seed: of the draws.

    Raises:
        ValueError: a set is empty, or a hit is not between 0 and 1.

    Reference:
        Taori et al. 2020, section 2: rho(f) = acc2(f) - beta(acc1(f)).
    """
    sets = [_checked("in_distribution", in_distribution), _checked("under_shift", under_shift)]
    half_item = 0.5 / sets[0].size

    def beyond(of_first: np.ndarray, of_second: np.ndarray) -> np.ndarray:
        return of_second - line.predict(np.clip(of_first, half_item, 1 - half_item))

    rng = np.random.default_rng(seed)
    (of_first, first_draws), (of_second, second_draws) = (mean_and_draws(hits, rng) for hits in sets)
    low, high = np.quantile(beyond(first_draws, second_draws), (0.025, 0.975))
    return float(beyond(np.array(of_first), np.array(of_second))), float(low), float(high)


def relative_robustness(under_shift: np.ndarray, start_under_shift: np.ndarray) -> tuple[float, float, float]:
    """Accuracy under shift minus that of the model one started from, and its 95 % percentile bootstrap interval.

    Both models are measured on the same items, so that the interval is over pairs of hits.

    Args:
        under_shift: hits on the items under shift, bool or between 0 and 1, (items,).
        start_under_shift: hits of the other model on the same items, in the same order.

    Raises:
        ValueError: the two differ in length, are empty, or hold something that is not between 0 and 1.

    Reference:
        Taori et al. 2020, section 2: tau(f') = acc2(f') - acc2(f).
    """
    after, before = _checked("under_shift", under_shift), _checked("start_under_shift", start_under_shift)
    if after.size != before.size:
        raise ValueError(
            f"under_shift has {after.size} items and start_under_shift {before.size}; measure both models on the same."
        )
    return measure(after - before)


def _logit(accuracies: np.ndarray) -> np.ndarray:
    return np.log(accuracies / (1 - accuracies))


def _checked(name: str, hits: np.ndarray) -> np.ndarray:
    values = np.asarray(hits, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{name} has shape {values.shape}; it needs one hit an item, and one item at least.")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"{name} holds values from {values.min()} to {values.max()}; hits lie between 0 and 1.")
    return values
