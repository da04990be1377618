"""Ranks, recalls and intervals, by hand and against scipy."""

import math
from fractions import Fraction

import numpy as np
import pytest
import sklearn.metrics
import torch
from scipy import stats

from ko_en_clip.evaluation.metrics import (
    RECALL_AT,
    average_precision,
    bootstrap,
    difference_of_means,
    mean_and_draws,
    mean_per_class,
    measure,
    ranks,
)
from ko_en_clip.evaluation.prompts import fill_template, prompts_for
from ko_en_clip.evaluation.retrieval import NOT_FOUND, hits_and_shares, image_text_ranks, relevant_ranks


def relevant(*rows: list[int], items: int) -> torch.Tensor:
    table = torch.zeros(len(rows), items, dtype=torch.bool)
    for number, row in enumerate(rows):
        table[number, row] = True
    return table


# Ranks


@pytest.mark.parametrize(
    ("scores", "answers", "rank"),
    [
        ([0.9, 0.1, 0.5], [0], 1),
        ([0.9, 0.1, 0.5], [2], 2),
        ([0.9, 0.1, 0.5], [1], 3),
        # Several relevant items: the best of them counts, and the others are not in its way.
        ([0.9, 0.8, 0.5, 0.4], [1, 3], 2),
        ([0.9, 0.8, 0.7, 0.4], [0, 1, 2], 1),
        ([0.9, 0.8, 0.7, 0.4], [2, 3], 3),
        # A tie with what is not relevant counts against the query; one with what is relevant does not.
        ([0.5, 0.5, 0.1], [0], 2),
        ([0.5, 0.5, 0.1], [0, 1], 1),
        ([0.5, 0.5, 0.5, 0.5], [2], 4),
        ([0.5, 0.5, 0.5, 0.5], [0, 2], 3),
        ([0.9, 0.5, 0.5, 0.5], [1], 4),
        # Negative scores are scores.
        ([-0.9, -0.1, -0.5], [2], 2),
    ],
)
def test_ranks_by_hand(scores: list[float], answers: list[int], rank: int) -> None:
    assert ranks(torch.tensor([scores]), relevant(answers, items=len(scores))).tolist() == [rank]


def test_ranks_of_a_table() -> None:
    """By hand, the relevant ones marked: [.9* .2 .3], [.4 .6 .5*], [.1 .7* .7*], [.8 .8 .8*]."""
    similarity = torch.tensor([[0.9, 0.2, 0.3], [0.4, 0.6, 0.5], [0.1, 0.7, 0.7], [0.8, 0.8, 0.8]])
    found = ranks(similarity, relevant([0], [2], [1, 2], [2], items=3))
    assert found.tolist() == [1, 2, 1, 3]
    # The twin: other answers have other ranks.
    assert ranks(similarity, relevant([1], [0], [0], [0], items=3)).tolist() == [3, 3, 3, 3]


def test_ranks_are_those_of_sorting() -> None:
    """Without ties: the place of the first relevant item in falling order, item by item."""
    rng = np.random.default_rng(0)
    scores = rng.permutation(30 * 12).reshape(30, 12).astype(np.float32)
    answers = rng.random((30, 12)) < 0.2
    answers[:, 3] = True
    expected = [
        next(place for place, item in enumerate(np.argsort(-row), 1) if hit[item])
        for row, hit in zip(scores, answers, strict=True)
    ]
    assert ranks(torch.from_numpy(scores), torch.from_numpy(answers)).tolist() == expected
    assert len(set(expected)) > 3


def test_same_score_for_everything_finds_nothing() -> None:
    found = ranks(torch.zeros(20, 20), torch.eye(20, dtype=torch.bool))
    assert found.tolist() == [20] * 20
    assert not (found <= max(RECALL_AT)).any()


