"""Definitions of ten small image sets: as many classes and templates as published, in the order of the set."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.evaluation.prompts import prompts_for

ROOT = Path(__file__).parents[1]
DEFINITIONS = ROOT / "src" / "ko_en_clip" / "evaluation" / "definitions"
DOUBTS = ROOT / "docs" / "korean_labels" / "small.md"
# Classes of the set, and English templates in https://github.com/openai/CLIP/blob/main/data/prompts.md .
COUNTS = {
    "cifar10": (10, 18),
    "cifar100": (100, 18),
    "clevr_counts": (8, 1),
    "dtd": (47, 8),
    "eurosat": (10, 3),
    "fer2013": (7, 6),
    "gtsrb": (43, 3),
    "mnist": (10, 1),
    "resisc45": (45, 18),
    "stl10": (10, 2),
}
DIGITS_AS_READ = "영일이삼사오육칠팔구"
HANGUL = re.compile("[가-힣]")


def definition(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEFINITIONS / f"{name}.yaml").read_text(encoding="utf-8"))
    return loaded


def ends_in_consonant(word: str) -> bool:
    """By the canonical decomposition of Unicode: a syllable with a final consonant is three letters."""
    last = word[-1]
    syllable = DIGITS_AS_READ[int(last)] if last.isascii() and last.isdigit() else last
    assert HANGUL.fullmatch(syllable), word
    return len(unicodedata.normalize("NFD", syllable)) == 3


def filled(template: str, label: str) -> str:
    """A template filled another way than the package does it; 으로/로, which ㄹ splits otherwise, is none of ours."""
    assert "으로/로" not in template
    before, *rest = template.split("{}")
    text = before
    for part in rest:
        text += label
        if part.startswith("{"):
            particle, part = part[1:].split("}", 1)
            text += particle.split("/")[0 if ends_in_consonant(label) else 1]
        text += part
    return text


def faults(names: Sequence[str], templates: Sequence[str], language: str) -> list[str]:
    """What is wrong with names, templates or the prompts of both."""
    found = [f"{text!r} comes twice" for texts in (names, templates) for text in set(texts) if texts.count(text) > 1]
    found += [f"{text!r} has spaces to spare" for text in [*names, *templates] if " ".join(text.split()) != text]
    if language == "ko":
        found += [f"{text!r} has no Hangul" for text in [*names, *templates] if not HANGUL.search(text)]
        # A particle that a template writes out fits only half of the names.
        written_out = re.compile(r"\{\}(을|를|이|가|은|는|과|와|이다|다|으로|로)(?![가-힣])")
        found += [f"{text!r} writes a particle out" for text in templates if written_out.search(text)]
    else:
        found += [f"{text!r} has Hangul" for text in [*names, *templates] if HANGUL.search(text)]
    for label, prompts in zip(names, prompts_for(names, templates), strict=True):
        for template, prompt in zip(templates, prompts, strict=True):
            if set(prompt) & set("{}") or (language == "ko" and "/" in prompt):
                found.append(f"{prompt!r} is not filled")
            elif prompt != filled(template, label):
                found.append(f"{prompt!r} should be {filled(template, label)!r}")
    return found


def table_rows(page: str) -> dict[str, list[list[str]]]:
    """Rows of the tables of a page, by the heading above each: English, chosen, alternatives, why."""
    rows: dict[str, list[list[str]]] = {}
    for section in page.split("\n## ")[1:]:
        name, *lines = section.splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        assert cells[0] == ["English", "Chosen", "Alternatives", "Why in doubt"]
        rows[name] = cells[2:]
    return rows


def doubts_that_do_not_hold(rows: Sequence[Sequence[str]], names: dict[str, list[str]]) -> list[str]:
    """Rows that name no class, another label than the definition has, or no true alternative to it."""
    chosen_of = dict(zip(names["en"], names["ko"], strict=True))
    found = []
    for english, chosen, alternatives, why in rows:
        if chosen_of.get(english) != chosen:
            found.append(f"{english}: the page has {chosen}, the definition {chosen_of.get(english)}")
        others = [other.strip() for other in alternatives.split(",")]
        if not why or not all(others) or chosen in others or len(set(others)) < len(others):
            found.append(f"{english}: alternatives {alternatives!r}, why {why!r}")
    english_of = [row[0] for row in rows]
    return found + [f"{english} comes twice" for english in set(english_of) if english_of.count(english) > 1]


def head_comment(name: str) -> str:
    lines = (DEFINITIONS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return " ".join(line[2:] for line in lines[: next(i for i, line in enumerate(lines) if line[0] != "#")])


# Each definition


@pytest.mark.parametrize("name", COUNTS)
def test_as_many_classes_and_templates_as_published(name: str) -> None:
    labels = definition(name)["labels"]
    num_classes, num_templates = COUNTS[name]
    assert {language: len(names) for language, names in labels["names"].items()} == {
        "en": num_classes,
        "ko": num_classes,
    }
    assert len(labels["templates"]["en"]) == num_templates
    assert 3 <= len(labels["templates"]["ko"]) <= 18


@pytest.mark.parametrize("language", ["en", "ko"])
@pytest.mark.parametrize("name", COUNTS)
def test_names_are_distinct_and_every_prompt_is_well_formed(name: str, language: str) -> None:
    labels = definition(name)["labels"]
    assert faults(labels["names"][language], labels["templates"][language], language) == []


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "eurosat", "mnist", "resisc45", "stl10"])
def test_korean_templates_meet_names_of_both_kinds(name: str) -> None:
    labels = definition(name)["labels"]
    assert {ends_in_consonant(label) for label in labels["names"]["ko"]} == {True, False}
    assert any("}{" in template for template in labels["templates"]["ko"])


@pytest.mark.parametrize("name", COUNTS)
def test_settings_are_those_of_a_suite(name: str) -> None:
    loaded = definition(name)
    assert loaded["name"] == name
    data = DataSettings(**loaded["data"])
    assert data.split == "test"
    # The default of labels.metric is accuracy.
    assert loaded["labels"].keys() == {"column", "names", "templates"}
    probes = ["linear_probe", "few_shot", "knn"] if name == "cifar10" else []
    assert loaded["tasks"] == ["zero_shot_classification", "bilingual", *probes]
    assert loaded.get("train") == (loaded["data"] | {"split": "train"} if probes else None)


@pytest.mark.parametrize("name", COUNTS)
def test_head_comments_say_where_the_set_and_the_templates_are_from(name: str) -> None:
    head = head_comment(name)
    assert "https://" in head or "unverified" in head
    assert f"https://huggingface.co/datasets/{definition(name)['data']['path']}" in head
    assert "https://github.com/openai/CLIP/blob/main/data/prompts.md" in head
    assert "icence" in head
    # The twin: the head of another set does not name this one.
    other = "stl10" if name != "stl10" else "mnist"
    assert f"https://huggingface.co/datasets/{definition(name)['data']['path']}" not in head_comment(other)


# Order of the classes


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "dtd", "fer2013", "mnist", "resisc45", "stl10"])
def test_classes_are_in_the_order_of_the_alphabet(name: str) -> None:
    names = definition(name)["labels"]["names"]["en"]
    assert names == sorted(names)
    assert names[::-1] != sorted(names)


def test_cifar10_has_the_labels_of_the_real_rows(shared_data: Path) -> None:
    table = pyarrow.parquet.read_table(
        shared_data / "cifar10" / "cifar10_test.parquet", columns=["label", "label_en", "label_ko"]
    )
    real = sorted({(row["label"], row["label_en"], row["label_ko"]) for row in table.to_pylist()})
    names = definition("cifar10")["labels"]["names"]
    assert list(zip(range(10), names["en"], names["ko"], strict=True)) == real
    assert list(zip(range(10), names["en"], names["ko"][::-1], strict=True)) != real


def test_counts_of_clevr_are_three_to_ten_in_both_languages() -> None:
    names = definition("clevr_counts")["labels"]["names"]
    assert names["en"] == ["3", "4", "5", "6", "7", "8", "9", "10"]
    words = {"세": 3, "네": 4, "다섯": 5, "여섯": 6, "일곱": 7, "여덟": 8, "아홉": 9, "열": 10}
    assert [words[name.removesuffix(" 개")] for name in names["ko"]] == list(range(3, 11))


def test_kinds_of_land_are_in_the_order_of_eurosat() -> None:
    # Labels of https://huggingface.co/datasets/timm/eurosat-rgb in their order, and a word of each in either language.
    order = [
        ("AnnualCrop", "annual crop", "일년생"),
        ("Forest", "forest", "숲"),
        ("HerbaceousVegetation", "shrubland", "관목"),
        ("Highway", "highway", "고속도로"),
        ("Industrial", "industrial", "공장"),
        ("Pasture", "pasture", "목초지"),
        ("PermanentCrop", "permanent crop", "다년생"),
        ("Residential", "residential", "주택"),
        ("River", "river", "강"),
        ("SeaLake", "sea", "바다"),
    ]
    names = definition("eurosat")["labels"]["names"]
    for (_, english, korean), in_english, in_korean in zip(order, names["en"], names["ko"], strict=True):
        assert english in in_english and korean in in_korean
    assert [label for label, _, _ in order] == sorted(label for label, _, _ in order)


def test_signs_are_in_the_order_of_the_benchmark() -> None:
    # Class numbers of https://benchmark.ini.rub.de/ with a word of each in either language.
    known = {
        9: ("no passing", "앞지르기 금지"),
        12: ("priority road", "우선도로"),
        13: ("yield", "양보"),
        14: ("stop", "일시정지"),
        17: ("no entry", "진입금지"),
        19: ("left curve", "좌로"),
        20: ("right curve", "우로"),
        25: ("construction", "공사"),
        28: ("child", "어린이"),
        31: ("deer", "야생동물"),
        33: ("right turn", "우회전"),
        34: ("left turn", "좌회전"),
        38: ("keep right", "우측면"),
        39: ("keep left", "좌측면"),
        40: ("traffic circle", "회전교차로"),
        42: ("trucks has ended", "화물자동차 앞지르기 금지 해제"),
    }
    names = definition("gtsrb")["labels"]["names"]
    limits = [re.findall(r"\d+", name) for name in names["en"]]
    assert [int(figure) for limit in limits for figure in limit] == [20, 30, 50, 60, 70, 80, 80, 100, 120]
    assert limits == [re.findall(r"\d+", name) for name in names["ko"]]
    for number, (english, korean) in known.items():
        assert english in names["en"][number] and korean in names["ko"][number]


def test_digits_are_their_own_names() -> None:
    names = definition("mnist")["labels"]["names"]
    assert names["en"] == [str(number) for number in range(10)]
    assert [name.split()[-1] for name in names["ko"]] == names["en"]


# Labels in doubt


@pytest.mark.parametrize("name", COUNTS)
def test_labels_in_doubt_are_those_of_the_definitions(name: str) -> None:
    rows = table_rows(DOUBTS.read_text(encoding="utf-8"))
    assert list(rows) == list(COUNTS)
    assert rows[name] and doubts_that_do_not_hold(rows[name], definition(name)["labels"]["names"]) == []
    # Another set's table does not pass for this one.
    other = "mnist" if name != "mnist" else "dtd"
    assert doubts_that_do_not_hold(rows[other], definition(name)["labels"]["names"])


# The checks themselves


@pytest.mark.parametrize(
    ("label", "prompt"),
    [
        ("나무", "나무를 찍은 사진에 나무가 있다."),
        ("말", "말을 찍은 사진에 말이 있다."),
        ("산", "산을 찍은 사진에 산이 있다."),
        ("숫자 2", "숫자 2를 찍은 사진에 숫자 2가 있다."),
        ("숫자 3", "숫자 3을 찍은 사진에 숫자 3이 있다."),
    ],
)
def test_the_other_way_of_filling_is_right(label: str, prompt: str) -> None:
    assert filled("{}{을/를} 찍은 사진에 {}{이/가} 있다.", label) == prompt
    assert filled("{}{를/을} 찍은 사진에 {}{이/가} 있다.", label) != prompt


@pytest.mark.parametrize(
    ("names", "templates"),
    [
        (["개", "개"], ["{}의 사진"]),
        (["개", "말"], ["{}의 사진", "{}의 사진"]),
        (["dog", "말"], ["{} 사진"]),
        (["개", "말"], ["a photo of {}"]),
        (["개", "말"], ["{}을/를 찍은 사진"]),
        (["개", "말"], ["{}를 찍은 사진"]),
        (["개", "말"], ["{}{을/를 찍은 사진"]),
        (["개 ", "말"], ["{}의 사진"]),
    ],
)
def test_what_is_wrong_with_korean_names_and_templates_is_found(names: list[str], templates: list[str]) -> None:
    assert faults(["개", "말"], ["{}의 사진", "{}{을/를} 찍은 사진"], "ko") == []
    assert faults(names, templates, "ko")


def test_korean_among_english_names_is_found() -> None:
    assert faults(["dog", "rough / bumpy"], ["a photo of a {}."], "en") == []
    assert faults(["dog", "말"], ["a photo of a {}."], "en")


@pytest.mark.parametrize(
    "row",
    [
        ["dog", "말", "강아지", "Another label than the definition has."],
        ["wolf", "늑대", "이리", "No class."],
        ["dog", "개", "강아지, 개", "The chosen label among its alternatives."],
        ["dog", "개", "", "No alternative."],
        ["dog", "개", "강아지", ""],
    ],
)
def test_rows_of_doubts_that_do_not_hold_are_found(row: list[str]) -> None:
    names = {"en": ["dog", "horse"], "ko": ["개", "말"]}
    good = ["dog", "개", "강아지, 멍멍이", "A word for any dog, or for a puppy."]
    assert doubts_that_do_not_hold([good], names) == []
    assert doubts_that_do_not_hold([row], names)
    assert doubts_that_do_not_hold([good, good], names)
