"""Drawn reconstructions: what stands in each column, to the pixel, and the example that trains and draws."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ko_en_clip import KoEnClipConfig, KoEnClipForPreTraining, KoEnClipImageProcessor
from ko_en_clip.training.reconstructions import COLUMNS, draw_reconstructions

EXAMPLE = Path(__file__).parents[1] / "examples" / "mae_reconstructions.py"
GAP, TITLE = 6, 32


def drawn_cells(sheet: Image.Image, rows: int, height: int, width: int, zoom: int) -> np.ndarray:
    """The pictures of a sheet at their own size: uint8, (rows, columns, height, width, 3)."""
    pixels, cells = np.asarray(sheet), np.empty((rows, len(COLUMNS), height, width, 3), dtype=np.uint8)
    for row, column in np.ndindex(rows, len(COLUMNS)):
        top, left = TITLE + row * (height * zoom + GAP), column * (width * zoom + GAP)
        cell = pixels[top : top + height * zoom, left : left + width * zoom]
        # Magnified by a whole number: every pixel became a square of one colour.
        squares = cell.reshape(height, zoom, width, zoom, 3)
        assert (squares == squares[:, :1, :, :1]).all()
        cells[row, column] = squares[:, 0, :, 0]
    assert pixels.shape == (top + height * zoom, left + width * zoom, 3)
    return cells


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_every_column_is_what_its_title_says(norm_pix_loss: bool, tiny_config: KoEnClipConfig) -> None:
    """Patch by patch in numpy, on a picture that is not square."""
    tiny_config.norm_pix_loss = norm_pix_loss
    torch.manual_seed(0)
    model = KoEnClipForPreTraining(tiny_config).eval()
    processor = KoEnClipImageProcessor(do_resize=False, do_center_crop=False)
    photos = np.random.default_rng(0).integers(60, 200, (2, 16, 40, 3), dtype=np.uint8)
    pixel_values = processor(list(photos), return_tensors="pt")["pixel_values"]
    noise = torch.rand(2, 10, generator=torch.Generator().manual_seed(1))
    sheet = draw_reconstructions(model, pixel_values, processor, noise)
    cells = drawn_cells(sheet, rows=2, height=16, width=40, zoom=14)

    with torch.no_grad():
        outputs = model(pixel_values, noise=noise)
    mean, std = np.array(processor.image_mean), np.array(processor.image_std)
    for picture, patch in np.ndindex(2, 10):
        y, x = 8 * (patch // 5), 8 * (patch % 5)
        original, masked, reconstruction, pasted = cells[picture, :, y : y + 8, x : x + 8].astype(int)
        assert (original == photos[picture, y : y + 8, x : x + 8]).all()
        predicted = outputs.logits[picture, patch].double().numpy()
        if norm_pix_loss:
            target = (original / 255 - mean) / std
            predicted = predicted * target.std(ddof=1) + target.mean()
        expected = 255 * np.clip(predicted.reshape(8, 8, 3) * std + mean, 0, 1)
        # Rounding, and float32.
        assert np.abs(reconstruction - expected).max() < 0.51
        if outputs.mask[picture, patch]:
            assert np.abs(masked - 255 * mean).max() < 0.51
            assert (pasted == reconstruction).all()
            # The twin: the prediction is not the original.
            assert (pasted != original).any()
        else:
            assert (masked == original).all() and (pasted == original).all()


def test_gaps_are_white_and_titles_are_there(tiny_config: KoEnClipConfig) -> None:
    processor = KoEnClipImageProcessor(do_resize=False, do_center_crop=False)
    pixel_values = processor([np.zeros((32, 32, 3), dtype=np.uint8)] * 2, return_tensors="pt")["pixel_values"]
    sheet = np.asarray(draw_reconstructions(KoEnClipForPreTraining(tiny_config), pixel_values, processor))
    side = 7 * 32
    assert (sheet[TITLE:, side : side + GAP] == 255).all()
    assert (sheet[TITLE + side : TITLE + side + GAP] == 255).all()
    for column in range(len(COLUMNS)):
        title = sheet[:TITLE, column * (side + GAP) : column * (side + GAP) + side]
        assert (title < 100).any() and (title[:, [0, -1]] == 255).all()


def test_large_pictures_keep_their_size_and_masks_are_drawn_anew(tiny_config: KoEnClipConfig) -> None:
    model, processor = KoEnClipForPreTraining(tiny_config), KoEnClipImageProcessor()
    sheets = [draw_reconstructions(model, torch.ones(1, 3, 224, 256), processor) for _ in range(2)]
    assert sheets[0].size == (4 * 256 + 3 * GAP, TITLE + 224)
    assert sheets[0].tobytes() != sheets[1].tobytes()


def test_half_precision_is_drawn(tiny_config: KoEnClipConfig) -> None:
    torch.manual_seed(0)
    model, processor = KoEnClipForPreTraining(tiny_config), KoEnClipImageProcessor()
    pixel_values, noise = torch.randn(1, 3, 32, 32), torch.rand(1, 16)
    sheet = np.asarray(draw_reconstructions(model, pixel_values, processor, noise)).astype(int)
    half = np.asarray(draw_reconstructions(model.bfloat16(), pixel_values, processor, noise)).astype(int)
    # 8 of 255: bfloat16 rounds to 1/256 a score of times.
    assert 0 < np.abs(half - sheet).max() <= 8


# The example


def example(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def test_the_example_trains_and_draws_real_photos(shared_data: Path, tmp_path: Path) -> None:
    for photo in sorted((shared_data / "photos").glob("*.jpg"))[:15]:
        (tmp_path / photo.name).symlink_to(photo)
    log = example(tmp_path, tmp_path / "sheet.png", "--steps", 40)
    losses = [float(found) for found in re.findall(r"loss=([\d.]+)", log)]
    # Means of five batches: those of single ones differ by as much as is learned.
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    with Image.open(tmp_path / "sheet.png") as sheet:
        # Two of fifteen photos, the first and the fourteenth, in four columns.
        assert sheet.size == (4 * 256 + 3 * GAP, TITLE + 2 * 256 + GAP)


def test_the_example_draws_with_a_trained_folder(tiny_config: KoEnClipConfig, tmp_path: Path) -> None:
    KoEnClipForPreTraining(tiny_config).save_pretrained(tmp_path / "mae")
    size = {"height": 32, "width": 32}
    KoEnClipImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(tmp_path / "mae")
    Image.new("RGB", (48, 40), "navy").save(tmp_path / "picture.png")
    log = example(tmp_path, tmp_path / "sheet.jpg", "--model", tmp_path / "mae")
    assert "loss=" not in log
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.size == (4 * 224 + 3 * GAP, TITLE + 224)
