"""Correlations and F1 against scipy and scikit-learn; whole suites of scored pairs in the forms they are published in.

The files are written by hand: the captions of KorSTS at hand come without their scores.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import f1_score

from ko_en_clip.commands.evaluate import table
from ko_en_clip.data.pairs import DataSettings, open_pairs
from ko_en_clip.evaluation.embeddings import Encoder
from ko_en_clip.evaluation.evaluation_report import evaluation_page
from ko_en_clip.evaluation.features import FeatureCache
from ko_en_clip.evaluation.judging import Outcome, run_suite
from ko_en_clip.evaluation.metrics import Result, bootstrap, measure
from ko_en_clip.evaluation.rated_texts import RatedTexts, RatedTextSettings, rated_texts
from ko_en_clip.evaluation.similarity import (
    average_ranks,
    correlation_interval,
    dense_numbers,
    f1,
    fit_threshold,
    pearson,
    spearman,
)
from ko_en_clip.evaluation.suites import SuiteSettings

HEADER = "genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2"
# Float64 in another order of sums.
TOLERANCE = 1e-12


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


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


def test_draws_of_one_value_are_left_out_of_the_interval() -> None:
    """Of three pairs a ninth of the draws is of one pair; the others have a correlation of 1 or -1."""
    values = np.array([0.1, 0.5, 0.2]), np.array([1.0, 3.0, 2.0])
    assert correlation_interval(spearman, *values) == (1, 1, 1)
    assert correlation_interval(spearman, values[0], -values[1]) == (-1, -1, -1)
    with pytest.raises(ValueError, match="no correlation is defined"):
        correlation_interval(spearman, values[0], np.ones(3))


# Data


def write(folder: Path, *lines: str, end: str = "\n", name: str = "sts-test.tsv") -> str:
    file = folder / name
    file.write_bytes("".join(line + end for line in lines).encode())
    return str(file)


def data(path: str, *, language: str = "ko", **fields: Any) -> DataSettings:
    captions = {"sentence1": language, "sentence2": language}
    return DataSettings(**{"path": path, "image": None, "captions": captions} | fields)


def read(settings: DataSettings, **columns: Any) -> RatedTexts:
    return rated_texts(open_pairs(settings), RatedTextSettings(**columns))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_korsts_is_read_as_it_is_written(tmp_path: Path, end: str) -> None:
    """With one quotation mark, two of them, a letter that str.splitlines would cut at, and the score at the limit."""
    path = write(
        tmp_path,
        HEADER,
        'main-captions\tMSRvid\t2012test\t0000\t5.000\t안전모를 쓴 한 남자가 "춤추고" 있다.\t한 남자가 춤추고 있다.',
        'main-captions\tMSRvid\t2012test\t0002\t2.999\t"어린아이가 말을 타고 있다.\t아이가 말을 타고 있다.',
        "main-news\theadlines\t2015\t0003\t3\t두 줄\u2028같은 문장\tnull",
        "main-forum\tdeft\t2014\t0004\t0.0\t문장\t다른 문장",
        end=end,
    )
    found = read(data(path))
    assert found.first == [
        '안전모를 쓴 한 남자가 "춤추고" 있다.',
        '"어린아이가 말을 타고 있다.',
        "두 줄\u2028같은 문장",
        "문장",
    ]
    assert found.second == ["한 남자가 춤추고 있다.", "아이가 말을 타고 있다.", "null", "다른 문장"]
    assert found.scores.tolist() == [5.0, 2.999, 3.0, 0.0]
    assert found.equivalent.tolist() == [True, False, True, False]
    # The twin: from another score on.
    assert read(data(path), equivalent_from=2.9).equivalent.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a\tb\tc\td\t많음\t문장\t문장", "row 1 .*of .*: score is '많음'; a number from 0 to 5 is needed"),
        ("a\tb\tc\td\t\t문장\t문장", "row 1 .*of .*: score is ''"),
        ("a\tb\tc\td\t5.01\t문장\t문장", "row 1 .*of .*: score is 5.01.*rated_texts.highest_score"),
        ("a\tb\tc\td\t-1\t문장\t문장", "row 1 .*of .*: score is -1"),
        ("a\tb\tc\td\tnan\t문장\t문장", "row 1 .*of .*: score is .*nan"),
        ("a\tb\tc\td\t3.0\t \t문장", "row 1 .*of .*: sentence1 is ' '; a text that is not empty is needed"),
        ("a\tb\tc\td\t3.0\t문장", "row 1 .*of .*: sentence2 is ''"),
        ("a\tb\tc\td\t3.0\t문장\t문장\t문장", "is empty or unreadable"),
    ],
)
def test_malformed_rows_are_refused_with_their_number(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, HEADER, "a\tb\tc\td\t3.0\t문장\t문장", line)
    with pytest.raises(ValueError, match=message):
        read(data(path))


def test_a_file_without_names_of_columns_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, *["main-captions\tMSRvid\t2012test\t0000\t5.000\tA man.\tA man."] * 2)
    with pytest.raises(ValueError, match="no column 'sentence1', which the setting 'captions' names"):
        read(data(path))


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
    found = read(data(write(tmp_path, HEADER, *lines)))
    assert list(zip(found.first, found.second, strict=True)) == captions
    assert found.scores.tolist() == scores


KLUE = {"score": "labels.real-label", "equivalent": "labels.binary-label"}


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


def klue_data(folder: Path, *items: dict[str, Any]) -> DataSettings:
    file = folder / "klue-sts-v1_dev.json"
    file.write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
    return data("json", files=[str(file)])


def test_klue_is_read_with_its_real_and_binary_labels(tmp_path: Path) -> None:
    other = klue_item(labels={"label": 3.4, "real-label": 3.428571428571429, "binary-label": 0})
    settings = klue_data(tmp_path, klue_item(), other)
    found = read(settings, **KLUE)
    assert found.first == ["숙소가 무척 깨끗했어요."] * 2 and found.second == ["방이 아주 깨끗했습니다."] * 2
    # The reader of JSON keeps ten decimals.
    assert found.scores == pytest.approx([3.714285714285714, 3.428571428571429], abs=1e-9)
    assert found.equivalent.tolist() == [True, False]
    # The twins: rounded scores, and labels by the score.
    assert read(settings, score="labels.label").scores.tolist() == [3.7, 3.4]
    assert read(settings, score="labels.real-label").equivalent.tolist() == [True, True]
    # Rows are kept by what is inside a struct, too.
    kept = read(data("json", files=settings.files, where={"labels.binary-label": 0}), **KLUE)
    assert kept.scores == pytest.approx([3.428571428571429], abs=1e-9)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (klue_item(labels={"label": 3.7, "binary-label": 1}), "row 1 .*of json: labels.real-label is None"),
        (klue_item(labels={"real-label": 3.7}), "row 1 .*of json: labels.binary-label is None; 0 or 1 is needed"),
        (klue_item(labels={"real-label": 3.7, "binary-label": 2}), "row 1 .*of json: labels.binary-label is 2"),
        (klue_item(labels={"real-label": 7.0, "binary-label": 1}), "row 1 .*of json: labels.real-label is 7"),
        (klue_item(labels=None), "row 1 .*of json: labels.real-label is None"),
        (klue_item(sentence2=""), "row 1 .*of json: sentence2 is ''"),
    ],
)
def test_malformed_items_are_refused_with_their_number(tmp_path: Path, item: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(klue_data(tmp_path, klue_item(), item), **KLUE)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"first": "sentence2"}, "are both 'sentence2'"),
        ({"equivalent_from": 0}, "equivalent_from is 0"),
        ({"highest_score": 2}, "equivalent_from is 3.*highest_score, 2"),
    ],
)
def test_settings_that_say_nothing_are_refused(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RatedTextSettings(**columns)


# Suites


class Angles(Encoder):
    """Stands in for a model: a text is its angle in degrees, and its embedding the unit vector there."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        self.asked += texts
        radians = torch.deg2rad(torch.tensor([float(text) for text in texts]))
        return torch.stack([radians.cos(), radians.sin()], dim=1)


