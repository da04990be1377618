"""Suites with known answers: an encoder that knows what it should say, and data with known mistakes."""

import dataclasses
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from ko_en_clip import KoEnClipConfig, KoEnClipForPreTraining, KoEnClipModel, KoEnClipProcessor
from ko_en_clip.data.pairs import DataSettings, PairSet
from ko_en_clip.evaluation import embeddings
from ko_en_clip.evaluation.embeddings import TransformersEncoder, open_encoder
from ko_en_clip.evaluation.features import image_embeddings
from ko_en_clip.evaluation.judging import Outcome, run_suite
from ko_en_clip.evaluation.labels import LabelSettings
from ko_en_clip.evaluation.metrics import RECALL_AT
from ko_en_clip.evaluation.retrieval import pixel_ranks
from ko_en_clip.evaluation.suites import SuiteSettings, load_suite
from ko_en_clip.evaluation.zero_shot import class_embeddings
from ko_en_clip.settings_files import packaged

COLOURS = {"red": (220, 0, 0), "green": (0, 220, 0), "blue": (0, 0, 220)}
KOREAN = {"red": "빨강", "green": "초록", "blue": "파랑"}


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


class KnowingEncoder:
    """Gives a picture the direction of its colour, and a text the direction it is told."""

    def __init__(self, texts: dict[str, Sequence[float]]):
        self.directions = texts
        self.asked: list[str] = []

    def images(self, pictures: Iterable[torch.Tensor]) -> torch.Tensor:
        pixels = [picture[:, 4, 4].tolist() for picture in pictures]
        return torch.nn.functional.normalize(torch.tensor(pixels).float(), dim=1)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        self.asked += texts
        return torch.nn.functional.normalize(torch.tensor([list(self.directions[text]) for text in texts]), dim=1)


RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
ALL_RIGHT = {"red": RED, "green": GREEN, "blue": BLUE, "빨강": RED, "초록": GREEN, "파랑": BLUE}


