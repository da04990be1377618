"""Pictures to normalised pixels with torch alone: no torchvision.

CLIP's steps (Radford et al. 2021, released code): shortest side by bicubic resize, centre crop, normalise. Resizing
is torch's antialiased bicubic on uint8, on photographs within 2 of 255 of Pillow's. Shipped beside the weights:
imports from torch, numpy and transformers only.
"""

from typing import Any

import numpy as np
import torch
from transformers import BaseImageProcessor, BatchFeature
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs, Unpack

_MODES = {PILImageResampling.BICUBIC: "bicubic", PILImageResampling.BILINEAR: "bilinear"}


class KoEnClipImageProcessor(BaseImageProcessor):
    r"""Makes `pixel_values` from pictures, with the settings and call arguments of `CLIPImageProcessor`.

    Takes PIL pictures, numpy arrays, torch tensors, paths and URLs, one or a list. Transparent pictures are laid on
    white. Arrays and tensors are uint8 with 1, 3 or 4 channels, first or last.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def __init__(self, **kwargs: Unpack[ImagesKwargs]):
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)

    @property
    def backend(self) -> str:
        """Name under which the class is registered: no torchvision is involved."""
        return "pil"

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """One picture as a uint8 tensor of shape (channels, height, width).

        Raises:
            ValueError: the picture is neither a PIL picture nor a uint8 array or tensor of 3 dimensions.
        """
        if hasattr(image, "convert"):
            pixels = _pil_to_tensor(image, to_rgb=bool(do_convert_rgb))
        else:
            pixels = torch.from_numpy(image) if isinstance(image, np.ndarray) else image
            if not isinstance(pixels, torch.Tensor) or pixels.dtype != torch.uint8 or pixels.dim() != 3:
                found = f"{pixels.dtype} {tuple(pixels.shape)}" if isinstance(pixels, torch.Tensor) else type(image)
                raise ValueError(
                    f"a picture is {found}; it must be a PIL picture, or a uint8 array or tensor of "
                    "(channels, height, width) or (height, width, channels)."
                )
            pixels = _channels_first(pixels, input_data_format)
            if do_convert_rgb:
                pixels = _array_to_rgb(pixels)
        return pixels

    def _preprocess(
        self,
        images: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling,
        do_center_crop: bool,
        crop_size: SizeDict,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        return_tensors: str | None,
        **kwargs: Any,
    ) -> BatchFeature:
        pictures = []
        for image in images:
            if do_resize:
                if resample not in _MODES:
                    raise ValueError(f"resample is {resample}; torch resizes by {', '.join(_MODES.values())} only.")
                image = _resize(image, _target_size(image, size), _MODES[PILImageResampling(resample)])
            if do_center_crop:
                assert crop_size.height is not None and crop_size.width is not None
                image = _center_crop(image, crop_size.height, crop_size.width)
            pixels = image.float()
            if do_rescale:
                pixels = pixels * rescale_factor
            if do_normalize:
                mean = torch.tensor(image_mean)[:, None, None]
                pixels = (pixels - mean) / torch.tensor(image_std)[:, None, None]
            pictures.append(pixels)
        return BatchFeature(data={"pixel_values": pictures}, tensor_type=return_tensors)


def eight_bits(image: Any) -> Any:
    """A PIL picture with 8 bits a channel: 16-bit grey is scaled, which Pillow's own conversion would cut off at 255.

    Raises:
        ValueError: 32-bit integers or floats, whose range the file does not say.
    """
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.mode in ("I", "F"):
        raise ValueError(f"the picture has mode {image.mode}, of no known range; convert it to 8 or 16 bits.")
    return image


def _pil_to_tensor(image: Any, to_rgb: bool) -> torch.Tensor:
    image = eight_bits(image)
    if to_rgb and image.mode != "RGB":
        if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
            # Transparent areas hold arbitrary colours; white is what a page shows behind them.
            image = image.convert("RGBA")
            white = image.copy()
            white.paste((255, 255, 255, 255), (0, 0, *image.size))
            white.alpha_composite(image)
            image = white
        image = image.convert("RGB")
    array = np.array(image)
    # (H, W, C) in memory, seen as (C, H, W): torch's uint8 resize is fastest on this layout.
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


def _channels_first(pixels: torch.Tensor, input_data_format: str | ChannelDimension | None) -> torch.Tensor:
    if input_data_format is None:
        input_data_format = infer_channel_dimension_format(pixels.numpy(), num_channels=(1, 3, 4))
    return pixels.permute(2, 0, 1) if input_data_format == ChannelDimension.LAST else pixels


def _array_to_rgb(pixels: torch.Tensor) -> torch.Tensor:
    if pixels.shape[0] == 1:
        return pixels.expand(3, -1, -1)
    if pixels.shape[0] == 4:
        alpha = pixels[3:].float() / 255
        return (pixels[:3].float() * alpha + 255 * (1 - alpha)).round().to(torch.uint8)
    return pixels


def _target_size(image: torch.Tensor, size: SizeDict) -> tuple[int, int]:
    height, width = image.shape[-2:]
    if size.shortest_edge:
        # CLIP's rule: the longer side is cut, not rounded, to whole pixels.
        short, long = min(height, width), max(height, width)
        longest_edge = int(size.shortest_edge * long / short)
        return (size.shortest_edge, longest_edge) if height <= width else (longest_edge, size.shortest_edge)
    if size.height and size.width:
        return size.height, size.width
    raise ValueError(f"size is {dict(size)}; it must have 'shortest_edge', or 'height' and 'width'.")


def _resize(image: torch.Tensor, target: tuple[int, int], mode: str) -> torch.Tensor:
    if tuple(image.shape[-2:]) == target:
        return image
    return torch.nn.functional.interpolate(image[None], size=target, mode=mode, antialias=True)[0]


def _center_crop(image: torch.Tensor, crop_height: int, crop_width: int) -> torch.Tensor:
    """The middle of a picture; what reaches over its edge is black, as in CLIP's processor."""
    height, width = image.shape[-2:]
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    if top < 0 or left < 0:
        # An odd margin has its larger half before the picture, as in transformers.
        pad_top, pad_left = max(-top, 0), max(-left, 0)
        canvas = image.new_zeros(image.shape[0], max(height, crop_height), max(width, crop_width))
        canvas[:, pad_top : pad_top + height, pad_left : pad_left + width] = image
        image, top, left = canvas, max(top, 0), max(left, 0)
    return image[:, top : top + crop_height, left : left + crop_width]
