"""Figures of tokenizers on held-out texts, and of a vocabulary's use in the texts that it was trained on.

Tokens a word, also called fertility, is what multilingual tokenizers are compared by (Rust et al. 2021, "How Good is
Your Tokenizer?", section 3.2). `tokenizer_report.py` sets the figures side by side.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from .pieces import is_part, pieces

_Item = TypeVar("_Item")

Texts = Mapping[tuple[str, str], Sequence[str]]
"""Texts by language and source: {("ko", "xm3600"): [...], ("en", "xm3600"): [...]}."""

LIMITS = (32, 64, 77)
"""Lengths at which text towers cut: short captions, SigLIP (Zhai et al. 2023) and CLIP (Radford et al. 2021)."""
LONGEST_BIN = 128
"""Of the histogram; this length and all beyond are counted together."""
SELDOM = 10
"""An entry seen fewer times than this in training has hardly been learned."""

_CHUNK = 4096
_DRAWS = 1000
_FULL_WIDTH = {code + 0xFEE0: code for code in range(0x21, 0x7F)}
_ROW = np.dtype(
    [
        ("words", "i8"),
        ("characters", "i8"),
        ("tokens", "i8"),
        ("nfd_tokens", "i8"),
        ("nfd_same_ids", "?"),
        ("unknown", "?"),
        ("round_trip", "?"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class TextFigures:
    """What a tokenizer makes of the texts of one language, from one source or from all.

    Texts are composed (NFC) first. Words stand between white space; characters are code points other than white space.
    Tokens are those of the text alone. A length is what a model sees: the tokens and the special ones around them.
    Shares are between 0 and 1.
    """

    language: str
    source: str | None
    """None: all sources of the language together."""
    num_texts: int
    """Texts measured."""
    num_empty_texts: int
    """Texts left out because there is nothing but white space in them."""
    num_words: int
    num_characters: int
    num_tokens: int
    tokens_per_word: float
    tokens_per_word_low: float
    """Lower end of the 95 % bootstrap interval over texts."""
    tokens_per_word_high: float
    """Upper end of it."""
    tokens_per_character: float
    length_mean: float
    length_median: float
    length_p95: int
    """The shortest length that 95 % of the texts do not pass."""
    length_longest: int
    length_histogram: tuple[int, ...]
    """Texts of length 0, 1 and so on; the last counts `LONGEST_BIN` and beyond."""
    truncated: Mapping[int, float]
    """Share of texts longer than each of `LIMITS`."""
    unknown: float | None
    """Share of texts with an unknown token; None where the tokenizer has none."""
    round_trip: float
    """Share of texts whose decoding is `same_text`."""
    nfd_tokens_per_word: float
    """Of the same texts, decomposed (NFD)."""
    nfd_same_ids: float
    """Share of texts whose ids are the same composed and decomposed."""
    character_parts: float
    """Share of tokens that hold a part of a character: they mean nothing by themselves."""
    num_entries_used: int
    """Different ids that occur in the composed texts."""
    entries_used: float
    """The same as a share of the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class TokenizerFigures:
    """A tokenizer and what it makes of texts."""

    tokenizer_class: str
    num_entries: int
    """Of the vocabulary, special tokens included."""
    num_special_tokens: int
    """What the tokenizer puts around a single text, such as BOS and EOS."""
    num_entries_used: int
    """Different ids that occur in any of the texts."""
    entries_used: float
    """The same as a share of the vocabulary."""
    languages: tuple[TextFigures, ...]
    """One for each language, over all its sources."""
    sources: tuple[TextFigures, ...]
    """One for each language and source."""


@dataclass(frozen=True, kw_only=True)
class TrainingSource:
    """Texts of one language and source that a vocabulary was trained on."""

    language: str
    source: str
    num_texts: int
    num_words: int


@dataclass(frozen=True, kw_only=True)
class VocabularyUse:
    """How often the entries of a vocabulary occur in the texts of its training sources, each text once."""

    num_entries: int
    """Special tokens included."""
    num_special_entries: int
    """Special tokens; no text has them, so the next two leave them out."""
    num_never_seen: int
    """Entries that no text has."""
    num_seldom_seen: int
    """Entries seen fewer than `SELDOM` times, those never seen included."""
    num_texts: int
    num_tokens: int
    sources: tuple[TrainingSource, ...]


