"""Texts as people write them: by hand, against unicodedata, on random Hangul, and on real captions."""

import csv
import random
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from ko_en_clip.evaluation.perturbations import (
    code_switched_prompts,
    decomposed,
    mistyped,
    other_particles,
    respaced,
    without_particles,
)
from ko_en_clip.evaluation.prompts import prompts_for

SEEDS = range(400)
Perturbation = Callable[[str, int], str]


def outcomes(perturbation: Perturbation, text: str) -> set[str]:
    """What comes out of a text; of the few things that may, 400 seeds give each."""
    return {perturbation(text, seed) for seed in SEEDS}


def random_texts(count: int) -> list[str]:
    """Words of any syllables, with a digit, a sign and an English word in some of them."""
    rng = random.Random(0)
    others = ["3", "2026년", "CLIP", "dog", "!", "ㅋㅋ", "猫"]
    texts = []
    for _ in range(count):
        words = [
            "".join(chr(rng.randint(ord("가"), ord("힣"))) for _ in range(rng.randint(1, 5)))
            for _ in range(rng.randint(1, 6))
        ]
        words.insert(rng.randint(0, len(words)), rng.choice(others))
        texts.append(" ".join(words))
    return texts


def jamo(text: str) -> list[str]:
    """Conjoining letters by unicodedata, each syllable as three, the last of which may be empty."""
    letters = []
    for letter in text:
        parts = unicodedata.normalize("NFD", letter)
        letters += [*parts, ""] if "가" <= letter <= "힣" and len(parts) == 2 else [*parts]
    return letters


def read_captions(shared_data: Path, language: str) -> list[str]:
    with open(shared_data / "captions/xm3600_ko_en.tsv", encoding="utf-8", newline="") as file:
        return [row[language] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


# Of all


def test_changes_are_the_same_in_another_process() -> None:
    """Which has another seed of Python's own hash."""
    text = "검은 소파와 탁자를 고양이가 보는 dog 사진"
    program = (
        "from ko_en_clip.evaluation.perturbations import *;"
        "changes = (respaced, mistyped, other_particles);"
        f"print(ascii([[change({text!r}, seed) for seed in range(5)] for change in changes]))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, encoding="utf-8")
    expected = [[change(text, seed) for seed in range(5)] for change in (respaced, mistyped, other_particles)]
    assert ran.stdout.strip() == ascii(expected)
    # The twin: another seed may do something else.
    assert all(len(set(changed)) > 1 for changed in expected)


@pytest.mark.parametrize("perturbation", [respaced, mistyped, other_particles])
def test_decomposed_text_is_changed_like_composed_text(perturbation: Perturbation) -> None:
    texts = ["사람들을 찍은 사진", "소파와 고양이", "산과 강"]
    changed = [perturbation(text, 0) for text in texts]
    assert [perturbation(decomposed(text), 0) for text in texts] == changed != texts


def test_random_texts_stay_composed_and_change_in_one_place() -> None:
    texts = random_texts(500)
    for perturbation in (respaced, mistyped, other_particles):
        for text in texts:
            changed = perturbation(text, 0)
            assert unicodedata.is_normalized("NFC", changed)
            # No letter stands alone that did not before.
            assert sum("ㄱ" <= letter <= "ㅣ" for letter in changed) == sum("ㄱ" <= letter <= "ㅣ" for letter in text)
    changes = [respaced(text, 0) != respaced(text, 1) for text in texts if len(text) > 8]
    # Of texts with ten places to choose from one in ten chooses the same again.
    assert sum(changes) / len(changes) > 0.7


# Decomposed


def test_decomposed_by_hand() -> None:
    assert decomposed("값 A1") == "\u1100\u1161\u11b9 A1"
    assert decomposed("개") == "\u1100\u1162" != "개"
    assert unicodedata.normalize("NFC", decomposed("붉은 꽃, café")) == "붉은 꽃, café"


# Spacing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("검은 개", {"검은개", "검 은 개"}),
        ("고양이", {"고 양이", "고양 이"}),
        ("나 너", {"나너"}),
        ("개 두 마리", {"개두 마리", "개 두마리", "개 두 마 리"}),
        # Only between Hangul: not beside a digit, a sign or a Latin word.
        ("개 2마리, CLIP 모델", {"개 2마 리, CLIP 모델", "개 2마리, CLIP 모 델"}),
        ("a black dog", {"a black dog"}),
        ("개", {"개"}),
        ("", {""}),
    ],
)
def test_spacing_by_hand(text: str, expected: set[str]) -> None:
    assert outcomes(respaced, text) == expected


