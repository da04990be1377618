"""Encoded and Pillow pictures to pixels, upright and of 8 bits; what processor and data sets read pictures through.

JPEG files are decoded by simplejpeg where it is installed, else by Pillow as all other formats are: both are
libjpeg-turbo with the same settings, and give the same pixels. simplejpeg is faster, and refuses some damaged files
that Pillow fills with grey. Shipped beside the weights: imports from torch, numpy, huggingface_hub and Pillow only.
"""

import base64
import io
import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub.utils import get_session, hf_raise_for_status
from PIL import ExifTags, Image, ImageFile, ImageOps

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

Mode = Literal["RGB", "RGBa"] | None
_TIMEOUT_SECONDS = 30
# What libjpeg says of files whose pixels are all there: bytes between the last of them and the end, and a field that
# sequential JPEG does not use.
_HARMLESS = ("extraneous bytes before marker 0xd9", "Invalid SOS parameters")
# Why simplejpeg refuses sound files, strict or not: channels sampled in ways that TurboJPEG has no name for, and a
# version of the header that libjpeg does not know.
_LEFT_TO_PILLOW = ("Could not determine subsampling", "unknown JFIF revision")
# PNG whose pixels Pillow scales to other bits, but not the one colour that stands for transparent.
_OTHER_BITS = ("L;2", "L;4", "I;16", "I;16B", "RGB;16B")
# Orientation of EXIF: whether rows and columns change places, and the steps through the rows and columns then.
_TURNS = {2: (False, 1, -1), 3: (False, -1, -1), 4: (False, -1, 1), 5: (True, 1, 1), 6: (True, 1, -1)}
_TURNS |= {7: (True, -1, -1), 8: (True, -1, 1)}


def decode(encoded: bytes, mode: Mode = "RGB") -> torch.Tensor:
    """Pixels of an encoded picture, upright: uint8, (channels, height, width).

    Args:
        encoded: a file in any format that Pillow reads.
        mode: "RGB" for colours laid on white; "RGBa" for opacity, too, with colours multiplied by it (Pillow's name);
            None for the picture's own channels, where they are grey, RGB or RGBA.

    Raises:
        ValueError: it does not decode, has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or values of no known range.
    """

    def pixels() -> torch.Tensor:
        with Image.open(io.BytesIO(encoded)) as image:
            if simplejpeg is not None and image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
                return _jpeg_to_tensor(encoded, image, mode)
            return pil_to_tensor(image, mode)

    return readable(pixels)


def readable(read: Callable[[], Any]) -> Any:
    """What `read` returns; whatever it raises as a `ValueError`."""
    try:
        return read()
    except ValueError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ValueError("UnidentifiedImageError: it is in no format that Pillow reads.") from error
    # Pillow has no error class of its own: damaged files end in a dozen classes, from struct.error to warnings.
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def encoded_bytes(source: Any) -> bytes:
    """The file that bytes, a path, a URL or a `data:` URL give.

    Raises:
        OSError: it cannot be read or fetched.
        ValueError: a `data:` URL is not base64.
    """
    if not isinstance(source, str | os.PathLike):
        return bytes(source)
    text = os.fspath(source)
    if text.startswith(("http://", "https://")):
        response = get_session().get(text, follow_redirects=True, timeout=_TIMEOUT_SECONDS)
        hf_raise_for_status(response)
        return response.content
    if text.startswith("data:image/"):
        return base64.b64decode(text.partition(",")[2], validate=True)
    with open(text, "rb") as file:
        return file.read()


def _jpeg_to_tensor(encoded: bytes, header: Image.Image, mode: Mode) -> torch.Tensor:
    check_number_of_pixels(header.width, header.height)
    colours = "GRAY" if mode is None and header.mode == "L" else "RGB"
    try:
        array = simplejpeg.decode_jpeg(encoded, colorspace=colours)
    except ValueError as error:
        if any(message in str(error) for message in _LEFT_TO_PILLOW):
            return pil_to_tensor(header, mode)
        if not any(message in str(error) for message in _HARMLESS):
            raise
        array = simplejpeg.decode_jpeg(encoded, colorspace=colours, strict=False)
    orientation = header.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation in _TURNS:
        swap, down, right = _TURNS[orientation]
        # Moved as a whole, a pixel takes a third of the time.
        whole = array.view(f"V{array.shape[2]}")[:, :, 0]
        whole = np.ascontiguousarray((whole.T if swap else whole)[::down, ::right])
        array = whole.view(np.uint8).reshape(*whole.shape, -1)
    # (H, W, C) in memory, seen as (C, H, W): torch's uint8 resize is fastest on this layout.
    pixels = torch.from_numpy(array).permute(2, 0, 1)
    return torch.cat([pixels, torch.full_like(pixels[:1], 255)]) if mode == "RGBa" else pixels


def pil_to_tensor(image: Image.Image, mode: Mode) -> torch.Tensor:
    """Pixels of a Pillow picture as `decode` gives those of a file; of an animation the frame that it stands at.

    Raises:
        ValueError: as of `decode`; damaged files raise whatever Pillow does.
    """
    check_number_of_pixels(image.width, image.height)
    stored = image.tile[0][3] if isinstance(image, ImageFile.ImageFile) and image.tile else image.mode
    if stored in _OTHER_BITS and isinstance(image.info.get("transparency"), int | tuple):
        raise ValueError(f"it has a transparent colour and {stored} pixels, which Pillow takes apart; make it RGBA.")
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    image = _eight_bits(image)
    if mode == "RGBa":
        image = image.convert("RGBA").convert("RGBa")
    elif mode == "RGB":
        image = _on_white(image)
    elif image.mode not in ("L", "RGB", "RGBA"):
        raise ValueError(f"it has mode {image.mode}, whose numbers are not colours; leave do_convert_rgb on.")
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """8 bits a channel: 16-bit grey is scaled, which Pillow's own conversion would cut off at 255."""
    if image.mode.startswith("I;16"):
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"it has mode {image.mode}, of no known range; convert it to 8 or 16 bits.")
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """In RGB. Transparent areas hold arbitrary colours; white is what a page shows behind them."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white.convert("RGB")


def check_number_of_pixels(width: int, height: int, done: str = "") -> None:
    """Raise `ValueError` for more pixels than `PIL.Image.MAX_IMAGE_PIXELS`; `done` says how they came to be."""
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"it has {width} x {height} pixels{done}, more than PIL.Image.MAX_IMAGE_PIXELS "
            f"({Image.MAX_IMAGE_PIXELS}); make it smaller, or cut it."
        )