def measure_tokenizer(tokenizer: PreTrainedTokenizerBase, texts: Texts) -> TokenizerFigures:
    """Figures of a tokenizer, fast or slow, by source, and by language over all sources.

    Texts of white space alone are left out and counted.

    Raises:
        ValueError: there is no source, or one without a text, or one of whose texts the tokenizer makes nothing.
    """
    if not texts:
        raise ValueError("there are no texts to measure a tokenizer on; give at least one language and source.")
    tables, entries, num_empty = {}, {}, {}
    for key, given in texts.items():
        kept = [unicodedata.normalize("NFC", text) for text in given if text.strip()]
        if not kept:
            raise ValueError(f"source {key[1]!r} of language {key[0]!r} holds no text; leave it out or fill it.")
        tables[key], entries[key] = _count(tokenizer, kept)
        num_empty[key] = len(given) - len(kept)

    def figures(language: str, source: str | None) -> TextFigures:
        keys = [key for key in texts if key[0] == language and source in (None, key[1])]
        return _figures(
            tokenizer,
            language=language,
            source=source,
            num_empty_texts=sum(num_empty[key] for key in keys),
            table=np.concatenate([tables[key] for key in keys]),
            counts=sum((entries[key] for key in keys), Counter[int]()),
        )

    num_entries_used = len(sum(entries.values(), Counter[int]()))
    return TokenizerFigures(
        tokenizer_class=type(tokenizer).__name__,
        num_entries=len(tokenizer),
        num_special_tokens=tokenizer.num_special_tokens_to_add(),
        num_entries_used=num_entries_used,
        entries_used=num_entries_used / len(tokenizer),
        languages=tuple(figures(language, None) for language in dict.fromkeys(key[0] for key in texts)),
        sources=tuple(figures(language, source) for language, source in texts),
    )


def same_text(decoded: str, text: str) -> bool:
    """Whether a decoding is the text, up to case, white space and Unicode form.

    White space is taken out, letters are case-folded, and characters are composed (NFC), full-width ASCII counting as
    ASCII. Not NFKC: it would hide that a tokenizer takes jamo such as those of laughter for other ones.
    """
    return _folded(decoded) == _folded(text)


