"""Training of the joint Korean-English byte-level BPE; the first stage of the pipeline.

Writes a folder that `AutoTokenizer` loads. Every text rule goes into `tokenizer.json`, so the bare `tokenizers`
library gives the same ids (KELIP keeps lower-casing and special tokens in Python instead; Kim et al. 2022,
released code).
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from .tokenization_ko_en_clip import KoEnClipTokenizerFast

logger = logging.getLogger(__name__)

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN = "<|pad|>", "<|startoftext|>", "<|endoftext|>"

# Contractions, then letters with the space before them, single digits, runs of the rest, and what is left of spaces.
# Letters and punctuation never share a token, nor do two words; digits stand alone as in CLIP's splitting.
_SPLIT = r"'(?:s|t|re|ve|m|ll|d)| ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+"


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """What a vocabulary is trained to."""

    vocab_size: int
    """Entries, special tokens included. Fewer come out where the texts hold no more pairs."""
    max_length: int = 77
    """Tokens to which texts are truncated, BOS and EOS included (Radford et al. 2021, released code: 77)."""
    min_frequency: int = 2
    """Times that a pair must occur to be merged."""

    def __post_init__(self) -> None:
        if self.vocab_size < 256 + 3:
            raise ValueError(f"vocab_size is {self.vocab_size}; 256 bytes and 3 special tokens need at least 259.")
        if self.max_length < 3:
            raise ValueError(f"max_length is {self.max_length}; BOS, EOS and one token need at least 3.")


def train_tokenizer(texts: Iterable[str], settings: TokenizerSettings) -> KoEnClipTokenizerFast:
    """Train byte-level BPE on `texts`; the special tokens get the last ids, EOS the largest.

    EOS last lets code that pools at the largest id of a text (CLIP's and KELIP's own) pool right. All 256 bytes are in
    the vocabulary, so no text has an unknown token.

    Raises:
        ValueError: `texts` holds no text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size - 3,
        min_frequency=settings.min_frequency,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=True,
    )
    counted = _Counted(texts)
    tokenizer.train_from_iterator(counted, trainer=trainer)
    if counted.num_texts == 0:
        raise ValueError("there is no text to train a tokenizer on: the files or caption columns given are empty.")
    tokenizer.add_special_tokens([PAD_TOKEN, BOS_TOKEN, EOS_TOKEN])
    bos_id, eos_id = tokenizer.token_to_id(BOS_TOKEN), tokenizer.token_to_id(EOS_TOKEN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A {EOS_TOKEN}", special_tokens=[(BOS_TOKEN, bos_id), (EOS_TOKEN, eos_id)]
    )
    tokenizer.enable_truncation(settings.max_length)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(PAD_TOKEN), pad_token=PAD_TOKEN)
    logger.info("trained %d entries on %d texts", tokenizer.get_vocab_size(), counted.num_texts)
    return KoEnClipTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        model_max_length=settings.max_length,
    )


def text_lines(files: Iterable[str]) -> Iterator[str]:
    """Non-empty lines of UTF-8 text files."""
    for file in files:
        with Path(file).open(encoding="utf-8") as lines:
            yield from (line.strip() for line in lines if line.strip())


def _normalizer() -> normalizers.Normalizer:
    """NFC, full-width ASCII to ASCII, control characters away, single spaces, lower case, one leading space.

    Not NFKC, which takes compatibility jamo apart; without NFC, decomposed Korean costs 3.4 times the tokens in CLIP's
    vocabulary. The leading space makes a word at the start of a text the same token as the word inside it.
    """
    full_width = [normalizers.Replace(chr(code + 0xFEE0), chr(code)) for code in range(0x21, 0x7F)]
    return normalizers.Sequence(
        [
            normalizers.NFC(),
            *full_width,
            # Control characters that are not white space, and zero-width ones; joiners stay, emoji need them.
            normalizers.Replace(
                Regex(r"[\x{00}-\x{08}\x{0E}-\x{1B}\x{7F}-\x{84}\x{86}-\x{9F}\x{200B}\x{2060}\x{FEFF}]+"),
                "",
            ),
            normalizers.Replace(Regex(r"[\s\x{1C}-\x{1F}]+"), " "),
            normalizers.Strip(),
            normalizers.Lowercase(),
            normalizers.Prepend(" "),
        ]
    )


class _Counted:
    """Texts, counted as they pass."""

    def __init__(self, texts: Iterable[str]):
        self.texts = texts
        self.num_texts = 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            self.num_texts += 1
            yield text
