"""Image processor and tokenizer as one callable.

The front door of every model here. Shipped beside the weights: imports from transformers only.
"""

from typing import Any

from transformers import ProcessorMixin
from transformers.processing_utils import ProcessingKwargs


class KoEnClipProcessorKwargs(ProcessingKwargs, total=False):
    """Call arguments of [`KoEnClipProcessor`]; texts are padded to the longest and truncated unless told otherwise."""

    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}  # type: ignore[misc]


class KoEnClipProcessor(ProcessorMixin):
    r"""Pixels from pictures and tokens from texts, in one call.

    Texts are padded to the longest of the batch, truncated to the tokenizer's `model_max_length` with EOS kept, and
    follow the rules written in `tokenizer.json`.

    Args:
        image_processor ([`KoEnClipImageProcessor`]): makes `pixel_values`.
        tokenizer ([`KoEnClipTokenizerFast`]): makes `input_ids` and `attention_mask`.
    """

    valid_processor_kwargs = KoEnClipProcessorKwargs

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any):
        super().__init__(image_processor, tokenizer, **kwargs)