def test_both_directions_by_hand() -> None:
    """Two pictures, three texts; texts 0 and 1 describe picture 0, texts 1 and 2 picture 1.

    Cosines: picture 0 [0.6, 0.0, 1.0], picture 1 [0.8, 1.0, 0.0]. Picture 0: its best caption has 0.6, text 2 has 1:
    rank 2. Picture 1: its text 1 is best: rank 1. Text 0 is nearer to picture 1: rank 2. Text 1 describes
    both: rank 1. Text 2: picture 1 has 0, picture 0 has 1: rank 2.
    """
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.6, 0.8], [0.0, 1.0], [1.0, 0.0]])
    of_images, of_texts = image_text_ranks(images, texts, [[0, 1], [1, 2]])
    assert (of_images.tolist(), of_texts.tolist()) == ([[2, 3], [1, 3]], [[2, NOT_FOUND], [2, 1], [2, NOT_FOUND]])
    # The twin: true captions are found.
    of_images, of_texts = image_text_ranks(images, texts, [[2], [0, 1]])
    assert (of_images.tolist(), of_texts.tolist()) == ([[1, NOT_FOUND], [2, 1]], [[1], [1], [1]])


def test_ranks_in_blocks_are_those_of_sorting():
    """By sorting plain Python numbers: other items of the same score stand first, answers in their order."""
    draw = torch.Generator().manual_seed(0)
    # Whole numbers, so that many scores tie, and tie exactly.
    queries, items = (torch.randint(-2, 3, (num, 3), generator=draw).float() for num in (23, 41))
    answers = [sorted(torch.randperm(41, generator=draw)[: number % 4].tolist()) for number in range(23)]
    expected = torch.full((23, 3), NOT_FOUND)
    for query, numbers in enumerate(answers):
        scores = (queries[query] * items).sum(dim=1).tolist()
        order = sorted(range(41), key=lambda item: (-scores[item], item in numbers, item))
        for place, number in enumerate(numbers):
            expected[query, place] = order.index(number) + 1
    for query_block, item_block in [(1024, 65536), (5, 41), (23, 7), (1, 1)]:
        found = relevant_ranks(queries, items, answers, query_block=query_block, item_block=item_block)
        assert torch.equal(found, expected), (query_block, item_block)
    # The twin: with other answers the ranks are others.
    others = [[(number + 1) % 41 for number in numbers] for numbers in answers]
    assert not torch.equal(relevant_ranks(queries, items, others), expected)


def test_equal_items_in_different_blocks_tie():
    draw = torch.Generator().manual_seed(0)
    item = torch.randn(1, 512, generator=draw)
    queries = torch.randn(3, 512, generator=draw)
    found = relevant_ranks(queries, item.expand(8, -1).contiguous(), [[0], [4], [7]], item_block=3)
    # A model that gives everything the same score finds nothing.
    assert found.tolist() == [[8]] * 3


def test_hits_and_shares_by_hand():
    """Captions at ranks 1 and 7; at 6 alone; at 2 and 3; none."""
    found = torch.tensor([[1, 7], [6, NOT_FOUND], [2, 3], [NOT_FOUND, NOT_FOUND]])
    table = {1: ([True, False, False, False], [0.5, 0.0, 0.0, 0.0])}
    table[5] = ([True, False, True, False], [0.5, 0.0, 1.0, 0.0])
    table[10] = ([True, True, True, False], [1.0, 1.0, 1.0, 0.0])
    for k, (hits, shares) in table.items():
        assert [values.tolist() for values in hits_and_shares(found, k)] == [hits, shares]


# Intervals


