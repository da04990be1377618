"""Random views of training pictures: `random_view` and `random_views` of one picture, `augment` of a whole batch.

CLIP's only augmentation is a random square crop (Radford et al. 2021, section 2.3); MAE's is a random resized crop
and a flip (He et al. 2022, section 4), Chinese-CLIP's code adds AutoAugment to the two, and KELIP trains with views of
two sizes (Ko and Gu 2022). Everything beyond is our choice for small data sets, and off unless a recipe asks for it:
KELIP reports that strong augmentation can hurt the relation of picture and text.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import nn

from .auto_augment import auto_augment

# Grey axis of RGB, and the rotation about it by 90 degrees.
_GREY = torch.full((3, 3), 1 / 3)
_TURN = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
_WARP_POINTS = 4
_ERASED_SIDE = (0.15, 0.45)
# Draws of a size and shape before a random resized crop gives up and takes the middle of the picture.
_CROP_TRIES = 10


def _check_shares(name: str, shares: tuple[float, float]) -> None:
    if not 0.0 < shares[0] <= shares[1] <= 1.0:
        raise ValueError(f"{name} is {shares}; it must be two shares with 0 < smallest <= largest <= 1.")


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """How far a training view may differ from its picture. The defaults cut a square at random, as CLIP does."""

    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Area of the crop, smallest and largest: as a share of the whole picture with `crop_ratio`, and of the largest
    square in it without. MAE has 0.2 to 1 (He et al. 2022), Chinese-CLIP's code 0.9 to 1; of multi-crop's large views
    SwAV has 0.14 to 1 (Caron et al. 2020) and DINO 0.4 to 1 (Caron et al. 2021)."""
    crop_ratio: tuple[float, float] | None = None
    """Width over height of the crop, smallest and largest. With 0.75 and 1.3333 the crop is the field's random resized
    crop (Szegedy et al. 2015), as MAE, SwAV, DINO and Chinese-CLIP have it. Without it the crop is a square, as CLIP
    has it."""
    flip: float = 0.0
    """Probability of a horizontal flip."""
    auto_augment: bool = False
    """Whether AutoAugment's policy for ImageNet changes the view (Cubuk et al. 2019), as in Chinese-CLIP's code; not
    with `background`."""
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
        _check_shares("crop_scale", self.crop_scale)
        if self.crop_ratio is not None and not 0.0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(
                f"crop_ratio is {self.crop_ratio}; it must be two ratios with 0 < smallest <= largest, or absent."
            )
        if self.auto_augment and self.background:
            raise ValueError(
                f"auto_augment is set and background is {self.background}; AutoAugment knows no opacity, so leave one "
                "of them at its default."
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


@dataclass(frozen=True, kw_only=True)
class MultiCropSettings:
    """How many views a picture has (Caron et al. 2020, section 3.2). The defaults give one, as CLIP has.

    KELIP trains with views of 224 and 96 pixels and says neither how many nor how large the crops are; SwAV has 2
    large and 6 small ones, DINO's code 2 and 8. What large crops cover is `crop_scale` of the augmentation.
    """

    num_global: int = 1
    """Large views of a picture, of the size that the image processor has."""
    num_local: int = 0
    """Small views of a picture."""
    local_size: int = 96
    """Side of a small view in pixels: that of KELIP, SwAV and DINO."""
    local_crop_scale: tuple[float, float] = (0.05, 0.4)
    """Area of a small view's crop, as `crop_scale` is that of a large one's. DINO has 0.05 to 0.4, SwAV 0.05 to 0.14;
    taking DINO's is our choice, since a caption seldom tells of a twentieth of its picture."""

    def __post_init__(self) -> None:
        for name, least in (("num_global", 1), ("num_local", 0), ("local_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        _check_shares("local_crop_scale", self.local_crop_scale)


class Views(NamedTuple):
    """Views of one picture, uint8."""

    global_views: torch.Tensor
    """(num_global, channels, size, size)."""
    local_views: torch.Tensor
    """(num_local, channels, local_size, local_size)."""


def random_views(
    picture: torch.Tensor,
    size: int,
    settings: AugmentationSettings,
    crops: MultiCropSettings,
    generator: torch.Generator,
) -> Views:
    """Large and small views of a picture, each drawn for itself; the first is what `random_view` would give.

    Args:
        picture: uint8, (channels, height, width).
        size: side of a large view in pixels.
        settings: what may happen to each.
        crops: how many there are, and what the small ones cover.
        generator: decides what happens; the same state gives the same views.
    """
    of_local = replace(settings, crop_scale=crops.local_crop_scale)
    large = [random_view(picture, size, settings, generator) for _ in range(crops.num_global)]
    small = [random_view(picture, crops.local_size, of_local, generator) for _ in range(crops.num_local)]
    none = picture.new_empty(0, len(picture), crops.local_size, crops.local_size)
    return Views(torch.stack(large), torch.stack(small) if small else none)


def random_view(
    picture: torch.Tensor, size: int, settings: AugmentationSettings, generator: torch.Generator
) -> torch.Tensor:
    """A random crop, resized (bicubic, antialiased), perhaps flipped, perhaps changed by AutoAugment.

    Args:
        picture: uint8, (channels, height, width).
        size: side of the view in pixels.
        settings: what may happen.
        generator: decides what does; the same state gives the same view.

    Returns:
        uint8, (channels, size, size).

    Raises:
        ValueError: AutoAugment is asked for, and the picture has not three channels.
    """
    height, width = picture.shape[-2:]
    if settings.crop_ratio is None:
        top, left, rows, columns = _square(height, width, settings.crop_scale, generator)
    else:
        top, left, rows, columns = _rectangle(height, width, settings.crop_scale, settings.crop_ratio, generator)
    view = picture[:, top : top + rows, left : left + columns]
    if (rows, columns) != (size, size):
        # Resized as it lies in the picture, a crop takes up to twice as long; the pixels are the same.
        view = view[None].contiguous(memory_format=torch.channels_last)
        view = nn.functional.interpolate(view, size=(size, size), mode="bicubic", antialias=True)[0]
    if torch.rand(1, generator=generator).item() < settings.flip:
        view = view.flip(-1)
    return auto_augment(view, generator) if settings.auto_augment else view


def _square(
    height: int, width: int, scale: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a square whose area is a share of the largest one, anywhere in the picture."""
    share, down, right = torch.rand(3, generator=generator).tolist()
    side = max(1, round(min(height, width) * (scale[0] + (scale[1] - scale[0]) * share) ** 0.5))
    return int(down * (height - side + 1)), int(right * (width - side + 1)), side, side


def _rectangle(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random resized crop.

    The area is evenly spread in `scale`, the logarithm of the ratio in that of `ratio`. What does not fit is drawn
    again; after ten draws the crop is the largest of an allowed ratio in the middle of the picture.

    Reference:
        Szegedy et al. 2015, section 6, who do not say how the ratio is spread; that, the tries and what follows them
        are torchvision's RandomResizedCrop.
    """
    tries = torch.rand(_CROP_TRIES, 2, generator=generator).tolist()
    down, right = torch.rand(2, generator=generator).tolist()
    for share, shape in tries:
        area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
        drawn_ratio = ratio[0] * (ratio[1] / ratio[0]) ** shape
        rows, columns = round((area / drawn_ratio) ** 0.5), round((area * drawn_ratio) ** 0.5)
        if 0 < rows <= height and 0 < columns <= width:
            return int(down * (height - rows + 1)), int(right * (width - columns + 1)), rows, columns
    rows = max(1, min(height, round(width / ratio[0])))
    columns = max(1, min(width, round(height * ratio[1])))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


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
    done = {name: getattr(settings, name) for name in ("crop_scale", "crop_ratio", "flip", "auto_augment")}
    if views.shape[1] == 3 and settings == AugmentationSettings(**done):
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