def test_spacing_changes_one_space() -> None:
    dropped = 0
    texts = random_texts(500)
    for text in texts:
        changed = respaced(text, 3)
        assert changed.replace(" ", "") == text.replace(" ", "")
        assert abs(len(changed) - len(text)) == (changed != text)
        dropped += len(changed) < len(text)
    # Where both can be done, half of the errors are of each kind; a third of the texts have one kind only.
    assert 0.2 < dropped / len(texts) < 0.6


# Slips of fingers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # ㄱ: ㄷ ㅅ beside it, ㅇ ㄹ below, ㄲ with shift. ㅏ: ㅓ ㅣ beside it, ㅑ ㅐ above, ㅡ below (and the comma).
        ("가", {"다", "사", "아", "라", "까", "거", "기", "갸", "개", "그"}),
        # ㄲ: with shift held ㄸ ㅆ ㅇ ㄹ, without ㄱ. ㅔ: ㅐ beside it, ㅣ below, ㅖ with shift.
        ("께", {"떼", "쎄", "에", "레", "게", "깨", "끼", "꼐"}),
        # ㅋ: ㅌ, and ㅁ ㄴ above. ㅗ: ㅓ; ㅛ ㅕ above (ㅕ touches its right corner); ㅠ ㅜ below; ㅎ is no vowel.
        ("코", {"토", "모", "노", "커", "쿄", "켜", "큐", "쿠"}),
        # ㅘ is two keys: ㅏ missed for ㅐ or ㅣ makes ㅙ or ㅚ, ㅗ for ㅜ nothing, since ㅜㅏ is no letter.
        ("와", {"놔", "롸", "돠", "과", "톼", "촤", "왜", "외"}),
        # ㅡ: ㅜ beside it, ㅓ ㅏ above. The final ㄹ: ㅇ ㅎ beside it, ㄱ ㅅ above, ㅊ ㅍ below, or none.
        ("을", {"늘", "를", "들", "글", "틀", "츨", "울", "알", "얼"} | set("윽읏응읗읓읖으")),
        ("1234 !? ㅋㅋ 猫 É", {"1234 !? ㅋㅋ 猫 É"}),
        ("", {""}),
        ("a", {"q", "w", "s", "z"}),
        ("P", {"O", "L"}),
        # Exchanged, or one of them replaced; the digit stays.
        ("Ap1", {"Qp1", "Wp1", "Sp1", "Zp1", "pA1", "Ao1", "Al1"}),
        ("ll", {"kl", "ol", "pl", "lk", "lo", "lp"}),
    ],
)
def test_slips_by_hand(text: str, expected: set[str]) -> None:
    assert outcomes(mistyped, text) == expected


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        # Final and initial exchanged: ㅎㅏㄴㄱㅜㄱ, ㅎㅏㄱㄴㅜㄱ; ㅁㅓㄱㅇㅓ, ㅁㅓㅇㄱㅓ.
        ("한국", {"학눅", "하국", "한구"}, {"한국", "간훅"}),
        ("먹어", {"멍거", "머어"}, {"먹어", "멍어어"}),
        # ㄸ is no final, and ㄺ no initial.
        ("먹따", {"머따"}, {"먿가"}),
        ("닭을", {"달을", "닥을", "다을", "닭으"}, {"당를", "달글"}),
        # Of two keys one is dropped or both are.
        ("값", {"갑", "갓", "가", "닶"}, {"값"}),
        # Exchanging equal letters is no change.
        ("막가", {"마가"}, {"막가"}),
    ],
)
def test_finals_are_dropped_and_exchanged(text: str, inside: set[str], outside: set[str]) -> None:
    found = outcomes(mistyped, text)
    assert inside <= found
    assert not outside & found


