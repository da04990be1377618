"""Captions in two languages compared, queries of a picture and a text, and what the page shows of retrieval."""

import datasets
import pytest
import torch
from test_evaluation import ALL_RIGHT, BLUE, COLOURS, GREEN, RED, KnowingEncoder, png, suite, values, written
from torch.testing import assert_close

from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.evaluation.bilingual import ENGLISH, KOREAN, PICTURES
from ko_en_clip.evaluation.judging import run_suite
from ko_en_clip.evaluation.perturbations import decomposed, mistyped, respaced
from ko_en_clip.evaluation.queries import QuerySettings
from ko_en_clip.evaluation.retrieval import NOT_FOUND, examples, relevant_ranks
from ko_en_clip.evaluation.suites import SuiteSettings


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


class Misspelt(KnowingEncoder):
    """Knows texts as they are told, and gives every other text one direction."""

    def __init__(self, texts, unknown):
        super().__init__(texts)
        self.unknown = unknown

    def texts(self, texts):
        told = [list(self.directions.get(text, self.unknown)) for text in texts]
        return torch.nn.functional.normalize(torch.tensor(told), dim=1)


# Bilingual, of captions


def test_captions_in_two_languages_are_compared_by_the_pictures_that_they_find(tmp_path):
    """By hand: in English green and blue are exchanged, so that of three pictures one is found.

    A text that is written otherwise is taken for blue: of the three Korean ones the one of blue alone is found.
    """
    path = written(tmp_path, ["red", "green", "blue"])
    encoder = Misspelt(ALL_RIGHT | {"green": BLUE, "blue": GREEN}, unknown=BLUE)
    outcome = run_suite(encoder, suite(path, "bilingual", group=None))
    found = values(outcome)
    assert found["ko-en", "all", "gap"] == pytest.approx(1 - 1 / 3)
    assert found["ko", "all", "decomposed_change"] == pytest.approx(1 / 3 - 1)
    assert found["ko", "all", "mistyped_change"] == pytest.approx(1 / 3 - 1)
    assert found["ko", "all", "respaced_change"] == pytest.approx(1 / 3 - 1)
    # In English the right red is lost and the exchanged green, now blue, is not found either: blue finds blue.
    assert found["en", "all", "mistyped_change"] == pytest.approx(1 / 3 - 1 / 3)
    assert ("en", "all", "decomposed_change") not in found
    assert {result.n for result in outcome.results} == {3} and {result.task for result in outcome.results} == {
        "bilingual"
    }
    # Means of the clouds are the same in each: all three directions once.
    assert found["ko", "all", "modality_gap"] == pytest.approx(0, abs=1e-6)
    assert found["ko-en", "all", "language_gap"] == pytest.approx(0, abs=1e-6)
    clouds = outcome.findings.clouds
    assert_close(clouds[ENGLISH], torch.tensor([RED, BLUE, GREEN]), rtol=0, atol=1e-6)
    assert_close(clouds[PICTURES], clouds[KOREAN], rtol=0, atol=1e-6)
    # The twin: a model that reads through slips loses nothing.
    same = values(run_suite(Reading(ALL_RIGHT), suite(path, "bilingual", group=None)))
    assert same["ko-en", "all", "gap"] == same["ko", "all", "mistyped_change"] == 0


class Reading(KnowingEncoder):
    """Reads a text that is written otherwise as the one that it was made of."""

    def texts(self, texts):
        read = {text: text for text in self.directions}
        for change in (mistyped, respaced, lambda text, seed: decomposed(text)):
            read |= {change(text, 0): text for text in self.directions}
        return super().texts([read[text] for text in texts])


