"""Overlap behind a suite: planted copies are found, figures are worked by hand, hashes are made once for models."""

import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from small_pictures import pictures_file

from ko_en_clip.commands.evaluate import table
from ko_en_clip.data.pairs import DataSettings, open_pairs
from ko_en_clip.evaluation import features, perceptual_hash
from ko_en_clip.evaluation.evaluation_report import evaluation_page
from ko_en_clip.evaluation.features import FeatureCache
from ko_en_clip.evaluation.judging import Outcome, run_suite, run_suites
from ko_en_clip.evaluation.labels import LabelSettings
from ko_en_clip.evaluation.metrics import Result
from ko_en_clip.evaluation.overlap import (
    Neighbours,
    OverlapSettings,
    clopper_pearson,
    nearest_of,
    pairs_to_show,
)
from ko_en_clip.evaluation.perceptual_hash import hashes_of, hashes_of_pairs
from ko_en_clip.evaluation.suites import SuiteSettings, load_suite


@pytest.fixture(autouse=True)
def datasets_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


class PixelEncoder:
    """A picture's direction is that of its first pixel; a text's is given."""

    def __init__(self, texts: dict[str, Sequence[float]]):
        self.directions = texts

    def images(self, pictures: Iterable[torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.stack([picture[:, 0, 0].float() for picture in pictures]), dim=1)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.tensor([list(self.directions[text]) for text in texts]), dim=1)


RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
DIRECTIONS = {"빨강": RED, "초록": GREEN, "파랑": BLUE, "red": RED, "green": GREEN, "blue": BLUE}
# Twelve pictures: what they are, and what their first pixels are like. In English those of rows 0, 4 and 5 are wrong.
LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
SEEN = [1, 0, 0, 0, 0, 2, 1, 1, 2, 2, 2, 2]
# Rows 2, 3, 5 and 6 have a copy in the training set, row 6 a mirrored one.
COPIED, MIRRORED = (2, 3, 5), (6,)


def dots(seed: int, first: int | None = None) -> np.ndarray:
    """Random dots of 24 by 24, the first of a plain colour."""
    pixels = np.random.default_rng(seed).integers(256, size=(6, 6, 3), dtype=np.uint8)
    pixels = pixels.repeat(4, axis=0).repeat(4, axis=1)
    if first is not None:
        pixels[0, 0] = [200 * (channel == first) + 5 for channel in range(3)]
    return pixels


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def written(folder: Path, name: str, **columns: list[Any]) -> DataSettings:
    datasets.Dataset.from_dict(columns).to_parquet(folder / f"{name}.parquet")
    return DataSettings(path=str(folder / f"{name}.parquet"))


def suite_of(folder: Path, tasks: Sequence[str] = ("overlap",), **overlap: Any) -> SuiteSettings:
    """Twelve pictures in Korean and English, and eight training pictures with four copies among them."""
    tests = [dots(number, SEEN[number]) for number in range(12)]
    names = {"ko": ["빨강", "초록", "파랑"], "en": ["red", "green", "blue"]}
    texts = {language: [of_language[seen] for seen in LABELS] for language, of_language in names.items()}
    data = written(folder, "test", image=[png(pixels) for pixels in tests], label=LABELS, **texts)
    copies = [tests[row] for row in COPIED] + [tests[row][:, ::-1] for row in MIRRORED]
    train = written(folder, "train", image=[png(pixels) for pixels in [*map(dots, range(100, 104)), *copies]])
    return SuiteSettings(
        name=folder.name,
        data=dataclasses.replace(data, captions={"ko": "ko", "en": "en"}),
        labels=LabelSettings(column="label", names=names, templates={"ko": ["{}"], "en": ["{}"]}),
        tasks=list(tasks),
        overlap=OverlapSettings(train=train, **overlap),
    )


def figures(outcome: Outcome) -> dict[tuple[str, str, str], Result]:
    """Those of overlap, by language, part and metric."""
    results = [result for result in outcome.results if result.task == "overlap"]
    found = {(result.language, result.slice, result.metric): result for result in results}
    assert len(found) == len(results)
    return found


# Figures


