"""What two languages have in common: agreement, gaps, retrieval from one to the other, and where their texts lie.

Embeddings are float32 and L2-normalised, (items, dimensions), row by row of the same item in every language. A figure
comes as its value and the ends of its 95 % bootstrap interval. Intervals are paired: a draw of the items is the same
for both languages, so that items which are hard in both do not widen it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .metrics import bootstrap, measure
from .report import ACCENT, INK, new_figure, plain_axes, svg_of
from .retrieval import relevant_ranks

Estimate = tuple[float, float, float]
PICTURES, KOREAN, ENGLISH = "pictures", "Korean texts", "English texts"
_COLOURS = {PICTURES: "#0f766e", KOREAN: ACCENT, ENGLISH: "#c2410c"}
# So many items of each kind are drawn at most; more would hide one another and swell the page.
_DRAWN = 400
# Pictures with lines to their texts.
_JOINED = 8


def gap(hits: Sequence[float] | np.ndarray, baseline: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """Mean of hits less that of the baseline on the same items.

    Of Korean against English, or of changed texts against unchanged ones.

    Args:
        hits: of each item, between 0 and 1.
        baseline: of the same items in the same order.
        seed: of the draws.

    Raises:
        ValueError: there is no item, or the two have another number.

    Example:
        >>> gap([1, 0, 1, 1], [0, 0, 1, 0])[0]
        0.5
    """
    ours, theirs = np.asarray(hits, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    _require_pairs(ours.shape, theirs.shape)
    return measure(ours - theirs, seed)


def agreement(
    korean: torch.Tensor, english: torch.Tensor, targets: torch.Tensor | None = None, seed: int = 0
) -> dict[str, Estimate]:
    """How far zero-shot classification in Korean and in English says the same of the same pictures.

    Args:
        korean: predicted classes, int64, (pictures,).
        english: likewise.
        targets: true classes, where they are known.
        seed: of the draws.

    Returns:
        "agreement", the share of pictures that are given the same class; "kappa", what agreement there is beyond that
        of chance; and with targets the shares "both_right", "only_ko_right", "only_en_right" and "both_wrong".

    Raises:
        ValueError: there is no picture, or the arguments have another number.

    Example:
        >>> shares = agreement(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]), torch.tensor([0, 1, 1, 1]))
        >>> {name: value for name, (value, _, _) in shares.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'agreement': 0.75, 'kappa': 0.5,
         'both_right': 0.5, 'only_ko_right': 0.25, 'only_en_right': 0.0, 'both_wrong': 0.25}
    """
    ko, en = korean.numpy(), english.numpy()
    _require_pairs(ko.shape, en.shape)
    figures = {
        "agreement": measure(ko == en, seed),
        "kappa": bootstrap(lambda items: _kappa(ko[items], en[items]), len(ko), seed=seed),
    }
    if targets is not None:
        _require_pairs(ko.shape, targets.shape)
        ko_right, en_right = ko == targets.numpy(), en == targets.numpy()
        shares = {"both_right": ko_right & en_right, "only_ko_right": ko_right & ~en_right}
        shares |= {"only_en_right": ~ko_right & en_right, "both_wrong": ~ko_right & ~en_right}
        figures |= {name: measure(hits, seed) for name, hits in shares.items()}
    return figures


def _kappa(first: np.ndarray, second: np.ndarray) -> float:
    """(observed - chance) / (1 - chance) (Cohen 1960); 0 where both give every item the same one class.

    Chance is agreement of independent predictions with the same shares of classes. With one class it is certain, and
    agreement tells nothing.
    """
    classes = int(max(first.max(), second.max())) + 1
    shares = [np.bincount(predictions, minlength=classes) / len(predictions) for predictions in (first, second)]
    chance = float(shares[0] @ shares[1])
    return 0.0 if chance == 1 else (float((first == second).mean()) - chance) / (1 - chance)


def text_retrieval_ranks(
    ko_embeds: torch.Tensor, en_embeds: torch.Tensor, ko_texts: Sequence[str], en_texts: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks of each Korean text's best English counterpart, and of each English text's best Korean one.

    Equal texts stand once among those that are searched, and whatever a text is paired with in any row answers it.
    Every row is a query, so both results are int64, (pairs,).

    Raises:
        ValueError: the arguments have another number of rows.
    """
    for rows in (en_embeds, ko_texts, en_texts):
        _require_pairs((len(ko_embeds),), (len(rows),))
    ko_numbers, ko_first = _distinct(ko_texts)
    en_numbers, en_first = _distinct(en_texts)
    answers_of_ko: list[dict[int, None]] = [{} for _ in ko_first]
    answers_of_en: list[dict[int, None]] = [{} for _ in en_first]
    for ko_number, en_number in zip(ko_numbers, en_numbers, strict=True):
        answers_of_ko[ko_number][en_number] = None
        answers_of_en[en_number][ko_number] = None
    of_korean = relevant_ranks(ko_embeds, en_embeds[en_first], [list(answers_of_ko[number]) for number in ko_numbers])
    of_english = relevant_ranks(en_embeds, ko_embeds[ko_first], [list(answers_of_en[number]) for number in en_numbers])
    return of_korean.min(dim=1).values, of_english.min(dim=1).values


