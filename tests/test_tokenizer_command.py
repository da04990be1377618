"""The command `train-tokenizer` from texts to a folder with a report."""

import json
from pathlib import Path
from typing import Any

import pytest
from training_texts import TRAINING_TEXTS
from transformers import AutoTokenizer

from ko_en_clip import KoEnClipTokenizerFast
from ko_en_clip.commands.train_tokenizer import TrainTokenizerSettings, run
from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.data.texts import TextSource
from ko_en_clip.manifests import read_manifest
from ko_en_clip.tokenizer_training import TokenizerSettings

KOREAN, ENGLISH = TRAINING_TEXTS[:6], TRAINING_TEXTS[6:11]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: KoEnClipTokenizerFast) -> dict[str, Any]:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    sources = []
    for language, texts in (("ko", KOREAN), ("en", ENGLISH)):
        (tmp_path / f"{language}.txt").write_text("".join(f"{text}\n" for text in texts * 4), encoding="utf-8")
        data = DataSettings(path=str(tmp_path / f"{language}.txt"), captions={"text": language})
        sources.append(TextSource(name=f"some {language}", data=data))
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    return {
        "output_dir": str(tmp_path / "tokenizer"),
        "tokenizer": TokenizerSettings(vocab_size=330),
        "sources": sources,
        "num_texts": {"ko": 12, "en": 17},
        "held_out": sources[:1],
        "compare": [str(tmp_path / "other")],
    }


def test_a_whole_run(settings: dict[str, Any], tmp_path: Path) -> None:
    run(TrainTokenizerSettings(**settings))
    folder = tmp_path / "tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, KoEnClipTokenizerFast)
    assert len(tokenizer) == 330
    manifest = read_manifest(folder)
    assert manifest["inputs"]["texts"] == [
        {"language": "ko", "source": "some ko", "texts": 12},
        {"language": "en", "source": "some en", "texts": 17},
    ]
    assert manifest["settings"]["num_texts"] == settings["num_texts"]
    document = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert str(tmp_path / "other") in json.dumps(document)
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "tokenizer.partial").exists()

    # Without texts to measure on there is no report, and other texts have another hash.
    run(TrainTokenizerSettings(**{**settings, "num_texts": {}, "held_out": [], "compare": []}))
    assert not (folder / "report.json").exists()
    other = read_manifest(folder)["inputs"]
    assert [source["texts"] for source in other["texts"]] == [24, 20]
    assert other["texts_sha256"] != manifest["inputs"]["texts_sha256"]


def test_a_failure_leaves_the_old_folder(settings: dict[str, Any], tmp_path: Path) -> None:
    run(TrainTokenizerSettings(**settings))
    before = {file.name: file.read_bytes() for file in (tmp_path / "tokenizer").iterdir()}
    (tmp_path / "en.txt").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="'some en' has no text"):
        run(TrainTokenizerSettings(**settings))
    empty = TextSource(name="empty", data=settings["sources"][1].data)
    with pytest.raises(ValueError, match="text"):
        run(
            TrainTokenizerSettings(
                **{**settings, "num_texts": {}, "sources": settings["sources"][:1], "held_out": [empty]}
            )
        )
    assert {file.name: file.read_bytes() for file in (tmp_path / "tokenizer").iterdir()} == before
    (tmp_path / "en.txt").write_text("a dog\n" * 20, encoding="utf-8")
    run(TrainTokenizerSettings(**settings))
    assert (tmp_path / "tokenizer" / "tokenizer.json").read_bytes() != before["tokenizer.json"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sources": []}, "sources is empty"),
        ({"held_out": []}, "held_out"),
        ({"twice": True}, "two sources have one name"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], named: str, settings: dict[str, Any]) -> None:
    TrainTokenizerSettings(**settings)
    if change.pop("twice", False):
        change = {"sources": settings["sources"][:1] * 2}
    with pytest.raises(ValueError, match=named):
        TrainTokenizerSettings(**{**settings, **change})
