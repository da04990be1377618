"""Pictures a second from JPEG bytes to normalised pixels, against transformers' CLIPImageProcessorPil in the same run.

    OMP_NUM_THREADS=1 python benchmarks/image_processing.py FOLDER

FOLDER holds .jpg files. They are taken as they are, and scaled to about 1 and 4 megapixels (JPEG of quality 90, in
memory). Variants take the same batches in turn, round after round; a ratio is the median over the rounds of the time
of CLIPImageProcessorPil, with Pillow's decoding of the bytes that it does not do itself, over the variant's.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ko_en_clip import KoEnClipImageProcessor, image_decoding_ko_en_clip

BATCH_SIZE = 8
MEGAPIXELS = (None, 1, 4)
STOCK = "CLIPImageProcessorPil"


def main() -> None:
    """Print one table for each size of the photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=80, help="how many of them, at most")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    files = sorted(arguments.folder.glob("*.jpg"))[: arguments.pictures]
    if not files:
        raise SystemExit(f"{arguments.folder} has no .jpg files.")
    for megapixels in MEGAPIXELS:
        photos = [scaled(file.read_bytes(), megapixels) for file in files]
        measure("as they are" if megapixels is None else f"{megapixels} megapixels", photos, arguments.rounds)


def scaled(encoded: bytes, megapixels: int | None) -> bytes:
    """The photograph at about this many pixels, or as it is."""
    if megapixels is None:
        return encoded
    with Image.open(io.BytesIO(encoded)) as image:
        factor = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
        size = round(image.width * factor), round(image.height * factor)
        buffer = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure(name: str, photos: list[bytes], rounds: int) -> None:
    """Time every variant in turn, and print its pictures a second and its ratio."""
    stock, ours = CLIPImageProcessorPil(), KoEnClipImageProcessor()
    variants: dict[str, Callable[[list[bytes]], Any]] = {
        STOCK: lambda batch: stock([Image.open(io.BytesIO(encoded)) for encoded in batch], return_tensors="pt"),
        "ours": lambda batch: ours(batch, return_tensors="pt"),
        "ours, Pillow only": lambda batch: without_simplejpeg(ours, batch),
        "ours, 2 threads": lambda batch: in_threads(2, ours, batch),
    }
    batches = [photos[start : start + BATCH_SIZE] for start in range(0, len(photos), BATCH_SIZE)]
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(rounds + 1):
        for variant in variants:
            seconds[variant].append(0.0)
        for batch in batches:
            for variant, process in variants.items():
                start = time.perf_counter()
                process(batch)
                seconds[variant][-1] += time.perf_counter() - start
    pixels = [Image.open(io.BytesIO(encoded)).size for encoded in photos]
    mean = sum(width * height for width, height in pixels) / len(pixels) / 1e6
    print(f"{name}: {len(photos)} photographs of {mean:.2f} megapixels on average")
    for variant, times in seconds.items():
        # The first round warms up.
        ratios = [base / own for base, own in zip(seconds[STOCK][1:], times[1:], strict=True)]
        a_second = len(photos) / statistics.median(times[1:])
        print(
            f"  {variant:<22} {a_second:7.1f} a second, ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


@contextmanager
def _set(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def without_simplejpeg(processor: KoEnClipImageProcessor, batch: list[bytes]) -> Any:
    """A batch as where simplejpeg is not installed."""
    with _set(image_decoding_ko_en_clip, "simplejpeg", None):
        return processor(batch, return_tensors="pt")


def in_threads(threads: int, processor: KoEnClipImageProcessor, batch: list[bytes]) -> Any:
    """A batch in so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return processor(batch, return_tensors="pt")
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    main()
