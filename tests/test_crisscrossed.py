"""Crisscrossed Captions: the bootstrap against a loop in plain Python, retrieval against tables worked by hand."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from ko_en_clip.evaluation import crisscrossed
from ko_en_clip.evaluation.crisscrossed import (
    POSITIVE_FROM,
    CocoSplit,
    Ratings,
    correlation_results,
    graded_positives,
    graded_ranks,
    query_draws,
    read_coco_split,
    read_ratings,
    retrieval_results,
    sampled_spearman,
    similarities_of,
)

A, B, C = (f"COCO_val2014_00000000000{number}.jpg" for number in (1, 2, 3))
A0, A1, B0, B1, C0, C1 = (f"COCO_val2014:sentid:{number}" for number in (10, 11, 20, 21, 30, 31))
STS = f"""caption1,caption2,agg_score,sampling_method
{A0},{A1},4.1,c2c_cocaption
{B0},{B1},1.24,c2c_cocaption
{A1},{B0},3.0,c2c_isim
{B1},{C1},2.99,c2c_isim
"""
SIS = f"""image1,image2,agg_score,sampling_method
{A},{B},2.5,i2i_csim
{A},{C},2.49,i2i_csim
{B},{C},0.0,i2i_csim
"""
SITS = f"""caption,image,agg_score,sampling_method
{A1},{B},3.0,c2i_intrasim
{B1},{A},2.99,c2i_intrasim
{C0},{C},0.2,c2i_original
{A0},{A},5.0,c2i_original
"""
# No id is a picture of MS-COCO that is at hand, and the vectors are made up: what is tested is the counting.
IMAGE_EMBEDS = torch.eye(3)
TEXT_EMBEDS = torch.tensor(
    [[0.9, 0.1, 0.0], [0.2, 0.8, 0.1], [0.1, 0.7, 0.3], [0.6, 0.5, 0.0], [0.0, 0.3, 0.9], [0.4, 0.0, 0.5]]
)
NEVER = torch.iinfo(torch.int64).max


@pytest.fixture
def split() -> CocoSplit:
    return CocoSplit(
        images=[A, B, C],
        caption_ids=[A0, A1, B0, B1, C0, C1],
        captions=["a cat", "a cat with a dog", "a dog", "a dog by a cat", "a boat", "a boat and a cat"],
        image_of_caption=[0, 0, 1, 1, 2, 2],
    )


def ratings(folder: Path, text: str) -> Ratings:
    file = folder / "ratings.csv"
    file.write_text(text)
    return read_ratings(file)


# Files


def test_the_three_files_are_read(tmp_path: Path) -> None:
    sts, sis, sits = (ratings(tmp_path, text) for text in (STS, SIS, SITS))
    assert (sts.task, sis.task, sits.task) == ("sts", "sis", "sits")
    assert sts.first == [A0, B0, A1, B1] and sts.second == [A1, B1, B0, C1]
    assert sis.first == [A, A, B] and sis.second == [B, C, C]
    assert sits.first == [A1, B1, C0, A0] and sits.second == [B, A, C, A]
    assert sts.scores.tolist() == [4.1, 1.24, 3.0, 2.99] and sis.scores.tolist() == [2.5, 2.49, 0.0]
    assert sits.methods == ["c2i_intrasim", "c2i_intrasim", "c2i_original", "c2i_original"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: ''"),
        ("caption1,caption2,score1,sampling_method\n", "line 1: 'caption1,caption2,score1"),
        (f"{A0},{A1},4.1,c2c_cocaption\n", "line 1: 'COCO_val2014:sentid:10"),
        ("caption1,caption2,agg_score,sampling_method\n", "holds no rating"),
        (STS + f"{A0},{A1},4.1\n", "line 6: 3 fields"),
        (STS + f"{A0},{A1},4.1,c2c_isim,1\n", "line 6: 5 fields"),
        (STS + f"{A0},{A1},high,c2c_isim\n", "line 6: the score is 'high'"),
        (STS + f"{A0},{A1},5.1,c2c_isim\n", "line 6: the score is 5.1"),
        (STS + f"{A0},{A1},nan,c2c_isim\n", "line 6: the score is nan"),
    ],
)
def test_malformed_files_are_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ratings(tmp_path, text)


def test_karpathys_split_is_read(tmp_path: Path, split: CocoSplit) -> None:
    captions = dict(zip(split.caption_ids, split.captions, strict=True))

    def image(name: str, part: str, *ids: str) -> dict[str, object]:
        sentences = [
            {"raw": captions.get(one, "elsewhere"), "sentid": int(one.split(":")[-1]), "tokens": []} for one in ids
        ]
        return {"filename": name, "split": part, "sentences": sentences, "cocoid": 1}

    file = tmp_path / "dataset_coco.json"
    pictures = [
        image(A, "test", A0, A1),
        image("COCO_val2014_9.jpg", "val", "COCO_val2014:sentid:90"),
        image(B, "test", B0, B1),
        image(C, "test", C0, C1),
    ]
    file.write_text(json.dumps({"images": pictures, "dataset": "coco"}))
    assert read_coco_split(file, "test") == split
    assert read_coco_split(file, "val").caption_ids == ["COCO_val2014:sentid:90"]
    with pytest.raises(ValueError, match="no picture of split 'dev'"):
        read_coco_split(file, "dev")


# Correlation


def plain_ranks(values: Sequence[float]) -> list[float]:
    """One more than the number below, and half of the others that are equal."""
    return [1 + sum(o < v for o in values) + (sum(o == v for o in values) - 1) / 2 for v in values]


def plain_spearman(first: Sequence[float], second: Sequence[float]) -> float:
    x, y = plain_ranks(first), plain_ranks(second)
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))


def table(rows: int, queries: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Similarities and scores with ties, and queries with one row to several; each query has one at least."""
    rng = np.random.default_rng(seed)
    numbers = np.concatenate([np.arange(queries), rng.integers(0, queries, rows - queries)])
    similarity = np.round(rng.uniform(0, 1, rows), 2)
    scores = np.round((similarity * 5 + rng.normal(size=rows)).clip(0, 5), 1)
    return similarity, scores, [f"query{number:05}" for number in rng.permutation(numbers)]


