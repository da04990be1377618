"""Small data, a small tokenizer, and what runs write: what tests of resumption and of long runs share."""

import json
from pathlib import Path
from typing import Any

from ko_en_clip.data.digits import CAPTIONS, load_digit_pairs
from ko_en_clip.tokenizer_training import TokenizerSettings, train_tokenizer

# Unequal, so that the borders between readers cut shards; 97 is a prime number.
SHARDS = [31, 7, 23, 36]
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
# Figures that tell of time, which no run repeats.
_OF_TIME = {"pairs_per_second", "waiting"}


def write_shards(folder: Path) -> dict[str, Any]:
    """Write a few digits as parquet files of unequal length; the settings of `data` that read them."""
    digits = load_digit_pairs("test").shuffle(seed=0)
    folder.mkdir()
    first = 0
    for number, length in enumerate(SHARDS):
        digits.select(range(first, first + length)).to_parquet(str(folder / f"{number}.parquet"))
        first += length
    return {"path": "parquet", "files": [str(folder / "*.parquet")], "captions": dict(CAPTIONS), "group": "pair"}


def write_tokenizer(folder: Path) -> None:
    """Train a tokenizer of the digits' captions and save it."""
    digits = load_digit_pairs("test")
    texts = [text for column in CAPTIONS for texts in digits[column] for text in texts]
    train_tokenizer(texts, TokenizerSettings(vocab_size=300)).save_pretrained(folder)


def logged(run: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics, whole ones, without what tells of time."""
    file = run / "metrics.jsonl"
    *lines, _ = file.read_bytes().split(b"\n") if file.is_file() else [b""]
    return [{name: value for name, value in json.loads(line).items() if name not in _OF_TIME} for line in lines]


def weights(run: Path) -> bytes:
    """The weights that a run left."""
    return (run / "model.safetensors").read_bytes()
