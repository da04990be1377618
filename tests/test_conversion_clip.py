"""transformers' CLIPModel in and out, as folders with tokenizer and image processor, older folders among them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from moved_weights import moved
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModel, AutoProcessor, CLIPModel

from ko_en_clip import KoEnClipConfig, KoEnClipModel, KoEnClipProcessor, KoEnClipTokenizerFast
from ko_en_clip.conversion import parity
from ko_en_clip.conversion.clip import from_clip_folder, to_clip, to_clip_folder
from ko_en_clip.conversion.stock import stock_parity


@pytest.fixture
def stock_folder(tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor, tmp_path: Path) -> Path:
    to_clip_folder(moved(tiny_model), tiny_processor, tmp_path / "stock")
    return tmp_path / "stock"


def update(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | entries), encoding="utf-8")


def update_text_config(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    update(folder / "config.json", text_config=config["text_config"] | entries)


def test_out_and_in_again_is_the_same_bit_for_bit(stock_folder: Path, tiny_model: KoEnClipModel) -> None:
    weights = dict(tiny_model.state_dict())
    assert_close(load_file(stock_folder / "model.safetensors"), weights, rtol=0, atol=0)
    made = from_clip_folder(stock_folder)
    assert type(made.model) is KoEnClipModel
    assert_close(dict(made.model.state_dict()), weights, rtol=0, atol=0)
    for tower in ("text_config", "vision_config"):
        found, expected = (getattr(model.config, tower).to_dict() for model in (made.model, tiny_model))
        for fields in (found, expected):
            # How the weights lie, not what they compute.
            fields |= {"architectures": None, "dtype": None}
        assert found == expected
    # And out once more.
    to_clip_folder(made.model, made.processor, stock_folder.with_name("again"))
    for name in ("model.safetensors", "tokenizer.json"):
        one, other = ((stock_folder.with_name(folder) / name).read_bytes() for folder in ("stock", "again"))
        assert one == other, name


def test_stock_clip_computes_the_same(
    stock_folder: Path, tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor
) -> None:
    stock = AutoModel.from_pretrained(stock_folder)
    assert type(stock) is CLIPModel
    texts, pictures = list(parity.TEXTS), parity.sample_pictures()
    batch = AutoProcessor.from_pretrained(stock_folder)(
        text=texts, images=pictures, padding=True, truncation=True, return_tensors="pt"
    )
    ours = tiny_processor(text=texts, images=pictures, return_tensors="pt")
    assert torch.equal(ours["input_ids"], batch["input_ids"])
    with torch.no_grad():
        found, expected = stock(**batch), tiny_model(**batch)
    # 1e-5: float32, sums in another order; logits are cosines times 14.
    for name, atol in (("image_embeds", 1e-5), ("text_embeds", 1e-5), ("logits_per_image", 2e-4)):
        assert_close(found[name], expected[name], rtol=0, atol=atol)
    assert (expected.text_embeds[0] - expected.text_embeds[1]).abs().max() > 1e-2
    made = from_clip_folder(stock_folder)
    report = stock_parity(stock_folder, made)
    assert report.within, report.table()
    # The twin.
    with torch.no_grad():
        made.model.text_model.embeddings.position_embedding.weight[1] += 0.1
    assert not stock_parity(stock_folder, made).within


def test_a_clean_process_loads_it_without_the_package(stock_folder: Path) -> None:
    program = (
        "import sys, transformers\n"
        "model = transformers.AutoModel.from_pretrained(sys.argv[1])\n"
        "processor = transformers.AutoProcessor.from_pretrained(sys.argv[1])\n"
        "texts = processor(text=['a dog', '눈 덮인 산'], padding=True, return_tensors='pt')\n"
        "print(type(model).__name__, type(processor).__name__, tuple(model.get_text_features(**texts)[1].shape))\n"
        "assert 'ko_en_clip' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program, stock_folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "CLIPModel CLIPProcessor (2, 16)"


def test_older_folders_pool_at_the_largest_id(stock_folder: Path, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    """EOS id 2 of transformers before 4.31 stands for the largest id of a text; the tokenizer's EOS has to be that."""
    update_text_config(stock_folder, eos_token_id=2)
    made = from_clip_folder(stock_folder)
    assert made.model.config.text_config.eos_token_id == tiny_tokenizer.eos_token_id == len(tiny_tokenizer) - 1
    report = stock_parity(stock_folder, made)
    assert report.within, report.table()
    # The twin: another EOS in the file is a contradiction, and nothing is guessed.
    update_text_config(stock_folder, eos_token_id=7)
    with pytest.raises(ValueError, match=rf"EOS is {tiny_tokenizer.eos_token_id}, .* eos_token_id 7 .* pooled at 7"):
        from_clip_folder(stock_folder)


def test_a_folder_that_pads_with_eos_has_no_padding_id(stock_folder: Path) -> None:
    """As OpenAI's folders on the Hub do."""
    tokenizer = AutoProcessor.from_pretrained(stock_folder).tokenizer
    update(stock_folder / "tokenizer_config.json", pad_token=tokenizer.eos_token)
    update_text_config(stock_folder, pad_token_id=1)
    made = from_clip_folder(stock_folder)
    assert made.model.config.text_config.pad_token_id is None
    assert made.processor.tokenizer.pad_token_id == made.processor.tokenizer.eos_token_id
    report = stock_parity(stock_folder, made)
    assert report.within, report.table()


def test_activation_and_norms_are_read(stock_folder: Path) -> None:
    config = json.loads((stock_folder / "config.json").read_text(encoding="utf-8"))
    for tower in ("text_config", "vision_config"):
        config[tower] |= {"hidden_act": "gelu", "layer_norm_eps": 1e-3}
    update(stock_folder / "config.json", **config)
    made = from_clip_folder(stock_folder)
    report = stock_parity(stock_folder, made)
    assert report.within, report.table()
    assert made.model.config.vision_config.hidden_act == "gelu"


def test_what_stock_clip_has_not_does_not_go_out(tiny_config: KoEnClipConfig) -> None:
    fields = tiny_config.to_dict()
    with pytest.raises(ValueError, match="logit_bias, which transformers' CLIPModel lacks"):
        to_clip(KoEnClipModel(KoEnClipConfig(**fields | {"loss_type": "sigmoid"})))
    bert = {"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 9}
    config = KoEnClipConfig(**fields | {"text_config": bert | {"intermediate_size": 16}, "text_pooling": "cls"})
    with pytest.raises(ValueError, match="text_config is a bert"):
        to_clip(KoEnClipModel(config))
