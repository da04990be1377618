"""The tokenizer: text rules, special ids, and that tokenizer.json alone decides."""

import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from training_texts import TRAINING_TEXTS
from transformers import AutoTokenizer

from ko_en_clip import KoEnClipTokenizerFast
from ko_en_clip.tokenizer_training import _STEM, TokenizerSettings, train_tokenizer

TEXTS = [
    "왼쪽에 삼, 오른쪽에 칠",
    unicodedata.normalize("NFD", "서울의 밤거리"),
    "ㅋㅋㅋ",
    "A Dog & 2 cats!",
    "ＡＢＣ　１２３",
    "👨‍👩‍👧 ☕️ 👍🏽",
    "",
    "  tab\tand\nline  ",
    "긴 글 " * 60,
]


def ids(tokenizer: KoEnClipTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, truncation=True)["input_ids"]


def decoded(tokenizer: KoEnClipTokenizerFast, text: str) -> str:
    """The text as it comes back, without the one space that every text begins with."""
    text = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
    assert text == "" or text[0] == " "
    return text[1:]


# Text rules


@pytest.mark.parametrize(
    ("one", "other", "different"),
    [
        # Composed and decomposed, as macOS writes file names.
        ("한 마리 강아지", unicodedata.normalize("NFD", "한 마리 강아지"), "한 마리 송아지"),
        ("caf\u00e9", "cafe\u0301", "cafe"),
        # Half composed: a syllable whose final consonant stands apart.
        ("\uac01", "\uac00\u11a8", "\uac00\u3131"),
        # Full width, the ideographic space included.
        ("abc 123 (!?)", "ＡＢＣ　１２３　（！？）", "abc 123 (!.)"),
        ("a~b", "ａ～ｂ", "a-b"),
        # Case.
        ("a photo of seoul", "A Photo of SEOUL", "a photo of busan"),
        ("\u00e9t\u00e9", "\u00c9T\u00c9", "ete"),
        # White space of every kind, at the ends too.
        ("눈 덮인 산", " \t눈\u00a0\n\n덮인   산\u3000\r\n", "눈덮인 산"),
        ("a b", "a\u2003b", "ab"),
        # What cannot be seen.
        ("강아지", "\ufeff강\u200b아\u2060지\x00", "강 아지"),
    ],
)
def test_texts_that_mean_the_same_have_the_same_ids(
    one: str, other: str, different: str, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    assert one != other
    assert ids(tiny_tokenizer, one) == ids(tiny_tokenizer, other)
    assert ids(tiny_tokenizer, one) != ids(tiny_tokenizer, different)


def test_invisible_character_between_spaces_leaves_one_space(tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    assert ids(tiny_tokenizer, "a \u200b b") == ids(tiny_tokenizer, "a b")


@pytest.mark.parametrize("jamo", ["ㅋㅋㅋ", "ㅠㅠ", "ㄱㅏ", "ㅇㅇ"])
def test_compatibility_jamo_stay_themselves(jamo: str, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    assert decoded(tiny_tokenizer, jamo) == jamo
    # NFKC would take them for conjoining jamo, and compose those that make a syllable.
    assert unicodedata.normalize("NFKC", jamo) != jamo
    assert ids(tiny_tokenizer, jamo) != ids(tiny_tokenizer, unicodedata.normalize("NFKC", jamo))


@pytest.mark.parametrize("emoji", ["👨‍👩‍👧‍👦", "👍🏽", "🇰🇷", "☕️", "🏳️‍🌈", "1️⃣"])
def test_emoji_come_back_whole(emoji: str, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    assert decoded(tiny_tokenizer, emoji) == emoji
    # The twin: joiners and modifiers count.
    assert len(emoji) > 1
    assert ids(tiny_tokenizer, emoji) != ids(tiny_tokenizer, emoji[0])


@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u200b", "\u3000"])
def test_empty_text_is_its_two_ends(text: str, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    assert ids(tiny_tokenizer, text) == [tiny_tokenizer.bos_token_id, tiny_tokenizer.eos_token_id]
    assert len(ids(tiny_tokenizer, text + "a")) > 2


def normalized(text: str) -> str:
    """The documented rules in Python."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(chr(ord(mark) - 0xFEE0) if 0xFF01 <= ord(mark) <= 0xFF5E else mark for mark in text)
    return re.sub(r"\s+", " ", text).strip().lower()


def random_text(rng: random.Random) -> str:
    ranges = [(0x20, 0x7E), (0xC0, 0x17F), (0x1100, 0x11FF), (0x3131, 0x318E), (0xAC00, 0xD7A3), (0xFF01, 0xFF5E)]
    ranges += [(0x4E00, 0x4EFF), (0x1F300, 0x1F5FF), (0x0300, 0x0330)]
    return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 20)))


def test_any_text_comes_back_normalised(tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    rng = random.Random(0)
    texts = [random_text(rng) for _ in range(300)]
    changed = 0
    for text in texts:
        assert decoded(tiny_tokenizer, text) == normalized(text)
        changed += normalized(text) != text
    assert changed > 100


def test_no_text_has_an_unknown_token(tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    assert tiny_tokenizer.unk_token is None
    rng = random.Random(1)
    for text in [*TEXTS, *(random_text(rng) for _ in range(100))]:
        special = [number for number in ids(tiny_tokenizer, text) if number in tiny_tokenizer.all_special_ids]
        assert special == [tiny_tokenizer.bos_token_id, tiny_tokenizer.eos_token_id]


# Splitting


def test_word_is_the_same_at_the_start_and_inside(tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    word = ids(tiny_tokenizer, "강아지가")[1:-1]
    assert ids(tiny_tokenizer, "마리 강아지가")[1:-1] == ids(tiny_tokenizer, "마리")[1:-1] + word
    # The twin: glued to the word before it, it is not the same.
    assert ids(tiny_tokenizer, "마리강아지가")[-1 - len(word) : -1] != word


def test_no_token_crosses_words_digits_or_punctuation() -> None:
    """Texts repeated until whole phrases are worth a token, were they allowed to be one."""
    texts = ["a big dog, 2022! 큰 개, 2022!"] * 10
    tokenizer = train_tokenizer(texts, TokenizerSettings(vocab_size=600))
    tokens = [tokenizer.decode([number]) for number in range(len(tokenizer) - 3)]
    whole = {token for token in tokens if "\ufffd" not in token}
    assert {" big", " dog", " 큰", " 개"} <= whole
    for token in whole:
        kinds = {
            "letter" if mark.isalpha() else "digit" if mark.isdigit() else "other"
            for mark in token[token.startswith(" ") :]
        }
        assert len(kinds) <= 1, token
        assert " " not in token[1:], token
        assert sum(mark.isdigit() for mark in token) <= 1, token


# Special ids, truncation, padding


@pytest.mark.parametrize("vocab_size", [259, 300, 400])
def test_eos_is_the_largest_id_and_never_2(vocab_size: int) -> None:
    tokenizer = train_tokenizer(TRAINING_TEXTS, TokenizerSettings(vocab_size=vocab_size, min_frequency=1))
    assert len(tokenizer) == vocab_size
    assert tokenizer.eos_token_id == vocab_size - 1 == max(tokenizer.get_vocab().values())
    assert sorted(tokenizer.all_special_ids) == [vocab_size - 3, vocab_size - 2, vocab_size - 1]
    assert 2 not in tokenizer.all_special_ids
    assert {tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token} == {
        "<|pad|>",
        "<|startoftext|>",
        "<|endoftext|>",
    }


def test_vocabulary_is_smaller_where_texts_hold_no_more_pairs() -> None:
    tokenizer = train_tokenizer(["ab ab"], TokenizerSettings(vocab_size=10_000))
    # 256 bytes, " a" and " ab", three special tokens.
    assert len(tokenizer) == 256 + 2 + 3
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    # A pair has to occur min_frequency times.
    assert len(train_tokenizer(["ab ab"], TokenizerSettings(vocab_size=10_000, min_frequency=3))) == 256 + 3


@pytest.mark.parametrize("max_length", [3, 8, 77])
def test_truncation_keeps_both_ends(max_length: int) -> None:
    tokenizer = train_tokenizer(TRAINING_TEXTS, TokenizerSettings(vocab_size=259, max_length=max_length))
    assert tokenizer.model_max_length == max_length
    long, short = tokenizer("긴 글 " * 40, truncation=True)["input_ids"], tokenizer("a", truncation=True)["input_ids"]
    assert len(long) == max_length
    assert (long[0], long[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert long.count(tokenizer.eos_token_id) == 1
    assert len(short) == min(max_length, 4)
    assert short[-1] == tokenizer.eos_token_id


def test_padding_is_after_the_text_and_masked(tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    batch = tiny_tokenizer(["a", "한 마리 강아지가 달린다"], padding=True)
    short, long = batch["input_ids"]
    num = len(ids(tiny_tokenizer, "a"))
    assert len(short) == len(long) == len(ids(tiny_tokenizer, "한 마리 강아지가 달린다")) > num
    assert short[:num] == ids(tiny_tokenizer, "a")
    assert set(short[num:]) == {tiny_tokenizer.pad_token_id}
    assert batch["attention_mask"] == [[1] * num + [0] * (len(long) - num), [1] * len(long)]
    assert set(batch) == {"input_ids", "attention_mask"}


# One file decides


def test_bare_tokenizers_library_gives_the_same_ids(tmp_path: Path) -> None:
    trained = train_tokenizer(TRAINING_TEXTS, TokenizerSettings(vocab_size=350))
    trained.save_pretrained(tmp_path)
    bare = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(tmp_path)
    expected = trained(TEXTS, padding=True, truncation=True)
    found = auto(TEXTS, padding=True, truncation=True)
    encoded = bare.encode_batch(TEXTS)
    assert [row.ids for row in encoded] == found["input_ids"] == expected["input_ids"]
    assert [row.attention_mask for row in encoded] == found["attention_mask"] == expected["attention_mask"]
    for text in TEXTS:
        assert bare.encode(text).ids == ids(auto, text) == ids(trained, text)
    # The twin: a rule taken out of the file changes ids.
    bare.normalizer = None
    assert [row.ids for row in bare.encode_batch(TEXTS)] != expected["input_ids"]


def test_saved_tokenizer_loads_the_same(tiny_tokenizer: KoEnClipTokenizerFast, tmp_path: Path) -> None:
    tiny_tokenizer.save_pretrained(tmp_path / "once")
    for loaded in (
        AutoTokenizer.from_pretrained(tmp_path / "once"),
        KoEnClipTokenizerFast.from_pretrained(tmp_path / "once"),
    ):
        assert isinstance(loaded, KoEnClipTokenizerFast)
        assert loaded.get_vocab() == tiny_tokenizer.get_vocab()
        assert loaded.special_tokens_map == tiny_tokenizer.special_tokens_map
        assert loaded.model_max_length == tiny_tokenizer.model_max_length == 77
    loaded.save_pretrained(tmp_path / "twice")
    again = AutoTokenizer.from_pretrained(tmp_path / "twice")
    assert [ids(again, text) for text in TEXTS] == [ids(tiny_tokenizer, text) for text in TEXTS]


@pytest.mark.parametrize("call", [{}, {"padding": "max_length", "max_length": 20, "truncation": True}])
def test_using_a_tokenizer_leaves_its_file_as_it_was(call: dict[str, Any], tmp_path: Path) -> None:
    """Padding and truncation of a call are kept in the object; they must not reach the ids of the saved file."""
    trained = train_tokenizer(TRAINING_TEXTS, TokenizerSettings(vocab_size=350))
    trained.save_pretrained(tmp_path / "fresh")
    trained("a", **call)
    trained.save_pretrained(tmp_path / "used")
    fresh, used = (Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")) for name in ("fresh", "used"))
    expected = [row.ids for row in fresh.encode_batch(TEXTS)]
    assert {len(row) for row in expected} == {77}
    assert [row.ids for row in used.encode_batch(TEXTS)] == expected


# Training


def test_a_long_run_of_hangul_is_searched_once_for_a_stem() -> None:
    # Search from every syllable takes hours here.
    assert _STEM.findall("하" * 300_000 + "콩") == []
    assert _STEM.findall("하" * 300_000 + "콩은") == ["하" * 300_000 + "콩"]


def test_stems_are_those_of_a_search_from_every_syllable() -> None:
    everywhere = re.compile(_STEM.pattern.removeprefix("(?<![가-힣])"))
    assert everywhere.pattern != _STEM.pattern
    rng = random.Random(0)
    texts = ["".join(rng.choices("하는은이다들에서강아지 a.", k=12)) for _ in range(2000)]
    assert [_STEM.findall(text) for text in texts] == [everywhere.findall(text) for text in texts]


def test_training_is_deterministic() -> None:
    settings = TokenizerSettings(vocab_size=350)
    one, two = (train_tokenizer(iter(TRAINING_TEXTS), settings).backend_tokenizer.to_str() for _ in range(2))
    assert one == two
    other = train_tokenizer(TRAINING_TEXTS[:6], settings).backend_tokenizer.to_str()
    assert other != one


def test_decomposed_training_texts_give_the_same_vocabulary() -> None:
    settings = TokenizerSettings(vocab_size=350)
    composed, decomposed, unlike = (
        train_tokenizer(texts, settings).backend_tokenizer.to_str()
        for texts in (
            [unicodedata.normalize("NFC", text) for text in TRAINING_TEXTS],
            [unicodedata.normalize("NFD", text) for text in TRAINING_TEXTS],
            [unicodedata.normalize("NFKD", "ㅋ").join(text) for text in TRAINING_TEXTS],
        )
    )
    assert composed == decomposed
    assert composed != unlike


@pytest.mark.parametrize(
    ("good", "bad", "named"),
    [
        ({"vocab_size": 259}, {"vocab_size": 258}, "vocab_size is 258.*at least 259"),
        ({"vocab_size": 259, "max_length": 3}, {"vocab_size": 259, "max_length": 2}, "max_length is 2.*at least 3"),
    ],
)
def test_settings_too_small_are_refused(good: dict[str, int], bad: dict[str, int], named: str) -> None:
    TokenizerSettings(**good)
    with pytest.raises(ValueError, match=named):
        TokenizerSettings(**bad)


def test_training_on_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no text to train a tokenizer on"):
        train_tokenizer(iter([]), TokenizerSettings(vocab_size=300))


def test_decomposed_korean_costs_no_more_tokens_on_real_captions(
    tiny_tokenizer: KoEnClipTokenizerFast, shared_data: Path
) -> None:
    with (shared_data / "text/ko.txt").open(encoding="utf-8") as lines:
        captions = [line.strip() for _, line in zip(range(200), lines, strict=False)]
    for caption in captions:
        decomposed = unicodedata.normalize("NFD", caption)
        assert decomposed != caption or not re.search("[가-힣]", caption)
        assert ids(tiny_tokenizer, decomposed) == ids(tiny_tokenizer, caption)


@pytest.mark.parametrize("tensor_type", [None, "pt"])
def test_offsets_of_one_text_with_overflow_are_those_in_a_list(
    tensor_type: str | None, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    wanted = {"truncation": True, "max_length": 5, "padding": True, "return_tensors": tensor_type}
    wanted |= {"return_offsets_mapping": True, "return_overflowing_tokens": True}
    text = "a dog runs over the field and sleeps"
    alone, listed = tiny_tokenizer(text, **wanted), tiny_tokenizer([text], **wanted)
    assert len(alone["input_ids"]) > 1
    for name in ("input_ids", "offset_mapping"):
        found = [part[name] if tensor_type is None else part[name].tolist() for part in (alone, listed)]
        assert found[0] == found[1]
