"""Training of the joint Korean-English byte-level BPE; the first stage of the pipeline.

Writes a folder that `AutoTokenizer` loads. Every text rule goes into `tokenizer.json`, so the bare `tokenizers`
library gives the same ids (KELIP keeps lower-casing and special tokens in Python instead; Ko and Gu 2022,
released code).
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from .tokenization_ko_en_clip import KoEnClipTokenizerFast
from .tokenizer_rules import text_normalizer, word_splitter

logger = logging.getLogger(__name__)

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN = "<|pad|>", "<|startoftext|>", "<|endoftext|>"
_SPECIAL_TOKENS = [PAD_TOKEN, BOS_TOKEN, EOS_TOKEN]

# Particles, the plural, the copula, and the endings that captions are full of.
_SUFFIXES = (
    "은|는|이|가|을|를|의|에|에서|에게|로|으로|와|과|도|만|까지|부터|처럼|보다|이랑|랑|께서|한테|에는|에서는"
    "|들|들이|들은|들을|들의|들과|이다|인|이라는"
    "|하는|하고|하며|한|할|해|했다|한다|하다|하지|하게|되는|된|되어|있는|있다|있고|있으며|입니다|습니다"
)
# Where a stem begins inside a run it also begins with the run, so only that is tried: a long run takes linear time.
_STEM = re.compile(rf"(?<![가-힣])([가-힣]{{2,}}?)(?:{_SUFFIXES})(?![가-힣])")

_LETTERS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """What a vocabulary is trained to."""

    vocab_size: int
    """Entries, special tokens included. Fewer come out where the texts hold no more pairs."""
    max_length: int = 77
    """Tokens to which texts are truncated, BOS and EOS included (Radford et al. 2021, released code: 77)."""
    min_frequency: int = 2
    """Times that a character or a pair must occur to be an entry."""

    def __post_init__(self) -> None:
        _check_vocab_size(self.vocab_size)
        if self.max_length < 3:
            raise ValueError(f"max_length is {self.max_length}; BOS, EOS and one token need at least 3.")


def train_tokenizer(texts: Iterable[str], settings: TokenizerSettings) -> KoEnClipTokenizerFast:
    """Train byte-level BPE on `texts`, read once; the special tokens get the last ids, EOS the largest.

    EOS last lets code that pools at the largest id of a text (CLIP's and KELIP's own) pool right. All 256 bytes are in
    the vocabulary, so no text has an unknown token. The same texts give the same vocabulary, in any order.

    Raises:
        ValueError: `texts` holds no text.
    """
    learned = learn_merges(texts, settings, word_splitter())
    tokenizer = _with_rules(byte_level_model(learned, settings), settings.max_length)
    logger.info("trained %d entries on %d texts", len(tokenizer), learned.num_texts)
    return tokenizer


def cut_vocabulary(tokenizer: KoEnClipTokenizerFast, vocab_size: int) -> KoEnClipTokenizerFast:
    """The tokenizer with its first entries only: what training to `vocab_size` on the same texts would have given.

    Entries are in the order in which they were learned, so a smaller vocabulary is the beginning of a larger one.

    Raises:
        ValueError: `vocab_size` is larger than the vocabulary, or too small for bytes and special tokens.
    """
    _check_vocab_size(vocab_size)
    if vocab_size > len(tokenizer):
        raise ValueError(f"vocab_size is {vocab_size}, and the tokenizer has {len(tokenizer)} entries.")
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    kept = dict(sorted(model["vocab"].items(), key=lambda entry: entry[1])[: vocab_size - len(_SPECIAL_TOKENS)])
    merges = [(left, right) for left, right in model["merges"] if left + right in kept]
    return _with_rules(models.BPE(vocab=kept, merges=merges), tokenizer.model_max_length)


class LearnedMerges(NamedTuple):
    """What training found, in characters."""

    merges: list[tuple[str, str]]
    """Pairs in the order learned."""
    characters: Counter[str]
    """Normalised characters and how often each occurred."""
    num_texts: int


def learn_merges(
    texts: Iterable[str], settings: TokenizerSettings, splitter: pre_tokenizers.PreTokenizer
) -> LearnedMerges:
    """BPE over characters of normalised texts, between the pieces that `splitter` makes.

    Over characters rather than bytes, so that no entry is spent on half a Hangul syllable: on held-out Korean captions
    this saves 1 % of the tokens at equal vocabulary.

    Raises:
        ValueError: `texts` holds no text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    # Room for all characters, rare ones too, beside the merges that are wanted: Hangul and Hanja together are 32,000.
    # What comes out beyond is not used.
    room = settings.vocab_size + 40_000
    trainer = trainers.BpeTrainer(vocab_size=room, min_frequency=settings.min_frequency, show_progress=True)
    words = _TrainingWords(texts)
    tokenizer.train_from_iterator(words, trainer=trainer)
    if words.num_texts == 0:
        raise ValueError("there is no text to train a tokenizer on: the files or caption columns given are empty.")
    merges = [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]
    return LearnedMerges(merges, words.characters, words.num_texts)


