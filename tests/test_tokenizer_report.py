"""The report on tokenizers: hand-worked figures, a loop over texts as oracle, and a page that agrees with the JSON."""

import copy
import dataclasses
import json
import re
import statistics
import unicodedata
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from training_texts import TRAINING_TEXTS
from transformers import ByT5Tokenizer, CLIPTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ko_en_clip import KoEnClipTokenizerFast
from ko_en_clip.evaluation import tokenizers
from ko_en_clip.evaluation.pieces import pieces
from ko_en_clip.evaluation.tokenizer_report import tokenizer_page, write_tokenizer_report
from ko_en_clip.evaluation.tokenizers import (
    LIMITS,
    Texts,
    TrainingSource,
    measure_tokenizer,
    same_text,
    vocabulary_use,
)
from ko_en_clip.tokenizer_training import TokenizerSettings, train_tokenizer

WORDS = ("[UNK]", "[CLS]", "a", "dog", "개", "한", "마리", "runs", ".")
TEXTS: Texts = {
    ("ko", "one"): ["한 마리 개", " \t", "개 고양이"],
    ("ko", "two"): ["개."],
    ("en", "one"): ["a dog runs.", "A dog"],
}


def word_tokenizer(*more: str) -> PreTrainedTokenizerFast:
    """A word or a mark a token, [CLS] before each text."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate((*WORDS, *more))}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]")


def without_interval(figures: Any) -> dict[str, Any]:
    """Figures without the bootstrap, which has tests of its own, and with the histogram as what is not zero."""
    found = dataclasses.asdict(figures)
    del found["tokens_per_word_low"], found["tokens_per_word_high"]
    found["length_histogram"] = {length: n for length, n in enumerate(found["length_histogram"]) if n}
    return found


# Figures


def test_figures_are_those_worked_out_by_hand() -> None:
    figures = measure_tokenizer(word_tokenizer(), TEXTS)
    assert (figures.num_entries, figures.num_special_tokens) == (9, 1)
    assert (figures.num_entries_used, figures.entries_used) == (8, 8 / 9)
    assert [group.language for group in figures.languages] == ["ko", "en"]
    assert [(group.language, group.source) for group in figures.sources] == list(TEXTS)
    assert without_interval(figures.languages[0]) == {
        "language": "ko",
        "source": None,
        "num_texts": 3,
        "num_empty_texts": 1,
        "num_words": 3 + 2 + 1,
        "num_characters": 4 + 4 + 2,
        # One for each word, and one for the full stop.
        "num_tokens": 3 + 2 + 2,
        "tokens_per_word": 7 / 6,
        "tokens_per_character": 7 / 10,
        "length_mean": 10 / 3,
        "length_median": 3.0,
        "length_p95": 4,
        "length_longest": 4,
        "length_histogram": {3: 2, 4: 1},
        "truncated": {32: 0.0, 64: 0.0, 77: 0.0},
        # The cat is not in the vocabulary, so that text does not come back either.
        "unknown": 1 / 3,
        "round_trip": 2 / 3,
        # Decomposed, each Korean word is an unknown one.
        "nfd_tokens_per_word": 7 / 6,
        "nfd_same_ids": 0.0,
        "character_parts": 0.0,
        "num_entries_used": 5,
        "entries_used": 5 / 9,
    }
    assert without_interval(figures.languages[1]) == {
        **without_interval(figures.sources[2]),
        "source": None,
        "num_empty_texts": 0,
        "num_words": 3 + 2,
        "num_characters": 9 + 4,
        "num_tokens": 4 + 2,
        "length_histogram": {3: 1, 5: 1},
        "length_median": 4.0,
        "length_p95": 5,
        "unknown": 1 / 2,
        "round_trip": 1 / 2,
        "nfd_same_ids": 1.0,
    }
    assert without_interval(figures.sources[1])["num_tokens"] == 2


def test_another_vocabulary_has_other_figures() -> None:
    """The twin of the table above: two more words, and nothing is unknown."""
    figures = measure_tokenizer(word_tokenizer("고양이", "A"), TEXTS)
    assert [group.unknown for group in figures.languages] == [0.0, 0.0]
    assert [group.round_trip for group in figures.languages] == [1.0, 1.0]
    assert (figures.num_entries, figures.num_entries_used) == (11, 9)


def test_truncation_counts_special_tokens_and_long_texts_share_a_bin() -> None:
    num_words = (31, 32, 63, 64, 76, 77, 126, 127, 200)
    (figures,) = measure_tokenizer(word_tokenizer(), {("en", "one"): ["dog " * n for n in num_words]}).languages
    # [CLS] makes 32 words 33 tokens.
    assert figures.truncated == {32: 8 / 9, 64: 6 / 9, 77: 4 / 9}
    assert figures.length_histogram[127] == 1
    assert figures.length_histogram[128] == 2
    assert len(figures.length_histogram) == 129
    assert sum(figures.length_histogram) == figures.num_texts == 9
    assert figures.length_longest == 201


def mixed_texts() -> dict[tuple[str, str], list[str]]:
    """Enough texts that lengths differ, some decomposed, some long."""
    texts: dict[tuple[str, str], list[str]] = {("ko", "a"): [], ("ko", "b"): [], ("en", "a"): []}
    for number, text in enumerate(TRAINING_TEXTS):
        key = ("ko", "ab"[number % 2]) if re.search("[\u1100-\u11ff가-힣]", text) else ("en", "a")
        texts[key] += [text, f"{text} ＡＢ\u3000{number}!", f"{text} " * (number + 1)]
    # A syllable that no training text has.
    texts["ko", "b"].append("뷁")
    return texts


def looped(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> dict[str, Any]:
    """The figures of texts, one text at a time."""
    texts = [unicodedata.normalize("NFC", text) for text in texts]
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    nfd = [tokenizer.encode(unicodedata.normalize("NFD", text), add_special_tokens=False) for text in texts]
    lengths = [len(tokenizer.encode(text, add_special_tokens=True)) for text in texts]
    words = sum(len(re.findall(r"\S+", text)) for text in texts)
    characters = sum(not mark.isspace() for text in texts for mark in text)
    used = {number for row in ids for number in row}
    # ByT5's first three ids are special; bytes from 128 on are parts of characters, and decode to nothing alone.
    parts = sum(
        number >= 128 + 3 if isinstance(tokenizer, ByT5Tokenizer) else "\ufffd" in tokenizer.decode([number])
        for row in ids
        for number in row
    )
    return {
        "num_texts": len(texts),
        "num_words": words,
        "num_characters": characters,
        "num_tokens": sum(map(len, ids)),
        "tokens_per_word": sum(map(len, ids)) / words,
        "tokens_per_character": sum(map(len, ids)) / characters,
        "length_mean": sum(lengths) / len(lengths),
        "length_median": statistics.median(lengths),
        "length_p95": min(n for n in lengths if sum(m <= n for m in lengths) >= 0.95 * len(lengths)),
        "length_longest": max(lengths),
        "length_histogram": dict(sorted(Counter(min(n, 128) for n in lengths).items())),
        "truncated": {limit: sum(n > limit for n in lengths) / len(lengths) for limit in LIMITS},
        "round_trip": sum(same_text(str(tokenizer.decode(row)), text) for row, text in zip(ids, texts, strict=True))
        / len(texts),
        "nfd_tokens_per_word": sum(map(len, nfd)) / words,
        "nfd_same_ids": sum(a == b for a, b in zip(ids, nfd, strict=True)) / len(texts),
        "character_parts": parts / sum(map(len, ids)),
        "num_entries_used": len(used),
        "entries_used": len(used) / len(tokenizer),
    }


@pytest.mark.parametrize("chunk", [2, 4096])
@pytest.mark.parametrize("kind", ["ours", "slow"])
def test_figures_agree_with_a_loop_over_texts(
    kind: str, chunk: int, tiny_tokenizer: KoEnClipTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer if kind == "ours" else ByT5Tokenizer()
    assert tokenizer.is_fast == (kind == "ours")
    monkeypatch.setattr(tokenizers, "_CHUNK", chunk)
    texts = mixed_texts()
    figures = measure_tokenizer(tokenizer, texts)
    found = {(group.language, group.source): without_interval(group) for group in figures.sources + figures.languages}
    assert set(found) == {*texts, ("ko", None), ("en", None)}
    for (language, source), group in found.items():
        chosen = [t for key in texts if key[0] == language and source in (None, key[1]) for t in texts[key]]
        expected = looped(tokenizer, chosen)
        assert {name: group[name] for name in expected} == expected
    # The twin: another source has other figures.
    assert found["ko", "a"]["num_tokens"] != found["ko", "b"]["num_tokens"]
    assert found["ko", None]["character_parts"] > found["en", None]["character_parts"]
    assert found["ko", None]["num_tokens"] == found["ko", "a"]["num_tokens"] + found["ko", "b"]["num_tokens"]


def test_histograms_of_sources_add_up_to_their_language(tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    figures = measure_tokenizer(tiny_tokenizer, mixed_texts())
    korean, english = (np.array(group.length_histogram) for group in figures.languages)
    a, b, other = (np.array(group.length_histogram) for group in figures.sources)
    assert korean.tolist() == (a + b).tolist() != english.tolist()
    assert english.tolist() == other.tolist()


def test_interval_is_that_of_drawing_texts() -> None:
    """Against 20,000 draws of texts. The end of 1,000 draws has a standard error of about 0.02 of the width."""
    rng = np.random.default_rng(1)
    words = rng.integers(1, 12, size=500)
    texts = [" ".join(rng.choice(["dog", "dog.", "a.dog.runs."], size=n)) for n in words]
    (figures,) = measure_tokenizer(word_tokenizer(), {("en", "one"): texts}).languages
    tokens = np.array([len(re.findall(r"\w+|\.", text)) for text in texts])
    draws = rng.integers(500, size=(20_000, 500))
    low, high = np.quantile(tokens[draws].sum(1) / words[draws].sum(1), (0.025, 0.975))
    assert figures.tokens_per_word_low < figures.tokens_per_word < figures.tokens_per_word_high
    assert figures.tokens_per_word_low == pytest.approx(low, abs=0.1 * (high - low))
    assert figures.tokens_per_word_high == pytest.approx(high, abs=0.1 * (high - low))
    # The twin: with all texts alike there is nothing to be unsure of.
    (alike,) = measure_tokenizer(word_tokenizer(), {("en", "one"): ["dog. a"] * 50}).languages
    assert alike.tokens_per_word_low == alike.tokens_per_word == alike.tokens_per_word_high == 1.5


def test_decomposed_texts_cost_more_without_nfc(tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    texts = {("ko", "one"): ["눈 덮인 산과 호수", "123"]}
    without = copy.deepcopy(tiny_tokenizer)
    without.backend_tokenizer.normalizer = None
    (composing,), (plain,) = (measure_tokenizer(t, texts).languages for t in (tiny_tokenizer, without))
    assert composing.nfd_same_ids == 1.0
    assert composing.nfd_tokens_per_word == composing.tokens_per_word
    # Digits have one form only.
    assert plain.nfd_same_ids == 0.5
    assert plain.nfd_tokens_per_word > 1.5 * plain.tokens_per_word


@pytest.mark.parametrize(
    ("decoded", "text", "same"),
    [
        (" a photo", "A Photo", True),
        (" a photo", "A Photos", False),
        ("don ' t", "don't", True),
        (unicodedata.normalize("NFD", "서울"), "서울", True),
        ("abc 1!", "ＡＢＣ\u3000１！", True),
        ("cafe", "café", False),
        # What NFKC makes of letters that stand alone.
        (unicodedata.normalize("NFKC", "ㅋㅋㅋ"), "ㅋㅋㅋ", False),
        ("ㅋㅋㅋ", "ㅋㅋㅋ", True),
        ("a\u200bb", "ab", False),
    ],
)
def test_same_text_up_to_case_space_and_form(decoded: str, text: str, same: bool) -> None:
    assert same_text(decoded, text) is same


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        ({}, "no texts to measure"),
        ({("ko", "one"): ["개"], ("ko", "two"): [" ", ""]}, "source 'two' of language 'ko'"),
    ],
)
def test_nothing_to_measure_is_refused(texts: Texts, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        measure_tokenizer(word_tokenizer(), texts)


def test_texts_that_come_to_nothing_are_refused(tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    assert measure_tokenizer(tiny_tokenizer, {("ko", "one"): ["\u200b", "개"]}).languages[0].num_texts == 2
    with pytest.raises(ValueError, match="makes no token of any text of 'ko'"):
        measure_tokenizer(tiny_tokenizer, {("ko", "one"): ["\u200b"]})


# Use of the vocabulary


@pytest.mark.parametrize("chunk", [3, 4096])
def test_use_of_the_vocabulary_agrees_with_a_counter(
    chunk: int, tiny_tokenizer: KoEnClipTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizers, "_CHUNK", chunk)
    labels = [("ko", "a"), ("en", "a"), ("ko", "b")]
    labelled = [(labels[number % 3], text) for number, text in enumerate(TRAINING_TEXTS * 3)]
    use = vocabulary_use(tiny_tokenizer, iter(labelled))
    counts = Counter(
        number for _, text in labelled for number in tiny_tokenizer.encode(text, add_special_tokens=False)
    )
    ordinary = set(range(len(tiny_tokenizer))) - set(tiny_tokenizer.all_special_ids)
    assert (use.num_entries, use.num_special_entries) == (400, 3)
    assert use.num_never_seen == sum(counts[number] == 0 for number in ordinary) > 100
    assert use.num_seldom_seen == sum(counts[number] < 10 for number in ordinary) > use.num_never_seen
    assert (use.num_texts, use.num_tokens) == (len(labelled), counts.total())
    assert use.sources == tuple(
        TrainingSource(
            language=language,
            source=source,
            num_texts=12,
            num_words=sum(len(text.split()) for key, text in labelled if key == (language, source)),
        )
        for language, source in labels
    )
    # The twin: ten times the texts, and what was seen at all is not seldom.
    assert vocabulary_use(tiny_tokenizer, labelled * 10).num_seldom_seen == use.num_never_seen


def test_use_without_texts_is_refused(tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    with pytest.raises(ValueError, match="no training text"):
        vocabulary_use(tiny_tokenizer, iter([]))


# Pieces


def joined(shown: list[str]) -> str:
    """Pieces put together again, <EB> being a byte."""
    parts = re.split("<([0-9A-F]{2})>", "".join(shown).replace("\u2423", ""))
    return b"".join(bytes.fromhex(part) if place % 2 else part.encode() for place, part in enumerate(parts)).decode()


@pytest.mark.parametrize("vocab_size", [259, 300, 400])
def test_pieces_hold_every_byte_of_the_text(vocab_size: int) -> None:
    tokenizer = train_tokenizer(TRAINING_TEXTS, TokenizerSettings(vocab_size=vocab_size, min_frequency=1))
    for text in (*TRAINING_TEXTS, "뷁 \U00010000\U00100000é 漢\u07ff\ue000"):
        wanted = "".join(unicodedata.normalize("NFC", text).lower().split())
        for reader in (tokenizer, ByT5Tokenizer()):
            shown = pieces(reader, reader.encode(text.lower(), add_special_tokens=False))
            assert unicodedata.normalize("NFC", joined(shown)) == wanted


def test_pieces_show_text_or_bytes() -> None:
    letters = train_tokenizer(TRAINING_TEXTS, TokenizerSettings(vocab_size=259))
    assert pieces(letters, letters.encode("개a", add_special_tokens=False)) == ["\u2423", "<EA>", "<B0>", "<9C>", "a"]
    whole = train_tokenizer(["개집 개집"], TokenizerSettings(vocab_size=300))
    assert pieces(whole, whole.encode("개집", add_special_tokens=False)) == ["개집"]
    assert pieces(whole, []) == []
    words = word_tokenizer()
    assert pieces(words, words.encode("개 고양이", add_special_tokens=False)) == ["개", "[UNK]"]


def test_pieces_of_other_byte_vocabularies() -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    clip = CLIPTokenizer(vocab={token: number for number, token in enumerate(vocabulary)}, merges=[])
    assert pieces(clip, clip.encode("개 a", add_special_tokens=False)) == ["<EA>", "<B0>", "<9C>", "a"]
    # As SentencePiece falls back on bytes.
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "a"]
    backend = Tokenizer(
        models.BPE({token: n for n, token in enumerate(vocabulary)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    fallback = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert pieces(fallback, fallback.encode("개a", add_special_tokens=False)) == ["<EA>", "<B0>", "<9C>", "a"]


# The files


class Page(HTMLParser):
    """Tables by id, as rows of cells; texts of tags; paths by class."""

    def __init__(self, page: str):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: Counter[str] = Counter()
        self.bold: list[str] = []
        self.bars: list[str] = []
        self._rows: list[list[str]] = []
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        attributes = dict(attrs)
        self.tags[tag] += 1
        self._open = tag
        if tag == "table":
            self._rows = self.tables[attributes["id"]] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "b":
            self.bold.append("")
        elif tag == "path" and attributes.get("class") == "bars":
            self.bars.append(attributes["d"])

    def handle_endtag(self, tag: str) -> None:
        if tag in ("table", "b"):
            self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in ("td", "th", "small", "br") and self._rows:
            self._rows[-1][-1] += f" {data}"
        elif self._open == "b":
            self.bold[-1] += data

    def row(self, table: str, *heads: str) -> list[str]:
        """The cells of the row that begins so, the first ones left out."""
        (found,) = (
            row[len(heads) :]
            for row in self.tables[table]
            if all(cell.strip().startswith(head) for cell, head in zip(row, heads, strict=False))
        )
        return found


def says(cell: str, value: float | None, *, percent: bool = False) -> bool:
    """Whether a cell begins with a number, to the digits that it prints."""
    printed = cell.split()
    if value is None:
        return printed == ["–"]
    number = printed[0].replace(",", "")
    digits = len(number.partition(".")[2])
    # Half a unit of the last printed digit, and what binary fractions lack.
    return abs(float(number) - value * (100 if percent else 1)) <= 0.5 * 10**-digits + 1e-9 and (
        ("%" in printed) is percent
    )


@pytest.fixture
def report(tiny_tokenizer: KoEnClipTokenizerFast, tmp_path: Path) -> Path:
    labelled = [(("ko", "train"), text) for text in TRAINING_TEXTS]
    write_tokenizer_report(
        tmp_path,
        tokenizers={"ours": tiny_tokenizer, "words": word_tokenizer(), "bytes": ByT5Tokenizer()},
        texts=mixed_texts(),
        vocabulary=vocabulary_use(tiny_tokenizer, labelled),
    )
    return tmp_path


def mismatches(document: dict[str, Any], page: Page) -> list[str]:
    """Figures of the document that the page's tables do not show."""
    checks: list[tuple[str, bool]] = []
    ours = document["tokenizers"][0]
    head = {
        "Tokens a word": "tokens_per_word",
        "Tokens a character": "tokens_per_character",
        "Mean": "length_mean",
        "Median": "length_median",
        "95th": "length_p95",
        "Longest": "length_longest",
        "Parts of characters": "character_parts",
        "Texts with an unknown": "unknown",
        "Texts that come back": "round_trip",
        "Texts that read the same": "nfd_same_ids",
    }
    shares = {"character_parts", "unknown", "round_trip", "nfd_same_ids"}
    for label, name in head.items():
        cells = page.row("head", label)
        for cell, group in zip(cells, ours["languages"], strict=False):
            checks.append((name, says(cell, group[name], percent=name in shares and group[name] is not None)))
        if ours["languages"][0][name] is not None:
            gap = ours["languages"][0][name] - ours["languages"][1][name]
            checks.append((f"gap of {name}", says(cells[2], 100 * gap if name in shares else gap)))
    for limit in document["limits"]:
        for cell, group in zip(page.row("head", f"Texts longer than {limit}"), ours["languages"], strict=False):
            checks.append((f"truncated {limit}", says(cell, group["truncated"][str(limit)], percent=True)))
    for place, tokenizer in enumerate(document["tokenizers"]):
        name = tokenizer["name"]
        for number, group in enumerate(tokenizer["languages"]):
            cells = page.row(f"peers-{group['language']}", name)
            plain = [tokenizer["num_entries"], *(group[key] for key in list(head.values())[:6])]
            checks += [(f"{name} {n}", says(*both)) for n, both in enumerate(zip(cells[:7], plain, strict=True))]
            low, _, high = cells[1].split()[1:]
            checks.append((f"{name} low", says(low, group["tokens_per_word_low"])))
            checks.append((f"{name} high", says(high, group["tokens_per_word_high"])))
            rest = [*(group["truncated"][str(limit)] for limit in document["limits"])]
            rest += [group["character_parts"], group["unknown"], group["round_trip"]]
            checks += [
                (f"{name} share {n}", says(cell, value, percent=value is not None))
                for n, (cell, value) in enumerate(zip(cells[7:], rest, strict=True))
            ]
            times = group["nfd_tokens_per_word"] / group["tokens_per_word"]
            a, b, c, d = page.row("nfd", name)[4 * number : 4 * number + 4]
            checks.append((f"{name} nfd", says(a, group["tokens_per_word"]) and says(b, group["nfd_tokens_per_word"])))
            checks.append((f"{name} nfd ids", says(c, times) and says(d, group["nfd_same_ids"], percent=True)))
            used = page.row("entries", name)[1 + number].split()
            checks.append((f"{name} used", says(used[0], group["num_entries_used"])))
            checks.append((f"{name} used share", says(" ".join(used[1:]), group["entries_used"], percent=True)))
        for group in tokenizer["sources"]:
            language = {"ko": "Korean", "en": "English"}[group["language"]]
            cells = page.row("sources", group["source"], language)
            sizes = [group[key] for key in ("num_texts", "num_words", "num_characters")]
            checks += [("sizes", says(cell, value)) for cell, value in zip(cells[:3], sizes, strict=True)]
            checks.append((f"{name} source", says(cells[3 + place], group["tokens_per_word"])))
    use = document["vocabulary"]
    values = [int(row[1].replace(",", "")) for row in page.tables["vocabulary"][1:]]
    names = ["num_entries", "num_special_entries", "num_never_seen", "num_seldom_seen", "num_texts", "num_tokens"]
    checks += [(key, use[key] == value) for key, value in zip(names, values, strict=True)]
    return [what for what, right in checks if not right]