def test_captions_alone_are_compared_by_those_of_the_other_language(tmp_path):
    """By hand: 둘 is taken for three, so that of three Korean texts two are found; written otherwise all are "one"."""
    rows = [("하나", "one"), ("둘", "two"), ("셋", "three"), ("넷", "")]
    (tmp_path / "texts.tsv").write_text("".join(f"{ko}\t{en}\n" for ko, en in [("ko", "en"), *rows]), encoding="utf-8")
    data = DataSettings(path=str(tmp_path / "texts.tsv"), image=None, captions={"ko": "ko", "en": "en"})
    known = {"하나": RED, "둘": BLUE, "셋": BLUE, "넷": RED, "one": RED, "two": GREEN, "three": BLUE}
    outcome = run_suite(Misspelt(known, unknown=RED), SuiteSettings(name="t", data=data, tasks=["bilingual"]))
    found = values(outcome)
    assert found["ko-en", "all", "mistyped_change"] == pytest.approx(1 / 3 - 2 / 3)
    # English: "one" finds 하나; "two" has no score with any; "three" ties between 둘 and 셋. Written otherwise, "one".
    assert found["en-ko", "all", "mistyped_change"] == pytest.approx(1 / 3 - 1 / 3)
    assert {result.n for result in outcome.results} == {3}
    # Means: of Korean (1, 0, 2) / 3, of English (1, 1, 1) / 3; half their distance.
    assert found["ko-en", "all", "language_gap"] == pytest.approx(2**0.5 / 6, abs=1e-6)
    assert not any(metric == "modality_gap" for _, _, metric in found)
    assert PICTURES not in outcome.findings.clouds
    with pytest.raises(ValueError, match="asks for bilingual, and 1 rows have both languages"):
        (tmp_path / "one.tsv").write_text("ko\ten\n하나\tone\n둘\t\n", encoding="utf-8")
        one = DataSettings(path=str(tmp_path / "one.tsv"), image=None, captions={"ko": "ko", "en": "en"})
        run_suite(KnowingEncoder(known), SuiteSettings(name="t", data=one, tasks=["bilingual"]))


# Examples of retrieval


def test_examples_are_spread_evenly_and_then_those_of_the_worst_rank():
    generator = torch.Generator().manual_seed(0)
    items = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator))
    queries = torch.nn.functional.normalize(items + 0.5 * torch.randn(40, 8, generator=generator))
    relevant = [[number] for number in range(40)]
    relevant[7] = []
    ranks = relevant_ranks(queries, items, relevant)
    found = examples(queries, items, relevant, ranks)
    scores = (queries @ items.T).numpy()
    by_rank = sorted(range(40), key=lambda query: -ranks[query, 0].item())
    assert [example.query for example in found] == list(dict.fromkeys([0, 13, 26, *by_rank[:3]]))
    assert by_rank[0] == 7
    for example in found:
        assert example.found == (-scores[example.query]).argsort()[:5].tolist()
        assert example.right == [item == example.query and item != 7 for item in example.found]
        assert example.rank == (ranks[example.query, 0] if example.query != 7 else NOT_FOUND)


def test_a_suite_keeps_what_was_found_for_its_page(tmp_path):
    images = [png(COLOURS[name]) for name in ("red", "green", "blue", "blue")]
    images[0] = b"bad"
    path = written(tmp_path, ["red", "green", "blue", "blue"], image=images)
    [korean, english] = run_suite(KnowingEncoder(ALL_RIGHT), suite(path, "retrieval")).findings.retrieved
    assert (korean.language, english.language) == ("ko", "en")
    assert korean.texts == ["초록", "파랑"] and korean.pictures == [0, 1, 2]
    # 파랑 is answered by both blue pictures, the second and third that decode.
    blue = next(example for example in korean.by_text if example.query == 1)
    assert (blue.found, blue.right, blue.rank) == ([1, 2, 0], [True, True, False], 1)
    picture = next(example for example in english.by_picture if example.query == 0)
    assert [english.texts[item] for item in picture.found] == ["green", "blue"] and picture.right == [True, False]


# Queries


def test_queries_find_pictures_by_a_picture_plus_or_minus_a_text(tmp_path):
    """Red plus green is nearest to green; red minus red's own blue part is red again, which is left out."""
    violet = (220, 0, 220)
    images = [png(colour) for colour in (*COLOURS.values(), violet, COLOURS["red"])]
    path = written(tmp_path, ["red", "green", "blue", "blue", "red"], image=images)
    queries = [
        QuerySettings(row=0, text="green"),
        QuerySettings(row=3, text="blue", weight=-0.9),
        QuerySettings(row=0, text="green", weight=0.1),
    ]
    outcome = run_suite(KnowingEncoder(ALL_RIGHT), suite(path, "retrieval", queries=queries))
    plus, minus, little = outcome.findings.queries
    assert (plus.picture, plus.found[0]) == (0, 1)
    # Violet less blue is red: the first of the two red pictures; violet itself is not among what is found.
    assert minus.found[0] == 0 and 3 not in minus.found and len(minus.found) == 4
    # The twin: with little weight on the text, the other red picture is nearest.
    assert little.found[0] == 4
    with pytest.raises(ValueError, match="name row 9; rows count from 0 to 4"):
        run_suite(KnowingEncoder(ALL_RIGHT), suite(path, "retrieval", queries=[QuerySettings(row=9, text="red")]))
    with pytest.raises(ValueError, match="has no pictures, and asks for queries"):
        data = DataSettings(path=path, image=None, captions={"ko": "ko"})
        SuiteSettings(name="t", data=data, tasks=["text_retrieval"], queries=queries)