def png(colour: tuple[int, int, int], size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def written(folder: Path, names: Sequence[str], file: str = "pairs.parquet", **cells: Any) -> str:
    """A parquet file of one-coloured pictures with their names in both languages."""
    rows = {
        "image": [png(COLOURS[name]) for name in names],
        "ko": [KOREAN[name] for name in names],
        "en": list(names),
        "base": list(names),
        "label": [list(COLOURS).index(name) for name in names],
        **cells,
    }
    datasets.Dataset.from_dict(rows).to_parquet(folder / file)
    return str(folder / file)


def suite(path: str, *tasks: Any, group: str | None = "base", **changed: Any) -> SuiteSettings:
    data = DataSettings(path=path, captions={"ko": "ko", "en": "en"}, group=group)
    # Of a handful of pictures one bad one is a large share.
    fields = {"name": "colours", "data": data, "tasks": list(tasks), "max_bad_image_share": 0.5}
    return SuiteSettings(**fields | changed)


def values(outcome: Outcome) -> dict[tuple[str, str, str], float]:
    found = {(result.language, result.slice, result.metric): result.value for result in outcome.results}
    assert len(found) == len(outcome.results)
    return found


# Zero-shot


def test_accuracy_is_the_share_of_right_classes_in_each_language(tmp_path: Path) -> None:
    path = written(tmp_path, ["red", "red", "red", "green", "blue"])
    # In Korean red and green are exchanged: of five pictures only the blue one is right.
    encoder = KnowingEncoder(ALL_RIGHT | {"빨강": GREEN, "초록": RED})
    outcome = run_suite(encoder, suite(path, "zero_shot_classification"))
    assert values(outcome) == {("ko", "all", "accuracy"): 0.2, ("en", "all", "accuracy"): 1.0}
    assert [result.n for result in outcome.results] == [5, 5]
    for result in outcome.results:
        assert (result.task, result.dataset) == ("zero_shot_classification", "colours")
        assert 0 <= result.low <= result.value <= result.high <= 1
    assert outcome.class_names == ["blue", "green", "red"]
    assert outcome.rows == [0, 1, 2, 3, 4]
    assert_close(outcome.classes["en"], torch.tensor([BLUE, GREEN, RED]), rtol=0, atol=1e-6)
    assert_close(outcome.image_embeds[3:], torch.tensor([GREEN, BLUE]), rtol=0, atol=1e-6)


def test_slices_have_their_own_accuracy(tmp_path: Path) -> None:
    path = written(tmp_path, ["red", "red", "green", "blue"], seen=[True, False, True, False])
    encoder = KnowingEncoder(ALL_RIGHT | {"blue": RED, "red": (0.9, 0.0, 0.1)})
    outcome = run_suite(encoder, suite(path, "zero_shot_classification", slice_column="seen"))
    # In English "blue" is red: the blue picture is nearest to "red", and both reds are nearest to "blue".
    assert values(outcome) == {
        ("ko", "all", "accuracy"): 1.0,
        ("ko", "seen=True", "accuracy"): 1.0,
        ("ko", "seen=False", "accuracy"): 1.0,
        ("en", "all", "accuracy"): 0.25,
        ("en", "seen=True", "accuracy"): 0.5,
        ("en", "seen=False", "accuracy"): 0.0,
    }
    assert {result.slice: result.n for result in outcome.results} == {"all": 4, "seen=True": 2, "seen=False": 2}


def test_labels_and_templates_make_the_classes(tmp_path: Path) -> None:
    path = written(tmp_path, ["red", "green", "blue", "blue"])
    labels = LabelSettings(
        column="label",
        names={"ko": ["빨강", "초록", "파랑"], "en": list(COLOURS)},
        templates={"ko": ["{}{을/를} 본다", "{}"], "en": ["the colour {}"]},
    )
    directions = {"빨강을 본다": RED, "초록을 본다": GREEN, "파랑을 본다": BLUE}
    directions |= {f"the colour {name}": ALL_RIGHT[name] for name in ("red", "green")}
    directions |= {"the colour blue": (0.6, 0.0, -0.1)}
    encoder = KnowingEncoder(ALL_RIGHT | directions)
    outcome = run_suite(encoder, suite(path, "zero_shot_classification", group=None, labels=labels))
    # Both blues are nowhere near their English class.
    assert values(outcome) == {("ko", "all", "accuracy"): 1.0, ("en", "all", "accuracy"): 0.5}
    assert outcome.class_names == ["0", "1", "2"]
    assert sorted(encoder.asked) == sorted([*directions, "빨강", "초록", "파랑"])


def test_class_embedding_is_the_mean_of_normalised_prompts_normalised_again() -> None:
    encoder = KnowingEncoder({"a": (10.0, 0.0, 0.0), "b": (0.0, 0.1, 0.0), "c": (0.0, 0.0, 3.0)})
    found = class_embeddings(encoder, [["a", "b"], ["c"]])
    # By hand: (1, 0, 0) and (0, 1, 0) have the mean (0.5, 0.5, 0), of length 1 / sqrt(2). 1e-6: float32.
    expected = torch.tensor([[math.sqrt(0.5), math.sqrt(0.5), 0.0], [0.0, 0.0, 1.0]])
    assert_close(found, expected, rtol=0, atol=1e-6)
    # The twin: three prompts, of which two are the same, weigh by their number.
    leaning = class_embeddings(encoder, [["a", "a", "b"], ["c"]])
    assert_close(leaning[0], torch.tensor([2.0, 1.0, 0.0]) / math.sqrt(5), rtol=0, atol=1e-6)


def test_class_without_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="class 1 has no prompt"):
        class_embeddings(KnowingEncoder(ALL_RIGHT), [["red"], [], ["blue"]])


# Retrieval


