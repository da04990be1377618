"""The fast tokenizer: every rule is in `tokenizer.json`; the class adds names and mends what the backend cannot.

`tokenizer_training.py` writes that file. Shipped beside the weights: imports from transformers only.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

from transformers import BatchEncoding, TokenizersBackend


class KoEnClipTokenizerFast(TokenizersBackend):
    r"""Byte-level BPE over Korean and English with BOS, EOS and padding.

    `tokenizer.json` alone decides the ids: full-width ASCII to ASCII, unseen characters away, white space to single
    spaces, lower case, Unicode NFC, BOS before and EOS after each text. The bare `tokenizers.Tokenizer.from_file`
    gives the same ids.

    A lone surrogate, which is half of a character and no text, becomes U+FFFD. A special token spelled out in a text
    counts as that token, as in every tokenizer of transformers; `split_special_tokens=True` takes it for text, which
    [`KoEnClipProcessor`] does.

    With `return_offsets_mapping`, offsets are those of words without the space before them, and cover decomposed
    characters whole; the backend's own begin at the space, and end after the first part of a decomposed syllable.
    """

    # No __init__ here: with one, transformers would take vocabulary and merges from tokenizer.json and drop the
    # normaliser and the splitting, and ids would change in silence.
    vocab_files_names = {"tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]

    def save_pretrained(self, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Save with the truncation and padding of the class, whatever the last call asked for.

        transformers leaves each call's truncation and padding in the backend, and would write them into the file.
        """
        self.backend_tokenizer.enable_truncation(self.model_max_length)
        self.backend_tokenizer.enable_padding(pad_id=self.pad_token_id, pad_token=self.pad_token)
        return super().save_pretrained(*args, **kwargs)

    def _encode_plus(  # type: ignore[override]
        self, text: Any, text_pair: Any = None, **kwargs: Any
    ) -> BatchEncoding:
        """Encode as the base class does; every public call ends here.

        Raises:
            ValueError: there is no text, or what should be one is none.
        """
        if isinstance(text, list | tuple) and not text:
            raise ValueError("the list of texts is empty; give at least one text.")
        # Offsets of pairs and of words given apart stay the backend's.
        refine = kwargs.get("return_offsets_mapping") and text_pair is None and not kwargs.get("is_split_into_words")
        tensor_type = kwargs.pop("return_tensors", None) if refine else None
        try:
            encoded = super()._encode_plus(text, text_pair, **kwargs)
        except TypeError:
            # The backend's word for a lone surrogate, and for what is no text.
            text = _mended(text, "text")
            text_pair = None if text_pair is None else _mended(text_pair, "text_pair")
            encoded = super()._encode_plus(text, text_pair, **kwargs)
        # With overflow, one text has several rows.
        one_row = isinstance(text, str) and not kwargs.get("return_overflowing_tokens")
        if refine and one_row:
            encoded["offset_mapping"] = _refined_offsets(encoded["offset_mapping"], text)
        elif refine:
            texts = [text] if isinstance(text, str) else text
            samples = encoded.get("overflow_to_sample_mapping", range(len(texts)))
            encoded["offset_mapping"] = [
                _refined_offsets(row, texts[sample])
                for row, sample in zip(encoded["offset_mapping"], samples, strict=True)
            ]
        return encoded.convert_to_tensors(tensor_type, prepend_batch_axis=one_row)


def check_input_ids(input_ids: Sequence[Sequence[int]], tokenizer: TokenizersBackend) -> None:
    """Check tokens on the host, where the look is free; models do not look at values on a GPU.

    Args:
        input_ids: one row of ids a text.
        tokenizer: what made them; one without EOS, as BERT's, only has its ids checked.

    Raises:
        ValueError: a row has no EOS, at which texts are pooled, or an id that is not the tokenizer's.
    """
    eos_token_id, num_ids = tokenizer.eos_token_id, len(tokenizer)
    for number, row in enumerate(input_ids):
        if eos_token_id is not None and eos_token_id not in row:
            raise ValueError(
                f"input_ids row {number} has no EOS (id {eos_token_id}), at which texts are pooled: {list(row)}. "
                "Tokenize with special tokens, and let the tokenizer truncate."
            )
        if min(row) < 0 or max(row) >= num_ids:
            raise ValueError(f"input_ids row {number} holds ids outside 0..{num_ids - 1}: {list(row)}.")


def text_lengths_of(input_ids: Sequence[Sequence[int]], tokenizer: TokenizersBackend) -> list[int]:
    """Tokens of each row up to and with its first EOS, where a text ends for the model; each row has one.

    With a tokenizer that has no EOS, as BERT's, all tokens but the padding on the right.
    """
    if tokenizer.eos_token_id is None:
        return [max(n for n, token in enumerate(row, 1) if token != tokenizer.pad_token_id) for row in input_ids]
    return [list(row).index(tokenizer.eos_token_id) + 1 for row in input_ids]


def _mended(texts: Any, name: str) -> Any:
    """Texts whose lone surrogates are U+FFFD; a pair of surrogates is the character that it stands for.

    Raises:
        ValueError: something is no text; the message says where.
    """
    if isinstance(texts, str):
        return texts.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(texts, list | tuple):
        return type(texts)(_mended(text, f"{name}[{number}]") for number, text in enumerate(texts))
    raise ValueError(f"{name} is {texts!r} of type {type(texts).__name__}; it must be a str, or a list of str.")


def _refined_offsets(offsets: Sequence[tuple[int, int]], text: str) -> list[tuple[int, int]]:
    """Offsets of one text's tokens without leading white space, and with all of a decomposed character.

    The backend gives a composed character the place of its first part only. What follows a token and continues a
    character, up to the next token, belongs to it.
    """
    refined = list(offsets)
    following = limit = len(text)
    for place in reversed(range(len(offsets))):
        start, end = offsets[place]
        if start == end:
            continue
        # Tokens that are bytes of one character have one place, and the limit of the last of them.
        limit = following if following >= end else limit
        following = start
        while end < limit and _continues_character(text[end]):
            end += 1
        while start < end and text[start].isspace():
            start += 1
        refined[place] = (start, end)
    return refined


def _continues_character(mark: str) -> bool:
    """Whether it is a combining mark, or a vowel or final consonant of conjoining Hangul."""
    return unicodedata.category(mark)[0] == "M" or "\u1160" <= mark <= "\u11ff" or "\ud7b0" <= mark <= "\ud7fb"