def byte_level_model(learned: LearnedMerges, settings: TokenizerSettings) -> models.BPE:
    """The model over bytes that does what the merges say over characters.

    The 256 bytes come first, then the merges that put frequent characters together from their bytes, most frequent
    first, then the learned ones. A character too rare to have an entry stays bytes. A vocabulary that is full before
    all frequent characters have entries may end in the first bytes of one, so that it begins every larger one.
    """
    limit = settings.vocab_size - len(_SPECIAL_TOKENS)
    entries = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))
    merges: list[tuple[str, str]] = []
    for character, count in sorted(learned.characters.items(), key=lambda item: (-item[1], item[0])):
        spelled = _letters(character)
        if count < settings.min_frequency:
            break
        new = [spelled[:end] for end in range(2, len(spelled) + 1) if spelled[:end] not in entries]
        new = new[: limit - len(entries)]
        entries.update(dict.fromkeys(new))
        merges.extend((part[:-1], part[-1]) for part in new)
    for left, right in learned.merges:
        pair = _letters(left), _letters(right)
        if pair[0] in entries and pair[1] in entries:
            if pair[0] + pair[1] not in entries:
                if len(entries) == limit:
                    break
                entries[pair[0] + pair[1]] = None
            merges.append(pair)
    return models.BPE(vocab={entry: number for number, entry in enumerate(entries)}, merges=merges)


def _with_rules(model: models.BPE, max_length: int) -> KoEnClipTokenizerFast:
    """The model with everything that happens to a text before and after it."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = text_normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([word_splitter(), _LETTERS])
    tokenizer.decoder = decoders.ByteLevel()
    return finished_tokenizer(tokenizer, pad=PAD_TOKEN, bos=BOS_TOKEN, eos=EOS_TOKEN, max_length=max_length)


def finished_tokenizer(
    tokenizer: Tokenizer, *, pad: str, bos: str, eos: str, max_length: int
) -> KoEnClipTokenizerFast:
    """A backend with BOS before and EOS after every text, cut and padded to `max_length` at most, as a tokenizer here.

    Those of the three that the vocabulary lacks get the next ids.
    """
    tokenizer.add_special_tokens(list(dict.fromkeys([pad, bos, eos])))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {bos} $B {eos}",
        special_tokens=[(bos, tokenizer.token_to_id(bos)), (eos, tokenizer.token_to_id(eos))],
    )
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    return KoEnClipTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        model_max_length=max_length,
        # Written into the folder, so that transformers 4, which does not know the class, adds no token types.
        model_input_names=KoEnClipTokenizerFast.model_input_names,
    )


def _letters(text: str) -> str:
    """The bytes of a text as the letters that stand for them in a byte-level vocabulary."""
    return "".join(piece for piece, _ in _LETTERS.pre_tokenize_str(text))


def _check_vocab_size(vocab_size: int) -> None:
    smallest = 256 + len(_SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size is {vocab_size}; 256 bytes and the special tokens need at least {smallest}.")


class _TrainingWords:
    """Normalised texts, each followed by the stems of those of its words that end in a particle or an ending.

    Counting a stem once more by itself makes it an entry before its rarer inflected forms, so that a rare word falls
    into stem and particle. It costs nothing: on held-out Korean captions there are fewer tokens with it than without.
    """

    def __init__(self, texts: Iterable[str]):
        self.texts = texts
        self.normalizer = text_normalizer()
        self.characters: Counter[str] = Counter()
        self.num_texts = 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            normalized = self.normalizer.normalize_str(text)
            self.num_texts += 1
            self.characters.update(normalized)
            yield normalized
            stems = _STEM.findall(normalized)
            if stems:
                yield f" {' '.join(stems)}"