def test_recalls_of_retrieval_by_hand(tmp_path: Path) -> None:
    """Four pictures, red twice; in English "red" and "green" are exchanged.

    English, picture to text: both reds and the green miss at 1 and find at 5 (three texts), the blue hits: 1 of 4.
    Text to picture: "red" points at green, "green" at red, "blue" is right: 1 of 3.
    """
    path = written(tmp_path, ["red", "red", "green", "blue"])
    encoder = KnowingEncoder(ALL_RIGHT | {"red": GREEN, "green": RED})
    outcome = run_suite(encoder, suite(path, "retrieval"))
    found = values(outcome)
    for k in RECALL_AT:
        assert found["ko", "all", f"image_to_text_recall@{k}"] == 1.0
        assert found["ko", "all", f"text_to_image_recall@{k}"] == 1.0
    assert found["en", "all", "image_to_text_recall@1"] == 0.25
    assert found["en", "all", "text_to_image_recall@1"] == pytest.approx(1 / 3)
    assert found["en", "all", "image_to_text_recall@5"] == found["en", "all", "text_to_image_recall@5"] == 1.0
    assert {(result.metric, result.n) for result in outcome.results if "@1" in result.metric[-2:]} == {
        ("image_to_text_recall@1", 4),
        ("text_to_image_recall@1", 3),
    }
    assert len(outcome.results) == 2 * 2 * len(RECALL_AT)


def test_pictures_without_caption_in_a_language_are_left_out_of_it(tmp_path: Path) -> None:
    path = written(tmp_path, ["red", "green", "blue"], ko=["빨강", "", "파랑"], en=["red", "green", None])
    outcome = run_suite(KnowingEncoder(ALL_RIGHT | {"파랑": GREEN}), suite(path, "retrieval", group=None))
    numbers = {(result.language, result.metric): (result.value, result.n) for result in outcome.results}
    # 파랑 looks for green, which is not among the Korean pictures: it has the same score of 0 with both, and a tie is
    # a miss. The blue picture has 0 with both texts, a tie as well.
    assert numbers["ko", "image_to_text_recall@1"] == (0.5, 2)
    assert numbers["ko", "text_to_image_recall@1"] == (0.5, 2)
    assert numbers["en", "image_to_text_recall@1"] == (1.0, 2)


def test_text_retrieval_finds_the_same_meaning_in_the_other_language(tmp_path: Path) -> None:
    path = written(tmp_path, ["red", "green", "blue"])
    # 초록 lies between red and blue, nearer to red; from English, "green" ties with nothing and misses its class.
    encoder = KnowingEncoder(ALL_RIGHT | {"초록": (0.8, 0.0, 0.6)})
    found = values(run_suite(encoder, suite(path, "text_retrieval")))
    assert found["ko-en", "all", "recall@1"] == pytest.approx(2 / 3)
    # "green" has 0 with all three Korean texts: a tie with two others, rank 3.
    assert found["en-ko", "all", "recall@1"] == pytest.approx(2 / 3)
    assert found["ko-en", "all", "recall@5"] == found["en-ko", "all", "recall@5"] == 1.0
    assert set(found) == {(pair, "all", f"recall@{k}") for pair in ("ko-en", "en-ko") for k in RECALL_AT}


# Pixels


def grey_pairs(levels: Sequence[int], groups: Sequence[str], sizes: Sequence[int] | None = None) -> PairSet:
    sizes = sizes or [24] * len(levels)
    images = [png((level, level, level), size) for level, size in zip(levels, sizes, strict=True)]
    rows = datasets.Dataset.from_dict({"image": images, "base": list(groups)})
    return PairSet(rows, DataSettings(path="memory", group="base"))


def test_pixel_ranks_by_hand() -> None:
    """Greys: distances are differences of level.

    Queries 0 (a), 100 (b), 250 (c); gallery 10 (b), 40 (a), 90 (b), 200 (a), 240 (c). Query 0: 10 is nearer than 40,
    its nearest a: rank 2. Query 100: 90 is its b: rank 1. Query 250: 240: rank 1.
    """
    gallery = grey_pairs([10, 40, 90, 200, 240], "babac")
    assert pixel_ranks(grey_pairs([0, 100, 250], "abc"), gallery).tolist() == [2, 1, 1]
    # The twin: other groups have other ranks. Query 0 as c: four are nearer than 240. Query 250 as b: 240, 200 are.
    assert pixel_ranks(grey_pairs([0, 100, 250], "cbb"), gallery).tolist() == [5, 1, 3]