def pairs_at(folder: Path, angles: Sequence[float], scores: Sequence[float], name: str = "pairs.parquet") -> str:
    rows = {"sentence1": ["0"] * len(angles), "sentence2": [f"{angle:.6f}" for angle in angles], "score": list(scores)}
    datasets.Dataset.from_dict(rows).to_parquet(folder / name)
    return str(folder / name)


def suite(source: DataSettings, **changed: Any) -> SuiteSettings:
    fields = {"name": "pairs", "data": source, "tasks": ["semantic_similarity"], "rated_texts": RatedTextSettings()}
    return SuiteSettings(**fields | changed)


def by_metric(outcome: Outcome) -> dict[str, Result]:
    return {result.metric: result for result in outcome.results}


def rated() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 180, 400).round(6)
    return angles, np.round((np.cos(np.deg2rad(angles)) * 2.5 + 2.5 + rng.normal(size=400)).clip(0, 5), 1)


def test_a_suite_by_hand(tmp_path: Path) -> None:
    """Five pairs, two of one angle: their cosines 1, 0.5, 0.5, 0 and -1 have the ranks 5, 3.5, 3.5, 2 and 1, the
    scores 5, 3, 4, 0 and 1 the ranks 5, 3, 4, 1 and 2; the products of the differences from the mean rank of 3 are 4,
    0, 0.5, 2 and 2, their squares sum to 9.5 and 10. Pearson: differences 0.8, 0.3, 0.3, -0.2, -1.2 of the mean 0.2,
    and 2.4, 0.4, 1.4, -2.6, -1.6 of the mean 2.6, give 4.9 over the root of 2.3 * 17.2."""
    encoder = Angles()
    path = pairs_at(tmp_path, [0, 60, 60, 90, 180], [5, 3, 4, 0, 1])
    results = by_metric(run_suite(encoder, suite(data(path))))
    # Embeddings are float32.
    assert results["spearman"].value == pytest.approx(8.5 / np.sqrt(9.5 * 10), abs=1e-6)
    assert results["pearson"].value == pytest.approx(4.9 / np.sqrt(2.3 * 17.2), abs=1e-6)
    assert set(results) == {"spearman", "pearson"}
    assert len(encoder.asked) == len(set(encoder.asked)) == 5
    # The twin: scores turned round.
    turned = run_suite(
        Angles(), suite(data(pairs_at(tmp_path, [0, 60, 60, 90, 180], [0, 2, 1, 5, 4], "turned.parquet")))
    )
    assert by_metric(turned)["spearman"].value == pytest.approx(-results["spearman"].value, abs=1e-12)


