"""Random views of training pictures.

CLIP's only augmentation is a random square crop (Radford et al. 2021, section 2.3); MAE's is a random resized crop
and a flip (He et al. 2022, section 4). Everything beyond is our choice for small data sets, and off unless a recipe
asks for it: KELIP reports that strong augmentation can hurt the relation of picture and text (Kim et al. 2022).
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import nn

# Grey axis of RGB, and the rotation about it by 90 degrees.
_GREY = torch.full((3, 3), 1 / 3)
_TURN = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
_WARP_POINTS = 4
_ERASED_SIDE = (0.15, 0.45)


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """How far a training view may differ from its picture. The defaults cut a square at random, as CLIP does."""

    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Area of the square crop, smallest and largest, as a share of the largest square in the picture."""
    flip: float = 0.0
    """Probability of a horizontal flip."""
    rotation: float = 0.0
    """Largest rotation in degrees, either way."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest magnification; what comes in over the edge is transparent, or white."""
    shift: float = 0.0
    """Largest shift along each side, as a share of it."""
    stretch: float = 0.0
    """Largest change of the aspect ratio, as its natural logarithm."""
    shear: float = 0.0
    """Largest shear, as a slope."""
    warp: float = 0.0
    """Standard deviation of a smooth random displacement, as a share of half the side."""
    brightness: float = 0.0
    """Largest change of brightness, on a scale where white is 1."""
    contrast: float = 0.0
    """Largest relative change of contrast."""
    saturation: float = 0.0
    """Largest relative change of saturation."""
    hue: float = 0.0
    """Largest change of hue, in turns."""
    grey: float = 0.0
    """Probability of a view without colour."""
    background: float = 0.0
    """Probability that transparent pictures are laid on a random colour instead of white."""
    thicken: float = 0.0
    """Probability that light or dark strokes grow by a pixel."""
    blur: float = 0.0
    """Probability of a blur over 3 x 3 pixels."""
    erase: float = 0.0
    """Probability that a rectangle is covered with a random colour."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(
                f"crop_scale is {self.crop_scale}; it must be two shares with 0 < smallest <= largest <= 1."
            )
        if not 0.0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError(f"zoom is {self.zoom}; it must be two magnifications with 0 < smallest <= largest.")
        for name in ("flip", "grey", "background", "thicken", "blur", "erase"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; a probability lies between 0 and 1.")
        for name in ("rotation", "shift", "stretch", "shear", "warp", "brightness", "contrast", "saturation", "hue"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative.")

    def changes(self, *names: str) -> bool:
        """Whether any of these fields differs from its default."""
        defaults = {field.name: field.default for field in fields(self)}
        return any(getattr(self, name) != defaults[name] for name in names)


def random_view(
    picture: torch.Tensor, size: int, settings: AugmentationSettings, generator: torch.Generator
) -> torch.Tensor:
    """A random square crop, resized and perhaps flipped.

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
    side = max(1, round(min(height, width) * (low + (high - low) * draw[0]) ** 0.5))
    top, left = int(draw[1] * (height - side + 1)), int(draw[2] * (width - side + 1))
    view = picture[:, top : top + side, left : left + side]
    if side != size:
        view = nn.functional.interpolate(view[None], size=(size, size), mode="bicubic", antialias=True)[0]
    return view.flip(-1) if draw[3] < settings.flip else view


def augment(views: torch.Tensor, settings: AugmentationSettings, generator: torch.Generator) -> torch.Tensor:
    """Geometry, colour, background and defects of a whole batch, each view drawn for itself.

    Args:
        views: uint8, (batch, channels, size, size): red, green, blue, and perhaps opacity with the colours already
            multiplied by it.
        settings: what may happen.
        generator: decides what does.

    Returns:
        uint8, (batch, 3, size, size); opaque.
    """
    if views.shape[1] == 3 and settings == AugmentationSettings(crop_scale=settings.crop_scale, flip=settings.flip):
        return views
    pixels = views.float() / 255
    if pixels.shape[1] == 3:
        pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
    pixels = _moved(pixels, settings, generator)
    colours, opacity = pixels[:, :3], pixels[:, 3:]
    if settings.changes("brightness", "contrast", "saturation", "hue", "grey"):
        colours = _recoloured(colours / opacity.clamp(min=1e-3), settings, generator) * opacity
    pixels = colours + (1 - opacity) * _backgrounds(len(pixels), settings, generator)
    return (_damaged(pixels, settings, generator).clamp(0, 1) * 255).round().to(torch.uint8)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _happens(count: int, probability: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, generator=generator) < probability