def test_keyboard_is_that_of_the_standard() -> None:
    """Keys lie under the same fingers as those of QWERTY: a slip in Hangul is the slip of the same key in English."""
    hangul = dict(
        zip("qwertyuiopasdfghjklzxcvbnm", "ㅂㅈㄷㄱㅅㅛㅕㅑㅐㅔㅁㄴㅇㄹㅎㅗㅓㅏㅣㅋㅌㅊㅍㅠㅜㅡ", strict=True)
    )
    initials = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
    shifted = {"ㄱ": "ㄲ", "ㄷ": "ㄸ", "ㅂ": "ㅃ", "ㅅ": "ㅆ", "ㅈ": "ㅉ"}
    for key, letter in hangul.items():
        if letter not in initials:
            continue
        near = {hangul[slip] for slip in outcomes(mistyped, key)} & set(initials)
        near |= {shifted[letter]} if letter in shifted else set()
        # The first 588 syllables begin with ㄱ, and so on; 7th vowel ㅗ, without a final.
        syllable = chr(ord("가") + initials.index(letter) * 588 + 8 * 28)
        found = {initials[(ord(slip) - ord("가")) // 588] for slip in outcomes(mistyped, syllable)} - {letter}
        assert found == near, letter


def test_a_slip_is_one_letter_or_two_exchanged() -> None:
    """By unicodedata: one conjoining letter differs, or two neighbours stand in each other's place."""
    exchanged = 0
    for text in random_texts(1500):
        changed = mistyped(text, 5)
        assert changed != text
        assert len(changed) == len(text)
        assert [letter for letter in changed if letter.isdigit()] == [letter for letter in text if letter.isdigit()]
        before, after = jamo(text), jamo(changed)
        assert len(before) == len(after)
        places = [place for place, letter in enumerate(before) if letter != after[place]]
        if len(places) == 1:
            continue
        exchanged += 1
        changed_places = [place for place in range(len(text)) if text[place] != changed[place]]
        assert len(places) == 2 and changed_places[1] == changed_places[0] + 1
        # A final and the next initial are other characters of Unicode; as letters on keys they are the same.
        names = [[unicodedata.name(letters[place]).split()[-1] for place in places] for letters in (before, after)]
        assert names[0] == names[1][::-1]
    assert exchanged > 10


# Particles


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("사람은 크다", {"사람이 크다"}),
        ("여자는 크다", {"여자가 크다"}),
        ("조명이 켜진 방", {"조명은 켜진 방"}),
        ("나무가 있는 길", {"나무는 있는 길"}),
        ("꽃이 핀 길", {"꽃은 핀 길"}),
        ("개는 크다", {"개가 크다"}),
        ("모자를 쓴 개", {"모자 쓴 개"}),
        ("옷을 입은 개", {"옷 입은 개"}),
        ("하늘과 구름", {"하늘하고 구름"}),
        ("소파와 의자", {"소파하고 의자"}),
        ("아이에게 준 공", {"아이한테 준 공"}),
        # Signs may follow the word.
        ("공, 사진을!", {"공, 사진!"}),
        # One of several.
        ("소파와 의자를 본 아이가", {"소파하고 의자를 본 아이가", "소파와 의자 본 아이가", "소파와 의자를 본 아이는"}),
        # A verb after it that ends like a particle stays.
        ("사람을 바라보는 작은 개", {"사람 바라보는 작은 개"}),
    ],
)
def test_particles_by_hand(text: str, expected: set[str]) -> None:
    assert outcomes(other_particles, text) == expected


