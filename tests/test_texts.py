"""Streams of texts and their mixture."""

from contextlib import nullcontext
from pathlib import Path

import datasets
import pytest

from ko_en_clip.commands.train_tokenizer import TrainTokenizerSettings, held_out_texts
from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.data.texts import TextMixture, TextSource, stream_texts
from ko_en_clip.tokenizer_training import TokenizerSettings


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


def source_of(folder: Path, num_texts: int, weight: float) -> TextSource:
    file = folder / "texts.txt"
    file.write_text("".join(f"text {number}\n" for number in range(num_texts)), encoding="utf-8")
    return TextSource(name="lines", weight=weight, data=DataSettings(path=str(file), captions={"text": "en"}))


# 0.5 has no rounding error; 0.7 and 0.3 as binary numbers are a little less.
@pytest.mark.parametrize(("weight", "taken"), [(0.5, 5), (0.7, 7), (0.3, 3)])
def test_weights_are_taken_as_they_are_written(weight: float, taken: int, tmp_path: Path) -> None:
    assert len(list(TextMixture([source_of(tmp_path, 10, weight)], {}))) == taken


@pytest.mark.parametrize("number", [0, -5])
def test_a_number_of_texts_below_one_is_refused(number: int, tmp_path: Path) -> None:
    source = source_of(tmp_path, 3, 1.0)
    assert len(list(TextMixture([source], {"en": 1}))) == 1
    with pytest.raises(ValueError, match="at least 1"):
        TextMixture([source], {"en": number})


def test_a_held_out_source_without_a_text_is_refused_before_training(tmp_path: Path) -> None:
    empty = source_of(tmp_path, 0, 1.0)
    with pytest.raises(ValueError, match="'lines' has no text"):
        held_out_texts([empty])
    assert len(held_out_texts([source_of(tmp_path, 2, 1.0)])["en", "lines"]) == 2


@pytest.mark.parametrize(("other", "refused"), [("tokenizer", True), ("old/tokenizer", False)])
def test_two_tokenizers_of_a_report_have_two_names(other: str, refused: bool, tmp_path: Path) -> None:
    source = source_of(tmp_path, 2, 1.0)
    with pytest.raises(ValueError, match="two names") if refused else nullcontext():
        TrainTokenizerSettings(
            output_dir="new/tokenizer",
            tokenizer=TokenizerSettings(vocab_size=300),
            sources=[source],
            held_out=[source],
            compare=[other],
        )
