"""A vocabulary of 98,304 entries on real Korean and English texts, measured on captions that it has not seen."""

import json
import re
import unicodedata
from collections import defaultdict
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ko_en_clip.commands.train_tokenizer import TrainTokenizerSettings, run
from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.data.texts import TextSource
from ko_en_clip.tokenizer_training import TokenizerSettings

HELD_OUT = "xm3600"
# Captions count more and film reviews less, since captions are what a CLIP reads.
WEIGHTS = {("ko", "korsts-caption"): 4.0, ("ko", "xgqa"): 4.0, ("en", "xgqa"): 4.0, ("ko", "nsmc"): 0.5}

pytestmark = pytest.mark.slow


def sources(texts: Path, folder: Path) -> list[TextSource]:
    """One source for each kind of text in each language, but for the held-out one."""
    lines: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for language in ("ko", "en"):
        kinds = (texts / f"{language}.sources.txt").read_text(encoding="utf-8").split()
        with (texts / f"{language}.txt").open(encoding="utf-8") as every_line:
            for kind, line in zip(kinds, every_line, strict=True):
                lines[language, kind].append(line)
    assert ("ko", HELD_OUT) in lines and ("en", HELD_OUT) in lines
    found = []
    for (language, kind), kept in lines.items():
        if kind != HELD_OUT:
            file = folder / f"{language}_{kind}.txt"
            file.write_text("".join(kept), encoding="utf-8")
            data = DataSettings(path=str(file), captions={"text": language})
            weight = WEIGHTS.get((language, kind), 1.0)
            found.append(TextSource(name=f"{kind} {language}", data=data, weight=weight))
    return found


@pytest.fixture(scope="module")
def folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("real")
    captions = DataSettings(path=str(shared_data / "captions/xm3600_ko_en.tsv"), captions={"ko": "ko", "en": "en"})
    run(
        TrainTokenizerSettings(
            output_dir=str(made / "tokenizer"),
            tokenizer=TokenizerSettings(vocab_size=98304),
            sources=sources(shared_data / "text", made),
            held_out=[TextSource(name=HELD_OUT, data=captions)],
        )
    )
    return made / "tokenizer"


def test_words_of_unseen_captions_take_few_tokens(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    ours, *smaller = report["tokenizers"]
    assert ours["num_entries"] == 98304
    korean, english = ours["languages"]
    assert (korean["language"], korean["num_texts"]) == ("ko", 1800)
    assert korean["tokens_per_word"] <= 1.3
    assert english["tokens_per_word"] <= 1.15
    for language in (korean, english):
        # No caption over 48 tokens, BOS and EOS left out.
        assert language["length_longest"] - ours["num_special_tokens"] <= 48
        assert language["nfd_same_ids"] == language["round_trip"] == 1.0
    # The twin: a smaller vocabulary misses.
    assert [tokenizer["num_entries"] for tokenizer in smaller] == [65536, 32768]
    assert smaller[-1]["languages"][0]["tokens_per_word"] > 1.3


def test_no_entry_crosses_words_or_joins_letters_and_punctuation(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    entries = [entry for entry in tokenizer.batch_decode([[number] for number in ids]) if "\ufffd" not in entry]
    assert len(entries) > 90_000
    for entry in entries:
        assert not re.search(r"\s", entry[1:]), entry
        kinds = {unicodedata.category(mark)[0] for mark in entry.removeprefix(" ")}
        assert not ("L" in kinds and kinds & {"P", "S", "N"}), entry
    assert any(" " in entry for entry in entries)
