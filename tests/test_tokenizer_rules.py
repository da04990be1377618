"""Rules for texts before merges, against the rules written once more in plain Python.

`tokenizers` lowers letters by a newer Unicode than Python does, and composes by an older one (version 9): code points
that Python does not know are left out, and so are marks whose order only Python knows.
"""

import itertools
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import pytest
from tokenizers import normalizers

from ko_en_clip.tokenizer_rules import CHARACTERS, character_table, text_normalizer, word_splitter

JOINER = "\u200d"
# Format characters that are drawn, or that emoji need: number signs of Arabic and others.
DRAWN_FORMATS = {*map(chr, range(0x0600, 0x0606)), "\u06dd", "\u070f", "\u0890", "\u0891", "\u08e2"}


def is_unseen(mark: str) -> bool:
    """Control characters and format characters of no width; tags and musical signs (beyond U+FFF0) stay."""
    category = unicodedata.category(mark)
    return category == "Cc" or (category == "Cf" and mark < "\ufff0" and mark not in DRAWN_FORMATS)


ASSIGNED = [chr(point) for point in range(0x110000) if unicodedata.category(chr(point)) not in ("Cn", "Cs")]


def known_to_both(mark: str) -> bool:
    """Whether composition in `tokenizers` puts a mark where Python does, and composes the letter that has parts."""
    parts = unicodedata.normalize("NFD", mark)
    texts = [mark + "\u0301", mark + "\u0323", mark + "\u3099", parts]
    return all(normalizers.NFC().normalize_str(text) == unicodedata.normalize("NFC", text) for text in texts)


TOO_NEW = {mark for mark in ASSIGNED if unicodedata.category(mark)[0] in "ML" and not known_to_both(mark)}
ASSIGNED = [mark for mark in ASSIGNED if mark not in TOO_NEW]
UNSEEN = {mark for mark in ASSIGNED if is_unseen(mark)}
WIDTHS = {point: point - 0xFEE0 for point in range(0xFF01, 0xFF5F)}
REPLACED: dict[int, int | str] = {
    **{ord(mark): "" for mark in UNSEEN - {JOINER}},
    **{ord(mark): " " for mark in ASSIGNED if mark.isspace()},
    **WIDTHS,
}


def joiners_before_symbols(text: str) -> str:
    """Without the joiners that what follows cannot be joined by."""
    following = itertools.zip_longest(text, text[1:], fillvalue="a")
    return "".join(a for a, b in following if a != JOINER or unicodedata.category(b)[0] == "S")


def expected(text: str) -> str:
    """The rules; lower case goes letter by letter, so that no sigma depends on its place."""
    if JOINER in text:
        text = joiners_before_symbols(text)
    text = " ".join(text.translate(REPLACED).split(" "))
    text = unicodedata.normalize("NFC", "".join(map(str.lower, text)))
    text = re.sub(" +", " ", text).strip(" ")
    return f" {text}" if text else ""


normalize = text_normalizer().normalize_str


def wrong(texts: Iterable[str]) -> list[str]:
    return [ascii(text) for text in texts if normalize(text) != expected(text)][:20]


# Texts that the rules have to get right wherever they stand.
FRAGMENTS = [*"aAzZ .,!09", "\u3000", "\t", "\r\n", "\u2028", "\xa0", "\x1f", "\x85", "\x00", "\xad", "\u200b"]
FRAGMENTS += [JOINER, "\ufeff", "\u202e", "\ufe0f", "\ufe0e", "\u0301", "\u0307", "\u3099", "\u0345", "\u0323"]
FRAGMENTS += [
    *"강각힣ㅋㅠㄱㅏ漢ΑΣςİıßẞǅﬁ\uac00\u11a8\u1100\u1161\uff01\uff21\uff5a\uff5e\uff76",
    "か",
    "\u212b",
    "\u2126",
]
FRAGMENTS += [*"👨👩🏽❤♀↔€+🐶🇰🇷", "\U000e0067", "\U000e007f", "\u0600", "\ufffd", "\ue000", "\U0001d165"]


def random_text(rng: random.Random) -> str:
    pools: list[Callable[[], str]] = [lambda: rng.choice(FRAGMENTS), lambda: rng.choice(ASSIGNED)]
    return "".join(rng.choices(pools, (4, 1))[0]() for _ in range(rng.randint(0, 24)))


RANDOM_TEXTS = [random_text(random.Random(seed)) for seed in range(10_000)]


# The normaliser