def test_pixel_ranks_compare_pictures_of_unlike_sizes() -> None:
    gallery = grey_pairs([0, 255], "ab", sizes=[50, 9])
    assert pixel_ranks(grey_pairs([10, 250], "ab", sizes=[24, 100]), gallery).tolist() == [1, 1]


def test_query_without_its_group_in_the_gallery_is_never_a_hit() -> None:
    found = pixel_ranks(grey_pairs([0, 100], "az"), grey_pairs([10, 40], "ab"))
    assert found[0] == 1
    assert found[1] > max(RECALL_AT)


def test_pixel_baseline_is_measured_in_a_suite(tmp_path: Path) -> None:
    path = written(tmp_path, ["red", "green", "blue"])
    other = written(tmp_path, ["red", "green", "blue"], file="gallery.parquet", base=["red", "blue", "green"])
    gallery = DataSettings(path=other, group="base")
    outcome = run_suite(KnowingEncoder(ALL_RIGHT), suite(path, "pixel_baseline", gallery=gallery))
    found = values(outcome)
    assert found["-", "all", "image_to_text_recall@1"] == pytest.approx(1 / 3)
    assert found["-", "all", "image_to_text_recall@5"] == 1.0
    assert {result.task for result in outcome.results} == {"pixel_baseline"}


# Bad pictures


def test_bad_pictures_are_left_out_and_reported(tmp_path: Path) -> None:
    names = ["red", "green", "green", "blue"]
    images = [png(COLOURS[name]) for name in names]
    images[1] = b"not a picture"
    path = written(tmp_path, names, image=images)
    outcome = run_suite(KnowingEncoder(ALL_RIGHT), suite(path, "zero_shot_classification", "retrieval"))
    assert [error.key for error in outcome.unreadable] == ["row 1"]
    assert outcome.rows == [0, 2, 3]
    assert len(outcome.image_embeds) == 3
    assert set(values(outcome).values()) == {1.0}
    assert {result.n for result in outcome.results} == {3}
    # The twin: without a bad picture nothing is reported.
    assert run_suite(KnowingEncoder(ALL_RIGHT), suite(written(tmp_path, names), "retrieval")).unreadable == []


def test_labels_follow_the_pictures_that_are_left(tmp_path: Path) -> None:
    images = [b"not a picture", png(COLOURS["green"]), png(COLOURS["blue"])]
    path = written(tmp_path, ["red", "green", "blue"], image=images)
    labels = LabelSettings(column="label", names={"en": list(COLOURS)}, templates={"en": ["{}"]})
    outcome = run_suite(KnowingEncoder(ALL_RIGHT), suite(path, "zero_shot_classification", group=None, labels=labels))
    assert values(outcome) == {("en", "all", "accuracy"): 1.0}
    assert outcome.results[0].n == 2


def test_bad_pictures_are_left_out_of_the_pixel_baseline(tmp_path: Path) -> None:
    images = [png(COLOURS["red"]), b"not a picture", png(COLOURS["blue"])]
    path = written(tmp_path, ["red", "green", "blue"], image=images)
    gallery = DataSettings(path=path, group="base")
    outcome = run_suite(KnowingEncoder(ALL_RIGHT), suite(path, "pixel_baseline", gallery=gallery))
    assert {result.n for result in outcome.results} == {2}
    assert [error.key for error in outcome.unreadable] == ["row 1"]


