"""The image processor, held against transformers' CLIP processor on Pillow."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.testing import assert_close
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ko_en_clip import KoEnClipImageProcessor

SETTINGS: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
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


def test_photos_are_within_2_of_transformers(shared_data: Path) -> None:
    photos = sorted((shared_data / "photos").glob("*.jpg"), key=lambda path: (path.stat().st_size, path.name))
    ours, theirs = KoEnClipImageProcessor(), CLIPImageProcessorPil()
    for path in [*photos[:6], photos[len(photos) // 2]]:
        with Image.open(path) as image:
            found = pixels(ours, image)
            assert found.shape == (3, 224, 224)
            assert_within_2_of_255(found, pixels(theirs, image))
            assert (found - found.flip(2)).abs().max() > 3


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


def test_defaults_are_clips() -> None:
    ours, theirs = KoEnClipImageProcessor(), CLIPImageProcessorPil()
    for name in ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor", "do_convert_rgb"):
        assert getattr(ours, name) == getattr(theirs, name), name


# Bad inputs


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (np.zeros((32, 32, 3), dtype=np.float32), r"float32 \(32, 32, 3\).*uint8"),
        (torch.zeros(3, 32, 32), r"float32 \(3, 32, 32\).*uint8"),
        (np.zeros((32, 32, 3), dtype=np.int64), r"int64 \(32, 32, 3\).*uint8"),
    ],
)
def test_arrays_of_another_type_are_refused(bad: Any, named: str) -> None:
    processor = KoEnClipImageProcessor(**SETTINGS)
    processor(np.zeros((32, 32, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=named):
        processor(bad)


@pytest.mark.parametrize("bad", [np.zeros(5, dtype=np.uint8), np.zeros((32, 32, 2), dtype=np.uint8), None, 7])
def test_what_is_no_picture_is_refused(bad: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        KoEnClipImageProcessor(**SETTINGS)(bad)


def test_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises((OSError, ValueError)):
        KoEnClipImageProcessor(**SETTINGS)(str(tmp_path / "broken.png"))


def test_size_without_sides_is_refused() -> None:
    with pytest.raises(ValueError, match="size"):
        KoEnClipImageProcessor(**SETTINGS)(drawing(40, 40), size={"longest_edge": 20})


def test_shortest_side_rule_by_hand() -> None:
    """A picture of 50 x 70: the shorter side becomes 32, the longer int(32 * 70 / 50) = int(44.8) = 44."""
    found = pixels(KoEnClipImageProcessor(**SETTINGS), drawing(50, 70), do_center_crop=False)
    assert found.shape == (3, 44, 32)
    assert math.floor(32 * 70 / 50) == 44 != round(32 * 70 / 50)