def test_a_suite_is_scipys_on_the_cosines(tmp_path: Path) -> None:
    angles, scores = rated()
    results = by_metric(run_suite(Angles(), suite(data(pairs_at(tmp_path, angles, scores)))))
    cosine = np.cos(np.deg2rad(angles))
    # Cosines of float32 embeddings: a few in 1e7, which may turn round a pair of neighbours.
    assert results["spearman"].value == pytest.approx(stats.spearmanr(cosine, scores).statistic, abs=1e-4)
    assert results["pearson"].value == pytest.approx(stats.pearsonr(cosine, scores).statistic, abs=1e-6)
    for result in results.values():
        assert result.low < result.value < result.high and result.high - result.low < 0.2
        assert (result.task, result.dataset, result.language, result.n) == ("semantic_similarity", "pairs", "ko", 400)


def test_results_of_shuffled_scores_are_about_nothing(tmp_path: Path) -> None:
    angles, scores = rated()
    shuffled = np.random.default_rng(1).permutation(scores)
    for result in run_suite(Angles(), suite(data(pairs_at(tmp_path, angles, shuffled)))).results:
        # Four standard errors, 1 / sqrt(400) each.
        assert abs(result.value) < 0.2 and result.low < 0 < result.high


def test_f1_is_at_the_threshold_of_the_training_pairs(tmp_path: Path) -> None:
    """Pairs that are equivalent up to 60 degrees put it at 0.5, wherever the measured pairs would have had it."""
    angles, scores = rated()
    measured = data(pairs_at(tmp_path, angles, scores))
    train = data(pairs_at(tmp_path, [10, 59, 60, 61, 120], [5, 4, 3, 2, 0], "train.parquet"))
    results = by_metric(run_suite(Angles(), suite(measured, train=train)))
    assert results["f1"].value == pytest.approx(f1_score(scores >= 3, angles <= 60), abs=TOLERANCE)
    assert results["f1"].low < results["f1"].value < results["f1"].high
    # The twin: fitted on the measured pairs themselves it would be better than that.
    assert by_metric(run_suite(Angles(), suite(measured, train=measured)))["f1"].value > results["f1"].value


