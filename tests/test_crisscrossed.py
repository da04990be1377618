"""Crisscrossed Captions: the bootstrap against a loop in plain Python, retrieval against tables worked by hand."""

import dataclasses
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from ko_en_clip.commands.evaluate import table
from ko_en_clip.data.pairs import DataSettings, open_pairs
from ko_en_clip.evaluation.crisscrossed import (
    CocoSplit,
    CrisscrossedSettings,
    RatedItems,
    Ratings,
    coco_split,
    rated_items,
    read_all_ratings,
    read_ratings,
)
from ko_en_clip.evaluation.crisscrossed_figures import (
    graded_positives,
    query_draws,
    sampled_spearman,
    similarities_of,
)
from ko_en_clip.evaluation.embeddings import Encoder
from ko_en_clip.evaluation.evaluation_report import evaluation_page
from ko_en_clip.evaluation.features import FeatureCache
from ko_en_clip.evaluation.judging import Outcome, run_suite
from ko_en_clip.evaluation.published import published_for
from ko_en_clip.evaluation.retrieval import relevant_ranks
from ko_en_clip.evaluation.suites import SuiteSettings

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


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def split() -> CocoSplit:
    return CocoSplit(
        images=[A, B, C],
        caption_ids=[A0, A1, B0, B1, C0, C1],
        captions=["a cat", "a cat with a dog", "a dog", "a dog by a cat", "a boat", "a boat and a cat"],
        image_of_caption=[0, 0, 1, 1, 2, 2],
        left_out=frozenset(),
    )


def ratings(folder: Path, text: str) -> Ratings:
    file = folder / "ratings.csv"
    file.write_text(text)
    return read_ratings(file)


def rated(folder: Path, text: str, split: CocoSplit) -> RatedItems:
    return rated_items(ratings(folder, text), split)


def ratings_files(folder: Path, **texts: str) -> list[str]:
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text)
    return [str(folder / f"{name}.csv") for name in texts]


COLOURS = {A: (255, 0, 0), B: (0, 255, 0), C: (0, 0, 255)}


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def written(folder: Path, **cells: Any) -> str:
    """A parquet file of the split, with pictures of one colour each."""
    rows = {
        "image": [png(colour) for colour in COLOURS.values()],
        "filename": [A, B, C],
        "sentids": [[10, 11], [20, 21], [30, 31]],
        "captions_en": [["a cat", "a cat with a dog"], ["a dog", "a dog by a cat"], ["a boat", "a boat and a cat"]],
        "captions_ko": [["고양이", "고양이와 개"], ["개", "개와 고양이"], ["배", "배와 고양이"]],
        **cells,
    }
    datasets.Dataset.from_dict(rows).to_parquet(folder / "split.parquet")
    return str(folder / "split.parquet")


def data(path: str, **captions: str) -> DataSettings:
    return DataSettings(path=path, captions=captions or {"captions_en": "en", "captions_ko": "ko"})


# Files


def test_the_three_files_are_read(tmp_path: Path) -> None:
    sts, sis, sits = (ratings(tmp_path, text) for text in (STS, SIS, SITS))
    assert (sts.task, sis.task, sits.task) == ("sts", "sis", "sits")
    assert sts.first == [A0, B0, A1, B1] and sts.second == [A1, B1, B0, C1]
    assert sis.first == [A, A, B] and sis.second == [B, C, C]
    assert sits.first == [A1, B1, C0, A0] and sits.second == [B, A, C, A]
    assert sts.scores.tolist() == [4.1, 1.24, 3.0, 2.99] and sis.scores.tolist() == [2.5, 2.49, 0.0]


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


def test_files_of_ratings_are_read_in_their_order(tmp_path: Path) -> None:
    files = ratings_files(tmp_path, sits=SITS, sts=STS)
    assert [each.task for each in read_all_ratings(CrisscrossedSettings(ratings=files))] == ["sits", "sts"]
    with pytest.raises(ValueError, match="two files of sits"):
        read_all_ratings(CrisscrossedSettings(ratings=[files[0], files[0]]))
    with pytest.raises(FileNotFoundError, match="no such file; get it: https"):
        read_all_ratings(CrisscrossedSettings(ratings=["sis_test.csv"]))
    with pytest.raises(ValueError, match="crisscrossed.ratings is empty"):
        CrisscrossedSettings(ratings=[])


# Splits


