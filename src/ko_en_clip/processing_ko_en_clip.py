"""Image processor and tokenizer as one callable.

The front door of every model here. Shipped beside the weights: imports from transformers and siblings only.
"""

from typing import Any

from transformers import ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, TextKwargs, Unpack

from .tokenization_ko_en_clip import check_input_ids


class KoEnClipTextKwargs(TextKwargs, total=False):
    """Call arguments for texts, the tokenizer's own among them.

    split_special_tokens (`bool`, *optional*, defaults to `True`):
        Whether a special token that is spelled out in a text is text. Captions are data: one that says
        "<|endoftext|>" does not end there.
    """

    split_special_tokens: bool | None


class KoEnClipProcessorKwargs(ProcessingKwargs, total=False):
    """Call arguments of [`KoEnClipProcessor`]; texts are padded to the longest and truncated unless told otherwise."""

    text_kwargs: KoEnClipTextKwargs  # type: ignore[misc]
    _defaults = {  # type: ignore[misc]
        "text_kwargs": {"padding": True, "truncation": True, "split_special_tokens": True}
    }


class KoEnClipProcessor(ProcessorMixin):
    r"""Pixels from pictures and tokens from texts, in one call.

    Texts are padded to the longest of the batch, truncated to the tokenizer's `model_max_length` with EOS kept, and
    follow the rules written in `tokenizer.json`. A special token spelled out in a text is taken for text, unless
    `split_special_tokens=False`.

    Args:
        image_processor ([`KoEnClipImageProcessor`]): makes `pixel_values`.
        tokenizer ([`KoEnClipTokenizerFast`]): makes `input_ids` and `attention_mask`.
    """

    valid_processor_kwargs = KoEnClipProcessorKwargs  # type: ignore[assignment]

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self, images: Any = None, text: Any = None, **kwargs: Unpack[KoEnClipProcessorKwargs]
    ) -> BatchFeature:
        """Pixels, tokens or both.

        Raises:
            ValueError: neither is given, or a text comes out without EOS, as with `add_special_tokens=False`.
        """
        batch = super().__call__(images=images, text=text, **kwargs)
        if text is not None:
            input_ids = batch["input_ids"]
            rows = input_ids.tolist() if hasattr(input_ids, "tolist") else input_ids
            check_input_ids(
                [rows] if isinstance(text, str) and not isinstance(rows[0], list) else rows, self.tokenizer
            )
        return batch
