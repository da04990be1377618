"""Two processes killed without warning, again and again, and resumed: the run that was never stopped, bit for bit.

The run streams unequal shards, with several views of each picture and dropout, from a folder of masked pre-training.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from accelerate.state import AcceleratorState
from small_runs import TOWER, logged, weights, write_shards, write_tokenizer

from ko_en_clip.settings_files import load_settings
from ko_en_clip.training.mae import pretrain_mae
from ko_en_clip.training.settings import StageSettings

WORKER = Path(__file__).with_name("dying_worker.py")
NUM_STEPS = 300
# How the run dies where it is not by the clock: by the main process just before and just after the rename, and by
# either process before any operation of a save. The main process has some 25 of them up to the rename, and then those
# of deleting an old checkpoint; the other has some 10.
MOMENTS: list[dict[str, Any]] = [
    {"rank": 0, "during": "save", "number": 1, "at": "rename"},
    {"rank": 0, "during": "save", "number": 2, "at": "renamed"},
    {"rank": 0, "during": "save", "number": 3, "at": "rename"},
    {"rank": 0, "during": "save", "number": 1, "at": "renamed"},
    *({"rank": 0, "during": "save", "number": 1 + life % 2, "at": at} for life, at in enumerate((4, 11, 18, 31, 47))),
    *({"rank": 1, "during": "save", "number": 2, "at": at} for at in (1, 4, 8)),
    {"rank": 0, "during": "load", "number": 1, "at": 3},
]
NUM_KILLS = 20


def recipe(folder: Path) -> dict[str, Any]:
    """A tiny KELIP."""
    model = {
        "tokenizer": str(folder / "tokenizer"),
        "config": {
            "projection_dim": 8,
            "text_config": TOWER,
            "vision_config": {**TOWER, "image_size": 32, "patch_size": 8},
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
        },
    }
    return {
        "data": {**write_shards(folder / "shards"), "streaming": True},
        "model": model,
        "loading": {"global_batch_size": 8, "num_workers": 1, "shuffle_block": 5},
        "optimization": {"learning_rate": 1e-3, "warmup_steps": 4},
        "run": {"output_dir": str(folder / "mae"), "num_steps": 4, "log_steps": 1, "checkpoint_steps": 4},
    }


def start(folder: Path, *arguments: str, moment: dict[str, Any] | None = None) -> subprocess.Popen[bytes]:
    program = ["-m", "ko_en_clip"] if moment is None else [str(WORKER), json.dumps(moment)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *program]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [*launch, "train", "--config=recipe.yaml", *arguments],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "cache")},
            stdout=log,
            stderr=log,
        )


def kill_all(launcher: subprocess.Popen[bytes]) -> None:
    """Kill the launcher, the trainers, which it gives sessions of their own, and their workers, at one moment."""
    processes = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]
    for process in processes:
        process.send_signal(signal.SIGKILL)
    launcher.wait(timeout=60)
    psutil.wait_procs(processes[1:], timeout=60)


def kill_after(launcher: subprocess.Popen[bytes], run: Path, num_lines: int, seconds: float) -> None:
    """Kill all once the run has written so many lines more than it had when it was started, and a moment later."""
    before, until = len(logged(run)), time.monotonic() + 240
    while len(logged(run)) < before + num_lines and launcher.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(seconds)
    assert launcher.poll() is None, "the run ended before it was killed"
    kill_all(launcher)


def log_of(folder: Path) -> str:
    return (folder / "log.txt").read_text(encoding="utf-8", errors="replace")


@pytest.fixture
def folder(tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    settings = recipe(tmp_path)
    loading = settings["loading"] | {"num_workers": 0}
    written = yaml.safe_dump(settings | {"data": settings["data"] | {"streaming": False}, "loading": loading})
    (tmp_path / "pretraining.yaml").write_text(written, encoding="utf-8")
    AcceleratorState._reset_state(reset_partial_state=True)
    pretrain_mae(load_settings(StageSettings, tmp_path / "pretraining.yaml"))
    settings["model"] = {"init": str(tmp_path / "mae"), "config": {"vision_config": {"patch_dropout": 0.25}}}
    settings["views"] = {"num_global": 2, "num_local": 2, "local_size": 16}
    settings["run"] = {"output_dir": "run", "num_steps": NUM_STEPS, "log_steps": 1, "checkpoint_steps": 5}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_a_run_killed_twenty_times_is_the_run_that_was_not(folder):
    rng = random.Random(0)
    # Lines of the logs, and seconds after the last of them. The first life is long enough for a checkpoint, without
    # which there is nothing to resume; one ends while the process starts.
    first, *by_clock = [(rng.randint(6, 12), rng.uniform(0, 0.1)) for _ in range(NUM_KILLS - len(MOMENTS) - 1)]
    others: list[Any] = [*MOMENTS, *by_clock, (0, 8.0)]
    rng.shuffle(others)
    killed, resuming = folder / "killed", "--run.resume=false"
    for moment in (first, *others):
        given = ["--run.output_dir=killed", resuming]
        if isinstance(moment, dict):
            assert start(folder, *given, moment=moment).wait(timeout=300) != 0, log_of(folder)[-4000:]
        else:
            kill_after(start(folder, *given), killed, *moment)
        resuming = "--run.resume=true"
    assert log_of(folder).count(" dies before ") == len(MOMENTS) >= 8
    assert 0 < len(logged(killed)) < NUM_STEPS and not (killed / "model.safetensors").exists()
    assert start(folder, "--run.output_dir=killed", "--run.resume=true").wait(timeout=300) == 0, log_of(folder)[-4000:]

    straight, other = folder / "straight", folder / "other"
    assert start(folder, "--run.output_dir=straight").wait(timeout=300) == 0
    assert [line["step"] for line in logged(straight)] == list(range(1, NUM_STEPS + 1))
    assert logged(killed) == logged(straight)
    assert weights(killed) == weights(straight)
    # The twins: steps differ from each other, and another seed gives another run.
    assert len({line["loss"] for line in logged(straight)}) > 0.9 * NUM_STEPS
    assert start(folder, "--run.output_dir=other", "--run.seed=1").wait(timeout=300) == 0
    assert all(one["loss"] != two["loss"] for one, two in zip(logged(other), logged(straight), strict=True))
    assert weights(other) != weights(straight)