@pytest.mark.parametrize("around", ["{}", "a{}b", "{}\u0301", "{}\u3099", "가{}나 ", "{}\U0001f436"])
def test_every_code_point_follows_the_rules(around: str) -> None:
    # Code points for private use are alike, and so are ideographs: two in a hundred do.
    alike = {*map(chr, range(0x3400, 0xA000)), *map(chr, range(0xE000, 0xF900)), *map(chr, range(0x20000, 0x110000))}
    marks = [mark for mark in ASSIGNED if mark not in alike or ord(mark) % 50 == 0]
    texts = [around.replace("{}", mark) for mark in marks]
    assert len(texts) > 50_000
    assert wrong(texts) == []
    # The twin: without a rule, the oracle is no oracle.
    assert sum(" " + text != expected(text) for text in texts) > 1000


def test_only_rare_marks_are_left_out() -> None:
    """Of scripts added to Unicode since 2016, and a few for Arabic, Bengali, Lao and others."""
    assert 0 < len(TOO_NEW) < 120
    assert {mark for mark in TOO_NEW if unicodedata.category(mark)[0] == "L"} <= {"\U00011938"}
    assert not any(mark < "\u07fd" or "\uac00" <= mark <= "\uffff" for mark in TOO_NEW)


# The table replaces a character and what is drawn on it as one, where both take fewer than 6 bytes.
@pytest.mark.parametrize(
    ("first", "limit"), [("\xa0", 0x10000), ("\u200c", 0x800), ("\u3000", 0x800), ("\uff21", 0x800), ("\u2028", 0x800)]
)
def test_what_follows_a_replaced_character_is_not_lost(first: str, limit: int) -> None:
    marks = [mark for mark in ASSIGNED if ord(mark) < limit and not "\u3400" <= mark <= "\ud7a3"]
    texts = [*(first + mark for mark in marks), *(first + mark + "\U0001f436" for mark in marks)]
    assert wrong(texts) == []
    assert sum(" " + text != expected(text) for text in texts) > 1000


def test_unassigned_code_points_are_not_lost() -> None:
    """Python cannot say what they become, only that they become something; U+2065 is unseen whatever it will be."""
    points = [point for point in range(0x110000) if unicodedata.category(chr(point)) == "Cn"]
    points = [point for point in points if point < 0x20000 or point % 16 == 0xF]
    assert [hex(point) for point in points if normalize(chr(point)) == ""] == ["0x2065"]
    kept = sum(normalize(chr(point)) == " " + chr(point) for point in points)
    # Some are capitals in newer versions.
    assert 0 < len(points) - kept < 200


def test_random_texts_follow_the_rules() -> None:
    assert wrong(RANDOM_TEXTS) == []
    assert sum(text.strip() != expected(text).strip() for text in RANDOM_TEXTS) > 5_000


def test_normalising_twice_is_normalising_once() -> None:
    once = [normalize(text) for text in RANDOM_TEXTS]
    assert [ascii(text) for text in once if normalize(text) != text] == []
    assert once != RANDOM_TEXTS


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_canonically_equal_texts_are_normalised_to_one(form: Literal["NFC", "NFD"]) -> None:
    pairs = [(text, unicodedata.normalize(form, text)) for text in RANDOM_TEXTS]
    assert [ascii(text) for text, other in pairs if normalize(text) != normalize(other)] == []
    assert sum(text != other for text, other in pairs) > 250


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("", ""),
        (" \t\u3000\u200b", ""),
        ("ＡＢＣ　１２３～！", " abc 123~!"),
        # Half-width katakana, superscripts, ligatures, Roman numerals, compatibility jamo, Hanja stay.
        ("ｶ² ﬁⅻ ㅋㅋㄱㅏ 漢字 ㎏", " ｶ² ﬁⅻ ㅋㅋㄱㅏ 漢字 ㎏"),
        ("Å \u212b A\u030a", " å å å"),
        ("\u1100\u1161\u11a8 가\u11a8", " 각 각"),
        ("a\u200d b👩\u200d🚀 \u200d", " a b👩\u200d🚀"),
        ("ΣΑΣ İ", " σασ i\u0307"),
        ("\u200c\u0301 \xa0\uff9e", " \u0301 \uff9e"),
        ("a\u200b\u0301 ｱ\u200b\u3099", " á ｱ\u3099"),
        ("☕\ufe0f ☕\ufe0e", " ☕\ufe0f ☕\ufe0e"),
    ],
)
def test_rules_by_hand(text: str, becomes: str) -> None:
    assert normalize(text) == becomes == expected(text)


# The table of characters


