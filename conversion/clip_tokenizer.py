"""CLIP's tokenizer from `bpe_simple_vocab_16e6.txt.gz`, with every rule written into `tokenizer.json`.

Facts are those of the released code of CLIP (Radford et al. 2021), `clip/simple_tokenizer.py`: lower-cased byte-level
BPE whose words end in a mark of their own.
"""

import gzip
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ko_en_clip import KoEnClipImageProcessor, KoEnClipProcessor, KoEnClipTokenizerFast
from ko_en_clip.tokenizer_rules import character_table
from ko_en_clip.tokenizer_training import finished_tokenizer

VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
BOS_TOKEN, EOS_TOKEN = "<|startoftext|>", "<|endoftext|>"
# Merges that the released code takes of the file, which holds more: entries less letters, their ends, and specials.
_NUM_MERGES = 49152 - 256 - 2
_WORD_END = "</w>"
_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# What the file's vocabulary begins with: bytes that print, in order, then the rest, each as the letter of its byte.
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]

# What ftfy makes of single characters in its standard settings, beside NFC: straight quotes, letters of ligatures, and
# forms of full and half width as NFKC has them.
_QUOTES = {"'": (0x2BC, *range(0x2018, 0x201C)), '"': tuple(range(0x201C, 0x2020))}
_LIGATURES = {"Ĳ": "IJ", "ĳ": "ij", "ŉ": "ʼn"}
_LIGATURES |= {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬆ": "st"}
_WIDTHS = {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0xFF01, 0xFFF0)}
_CHARACTERS = {
    **{chr(code): quote for quote, codes in _QUOTES.items() for code in codes},
    **_LIGATURES,
    **{character: plain for character, plain in _WIDTHS.items() if plain != character},
}

NOT_REPRODUCED = (
    "Of what ftfy does to texts, NFC, straight quotes, ligatures and full width are in tokenizer.json; its mending of "
    "broken encodings is not, nor are HTML entities and the final sigma of Greek. Of a picture that is cut by an odd "
    "number of rows or columns, torchvision's cut may begin one pixel later."
)
"""What the released code does in Python and no rule of a tokenizer file can."""


def clip_tokenizer(file: Path, max_length: int = 77) -> KoEnClipTokenizerFast:
    """CLIP's tokenizer; BOS and EOS come last in the vocabulary.

    Padding is EOS, as in transformers' `CLIPTokenizer`: the released code pads with id 0, which is the letter "!" of a
    text. Texts are pooled at the first EOS, so that neither changes an embedding.

    Args:
        file: the merges, as OpenAI published them, compressed by gzip or not.
        max_length: tokens at which texts are cut, BOS and EOS included.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a file of merges.
    """
    merges = _read_merges(file)
    letters = [*_byte_letters(), *(letter + _WORD_END for letter in _byte_letters())]
    entries = dict.fromkeys([*letters, *("".join(merge) for merge in merges), BOS_TOKEN, EOS_TOKEN])
    if len(entries) != len(letters) + len(merges) + 2:
        raise ValueError(f"{file} makes an entry twice; it must be CLIP's file of merges, {VOCABULARY_FILE}.")
    model = models.BPE(
        vocab={entry: number for number, entry in enumerate(entries)}, merges=merges, end_of_word_suffix=_WORD_END
    )
    return with_clip_rules(model, max_length)


def with_clip_rules(model: models.BPE, max_length: int) -> KoEnClipTokenizerFast:
    """A model of CLIP's kind with what happens to a text before and after it."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(character_table(_CHARACTERS)),
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_WORD_END, " "), decoders.Fuse(), decoders.ByteLevel()])
    missing = [token for token in (BOS_TOKEN, EOS_TOKEN) if tokenizer.token_to_id(token) is None]
    if missing:
        raise ValueError(f"the vocabulary has no {', '.join(missing)}.")
    return finished_tokenizer(tokenizer, pad=EOS_TOKEN, bos=BOS_TOKEN, eos=EOS_TOKEN, max_length=max_length)


def clip_processor(
    tokenizer: KoEnClipTokenizerFast,
    image_size: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> KoEnClipProcessor:
    """CLIP's steps for pictures of one size, and the tokenizer.

    Args:
        tokenizer: for texts.
        image_size: side of the square that the tower was trained with.
        mean: of each channel, from 0 to 1; `None` is CLIP's.
        std: the same of the standard deviation.
    """
    fields: dict[str, Any] = {"image_mean": mean, "image_std": std}
    fields = {name: list(value) for name, value in fields.items() if value is not None}
    fields |= {"size": {"shortest_edge": image_size}, "crop_size": {"height": image_size, "width": image_size}}
    return KoEnClipProcessor(image_processor=KoEnClipImageProcessor(**fields), tokenizer=tokenizer)


def _read_merges(file: Path) -> list[tuple[str, str]]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; give CLIP's file of merges, {VOCABULARY_FILE}.")
    content = file.read_bytes()
    try:
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    # The first line is a comment.
    lines = [line.split() for line in text.split("\n")[1 : _NUM_MERGES + 1] if line.strip()]
    wrong = next((line for line in lines if len(line) != 2), None)
    if wrong is not None or not lines:
        raise ValueError(f"{file} holds the line {wrong!r}; each must be a pair of entries that are merged.")
    return [(left, right) for left, right in lines]


def _byte_letters() -> list[str]:
    """The 256 bytes as letters, in the order of the released code."""
    others = [byte for byte in range(256) if byte not in _PRINTED]
    return [*map(chr, _PRINTED), *(chr(256 + number) for number in range(len(others)))]