# The encoder


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_encoder_gives_normalised_features_in_order(
    batch_size: int, tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "BATCH_SIZE", batch_size)
    encoder = TransformersEncoder(tiny_model, tiny_processor, torch.device("cpu"))
    pictures = [Image.new("RGB", (40, 30), colour) for colour in COLOURS.values()]
    texts = ["눈 덮인 산과 호수", "a dog", "강아지"]
    with torch.no_grad():
        batch = tiny_processor(images=pictures, text=texts, return_tensors="pt")
        expected = tiny_model(**batch)
    images, of_texts = encoder.images(iter(pictures)), encoder.texts(texts)
    # 1e-5: float32, texts padded otherwise.
    assert_close(images, expected.image_embeds, rtol=0, atol=1e-5)
    assert_close(of_texts, expected.text_embeds, rtol=0, atol=1e-5)
    assert (images.dtype, images.device.type) == (torch.float32, "cpu")
    assert not images.requires_grad
    assert (images - images.flip(0)).abs().max() > 1e-3
    assert (of_texts - of_texts.flip(0)).abs().max() > 1e-3


def test_encoder_puts_the_model_in_evaluation_mode(
    tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor
) -> None:
    tiny_model.train()
    assert not TransformersEncoder(tiny_model, tiny_processor, torch.device("cpu")).model.training


def test_embeddings_say_which_rows_they_are_of(tmp_path: Path) -> None:
    images = [b"bad", png(COLOURS["green"]), None, png(COLOURS["blue"])]
    rows = datasets.Dataset.from_dict({"image": images})
    embeds, numbers, unreadable = image_embeddings(KnowingEncoder({}), PairSet(rows, DataSettings(path="memory")), 0.5)
    assert numbers == [1, 3]
    assert [error.key for error in unreadable] == ["row 0", "row 2"]
    assert_close(embeds, torch.tensor([GREEN, BLUE]), rtol=0, atol=1e-6)


# Suites from files


def test_packaged_suites_load() -> None:
    names = list(packaged("evaluation/definitions"))
    assert {"digits", "emoji"} <= set(names)
    for name in names:
        loaded = load_suite(name)
        assert loaded.name == name
        assert loaded.tasks
    assert load_suite("digits").slice_column == "seen"
    assert load_suite("emoji").gallery is not None


