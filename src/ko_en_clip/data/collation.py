"""Examples to tensors: what is drawn for a whole batch, and the arguments of a model's forward."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..image_processing_ko_en_clip import KoEnClipImageProcessor
from ..processing_ko_en_clip import KoEnClipProcessor
from ..tokenization_ko_en_clip import text_lengths_of
from .augmentation import AugmentationSettings, augment
from .examples import Example, group_number
from .mixing import assign_languages


class Collator:
    """Examples to a batch of a stage, with `skipped`, which the loop takes out and counts."""

    def __init__(
        self,
        processor: KoEnClipProcessor,
        augmentation: AugmentationSettings,
        language_shares: Mapping[str, float] | None = None,
    ):
        self.processor = processor
        self.augmentation = augmentation
        self.language_shares = language_shares or {}

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """One batch: what its examples have of pictures and texts.

        Views follow each other by number, all first ones first: view i belongs to picture i modulo the pictures.
        Captions of several languages follow each other by language in the same way.
        """
        batch: dict[str, Any] = {}
        generator = torch.Generator().manual_seed(examples[0].draw)
        if examples[0].views is not None:
            views = [example.views for example in examples if example.views is not None]
            batch["pixel_values"] = self._pixels([view.global_views for view in views], generator)
            if len(views[0].local_views):
                batch["local_pixel_values"] = self._pixels([view.local_views for view in views], generator)
        if examples[0].captions:
            batch |= self._texts(examples, generator)
        labels = [example.label for example in examples if example.label is not None]
        if labels:
            batch["labels"] = torch.tensor(labels)
        batch["keys"] = [example.key for example in examples]
        batch["skipped"] = [entry for example in examples for entry in example.skipped]
        return batch

    def _pixels(self, views: Sequence[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        by_view = torch.stack(list(views), dim=1).flatten(0, 1)
        return normalized(augment(by_view, self.augmentation, generator), self.processor.image_processor)

    def _texts(self, examples: Sequence[Example], generator: torch.Generator) -> dict[str, Any]:
        chosen = [example.captions for example in examples]
        if self.language_shares:
            available = [[caption.language for caption in captions] for captions in chosen]
            languages = assign_languages(available, self.language_shares, generator)
            chosen = [
                [caption for caption in captions if caption.language == language]
                for captions, language in zip(chosen, languages, strict=True)
            ]
        captions = [caption for by_language in zip(*chosen, strict=True) for caption in by_language]
        texts = self.processor(text=[caption.text for caption in captions], text_kwargs={"return_tensors": "pt"})
        # Without a group rows mean the same where their captions are the same.
        groups = [example.group or drawn[0].text for example, drawn in zip(examples, chosen, strict=True)]
        return {
            "input_ids": texts["input_ids"],
            "attention_mask": texts["attention_mask"],
            "text_lengths": text_lengths_of(texts["input_ids"].tolist(), self.processor.tokenizer),
            "groups": torch.tensor([group_number(group) for group in groups]),
            "languages": [caption.language for caption in captions],
            "captions": [caption.text for caption in captions],
        }


def normalized(views: torch.Tensor, processor: KoEnClipImageProcessor) -> torch.Tensor:
    """What the image processor makes of pictures that have their final size already: rescaled and normalised.

    Args:
        views: uint8, (batch, 3, height, width).
        processor: says whether and how.

    Returns:
        float32, of the same shape.
    """
    return processor(
        views, do_resize=False, do_center_crop=False, input_data_format="channels_first", return_tensors="pt"
    )["pixel_values"]
