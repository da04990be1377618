"""Training of the tokenizer: what a vocabulary depends on, what its entries hold, and that no text is lost."""

import codecs
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable

import pytest
from training_texts import TRAINING_TEXTS
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ko_en_clip import KoEnClipTokenizerFast
from ko_en_clip.tokenizer_rules import text_normalizer, word_splitter
from ko_en_clip.tokenizer_training import (
    LearnedMerges,
    TokenizerSettings,
    byte_level_model,
    cut_vocabulary,
    learn_merges,
    train_tokenizer,
)

SETTINGS = TokenizerSettings(vocab_size=900)
LETTERS = bytes_to_unicode()
BYTES = {letter: byte for byte, letter in LETTERS.items()}


def corpus(num_texts: int = 400) -> list[str]:
    """Words of few letters drawn evenly, so that many pairs are equally frequent."""
    rng = random.Random(0)
    alphabets = ["가각간나다라마바사아", "abcdefghij", "ㅋㅎㅠㅜ", "가나🐶🐱👍🏽", "漢字かな", "0123456789.,"]
    words = ["".join(rng.choices(rng.choice(alphabets), k=rng.randint(1, 5))) for _ in range(600)]
    return [*TRAINING_TEXTS, *(" ".join(rng.choices(words, k=8)) for _ in range(num_texts))]


CORPUS = corpus()


@pytest.fixture(scope="module")
def trained() -> KoEnClipTokenizerFast:
    return train_tokenizer(CORPUS, SETTINGS)


def file_of(tokenizer: KoEnClipTokenizerFast) -> str:
    return tokenizer.backend_tokenizer.to_str()