def test_suite_of_ones_own_loads_and_fields_are_overridden(tmp_path: Path) -> None:
    fields = {"name": "own", "data": {"path": "a.parquet", "captions": {"ko": "ko"}, "group": "base"}}
    file = tmp_path / "own.yaml"
    file.write_text(json.dumps(fields | {"tasks": ["retrieval"]}), encoding="utf-8")
    loaded = load_suite(str(file))
    assert loaded == SuiteSettings(
        name="own", data=DataSettings(path="a.parquet", captions={"ko": "ko"}, group="base"), tasks=["retrieval"]
    )
    changed = load_suite(str(file), ["data.path=b.parquet", "name=other"])
    assert (changed.data.path, changed.name, changed.data.group) == ("b.parquet", "other", "base")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"task": ["retrieval"]}, "task"),
        ({"tasks": ["clustering"]}, "clustering"),
        ({"data": {"path": "a.parquet", "caption": {"ko": "ko"}}}, "caption"),
        ({"data": {"path": ["a", "b"]}}, "path"),
        ({"slice_column": 3.5}, "slice_column"),
    ],
)
def test_bad_field_in_a_suite_is_named(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    fields = {"name": "own", "data": {"path": "a.parquet", "captions": {"ko": "ko"}}, "tasks": ["retrieval"]}
    file = tmp_path / "own.yaml"
    file.write_text(json.dumps(fields), encoding="utf-8")
    load_suite(str(file))
    file.write_text(json.dumps(fields | change), encoding="utf-8")
    with pytest.raises(ValueError, match=named):
        load_suite(str(file))


def test_absent_suite_is_refused_with_those_there_are() -> None:
    with pytest.raises(FileNotFoundError, match="'colours'.*digits,.* emoji"):
        load_suite("colours")


@pytest.mark.parametrize(
    ("tasks", "changed", "named"),
    [
        ([], {}, "tasks is empty"),
        (["zero_shot_classification"], {"group": None}, "neither labels nor data.group"),
        (["pixel_baseline"], {}, "pixel_baseline and has no gallery"),
    ],
)
def test_suite_that_cannot_be_run_is_refused(tasks: list[Any], changed: dict[str, Any], named: str) -> None:
    suite("a.parquet", "retrieval", group=None)
    with pytest.raises(ValueError, match=named):
        suite("a.parquet", *tasks, **changed)


def test_too_many_bad_pictures_stop_the_evaluation_with_the_count() -> None:
    rows = datasets.Dataset.from_list([{"image": png(COLOURS["red"])}, {"image": b"bad"}, {"image": b"worse"}])
    pairs = PairSet(rows, DataSettings(path="memory"))
    with pytest.raises(ValueError, match="2 pictures do not decode, more than the 1.5 of 3"):
        image_embeddings(KnowingEncoder({}), pairs, 0.5)
    assert len(image_embeddings(KnowingEncoder({}), pairs, 0.7)[2]) == 2


def test_a_model_that_diverged_is_refused_and_not_given_a_perfect_score(
    tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor
) -> None:
    encoder = TransformersEncoder(tiny_model, tiny_processor, torch.device("cpu"))
    assert encoder.texts(["red"]).isfinite().all()
    with torch.no_grad():
        tiny_model.text_projection.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        encoder.texts(["red"])


def test_a_folder_without_all_weights_is_not_evaluated(
    tiny_config: KoEnClipConfig, tiny_processor: KoEnClipProcessor, tmp_path: Path
) -> None:
    KoEnClipForPreTraining(tiny_config).save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lacks .* weights of the model"):
        open_encoder(str(tmp_path))
    KoEnClipModel(tiny_config).save_pretrained(tmp_path)
    assert open_encoder(str(tmp_path)).texts(["red"]).shape == (1, tiny_config.projection_dim)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ({"ko": ["개"], "en": ["dog"]}, {"ko": ["{}"]}, "both need the same ones"),
        ({"ko": ["개"], "en": ["dog", "cat"]}, {"ko": ["{}"], "en": ["{}"]}, "another number of classes"),
        ({}, {}, "both need the same ones"),
    ],
)
def test_labels_that_do_not_match_are_refused(names: Any, templates: Any, message: str) -> None:
    LabelSettings(column="label", names={"ko": ["개"]}, templates={"ko": ["{}"]})
    with pytest.raises(ValueError, match=message):
        LabelSettings(column="label", names=names, templates=templates)


# Text alone, both languages together, probes


def test_texts_alone_are_found_by_those_of_the_same_row(tmp_path):
    """By hand: 하나 and 둘 are taken for each other; 셋 and 세 개 are of one English text, and both answer it."""
    rows = [("하나", "one"), ("둘", "two"), ("셋", "three"), ("세 개", "three")]
    (tmp_path / "texts.tsv").write_text("".join(f"{ko}\t{en}\n" for ko, en in [("ko", "en"), *rows]), encoding="utf-8")
    data = DataSettings(path=str(tmp_path / "texts.tsv"), image=None, captions={"ko": "ko", "en": "en"})
    directions = {"하나": GREEN, "둘": RED, "셋": BLUE, "세 개": BLUE, "one": RED, "two": GREEN, "three": BLUE}
    found = values(run_suite(KnowingEncoder(directions), SuiteSettings(name="t", data=data, tasks=["text_retrieval"])))
    assert found["ko-en", "all", "recall@1"] == found["en-ko", "all", "recall@1"] == 0.5
    assert found["ko-en", "all", "recall@5"] == 1
    with pytest.raises(ValueError, match="has no pictures, and asks for retrieval"):
        SuiteSettings(name="t", data=data, tasks=["retrieval"])