@pytest.mark.parametrize(("num", "hits"), [(200, 60), (500, 25), (150, 75)])
def test_interval_is_scipys_percentile_bootstrap(num: int, hits: int) -> None:
    values = np.zeros(num)
    values[:hits] = 1
    value, low, high = measure(values.astype(bool))
    interval = {
        confidence: stats.bootstrap(
            (values,), np.mean, n_resamples=20_000, confidence_level=confidence, method="percentile", rng=1
        ).confidence_interval
        for confidence in (0.95, 0.8)
    }
    # The 2.5 % point of 1,000 draws strays by sqrt(0.025 * 0.975 / 1000) / 0.058 = 0.085 standard deviations; three
    # times that, and the step of one item.
    allowed = 3 * 0.085 * values.std() / np.sqrt(num) + 1 / num
    assert value == hits / num
    assert (low, high) == pytest.approx(interval[0.95], abs=allowed)
    # The twin: the 80 % interval is another.
    assert low < interval[0.8].low - allowed
    assert high > interval[0.8].high + allowed


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        _, low, high = measure(rng.random(60) < 0.4, seed=seed)
        covered += low <= 0.4 <= high
    # 95 of 100, less the few that discreteness costs; five standard deviations are 11.
    assert 84 <= covered <= 100


def test_interval_is_the_same_for_the_same_seed() -> None:
    hits = np.random.default_rng(0).random(500) < 0.37
    assert measure(hits, seed=1) == measure(hits, seed=1)
    assert measure(hits, seed=1) != measure(hits, seed=2)
    assert measure(list(hits), seed=1) == measure(hits, seed=1)


@pytest.mark.parametrize("hit", [True, False])
def test_certain_result_has_no_width(hit: bool) -> None:
    assert measure([hit] * 20) == (float(hit), float(hit), float(hit))


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="no item is left"):
        measure([])


# Prompts


@pytest.mark.parametrize(
    ("template", "label", "expected"),
    [
        ("a photo of a {}.", "dog", "a photo of a dog."),
        ("{} 사진", "개", "개 사진"),
        ("{}{을/를} 찍은 사진", "개", "개를 찍은 사진"),
        ("{}{을/를} 찍은 사진", "말", "말을 찍은 사진"),
        ("이것은 {}{이다/다}", "트럭", "이것은 트럭이다"),
        ("{}{이/가} 있다. {}{은/는} 크다.", "사슴", "사슴이 있다. 사슴은 크다."),
        ("{}{으로/로} 간다", "서울", "서울로 간다"),
    ],
)
def test_template_takes_the_label_and_its_particle(template: str, label: str, expected: str) -> None:
    assert fill_template(template, label) == expected
    assert fill_template(template, "고양이" if "{을/를}" in template else "새") != expected


def test_bad_templates_are_refused() -> None:
    with pytest.raises(ValueError, match="'a photo' has no {} for the label"):
        fill_template("a photo", "dog")
    with pytest.raises(ValueError, match="word is 'dog'"):
        fill_template("{}{을/를} 찍은 사진", "dog")
    with pytest.raises(ValueError, match="both forms"):
        fill_template("{}{을} 찍은 사진", "개")


def test_prompts_are_templates_by_label() -> None:
    assert prompts_for(["개", "말"], ["{} 사진", "{}{을/를} 본다"]) == [
        ["개 사진", "개를 본다"],
        ["말 사진", "말을 본다"],
    ]


# Bootstrap and metrics of whole classes


def test_measure_is_the_bootstrap_of_a_mean():
    hits = np.random.default_rng(3).random(400) < 0.3
    value, low, high = bootstrap(lambda items: hits[items].mean(), len(hits))
    assert value == hits.mean() and measure(hits) == (value, low, high)
    # The twins: another seed draws other items, and a statistic that weighs the first half alone is another.
    assert bootstrap(lambda items: hits[items].mean(), len(hits), seed=1)[1:] != (low, high)
    assert bootstrap(lambda items: hits[items[:200]].mean(), len(hits))[2] > high


