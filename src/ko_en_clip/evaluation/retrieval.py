"""Retrieval between pictures and texts, and the baseline of raw pixels."""

from collections.abc import Sequence

import torch

from ..data.pairs import PairSet, UnreadablePictureError
from ..image_processing_ko_en_clip import KoEnClipImageProcessor
from .metrics import ranks

_PIXEL_SIDE = 24


def image_text_ranks(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, captions: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks of both directions: of each picture's best caption, and of each text's best picture.

    Args:
        image_embeds: (pictures, dimensions).
        text_embeds: one row a distinct text, (texts, dimensions).
        captions: numbers of the texts that describe each picture; every text describes one at least.
    """
    similarity = image_embeds @ text_embeds.T
    relevant = torch.zeros_like(similarity, dtype=torch.bool)
    for picture, texts in enumerate(captions):
        relevant[picture, list(texts)] = True
    return ranks(similarity, relevant), ranks(similarity.T, relevant.T)


def pixel_ranks(queries: PairSet, gallery: PairSet) -> torch.Tensor:
    """Rank of the nearest gallery picture of the same group, by squared distance of raw 24-pixel pictures.

    What a model that learned nothing but pixels would find: the floor that trained embeddings have to beat. Pictures
    that do not decode, or that have no group, are left out.
    """
    query_pixels, query_groups = _pixels_and_groups(queries)
    gallery_pixels, gallery_groups = _pixels_and_groups(gallery)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(gallery_groups))}
    of_gallery = torch.tensor([numbers[group] for group in gallery_groups])
    of_queries = torch.tensor([numbers.get(group, -1) for group in query_groups])
    return ranks(-torch.cdist(query_pixels, gallery_pixels), of_queries[:, None] == of_gallery[None, :])


def _pixels_and_groups(pairs: PairSet) -> tuple[torch.Tensor, list[str]]:
    side = {"height": _PIXEL_SIDE, "width": _PIXEL_SIDE}
    processor = KoEnClipImageProcessor(size=side, do_center_crop=False, do_normalize=False)
    pixels, groups = [], []
    for index in range(len(pairs)):
        try:
            picture = pairs.picture(index)
        except UnreadablePictureError:
            continue
        group = pairs.group(index)
        if group is not None:
            inputs = processor(picture, input_data_format="channels_first", return_tensors="pt")
            pixels.append(inputs["pixel_values"].flatten())
            groups.append(group)
    return torch.stack(pixels), groups
