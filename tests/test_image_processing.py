"""The image processor, held against transformers' CLIP processor on Pillow."""

import base64
import functools
import http.server
import io
import json
import math
import random
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageDraw, features
from torch.testing import assert_close
from transformers.image_utils import load_image
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ko_en_clip import KoEnClipImageProcessor, image_decoding_ko_en_clip
from ko_en_clip.image_decoding_ko_en_clip import decode

SETTINGS: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = [(32, 32), (64, 64), (100, 40), (41, 97), (33, 32), (20, 20), (9, 50), (3, 90), (300, 200)]


def drawing(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with hard-edged shapes on them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(a * x / width * 6 + b * y / height * 6 + c) for a, b, c in rng.uniform(0, 3, (3, 3))]
    image = Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        left, top = rng.integers(0, width), rng.integers(0, height)
        corners = [left, top, left + width // 3, top + height // 3]
        pen.rectangle([int(corner) for corner in corners], fill=tuple(int(part) for part in rng.integers(0, 256, 3)))
    return image


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """The hardest picture to resize: every pixel unlike its neighbours."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, format: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


def rgb(image: Image.Image) -> torch.Tensor:
    """Pillow's own conversion, (3, height, width)."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def softened(image: Image.Image) -> Image.Image:
    """Between 64 and 191, so that bicubic overshoot is nowhere cut off at black or white."""
    return image.point(lambda value: 64 + value // 2)


def pixels(processor: Any, image: Any, **kwargs: Any) -> torch.Tensor:
    """One picture, from 0 to 255."""
    return processor(image, do_normalize=False, return_tensors="pt", **kwargs)["pixel_values"][0] * 255


def assert_within_2_of_255(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Documented: antialiased uint8 bicubic of torch is within 2 of Pillow's; both round to whole numbers.

    The mean allows for one pixel in three being off by one: rounding after each pass, the passes in another order.
    """
    assert found.shape == expected.shape
    # Rescaling by 1/255 and back: 1e-4.
    assert (found - expected).abs().max() <= 2 + 1e-4
    assert (found - expected).abs().mean() <= 1 / 3


# Against transformers


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [drawing, noise])
def test_pixels_are_within_2_of_transformers(make: Any, size: tuple[int, int]) -> None:
    image = softened(make(*size))
    found = pixels(KoEnClipImageProcessor(**SETTINGS), image)
    assert_within_2_of_255(found, pixels(CLIPImageProcessorPil(**SETTINGS), image))
    # The twin: bilinear is further away than that, where there is anything to resize.
    if min(size) != 32:
        other = pixels(CLIPImageProcessorPil(**SETTINGS, resample=Image.Resampling.BILINEAR), image)
        assert (found - other).abs().max() > 3


@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_full_contrast_are_within_2_of_pillows_passes(size: tuple[int, int]) -> None:
    """Bicubic overshoots at black and white, and is cut off there after the horizontal pass, before the vertical."""
    image = noise(*size)
    found = pixels(KoEnClipImageProcessor(**SETTINGS), image, do_center_crop=False).int().permute(1, 2, 0).numpy()
    height, width = found.shape[:2]
    wide = image.resize((width, image.height), Image.Resampling.BICUBIC)
    expected = np.array(wide.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(found - expected).max() <= 2


@pytest.fixture(params=["simplejpeg", "Pillow"])
def jpeg_decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With simplejpeg, and as where it is not installed."""
    if request.param == "Pillow":
        monkeypatch.setattr(image_decoding_ko_en_clip, "simplejpeg", None)
    else:
        pytest.importorskip("simplejpeg")
    return str(request.param)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[Path]:
    return sorted((shared_data / "photos").glob("*.jpg"))


@pytest.fixture(scope="module")
def of_transformers(photos: list[Path]) -> torch.Tensor:
    """What transformers makes of the photographs, 0 to 255: its own loading, which turns them upright, and CLIP's."""
    return on_255(CLIPImageProcessorPil()([load_image(str(photo)) for photo in photos], return_tensors="pt"))


def on_255(batch: Any) -> torch.Tensor:
    """The normalisation undone."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (batch["pixel_values"] * std + mean) * 255


def assert_are_those_of_transformers(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Demanded: 0.01 on average, 2 at most; both round to whole numbers. 1e-3: the normalisation undone."""
    assert found.shape == expected.shape
    difference = (found - expected).abs()
    assert difference.max() <= 2 + 1e-3
    assert difference.mean() < 0.01


@pytest.mark.parametrize("form", ["bytes", "path", "string", "picture"])
def test_photos_are_those_of_transformers(
    form: str, jpeg_decoder: str, photos: list[Path], of_transformers: torch.Tensor
) -> None:
    given: list[Any] = {
        "bytes": [photo.read_bytes() for photo in photos],
        "path": photos,
        "string": [str(photo) for photo in photos],
        "picture": [Image.open(io.BytesIO(photo.read_bytes())) for photo in photos],
    }[form]
    found = on_255(KoEnClipImageProcessor()(given, return_tensors="pt"))
    assert len(found) > 80
    assert_are_those_of_transformers(found, of_transformers)
    # The twins: every picture is unlike the next one, and unlike its mirror image.
    assert ((found - of_transformers.roll(1, 0)).abs().mean(dim=(1, 2, 3)) > 1).all()
    assert ((found - of_transformers.flip(3)).abs().mean(dim=(1, 2, 3)) > 1).all()


def test_threads_give_the_same_pixels(photos: list[Path], jpeg_decoder: str, two_threads: None) -> None:
    processor = KoEnClipImageProcessor()
    given = [photo.read_bytes() for photo in photos[:20]]
    found = processor(given, return_tensors="pt")["pixel_values"]
    torch.set_num_threads(1)
    assert_close(processor(given, return_tensors="pt")["pixel_values"], found, rtol=0, atol=0)
    assert not torch.equal(found, found.flip(0))


@pytest.mark.parametrize("threads", [1, 2])
def test_one_thread_starts_none(threads: int, two_threads: None) -> None:
    torch.set_num_threads(threads)
    names: list[str] = []

    class Watched(KoEnClipImageProcessor):
        def process_image(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            names.append(threading.current_thread().name)
            return super().process_image(*args, **kwargs)

    Watched(**SETTINGS)([drawing(40, 40, seed) for seed in range(4)])
    assert len(names) == 4
    assert (set(names) == {threading.current_thread().name}) == (threads == 1)


def test_picture_that_is_twice_in_a_batch_is_read_once(two_threads: None) -> None:
    """Pillow reads a file when its pixels are asked for, and is not made for two threads that ask at once."""
    image = Image.open(io.BytesIO(encoded(drawing(600, 500), "PNG")))
    found = KoEnClipImageProcessor(**SETTINGS)([image] * 8, return_tensors="pt")["pixel_values"]
    assert_close(found, found[:1].expand(8, -1, -1, -1), rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["RGB", "RGBa", None])
def test_decoders_of_jpeg_agree_to_the_bit(mode: Any, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    calls: list[int] = []

    class Counted:
        @staticmethod
        def decode_jpeg(data: bytes, **kwargs: Any) -> Any:
            calls.append(len(data))
            return simplejpeg.decode_jpeg(data, **kwargs)

    drawn = drawing(75, 53)
    files = [photo.read_bytes() for photo in photos]
    files += [encoded(drawn, "JPEG", subsampling=each, quality=90) for each in ("4:4:4", "4:2:2", "4:2:0")]
    files += [encoded(drawn, "JPEG", progressive=True), encoded(drawn.convert("L"), "JPEG")]
    for number, file in enumerate(files):
        monkeypatch.setattr(image_decoding_ko_en_clip, "simplejpeg", Counted)
        found = decode(file, mode)
        assert len(calls) == number + 1
        monkeypatch.setattr(image_decoding_ko_en_clip, "simplejpeg", None)
        expected = decode(file, mode)
        assert_close(found, expected, rtol=0, atol=0)
        assert len(calls) == number + 1
        grey = Image.open(io.BytesIO(file)).mode == "L"
        assert len(found) == {"RGB": 3, "RGBa": 4, None: 1 if grey else 3}[mode]


@pytest.mark.parametrize(
    "changed",
    [
        {"size": {"height": 24, "width": 40}, "do_center_crop": False},
        {"size": {"shortest_edge": 40}},
        {"size": {"shortest_edge": 20}},
        {"crop_size": {"height": 16, "width": 28}},
        {"do_center_crop": False},
        {"resample": Image.Resampling.BILINEAR},
    ],
)
def test_settings_mean_what_they_do_in_transformers(changed: dict[str, Any]) -> None:
    image = drawing(70, 50)
    default, ours, theirs = (
        pixels(each(**settings), image)
        for each, settings in (
            (KoEnClipImageProcessor, SETTINGS),
            (KoEnClipImageProcessor, SETTINGS | changed),
            (CLIPImageProcessorPil, SETTINGS | changed),
        )
    )
    assert_within_2_of_255(ours, theirs)
    assert ours.shape != default.shape or (ours - default).abs().max() > 3
    # The same as arguments of the call.
    assert_close(pixels(KoEnClipImageProcessor(**SETTINGS), image, **changed), ours, rtol=0, atol=0)


@pytest.mark.parametrize(
    "size",
    [
        (32, 32),
        (33, 35),
        (40, 20),
        (22, 50),
        (12, 30),
        (21, 50),
        (12, 31),
    ],
)
def test_crop_is_transformers_to_the_pixel(size: tuple[int, int]) -> None:
    """Without resizing nothing is rounded; what reaches over the edge is black in both."""
    image = noise(*size)
    found = pixels(KoEnClipImageProcessor(**SETTINGS), image, do_resize=False)
    # 1e-4: rescaling by 1/255 and back in float32.
    assert_close(found, pixels(CLIPImageProcessorPil(**SETTINGS), image, do_resize=False), rtol=0, atol=1e-4)
    assert ((found == 0).all(dim=0).any()) == (min(size) < 32)


def test_normalised_pixels_are_transformers() -> None:
    image = noise(32, 32)
    found, expected = (
        processor(**SETTINGS)(image, return_tensors="pt")["pixel_values"]
        for processor in (KoEnClipImageProcessor, CLIPImageProcessorPil)
    )
    assert (found.dtype, found.shape) == (torch.float32, (1, 3, 32, 32))
    # 1e-5: float32; nothing is resized.
    assert_close(found, expected, rtol=0, atol=1e-5)
    # By hand: CLIP's mean and deviation of each channel.
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    raw = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert_close(found[0], (raw - mean[:, None, None]) / std[:, None, None], rtol=0, atol=1e-5)
    own = KoEnClipImageProcessor(**SETTINGS, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    assert_close(own(image, return_tensors="pt")["pixel_values"][0], 2 * raw - 1, rtol=0, atol=1e-5)


# Modes of pictures


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV"])
def test_other_modes_are_converted_as_pillow_does(mode: str) -> None:
    image = drawing(32, 32)
    image = image.convert(mode)
    assert image.mode == mode
    found = pixels(KoEnClipImageProcessor(**SETTINGS), image)
    expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()
    # 1e-4: rescaling by 1/255 and back; nothing is resized.
    assert_close(found, expected, rtol=0, atol=1e-4)
    assert found.std() > 1


def test_16_bits_are_scaled_to_8_and_not_cut_off() -> None:
    grey = np.array(drawing(32, 32).convert("L"))
    image = Image.fromarray(grey.astype(np.uint16) * 257)
    assert image.mode == "I;16"
    found = pixels(KoEnClipImageProcessor(**SETTINGS), image)
    assert_close(found, torch.from_numpy(grey).float().expand(3, -1, -1), rtol=0, atol=1e-4)
    # The twin: Pillow's own conversion makes nearly everything white.
    assert np.array(image.convert("L")).mean() > found.mean() + 50
    with pytest.raises(ValueError, match="no known range"):
        KoEnClipImageProcessor(**SETTINGS)(image.convert("F"))


def transparent(mode: str) -> Image.Image:
    """Left half opaque, right half transparent over a colour that must not show."""
    image = Image.new("RGBA", (32, 32), (200, 30, 60, 255))
    image.paste((10, 20, 250, 0), (16, 0, 32, 32))
    if mode == "P":
        palette = Image.new("P", (32, 32), 0)
        palette.putpalette([200, 30, 60, 10, 20, 250])
        palette.paste(1, (16, 0, 32, 32))
        palette.info["transparency"] = 1
        return palette
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_areas_are_white(mode: str) -> None:
    image = transparent(mode)
    opaque = image.convert("RGBA").convert("RGB")
    found = pixels(KoEnClipImageProcessor(**SETTINGS), image)
    assert_close(found[:, :, 16:], torch.full((3, 32, 16), 255.0), rtol=0, atol=1e-4)
    left = torch.from_numpy(np.array(opaque)).permute(2, 0, 1)[:, :, :16].float()
    assert_close(found[:, :, :16], left, rtol=0, atol=1e-4)
    # The twin: without its alpha the picture shows the colour beneath.
    assert (pixels(KoEnClipImageProcessor(**SETTINGS), opaque)[:, :, 16:] < 255).any()


@pytest.mark.parametrize("form", ["picture", "array"])
def test_half_transparent_is_mixed_with_white(form: str) -> None:
    image = Image.new("RGBA", (32, 32), (100, 0, 200, 128))
    given = image if form == "picture" else np.array(image)
    found = pixels(KoEnClipImageProcessor(**SETTINGS), given)[:, 5, 5]
    # By hand: colour * 128/255 + 255 * 127/255, to the nearest whole number or its neighbour.
    expected = torch.tensor([colour * 128 / 255 + 255 * 127 / 255 for colour in (100, 0, 200)])
    assert_close(found, expected, rtol=0, atol=1.0)


# Arrays, tensors, paths, lists


@pytest.mark.parametrize("tensor", [np.array, lambda array: torch.from_numpy(np.array(array))])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("first", [True, False])
def test_arrays_give_what_pictures_give(tensor: Any, channels: int, first: bool) -> None:
    image = drawing(60, 45).convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    array = np.array(image).reshape(45, 60, channels)
    array = np.ascontiguousarray(array.transpose(2, 0, 1)) if first else array
    processor = KoEnClipImageProcessor(**SETTINGS)
    found = pixels(processor, tensor(array))
    assert_close(found, pixels(processor, image), rtol=0, atol=1e-4)
    told = pixels(processor, tensor(array), input_data_format="channels_first" if first else "channels_last")
    assert_close(told, found, rtol=0, atol=0)
    assert (found - pixels(processor, drawing(60, 45, seed=1))).abs().max() > 3


def test_array_without_channels_is_refused() -> None:
    processor = KoEnClipImageProcessor(**SETTINGS)
    flat = np.array(drawing(40, 50).convert("L"))
    with pytest.raises(ValueError, match=r"uint8 \(50, 40\); it must be"):
        processor.process_image(flat, do_convert_rgb=True)
    assert processor.process_image(flat[None], do_convert_rgb=True).shape == (3, 50, 40)


def test_paths_are_opened(tmp_path: Path) -> None:
    image = drawing(60, 45)
    image.save(tmp_path / "picture.png")
    processor = KoEnClipImageProcessor(**SETTINGS)
    assert_close(pixels(processor, str(tmp_path / "picture.png")), pixels(processor, image), rtol=0, atol=0)


def test_list_of_unlike_pictures_is_one_batch() -> None:
    images = [drawing(60, 45), drawing(33, 90).convert("L"), transparent("RGBA"), np.array(noise(40, 40))]
    processor = KoEnClipImageProcessor(**SETTINGS)
    batch = processor(images, do_normalize=False, return_tensors="pt")["pixel_values"] * 255
    assert batch.shape == (4, 3, 32, 32)
    for found, image in zip(batch, images, strict=True):
        assert_close(found, pixels(processor, image), rtol=0, atol=0)
    assert len(processor(images)["pixel_values"]) == 4


def test_picture_given_is_left_as_it_was() -> None:
    for image in (drawing(60, 45), transparent("RGBA"), transparent("P")):
        before = image.copy()
        KoEnClipImageProcessor(**SETTINGS)(image)
        assert (image.mode, image.tobytes()) == (before.mode, before.tobytes())
    array = np.array(noise(40, 40))
    before = array.copy()
    KoEnClipImageProcessor(**SETTINGS)(array)
    np.testing.assert_array_equal(array, before)


# Files of every kind


def png(width: int, height: int, bits: int, kind: int, rows: bytes, **chunks: bytes) -> bytes:
    """A PNG by hand (kind 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA); rows begin with their filter, 0."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    middle = b"".join(chunk(name.encode(), content) for name, content in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + header + middle + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


PALETTE = bytes([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
WHITE = [255, 255, 255]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        pytest.param(png(2, 1, 8, 0, b"\0\5\xf0"), [[5] * 3, [240] * 3], id="grey"),
        pytest.param(png(8, 1, 1, 0, b"\0\x35"), [[255 * int(bit)] * 3 for bit in "00110101"], id="1 bit"),
        pytest.param(png(4, 1, 2, 0, b"\0\x1b"), [[0] * 3, [85] * 3, [170] * 3, WHITE], id="2 bits"),
        pytest.param(png(2, 1, 16, 0, b"\0\x12\x34\xff\xfe"), [[18] * 3, WHITE], id="grey of 16 bits"),
        # 0x1234 / 257 = 18.1, 0x5678 / 257 = 86.1, 0x9abc / 257 = 154.2.
        pytest.param(png(1, 1, 16, 2, b"\0\x12\x34\x56\x78\x9a\xbc"), [[18, 86, 154]], id="RGB of 16 bits"),
        pytest.param(png(4, 1, 2, 3, b"\0\x1b", PLTE=PALETTE), np.reshape(list(PALETTE), (4, 3)), id="palette"),
        # The third colour is half transparent: 70 * 128/255 + 255 * 127/255 = 162.1, and so on.
        pytest.param(
            png(4, 1, 2, 3, b"\0\x1b", PLTE=PALETTE, tRNS=b"\xff\0\x80"),
            [[10, 20, 30], WHITE, [162, 167, 172], [100, 110, 120]],
            id="palette with transparency",
        ),
        pytest.param(png(2, 1, 8, 0, b"\0\5\x50", tRNS=b"\0\5"), [WHITE, [80] * 3], id="transparent grey"),
        pytest.param(png(8, 1, 1, 0, b"\0\x0f", tRNS=b"\0\0"), [WHITE] * 8, id="transparent black of 1 bit"),
        pytest.param(
            png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", tRNS=b"\0\1\0\2\0\3"), [WHITE, [4, 5, 6]], id="transparent colour"
        ),
        pytest.param(png(2, 1, 8, 4, b"\0\7\xff\7\0"), [[7] * 3, WHITE], id="grey and alpha"),
        pytest.param(png(2, 1, 8, 6, b"\0\1\2\3\xff\1\2\3\0"), [[1, 2, 3], WHITE], id="RGBA"),
    ],
)
def test_files_by_hand(file: bytes, expected: Any) -> None:
    target = torch.tensor(np.array(expected), dtype=torch.uint8).T[:, None, :]
    assert_close(decode(file), target, rtol=0, atol=0)
    assert_close(KoEnClipImageProcessor().process_image(file, do_convert_rgb=True), target, rtol=0, atol=0)
    # Opaque everywhere, or with what shows through taken out of the colours.
    premultiplied = decode(file, "RGBa").int()
    assert_close(premultiplied[:3] + 255 - premultiplied[3:], target.int(), rtol=0, atol=1)


@pytest.mark.parametrize(
    "file",
    [
        png(4, 1, 2, 0, b"\0\x1b", tRNS=b"\0\1"),
        png(2, 1, 4, 0, b"\0\x0f", tRNS=b"\0\x0f"),
        png(2, 1, 16, 0, b"\0\0\5\x12\x34", tRNS=b"\0\5"),
        png(2, 1, 16, 2, b"\0" + bytes(12), tRNS=bytes(6)),
    ],
)
def test_transparent_colour_that_pillow_loses_is_refused(file: bytes) -> None:
    with pytest.raises(ValueError, match="picture 0 of the batch: it has a transparent colour"):
        KoEnClipImageProcessor(**SETTINGS)(file)


def jpeg_of_4_inks(marker: str) -> bytes:
    """Pillow writes inks inverted, as Adobe does, with Adobe's marker; a last byte of 2 in it says YCCK."""
    file = encoded(drawing(40, 40).convert("CMYK"), "JPEG", quality=95, subsampling="4:4:4")
    start = file.index(b"\xff\xee")
    end = start + 2 + int.from_bytes(file[start + 2 : start + 4], "big")
    assert file[start + 4 : start + 9] == b"Adobe"
    return {"Adobe": file, "YCCK": file[: end - 1] + b"\2" + file[end:], "none": file[:start] + file[end:]}[marker]


@pytest.mark.parametrize("marker", ["Adobe", "YCCK", "none"])
def test_jpeg_of_4_inks_is_as_pillow_converts_it(marker: str, jpeg_decoder: str) -> None:
    file = jpeg_of_4_inks(marker)
    image = Image.open(io.BytesIO(file))
    assert image.mode == "CMYK"
    assert_close(decode(file), rgb(image), rtol=0, atol=0)
    # Pillow makes inks of 255 minus each colour, and takes every file's as inverted. 2: JPEG of quality 95.
    difference = (decode(file).int() - rgb(drawing(40, 40)).int()).abs().float().mean()
    assert (difference < 2) == (marker != "YCCK")


@pytest.mark.parametrize("mode", ["LAB", "PA", "RGBX", "RGBa", "I;16B", "I;16L"])
def test_rare_modes_are_as_pillow_converts_them(mode: str) -> None:
    image = drawing(32, 32)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        given = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    elif mode.startswith("I;16"):
        # Pillow's oracle cuts off at 255; the bytes are made by hand, each value twice: v * 257.
        image = image.convert("L")
        given = Image.frombytes(mode, image.size, np.repeat(np.array(image), 2).tobytes())
    elif mode == "PA":
        image = image.convert("P").convert("RGB")
        given = drawing(32, 32).convert("P").convert("PA")
    else:
        given = image.convert("RGBA").convert(mode)
    assert given is not None and given.mode == mode
    found = KoEnClipImageProcessor().process_image(given, do_convert_rgb=True)
    assert_close(found, rgb(given if mode == "LAB" else image), rtol=0, atol=0)
    # LAB of 8 bits loses a few levels on the way there and back.
    assert (found.int() - rgb(image).int()).abs().float().mean() < 3


def test_numbers_of_no_known_range_are_refused() -> None:
    processor = KoEnClipImageProcessor(**SETTINGS)
    for dtype in (np.float32, np.int32):
        image = Image.fromarray(np.ones((40, 40), dtype=dtype))
        for given in (image, encoded(image, "TIFF")):
            with pytest.raises(ValueError, match="picture 1 of the batch: it has mode [FI], of no known range"):
                processor([drawing(40, 40), given])


def upright_and_stored(orientation: int) -> tuple[Image.Image, Image.Image]:
    """A picture and its pixels in the file (Exif 2.3, section 4.6.4: where row 0 and column 0 of the file are seen).

    In squares of 16 grey levels, which JPEG leaves nearly as they are.
    """
    shown = np.repeat(np.repeat(np.arange(6).reshape(2, 3) * 40 + 20, 16, axis=0), 16, axis=1).astype(np.uint8)
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.T,
        6: np.rot90(shown, 1),
        7: shown.T[::-1, ::-1],
        8: np.rot90(shown, -1),
    }[orientation]
    return Image.fromarray(shown).convert("RGB"), Image.fromarray(np.ascontiguousarray(stored)).convert("RGB")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright(format: str, orientation: int, jpeg_decoder: str, tmp_path: Path) -> None:
    if format == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP.")
    shown, stored = upright_and_stored(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"JPEG": {"quality": 100, "subsampling": "4:4:4"}, "WEBP": {"lossless": True}}.get(format, {})
    file = encoded(stored, format, exif=exif, **settings)
    (tmp_path / "picture").write_bytes(file)
    processor = KoEnClipImageProcessor()
    for given in (file, tmp_path / "picture", str(tmp_path / "picture"), Image.open(io.BytesIO(file))):
        found = processor.process_image(given, do_convert_rgb=True)
        # 2: JPEG of quality 100 on plain squares.
        assert_close(found.int(), rgb(shown).int(), rtol=0, atol=2 if format == "JPEG" else 0)
    # The twin: as stored it is another picture, and so it is shown without the mark.
    unmarked = decode(encoded(stored, format, **settings))
    assert (unmarked.shape == found.shape and torch.equal(unmarked, found)) == (orientation == 1)


def test_picture_whose_orientation_cannot_be_read_is_as_pillow_shows_it(jpeg_decoder: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encoded(drawing(40, 30), "JPEG", exif=exif)
    assert decode(file).shape == (3, 40, 30)
    for marked, shape in ((9, (3, 30, 40)), (0, (3, 30, 40)), (65535, (3, 30, 40))):
        exif[0x0112] = marked
        assert decode(encoded(drawing(40, 30), "JPEG", exif=exif)).shape == shape
    # A table cut short: Pillow warns, and here warnings are errors.
    place = file.index(b"MM\0*") if b"MM\0*" in file else file.index(b"II*\0")
    with pytest.raises(ValueError, match=r"picture 0 of the batch: "):
        KoEnClipImageProcessor(**SETTINGS)(file[: place + 8] + b"\xff\xff" + file[place + 10 :])


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_first_frame_is_taken(format: str) -> None:
    if format == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP.")
    frames = [Image.new("RGB", (40, 30), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    settings = {"lossless": True} if format == "WEBP" else {}
    file = encoded(frames[0], format, save_all=True, append_images=frames[1:], **settings)
    assert Image.open(io.BytesIO(file)).n_frames == 3
    for given in (file, Image.open(io.BytesIO(file))):
        found = KoEnClipImageProcessor().process_image(given, do_convert_rgb=True)
        assert_close(found, rgb(frames[0]), rtol=0, atol=0)
        assert not torch.equal(found, rgb(frames[1]))


# Extreme sizes


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (10_000, 10), (10, 10_000), (1, 300)])
def test_extreme_shapes_are_those_of_transformers(size: tuple[int, int]) -> None:
    image = softened(noise(*size))
    found = pixels(KoEnClipImageProcessor(**SETTINGS), image)
    assert_within_2_of_255(found, pixels(CLIPImageProcessorPil(**SETTINGS), image))
    assert (found.flatten(1).amax(1) > found.flatten(1).amin(1)).all() == (size != (1, 1))


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (1, 5000)])
def test_picture_that_resizing_would_make_enormous_is_refused(size: tuple[int, int]) -> None:
    file = encoded(Image.new("RGB", size), "PNG")
    assert len(file) < 1000
    long = 224 * max(size)
    sides = f"{long} x 224" if size[1] == 1 else f"224 x {long}"
    with pytest.raises(ValueError, match=f"picture 1 of the batch: it has {sides} pixels when resized from {size[0]}"):
        KoEnClipImageProcessor()([drawing(40, 40), file])
    # The twins: without resizing, and to given sides, there is nothing enormous.
    assert KoEnClipImageProcessor()(file, do_resize=False)["pixel_values"][0].shape == (3, 224, 224)
    assert KoEnClipImageProcessor()(file, size={"height": 30, "width": 30})["pixel_values"][0].shape == (3, 224, 224)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("form", ["bytes", "path", "picture"])
@pytest.mark.parametrize("limit", [40 * 30 - 1, 40 * 30 // 2 - 1])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_picture_of_more_pixels_than_pillow_allows_is_refused(
    format: str, form: str, limit: int, jpeg_decoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow warns of one, and refuses twice as many."""
    file = encoded(drawing(40, 30), format)
    (tmp_path / "picture").write_bytes(file)
    given = {"bytes": file, "path": tmp_path / "picture", "picture": Image.open(io.BytesIO(file))}[form]
    processor = KoEnClipImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"picture 0 of the batch: .*(MAX_IMAGE_PIXELS|DecompressionBombError)"):
        processor(given)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30)
    processor(given)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    processor(given)


def test_bomb_is_refused_by_its_header(jpeg_decoder: str) -> None:
    """Files that claim 60,000 x 60,000 pixels, and hold none."""
    whole = encoded(drawing(16, 16), "JPEG")
    place = whole.index(b"\xff\xc0") + 5
    claims = whole[:place] + struct.pack(">HH", 60_000, 60_000) + whole[place + 4 :]
    for file in (claims, png(60_000, 60_000, 8, 2, b"")):
        with pytest.raises(ValueError, match="picture 0 of the batch: DecompressionBombError"):
            KoEnClipImageProcessor(**SETTINGS)(file)


# Damaged files


@pytest.mark.parametrize("form", ["bytes", "path", "picture"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "progressive"])
def test_file_cut_short_is_refused(format: str, form: str, jpeg_decoder: str, tmp_path: Path) -> None:
    settings = {"progressive": True} if format == "progressive" else {}
    whole = encoded(noise(64, 64), "JPEG" if settings else format, **settings)
    for length in (len(whole) // 2, len(whole) * 9 // 10):
        (tmp_path / "picture").write_bytes(whole[:length])
        cut = {
            "bytes": whole[:length],
            "path": tmp_path / "picture",
            "picture": Image.open(io.BytesIO(whole[:length])),
        }[form]
        with pytest.raises(ValueError, match=r"picture 2 of the batch: .*([Tt]runcated|Premature end|broken)"):
            KoEnClipImageProcessor(**SETTINGS)([whole, drawing(40, 40), cut])


def test_simplejpeg_refuses_what_pillow_fills_with_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file cut short that ends as it should: the last scans of a progressive JPEG are absent."""
    pytest.importorskip("simplejpeg")
    whole = encoded(noise(64, 64), "JPEG", progressive=True)
    cut = whole[: len(whole) * 2 // 3] + b"\xff\xd9"
    with pytest.raises(ValueError, match="premature end of data segment"):
        decode(cut)
    monkeypatch.setattr(image_decoding_ko_en_clip, "simplejpeg", None)
    assert not torch.equal(decode(cut), decode(whole))


def test_harmless_faults_of_jpeg_are_passed_over(jpeg_decoder: str) -> None:
    whole = encoded(drawing(64, 64), "JPEG")
    scan = whole.index(b"\xff\xda")
    end = scan + 2 + int.from_bytes(whole[scan + 2 : scan + 4], "big")
    for file in (
        whole[:-2] + b"\0\0\0" + whole[-2:],
        # The end of the spectrum, which sequential JPEG does not use.
        whole[: end - 2] + b"\0" + whole[end - 1 :],
        whole + b"appended",
    ):
        assert file != whole
        assert_close(decode(file), decode(whole), rtol=0, atol=0)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\xff\xd8\xff",
        "붉은 네모를 그린 글".encode(),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "absent.png",
        Path("absent.jpg"),
        Path("."),
        "data:image/png;base64,%%%",
        "data:image/png;base64,bm90IGEgcGljdHVyZQ==",
        None,
        7,
        {"image": b""},
    ],
)
@pytest.mark.parametrize("place", [0, 2])
def test_what_is_no_picture_is_refused_with_its_place(bad: Any, place: int, tmp_path: Path) -> None:
    batch: list[Any] = [drawing(40, 40)] * 3
    KoEnClipImageProcessor(**SETTINGS)(batch)
    batch[place] = bad
    with pytest.raises(ValueError, match=rf"^picture {place} of the batch: ."):
        KoEnClipImageProcessor(**SETTINGS)(batch)


def test_first_bad_picture_is_named_whatever_the_threads(two_threads: None) -> None:
    batch: list[Any] = [drawing(40, 40, seed) for seed in range(8)]
    batch[3] = batch[6] = b"bad"
    with pytest.raises(ValueError, match="^picture 3 of the batch: UnidentifiedImageError"):
        KoEnClipImageProcessor(**SETTINGS)(batch)


FORMATS = ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "ICO", "JPEG2000", "PPM", "TGA", "AVIF"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_file_is_a_picture_of_its_claimed_size_or_a_value_error(
    format: str, jpeg_decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 files cut short and with wrong bytes; Pillow warns of some. Sizes are damaged, too: large ones take time."""
    if format.lower() in ("webp", "avif") and not features.check(format.lower()):
        pytest.skip(f"this Pillow has no {format}.")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    rng = random.Random(0)
    exif = {"exif": encoded_exif()} if format in ("JPEG", "PNG", "WEBP") else {}
    whole = encoded(drawing(24, 16), format, **exif)
    refused = 0
    for _ in range(200):
        content = bytearray(whole[: rng.randint(1, len(whole))] if rng.random() < 0.3 else whole)
        for _ in range(rng.randint(0, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            found = decode(bytes(content))
        except ValueError:
            refused += 1
            continue
        # What Pillow says of the header, upright or lying.
        size = Image.open(io.BytesIO(content)).size
        assert found.shape in ((3, *size), (3, *size[::-1]))
    assert refused > 20


def encoded_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    return exif.tobytes()


# URLs


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """An address under which the test's folder is served on this computer."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path))
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    thread.join()
    served.server_close()


def test_urls_are_read(server: str, tmp_path: Path) -> None:
    image = drawing(60, 45)
    image.save(tmp_path / "picture.png")
    processor = KoEnClipImageProcessor(**SETTINGS)
    expected = pixels(processor, image)
    data = "data:image/png;base64," + base64.b64encode((tmp_path / "picture.png").read_bytes()).decode()
    for url in (f"{server}/picture.png", data):
        assert_close(pixels(processor, url), expected, rtol=0, atol=0)
        # transformers loads the same picture.
        assert_close(pixels(processor, load_image(url)), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="picture 1 of the batch: .*404"):
        processor([image, f"{server}/absent.png"])


# Arrays out of range


@pytest.mark.parametrize("tensor", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_floats_are_what_their_range_says(tensor: Any, dtype: Any) -> None:
    """From 0 to 255, or rescaled already; both give what uint8 gives, but for rounding after resizing."""
    array = np.array(drawing(60, 45))
    processor = KoEnClipImageProcessor(**SETTINGS)
    expected = processor(array, return_tensors="pt")["pixel_values"]
    as_bytes = processor(tensor(array.astype(dtype)), return_tensors="pt")["pixel_values"]
    as_unit = processor(tensor((array / 255).astype(dtype)), do_rescale=False, return_tensors="pt")["pixel_values"]
    # 2 of 255 in normalised units: two passes of uint8 round, floats do not; half precision is finer than that.
    for found in (as_bytes, as_unit):
        assert_close(found, expected, rtol=0, atol=2 / 255 / min(CLIP_STD))
    # The same without resizing, where nothing is rounded; 1e-2: half precision.
    found = processor(tensor(array.astype(dtype)), do_resize=False, return_tensors="pt")["pixel_values"]
    assert_close(found, processor(array, do_resize=False, return_tensors="pt")["pixel_values"], rtol=0, atol=1e-2)


def test_bicubic_of_floats_stays_in_range() -> None:
    """Overshoot at edges is cut off, as it is for uint8."""
    array = np.zeros((3, 90, 90), dtype=np.float32)
    array[:, 30:60, 30:60] = 1
    found = KoEnClipImageProcessor(**SETTINGS)(array, do_rescale=False, do_normalize=False, return_tensors="pt")
    assert (found["pixel_values"].amin(), found["pixel_values"].amax()) == (0, 1)
    raw = torch.nn.functional.interpolate(torch.from_numpy(array)[None], (32, 32), mode="bicubic", antialias=True)
    assert raw.amax() > 1 and raw.amin() < 0


def ones(*shape: int, dtype: Any = np.uint8, value: float = 1) -> np.ndarray:
    return np.full(shape, value, dtype=dtype)


@pytest.mark.parametrize(
    ("bad", "settings", "named"),
    [
        (ones(32, 32, 3, dtype=np.int64), {}, r"int64 \(32, 32, 3\); it must be uint8"),
        (ones(32, 32, 3, dtype=np.uint16), {}, r"uint16 \(32, 32, 3\); it must be uint8"),
        (ones(32, 32, 3, dtype=np.bool_), {}, r"bool \(32, 32, 3\); it must be uint8"),
        (ones(32, 32, 3, dtype=np.complex64), {}, "complex64"),
        (ones(32, 32, 3).astype(object), {}, "object"),
        (torch.ones(3, 32, 32, dtype=torch.int32), {}, r"int32 \(3, 32, 32\); it must be uint8"),
        (ones(5), {}, r"uint8 \(5,\); it must be"),
        (ones(32, 32), {}, r"uint8 \(32, 32\); it must be"),
        (ones(2, 2, 3, 32, 32), {}, r"uint8 \(2, 2, 3, 32, 32\); it must be"),
        (ones(32, 32, 2), {}, "has no dimension of 1, 3 or 4 channels"),
        (ones(32, 32, 3), {"input_data_format": "channels_first"}, "32 channels as input_data_format says"),
        (ones(3, 32, 32), {"input_data_format": "channels_last"}, "32 channels as input_data_format says"),
        (ones(0, 32, 3), {}, r"uint8 \(0, 32, 3\), without a pixel"),
        (ones(3, 32, 0, dtype=np.float32), {}, "without a pixel"),
        (torch.zeros(3, 0, 0, dtype=torch.uint8), {}, "without a pixel"),
        (ones(3, 3, 3), {}, "may have its channels first or last; pass input_data_format"),
        (ones(1, 50, 3), {}, "may have its channels first or last; pass input_data_format"),
        (ones(32, 32, 3, dtype=np.float32, value=np.nan), {}, "values go from nan to nan"),
        (ones(32, 32, 3, dtype=np.float32, value=np.inf), {}, "values go from inf to inf"),
        (ones(32, 32, 3, dtype=np.float32, value=256), {}, "from 256 to 256; floats must be from 0 to 255"),
        (ones(32, 32, 3, dtype=np.float32, value=-1), {}, "from -1 to -1; floats must be from 0 to 255"),
        (ones(32, 32, 3, dtype=np.float32), {}, "rescaled already; pass do_rescale=False"),
        (ones(32, 32, 3, dtype=np.float32, value=2), {"do_rescale": False}, "from 0 to 1 with do_rescale=False"),
        (ones(1, 32, 32), {"do_convert_rgb": False}, "it has 1 channels, but image_mean has 3 values"),
        (ones(4, 32, 32), {"do_convert_rgb": False}, "it has 4 channels, but image_mean has 3 values"),
    ],
)
def test_arrays_out_of_range_are_refused_with_their_place(bad: Any, settings: dict[str, Any], named: str) -> None:
    good = drawing(40, 40)
    processor = KoEnClipImageProcessor(**SETTINGS)
    processor([good, good], **settings)
    with pytest.raises(ValueError, match=f"^picture 1 of the batch: .*{named}"):
        processor([good, bad], **settings)


def test_one_value_that_is_not_a_number_is_refused() -> None:
    array = np.full((40, 40, 3), 9, dtype=np.float32)
    KoEnClipImageProcessor(**SETTINGS)(array)
    for value in (np.nan, np.inf, -np.inf):
        array[7, 7, 1] = value
        with pytest.raises(ValueError, match="floats must be from 0 to 255"):
            KoEnClipImageProcessor(**SETTINGS)(array)


def test_3_by_3_pixels_are_read_as_told() -> None:
    array = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    process = functools.partial(KoEnClipImageProcessor().process_image, array, do_convert_rgb=True)
    assert_close(process(input_data_format="channels_first"), torch.from_numpy(array), rtol=0, atol=0)
    last = process(input_data_format="channels_last")
    assert_close(last, torch.from_numpy(array).permute(2, 0, 1), rtol=0, atol=0)
    assert not torch.equal(last, torch.from_numpy(array))


def test_arrays_in_any_memory_are_read() -> None:
    """Read-only, mirrored, cut out and turned memory; gradients; a batch in one array."""
    array = np.array(drawing(60, 45))
    processor = KoEnClipImageProcessor(**SETTINGS)
    expected = processor(array, return_tensors="pt")["pixel_values"]
    locked = array.copy()
    locked.flags.writeable = False
    for given in (
        locked,
        array[::-1].copy()[::-1],
        np.pad(array, ((1, 1), (2, 2), (0, 0)))[1:-1, 2:-2],
        np.asfortranarray(array),
        torch.from_numpy(array)[None],
        [torch.from_numpy(array)[None]],
        [[array]],
        (array,),
    ):
        found = processor(given, return_tensors="pt")["pixel_values"]
        assert_close(found, expected, rtol=0, atol=0)
    with_gradient = torch.from_numpy(array).float().requires_grad_()
    assert not processor(with_gradient, return_tensors="pt")["pixel_values"].requires_grad
    four = processor(np.stack([array, array[::-1]]), return_tensors="pt")["pixel_values"]
    assert_close(four[:1], expected, rtol=0, atol=0)
    assert not torch.equal(four[1], four[0])


# Arguments


CALLS: list[dict[str, Any]] = [
    {},
    {"do_resize": False},
    {"do_center_crop": False},
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
    {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False},
    {"size": {"height": 24, "width": 40}},
    {"size": 40},
    {"size": {"shortest_edge": 24}, "crop_size": 20},
    {"crop_size": {"height": 16, "width": 60}},
    {"resample": Image.Resampling.BILINEAR},
    {"resample": 3},
    {"rescale_factor": 1 / 127.5},
    {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]},
    {"image_mean": 0.5, "image_std": 0.25},
    {"do_convert_rgb": False},
    {"input_data_format": "channels_last"},
    {"data_format": "channels_first"},
    {"device": "cpu"},
]


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
def test_calls_are_those_of_transformers(call: dict[str, Any], return_tensors: str | None) -> None:
    image = softened(drawing(70, 50))
    forms = (
        [np.array(image)] if "input_data_format" in call else [image, np.array(image), torch.tensor(np.array(image))]
    )
    for given in forms:
        found, expected = (
            processor([given, given], **call, return_tensors=return_tensors)["pixel_values"]
            for processor in (KoEnClipImageProcessor(**SETTINGS), CLIPImageProcessorPil(**SETTINGS))
        )
        kind = {"pt": torch.Tensor, "np": np.ndarray, None: list}[return_tensors]
        assert type(found) is type(expected) is kind
        ours, theirs = (torch.stack([torch.as_tensor(each) for each in batch]) for batch in (found, expected))
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        # 2 of 255 from resizing, in the units of the call; without it nothing is rounded.
        scale = call.get("rescale_factor", 1 / 255) if call.get("do_rescale", True) else 1
        deviation = np.min(call.get("image_std", CLIP_STD)) if call.get("do_normalize", True) else 1
        levels = 2 if call.get("do_resize", True) else 0
        # 1e-5 relative: float32.
        assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=levels * scale / deviation + 1e-5)


def test_each_of_these_arguments_changes_something() -> None:
    """The twin of the test above: none of them is passed over."""
    processor, image = KoEnClipImageProcessor(**SETTINGS), softened(drawing(70, 50))
    default = processor(image, return_tensors="pt")["pixel_values"]
    same = []
    for call in CALLS:
        found = processor(image, **call, return_tensors="pt")["pixel_values"]
        if found.shape == default.shape and torch.equal(found, default):
            same.append(set(call))
    # The last is given for an array only, a picture's channels being known.
    assert same == [set(), {"resample"}, {"do_convert_rgb"}, {"input_data_format"}, {"data_format"}, {"device"}]


def test_pictures_may_keep_their_channels(jpeg_decoder: str) -> None:
    for mode, channels in (("L", 1), ("RGB", 3), ("RGBA", 4)):
        image = softened(drawing(50, 40).convert("RGB")).convert(mode)
        call = {"do_convert_rgb": False, "do_normalize": False, "return_tensors": "pt"}
        found = KoEnClipImageProcessor(**SETTINGS)(image, **call)["pixel_values"]
        assert found.shape == (1, channels, 32, 32)
        if mode != "L":
            # transformers cannot take a grey Pillow picture apart.
            expected = CLIPImageProcessorPil(**SETTINGS)(image, **call)["pixel_values"]
            assert_within_2_of_255(found * 255, expected * 255)
        read = KoEnClipImageProcessor(**SETTINGS)(encoded(image, "PNG"), **call)["pixel_values"]
        assert_close(read, found, rtol=0, atol=0)
    with pytest.raises(ValueError, match="it has mode P, whose numbers are not colours; leave do_convert_rgb on"):
        KoEnClipImageProcessor(**SETTINGS)(drawing(50, 40).convert("P"), do_convert_rgb=False)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"resample": Image.Resampling.LANCZOS}, "resample is .*; torch resizes uint8 by bicubic, bilinear only"),
        ({"resample": 0}, "resample is 0"),
        ({"size": {"longest_edge": 20}}, "size is .*; it must have 'shortest_edge', or 'height' and 'width'"),
        ({"size": {"shortest_edge": 20, "longest_edge": 30}}, "size is .*'longest_edge': 30"),
        ({"do_pad": True}, "do_pad is True, but pictures are not padded"),
        ({"data_format": "channels_last"}, "data_format is 'channels_last'; channels come first"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        KoEnClipImageProcessor(**SETTINGS)(drawing(40, 40), **settings)


def test_batch_goes_to_the_device() -> None:
    processor = KoEnClipImageProcessor(**SETTINGS)
    batch = processor([drawing(40, 40)] * 2, device="meta", return_tensors="pt")["pixel_values"]
    assert (batch.device.type, batch.shape) == ("meta", (2, 3, 32, 32))
    assert processor(drawing(40, 40), return_tensors="pt")["pixel_values"].device.type == "cpu"


def test_pictures_that_stay_unlike_are_a_list() -> None:
    processor = KoEnClipImageProcessor(**SETTINGS)
    images = [drawing(60, 45), drawing(33, 90)]
    found = processor(images, do_center_crop=False)["pixel_values"]
    assert [tuple(picture.shape) for picture in found] == [(3, 32, 42), (3, 87, 32)]
    with pytest.raises(ValueError, match="tensor"):
        processor(images, do_center_crop=False, return_tensors="pt")


@pytest.mark.parametrize("empty", [[], (), [[]], np.zeros((0, 3, 32, 32), dtype=np.uint8)])
def test_batch_without_pictures_is_refused(empty: Any) -> None:
    with pytest.raises(ValueError, match="there is no picture in the batch"):
        KoEnClipImageProcessor(**SETTINGS)(empty)


# Saving and loading


def test_saved_processor_loads_the_same(tmp_path: Path) -> None:
    processor = KoEnClipImageProcessor(**SETTINGS, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    processor.save_pretrained(tmp_path)
    image = drawing(60, 45)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    for loaded in (AutoImageProcessor.from_pretrained(tmp_path), KoEnClipImageProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is KoEnClipImageProcessor
        assert_close(loaded(image, return_tensors="pt")["pixel_values"], expected, rtol=0, atol=0)
    default = KoEnClipImageProcessor()(image, return_tensors="pt")["pixel_values"]
    assert default.shape != expected.shape


# As openai/clip-vit-base-patch32 has it on the Hub.
CLIP_FILE: dict[str, Any] = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
    "resample": 3,
    "size": 224,
}


def test_clips_own_folder_loads(tmp_path: Path) -> None:
    image = softened(drawing(300, 260))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "preprocessor_config.json").write_text(json.dumps(CLIP_FILE), encoding="utf-8")
    changed = CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 30, "width": 34})
    changed.save_pretrained(tmp_path / "new")
    for folder, shape in (("old", (3, 224, 224)), ("new", (3, 30, 34))):
        ours, theirs = (
            each.from_pretrained(tmp_path / folder) for each in (KoEnClipImageProcessor, CLIPImageProcessorPil)
        )
        found = pixels(ours, image)
        assert found.shape == shape
        assert_within_2_of_255(found, pixels(theirs, image))


def test_saved_file_has_clips_keys(tmp_path: Path) -> None:
    keys = []
    for number, processor in enumerate((KoEnClipImageProcessor(), CLIPImageProcessorPil())):
        processor.save_pretrained(tmp_path / str(number))
        saved = json.loads((tmp_path / str(number) / "preprocessor_config.json").read_text(encoding="utf-8"))
        keys.append({key: value for key, value in saved.items() if key != "image_processor_type"})
    assert keys[0] == keys[1]
    assert keys[0]["resample"] == 3


def test_defaults_are_clips() -> None:
    ours, theirs = KoEnClipImageProcessor(), CLIPImageProcessorPil()
    for name in ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor", "do_convert_rgb"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_shortest_side_rule_by_hand() -> None:
    """A picture of 50 x 70: the shorter side becomes 32, the longer int(32 * 70 / 50) = int(44.8) = 44."""
    found = pixels(KoEnClipImageProcessor(**SETTINGS), drawing(50, 70), do_center_crop=False)
    assert found.shape == (3, 44, 32)
    assert math.floor(32 * 70 / 50) == 44 != round(32 * 70 / 50)


def flat_jpeg(sampling: int) -> bytes:
    """A sound grey picture of 96 x 64 pixels whose first channel is sampled as the byte says."""
    buffer = io.BytesIO()
    Image.new("RGB", (96, 64), (128, 128, 128)).save(buffer, "JPEG", subsampling=0)
    encoded = bytearray(buffer.getvalue())
    encoded[encoded.index(b"\xff\xc0") + 11] = sampling
    across, down = sampling >> 4, sampling & 15
    units = math.ceil(96 / (8 * across)) * math.ceil(64 / (8 * down))
    # In the tables of the standard, a block like the one before it is 001010 in the first channel, 0000 in others.
    bits = ("001010" * across * down + "0000" * 2) * units
    bits += "1" * (-len(bits) % 8)
    scan = encoded.index(b"\xff\xda")
    data = scan + 2 + int.from_bytes(encoded[scan + 2 : scan + 4], "big")
    return bytes(encoded[:data]) + int(bits, 2).to_bytes(len(bits) // 8, "big") + b"\xff\xd9"


# 1x1, 2x2, 4x1 are the usual ones; the others are in the standard, too.
@pytest.mark.parametrize("sampling", [0x11, 0x22, 0x41, 0x31, 0x13, 0x24])
def test_jpeg_of_any_sampling_decodes(sampling: int) -> None:
    pixels = decode(flat_jpeg(sampling))
    assert pixels.shape == (3, 64, 96)
    assert set(pixels.unique().tolist()) == {128}


def test_jpeg_with_a_header_of_another_version_decodes() -> None:
    usual = flat_jpeg(0x11)
    place = usual.index(b"JFIF\0") + 5
    other = usual[:place] + b"\x02" + usual[place + 1 :]
    assert other != usual
    assert torch.equal(decode(other), decode(usual))