def _moved(pixels: torch.Tensor, settings: AugmentationSettings, generator: torch.Generator) -> torch.Tensor:
    """Pixels under a random affine map and a smooth warp; outside the picture they are transparent."""
    if not settings.changes("rotation", "zoom", "shift", "stretch", "shear", "warp"):
        return pixels
    count, size = len(pixels), pixels.shape[-1]
    scale = 1 / _uniform(count, math.log(settings.zoom[0]), math.log(settings.zoom[1]), generator).exp()
    stretch = _uniform(count, -settings.stretch, settings.stretch, generator).exp()
    angle = _uniform(count, -settings.rotation, settings.rotation, generator) * (math.pi / 180)
    shear = _uniform(count, -settings.shear, settings.shear, generator)
    # The grid runs from -1 to 1, so a share of the side is twice as much on it.
    right, down = (_uniform(count, -2 * settings.shift, 2 * settings.shift, generator) for _ in range(2))
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    top_row = torch.stack([cosine * stretch, (shear * cosine - sine) * stretch, right], dim=1)
    bottom_row = torch.stack([sine / stretch, (cosine + shear * sine) / stretch, down], dim=1)
    grid = nn.functional.affine_grid(
        torch.stack([top_row, bottom_row], dim=1), [count, 4, size, size], align_corners=False
    )
    if settings.warp:
        points = torch.randn(count, 2, _WARP_POINTS, _WARP_POINTS, generator=generator) * settings.warp
        smooth = nn.functional.interpolate(points, size=(size, size), mode="bicubic", align_corners=True)
        grid = grid + smooth.permute(0, 2, 3, 1)
    return nn.functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _recoloured(colours: torch.Tensor, settings: AugmentationSettings, generator: torch.Generator) -> torch.Tensor:
    """Colours with other hue, saturation, contrast and brightness: one 3 x 3 matrix and one affine map a view."""
    count = len(colours)
    hue = _uniform(count, -settings.hue, settings.hue, generator)[:, None, None] * (2 * math.pi)
    saturation = _uniform(count, 1 - settings.saturation, 1 + settings.saturation, generator)
    saturation = saturation.masked_fill(_happens(count, settings.grey, generator), 0.0)[:, None, None]
    mix = _GREY + saturation * (hue.cos() * (torch.eye(3) - _GREY) + hue.sin() * _TURN)
    contrast = _uniform(count, 1 - settings.contrast, 1 + settings.contrast, generator)[:, None, None, None]
    brightness = _uniform(count, -settings.brightness, settings.brightness, generator)[:, None, None, None]
    mixed = torch.bmm(mix, colours.flatten(2)).view_as(colours)
    return ((mixed - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)


def _backgrounds(count: int, settings: AugmentationSettings, generator: torch.Generator) -> torch.Tensor:
    colours = torch.rand(count, 3, 1, 1, generator=generator)
    return torch.where(_happens(count, settings.background, generator)[:, None, None, None], colours, 1.0)


def _damaged(pixels: torch.Tensor, settings: AugmentationSettings, generator: torch.Generator) -> torch.Tensor:
    """Thicker strokes, blur, and a covered rectangle."""
    count, size = len(pixels), pixels.shape[-1]
    if settings.thicken:
        draw = torch.rand(count, generator=generator)
        light, dark = draw < settings.thicken / 2, (draw >= settings.thicken / 2) & (draw < settings.thicken)
        pixels[light] = nn.functional.max_pool2d(pixels[light], 3, stride=1, padding=1)
        pixels[dark] = -nn.functional.max_pool2d(-pixels[dark], 3, stride=1, padding=1)
    if settings.blur:
        soft = _happens(count, settings.blur, generator)
        pixels[soft] = nn.functional.avg_pool2d(pixels[soft], 3, stride=1, padding=1, count_include_pad=False)
    if settings.erase:
        line = torch.arange(size)[None, :]
        sides = []
        for _ in range(2):
            centre = _uniform(count, 0, size, generator)[:, None]
            half = _uniform(count, _ERASED_SIDE[0] * size / 2, _ERASED_SIDE[1] * size / 2, generator)[:, None]
            sides.append((line - centre).abs() < half)
        covered = sides[0][:, None, :, None] & sides[1][:, None, None, :]
        covered &= _happens(count, settings.erase, generator)[:, None, None, None]
        pixels = torch.where(covered, torch.rand(count, 3, 1, 1, generator=generator), pixels)
    return pixels