def test_page_says_what_the_json_says(report: Path) -> None:
    document = json.loads((report / "report.json").read_text(encoding="utf-8"))
    page = Page((report / "report.html").read_text(encoding="utf-8"))
    assert document["schema_version"] == 1
    assert mismatches(document, page) == []
    # The twins: a figure changed in one of the two.
    for name in ("tokens_per_word", "num_entries_used", "round_trip", "nfd_tokens_per_word"):
        other = copy.deepcopy(document)
        other["tokenizers"][0]["languages"][0][name] *= 0.9
        assert mismatches(other, page)
        if name != "num_entries_used":
            assert mismatches(other, Page(tokenizer_page(other))) == []


def test_bars_are_as_high_as_the_histogram(report: Path) -> None:
    document = json.loads((report / "report.json").read_text(encoding="utf-8"))
    page = Page((report / "report.html").read_text(encoding="utf-8"))
    assert len(page.bars) == 2
    for number, bars in enumerate(page.bars):
        counts = np.array(document["tokenizers"][0]["languages"][number]["length_histogram"])
        floor = float(re.match(r"M\S+ (\S+)", bars)[1])  # type: ignore[index]
        heights = floor - np.array([float(y) for y in re.findall(r"V(\S+)", bars)[:-1]])
        assert heights.shape == counts.shape
        # Places are written to a hundredth.
        np.testing.assert_allclose(heights / heights.max(), counts / counts.max(), atol=0.02 / heights.max())