def test_figures_of_all_clean_and_overlap_by_hand(tmp_path: Path) -> None:
    """Overlap: rows 2, 3 and 5, of which 5 is wrong; Clean: nine, of which 0 and 4 are wrong. All: 9 of 12."""
    found = figures(run_suite(PixelEncoder(DIRECTIONS), suite_of(tmp_path)))
    expected = {"all": (9, 12), "clean": (7, 9), "overlap": (2, 3)}
    for language in ("ko", "en"):
        for part, (hits, num) in expected.items():
            result = found[language, part, "accuracy"]
            assert (result.value, result.n) == (hits / num, num)
            assert (result.low, result.high) == clopper_pearson(hits, num)
        inflation = found[language, "all", "accuracy_inflation"]
        assert inflation.value == pytest.approx(9 / 12 - 7 / 9, abs=1e-15)
        assert inflation.low < inflation.value < inflation.high and inflation.n == 12
        # Two or three of three where each comes with 7/9: 3 (7/9)^2 (2/9) + (7/9)^3.
        assert found[language, "all", "accuracy_p_value"].value == pytest.approx(
            3 * (7 / 9) ** 2 * (2 / 9) + (7 / 9) ** 3, rel=1e-9
        )
        assert found[language, "all", "accuracy_p_value"].n == 3
    share = found["-", "all", "overlap_share"]
    assert (share.value, share.n, share.low, share.high) == (3 / 12, 12, *clopper_pearson(3, 12))


def test_another_language_has_other_figures(tmp_path: Path) -> None:
    """With green and blue exchanged in Korean, row 5, a copy of green that looks blue, is right."""
    exchanged = DIRECTIONS | {"초록": BLUE, "파랑": GREEN}
    found = figures(run_suite(PixelEncoder(exchanged), suite_of(tmp_path)))
    assert found["ko", "overlap", "accuracy"].value == 1
    assert found["en", "overlap", "accuracy"].value == pytest.approx(2 / 3)


def test_mirrored_copies_are_found_where_they_are_looked_for(tmp_path: Path) -> None:
    outcome = run_suite(PixelEncoder(DIRECTIONS), suite_of(tmp_path, mirrored=True))
    assert figures(outcome)["en", "overlap", "accuracy"].n == 4
    (pairs,) = outcome.findings.nearest_pairs
    within = {(pair.row, pair.train_row): pair.mirrored for pair in pairs.pairs if pair.distance == 0}
    assert within == {(2, 4): False, (3, 5): False, (5, 6): False, (6, 7): True}


def test_embeddings_find_what_hashes_do_not(tmp_path: Path) -> None:
    """The training pictures' first pixels are drawn, but for copies: those of reds at rows 2 and 3, and of blue at 5.

    By embedding all pictures that look as red as rows 2 and 3, or as blue as 5, are copies; hashes find three.
    """
    suite = suite_of(tmp_path, hash_bits=None, cosine_distance=1e-6)
    outcome = run_suite(PixelEncoder(DIRECTIONS), suite)
    red_or_blue = [seen in (0, 2) for seen in SEEN]
    assert figures(outcome)["-", "all", "overlap_share"].value == sum(red_or_blue) / 12
    assert figures(outcome)["en", "clean", "accuracy"].value == 2 / 3
    (pairs,) = outcome.findings.nearest_pairs
    assert (pairs.way, pairs.num_within) == ("embedding", sum(red_or_blue))
    # Both ways: no more, for hashes find three of these.
    both = run_suite(PixelEncoder(DIRECTIONS), suite_of(tmp_path, cosine_distance=1e-6))
    assert figures(both)["-", "all", "overlap_share"].value == sum(red_or_blue) / 12
    assert [found.way for found in both.findings.nearest_pairs] == ["hash", "embedding"]


def test_embeddings_of_mirrored_pictures(tmp_path: Path) -> None:
    """The first pixel of a mirrored picture is its last one's of the first row."""
    suite = suite_of(tmp_path, hash_bits=None, cosine_distance=1e-6, mirrored=True)
    (pairs,) = run_suite(PixelEncoder(DIRECTIONS), suite).findings.nearest_pairs
    assert (6, 7) in {(pair.row, pair.train_row) for pair in pairs.pairs if pair.mirrored and pair.distance < 1e-6}


def test_recall_is_compared_where_retrieval_is_asked(tmp_path: Path) -> None:
    """Captions are the classes' names; a picture finds its own where it looks like its class."""
    suite = dataclasses.replace(suite_of(tmp_path, ["retrieval", "overlap"]), labels=None)
    found = figures(run_suite(PixelEncoder(DIRECTIONS), suite))
    assert {metric for _, _, metric in found if "share" not in metric} == {
        f"image_to_text_recall@1{ending}" for ending in ("", "_inflation", "_p_value")
    }
    values = [found["ko", part, "image_to_text_recall@1"].value for part in ("all", "clean", "overlap")]
    assert values == [9 / 12, 7 / 9, 2 / 3]