def split_of(source: DataSettings, decoded: Sequence[int] = (0, 1, 2), language: str = "en") -> CocoSplit:
    return coco_split(open_pairs(source), decoded, CrisscrossedSettings(ratings=["sts.csv"]), language)


def test_a_split_is_that_of_the_rows(tmp_path: Path, split: CocoSplit) -> None:
    source = data(written(tmp_path))
    assert split_of(source) == split
    korean = split_of(source, language="ko")
    assert korean.captions == ["고양이", "고양이와 개", "개", "개와 고양이", "배", "배와 고양이"]
    assert korean.caption_ids == split.caption_ids and korean.image_of_caption == split.image_of_caption


def test_what_is_not_there_is_left_out_with_its_ratings(tmp_path: Path) -> None:
    """The picture of B does not decode, and the first caption of C is empty in Korean."""
    path = written(tmp_path, captions_ko=[["고양이", "고양이와 개"], ["개", "개와 고양이"], [" ", "배와 고양이"]])
    found = split_of(data(path), decoded=[0, 2], language="ko")
    assert found.images == [A, C] and found.caption_ids == [A0, A1, C1] and found.image_of_caption == [0, 0, 1]
    assert found.left_out == {B, B0, B1, C0}
    sts, sis, sits = (rated_items(ratings(tmp_path, text), found) for text in (STS, SIS, SITS))
    assert (sts.first.tolist(), sts.second.tolist(), sts.scores.tolist()) == ([0], [1], [4.1])
    assert (sis.first.tolist(), sis.second.tolist(), sis.scores.tolist()) == ([0], [1], [2.49])
    assert (sits.first.tolist(), sits.second.tolist(), sits.scores.tolist()) == ([0], [0], [5.0])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            {"sentids": [[10, 11], [20], [30, 31]]},
            r"row 1 .*of .*captions_en is .* for each of the 1 numbers of sentids",
        ),
        ({"sentids": [[10, 11], [20, 21], [30, 30]]}, "row 2 .*of .* is there twice"),
        ({"sentids": [[10, 11], [11, 21], [30, 31]]}, "row 1 .*of .*'COCO_val2014:sentid:11' is there twice"),
        ({"sentids": [None, [20, 21], [30, 31]]}, "row 0 .*of .*sentids is None; a list of numbers"),
        ({"sentids": [["a", "b"], ["c", "d"], ["e", "f"]]}, "row 0 .*of .*sentids is .*; a list of numbers"),
        ({"filename": [A, B, A]}, f"row 2 .*of .*'{A}' is there twice"),
        ({"filename": [A, None, C]}, "row 1 .*of .*filename is None; the name of a file"),
        ({"captions_en": ["a cat", "a dog", "a boat"]}, "row 0 .*of .*captions_en is 'a cat'; a list is needed"),
    ],
)
def test_rows_that_ratings_cannot_name_are_refused(tmp_path: Path, cells: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_of(data(written(tmp_path, **cells)))


# Correlation


def plain_ranks(values: Sequence[float]) -> list[float]:
    """One more than the number below, and half of the others that are equal."""
    return [1 + sum(o < v for o in values) + (sum(o == v for o in values) - 1) / 2 for v in values]


def plain_spearman(first: Sequence[float], second: Sequence[float]) -> float:
    x, y = plain_ranks(first), plain_ranks(second)
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))


