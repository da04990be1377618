"""Both towers as ONNX, each held against the model in onnxruntime before it counts (needs the extra `onnx`).

Any batch and any length of text; the size of pictures is fixed in the file, and another size takes another file.
"""

from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import torch
from torch import nn
from torch.export import Dim

from ko_en_clip import KoEnClipModel, KoEnClipProcessor

from .parity import TEXTS, Parity, Row

# A file of protobuf ends at 2 GiB; the graph itself needs some megabytes. Larger towers get a file of weights beside.
_LARGEST_FILE = 2**31 - 2**26

TOLERANCE = 1e-4
"""Allowed difference of embeddings, as a share of the largest number or of 1 where that is less: onnxruntime fuses
attention, GELU and layer norm and sums in another order, in float32."""


class TextTower(nn.Module):
    """A model's texts alone: projected embeddings, not normalised, and the last hidden states."""

    def __init__(self, model: KoEnClipModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (B, D) and hidden states (B, N, width) of tokens, both (B, N) int64."""
        outputs = self.model.get_text_features(input_ids, attention_mask)
        return outputs.pooler_output, outputs.last_hidden_state


class VisionTower(nn.Module):
    """A model's pictures alone: projected embeddings, not normalised, and the last hidden states."""

    def __init__(self, model: KoEnClipModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (B, D) and hidden states of pixels (B, C, height, width)."""
        outputs = self.model.get_image_features(pixel_values)
        return outputs.pooler_output, outputs.last_hidden_state


class _Export(NamedTuple):
    name: str
    tower: nn.Module
    output: str
    # Each is traced with one batch and checked with another.
    traced: dict[str, torch.Tensor]
    checked: dict[str, torch.Tensor]
    shapes: dict[str, dict[int, Any]]


def to_onnx(model: KoEnClipModel, processor: KoEnClipProcessor, folder: Path) -> Parity:
    """Write `text.onnx` and `vision.onnx`, with tokenizer and image processor, and check both in onnxruntime.

    Args:
        model: in float32; a file of half precision would round otherwise from one runtime to the next.
        processor: makes the texts that are checked.
        folder: a new folder; whoever calls renames it when it is whole.

    Returns:
        How far the embeddings of onnxruntime are from torch's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
    rows = [_written(each, folder) for each in _exports(model.float(), processor)]
    return Parity(reference="onnxruntime", rows=rows)


def _exports(model: KoEnClipModel, processor: KoEnClipProcessor) -> list[_Export]:
    config: Any = model.config
    call: Any = processor
    batch = Dim("batch")
    length = Dim("tokens", max=processor.tokenizer.model_max_length)

    def tokens(*texts: str) -> dict[str, torch.Tensor]:
        made = call(text=list(texts), return_tensors="pt")
        return {name: made[name] for name in ("input_ids", "attention_mask")}

    def pixels(number: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(number)
        side, channels = config.vision_config.image_size, config.vision_config.num_channels
        return {"pixel_values": torch.randn(number, channels, side, side, generator=generator)}

    text_shapes = {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")}
    texts, pictures = TextTower(model).eval(), VisionTower(model).eval()
    return [
        _Export("text", texts, "text_embeds", tokens(*TEXTS[:2]), tokens(*TEXTS[2:]), text_shapes),
        _Export("vision", pictures, "image_embeds", pixels(2), pixels(3), {"pixel_values": {0: batch}}),
    ]


def _written(export: _Export, folder: Path) -> Row:
    file = folder / f"{export.name}.onnx"
    weight_bytes = sum(weight.numel() * weight.element_size() for weight in export.tower.parameters())
    with torch.no_grad():
        torch.onnx.export(
            export.tower,
            kwargs=export.traced,
            f=file,
            dynamo=True,
            dynamic_shapes=export.shapes,
            output_names=[export.output, "last_hidden_state"],
            external_data=weight_bytes > _LARGEST_FILE,
            verbose=False,
        )
        expected = export.tower(**export.checked)[0]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run([export.output], {name: tensor.numpy() for name, tensor in export.checked.items()})
    difference, largest = float((torch.from_numpy(found) - expected).abs().max()), float(expected.abs().max())
    return Row(
        name=f"{file.name} {export.output}",
        absolute=difference,
        relative=difference / largest,
        tolerance=TOLERANCE * max(1.0, largest),
    )
