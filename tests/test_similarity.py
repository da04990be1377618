"""Correlations and F1 against scipy and scikit-learn; files of scored pairs in the forms they are published in.

The files are written by hand: the captions of KorSTS at hand come without their scores.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import f1_score

from ko_en_clip.evaluation.embeddings import Encoder
from ko_en_clip.evaluation.metrics import Result, bootstrap, measure
from ko_en_clip.evaluation.similarity import (
    RatedPair,
    average_ranks,
    cosines,
    dense_numbers,
    f1,
    fit_threshold,
    pearson,
    read_klue_sts,
    read_sts_tsv,
    similarity_results,
    spearman,
)

HEADER = "genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2"
# Float64 in another order of sums.
TOLERANCE = 1e-12


def samples(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines, and scores that follow them, rounded so that many are the same."""
    rng = np.random.default_rng(seed)
    cosine = rng.uniform(-1, 1, size)
    return np.round(cosine, 2), np.round((cosine + rng.normal(scale=0.3, size=size)).clip(-1, 1) * 2.5 + 2.5)


# Correlations


@pytest.mark.parametrize("size", [2, 3, 10, 1379])
@pytest.mark.parametrize("seed", range(3))
def test_correlations_are_scipys(size: int, seed: int) -> None:
    cosine, scores = samples(size, seed)
    scores[:2] = [0, 5]
    cosine[:2] = [-1, 1]
    assert spearman(cosine, scores) == pytest.approx(stats.spearmanr(cosine, scores).statistic, abs=TOLERANCE)
    assert pearson(cosine, scores) == pytest.approx(stats.pearsonr(cosine, scores).statistic, abs=TOLERANCE)


def test_the_two_correlations_differ() -> None:
    """A curve that rises throughout: its order is perfect, its line is not."""
    cosine = np.linspace(0, 1, 50)
    assert spearman(cosine, cosine**5) == 1
    assert pearson(cosine, cosine**5) < 0.9
    assert spearman(cosine, -cosine) == -1


def test_shuffled_scores_do_not_correlate() -> None:
    cosine, scores = samples(4000, 0)
    shuffled = np.random.default_rng(1).permutation(scores)
    assert spearman(cosine, scores) > 0.8 and pearson(cosine, scores) > 0.8
    # Four standard errors of a correlation of 0, which are 1 / sqrt(4000) each.
    assert abs(spearman(cosine, shuffled)) < 0.064 and abs(pearson(cosine, shuffled)) < 0.064


def test_float32_is_summed_in_float64() -> None:
    """A thousand cosines near 1 that differ in their last places."""
    rng = np.random.default_rng(0)
    cosine = (1 - rng.uniform(0, 1e-5, 1000)).astype(np.float32)
    scores = rng.uniform(0, 5, 1000) + cosine.astype(np.float64) * 1e5
    expected = stats.pearsonr(cosine.astype(np.float64), scores).statistic
    # scipy subtracts the same means in the same precision; the spread is 1e-5 of the values, which costs five digits.
    assert pearson(cosine, scores) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("values", [np.full(7, 0.1), np.array([0.3]), np.array([])])
def test_one_value_throughout_has_no_correlation(values: np.ndarray) -> None:
    other = np.arange(len(values), dtype=np.float64)
    for correlation in (spearman, pearson):
        with pytest.raises(ValueError, match="no correlation is defined"):
            correlation(values, other)
        with pytest.raises(ValueError, match="no correlation is defined"):
            correlation(other, values)


def test_ranks_are_scipys() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 300):
        values = rng.integers(0, 20, size) / 7
        numbers = dense_numbers(values)
        assert average_ranks(numbers).tolist() == stats.rankdata(values).tolist()
        # A part of the numbers is ranked among itself.
        assert average_ranks(numbers[::2]).tolist() == stats.rankdata(values[::2]).tolist()
    assert stats.rankdata(values, method="min").tolist() != average_ranks(numbers).tolist()


# F1


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.25, 0.7, 0.99, 2.0])
def test_f1_is_scikit_learns(threshold: float) -> None:
    cosine, scores = samples(500, 0)
    expected = f1_score(scores >= 3, cosine >= threshold, zero_division=0)
    assert f1(cosine, scores >= 3, threshold) == pytest.approx(expected, abs=TOLERANCE)
    # The twin: the other class has another F1.
    assert f1(cosine, scores < 3, threshold) != pytest.approx(expected, abs=1e-3) or expected == 0