def scored(rows: int, queries: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Similarities and scores with ties, and queries with one row to several; each query has one at least."""
    rng = np.random.default_rng(seed)
    numbers = np.concatenate([np.arange(queries), rng.integers(0, queries, rows - queries)])
    similarity = np.round(rng.uniform(0, 1, rows), 2)
    scores = np.round((similarity * 5 + rng.normal(size=rows)).clip(0, 5), 1)
    return similarity, scores, [f"query{number:05}" for number in rng.permutation(numbers)]


@pytest.mark.parametrize(("rows", "queries"), [(60, 30), (45, 15), (31, 31)])
def test_the_bootstrap_is_a_loop_in_plain_python(rows: int, queries: int) -> None:
    similarity, scores, names = scored(rows, queries, seed=rows)
    numbers = np.array([sorted(set(names)).index(name) for name in names])
    correlations = []
    for drawn in query_draws(numbers, draws=200, seed=4):
        model, people = [float(similarity[row]) for row in drawn], [float(scores[row]) for row in drawn]
        correlations.append(plain_spearman(model, people))
        # The oracle itself is scipy's; float64 in another order.
        assert correlations[-1] == pytest.approx(stats.spearmanr(model, people).statistic, abs=1e-12)
    mean = sum(correlations) / 200
    std = math.sqrt(sum((value - mean) ** 2 for value in correlations) / 199)
    found = sampled_spearman(similarity, scores, np.array(names), draws=200, seed=4)
    assert found == pytest.approx(correlations, abs=1e-12)
    assert (found.mean(), found.std(ddof=1)) == pytest.approx((mean, std), abs=1e-12)
    # The twins: other draws, and the correlation of all rows.
    others = sampled_spearman(similarity, scores, np.array(names), draws=200, seed=5)
    assert others.mean() != pytest.approx(mean, abs=1e-6)
    assert found.mean() != pytest.approx(plain_spearman(list(similarity), list(scores)), abs=1e-6)


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
    similarity, scores, names = scored(6000, 2500, seed=0)
    queries = np.array(names)
    assert sampled_spearman(similarity, scores, queries, draws=100).mean() > 0.7
    shuffled = np.random.default_rng(1).permutation(scores)
    # Four standard errors of a correlation of 0 over 2,500 queries, 1 / sqrt(2500) each.
    assert abs(sampled_spearman(similarity, shuffled, queries, draws=100).mean()) < 0.08
    assert sampled_spearman(similarity, similarity**3, queries, draws=10) == pytest.approx([1] * 10, abs=1e-12)


def test_too_few_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="no correlation is defined over 1 pairs"):
        sampled_spearman(np.array([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 3.0]), np.array(["a", "b", "b"]))


def test_similarities_are_of_the_rated_pairs(tmp_path: Path, split: CocoSplit) -> None:
    """By hand, from the vectors at the head of the file."""
    found = [similarities_of(rated(tmp_path, text, split), IMAGE_EMBEDS, TEXT_EMBEDS) for text in (STS, SIS, SITS)]
    # Products of float32, added in float64.
    assert found[0] == pytest.approx([0.26, 0.41, 0.61, 0.24], abs=1e-6)
    assert found[1].tolist() == [0, 0, 0]
    assert found[2] == pytest.approx([0.8, 0.6, 0.9, 0.9], abs=1e-6)


def test_items_of_another_split_are_refused(tmp_path: Path, split: CocoSplit) -> None:
    other = ratings(tmp_path, STS + "COCO_val2014:sentid:99,COCO_val2014:sentid:10,1.0,c2c_isim\n")
    with pytest.raises(ValueError, match="1 of 5 ids of the sts ratings.*sentid:99"):
        rated_items(other, split)


# Retrieval


def test_positives_are_the_original_pairs_and_those_rated_highly(tmp_path: Path, split: CocoSplit) -> None:
    """By hand. The caption pair of B rated 1.24 stays a pair, and so does the caption of C rated 0.2."""
    found = [rated(tmp_path, text, split) for text in (STS, SIS, SITS)]
    assert graded_positives(split, found) == {
        "image_to_text": [{0, 1}, {1, 2, 3}, {4, 5}],
        "text_to_image": [{0}, {0, 1}, {1}, {1}, {2}, {2}],
        "text_to_text": [{1}, {0, 2}, {3, 1}, {2}, {5}, {4}],
        "image_to_image": [{1}, {0}, set()],
    }
    # The twins: without ratings, and with thresholds a hundredth lower.
    assert graded_positives(split, []) == {
        "image_to_text": [{0, 1}, {2, 3}, {4, 5}],
        "text_to_image": [{0}, {0}, {1}, {1}, {2}, {2}],
        "text_to_text": [{1}, {0}, {3}, {2}, {5}, {4}],
        "image_to_image": [set(), set(), set()],
    }
    lower = graded_positives(split, found, {"sts": 2.99, "sis": 2.49, "sits": 2.99})
    assert lower["text_to_image"][3] == {0, 1} and lower["image_to_text"][0] == {0, 1, 3}
    assert lower["text_to_text"][3] == {2, 5} and lower["image_to_image"] == [{1, 2}, {0}, {0}]


def test_no_item_answers_itself(tmp_path: Path, split: CocoSplit) -> None:
    """Should a file rate an item with itself."""
    itself = [
        rated(tmp_path, text, split) for text in (f"{STS}{A0},{A0},5.0,c2c_isim\n", f"{SIS}{C},{C},5.0,i2i_csim\n")
    ]
    assert graded_positives(split, itself)["text_to_text"][0] == {1}
    assert graded_positives(split, itself)["image_to_image"][2] == set()


def best_ranks(
    queries: torch.Tensor, items: torch.Tensor, positives: Sequence[set[int]], *, same_items: bool, **blocks: int
) -> list[int]:
    without = list(range(len(queries))) if same_items else None
    found = relevant_ranks(queries, items, [sorted(answers) for answers in positives], without=without, **blocks)
    return found.min(dim=1).values.tolist()


def test_ranks_by_hand(tmp_path: Path, split: CocoSplit) -> None:
    """A1 is nearer to B than to its own A, and B1 nearer to A: only the former is forgiven, by its rating of 3."""
    plain = graded_positives(split, [])
    graded = graded_positives(split, [rated(tmp_path, SITS, split)])
    expected = {
        "text_to_image": ([1, 2, 1, 2, 1, 1], [1, 1, 1, 2, 1, 1]),
        "image_to_text": ([1, 2, 1], [1, 1, 1]),
    }
    for direction, answers in expected.items():
        sides = (TEXT_EMBEDS, IMAGE_EMBEDS) if direction == "text_to_image" else (IMAGE_EMBEDS, TEXT_EMBEDS)
        for positives, ranks in zip((plain, graded), answers, strict=True):
            assert best_ranks(*sides, positives[direction], same_items=False) == ranks


def test_a_query_is_no_candidate_of_its_own() -> None:
    """Orthogonal pictures: the other two tie at zero, which counts against the query, and the third has no answer."""
    positives = [{1}, {0}, set[int]()]
    assert best_ranks(IMAGE_EMBEDS, IMAGE_EMBEDS, positives, same_items=True) == [2, 2, NEVER]
    assert best_ranks(IMAGE_EMBEDS, IMAGE_EMBEDS, positives, same_items=False) == [3, 3, NEVER]
    # Nor is it found, should it be given as an answer.
    with_itself = [{0, 1}, {1, 0}, {2}]
    assert best_ranks(IMAGE_EMBEDS, IMAGE_EMBEDS, with_itself, same_items=True) == [2, 2, NEVER]


@pytest.mark.parametrize("same_items", [False, True])
def test_ranks_are_a_loop_over_items(same_items: bool) -> None:
    """Whole numbers, so that scores tie; in one block and in several of queries and of items."""
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
    for query_block, item_block in ((1024, 65536), (7, 65536), (7, 11)):
        blocks = {"query_block": query_block, "item_block": item_block}
        assert best_ranks(queries, items, positives, same_items=same_items, **blocks) == expected
    assert best_ranks(queries, items, positives[::-1], same_items=same_items) != expected


# Suites


class Knowing(Encoder):
    """Stands in for a model: a picture is its colour, and a text the vector it is told."""

    def __init__(self, korean: torch.Tensor = TEXT_EMBEDS):
        english = ["a cat", "a cat with a dog", "a dog", "a dog by a cat", "a boat", "a boat and a cat"]
        self.vectors = dict(zip(english, TEXT_EMBEDS, strict=True))
        self.vectors |= dict(
            zip(["고양이", "고양이와 개", "개", "개와 고양이", "배", "배와 고양이"], korean, strict=True)
        )
        self.asked: list[str] = []
        self.pictures = 0

    def images(self, pictures: Iterable[torch.Tensor]) -> torch.Tensor:
        pixels = [picture[:, 4, 4] / 255 for picture in pictures]
        self.pictures += len(pixels)
        return torch.stack(pixels)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        self.asked += texts
        return torch.stack([self.vectors[text] for text in texts])


def suite(folder: Path, *tasks: Any, files: Sequence[str] = (), **changed: Any) -> SuiteSettings:
    names = list(files) or ratings_files(folder, sts=STS, sis=SIS, sits=SITS)
    fields = {
        "name": "cxc",
        "data": changed.get("data") or data(written(folder)),
        "tasks": list(tasks),
        "crisscrossed": CrisscrossedSettings(ratings=names),
        # Of three pictures one bad one is a large share.
        "max_bad_image_share": 0.5,
    }
    return SuiteSettings(**fields | changed)


def values(outcome: Outcome) -> dict[tuple[str, str, str], tuple[float, int]]:
    found = {(each.language, each.slice, each.metric): (each.value, each.n) for each in outcome.results}
    assert len(found) == len(outcome.results)
    return found


def test_retrieval_of_a_suite(tmp_path: Path) -> None:
    """Recall at 1 of the ranks worked by hand above; pictures that no picture answers are not counted. In Korean A1 is
    nearest to C, which does not answer it. Between texts: A0 finds B1 first (0.59; A1 has 0.26), A1 finds B0 (0.61),
    rated 3, and B0 finds A1; B1 finds A0 (0.59; B0 has 0.41), C0 finds B0 (0.48; C1 has 0.45), and C1 finds C0."""
    korean = TEXT_EMBEDS.clone()
    korean[1] = torch.tensor([0.2, 0.1, 0.8])
    outcome = run_suite(Knowing(korean), suite(tmp_path, "crisscrossed_retrieval"))
    found = values(outcome)
    assert found["en", "all", "text_to_image_recall@1"] == (pytest.approx(5 / 6), 6)
    assert found["en", "all", "image_to_text_recall@1"] == (1, 3)
    assert found["en", "all", "text_to_text_recall@1"] == (0.5, 6)
    assert found["ko", "all", "text_to_image_recall@1"] == (pytest.approx(4 / 6), 6)
    assert found["-", "all", "image_to_image_recall@1"] == (0, 2)
    assert found["-", "all", "image_to_image_recall@5"] == (1, 2)
    # Four directions, of which that between pictures is measured once.
    assert len(found) == 3 * (3 + 3 + 1)
    assert {each.task for each in outcome.results} == {"crisscrossed_retrieval"}
    # The twin: without ratings of captions with pictures, and without those of pictures.
    plain = values(
        run_suite(Knowing(), suite(tmp_path, "crisscrossed_retrieval", files=ratings_files(tmp_path, sts=STS)))
    )
    assert plain["en", "all", "text_to_image_recall@1"][0] == pytest.approx(4 / 6)
    assert plain["en", "all", "image_to_text_recall@1"][0] == pytest.approx(2 / 3)
    assert len(plain) == 3 * (3 + 3)


def test_pictures_that_do_not_decode_are_left_out_of_retrieval(tmp_path: Path) -> None:
    """Without B its captions are gone, and A is found by no picture: of the ratings of pictures that of A with C is
    left, which is below 2.5."""
    broken = data(written(tmp_path, image=[png(COLOURS[A]), b"broken", png(COLOURS[C])]))
    outcome = run_suite(Knowing(), suite(tmp_path, "crisscrossed_retrieval", data=broken))
    assert outcome.rows == [0, 2] and len(outcome.unreadable) == 1
    found = values(outcome)
    # A1 is nearer to A than to C.
    assert found["en", "all", "text_to_image_recall@1"] == (1, 4)
    assert found["en", "all", "image_to_text_recall@1"] == (1, 2)
    assert not any(metric.startswith("image_to_image") for _, _, metric in found)


def rated_pairs(pairs: Iterable[tuple[str, str, float]], task: str) -> str:
    heads = {"sts": "caption1,caption2", "sis": "image1,image2", "sits": "caption,image"}
    return f"{heads[task]},agg_score,sampling_method\n" + "".join(f"{a},{b},{score},m\n" for a, b, score in pairs)


class Angles(Encoder):
    """A picture lies at its red value in degrees, a text at its number, in Korean on the other side."""

    def images(self, pictures: Iterable[torch.Tensor]) -> torch.Tensor:
        return self._at([float(picture[0, 4, 4]) for picture in pictures])

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        return self._at([float(text.removeprefix("번호 ")) * (-1 if "번호" in text else 1) for text in texts])

    @staticmethod
    def _at(degrees: Sequence[float]) -> torch.Tensor:
        radians = torch.deg2rad(torch.tensor(degrees))
        return torch.stack([radians.cos(), radians.sin()], dim=1)


@pytest.mark.parametrize("broken", [False, True])
def test_similarity_of_a_suite(tmp_path: Path, broken: bool) -> None:
    """Forty pictures at 1 to 40 degrees, with a caption each at 91 to 130 degrees. Each picture is rated with the
    first by how near it is, and so is every caption; each caption is rated with the first picture by how far it is.
    STS and SIS then have a correlation of 1, SITS of -1, and their mean is a third. In Korean captions lie on the
    other side, at -91 to -130 degrees, in the same order. Each query has one rated item, so that every draw agrees."""
    names = [f"COCO_val2014_{number}.jpg" for number in range(40)]
    ids = [f"COCO_val2014:sentid:{number}" for number in range(40)]
    images = [png((number + 1, 0, 0)) for number in range(40)]
    if broken:
        images[7] = b"broken"
    rows = {
        "image": images,
        "filename": names,
        "sentids": [[number] for number in range(40)],
        "captions_en": [[str(number + 91)] for number in range(40)],
        "captions_ko": [[f"번호 {number + 91}"] for number in range(40)],
    }
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "forty.parquet")
    near = [5 - number / 10 for number in range(40)]
    files = ratings_files(
        tmp_path,
        sts=rated_pairs(zip(ids[1:], ids[:1] * 39, near[1:], strict=True), "sts"),
        sis=rated_pairs(zip(names[1:], names[:1] * 39, near[1:], strict=True), "sis"),
        sits=rated_pairs(zip(ids, names[:1] * 40, reversed(near), strict=True), "sits"),
    )
    source = data(str(tmp_path / "forty.parquet"))
    outcome = run_suite(Angles(), suite(tmp_path, "crisscrossed_similarity", files=files, data=source))
    found = values(outcome)
    lost = int(broken)
    expected = {("-", "SIS"): (1, 39 - lost)}
    for language in ("en", "ko"):
        expected |= {(language, "STS"): (1, 39 - lost), (language, "SITS"): (-1, 40 - lost)}
    for (language, part), (value, n) in expected.items():
        assert found[language, part, "sampled_spearman"] == (pytest.approx(value, abs=1e-12), n)
        assert found[language, part, "sampled_spearman_std"] == (pytest.approx(0, abs=1e-12), n)
    for language in ("en", "ko"):
        assert found[language, "mean", "sampled_spearman"] == (pytest.approx(1 / 3, abs=1e-12), 118 - 3 * lost)
    assert len(found) == 2 * len(expected) + 2
    for each in outcome.results:
        assert each.task == "crisscrossed_similarity" and each.low == pytest.approx(each.value) == each.high
    # They stand beside ALIGN's, in the table and on the page.
    beside = {(each.ours.slice, round(100 * each.theirs.value, 1)) for each in published_for(outcome.results)}
    assert beside == {("STS", 72.9), ("SIS", 77.2), ("SITS", 67.6), ("mean", 72.6)}
    assert "crisscrossed_similarity  en" in table({"model": outcome.results})
    assert "sampled Spearman, SITS" in evaluation_page({"model": [outcome]})


def test_pictures_and_texts_are_embedded_once(tmp_path: Path) -> None:
    """For however many tasks, and not again where the features are kept."""
    encoder, again = Knowing(), Knowing()
    asked = suite(tmp_path, "crisscrossed_retrieval", "retrieval", data=data(written(tmp_path), captions_en="en"))
    run_suite(encoder, dataclasses.replace(asked, tasks=["crisscrossed_retrieval"] * 2))
    assert (encoder.pictures, len(encoder.asked), len(set(encoder.asked))) == (3, 6, 6)
    run_suite(encoder, asked, FeatureCache(tmp_path / "features", "knowing"))
    run_suite(again, asked, FeatureCache(tmp_path / "features", "knowing"))
    assert again.pictures == 0 and not again.asked


def test_ratings_are_checked_before_pictures_are_embedded(tmp_path: Path) -> None:
    encoder = Knowing()
    with pytest.raises(FileNotFoundError, match="sis_val.csv"):
        run_suite(encoder, suite(tmp_path, "crisscrossed_retrieval", files=["sis_val.csv"]))
    absent = CrisscrossedSettings(ratings=ratings_files(tmp_path, sts=STS), sentids="ids")
    with pytest.raises(ValueError, match="no column 'ids', which the setting 'crisscrossed.sentids' names"):
        run_suite(encoder, suite(tmp_path, "crisscrossed_retrieval", crisscrossed=absent))
    assert encoder.pictures == 0


def test_suites_without_what_they_need_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="asks for crisscrossed_retrieval and has no section crisscrossed"):
        suite(tmp_path, "crisscrossed_retrieval", crisscrossed=None)
    with pytest.raises(ValueError, match="has a section crisscrossed that no task reads"):
        suite(tmp_path, "retrieval")
    two = DataSettings(path="split.parquet", captions={"captions_en": "en", "others": "en"})
    with pytest.raises(ValueError, match="one column a language is needed"):
        suite(tmp_path, "crisscrossed_similarity", data=two)
    of_texts = DataSettings(path="split.parquet", captions={"captions_en": "en"}, image=None)
    with pytest.raises(ValueError, match="has no pictures, and asks for crisscrossed_similarity"):
        suite(tmp_path, "crisscrossed_similarity", data=of_texts)
