"""Ranks, recalls and intervals, by hand and against scipy."""

import numpy as np
import pytest
import torch
from scipy import stats

from ko_en_clip.evaluation.metrics import RECALL_AT, measure, ranks
from ko_en_clip.evaluation.prompts import fill_template, prompts_for
from ko_en_clip.evaluation.retrieval import image_text_ranks
from ko_en_clip.evaluation.zero_shot import classify


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
    assert (of_images.tolist(), of_texts.tolist()) == ([2, 1], [2, 1, 2])
    # The twin: true captions are found.
    of_images, of_texts = image_text_ranks(images, texts, [[2], [0, 1]])
    assert (of_images.tolist(), of_texts.tolist()) == ([1, 1], [1, 1, 1])


def test_classes_are_the_nearest() -> None:
    classes = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]]), dim=1)
    assert classify(torch.tensor([[0.1, 0.9], [0.8, 0.6], [-0.9, 0.2]]), classes).tolist() == [1, 0, 2]


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
