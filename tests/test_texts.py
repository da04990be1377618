"""Streams of texts and their mixture."""

from pathlib import Path

import datasets

from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.data.texts import TextSource, stream_texts


def test_pictures_beside_texts_are_not_decoded(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [{"bytes": b"no picture", "path": None}], "caption": ["a dog"]}
    file = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    source = TextSource(name="captions", data=DataSettings(path=str(file), captions={"caption": "en"}))
    assert [tuple(found) for found in stream_texts(source)] == [("en", "captions", "a dog")]


def test_digits_stream() -> None:
    source = TextSource(name="digits", data=DataSettings(path="digits", captions={"caption_ko": "ko"}))
    assert {found.language for found in stream_texts(source)} == {"ko"}
