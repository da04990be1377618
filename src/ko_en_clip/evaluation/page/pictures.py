"""Pictures small enough for a page."""

import torch
from PIL import Image

from ..report import picture_uri

_SIDE = 96


def thumbnail(pixels: torch.Tensor) -> str:
    """A picture, uint8, (3, height, width), as a data URI of 96 pixels at most."""
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((_SIDE, _SIDE))
    return picture_uri(picture)
