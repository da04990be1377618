"""The processor: pixels and tokens in one call, saved as one, used by the zero-shot pipeline."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import AutoProcessor, AutoTokenizer, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ko_en_clip import (
    KoEnClipImageProcessor,
    KoEnClipModel,
    KoEnClipProcessor,
    KoEnClipTokenizerFast,
)
from ko_en_clip.tokenization_ko_en_clip import check_input_ids

TEXTS = ["눈 덮인 산과 호수", "a dog"]


def picture(colour: str = "navy") -> Image.Image:
    image = Image.new("RGB", (60, 45), colour)
    image.paste((250, 240, 10), (10, 5, 40, 20))
    return image


def test_one_call_gives_pixels_and_tokens(tiny_processor: KoEnClipProcessor) -> None:
    batch = tiny_processor(images=[picture(), picture("red")], text=TEXTS, return_tensors="pt")
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask"}
    expected = tiny_processor.image_processor([picture(), picture("red")], return_tensors="pt")["pixel_values"]
    assert_close(batch["pixel_values"], expected, rtol=0, atol=0)
    tokens = tiny_processor.tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask"):
        assert_close(batch[name], tokens[name], rtol=0, atol=0)
    # The twins: other pictures and texts are other numbers.
    other = tiny_processor(images=[picture("red"), picture()], text=TEXTS[::-1], return_tensors="pt")
    assert not torch.equal(other["pixel_values"], batch["pixel_values"])
    assert not torch.equal(other["input_ids"], batch["input_ids"])


def test_one_kind_alone(tiny_processor: KoEnClipProcessor) -> None:
    assert set(tiny_processor(images=picture(), return_tensors="pt")) == {"pixel_values"}
    assert set(tiny_processor(text=TEXTS, return_tensors="pt")) == {"input_ids", "attention_mask"}
    with pytest.raises(ValueError):
        tiny_processor()


def test_long_text_is_cut_with_its_eos(tiny_processor: KoEnClipProcessor) -> None:
    long = "한 마리 강아지가 잔디 위를 달린다 " * 20
    assert len(tiny_processor.tokenizer.tokenize(long)) > 77
    batch = tiny_processor(text=[long, "a"], return_tensors="pt")
    eos, pad = tiny_processor.tokenizer.eos_token_id, tiny_processor.tokenizer.pad_token_id
    assert batch["input_ids"].shape == (2, 77)
    assert batch["input_ids"][0, -1] == eos
    assert (batch["input_ids"] == eos).sum(dim=1).tolist() == [1, 1]
    assert batch["input_ids"][1, -1] == pad
    assert batch["attention_mask"].sum(dim=1).tolist() == [77, len(tiny_processor.tokenizer("a")["input_ids"])]


@pytest.mark.parametrize(("padding", "width"), [(True, None), ("max_length", 77)])
def test_padding_may_be_told(padding: Any, width: int | None, tiny_processor: KoEnClipProcessor) -> None:
    longest = max(len(tiny_processor.tokenizer(text)["input_ids"]) for text in TEXTS)
    assert longest < 77
    found = tiny_processor(text=TEXTS, padding=padding, return_tensors="pt")["input_ids"]
    assert found.shape == (2, width or longest)
    assert tiny_processor(text=TEXTS, return_tensors="pt")["input_ids"].shape == (2, longest)


def test_saved_processor_loads_the_same(tiny_processor: KoEnClipProcessor, tmp_path: Path) -> None:
    tiny_processor.save_pretrained(tmp_path)
    arguments: dict[str, Any] = {"images": picture(), "text": TEXTS, "return_tensors": "pt"}
    expected = tiny_processor(**arguments)
    for loaded in (AutoProcessor.from_pretrained(tmp_path), KoEnClipProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is KoEnClipProcessor
        assert type(loaded.image_processor) is KoEnClipImageProcessor
        assert isinstance(loaded.tokenizer, KoEnClipTokenizerFast)
        assert_close(dict(loaded(**arguments)), dict(expected), rtol=0, atol=0)
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path), KoEnClipTokenizerFast)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is KoEnClipImageProcessor

    # The twin: settings come from the file.
    settings = json.loads((tmp_path / "processor_config.json").read_text(encoding="utf-8"))
    settings["image_processor"]["image_mean"] = [0.0, 0.0, 0.0]
    (tmp_path / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    changed = AutoProcessor.from_pretrained(tmp_path)(**arguments)
    assert (changed["pixel_values"] - expected["pixel_values"]).abs().min() > 1


def test_zero_shot_pipeline_gives_the_models_probabilities(
    tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    labels = ["강아지", "고양이", "산"]
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path), device="cpu")
    assert type(classify.model) is KoEnClipModel
    found = classify(picture(), candidate_labels=labels, hypothesis_template="{} 사진")
    batch = tiny_processor(images=picture(), text=[f"{label} 사진" for label in labels], return_tensors="pt")
    with torch.no_grad():
        expected = tiny_model(**batch).logits_per_image[0].softmax(dim=0)
    scores = {row["label"]: row["score"] for row in found}
    assert [row["score"] for row in found] == sorted(scores.values(), reverse=True)
    # 1e-5: float32; the pipeline may pad texts otherwise.
    assert_close(torch.tensor([scores[label] for label in labels]), expected, rtol=0, atol=1e-5)
    # The twin: the model tells the labels apart.
    assert expected.max() - expected.min() > 1e-3


def test_text_without_eos_is_refused_with_its_row(tiny_processor: KoEnClipProcessor) -> None:
    tiny_processor(text=TEXTS)
    eos = tiny_processor.tokenizer.eos_token_id
    with pytest.raises(ValueError, match=rf"input_ids row 0 has no EOS \(id {eos}\).*special tokens"):
        tiny_processor(text=TEXTS, add_special_tokens=False)
    with pytest.raises(ValueError, match="row 0 has no EOS"):
        tiny_processor(text=TEXTS[0], add_special_tokens=False, return_tensors="pt")


@pytest.mark.parametrize(("row", "wrong"), [(1, -1), (0, 10**6)])
def test_foreign_ids_are_refused_with_their_row(row: int, wrong: int, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    rows = tiny_tokenizer(TEXTS)["input_ids"]
    check_input_ids(rows, tiny_tokenizer)
    rows[row][1] = wrong
    with pytest.raises(ValueError, match=rf"input_ids row {row} holds ids outside 0\.\.{len(tiny_tokenizer) - 1}"):
        check_input_ids(rows, tiny_tokenizer)
