"""The fast tokenizer: every rule is in `tokenizer.json`, so the class adds names only.

`tokenizer_training.py` writes that file. Shipped beside the weights: imports from transformers only.
"""

from collections.abc import Sequence
from typing import Any

from transformers import TokenizersBackend


class KoEnClipTokenizerFast(TokenizersBackend):
    r"""Byte-level BPE over Korean and English with BOS, EOS and padding.

    `tokenizer.json` alone decides the ids: Unicode NFC, full-width forms to ASCII, white space to single spaces, lower
    case, BOS before and EOS after each text. The bare `tokenizers.Tokenizer.from_file` gives the same ids.
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
    """Tokens of each row up to and with its first EOS, where a text ends for the model; each row has one."""
    return [list(row).index(tokenizer.eos_token_id) + 1 for row in input_ids]