@pytest.mark.parametrize(("rows", "queries"), [(60, 30), (45, 15), (31, 31)])
def test_the_bootstrap_is_a_loop_in_plain_python(rows: int, queries: int) -> None:
    similarity, scores, names = table(rows, queries, seed=rows)
    numbers = np.array([sorted(set(names)).index(name) for name in names])
    correlations = []
    for drawn in query_draws(numbers, draws=200, seed=4):
        model, people = [float(similarity[row]) for row in drawn], [float(scores[row]) for row in drawn]
        correlations.append(plain_spearman(model, people))
        # The oracle itself is scipy's; float64 in another order.
        assert correlations[-1] == pytest.approx(stats.spearmanr(model, people).statistic, abs=1e-12)
    mean = sum(correlations) / 200
    std = math.sqrt(sum((value - mean) ** 2 for value in correlations) / 199)
    found = sampled_spearman(similarity, scores, names, draws=200, seed=4)
    assert (found.mean, found.std) == pytest.approx((mean, std), abs=1e-12)
    assert found.low == pytest.approx(np.percentile(correlations, 2.5), abs=1e-12)
    assert found.high == pytest.approx(np.percentile(correlations, 97.5), abs=1e-12)
    # The twins: other draws, and the correlation of all rows.
    assert sampled_spearman(similarity, scores, names, draws=200, seed=5).mean != pytest.approx(mean, abs=1e-6)
    assert found.mean != pytest.approx(plain_spearman(list(similarity), list(scores)), abs=1e-6)


@pytest.mark.parametrize("queries", [10, 11])
def test_draws_take_half_of_the_queries_and_one_row_of_each(queries: int) -> None:
    numbers = np.array([*range(queries), 0, 0, 0, 3])
    draws = list(query_draws(numbers, draws=4000, seed=0))
    assert len(draws) == 4000
    for drawn in draws:
        assert len(drawn) == len(set(numbers[drawn])) == queries // 2
    rows = Counter(int(row) for drawn in draws for row in drawn)
    taken = Counter(int(numbers[row]) for drawn in draws for row in drawn)
    share = queries // 2 / queries
    for query in range(queries):
        # Four standard deviations of a share over 4,000 draws, which are below 0.5 / sqrt(4000) each.
        assert taken[query] / 4000 == pytest.approx(share, abs=0.032)
    for row in (0, queries, queries + 1, queries + 2):
        assert rows[row] / 4000 == pytest.approx(share / 4, abs=0.032)
    assert rows[1] == taken[1]