@pytest.mark.parametrize("kind", ["hits", "means over frames", "all distinct"])
def test_the_interval_of_a_difference_is_scipys(kind: str) -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.random(num) < share for num, share in ((150, 0.3), (400, 0.5)))
    if kind == "means over frames":
        first, second = ((rng.binomial(10, share, size=num) / 10) for num, share in ((150, 0.3), (400, 0.5)))
    elif kind == "all distinct":
        first, second = rng.random(150) ** 2, rng.random(400)
    value, low, high = difference_of_means(first, second)
    expected = stats.bootstrap(
        (first.astype(float), second.astype(float)),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        n_resamples=20_000,
        method="percentile",
        rng=1,
    )
    # Sums in another order.
    assert value == pytest.approx(first.mean() - second.mean(), abs=1e-12)
    # As above: three times 0.085 standard deviations, and the step of one item of each set.
    allowed = 3 * 0.085 * expected.standard_error + 1 / 150 + 1 / 400
    assert (low, high) == pytest.approx(expected.confidence_interval, abs=allowed)
    # The twins: the other way round it lies on the other side, and of sets of equal means it covers none.
    assert difference_of_means(second, first)[0] == pytest.approx(-value) and low < value < high < 0
    assert difference_of_means(first, first)[1] < 0 < difference_of_means(first, first)[2]
    with pytest.raises(ValueError, match="nothing to measure"):
        difference_of_means(first, second[:0])


def test_draws_of_a_mean_are_of_as_many_items() -> None:
    """Means of three items of 0, 1, 1 lie at thirds, and 0 comes as often as (1 / 3)^3 of 1,000 draws, 37 times."""
    mean, draws = mean_and_draws(np.array([False, True, True]), np.random.default_rng(0))
    assert mean == pytest.approx(2 / 3) and len(draws) == 1000
    counts = {third: int(np.isclose(draws, third / 3).sum()) for third in range(4)}
    assert sum(counts.values()) == 1000
    # Five standard deviations of a binomial of 1,000.
    for third, share in enumerate([1 / 27, 6 / 27, 12 / 27, 8 / 27]):
        assert abs(counts[third] - 1000 * share) < 5 * math.sqrt(1000 * share * (1 - share))


def test_draws_that_do_not_define_a_statistic_are_left_out():
    value, low, high = bootstrap(lambda items: 1.0 if 0 in items else math.nan, 3)
    assert (value, low, high) == (1.0, 1.0, 1.0)


def test_classes_count_equally_in_a_mean_over_classes():
    targets = np.array([0, 0, 0, 2])
    hits = np.array([True, True, False, False])
    assert mean_per_class(hits, targets) == pytest.approx((2 / 3 + 0) / 2)
    rng = np.random.default_rng(0)
    targets, predicted = rng.integers(5, size=200), rng.integers(5, size=200)
    found = mean_per_class(predicted == targets, targets)
    assert found == pytest.approx(sklearn.metrics.balanced_accuracy_score(targets, predicted))
    # The twin: of unequal classes the mean over items is another.
    assert found != pytest.approx((predicted == targets).mean())


def eleven_points(scores, relevant):
    """By the definition: every cut between two scores, every level of recall."""
    points = []
    for cut in sorted(set(scores)):
        chosen = [bool(is_relevant) for score, is_relevant in zip(scores, relevant, strict=True) if score >= cut]
        points.append((Fraction(sum(chosen), int(sum(relevant))), Fraction(sum(chosen), len(chosen))))
    return float(
        sum(max(precision for recall, precision in points if recall >= Fraction(level, 10)) for level in range(11))
        / Fraction(11)
    )


def test_eleven_point_average_precision():
    """By hand: two relevant items at ranks 1 and 3; precision 1 up to recall 0.5, then 2/3."""
    scores, relevant = np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False])
    assert average_precision(scores, relevant) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    # Two items of one score come at once, so that neither order is the lucky one.
    tied = average_precision(np.array([0.9, 0.9]), np.array([True, False]))
    assert tied == average_precision(np.array([0.9, 0.9]), np.array([False, True])) == 0.5
    assert math.isnan(average_precision(scores, np.zeros(4, bool)))
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores, relevant = rng.integers(8, size=30) / 8, rng.random(30) < 0.3
        relevant[0] = True
        assert average_precision(scores, relevant) == pytest.approx(eleven_points(scores, relevant))
