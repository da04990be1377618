"""L2-normalised embeddings of pictures and texts, in batches, by any CLIP-type model of transformers."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..data.pairs import PairSet, UnreadablePictureError
from ..tokenization_ko_en_clip import text_lengths_of

BATCH_SIZE = 256


class Encoder:
    """A model with its processor."""

    def __init__(self, model: Any, processor: Any, device: torch.device):
        self.model = model.to(device).eval()
        self.processor = processor
        self.device = device

    @torch.no_grad()
    def images(self, pictures: Iterable[torch.Tensor], total: int) -> torch.Tensor:
        """Embeddings of pictures, float32 on the CPU, (pictures, dimensions).

        Args:
            pictures: each uint8, (3, height, width).
            total: how many there are about; for the progress bar.

        Raises:
            ValueError: there is none.
        """
        embeds, batch = [], []
        for picture in tqdm(pictures, total=total, desc="pictures", unit="picture", leave=False):
            # One at a time: a batch of photographs at full size would fill the memory.
            inputs = self.processor(images=picture, input_data_format="channels_first", return_tensors="pt")
            batch.append(inputs["pixel_values"])
            if len(batch) == BATCH_SIZE:
                embeds.append(self._images(batch))
                batch = []
        if batch:
            embeds.append(self._images(batch))
        if not embeds:
            raise ValueError("there is no picture to embed: none of them decodes.")
        return torch.cat(embeds)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings of texts, float32 on the CPU, (texts, dimensions)."""
        starts = tqdm(range(0, len(texts), BATCH_SIZE), desc="texts", unit="batch", leave=False)
        return torch.cat([self._texts(texts[start : start + BATCH_SIZE]) for start in starts])

    def _images(self, batch: list[torch.Tensor]) -> torch.Tensor:
        pixel_values = torch.cat(batch).to(self.device)
        return _normalized(self.model.get_image_features(pixel_values=pixel_values).pooler_output)

    def _texts(self, batch: Sequence[str]) -> torch.Tensor:
        inputs = self.processor(text=list(batch), padding=True, truncation=True, return_tensors="pt")
        lengths = text_lengths_of(inputs["input_ids"].tolist(), self.processor.tokenizer)
        outputs = self.model.get_text_features(**inputs.to(self.device), text_lengths=lengths)
        return _normalized(outputs.pooler_output)


def image_embeddings(
    encoder: Encoder, pairs: PairSet, max_bad_image_share: float
) -> tuple[torch.Tensor, list[int], list[UnreadablePictureError]]:
    """Embeddings of the pictures that decode, their rows, and those that do not.

    Raises:
        ValueError: more pictures than the share given do not decode.
    """
    allowed = max_bad_image_share * len(pairs)
    rows: list[int] = []
    unreadable: list[UnreadablePictureError] = []

    def readable() -> Iterable[torch.Tensor]:
        for index in range(len(pairs)):
            try:
                picture = pairs.picture(index)
            except UnreadablePictureError as error:
                unreadable.append(error)
                if len(unreadable) > allowed:
                    raise ValueError(
                        f"{len(unreadable)} pictures do not decode, more than the {allowed:g} of {len(pairs)} that "
                        f"max_bad_image_share allows; the last is {error.key}: {error.reason}"
                    ) from error
                continue
            rows.append(index)
            yield picture

    return encoder.images(readable(), len(pairs)), rows, unreadable


def _normalized(embeds: torch.Tensor) -> torch.Tensor:
    if not embeds.isfinite().all():
        # Comparisons with NaN are false, and would be counted as ranks of 1.
        raise ValueError("the model's embeddings are not finite; its training has diverged.")
    return nn.functional.normalize(embeds.float(), dim=-1).cpu()
