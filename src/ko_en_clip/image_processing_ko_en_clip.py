"""Pictures to normalised pixels with torch, numpy and Pillow alone: no torchvision.

CLIP's steps (Radford et al. 2021, released code): shortest side by bicubic resize, centre crop, normalise. Resizing
is torch's antialiased bicubic on uint8, on photographs within 2 of 255 of Pillow's. Shipped beside the weights:
imports from torch, numpy, transformers, Pillow and siblings only.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor, BatchFeature
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack

from .image_decoding_ko_en_clip import (
    Mode,
    check_number_of_pixels,
    decode,
    encoded_bytes,
    pil_to_tensor,
    readable,
)

_INTERPOLATIONS = {PILImageResampling.BICUBIC: "bicubic", PILImageResampling.BILINEAR: "bilinear"}


class KoEnClipImageProcessor(BaseImageProcessor):
    r"""Makes `pixel_values` from pictures, with the settings and call arguments of `CLIPImageProcessor`.

    Takes one picture or a list of pictures of any sizes: encoded files as `bytes`, paths, URLs, `data:` URLs, Pillow
    pictures, and numpy arrays or torch tensors with 1, 3 or 4 channels, first or last. Arrays are uint8, or floats
    from 0 to 255 (from 0 to 1 with `do_rescale=False`); floats are not rounded. Pictures with an EXIF orientation are
    turned upright, transparent ones are laid on white, of animations the first frame is taken.

    Work is done on the CPU in `torch.get_num_threads()` threads, one picture each; `device` says where the batch goes.
    `resample` is bicubic or bilinear, `size` has `shortest_edge`, or `height` and `width`; nothing is padded
    (`do_pad`), and channels come first (`data_format`).

    A picture that cannot be read or understood raises a `ValueError` with its place in the batch and the reason. So
    does one of more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, before or after resizing.
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

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """What is given: paths and URLs are read with the picture they hold, each in its thread."""
        return image_url_or_urls

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """One picture at its own size: (channels, height, width), uint8, or float32 where it was an array of floats.

        Raises:
            ValueError: it is not a picture, does not decode, or has values, channels or dimensions out of range.
        """
        mode: Mode = "RGB" if do_convert_rgb else None
        if isinstance(image, np.ndarray | torch.Tensor):
            top = 255 if do_rescale else 1
            pixels = _array_to_tensor(image, input_data_format, top)
            return _array_to_rgb(pixels, 255 if pixels.dtype == torch.uint8 else top) if do_convert_rgb else pixels
        if isinstance(image, Image.Image):
            return readable(partial(pil_to_tensor, image, mode))
        if isinstance(image, bytes | bytearray | memoryview | str | os.PathLike):
            return decode(readable(partial(encoded_bytes, image)), mode)
        raise ValueError(
            f"it is of type {type(image).__name__}; it must be bytes, a path, a URL, a Pillow picture, an array or a "
            "tensor."
        )

    def _prepare_image_like_inputs(self, images: Any, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        """Every picture resized and cropped, not yet rescaled."""
        pictures = _flat(images)
        if not pictures:
            raise ValueError("there is no picture in the batch; give at least one.")
        _check_settings(kwargs)

        def view(index: int) -> torch.Tensor:
            try:
                return self._view(pictures[index], kwargs)
            except ValueError as error:
                raise ValueError(f"picture {index} of the batch: {error}") from error

        # Pillow reads a file when its pixels are first asked for, and two threads must not ask at once.
        opened = [id(picture) for picture in pictures if isinstance(picture, Image.Image)]
        threads = min(torch.get_num_threads(), len(pictures)) if len(set(opened)) == len(opened) else 1
        if threads == 1:
            return [view(index) for index in range(len(pictures))]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(view, range(len(pictures))))

    def _view(self, image: Any, settings: dict[str, Any]) -> torch.Tensor:
        pixels = self.process_image(image, **settings)
        mean = settings["image_mean"]
        if settings["do_normalize"] and isinstance(mean, Sequence) and len(mean) != len(pixels):
            raise ValueError(
                f"it has {len(pixels)} channels, but image_mean has {len(mean)} values; leave do_convert_rgb on, or "
                "give a mean and a deviation for each channel."
            )
        if settings["do_resize"]:
            target, mode = _target_size(pixels, settings["size"]), _INTERPOLATIONS[settings["resample"]]
            pixels = _resize(pixels, target, mode, top=255 if settings["do_rescale"] else 1)
        if settings["do_center_crop"]:
            pixels = _center_crop(pixels, settings["crop_size"].height, settings["crop_size"].width)
        # A copy, so that the picture at full size can go.
        return pixels.contiguous()

    def _preprocess(
        self,
        images: list[torch.Tensor],
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | Sequence[float],
        image_std: float | Sequence[float],
        return_tensors: str | None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (image_mean, image_std))
        as_given = not do_rescale and not do_normalize and all(image.dtype == torch.uint8 for image in images)
        dtype = torch.uint8 if as_given else torch.float32
        alike = len({image.shape for image in images}) == 1
        batch = torch.empty(len(images), *images[0].shape, dtype=dtype) if alike else None
        pictures = [torch.empty(image.shape, dtype=dtype) for image in images] if batch is None else list(batch)
        for picture, image in zip(pictures, images, strict=True):
            # In place in the batch, where a picture stays in the cache from one operation to the next.
            picture.copy_(image)
            if do_rescale:
                picture.mul_(rescale_factor)
            if do_normalize:
                picture.sub_(mean).div_(std)
        if return_tensors is None or batch is None:
            placed = [picture.to(device) for picture in pictures]
            return BatchFeature({"pixel_values": placed}, tensor_type=return_tensors)
        batch = batch.to(device)
        return BatchFeature({"pixel_values": batch.cpu().numpy() if return_tensors == "np" else batch})