def vocabulary_use(tokenizer: PreTrainedTokenizerBase, texts: Iterable[tuple[tuple[str, str], str]]) -> VocabularyUse:
    """How often training texts use the entries of a vocabulary; the texts pass in a stream, with a progress bar.

    Args:
        tokenizer: fast or slow.
        texts: each with its language and source: (("ko", "xm3600"), "...").

    Raises:
        ValueError: there is no text.
    """
    ids = np.array(sorted(tokenizer.get_vocab().values()), dtype=np.int64)
    ids = ids[~np.isin(ids, tokenizer.all_special_ids)]
    counts = np.zeros(max(len(tokenizer), int(ids.max(initial=0)) + 1), dtype=np.int64)
    num_texts: Counter[tuple[str, str]] = Counter()
    num_words: Counter[tuple[str, str]] = Counter()
    num_tokens = 0
    for chunk in _chunks(tqdm(texts, desc="use of the vocabulary", unit="text", unit_scale=True, leave=False)):
        found = np.fromiter((id for row in encode(tokenizer, [text for _, text in chunk]) for id in row), np.int64)
        counts += np.bincount(found, minlength=counts.size)
        num_tokens += found.size
        for key, text in chunk:
            num_texts[key] += 1
            num_words[key] += len(text.split())
    if not num_texts:
        raise ValueError("there is no training text to count a vocabulary's use in.")
    seen = counts[ids]
    return VocabularyUse(
        num_entries=len(tokenizer),
        num_special_entries=len(tokenizer) - ids.size,
        num_never_seen=int((seen == 0).sum()),
        num_seldom_seen=int((seen < SELDOM).sum()),
        num_texts=num_texts.total(),
        num_tokens=num_tokens,
        sources=tuple(
            TrainingSource(language=key[0], source=key[1], num_texts=num, num_words=num_words[key])
            for key, num in num_texts.items()
        ),
    )


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts, whole and without special tokens around them."""
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        padding=False,
        truncation=False,
        # Texts are data, and a special token spelled out in one is text.
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        # Texts longer than the model takes are measured, not fed to it.
        verbose=False,
    )
    return encoded["input_ids"]


def _count(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[np.ndarray, Counter[int]]:
    """A row for each text, and how often each id occurs; texts are composed and not empty."""
    tables, entries = [], Counter[int]()
    with tqdm(total=len(texts), desc="texts", unit="text", unit_scale=True, leave=False) as bar:
        for chunk in _chunks(texts):
            composed = encode(tokenizer, chunk)
            decomposed = encode(tokenizer, [unicodedata.normalize("NFD", text) for text in chunk])
            decoded = tokenizer.batch_decode(composed, clean_up_tokenization_spaces=False)
            rows = []
            for text, ids, nfd_ids, back in zip(chunk, composed, decomposed, decoded, strict=True):
                words = text.split()
                unknown = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids
                sizes = (len(words), sum(map(len, words)), len(ids), len(nfd_ids))
                rows.append((*sizes, ids == nfd_ids, unknown, same_text(back, text)))
                entries.update(ids)
            tables.append(np.array(rows, dtype=_ROW))
            bar.update(len(chunk))
    return np.concatenate(tables), entries


def _figures(
    tokenizer: PreTrainedTokenizerBase,
    *,
    language: str,
    source: str | None,
    num_empty_texts: int,
    table: np.ndarray,
    counts: Counter[int],
) -> TextFigures:
    """Figures over the rows of a table."""
    parts = [number for number, piece in zip(counts, pieces(tokenizer, list(counts)), strict=True) if is_part(piece)]
    words, characters, tokens = (int(table[name].sum()) for name in ("words", "characters", "tokens"))
    if tokens == 0:
        raise ValueError(f"{type(tokenizer).__name__} makes no token of any text of {language!r}, source {source!r}.")
    lengths = table["tokens"] + tokenizer.num_special_tokens_to_add()
    low, high = _ratio_interval(table["tokens"], table["words"])
    return TextFigures(
        language=language,
        source=source,
        num_texts=table.size,
        num_empty_texts=num_empty_texts,
        num_words=words,
        num_characters=characters,
        num_tokens=tokens,
        tokens_per_word=tokens / words,
        tokens_per_word_low=low,
        tokens_per_word_high=high,
        tokens_per_character=tokens / characters,
        length_mean=float(lengths.mean()),
        length_median=float(np.median(lengths)),
        length_p95=int(np.quantile(lengths, 0.95, method="inverted_cdf")),
        length_longest=int(lengths.max()),
        length_histogram=tuple(np.bincount(lengths.clip(max=LONGEST_BIN), minlength=LONGEST_BIN + 1).tolist()),
        truncated={limit: float((lengths > limit).mean()) for limit in LIMITS},
        unknown=None if tokenizer.unk_token_id is None else float(table["unknown"].mean()),
        round_trip=float(table["round_trip"].mean()),
        nfd_tokens_per_word=float(table["nfd_tokens"].sum() / words),
        nfd_same_ids=float(table["nfd_same_ids"].mean()),
        character_parts=sum(counts[number] for number in parts) / tokens,
        num_entries_used=len(counts),
        entries_used=len(counts) / len(tokenizer),
    )


def _ratio_interval(above: np.ndarray, below: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Ends of the 95 % percentile bootstrap interval of sum(above) / sum(below) over 1,000 draws of the texts.

    Texts with the same two numbers are alike, so how many of each kind a draw holds is multinomial: the same
    distribution as drawing texts, at a cost that does not grow with their number.
    """
    kinds, counts = np.unique(np.stack([above, below], axis=1), axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(above.size, counts / above.size, size=_DRAWS)
    sums = draws @ kinds
    low, high = np.quantile(sums[:, 0] / sums[:, 1], (0.025, 0.975))
    return float(low), float(high)


def _folded(text: str) -> str:
    text = unicodedata.normalize("NFC", text).translate(_FULL_WIDTH).casefold()
    return unicodedata.normalize("NFC", "".join(text.split()))


def _chunks(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    stream = iter(items)
    while chunk := list(islice(stream, _CHUNK)):
        yield chunk
