"""Random views of training pictures, on uint8 tensors.

CLIP's only augmentation is a random square crop (Radford et al. 2021, section 2.3); MAE's is a random resized crop
and a flip (He et al. 2022, section 4). What goes further is off unless a recipe asks for it.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """How far a training view may differ from its picture. The defaults change nothing but the size."""

    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Share of the picture's area that a random crop keeps, smallest and largest."""
    flip: float = 0.0
    """Probability of a horizontal flip."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(
                f"crop_scale is {self.crop_scale}; it must be two shares with 0 < smallest <= largest <= 1."
            )
        if not 0.0 <= self.flip <= 1.0:
            raise ValueError(f"flip is {self.flip}; a probability lies between 0 and 1.")


def random_view(
    picture: torch.Tensor, size: int, settings: AugmentationSettings, generator: torch.Generator
) -> torch.Tensor:
    """A view of `size` x `size` pixels.

    Args:
        picture: uint8, (channels, height, width).
        size: side of the view in pixels.
        settings: what may happen.
        generator: decides what does; the same state gives the same view.

    Returns:
        uint8, (channels, size, size).
    """
    height, width = picture.shape[-2:]
    low, high = settings.crop_scale
    draw = torch.rand(4, generator=generator).tolist()
    side = min(height, width) * (low + (high - low) * draw[0]) ** 0.5
    rows = columns = max(1, round(side))
    top, left = int(draw[1] * (height - rows + 1)), int(draw[2] * (width - columns + 1))
    view = picture[:, top : top + rows, left : left + columns]
    if (rows, columns) != (size, size):
        view = torch.nn.functional.interpolate(view[None], size=(size, size), mode="bicubic", antialias=True)[0]
    return view.flip(-1) if draw[3] < settings.flip else view