def test_classes_and_captions_are_both_compared(tmp_path: Path) -> None:
    found = figures(run_suite(PixelEncoder(DIRECTIONS), suite_of(tmp_path, ["retrieval", "overlap"])))
    assert {metric for _, part, metric in found if part == "clean"} == {"accuracy", "image_to_text_recall@1"}


def test_a_suite_where_nothing_overlaps_has_no_test(tmp_path: Path) -> None:
    suite = suite_of(tmp_path)
    train = written(tmp_path, "others", image=[png(dots(number)) for number in range(200, 204)])
    apart = dataclasses.replace(suite, overlap=OverlapSettings(train=train))
    found = figures(run_suite(PixelEncoder(DIRECTIONS), apart))
    assert set(found) == {("-", "all", "overlap_share")} | {
        (language, part, "accuracy") for language in ("ko", "en") for part in ("all", "clean")
    }
    assert found["-", "all", "overlap_share"].value == 0
    assert found["en", "clean", "accuracy"].value == found["en", "all", "accuracy"].value == 9 / 12


def test_a_suite_that_overlaps_wholly_has_no_clean_part_and_keeps_its_pairs(tmp_path: Path) -> None:
    suite = suite_of(tmp_path)
    same = dataclasses.replace(suite, overlap=OverlapSettings(train=suite.data))
    outcome = run_suite(PixelEncoder(DIRECTIONS), same)
    found = figures(outcome)
    assert set(found) == {("-", "all", "overlap_share"), ("ko", "all", "accuracy"), ("en", "all", "accuracy")}
    assert found["-", "all", "overlap_share"].value == 1 and outcome.findings.nearest_pairs[0].num_within == 12
    page = evaluation_page({"ours": [outcome]})
    assert "Overlap with training pictures" in page and "100.0" in page


def test_copies_are_found_in_each_of_several_sets(tmp_path: Path) -> None:
    suite = suite_of(tmp_path)
    assert suite.overlap is not None
    more = written(tmp_path, "more", image=[png(dots(300)), png(dots(9, SEEN[9])), png(dots(2, SEEN[2]))])
    both = dataclasses.replace(suite, overlap=OverlapSettings(train=[*suite.overlap.sources, more]))
    (pairs,) = run_suite(PixelEncoder(DIRECTIONS), both).findings.nearest_pairs
    # Row 2 has a copy in both, and that of the first set is named.
    found = {pair.row: (pair.source, pair.train_row) for pair in pairs.pairs if pair.distance == 0}
    assert found == {2: (0, 4), 3: (0, 5), 5: (0, 6), 9: (1, 1)}


def test_pictures_that_do_not_decode_are_left_out_of_both_sides(tmp_path: Path) -> None:
    suite = suite_of(tmp_path)
    assert suite.overlap is not None
    for name, place in (("test", 1), ("train", 0)):
        rows = datasets.Dataset.from_parquet(str(tmp_path / f"{name}.parquet")).to_dict()
        rows["image"][place] = b"bad"
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / f"{name}-bad.parquet")
    bad = dataclasses.replace(
        suite,
        data=dataclasses.replace(suite.data, path=str(tmp_path / "test-bad.parquet")),
        overlap=OverlapSettings(train=DataSettings(path=str(tmp_path / "train-bad.parquet"))),
        max_bad_image_share=0.2,
    )
    outcome = run_suite(PixelEncoder(DIRECTIONS), bad)
    (pairs,) = outcome.findings.nearest_pairs
    assert {(pair.row, pair.train_row) for pair in pairs.pairs if pair.distance == 0} == {(2, 4), (3, 5), (5, 6)}
    assert figures(outcome)["en", "all", "accuracy"].n == 11


# Several suites, several models


def test_p_values_are_corrected_for_the_number_of_suites(tmp_path: Path) -> None:
    suites = []
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        suites.append(suite_of(tmp_path / name))
    train = written(tmp_path, "others", image=[png(dots(number)) for number in range(200, 204)])
    suites[2] = dataclasses.replace(suites[2], overlap=OverlapSettings(train=train))
    # In English what looks blue is told to be green, and all else red: right are rows 2, 3 and 5, all of Overlap, and
    # rows 0 and 1, two of nine on Clean.
    encoder = PixelEncoder(DIRECTIONS | {"red": (1.0, 0.5, 0.0), "green": BLUE, "blue": (-1.0, -1.0, -1.0)})
    alone = [figures(run_suite(encoder, suite)) for suite in suites]
    together = [figures(outcome) for outcome in run_suites(encoder, suites)]
    key = ("en", "all", "accuracy_p_value")
    assert alone[0][key].value == pytest.approx((2 / 9) ** 3)
    for before, after in zip(alone[:2], together[:2], strict=True):
        assert after[key].value == after[key].low == after[key].high == 2 * before[key].value < 1
        others = [each for each in before if not each[2].endswith("p_value")]
        assert [after[each] for each in others] == [before[each] for each in others]
    # Nothing overlaps in the third, which is not counted.
    assert key not in together[2]