def own_ids(tokenizer: KoEnClipTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def bytes_of(tokenizer: KoEnClipTokenizerFast, ids: Iterable[int]) -> list[bytes]:
    return [bytes(BYTES[letter] for letter in token) for token in tokenizer.convert_ids_to_tokens(list(ids))]


def random_text(rng: random.Random) -> str:
    """Characters of the corpus, and three of any kind, those included that Unicode has not given out."""
    known = rng.choices("".join(CORPUS), k=rng.randint(0, 30))
    strange = [chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(3)]
    return "".join(rng.sample([*known, *strange], k=len(known) + 3))


RANDOM_TEXTS = [random_text(random.Random(seed)) for seed in range(400)]


# What a vocabulary depends on


@pytest.mark.parametrize("seed", range(3))
def test_order_of_texts_does_not_matter(seed: int, trained: KoEnClipTokenizerFast) -> None:
    shuffled = random.Random(seed).sample(CORPUS, len(CORPUS))
    assert shuffled != CORPUS
    assert file_of(train_tokenizer(iter(shuffled), SETTINGS)) == file_of(trained)
    # The twin: the same characters in other words.
    assert file_of(train_tokenizer([text[::-1] for text in CORPUS], SETTINGS)) != file_of(trained)


IN_PROCESS = """
import hashlib, json, sys
from ko_en_clip.tokenizer_training import TokenizerSettings, train_tokenizer
texts = json.load(sys.stdin)
tokenizer = train_tokenizer(texts, TokenizerSettings(vocab_size=900))
print(hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest())
"""


@pytest.mark.parametrize(("num_threads", "hash_seed"), [(1, 1), (4, 2)])
def test_processes_and_threads_do_not_matter(num_threads: int, hash_seed: int, trained: KoEnClipTokenizerFast) -> None:
    threads = {"RAYON_NUM_THREADS": str(num_threads), "TOKENIZERS_PARALLELISM": str(num_threads > 1).lower()}
    done = subprocess.run(
        [sys.executable, "-c", IN_PROCESS],
        env={**os.environ, **threads, "PYTHONHASHSEED": str(hash_seed)},
        input=json.dumps(random.Random(hash_seed).sample(CORPUS, len(CORPUS))),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.strip() == hashlib.sha256(file_of(trained).encode()).hexdigest()


@pytest.mark.parametrize("vocab_size", [259, 260, 261, 300, 420, 650, 899])
def test_cut_vocabulary_is_the_smaller_one(vocab_size: int, trained: KoEnClipTokenizerFast) -> None:
    before = file_of(trained)
    cut = cut_vocabulary(trained, vocab_size)
    assert file_of(trained) == before
    small = train_tokenizer(CORPUS, TokenizerSettings(vocab_size=vocab_size))
    assert len(cut) == len(small) == vocab_size
    assert cut.get_vocab() == small.get_vocab()
    texts = [*CORPUS, *RANDOM_TEXTS]
    assert cut(texts)["input_ids"] == small(texts)["input_ids"] != trained(texts)["input_ids"]
    assert (cut.model_max_length, cut.eos_token_id) == (77, vocab_size - 1)


def test_cut_vocabulary_of_the_same_size_is_the_same(trained: KoEnClipTokenizerFast) -> None:
    assert cut_vocabulary(trained, 900)(CORPUS)["input_ids"] == trained(CORPUS)["input_ids"]


@pytest.mark.parametrize("vocab_size", [901, 258, 0, -1])
def test_cut_to_an_impossible_size_is_refused(vocab_size: int, trained: KoEnClipTokenizerFast) -> None:
    with pytest.raises(ValueError, match=str(vocab_size)):
        cut_vocabulary(trained, vocab_size)


def test_rare_characters_do_not_take_the_room_of_merges() -> None:
    """A vocabulary smaller than the number of characters in the texts, as in captions with a few names in Hanja."""
    rare = [chr(0x4E00 + place) for place in range(4000)]
    with_rare, without = (train_tokenizer([*CORPUS, *texts], SETTINGS) for texts in (rare, []))
    assert with_rare.get_vocab() == without.get_vocab()
    assert len(with_rare) == 900
    # The twin: where they are not rare, they are entries.
    assert train_tokenizer([*CORPUS, *rare, *rare], SETTINGS).get_vocab() != without.get_vocab()


# What its entries hold


def merged(characters: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """BPE as in the paper: the earliest merge of all neighbours, from the left, until there is none."""
    while True:
        pairs = enumerate(zip(characters, characters[1:], strict=False))
        found = [(ranks[pair], place) for place, pair in pairs if pair in ranks]
        if not found:
            return characters
        place = min(found)[1]
        characters = [*characters[:place], "".join(characters[place : place + 2]), *characters[place + 2 :]]


def is_text(entry: bytes) -> bool:
    try:
        entry.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_start_of_a_character(entry: bytes) -> bool:
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(entry) == ""
    except UnicodeDecodeError:
        return False


def test_byte_level_model_does_what_the_merges_say_over_characters(trained: KoEnClipTokenizerFast) -> None:
    normalize, splitter = text_normalizer().normalize_str, word_splitter()
    learned = learn_merges(CORPUS, SETTINGS, splitter)
    known = {entry.decode() for entry in bytes_of(trained, range(len(trained) - 3)) if is_text(entry)}
    ranks = {pair: rank for rank, pair in enumerate(learned.merges) if "".join(pair) in known}
    num_spelled = num_merged = 0
    for text in [*CORPUS[:150], *RANDOM_TEXTS]:
        found = bytes_of(trained, own_ids(trained, text))
        pieces = [piece for piece, _ in splitter.pre_tokenize_str(normalize(text))]
        for token in [token for piece in pieces for token in merged(list(piece), ranks)]:
            parts = [found.pop(0)]
            if token in known:
                num_merged += len(token) > 1
            else:
                # A character without an entry: some parts, none of which reaches beyond it.
                assert len(token) == 1
                num_spelled += 1
                while len(b"".join(parts)) < len(token.encode()):
                    parts.append(found.pop(0))
            assert b"".join(parts) == token.encode(), (text, token)
        assert found == []
    assert num_merged > 500
    assert num_spelled > 500


def test_model_follows_its_merges() -> None:
    learned = learn_merges(CORPUS, SETTINGS, word_splitter())
    turned = LearnedMerges(learned.merges[::-1], learned.characters, learned.num_texts)
    models = [byte_level_model(merges, SETTINGS) for merges in (learned, learned, turned)]
    words = ["".join(LETTERS[byte] for byte in word.encode()) for word in " ".join(CORPUS).split()]
    tokens = [[[token.value for token in model.tokenize(word)] for word in words] for model in models]
    assert tokens[0] == tokens[1] != tokens[2]


def test_no_entry_holds_a_part_of_a_character_and_more(trained: KoEnClipTokenizerFast) -> None:
    entries = bytes_of(trained, range(len(trained) - 3))
    assert {bytes([byte]) for byte in range(256)} == {entry for entry in entries if len(entry) == 1}
    assert len(set(entries)) == len(entries)
    for entry in entries:
        assert len(entry) == 1 or is_text(entry) or is_start_of_a_character(entry), entry
    syllables = [entry for entry in entries if is_text(entry) and any("가" <= mark <= "힣" for mark in entry.decode())]
    assert len(syllables) > 50
    # The twin: an entry that BPE over bytes would make.
    assert not is_start_of_a_character("가".encode() + "각".encode()[:2])


def test_special_ids_are_last(trained: KoEnClipTokenizerFast) -> None:
    assert trained.eos_token_id == 899 == max(trained.get_vocab().values())
    assert {trained.pad_token_id, trained.bos_token_id} == {897, 898}
    assert sorted(trained.get_vocab().values()) == list(range(900))


# No text is lost


@pytest.mark.parametrize(
    "text",
    [
        "a" * 1_000_000,
        "가" * 333_333,
        "🐶" * 250_000,
        "\u200b" * 300_000 + "a",
        "a " * 100_000,
        "שלום עולם مرحبا بالعالم \u202eabc",
        "大韓民國 漢字와 かな カナ",
        "👨‍👩‍👧‍👦👩🏿‍🚀 👍🏽🇰🇷 🏳️‍🌈1️⃣",
        "https://example.com/a?b=C&d=%20#e_f user@example.com",
        "3.5kg 1,234원 25°C 50% 2022-12-31 ½ ² m/s²",
        "CLIP모델을 GPU에서 don't , . ! ? n't 's",
        "\x00\x01 \ud7a4 \U0010ffff \ufffd \ufffe",
    ],
    ids=lambda text: ascii(text[:8]),
)
def test_text_comes_back_normalised(text: str, trained: KoEnClipTokenizerFast) -> None:
    normal = text_normalizer().normalize_str(text)
    found = own_ids(trained, text)
    assert trained.decode(found) == normal
    assert trained.decode(found[:-1]) != normal
    assert set(found).isdisjoint(trained.all_special_ids)


def test_random_texts_come_back_normalised(trained: KoEnClipTokenizerFast) -> None:
    normal = list(map(text_normalizer().normalize_str, RANDOM_TEXTS))
    assert trained.batch_decode(trained(RANDOM_TEXTS)["input_ids"], skip_special_tokens=True) == normal
    assert normal != RANDOM_TEXTS


@pytest.mark.parametrize("mark", ["ㅋ", "ㅠ", "ㅎ", "하"])
def test_runs_cost_few_tokens_where_training_texts_have_them(mark: str) -> None:
    runs = [f"{word} {letter * length}" for length in range(2, 12) for letter in "ㅋㅠㅎ하" for word in ("음", "네")]
    single = [f"{word} {letter}" for letter in "ㅋㅠㅎ하" for word in ("음", "네")] * 10
    with_runs, without = (train_tokenizer(texts, TokenizerSettings(vocab_size=600)) for texts in (runs, single))
    assert len(own_ids(with_runs, mark * 10)) <= 4
    assert len(own_ids(without, mark * 10)) >= 10
