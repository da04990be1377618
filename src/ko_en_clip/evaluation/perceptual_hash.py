"""Perceptual hashes of pictures: bits that copies share, by which overlap is found whatever the model."""

import dataclasses
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from scipy import fft

from ..data.pairs import PairSet
from .features import FeatureCache, pictures_made

_SIDE = 32
# Stands where the cache has the model's fingerprint: hashes are the same for all models.
_MADE_BY = "perceptual hash of 64 bits"


def perceptual_hash(picture: torch.Tensor) -> int:
    """64 bits that stay the same, but for a few, when a picture is resized or compressed anew.

    The picture is made grey and 32 by 32; its 8 by 8 lowest frequencies each give a bit: above their median or not.
    The bits are those of `imagehash.phash`, first bit highest, so that hashes made by it can be searched too. That
    package is not used because it brings PyWavelets for hashes that are not needed here.

    Half of the bits are set, so that hashes differ in an even number. Of 81 photographs, copies compressed anew at
    quality 60 differ in up to 4 bits, at half the size in 2, with 1 % cut off each side in 10, with 5 % in 18; the two
    photographs that are most alike differ in 18. Small or plain pictures lie closer together than photographs.

    Mirrored and turned pictures have other hashes: to find mirrored copies, hash `picture.flip(-1)` too, and search
    again. Pictures without content, such as black frames of a video, all have nearly one hash.

    Args:
        picture: uint8, (3, height, width).

    Raises:
        ValueError: the picture has another type or shape.

    Reference:
        Krawetz 2011, Looks Like It (hackerfactor.com), as imagehash 4.3 has it.
    """
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3:
        raise ValueError(
            f"the picture is {picture.dtype} of shape {tuple(picture.shape)}; it needs uint8 of (3, height, width)."
        )
    grey = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).convert("L")
    pixels = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    lowest = fft.dctn(pixels)[:8, :8]
    bits = lowest > np.median(lowest)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def hashes_of(pictures: Iterable[torch.Tensor]) -> np.ndarray:
    """Perceptual hashes of pictures, uint64, (pictures,)."""
    return np.fromiter((perceptual_hash(picture) for picture in pictures), dtype=np.uint64)


def hashes_of_pairs(
    pairs: PairSet, max_bad_image_share: float, cache: FeatureCache | None = None, *, mirrored: bool = False
) -> tuple[np.ndarray, list[int]]:
    """Hashes of a data set's pictures that decode, uint64, (pictures,), and their rows.

    Made in parts as embeddings are, by all processes together, and once for all models.

    Args:
        pairs: the data set.
        max_bad_image_share: share of the pictures that may fail to decode.
        cache: keeps the parts; its model does not matter.
        mirrored: of the pictures mirrored.

    Raises:
        ValueError: more pictures than the share given do not decode, or none does.
    """

    def make(pictures: Iterable[torch.Tensor]) -> tuple[torch.Tensor, None]:
        hashes = hashes_of(picture.flip(-1) if mirrored else picture for picture in pictures)
        # As signed numbers: torch does little with unsigned ones.
        return torch.from_numpy(hashes.view(np.int64))[:, None], None

    shared = None if cache is None else dataclasses.replace(cache, model=_MADE_BY)
    made = pictures_made("mirrored-hashes" if mirrored else "hashes", make, pairs, max_bad_image_share, shared)
    return made.embeds[:, 0].numpy().view(np.uint64), made.rows
