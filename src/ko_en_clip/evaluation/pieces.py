"""Tokens as people read them: text, and bytes where a token holds a part of a character."""

import re
from collections.abc import Sequence

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

_PART = re.compile("<[0-9A-F]{2}>")


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """What each id stands for, to be read by people: its text, and <EB> for a byte that is a part of a character."""
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    # Not batch_decode, which takes no ids for one text.
    texts = [str(tokenizer.decode([number], clean_up_tokenization_spaces=False)) for number in ids]
    return [_piece(token, text) for token, text in zip(tokens, texts, strict=True)]


def is_part(piece: str) -> bool:
    """Whether a piece holds a part of a character."""
    return _PART.search(piece) is not None


def _byte_letters() -> dict[str, int]:
    """Bytes by the letters that byte-level BPE writes them as, and by those of Latin-1, as ByT5 writes them."""
    # Every continuation byte, and a character for every byte that can begin one.
    code_points = (*range(0x800), *range(0x800, 0xD800, 0x400), 0xE000, 0xF000, *range(0x10000, 0x110000, 0x10000))
    text = "".join(map(chr, code_points))
    ((letters, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return {chr(byte): byte for byte in range(256)} | dict(zip(letters, text.encode(), strict=True))


_BYTE_OF = _byte_letters()


def _piece(token: str, text: str) -> str:
    """A token, given as the vocabulary writes it and as it is decoded alone, to be read by people."""
    if re.fullmatch("<0x[0-9A-F]{2}>", token):
        # SentencePiece writes bytes so.
        return token.replace("0x", "")
    # CLIP's vocabulary marks the end of a word so.
    letters = token.removesuffix("</w>")
    if (not text or "\ufffd" in text) and all(letter in _BYTE_OF for letter in letters):
        text = bytes(_BYTE_OF[letter] for letter in letters).decode("utf-8", "surrogateescape")
        return re.sub("[\udc80-\udcff]", lambda byte: f"<{ord(byte[0]) - 0xDC00:02X}>", text).strip()
    return text.strip() or ("\u2423" if text else token)