def _distinct(texts: Sequence[str]) -> tuple[list[int], list[int]]:
    """The number of each text among the distinct ones, and the row in which each of those comes first."""
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        first.setdefault(text, row)
    numbers = {text: number for number, text in enumerate(first)}
    return [numbers[text] for text in texts], list(first.values())


def cloud_gap(first: torch.Tensor, second: torch.Tensor, seed: int = 0) -> dict[str, Estimate]:
    """How far two clouds of embeddings stand apart: the modality gap of pictures and texts, or that of two languages.

    Args:
        first: (pairs, dimensions), two pairs at least.
        second: the same size; row by row what matches the first.
        seed: of the draws.

    Returns:
        "distance" between the means of the clouds, from 0 to 2; "matching_cosine", the mean cosine of the pairs;
        and "other_cosine", that of all others.

    Raises:
        ValueError: there are fewer than two pairs, or the sizes differ.

    Reference:
        Liang et al. 2022 (Mind the Gap, section 2): the gap is the difference of the two means. Its length is positive
        even for clouds of one distribution: about sqrt(2 (1 - m) / n), m being the squared length of the mean. The
        interval takes the direction of the difference as given (the delta method), since the length in draws, being
        convex, is larger than in the items on the whole. The interval of "other_cosine", a mean over pairs of items,
        is that of its first-order part, twice each item's mean with all others (Hoeffding 1948), so that no item is
        drawn as its own stranger.
    """
    _require_pairs(tuple(first.shape), tuple(second.shape))
    n = len(first)
    if n < 2:
        raise ValueError(f"there are {n} pairs; the cosine of what does not match needs two at least.")
    ours, theirs = first.double(), second.double()
    difference = (ours - theirs).mean(dim=0)
    along = (ours - theirs) @ torch.nn.functional.normalize(difference, dim=0)
    matching = (ours * theirs).sum(dim=1)
    with_all = (ours @ theirs.sum(dim=0) + theirs @ ours.sum(dim=0)) / 2
    with_others = (with_all - matching) / (n - 1)
    return {
        "distance": measure(along.numpy(), seed),
        "matching_cosine": measure(matching.numpy(), seed),
        "other_cosine": measure((2 * with_others - with_others.mean()).numpy(), seed),
    }


def projection(clouds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The clouds in the plane in which they vary most together, each float64, (items, 2).

    The first two principal components of all rows, centred on their common mean; the largest entry of each is
    positive, so that a picture of the same embeddings never comes out mirrored.

    Args:
        clouds: (items, dimensions) each, with two dimensions and two rows in all at least.
    """
    rows = torch.cat(list(clouds.values())).double()
    centred = rows - rows.mean(dim=0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    places = centred @ (axes * largest.sign()).T
    return dict(zip(clouds, places.split([len(cloud) for cloud in clouds.values()]), strict=True))


def draw_gaps(clouds: Mapping[str, torch.Tensor]) -> str:
    """Pictures and their texts in two languages, or the texts alone, in the plane of their `projection`, as SVG.

    Of more than 400 items 400 are drawn, and of 8 of them lines between what belongs together, evenly spread over the
    rows.

    Args:
        clouds: (items, dimensions) under `KOREAN` and `ENGLISH`, and under `PICTURES` where there are some; two items
            at least, row by row the same ones.

    Raises:
        ModuleNotFoundError: matplotlib is absent.
        ValueError: the sizes differ.
    """
    for cloud in clouds.values():
        _require_pairs(tuple(clouds[KOREAN].shape), tuple(cloud.shape))
    return svg_of(_scatter(projection(clouds)))


def _scatter(places: Mapping[str, torch.Tensor]) -> Any:
    """A figure of the clouds and lines between some matching items, the axes to one scale."""
    figure = new_figure(6.4, 4.6)
    axes = figure.add_subplot()
    items = len(places[KOREAN])
    joined = _spread(items, _JOINED)
    for number in joined:
        way = torch.stack([places[name][number] for name in (KOREAN, PICTURES, ENGLISH) if name in places])
        axes.plot(*way.T.numpy(), color=INK, linewidth=0.7, alpha=0.6)
    for name, points in places.items():
        axes.scatter(*points[_spread(items, _DRAWN)].T.numpy(), s=14, color=_COLOURS[name], alpha=0.3, linewidths=0)
        ends = {"s": 34, "edgecolors": "white", "linewidths": 0.8, "zorder": 3}
        axes.scatter(*points[joined].T.numpy(), color=_COLOURS[name], label=name, **ends)
    axes.lines[0].set_label("a picture and its texts" if PICTURES in places else "texts of one row")
    axes.set_aspect("equal", adjustable="datalim")
    axes.locator_params(nbins=6)
    axes.set_xlabel("first principal component", color=INK)
    axes.set_ylabel("second principal component", color=INK)
    plain_axes(axes)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, labelcolor=INK, handletextpad=0.4)
    return figure


def _spread(items: int, most: int) -> list[int]:
    """Numbers of at most so many items, evenly spread."""
    return [items * number // min(items, most) for number in range(min(items, most))]


def _require_pairs(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    if first != second:
        raise ValueError(f"the sizes are {tuple(first)} and {tuple(second)}; give the same items in the same order.")
