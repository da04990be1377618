"""What only a GPU can show: the real fp16 path, sharding over GPUs, compiling for them. Run with `pytest -m gpu`."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from training_texts import caption_texts

from ko_en_clip import KoEnClipModel
from ko_en_clip.data.loading import LoadingSettings
from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.tokenizer_training import TokenizerSettings, train_tokenizer
from ko_en_clip.training.contrastive import train_contrastive
from ko_en_clip.training.logs import read_metrics
from ko_en_clip.training.settings import ContrastiveSettings, ModelSettings, OptimizationSettings, RunSettings

TOWER = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}


CONFIGURATIONS = Path(__file__).parents[1] / "examples" / "accelerate"


@pytest.fixture
def settings(tmp_path):
    """128 pictures of digits a step, in a run that learns in 300."""
    AcceleratorState._reset_state(reset_partial_state=True)
    data = DataSettings(path="digits", captions={"caption_ko": "ko", "caption_en": "en"}, group="pair")
    train_tokenizer(caption_texts(data), TokenizerSettings(vocab_size=400)).save_pretrained(tmp_path / "tokenizer")
    config = {
        "projection_dim": 64,
        "text_config": TOWER,
        "vision_config": {**TOWER, "image_size": 32, "patch_size": 4},
    }
    return ContrastiveSettings(
        data=data,
        model=ModelSettings(tokenizer=str(tmp_path / "tokenizer"), config=config),
        loading=LoadingSettings(global_batch_size=128, num_workers=4),
        optimization=OptimizationSettings(learning_rate=1.5e-3, warmup_steps=20),
        run=RunSettings(output_dir=str(tmp_path / "run"), num_steps=300),
    )


def in_run(settings, folder, **run):
    return dataclasses.replace(settings, run=dataclasses.replace(settings.run, output_dir=str(folder), **run))


def losses(folder):
    return [line["loss"] for line in read_metrics(folder)]


def assert_learned(folder, precision):
    lines = read_metrics(folder)
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    # The scaler starts at 65536 and comes down by skipping a few steps; more than that would be a fault.
    assert lines[-1]["skipped"] <= (10 if precision == "fp16" else 0)
    model = KoEnClipModel.from_pretrained(folder)
    assert model.dtype == torch.float32 and model.logit_scale.dim() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("passes", [1, 4])
@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_training_learns_in_every_precision(settings, tmp_path, precision, passes):
    train_contrastive(in_run(settings, tmp_path / "run", precision=precision, gradient_accumulation_steps=passes))
    assert_learned(tmp_path / "run", precision)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_passes_in_fp16_have_the_losses_of_one_pass(settings, tmp_path):
    """The loss scale is in the gradient of the cached embeddings, and so once in that of the weights."""
    found = {}
    for passes in (1, 4):
        AcceleratorState._reset_state(reset_partial_state=True)
        folder = tmp_path / f"passes{passes}"
        run = {"precision": "fp16", "num_steps": 20, "log_steps": 1, "gradient_accumulation_steps": passes}
        train_contrastive(in_run(settings, folder, **run))
        found[passes] = losses(folder)
    # fp16 rounds to 5e-4; matrices of other heights round otherwise, and 20 steps add up.
    assert found[4] == pytest.approx(found[1], rel=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
# Inductor's own modules still use TorchScript.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("passes", [1, 4])
def test_a_compiled_run_has_the_losses_of_one_that_is_not(settings, tmp_path, monkeypatch, passes):
    run = {"num_steps": 20, "log_steps": 1, "gradient_accumulation_steps": passes}
    # Accelerate allows TensorFloat-32 where it compiles in float32.
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    train_contrastive(in_run(settings, tmp_path / "plain", **run))
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "inductor")
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_DYNAMIC", "true")
    train_contrastive(in_run(settings, tmp_path / "compiled", **run))
    # TensorFloat-32 rounds to 5e-4, in other places once operations are fused.
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-2)


def launched(configuration, settings, folder, **run):
    """A run of two processes, as Accelerate's launcher starts it."""
    chosen = dataclasses.asdict(in_run(settings, folder, **run))
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(chosen), encoding="utf-8")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launch += ["--config_file", str(CONFIGURATIONS / f"{configuration}.yaml"), "-m", "ko_en_clip", "train"]
    done = subprocess.run(
        [*launch, "--config", str(file)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are fewer than two GPUs")
@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_a_model_spread_over_gpus_learns_what_a_whole_one_does(settings, tmp_path, precision):
    run = {"precision": precision, "log_steps": 1, "gradient_accumulation_steps": 2}
    for configuration in ("ddp", "fsdp2"):
        launched(configuration, settings, tmp_path / configuration, **run)
    assert_learned(tmp_path / "fsdp2", precision)
    # Reductions in float32 in another order: 1e-6 at first, and the scaler's skipped steps are the same.
    found, expected = losses(tmp_path / "fsdp2"), losses(tmp_path / "ddp")
    assert found[:20] == pytest.approx(expected[:20], rel=1e-2)