@pytest.mark.parametrize("seed", range(20))
def test_the_fitted_threshold_is_the_best_of_all(seed: int) -> None:
    cosine, scores = samples(60, seed)
    cosine = np.round(cosine, 1)
    equivalent = scores >= 3
    equivalent[0] = True
    every = {value: f1_score(equivalent, cosine >= value) for value in np.unique(cosine)}
    best = max(every.values())
    fitted = fit_threshold(cosine, equivalent)
    assert fitted == max(value for value, found in every.items() if found == pytest.approx(best, abs=TOLERANCE))
    assert f1(cosine, equivalent, fitted) == pytest.approx(best, abs=TOLERANCE)


def test_a_threshold_needs_pairs_that_are_equivalent() -> None:
    with pytest.raises(ValueError, match="none of 3 pairs is equivalent"):
        fit_threshold(np.array([0.1, 0.2, 0.3]), np.zeros(3, dtype=bool))


# Bootstrap


def test_the_bootstrap_of_a_mean_is_that_of_hits() -> None:
    hits = np.random.default_rng(0).random(200) < 0.3
    found = bootstrap(lambda drawn: float(hits[drawn].mean()), 200, seed=5)
    assert found == pytest.approx(measure(hits, seed=5), abs=TOLERANCE)
    # The twin: what misses has another mean, and its interval lies on the other side.
    assert bootstrap(lambda drawn: float((~hits)[drawn].mean()), 200, seed=5)[1] > found[2]