def test_a_dash_stands_for_a_figure_that_a_peer_lacks(tmp_path: Path) -> None:
    outcome = run_suite(PixelEncoder(DIRECTIONS), suite_of(tmp_path))
    without = [result for result in outcome.results if result.slice != "overlap"]
    lines = table({"ours": outcome.results, "theirs": without}).splitlines()
    (line,) = [line for line in lines if line.split()[1:4] == ["en", "overlap", "accuracy"]]
    # Two of three, exactly: 3 x^2 - 2 x^3 is 0.0025 at 0.029, and 1 - x^3 at 0.9992.
    assert line.split()[4:] == ["66.7", "2.9", "to", "99.9", "-", "-", "3"]
    with pytest.raises(ValueError, match="judge them on the same suites"):
        table({"ours": outcome.results, "theirs": []})


# Hashes in parts


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "PART_SIZE", 4)


@pytest.mark.usefixtures("small_parts")
def test_hashes_are_made_once_for_all_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = open_pairs(DataSettings(path=str(pictures_file(tmp_path, 11, bad=(1, 4, 5, 6, 7)))))
    rows = [0, 2, 3, 8, 9, 10]
    expected = hashes_of(pairs.picture(row) for row in rows)
    assert expected.max() > 2**63, "a hash whose first bit is set is kept as a negative number"
    made: list[int] = []
    original = perceptual_hash.perceptual_hash
    monkeypatch.setattr(perceptual_hash, "perceptual_hash", lambda picture: made.append(1) or original(picture))
    for model in ("one", "another"):
        found, kept = hashes_of_pairs(pairs, 0.5, FeatureCache(tmp_path / "features", model))
        assert found.dtype == np.uint64 and found.tolist() == expected.tolist() and kept == rows
    assert len(made) == len(rows)
    # One part was lost: its pictures alone are made anew.
    sorted((tmp_path / "features").rglob("*.safetensors"))[0].unlink()
    assert hashes_of_pairs(pairs, 0.5, FeatureCache(tmp_path / "features", "one"))[0].tolist() == expected.tolist()
    assert len(made) == len(rows) + 3
    # The twins: mirrored, and other pictures, are not taken for these.
    cache = FeatureCache(tmp_path / "features", "one")
    mirrored, _ = hashes_of_pairs(pairs, 0.5, cache, mirrored=True)
    assert mirrored.tolist() == hashes_of(pairs.picture(row).flip(-1) for row in rows).tolist() != expected.tolist()
    others = open_pairs(DataSettings(path=str(pictures_file(tmp_path, 11, file="other.parquet"))))
    assert len(hashes_of_pairs(others, 0.5, cache)[0]) == 11


# Real photographs