COLOUR_LABELS = LabelSettings(
    column="label",
    names={"ko": list(KOREAN.values()), "en": list(COLOURS)},
    templates={"ko": ["{} 사진", "{}{을/를} 찍은 사진"], "en": ["a {} photo"]},
)


class SpellingEncoder(KnowingEncoder):
    """Knows a colour where it is spelt rightly, and takes every other text for blue."""

    def __init__(self, known):
        super().__init__({})
        self.known = known

    def texts(self, texts):
        found = [next((self.known[name] for name in self.known if name in text), BLUE) for text in texts]
        return torch.nn.functional.normalize(torch.tensor(found), dim=1)


def test_both_languages_are_set_against_each_other(tmp_path):
    """By hand: of red, red, green and blue, Korean takes green for red; what is spelt otherwise is told to be blue."""
    path = written(tmp_path, ["red", "red", "green", "blue"])
    known = {"빨강": RED, "초록": (0.0, -1.0, 0.0), "red": RED, "green": GREEN}
    judged = suite(path, "bilingual", "zero_shot_classification", labels=COLOUR_LABELS)
    found = values(run_suite(SpellingEncoder(known), judged))
    assert found["ko", "all", "accuracy"] == 0.75
    assert found["en", "all", "accuracy"] == 1
    assert found["ko-en", "all", "gap"] == -0.25
    assert found["ko-en", "all", "agreement"] == found["ko-en", "all", "both_right"] == 0.75
    assert found["ko-en", "all", "only_en_right"] == 0.25
    # NFD is not what the encoder knows: all classes are one, and every picture of the first.
    assert found["ko", "all", "decomposed_change"] == 0.5 - 0.75
    # English has nothing to decompose, to space otherwise in Hangul, or to put another particle to.
    assert not {name for language, _, name in found if language == "en" and name.endswith("_change")} - {
        "mistyped_change"
    }
    # Korean templates around English names know green; the names decide.
    assert found["ko+en", "all", "gap"] == 0.25 and found["en+ko", "all", "gap"] == -0.25
    assert found["ko-en", "all", "language_gap"] > 0
    # The twin: where both say the same there is no gap.
    same = values(run_suite(SpellingEncoder(known | {"초록": GREEN}), judged))
    assert same["ko-en", "all", "gap"] == 0 and same["ko-en", "all", "agreement"] == 1


class FeatureEncoder(KnowingEncoder):
    """Its embeddings know nothing of a picture's colour; what comes before its projection does."""

    def images_and_features(self, pictures):
        features = self.images(pictures)
        embeds = torch.randn(len(features), 3, generator=torch.Generator().manual_seed(0))
        return torch.nn.functional.normalize(embeds), features


def test_probes_learn_from_features_before_the_projection(tmp_path):
    names = list(COLOURS) * 20
    train = DataSettings(path=written(tmp_path, names, "train.parquet"))
    path = written(tmp_path, names[:12])
    asked = suite(path, "linear_probe", "few_shot", "knn", group=None, labels=COLOUR_LABELS, train=train)
    outcome = run_suite(FeatureEncoder({}), asked)
    found = {(result.task, result.slice, result.metric): result.value for result in outcome.results}
    assert found["linear_probe", "all", "accuracy"] == 1
    assert [found["few_shot", f"{shots} a class", "accuracy"] for shots in (1, 2, 4, 8, 16)] == [1.0] * 5
    # The neighbours are those of the embeddings, as ALIGN's are, and those say nothing.
    assert found["knn", "all", "recall@1"] < 1
    with pytest.raises(ValueError, match="asks for a probe, and has no labels or no train"):
        suite(path, "linear_probe", labels=COLOUR_LABELS)


