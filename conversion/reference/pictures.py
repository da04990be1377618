"""CLIP's steps for pictures by Pillow: resize the shorter side, cut the middle, scale to one, normalise.

What torchvision's `Resize`, `CenterCrop`, `ToTensor` and `Normalize` do in the released code of CLIP and KELIP.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def reference_pixels(
    pictures: Sequence[Image.Image],
    size: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    squash: bool = False,
) -> torch.Tensor:
    """Normalised pixels, float32, (pictures, 3, size, size); squashed, nothing is cut and sides are not in keeping."""
    rows = []
    for picture in pictures:
        width, height = picture.size
        short = min(width, height)
        sides = (size, size) if squash else (int(size * width / short), int(size * height / short))
        resized = picture.resize(sides, Image.Resampling.BICUBIC)
        left, top = round((sides[0] - size) / 2), round((sides[1] - size) / 2)
        pixels = np.asarray(resized.crop((left, top, left + size, top + size)).convert("RGB"), dtype=np.float64) / 255
        rows.append((pixels - np.array(mean)) / np.array(std))
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float()
