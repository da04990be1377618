"""The data of the experiments: emoji without what would let the languages meet in the text, and part of CIFAR-10."""

import functools
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ko_en_clip.commands import train_tokenizer
from ko_en_clip.data.pairs import DataSettings, PairSet, open_rows
from ko_en_clip.data.texts import TextSource
from ko_en_clip.evaluation.prompts import prompts_for
from ko_en_clip.tokenizer_training import TokenizerSettings

TRAIN_SETS, TEST_SET = ("noto", "openmoji"), "twemoji"
# Flags are names of countries and most of people are variants of each other by sex; neither is told at this scale.
_LEFT_OUT = ("Flags", "People & Body")
TEMPLATES = {
    "ko": ["{}", "{}의 사진", "{}{을/를} 찍은 사진", "작고 흐릿한 {} 사진"],
    "en": ["{}", "a photo of a {}", "a picture that shows a {}", "a small blurry photo of a {}"],
}
_CONCEPTS = 0.2
_CIFAR_ROWS = {"train": 6_000, "test": 2_000}


def prepare(source: Path, folder: Path) -> None:
    """Write the data sets and the tokenizer into `folder`, unless they are there."""
    if (folder / "tokenizer").is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*TRAIN_SETS, TEST_SET):
        rows = [emoji_row(row) for row in pq.read_table(source / "emoji" / f"{name}.parquet").to_pylist() if fits(row)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    for split, count in _CIFAR_ROWS.items():
        table = pq.read_table(source / "cifar10" / f"cifar10_{split}.parquet").to_pylist()
        table.sort(key=lambda row: share_of("cifar10", row["source_path"]))
        pq.write_table(pa.Table.from_pylist([photo_row(row) for row in table[:count]]), folder / f"{split}.parquet")
    train_vocabulary(folder)


def fits(row: dict[str, Any]) -> bool:
    """Whether a concept is used: one in five of those without skin tone whose names share no character.

    Names such as "ATM" and digits stand in both languages; through them the languages would meet in the text.
    """
    shared = set(row["name_ko"]) & set(row["name_en"]) - {" "}
    is_told = not row["skin_tone"] and row["category"] not in _LEFT_OUT
    return is_told and not shared and share_of("used", row["base"]) < _CONCEPTS


def share_of(*parts: str) -> float:
    """A number in [0, 1) that depends on the parts and on nothing else."""
    return int.from_bytes(hashlib.blake2b("/".join(parts).encode(), digest_size=8).digest(), "big") / 2**64


def emoji_row(row: dict[str, Any]) -> dict[str, Any]:
    """A picture with both names, and with one by artwork set.

    By set: a concept that has its Korean name on Noto has its English name on OpenMoji, or the other way round, so
    both names occur, never on one picture.
    """
    ko, en = row["name_ko"], row["name_en"]
    is_ko_here = (share_of(row["base"]) < 0.5) == (row["set"] == TRAIN_SETS[0])
    return {
        "image": quickly_decoded(row["image"]),
        "base": row["base"],
        "subcategory": row["subcategory"],
        "name_ko": ko,
        "name_en": en,
        "by_set_ko": ko if is_ko_here else "",
        "by_set_en": "" if is_ko_here else en,
    }


def quickly_decoded(encoded: bytes) -> bytes:
    """The same pixels as PNG without compression, so that decoding takes less of the CPU-seconds that are compared."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encoded)).convert("RGBA").save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def photo_row(row: dict[str, Any]) -> dict[str, Any]:
    """A photograph with captions of its label in both languages."""
    image = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
    captions = {f"caption_{language}": captions_of(row[f"label_{language}"], language) for language in TEMPLATES}
    return {"image": image, "label": row["label"], **captions}


def captions_of(label: str, language: str) -> list[str]:
    """Every template with the label."""
    (captions,) = prompts_for([label], TEMPLATES[language])
    return captions


def train_vocabulary(folder: Path) -> None:
    """One tokenizer for all runs, on names alone, each language for itself."""
    emoji = DataSettings(
        path="parquet", files=files(folder, TRAIN_SETS[:1]), captions={"name_ko": "ko", "name_en": "en"}
    )
    photos = DataSettings(
        path="parquet", files=files(folder, ["test"]), captions={"caption_ko": "ko", "caption_en": "en"}
    )
    train_tokenizer.run(
        train_tokenizer.TrainTokenizerSettings(
            output_dir=str(folder / "tokenizer"),
            tokenizer=TokenizerSettings(vocab_size=4000, max_length=32),
            sources=[TextSource(name="emoji", data=emoji), TextSource(name="photos", data=photos)],
        )
    )


class KeptPairs(PairSet):
    """Rows that are read and decoded once: at this scale reading would take half of the CPU-seconds compared."""

    def __init__(self, rows: datasets.Dataset, settings: DataSettings):
        super().__init__(rows, settings)
        # Bound to the object, so that the pictures go with it.
        self.picture = functools.cache(super().picture)  # type: ignore[method-assign]
        self.captions = functools.cache(super().captions)  # type: ignore[method-assign]
        self.group = functools.cache(super().group)  # type: ignore[method-assign]
        self.key = functools.cache(super().key)  # type: ignore[method-assign]


def kept_pairs(settings: DataSettings) -> KeptPairs:
    """What `open_pairs` opens, kept in memory."""
    return KeptPairs(open_rows(settings), settings)


def files(folder: Path, names: Sequence[str]) -> list[str]:
    """Paths of data sets by name."""
    return [str(folder / f"{name}.parquet") for name in names]
