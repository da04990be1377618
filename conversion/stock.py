"""transformers' own side of a parity check, for the sources that are folders of its models."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AlignConfig,
    AlignModel,
    AutoConfig,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

# From its module: transformers 5.17 exports a stand-in at the top level where torchvision is absent.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .converted import Converted
from .folders import read_config, read_tokenizer, read_weights, source_model
from .parity import TEXTS, Parity, compare_with, sample_pictures

CLASSES: dict[str, tuple[Any, Any]] = {
    "align": (AlignConfig, AlignModel),
    "chinese_clip": (ChineseCLIPConfig, ChineseCLIPModel),
    "clip": (CLIPConfig, CLIPModel),
    "vision-text-dual-encoder": (VisionTextDualEncoderConfig, VisionTextDualEncoderModel),
}
"""Configuration and model by `model_type`."""


def stock_parity(folder: Path, made: Converted) -> Parity:
    """How far a converted model is from transformers' own model, tokenizer and image processor of the folder.

    Args:
        folder: what the converter read.
        made: what it gave.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config_class, model_class = CLASSES[config.model_type]
    stock: Any = source_model(model_class, read_config(folder, config_class), read_weights(folder), str(folder))
    tokenizer = read_tokenizer(folder)

    def forward(input_ids: torch.Tensor, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        # CLIP's tokens look back only, and its padding may be EOS itself.
        mask = None if config.model_type == "clip" else (input_ids != tokenizer.pad_token_id).long()
        return stock_outputs(stock.float(), input_ids, mask, pixel_values)

    def inputs() -> tuple[list[list[int]], torch.Tensor]:
        length = made.processor.tokenizer.model_max_length  # type: ignore[union-attr]
        rows = tokenizer(list(TEXTS), truncation=True, max_length=length)["input_ids"]
        pixels = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)(
            sample_pictures(), return_tensors="pt"
        )
        return rows, pixels["pixel_values"]

    return compare_with(made, forward, inputs, f"transformers' {model_class.__name__}")


def stock_outputs(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, pixel_values: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What a joint model of transformers gives, by the names of `parity.our_outputs`."""
    with torch.no_grad():
        text = model.get_text_features(input_ids, attention_mask, output_hidden_states=True)
        vision = model.get_image_features(pixel_values, output_hidden_states=True)
        joint = model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
    return {
        **{f"text.hidden_states.{number}": hidden for number, hidden in enumerate(text.hidden_states)},
        "text.last_hidden_state": text.last_hidden_state,
        "text": text.pooler_output,
        **{f"vision.hidden_states.{number}": hidden for number, hidden in enumerate(vision.hidden_states)},
        "image": vision.pooler_output,
        "logits_per_image": joint.logits_per_image,
    }
