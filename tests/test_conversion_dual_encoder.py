"""Dual encoders in: a folder of transformers' VisionTextDualEncoderModel, KoCLIP's kind, becomes the same model."""

from pathlib import Path

import pytest
import torch
from conversion_folders import dual_encoder_folder
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from ko_en_clip.conversion import parity
from ko_en_clip.conversion.dual_encoder import from_dual_encoder
from ko_en_clip.conversion.stock import stock_parity


@pytest.mark.parametrize(
    ("vision", "tower"), [("vit", "ViTModel"), ("clip", "KoEnClipVisionModel")], ids=["vit", "clip"]
)
def test_the_converted_model_embeds_as_transformers_does(vision: str, tower: str, tmp_path: Path) -> None:
    """CLIP's vision tower, which KoCLIP has, becomes the native one; ViT stays."""
    stock = dual_encoder_folder(tmp_path, vision)
    made = from_dual_encoder(tmp_path)
    assert type(made.model.vision_model).__name__ == tower
    batch = made.processor(text=list(parity.TEXTS), images=parity.sample_pictures(), return_tensors="pt")
    with torch.no_grad():
        found, expected = made.model(**batch), stock(**batch)
    # 1e-5: the same float32 operations.
    for name in ("image_embeds", "text_embeds", "logits_per_image"):
        assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    assert (expected.text_embeds[0] - expected.text_embeds[1]).abs().max() > 1e-3
    assert (expected.image_embeds[0] - expected.image_embeds[1]).abs().max() > 1e-3
    assert_close(dict(made.model.state_dict()), dict(stock.state_dict()), rtol=0, atol=0)
    report = stock_parity(tmp_path, made)
    assert report.within, report.table()
    # The twin: the first token as it is, not through the pooler.
    made.model.config.text_pooling = "cls"
    report = stock_parity(tmp_path, made)
    assert {row.name for row in report.rows if not row.within} == {"text", "logits_per_image"}


def test_texts_end_where_the_positions_do(tmp_path: Path) -> None:
    """RoBERTa counts positions from behind the padding id: a table of 60 rows holds 59 tokens."""
    dual_encoder_folder(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"model_max_length": 52', '"model_max_length": 512'))
    made = from_dual_encoder(tmp_path)
    batch = made.processor(text=["a b " * 60], return_tensors="pt")
    assert batch["input_ids"].shape == (1, 59)
    made.model.get_text_features(**batch)


def test_weights_that_do_not_fit_stop_it(tmp_path: Path) -> None:
    dual_encoder_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({key: tensor for key, tensor in tensors.items() if key != "text_model.pooler.dense.bias"}, file)
    with pytest.raises(ValueError, match=r"keys without weights: text_model\.pooler\.dense\.bias"):
        from_dual_encoder(tmp_path)
