"""What only a GPU can show: the real fp16 path. Run with `pytest -m gpu`."""

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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_training_learns_in_every_precision(tmp_path, precision):
    AcceleratorState._reset_state(reset_partial_state=True)
    data = DataSettings(path="digits", captions={"caption_ko": "ko", "caption_en": "en"}, group="pair")
    train_tokenizer(caption_texts(data), TokenizerSettings(vocab_size=400)).save_pretrained(tmp_path / "tokenizer")
    config = {
        "projection_dim": 64,
        "text_config": TOWER,
        "vision_config": {**TOWER, "image_size": 32, "patch_size": 4},
    }
    train_contrastive(
        ContrastiveSettings(
            data=data,
            model=ModelSettings(tokenizer=str(tmp_path / "tokenizer"), config=config),
            loading=LoadingSettings(global_batch_size=128, num_workers=4),
            optimization=OptimizationSettings(learning_rate=1.5e-3, warmup_steps=20),
            run=RunSettings(output_dir=str(tmp_path / "run"), num_steps=300, precision=precision),
        )
    )
    lines = read_metrics(tmp_path / "run")
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    # The scaler starts at 65536 and comes down by skipping a few steps; more than that would be a fault.
    assert lines[-1]["skipped"] <= (10 if precision == "fp16" else 0)
    assert KoEnClipModel.from_pretrained(tmp_path / "run").dtype == torch.float32