def test_features_are_what_the_projection_is_given(tiny_model, tiny_processor):
    encoder = TransformersEncoder(tiny_model, tiny_processor, torch.device("cpu"))
    pictures = [torch.full((3, 20, 30), level, dtype=torch.uint8) for level in (0, 120, 255)]
    embeds, features = encoder.images_and_features(pictures)
    with torch.no_grad():
        projected = tiny_model.visual_projection(features)
    # 1e-5: float32.
    assert_close(torch.nn.functional.normalize(projected, dim=1), embeds, rtol=0, atol=1e-5)
    assert torch.equal(embeds, encoder.images(pictures))
    assert features.shape == (3, tiny_model.config.vision_config.hidden_size) and not features.requires_grad


@pytest.mark.parametrize(("metric", "expected"), [("accuracy", 0.75), ("mean_per_class_accuracy", (1 + 0 + 1) / 3)])
def test_the_metric_of_the_labels_is_what_is_counted(metric, expected, tmp_path):
    path = written(tmp_path, ["red", "red", "green", "blue"])
    labels = dataclasses.replace(COLOUR_LABELS, metric=metric)
    known = {"빨강": RED, "초록": (0.0, -1.0, 0.0), "red": RED, "green": GREEN}
    outcome = run_suite(SpellingEncoder(known), suite(path, "zero_shot_classification", labels=labels))
    [korean] = [result for result in outcome.results if result.language == "ko"]
    assert (korean.metric, korean.value) == (metric, pytest.approx(expected))


def test_pictures_of_several_classes_and_of_two(tmp_path):
    """By hand. Scores of red: 1, 1, 0, 0. Asked for by rows that are red, red and green, green, blue."""
    path = written(tmp_path, ["red", "red", "green", "blue"], label=[[0], [0, 1], [1], [2]])
    labels = dataclasses.replace(COLOUR_LABELS, metric="mean_average_precision")
    known = {"빨강": RED, "초록": GREEN, "red": RED, "green": GREEN}
    outcome = run_suite(SpellingEncoder(known), suite(path, "zero_shot_classification", labels=labels))
    # Green: its best picture is of it, the other of its pictures ties with the three that are not green.
    expected = (1 + (6 * 1 + 5 * 0.5) / 11 + 1) / 3
    assert outcome.results[0].value == pytest.approx(expected)
    with pytest.raises(ValueError, match="no class or several, and labels.metric is accuracy"):
        run_suite(SpellingEncoder(known), suite(path, "zero_shot_classification", labels=COLOUR_LABELS))
    two = LabelSettings(
        column="label", names={"en": ["red", "green"]}, templates={"en": ["a {} photo"]}, metric="roc_auc"
    )
    path = written(tmp_path, ["red", "green", "green", "blue"], "two.parquet", label=[0, 1, 0, 0])
    [result] = run_suite(SpellingEncoder(known), suite(path, "zero_shot_classification", labels=two)).results
    # The green one of class 1 ties with the green one of class 0, and is ahead of two.
    assert (result.metric, result.value) == ("roc_auc", pytest.approx((1 + 1 + 0.5) / 3))


def test_labels_are_like_those_of_another_suite():
    r, v2, imagenet = (load_suite(name).labels for name in ("imagenet_r", "imagenet_v2", "imagenet"))
    assert v2.names == imagenet.names and v2.templates == imagenet.templates
    assert r.num_classes == 200 and r.names["en"][0] == imagenet.names["en"][1] == "goldfish"
    with pytest.raises(ValueError, match=r"labels.classes has \[1000\], and imagenet has classes 0 to 999"):
        LabelSettings(column="label", like="imagenet", classes=[3, 1000]).resolved(imagenet)


@pytest.mark.parametrize(
    ("cells", "told"),
    [([0, None, 2], "holds None in row 1"), (["red", "green", "blue"], "holds 'red' in row 0")],
)
def test_a_label_that_is_no_number_is_named_with_its_row(cells, told, tmp_path):
    path = written(tmp_path, ["red", "green", "blue"], label=cells)
    with pytest.raises(ValueError, match=f"column 'label' of .*{told}; a class is an integer from 0 to 2"):
        run_suite(SpellingEncoder({}), suite(path, "zero_shot_classification", labels=COLOUR_LABELS))