def test_training_pairs_need_the_same_columns(tmp_path: Path) -> None:
    measured = data(pairs_at(tmp_path, [10, 60], [5, 1]))
    datasets.Dataset.from_dict({"sentence1": ["0"], "sentence2": ["1"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="no column 'score', which the setting 'rated_texts.score' names"):
        run_suite(Angles(), suite(measured, train=data(str(tmp_path / "train.parquet"))))


def test_texts_of_two_languages_and_of_two_suites(tmp_path: Path) -> None:
    """Languages are those of the columns; figures, table and page show Korean and English beside each other."""
    path = pairs_at(tmp_path, [0, 60, 90], [5, 3, 1])
    suites = [
        suite(data(path), name="korsts"),
        suite(data(path, language="en"), name="stsb"),
        suite(data(path, captions={"sentence1": "ko", "sentence2": "en"}), name="both"),
    ]
    outcomes = [run_suite(Angles(), each) for each in suites]
    results = [result for outcome in outcomes for result in outcome.results]
    assert [(result.dataset, result.language) for result in results[::2]] == [
        ("korsts", "ko"),
        ("stsb", "en"),
        ("both", "ko-en"),
    ]
    assert "semantic_similarity  ko        all    spearman" in table({"model": results})
    page = evaluation_page({"model": outcomes})
    assert "semantic similarity" in page and "Spearman" in page


def test_texts_are_embedded_once_with_the_cache(tmp_path: Path) -> None:
    path = pairs_at(tmp_path, [0, 60, 90], [5, 3, 1])
    first, second = Angles(), Angles()
    found = [
        run_suite(encoder, suite(data(path)), FeatureCache(tmp_path / "features", "angles"))
        for encoder in (first, second)
    ]
    assert found[0].results == found[1].results
    assert len(first.asked) == 4 and not second.asked


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rated_texts": None}, "asks for semantic_similarity and has no section rated_texts"),
        ({"tasks": ["text_retrieval"]}, "has a section rated_texts that no task reads"),
        ({"rated_texts": RatedTextSettings(second="other")}, "names other, and data.captions has the columns"),
    ],
)
def test_a_suite_without_what_it_needs_is_refused(changed: dict[str, Any], message: str) -> None:
    source = data("pairs.parquet")
    assert suite(source).languages == ["ko"]
    with pytest.raises(ValueError, match=message):
        suite(source, **changed)


def test_columns_are_checked_before_texts_are_embedded(tmp_path: Path) -> None:
    encoder = Angles()
    source = data(pairs_at(tmp_path, [0, 60], [5, 1]))
    with pytest.raises(ValueError, match="no column 'labels.score'.*it has score, sentence1, sentence2"):
        run_suite(encoder, suite(source, rated_texts=RatedTextSettings(score="labels.score")))
    assert not encoder.asked