def test_report_is_one_file_without_scripts_and_leaves_nothing_aside(report: Path) -> None:
    assert sorted(file.name for file in report.iterdir()) == ["report.html", "report.json"]
    page = (report / "report.html").read_text(encoding="utf-8")
    assert not set(Page(page).tags) & {"script", "link", "img", "iframe"}
    assert "http" not in page and "url(" not in page and "@import" not in page


def test_texts_and_names_are_escaped(tiny_tokenizer: KoEnClipTokenizerFast, tmp_path: Path) -> None:
    hostile = "<script>alert('개')</script> & \"x\""
    source, name = '<img src="x">', "<i>ours</i>"
    write_tokenizer_report(
        tmp_path,
        tokenizers={name: tiny_tokenizer},
        texts={("ko", source): [hostile], ("en", source): ["a dog"]},
        vocabulary=vocabulary_use(tiny_tokenizer, [(("ko", source), hostile)]),
    )
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.tags["script"] == page.tags["img"] == 0
    assert hostile in page.bold
    assert page.tables["sources"][1][0].strip() == page.tables["training"][1][0].strip() == source
    assert page.tables["entries"][1][0].strip() == name
    # The twin: written into the page as it is, it would be a tag.
    assert Page(f"<b>{hostile}</b>").tags["script"] == 1


def test_one_language_alone_has_no_gap_and_needs_no_training_texts(tmp_path: Path) -> None:
    write_tokenizer_report(
        tmp_path, tokenizers={"words": word_tokenizer()}, texts={("ja", "one"): ["犬 が 走る"]}, vocabulary=None
    )
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [cell.strip() for cell in page.tables["head"][0]] == ["what", "ja"]
    assert "vocabulary" not in page.tables


def test_report_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tokenizer to report on"):
        write_tokenizer_report(tmp_path, tokenizers={}, texts=TEXTS, vocabulary=None)
    assert not list(tmp_path.iterdir())