def test_shuffled_scores_do_not_correlate() -> None:
    similarity, scores, names = table(6000, 2500, seed=0)
    assert sampled_spearman(similarity, scores, names, draws=100).mean > 0.7
    shuffled = np.random.default_rng(1).permutation(scores)
    # Four standard errors of a correlation of 0 over 2,500 queries, 1 / sqrt(2500) each.
    assert abs(sampled_spearman(similarity, shuffled, names, draws=100).mean) < 0.08
    perfect = sampled_spearman(similarity, similarity**3, names, draws=10)
    assert (perfect.mean, perfect.std) == pytest.approx((1, 0), abs=1e-12)


def test_too_few_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="no correlation is defined over 1 pairs"):
        sampled_spearman(np.array([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 3.0]), ["a", "b", "b"])


def test_similarities_are_of_the_rated_pairs(tmp_path: Path, split: CocoSplit) -> None:
    """By hand, from the vectors at the head of the file."""
    found = [similarities_of(ratings(tmp_path, text), split, IMAGE_EMBEDS, TEXT_EMBEDS) for text in (STS, SIS, SITS)]
    # Products of float32, added in float64.
    assert found[0] == pytest.approx([0.26, 0.41, 0.61, 0.24], abs=1e-6)
    assert found[1].tolist() == [0, 0, 0]
    assert found[2] == pytest.approx([0.8, 0.6, 0.9, 0.9], abs=1e-6)


def test_items_of_another_split_are_refused(tmp_path: Path, split: CocoSplit) -> None:
    other = ratings(tmp_path, STS + "COCO_val2014:sentid:99,COCO_val2014:sentid:10,1.0,c2c_isim\n")
    with pytest.raises(ValueError, match="1 of 5 ids of the sts ratings.*sentid:99"):
        similarities_of(other, split, IMAGE_EMBEDS, TEXT_EMBEDS)
    with pytest.raises(ValueError, match="sentid:99"):
        graded_positives(split, [other], POSITIVE_FROM)


def test_correlation_results() -> None:
    """Captions whose similarity is their rating: a correlation of one; the twin with ratings turned round has -1."""
    captions = [f"COCO_val2014:sentid:{number}" for number in range(40)]
    split = CocoSplit(images=[A], caption_ids=captions, captions=["caption"] * 40, image_of_caption=[0] * 40)
    embeds = torch.linspace(0.1, 1, 40)[:, None]
    scores = (embeds[:, 0] * 5).double().numpy()
    for sign, turned in ((1, scores), (-1, 5 - scores)):
        rated = Ratings(task="sits", first=captions, second=[A] * 40, scores=turned, methods=["c2i_original"] * 40)
        mean, std = correlation_results([rated], split, torch.ones(1, 1), embeds, dataset="cxc", language="en")
        assert (mean.task, mean.metric, mean.language, mean.n) == ("crisscrossed_sits", "sampled_spearman", "en", 40)
        assert (mean.value, mean.low, mean.high) == pytest.approx((sign, sign, sign), abs=1e-12)
        assert std.metric == "sampled_spearman_std" and std.value == pytest.approx(0, abs=1e-12)


# Retrieval


def test_positives_are_the_original_pairs_and_those_rated_highly(tmp_path: Path, split: CocoSplit) -> None:
    """By hand. The caption pair of B rated 1.24 stays a pair, and so does the caption of C rated 0.2."""
    rated = [ratings(tmp_path, text) for text in (STS, SIS, SITS)]
    assert graded_positives(split, rated, POSITIVE_FROM) == {
        "image_to_text": [{0, 1}, {1, 2, 3}, {4, 5}],
        "text_to_image": [{0}, {0, 1}, {1}, {1}, {2}, {2}],
        "text_to_text": [{1}, {0, 2}, {3, 1}, {2}, {5}, {4}],
        "image_to_image": [{1}, {0}, set()],
    }
    # The twins: without ratings, and with thresholds a hundredth lower.
    assert graded_positives(split, [], POSITIVE_FROM) == {
        "image_to_text": [{0, 1}, {2, 3}, {4, 5}],
        "text_to_image": [{0}, {0}, {1}, {1}, {2}, {2}],
        "text_to_text": [{1}, {0}, {3}, {2}, {5}, {4}],
        "image_to_image": [set(), set(), set()],
    }
    lower = graded_positives(split, rated, {"sts": 2.99, "sis": 2.49, "sits": 2.99})
    assert lower["text_to_image"][3] == {0, 1} and lower["image_to_text"][0] == {0, 1, 3}
    assert lower["text_to_text"][3] == {2, 5} and lower["image_to_image"] == [{1, 2}, {0}, {0}]