def test_the_interval_of_a_correlation_is_fishers() -> None:
    """Of two normal variables: tanh(arctanh(r) +- 1.96 / sqrt(n - 3)). The ends of 1,000 draws are known to about a
    twentieth of the width."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=1500)
    second = 0.6 * first + 0.8 * rng.normal(size=1500)
    value, low, high = bootstrap(lambda drawn: pearson(first[drawn], second[drawn]), 1500)
    ends = np.tanh(np.arctanh(value) + np.array([-1.96, 1.96]) / np.sqrt(1497))
    assert (low, high) == pytest.approx(tuple(ends), abs=0.15 * (ends[1] - ends[0]))
    # The twin: a tenth of the items has an interval about three times as wide.
    _, few_low, few_high = bootstrap(lambda drawn: pearson(first[:150][drawn], second[:150][drawn]), 150)
    assert few_high - few_low > 2 * (high - low)


def test_the_bootstrap_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to measure"):
        bootstrap(lambda drawn: 0.0, 0)


# Files


def write(folder: Path, *lines: str, end: str = "\n") -> Path:
    file = folder / "sts-dev.tsv"
    file.write_bytes("".join(line + end for line in lines).encode())
    return file


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_korsts_is_read_as_it_is_written(tmp_path: Path, end: str) -> None:
    """With one quotation mark, two of them, a letter that str.splitlines would cut at, and the score at the limit."""
    file = write(
        tmp_path,
        HEADER,
        'main-captions\tMSRvid\t2012test\t0000\t5.000\t안전모를 쓴 한 남자가 "춤추고" 있다.\t한 남자가 춤추고 있다.',
        'main-captions\tMSRvid\t2012test\t0002\t2.999\t"어린아이가 말을 타고 있다.\t아이가 말을 타고 있다.',
        "main-news\theadlines\t2015\t0003\t3\t두 줄\u2028같은\r문장\t한 줄",
        "main-forum\tdeft\t2014\t0004\t0.0\t문장\t다른 문장",
        end=end,
    )
    assert read_sts_tsv(file) == [
        RatedPair('안전모를 쓴 한 남자가 "춤추고" 있다.', "한 남자가 춤추고 있다.", 5.0, True),
        RatedPair('"어린아이가 말을 타고 있다.', "아이가 말을 타고 있다.", 2.999, False),
        RatedPair("두 줄\u2028같은\r문장", "한 줄", 3.0, True),
        RatedPair("문장", "다른 문장", 0.0, False),
    ]


def test_stsb_of_glue_is_read_by_its_columns(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tmain-captions\tMSRvid\t2012test\t0000\tnone\tnone\tA man is dancing.\tA man dances.\t4.750",
    )
    assert read_sts_tsv(file) == [RatedPair("A man is dancing.", "A man dances.", 4.75, True)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a\tb\tc\td\t3.0\t문장", "line 3: 6 fields where the first line names 7"),
        ("a\tb\tc\td\t3.0\t문장\t문장\t문장", "line 3: 8 fields"),
        ("", "line 3: 1 fields"),
        ("a\tb\tc\td\t많음\t문장\t문장", "line 3: the score is '많음'"),
        ("a\tb\tc\td\t\t문장\t문장", "line 3: the score is ''"),
        ("a\tb\tc\td\t5.01\t문장\t문장", "line 3: the score is 5.01"),
        ("a\tb\tc\td\t-1\t문장\t문장", "line 3: the score is -1"),
        ("a\tb\tc\td\tnan\t문장\t문장", "line 3: the score is nan"),
        ("a\tb\tc\td\t3.0\t \t문장", "line 3: a sentence is ' '"),
    ],
)
def test_malformed_lines_are_refused_with_their_number(tmp_path: Path, line: str, message: str) -> None:
    file = write(tmp_path, HEADER, "a\tb\tc\td\t3.0\t문장\t문장", line)
    with pytest.raises(ValueError, match=message):
        read_sts_tsv(file)


def test_a_file_without_names_of_columns_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "main-captions\tMSRvid\t2012test\t0000\t5.000\tA man.\tA man.")
    with pytest.raises(ValueError, match="line 1: no column score, sentence1, sentence2"):
        read_sts_tsv(file)


def test_real_captions_come_through_unchanged(tmp_path: Path, shared_data: Path) -> None:
    """The captions of KorSTS and their English, with scores of our own: the file at hand has none."""
    rows = [line.split("\t") for line in (shared_data / "text/parallel.tsv").read_text(encoding="utf-8").split("\n")]
    captions = [(row[0], row[1]) for row in rows if row[-1] == "korsts-caption"]
    assert len(captions) > 4000
    scores = [number % 51 / 10 for number in range(len(captions))]
    lines = [
        f"main-captions\tMSRvid\t2012\t{number}\t{score}\t{korean}\t{english}"
        for number, (score, (korean, english)) in enumerate(zip(scores, captions, strict=True))
    ]
    read = read_sts_tsv(write(tmp_path, HEADER, *lines))
    assert [(pair.first, pair.second) for pair in read] == captions
    assert [pair.score for pair in read] == scores


def klue_item(**changes: Any) -> dict[str, Any]:
    """An item with the fields of klue-sts-v1_dev.json."""
    item = {
        "guid": "klue-sts-v1_dev_00000",
        "source": "airbnb-rtt",
        "sentence1": "숙소가 무척 깨끗했어요.",
        "sentence2": "방이 아주 깨끗했습니다.",
        "labels": {"label": 3.7, "real-label": 3.714285714285714, "binary-label": 1},
        "annotations": {"agreement": "0:0:0:2:5:0", "annotators": ["07"], "annotations": [4]},
    }
    return item | changes


def write_json(folder: Path, content: Any) -> Path:
    file = folder / "klue-sts-v1_dev.json"
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return file


def test_klue_is_read_with_its_real_and_binary_labels(tmp_path: Path) -> None:
    other = klue_item(labels={"label": 1.4, "real-label": 1.428571428571429, "binary-label": 0})
    assert read_klue_sts(write_json(tmp_path, [klue_item(), other])) == [
        RatedPair("숙소가 무척 깨끗했어요.", "방이 아주 깨끗했습니다.", 3.714285714285714, True),
        RatedPair("숙소가 무척 깨끗했어요.", "방이 아주 깨끗했습니다.", 1.428571428571429, False),
    ]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (klue_item(labels={"label": 3.7, "binary-label": 1}), "item 2: KeyError.*real-label"),
        (klue_item(labels={"real-label": 3.7}), "item 2: KeyError.*binary-label"),
        (klue_item(labels={"real-label": 3.7, "binary-label": 2}), "item 2: binary-label is 2"),
        (klue_item(labels={"real-label": 7, "binary-label": 1}), "item 2: the score is 7"),
        (klue_item(labels={"real-label": None, "binary-label": 1}), "item 2: TypeError"),
        (klue_item(labels=None), "item 2: TypeError"),
        (klue_item(sentence2=""), "item 2: a sentence is ''"),
        (klue_item(sentence1=3), "item 2: a sentence is 3"),
        ({"sentence1": "문장", "sentence2": "문장"}, "item 2: KeyError.*labels"),
        ("문장", "item 2: TypeError"),
    ],
)
def test_malformed_items_are_refused_with_their_number(tmp_path: Path, item: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_klue_sts(write_json(tmp_path, [klue_item(), item]))


def test_a_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a dict"):
        read_klue_sts(write_json(tmp_path, klue_item()))
    file = tmp_path / "broken.json"
    file.write_text("[{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_klue_sts(file)


# Results


class Angles(Encoder):
    """Stands in for a model: a text is its angle in degrees, and its embedding the unit vector there."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        self.asked += texts
        radians = torch.deg2rad(torch.tensor([float(text) for text in texts]))
        return torch.stack([radians.cos(), radians.sin()], dim=1)


