"""The benchmarks run; what they measure is no matter of a test."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from tokenizers import pre_tokenizers
from training_texts import TRAINING_TEXTS
from transformers import CLIPTokenizer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_text_padding_prints_a_ratio_for_every_variant(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("\n".join(TRAINING_TEXTS), encoding="utf-8")
    command = [sys.executable, str(BENCHMARKS / "text_padding.py"), "captions.txt", "--batch_size=2", "--rounds=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if "share" in line]
    assert len(lines) == 3
    for line in lines:
        assert [float(ratio) > 0 for ratio in re.findall(r" (\d+\.\d+)(?:,|$)", line)[-3:]] == [True] * 3


def test_image_processing_prints_a_ratio_for_every_variant_and_size(tmp_path: Path) -> None:
    for number in range(2):
        colours = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((80, 60)).save(tmp_path / f"{number}.jpg")
    command = [sys.executable, str(BENCHMARKS / "image_processing.py"), str(tmp_path), "--rounds=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    heads = [line for line in done.stdout.splitlines() if "photographs" in line]
    assert [re.findall(r"of (\S+) megapixels", head) for head in heads] == [["0.00"], ["1.00"], ["4.00"]]
    lines = [line for line in done.stdout.splitlines() if "ratio" in line]
    assert len(lines) == 3 * 4
    assert all(float(ratio) > 0 for line in lines for ratio in re.findall(r"ratio (\d+\.\d+)", line))
    empty = subprocess.run([*command[:2], str(BENCHMARKS)], capture_output=True, text=True, timeout=300)
    assert empty.returncode != 0 and "has no .jpg files" in empty.stderr


def test_word_splitting_prints_a_row_for_every_variant(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TRAINING_TEXTS), encoding="utf-8")
    (tmp_path / "held_out.tsv").write_text("ko\ten\n강아지가 고양이를 본다\ta dog sees a cat\n", encoding="utf-8")
    (tmp_path / "tokenizer.yaml").write_text(
        """
tokenizer: {vocab_size: 400}
sources: [{name: texts, data: {path: texts.txt, captions: {text: ko}}}]
held_out: [{name: pair, data: {path: held_out.tsv, captions: {ko: ko, en: en}}}]
""",
        encoding="utf-8",
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=[]).save_pretrained(tmp_path / "clip")
    command = [sys.executable, str(BENCHMARKS / "word_splitting.py"), "tokenizer.yaml", "--clip=clip", "--rounds=1"]
    command.append("--output=figures.json")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == len(rows) == 12
    by_name = {row["name"]: row for row in rows}
    # The last is CLIP's own, so its ratio to itself is 1; a vocabulary without merges has one token a letter.
    assert rows[-1]["speed"] == 1.0
    assert rows[-1]["en"]["tokens_per_character"] == 1.0 > by_name["ours as published"]["en"]["tokens_per_character"]


def test_retrieval_at_scale_prints_memory_and_ratios_for_every_size() -> None:
    command = [sys.executable, str(BENCHMARKS / "retrieval_at_scale.py"), "--items", "200", "400", "--queries", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if "MiB" in line]
    assert [line.split()[:2] for line in lines] == [["20", "200"], ["20", "400"]]
    assert all(len(re.findall(r"MiB +\d+\.\d+x", line)) >= 2 for line in lines)


@pytest.mark.slow
def test_classifiers_prints_an_accuracy_for_every_way_and_rate(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, num_rows in (("train", 1100), ("test", 60)):
        rows = []
        for number in range(num_rows):
            buffer, label = io.BytesIO(), number % 10
            colours = rng.integers(25 * label, 25 * label + 25, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(colours).save(buffer, "PNG")
            names = {"label_ko": f"\uc22b\uc790 {label}", "label_en": f"number {label}"}
            rows.append({"image": buffer.getvalue(), "label": label, **names})
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"cifar10_{split}.parquet")
    command = [sys.executable, str(BENCHMARKS / "classifiers.py"), str(tmp_path), "out", "--steps=9", "--labelled=300"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    ways = re.findall(r"^(\w+: [a-z ]+?) +\d+\.\d % \(.*, 60 pictures\)$", done.stdout, re.MULTILINE)
    assert ways == [
        "joint: zero shot classification en",
        "joint: zero shot classification ko",
        "joint: linear probe",
        "frozen: image classification",
        "full: image classification",
    ]
    assert len(re.findall(r"^rate \S+: .* of the 200$", done.stdout, re.MULTILINE)) == 3
    assert re.search(r"^rate \S+, trained on all 1,000: .* of the test set$", done.stdout, re.MULTILINE)
