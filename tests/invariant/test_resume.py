"""Two processes killed without warning, then resumed: the losses and weights of a run that was not stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_texts import caption_texts

from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.tokenizer_training import TokenizerSettings, train_tokenizer

CAPTIONS = {"caption_ko": "ko", "caption_en": "en"}
RECIPE = """
data: {path: digits, split: test, captions: {caption_ko: ko, caption_en: en}, group: pair}
model:
  tokenizer: tokenizer
  config: {projection_dim: 8, text_config: TOWER}, vision_config: TOWER, image_size: 16, patch_size: 8}}
loading: {global_batch_size: 16, num_workers: 1}
optimization: {learning_rate: 1.0e-3, warmup_steps: 10}
run: {output_dir: run, num_steps: 150, log_steps: 1, checkpoint_steps: 5}
""".replace("TOWER", "{hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2")


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "ko_en_clip"]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [*launch, "train", "--config=recipe.yaml", *arguments],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def lines(run: Path) -> list[str]:
    file = run / "metrics.jsonl"
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in lines(run)]


@pytest.mark.slow
@pytest.mark.parametrize("steps_before_the_kill", [23, 90])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, steps_before_the_kill):
    texts = caption_texts(DataSettings(path="digits", split="test", captions=CAPTIONS))
    train_tokenizer(texts, TokenizerSettings(vocab_size=300)).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    assert start(tmp_path, "--run.output_dir=straight").wait(timeout=300) == 0

    process = start(tmp_path, "--run.output_dir=killed")
    until = time.monotonic() + 120
    while len(lines(tmp_path / "killed")) < steps_before_the_kill and time.monotonic() < until:
        time.sleep(0.02)
    # The whole group that was started here, the launcher first.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    assert steps_before_the_kill <= len(lines(tmp_path / "killed")) < 150
    assert start(tmp_path, "--run.output_dir=killed", "--run.resume=true").wait(timeout=300) == 0

    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("killed", "straight")]
    assert weights[0] == weights[1]
    # The twin: losses differ from step to step, so equal lists are no accident.
    assert len(set(losses(tmp_path / "straight"))) > 100