def pairs_at(angles: np.ndarray, scores: np.ndarray) -> list[RatedPair]:
    return [
        RatedPair("0", f"{angle:.6f}", float(score), bool(score >= 3))
        for angle, score in zip(angles, scores, strict=True)
    ]


def by_metric(results: Sequence[Result]) -> dict[str, Result]:
    return {result.metric: result for result in results}


@pytest.fixture
def rated() -> list[RatedPair]:
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 180, 400)
    return pairs_at(angles, np.round((np.cos(np.deg2rad(angles)) * 2.5 + 2.5 + rng.normal(size=400)).clip(0, 5), 1))


def test_cosines_are_those_of_the_angles_and_texts_are_embedded_once() -> None:
    encoder = Angles()
    found = cosines(encoder, pairs_at(np.array([0, 60, 90, 180, 60]), np.arange(5)))
    # Embeddings are float32.
    assert found == pytest.approx([1, 0.5, 0, -1, 0.5], abs=1e-6)
    assert len(encoder.asked) == len(set(encoder.asked)) == 5
    with pytest.raises(ValueError, match="no pair of texts"):
        cosines(encoder, [])


def test_results_are_scipys_on_the_cosines(rated: list[RatedPair]) -> None:
    results = by_metric(similarity_results(Angles(), rated, dataset="korsts", language="ko"))
    cosine = np.cos(np.deg2rad([float(pair.second) for pair in rated]))
    scores = [pair.score for pair in rated]
    assert set(results) == {"spearman", "pearson"}
    # Cosines of float32 embeddings: a few in 1e7, which may turn round a pair of neighbours.
    assert results["spearman"].value == pytest.approx(stats.spearmanr(cosine, scores).statistic, abs=1e-4)
    assert results["pearson"].value == pytest.approx(stats.pearsonr(cosine, scores).statistic, abs=1e-6)
    for result in results.values():
        assert result.low < result.value < result.high and result.high - result.low < 0.2
        assert (result.task, result.dataset, result.language, result.n) == ("semantic_similarity", "korsts", "ko", 400)


def test_results_of_shuffled_scores_are_about_nothing(rated: list[RatedPair]) -> None:
    order = np.random.default_rng(1).permutation(len(rated))
    shuffled = [pair._replace(score=rated[other].score) for pair, other in zip(rated, order, strict=True)]
    for result in similarity_results(Angles(), shuffled, dataset="korsts", language="ko"):
        # Four standard errors, 1 / sqrt(400) each.
        assert abs(result.value) < 0.2 and result.low < 0 < result.high


def test_f1_is_at_the_threshold_of_other_pairs(rated: list[RatedPair]) -> None:
    """Pairs that are equivalent up to 60 degrees put it at 0.5, wherever the measured pairs would have had it."""
    fit_pairs = pairs_at(np.array([10, 59, 60, 61, 120]), np.array([5, 4, 3, 2, 0]))
    results = by_metric(similarity_results(Angles(), rated, dataset="klue", language="ko", fit_pairs=fit_pairs))
    found = [float(pair.second) <= 60 for pair in rated]
    equivalent = [pair.equivalent for pair in rated]
    assert results["f1"].value == pytest.approx(f1_score(equivalent, found), abs=TOLERANCE)
    assert results["f1"].low < results["f1"].value < results["f1"].high
    # The twin: fitted on the measured pairs themselves it would be better than that.
    best = by_metric(similarity_results(Angles(), rated, dataset="klue", language="ko", fit_pairs=rated))
    assert best["f1"].value > results["f1"].value
