"""Files of small pictures for tests of the evaluation."""

import io
from collections.abc import Collection
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

NOUNS = [("강아지", "dog"), ("고양이", "cat"), ("나무", "tree"), ("바다", "sea")]


def pictures_file(folder: Path, num: int, *, bad: Collection[int] = (), file: str = "pictures.parquet") -> Path:
    """A parquet file of pictures of random dots in groups of four meanings; those of some rows do not decode."""
    rng = np.random.default_rng(len(file))
    rows = []
    for number in range(num):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
        ko, en = NOUNS[number % len(NOUNS)]
        texts = {"ko": f"{ko} {number}", "en": f"{en} {number}", "group": en, "label": number % len(NOUNS)}
        rows.append({"image": b"bad" if number in bad else buffer.getvalue(), **texts})
    datasets.Dataset.from_list(rows).to_parquet(folder / file)
    return folder / file
