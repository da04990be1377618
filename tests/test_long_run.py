"""A long run takes no more memory than a short one: its process and those that load for it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from training_texts import caption_texts

from ko_en_clip.data.digits import CAPTIONS, load_digit_pairs
from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.tokenizer_training import TokenizerSettings, train_tokenizer
from ko_en_clip.training.logs import read_metrics

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
STEPS = (100, 500, 1000, 1500, 2000)


def start(folder: Path, data: dict[str, object]) -> subprocess.Popen[bytes]:
    texts = caption_texts(DataSettings(path="digits", split="test", captions=CAPTIONS))
    train_tokenizer(texts, TokenizerSettings(vocab_size=300)).save_pretrained(folder / "tokenizer")
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    recipe = {
        "data": {"captions": CAPTIONS, "group": "pair", **data},
        "model": {
            "tokenizer": "tokenizer",
            "config": {"projection_dim": 8, "text_config": TOWER, "vision_config": vision},
        },
        "loading": {"global_batch_size": 8, "num_workers": 1, "shuffle_block": 64},
        "optimization": {"learning_rate": 1e-3},
        # Some steps more than are watched, so that the run has not ended when it is looked at.
        "run": {"output_dir": "run", "num_steps": STEPS[-1] + 100, "log_steps": 10, "checkpoint_steps": 50},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ko_en_clip", "train", "--config=recipe.yaml"],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "cache")},
            stdout=log,
            stderr=log,
        )


def steps_done(run: Path) -> int:
    lines = read_metrics(run) if (run / "metrics.jsonl").is_file() else []
    return lines[-1]["step"] if lines else 0


def memory_of(pid: int) -> float:
    """MiB that a process and its children hold of their own; a page that they share counts once.

    Pages of files are left out: libraries count the less the more unrelated processes have them open.
    """
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    assert len(processes) >= 2, "the loader's worker counts, too"
    total = 0
    for process in processes:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
        kilobytes = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
        total += kilobytes["Pss_Anon"] + kilobytes["Pss_Shmem"]
    return total / 2**10


def memory_after_steps(folder: Path, data: dict[str, object]) -> dict[int, float]:
    """Memory in MiB of a run after each of STEPS."""
    process, found = start(folder, data), {}
    try:
        for step in STEPS:
            while steps_done(folder / "run") < step:
                assert process.poll() is None, (folder / "log.txt").read_text(encoding="utf-8")[-4000:]
                time.sleep(0.1)
            found[step] = memory_of(process.pid)
        assert process.wait(timeout=300) == 0
    finally:
        process.kill()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True], ids=["on disk", "streamed"])
def test_memory_is_flat(tmp_path: Path, streaming: bool) -> None:
    digits = load_digit_pairs("test")
    (tmp_path / "shards").mkdir()
    for shard, (first, last) in enumerate([(0, 300), (300, 900), (900, 1000)]):
        digits.select(range(first, last)).to_parquet(str(tmp_path / "shards" / f"{shard}.parquet"))
    # 2,000 steps are 16 epochs, so shards are opened again and again. Memory grows by 1.3 to 1.5 %, the most of it in
    # the first hundreds of steps, while the arenas of the allocators fill.
    data: dict[str, object] = {
        "path": "parquet",
        "files": [str(tmp_path / "shards" / "*.parquet")],
        "streaming": streaming,
    }
    found = memory_after_steps(tmp_path, data)
    print({step: f"{size:.1f} MiB" for step, size in found.items()})
    assert found[2000] < 1.02 * found[100], found
