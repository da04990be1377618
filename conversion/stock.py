"""transformers' own side of a parity check, for the sources that are folders of its models."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AlignConfig,
    AlignModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

# From its module: transformers 5.17 exports a stand-in at the top level where torchvision is absent.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .folders import read_config, read_tokenizer, read_weights, source_model
from .parity import TEXTS, Batch, sample_pictures

CLASSES: dict[str, tuple[Any, Any]] = {
    "align": (AlignConfig, AlignModel),
    "chinese_clip": (ChineseCLIPConfig, ChineseCLIPModel),
    "clip": (CLIPConfig, CLIPModel),
    "vision-text-dual-encoder": (VisionTextDualEncoderConfig, VisionTextDualEncoderModel),
}
"""Configuration and model by `model_type`."""


def stock_outputs(folder: Path, model_type: str, batch: Batch) -> dict[str, torch.Tensor]:
    """What transformers' model of a folder gives, by the names of `parity.our_outputs`, in float32."""
    config_class, model_class = CLASSES[model_type]
    config = read_config(folder, config_class)
    model: Any = source_model(model_class, config, read_weights(folder), str(folder)).float()
    with torch.no_grad():
        text = model.get_text_features(batch.input_ids, batch.attention_mask, output_hidden_states=True)
        vision = model.get_image_features(batch.pixel_values, output_hidden_states=True)
        logits = model(**batch._asdict()).logits_per_image
    return {
        **{f"text.hidden_states.{number}": hidden for number, hidden in enumerate(text.hidden_states)},
        "text.last_hidden_state": text.last_hidden_state,
        "text": text.pooler_output,
        **{f"vision.hidden_states.{number}": hidden for number, hidden in enumerate(vision.hidden_states)},
        "image": vision.pooler_output,
        "logits_per_image": logits,
    }


def stock_inputs(folder: Path) -> dict[str, torch.Tensor]:
    """What the folder's tokenizer and image processor of transformers make of the sample texts and pictures."""
    tokens = read_tokenizer(folder)(list(TEXTS), padding=True, truncation=True, return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(folder)(sample_pictures(), return_tensors="pt")
    return {"input_ids": tokens["input_ids"], "pixel_values": pixels["pixel_values"]}
