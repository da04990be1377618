"""Manifests: what a stage wrote, and what may be cleared away."""

import pytest

from ko_en_clip.commands.demo import DemoSettings
from ko_en_clip.commands.demo import run as run_demo
from ko_en_clip.commands.train_tokenizer import TrainTokenizerSettings, run
from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.data.texts import TextSource
from ko_en_clip.manifests import clear_stage_folder, read_manifest, write_manifest
from ko_en_clip.tokenizer_training import TokenizerSettings


def settings(folder, text):
    source = TextSource(name="text", data=DataSettings(path=str(text), captions={"text": "ko"}))
    return TrainTokenizerSettings(
        output_dir=str(folder), tokenizer=TokenizerSettings(vocab_size=300), sources=[source]
    )


def test_only_what_the_stage_wrote_is_cleared_away(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("고양이와 강아지\na cat and a dog\n", encoding="utf-8")
    run(settings(tmp_path / "tokenizer", text))
    run(settings(tmp_path / "tokenizer", text))
    assert read_manifest(tmp_path / "tokenizer")["stage"] == "train-tokenizer"

    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(FileExistsError, match="was not written by train-tokenizer"):
        run(settings(other, text))
    assert (other / "precious.txt").read_text(encoding="utf-8") == "keep me"
    write_manifest(other, stage="train", settings=settings(other, text), inputs={})
    with pytest.raises(FileExistsError):
        clear_stage_folder(other, "train-tokenizer")


def test_a_training_that_fails_leaves_the_old_tokenizer(tmp_path):
    text, empty = tmp_path / "text.txt", tmp_path / "empty.txt"
    text.write_text("고양이와 강아지\na cat and a dog\n", encoding="utf-8")
    empty.write_text("", encoding="utf-8")
    run(settings(tmp_path / "tokenizer", text))
    before = (tmp_path / "tokenizer" / "tokenizer.json").read_bytes()
    with pytest.raises(ValueError, match="no text"):
        run(settings(tmp_path / "tokenizer", empty))
    assert (tmp_path / "tokenizer" / "tokenizer.json").read_bytes() == before


def test_a_demo_does_not_clear_what_is_no_demo(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(FileExistsError, match="no demo"):
        run_demo(DemoSettings(output_dir=str(tmp_path)))
    assert (tmp_path / "train").is_dir()


def test_a_folder_without_a_manifest_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no manifest.json"):
        read_manifest(tmp_path)