def replaced_by_table(characters: Mapping[str, str]) -> Callable[[str], str]:
    return normalizers.Precompiled(character_table(characters)).normalize_str


def test_table_replaces_the_characters_of_the_rules_and_no_others() -> None:
    replace, by_python = replaced_by_table(CHARACTERS), str.maketrans(CHARACTERS)
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    assert [hex(point) for point in points if replace(chr(point)) != chr(point).translate(by_python)] == []
    assert sum(replace(mark) != mark for mark in CHARACTERS) == len(CHARACTERS) > 150


@pytest.mark.parametrize("seed", range(8))
def test_random_tables_replace_as_python_does(seed: int) -> None:
    rng = random.Random(seed)
    known = [mark for mark in ASSIGNED if mark != "\x00"]
    # Neighbours share all bytes but the last, so that nodes of the trie have many children.
    first = rng.randrange(len(known) - 300)
    keys = [*rng.sample(known, rng.choice([1, 30, 300])), *known[first : first + rng.choice([0, 300])]]
    table = {key: "".join(rng.choices(known, k=rng.randint(0, 4))) for key in keys}
    replace, by_python = replaced_by_table(table), str.maketrans(table)
    for mark in [*keys, *rng.sample(known, 2000), "\x00"]:
        assert replace(mark) == mark.translate(by_python), ascii(mark)
    key = rng.choice(keys)
    assert replaced_by_table({**table, key: table[key] + "x"})(key) != replace(key)


def test_empty_table_replaces_nothing() -> None:
    assert replaced_by_table({})("a １ 가") == "a １ 가"


# The splitter


def pieces(text: str) -> list[str]:
    return [piece for piece, _ in word_splitter().pre_tokenize_str(text)]


def kinds(piece: str) -> set[str]:
    """Letters by script, digits, and what is neither; marks and selectors go with anything."""
    found = set()
    for mark in piece.removeprefix(" "):
        category = unicodedata.category(mark)
        if category[0] == "L":
            found.add("hangul" if "HANGUL" in unicodedata.name(mark, "") else "letter")
        elif category[0] == "N":
            found.add("digit")
        elif category[0] != "M" and "HANGUL" not in unicodedata.name(mark, ""):
            found.add("other")
    return found


def test_pieces_are_of_one_kind_and_lose_nothing() -> None:
    num_pieces = 0
    for text in map(normalize, RANDOM_TEXTS[:3000]):
        found = pieces(text)
        num_pieces += len(found)
        assert "".join(found) == text
        for piece in found:
            assert len(kinds(piece)) <= 1, ascii(piece)
            assert sum(unicodedata.category(mark)[0] == "N" for mark in piece) <= 1, ascii(piece)
            assert not any(mark.isspace() for mark in piece[1:]), ascii(piece)
    # The twin: whole texts are of many kinds.
    assert num_pieces > 10_000
    assert len(kinds(" clip모델 3!")) == 4


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("CLIP모델을 씁니다", [" clip", "모델을", " 씁니다"]),
        ("3.5kg 2022년", [" 3", ".", "5", "kg", " 2", "0", "2", "2", "년"]),
        ("ㅋㅋㅋ하하ㅠㅠ", [" ㅋㅋㅋ하하ㅠㅠ"]),
        ("漢字와 かな", [" 漢字", "와", " かな"]),
        ("don't!!?", [" don", "'", "t", "!!?"]),
        ("नमस्ते", [" नमस्ते"]),
    ],
)
def test_split_by_hand(text: str, split: list[str]) -> None:
    assert pieces(normalize(text)) == split


@pytest.mark.parametrize("raw", ["  a  b ", "\n\n가\r\n1 ", " ", "   "])
def test_unnormalised_text_is_not_lost_either(raw: str) -> None:
    assert "".join(pieces(raw)) == raw
    assert pieces(raw) != pieces(normalize(raw))


@pytest.mark.parametrize(
    "emoji", ["👨‍👩‍👧‍👦", "👍🏽", "👩🏿‍🚀", "🇰🇷", "☕️", "🏳️‍🌈", "🏴\U000e0067\U000e0062\U000e007f", "🙂‍↔️", "#️⃣", "❤️‍🔥"]
)
def test_emoji_stay_in_one_piece(emoji: str) -> None:
    assert len(emoji) > 1
    assert pieces(normalize(f"강아지 {emoji}")) == [" 강아지", " " + emoji]
    assert pieces(normalize(f"a{emoji}b")) == [" a", emoji, "b"]
    assert len(pieces(normalize(f"{emoji} {emoji}"))) == 2