def jpeg(photo: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_planted_copies_of_photographs_are_found_and_no_others(shared_data: Path, tmp_path: Path) -> None:
    files = sorted((shared_data / "photos").glob("*.jpg"))
    photos, others = files[:16], files[16:40]
    opened = [Image.open(file).convert("RGB") for file in photos]
    changes: list[Callable[[Image.Image], Image.Image]] = [
        lambda photo: photo,
        lambda photo: photo.resize((photo.width // 2, photo.height // 2)),
        lambda photo: photo.resize((photo.width * 3 // 2, photo.height)),
        lambda photo: photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    ]
    planted = [jpeg(change(opened[2 * number]), 60) for number, change in enumerate(changes)]
    train = written(tmp_path, "train", image=[file.read_bytes() for file in others] + planted)
    data = written(tmp_path, "photos", image=[file.read_bytes() for file in photos], ko=[file.name for file in photos])
    suite = SuiteSettings(
        name="photos",
        data=dataclasses.replace(data, captions={"ko": "ko"}),
        tasks=["retrieval", "overlap"],
        overlap=OverlapSettings(train=train, mirrored=True),
    )
    encoder = PixelEncoder({file.name: RED for file in photos})
    (pairs,) = run_suite(encoder, suite).findings.nearest_pairs
    within = {pair.row: (pair.train_row, pair.mirrored) for pair in pairs.pairs if pair.distance <= pairs.threshold}
    assert within == {0: (24, False), 2: (25, False), 4: (26, False), 6: (27, True)} and pairs.num_within == 4
    # Those shown beyond it are far from it, and the mirrored one is if mirrored ones are not looked for.
    assert min(pair.distance for pair in pairs.pairs if pair.row not in within) > 2 * pairs.threshold
    plain = dataclasses.replace(suite, overlap=OverlapSettings(train=train))
    assert run_suite(encoder, plain).findings.nearest_pairs[0].num_within == 3


# Which pairs are shown


def distances(*values: float) -> Neighbours:
    return Neighbours(train=np.arange(len(values)) + 100, distance=np.array(values, dtype=np.float32))


def test_pairs_are_shown_from_the_nearest_to_beyond_the_threshold() -> None:
    found = distances(8, 0, 12, 2, 10, 6, 14)
    assert pairs_to_show(found, 6, limit=5) == [(1, 101, 0), (3, 103, 2), (5, 105, 6), (0, 100, 8), (4, 104, 10)]
    assert [pair.distance for pair in pairs_to_show(found, -1, limit=3)] == [0, 2, 6]
    assert [pair.distance for pair in pairs_to_show(found, 20)] == [0, 2, 6, 8, 10, 12, 14]


def test_of_many_copies_those_shown_reach_from_the_nearest_to_the_threshold() -> None:
    found = distances(*range(100))
    shown = [pair.distance for pair in pairs_to_show(found, 49, limit=12)]
    assert shown == [0, 7, 14, 21, 28, 35, 42, 49, 50, 51, 52, 53]
    # Where few lie beyond, the others have their places.
    assert [pair.distance for pair in pairs_to_show(found, 98, limit=12)][-2:] == [98, 99]
    assert len(pairs_to_show(found, 98, limit=12)) == 12
    assert len(pairs_to_show(distances(1, 2), 0)) == 2


def test_the_nearest_of_several_searches() -> None:
    first, second = distances(3, 5, 1), dataclasses.replace(distances(4, 2, 1), train=np.array([7, 8, 9]))
    found, found_by = nearest_of([first, second])
    assert (found.train.tolist(), found.distance.tolist(), found_by.tolist()) == ([100, 8, 102], [3, 2, 1], [0, 1, 0])


# Settings


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hash_bits": None}, "hash_bits and cosine_distance are both null"),
        ({"hash_bits": 64}, "hash_bits is 64; of 64 bits"),
        ({"hash_bits": -1}, "hash_bits is -1"),
        ({"cosine_distance": 2.0}, "cosine_distance is 2.0"),
        ({"cosine_distance": 0.0}, "cosine_distance is 0.0; it must be above 0"),
        ({"train": []}, "train is empty"),
    ],
)
def test_thresholds_that_mean_nothing_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OverlapSettings(**{"train": DataSettings(path="train.parquet")} | changed)


def test_a_task_without_its_section_is_refused_and_a_section_without_its_task(tmp_path: Path) -> None:
    suite = suite_of(tmp_path)
    with pytest.raises(ValueError, match="asks for overlap and has no section overlap"):
        dataclasses.replace(suite, overlap=None)
    with pytest.raises(ValueError, match="has a section overlap that no task reads"):
        dataclasses.replace(suite, tasks=["zero_shot_classification"])
    with pytest.raises(ValueError, match="neither classes nor the task retrieval"):
        dataclasses.replace(suite, labels=None)
    assert suite.labels is not None
    several = dataclasses.replace(suite.labels, metric="mean_average_precision")
    with pytest.raises(ValueError, match="its pictures may be several things"):
        dataclasses.replace(suite, labels=several)


def test_one_or_several_training_sets_are_read_from_a_file(tmp_path: Path) -> None:
    suite = suite_of(tmp_path)
    assert suite.overlap is not None
    written_down = dataclasses.asdict(suite)
    file = tmp_path / "suite.yaml"
    file.write_text(json.dumps(written_down, ensure_ascii=False), encoding="utf-8")
    assert load_suite(str(file)) == suite
    written_down["overlap"]["train"] = [written_down["overlap"]["train"]] * 2
    file.write_text(json.dumps(written_down, ensure_ascii=False), encoding="utf-8")
    loaded = load_suite(str(file), ["overlap.hash_bits=4"]).overlap
    assert loaded is not None and (len(loaded.sources), loaded.hash_bits) == (2, 4)