@pytest.mark.parametrize(
    "word",
    [
        # The form does not agree: no particle.
        *("나이", "아이", "마을", "가을", "있는", "없는", "사과", "효과", "국가", "누군가", "은", "이", "을"),
        # Agreeing ends of nouns, adverbs, verbs and adjectives.
        *("고양이", "호랑이", "어린이", "목걸이", "종이", "높이", "깨끗이", "겹겹이", "꽃송이", "나들이", "달팽이"),
        *(
            "결과",
            "조사결과",
            "학과",
            "치와와",
            "기와",
            "십자가",
            "올라가",
            "지나가",
            "타다가",
            "내려와",
            "나와",
            "돌아와",
        ),
        *("작은", "붉은", "앉은", "놓은", "수많은", "차려입은", "조금은", "먹을", "앉을", "모를", "떠오를", "죽을"),
        *("보는", "보이는", "구경하는", "즐기는", "기다리는", "만드는", "흐르는", "머무는", "공원에는", "에게"),
        # A syllable within a word, and words of other scripts.
        *("은행", "과일", "이불", "CLIP을", "3은", "dog"),
    ],
)
def test_words_without_a_sure_particle_are_left(word: str) -> None:
    assert outcomes(other_particles, f"{word} 둘") == {f"{word} 둘"}


def test_particles_agree_on_random_nouns() -> None:
    """은 becomes 이 and never 가: by the final consonant that unicodedata finds."""
    rng = random.Random(0)
    checked = {True: 0, False: 0}
    for _ in range(2000):
        noun = "큰" + chr(rng.randint(ord("가"), ord("힣"))) + chr(rng.randint(ord("가"), ord("힣")))
        consonant = len(unicodedata.normalize("NFD", noun[-1])) == 3
        changed = other_particles(noun + ("이" if consonant else "가"), 0)
        assert changed in (noun + ("은" if consonant else "는"), noun + ("이" if consonant else "가"))
        checked[consonant] += changed.endswith(("은", "는"))
        # The twin: the form that does not agree is no particle.
        wrong = noun + ("가" if consonant else "이")
        assert other_particles(wrong, 0) == wrong
    assert min(checked.values()) > 20


# Two languages in one prompt

NAMES = {"ko": ["개", "말"], "en": ["dog", "horse"]}


def test_prompts_in_two_languages_by_hand() -> None:
    templates = {"ko": ["{} 사진", "{}{을/를} 찍은 사진", "작은 {}의 그림"], "en": ["a photo of a {}.", "{}"]}
    assert code_switched_prompts(NAMES, templates) == {
        "ko+en": [["dog 사진", "작은 dog의 그림"], ["horse 사진", "작은 horse의 그림"]],
        "en+ko": [["a photo of a 개.", "개"], ["a photo of a 말.", "말"]],
    }
    assert without_particles(templates["ko"]) == ["{} 사진", "작은 {}의 그림"] != templates["ko"]
    # The twin: without the switch.
    assert prompts_for(NAMES["ko"], without_particles(templates["ko"]))[0] == ["개 사진", "작은 개의 그림"]


def test_names_and_templates_that_cannot_be_switched_are_refused() -> None:
    with pytest.raises(ValueError, match="every Korean template has a particle, as '{}{을/를} 찍은 사진'"):
        code_switched_prompts(NAMES, {"ko": ["{}{을/를} 찍은 사진"], "en": ["a photo of a {}."]})
    with pytest.raises(ValueError, match="2 Korean names and 1 English"):
        code_switched_prompts(NAMES | {"en": ["dog"]}, {"ko": ["{} 사진"], "en": ["a photo of a {}."]})


# Real captions


@pytest.mark.parametrize(
    ("perturbation", "korean", "english"),
    [
        (respaced, (0.99, 1.0), (0.0, 0.0)),
        (mistyped, (1.0, 1.0), (1.0, 1.0)),
        # Many captions are phrases without a particle, or only with 의, 에, 에서.
        (other_particles, (0.5, 0.75), (0.0, 0.0)),
    ],
)
def test_share_of_real_captions_that_change(
    perturbation: Perturbation, korean: tuple[float, float], english: tuple[float, float], shared_data: Path
) -> None:
    for language, (low, high) in (("ko", korean), ("en", english)):
        captions = read_captions(shared_data, language)
        assert len(captions) == 1800
        share = sum(perturbation(text, 0) != unicodedata.normalize("NFC", text) for text in captions) / len(captions)
        assert low <= share <= high, share


def test_real_captions_decompose(shared_data: Path) -> None:
    captions = read_captions(shared_data, "ko")
    assert all(decomposed(text) != text for text in captions)
    assert [unicodedata.normalize("NFC", decomposed(text)) for text in captions] == captions