def _flat(images: Any) -> list[Any]:
    """Single pictures of a picture, a batch in one array, or a list of these."""
    if isinstance(images, list | tuple):
        return [picture for each in images for picture in _flat(each)]
    return list(images) if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4 else [images]


def _check_settings(settings: dict[str, Any]) -> None:
    size, resample = settings["size"], settings["resample"]
    sides = {name for name, side in dict(size or {}).items() if side}
    if settings["do_resize"] and sides not in ({"shortest_edge"}, {"height", "width"}):
        raise ValueError(f"size is {dict(size)}; it must have 'shortest_edge', or 'height' and 'width'.")
    if settings["do_resize"] and resample not in _INTERPOLATIONS:
        raise ValueError(
            f"resample is {resample!r}; torch resizes uint8 by {', '.join(_INTERPOLATIONS.values())} only."
        )
    if settings["do_pad"]:
        raise ValueError("do_pad is True, but pictures are not padded; crop_size brings them to one size.")
    if settings["data_format"] not in (None, ChannelDimension.FIRST):
        raise ValueError(f"data_format is {settings['data_format']!r}; channels come first: permute the result.")


def _array_to_tensor(
    image: np.ndarray | torch.Tensor, input_data_format: str | ChannelDimension | None, top: int
) -> torch.Tensor:
    found = f"{image.dtype} {tuple(image.shape)}"
    if isinstance(image, np.ndarray) and (image.dtype == np.uint8 or image.dtype.kind == "f"):
        # torch knows neither negative strides nor read-only memory nor every kind of float.
        image = torch.from_numpy(np.require(image, np.float32 if image.dtype.kind == "f" else np.uint8, ["C", "W"]))
    colours = isinstance(image, torch.Tensor) and (image.dtype == torch.uint8 or image.is_floating_point())
    if not isinstance(image, torch.Tensor) or not colours or image.dim() != 3:
        raise ValueError(
            f"it is {found}; it must be uint8 or floats, (channels, height, width) or (height, width, channels)."
        )
    if image.numel() == 0:
        raise ValueError(f"it is {found}, without a pixel.")
    pixels = _channels_first(image.detach().cpu(), input_data_format)
    if pixels.dtype == torch.uint8:
        return pixels
    pixels = pixels.float()
    low, high = (float(value) for value in pixels.aminmax())
    if not (low >= 0 and high <= top):
        raise ValueError(
            f"its values go from {low:g} to {high:g}; floats must be from 0 to {top} with do_rescale={top == 255}."
        )
    if top == 255 and 0 < high <= 1:
        raise ValueError("its values go up to 1, so they are rescaled already; pass do_rescale=False.")
    return pixels


def _channels_first(pixels: torch.Tensor, input_data_format: str | ChannelDimension | None) -> torch.Tensor:
    numbers = (1, 3, 4)
    first, last = (pixels.shape[dim] in numbers for dim in (0, 2))
    if input_data_format is None:
        if first == last:
            problem = "may have its channels first or last" if first else "has no dimension of 1, 3 or 4 channels"
            raise ValueError(f"its shape {tuple(pixels.shape)} {problem}; pass input_data_format.")
        return pixels if first else pixels.permute(2, 0, 1)
    pixels = pixels.permute(2, 0, 1) if input_data_format == ChannelDimension.LAST else pixels
    if len(pixels) not in numbers:
        raise ValueError(f"it has {len(pixels)} channels as input_data_format says; it must have 1, 3 or 4.")
    return pixels


def _array_to_rgb(pixels: torch.Tensor, top: int) -> torch.Tensor:
    if len(pixels) == 4:
        alpha = pixels[3:].float() / top
        mixed = pixels[:3].float() * alpha + top * (1 - alpha)
        return mixed.round().to(torch.uint8) if pixels.dtype == torch.uint8 else mixed
    return pixels.expand(3, -1, -1)


def _target_size(image: torch.Tensor, size: SizeDict) -> tuple[int, int]:
    height, width = image.shape[-2:]
    if not size.shortest_edge:
        assert size.height and size.width
        return size.height, size.width
    # CLIP's rule: the longer side is cut, not rounded, to whole pixels.
    short, long = min(height, width), max(height, width)
    longest_edge = int(size.shortest_edge * long / short)
    target = (size.shortest_edge, longest_edge) if height <= width else (longest_edge, size.shortest_edge)
    check_number_of_pixels(target[1], target[0], f" when resized from {width} x {height}")
    return target


def _resize(image: torch.Tensor, target: tuple[int, int], mode: str, top: int) -> torch.Tensor:
    if tuple(image.shape[-2:]) == target:
        return image
    resized = torch.nn.functional.interpolate(image[None], size=target, mode=mode, antialias=True)[0]
    return resized if resized.dtype == torch.uint8 else resized.clamp_(0, top)


def _center_crop(image: torch.Tensor, crop_height: int, crop_width: int) -> torch.Tensor:
    """The middle of a picture; what reaches over its edge is black, as in CLIP's processor."""
    height, width = image.shape[-2:]
    # An odd margin has its larger half before the picture, as in transformers.
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    image = image[:, max(top, 0) :, max(left, 0) :][:, :crop_height, :crop_width]
    if top >= 0 and left >= 0:
        return image
    canvas = image.new_zeros(len(image), crop_height, crop_width)
    canvas[:, max(-top, 0) :, max(-left, 0) :][:, :height, :width] = image
    return canvas