def test_ranks_by_hand(tmp_path: Path, split: CocoSplit) -> None:
    """A1 is nearer to B than to its own A, and B1 nearer to A: only the former is forgiven, by its rating of 3."""
    plain = graded_positives(split, [], POSITIVE_FROM)
    graded = graded_positives(split, [ratings(tmp_path, SITS)], POSITIVE_FROM)
    expected = {
        "text_to_image": ([1, 2, 1, 2, 1, 1], [1, 1, 1, 2, 1, 1]),
        "image_to_text": ([1, 2, 1], [1, 1, 1]),
    }
    for direction, answers in expected.items():
        sides = (TEXT_EMBEDS, IMAGE_EMBEDS) if direction == "text_to_image" else (IMAGE_EMBEDS, TEXT_EMBEDS)
        for positives, ranks in zip((plain, graded), answers, strict=True):
            assert graded_ranks(*sides, positives[direction], same_items=False).tolist() == ranks


def test_a_query_is_no_candidate_of_its_own() -> None:
    """Orthogonal pictures: the other two tie at zero, which counts against the query, and the third has no answer."""
    positives = [{1}, {0}, set[int]()]
    assert graded_ranks(IMAGE_EMBEDS, IMAGE_EMBEDS, positives, same_items=True).tolist() == [2, 2, NEVER]
    assert graded_ranks(IMAGE_EMBEDS, IMAGE_EMBEDS, positives, same_items=False).tolist() == [3, 3, NEVER]
    # Nor is it an answer, should a file rate an item with itself.
    with_itself = [{0, 1}, {1, 0}, {2}]
    assert graded_ranks(IMAGE_EMBEDS, IMAGE_EMBEDS, with_itself, same_items=True).tolist() == [2, 2, NEVER]


@pytest.mark.parametrize("same_items", [False, True])
def test_ranks_are_a_loop_over_items(same_items: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole numbers, so that scores tie; more queries than are taken at once."""
    generator = torch.Generator().manual_seed(0)
    queries, items = (torch.randint(-3, 4, (rows, 4), generator=generator).float() for rows in (50, 30))
    if same_items:
        items = queries
    rng = np.random.default_rng(0)
    positives = [{int(item) for item in rng.integers(0, len(items), rng.integers(0, 4))} for _ in range(50)]
    expected = []
    for query in range(50):
        others = [item for item in range(len(items)) if not (same_items and item == query)]
        scores = {item: sum(float(a * b) for a, b in zip(queries[query], items[item], strict=True)) for item in others}
        good = [scores[item] for item in others if item in positives[query]]
        ahead = [item for item in others if item not in positives[query] and good and scores[item] >= max(good)]
        expected.append(1 + len(ahead) if good else NEVER)
    for at_once in (7, 256):
        monkeypatch.setattr(crisscrossed, "_QUERIES_AT_ONCE", at_once)
        assert graded_ranks(queries, items, positives, same_items=same_items).tolist() == expected
    assert graded_ranks(queries, items, positives[::-1], same_items=same_items).tolist() != expected


def test_retrieval_results(tmp_path: Path, split: CocoSplit) -> None:
    """Recall at 1 of the ranks worked by hand above; pictures that no picture answers are not counted."""
    rated = [ratings(tmp_path, text) for text in (STS, SIS, SITS)]
    graded, plain = (
        {
            result.metric: result
            for result in retrieval_results(some, split, IMAGE_EMBEDS, TEXT_EMBEDS, dataset="cxc", language="en")
        }
        for some in (rated, [])
    )
    assert graded["text_to_image_recall@1"].value == pytest.approx(5 / 6)
    assert plain["text_to_image_recall@1"].value == pytest.approx(4 / 6)
    assert graded["image_to_text_recall@1"].value == 1
    assert plain["image_to_text_recall@1"].value == pytest.approx(2 / 3)
    assert graded["image_to_image_recall@1"].value == 0 and graded["image_to_image_recall@5"].value == 1
    assert graded["image_to_image_recall@1"].n == 2 and graded["image_to_image_recall@1"].language == "-"
    assert graded["text_to_text_recall@1"].n == 6 and graded["text_to_text_recall@1"].language == "en"
    assert len(graded) == 12
    # Without ratings of pictures there is nothing to find from a picture among pictures.
    assert len(plain) == 9 and not any("image_to_image" in metric for metric in plain)
